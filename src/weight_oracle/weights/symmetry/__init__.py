"""Exact symmetries of the weights, from one declaration per architecture: drawn, applied, tested"""
