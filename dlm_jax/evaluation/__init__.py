"""Evaluation by generation and by likelihood, the metrics of both, and the report of a run."""
