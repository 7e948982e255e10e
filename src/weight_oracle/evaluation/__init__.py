"""Controls, metrics, baselines, and verdicts from running the target."""
