"""One run, typed: its request, its plan, and the records of its tasks."""
