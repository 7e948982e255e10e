"""Populations of targets with known truths, stored as shards."""
