"""One run, typed: its request, its plan, and the records of its tasks."""

DAG_ID = "fruit_features"
"""The DAG whose runs these are."""
