"""Flow charts: what a target was made to do, and what can be asked about it."""
