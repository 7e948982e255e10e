"""Checkpoints of any size, read block by block from their memory map"""
