"""Targets and oracle trained in one process, in slices, storing no zoo."""
