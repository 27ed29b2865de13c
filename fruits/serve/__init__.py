"""Answers for readers: state, report, identification, export."""
