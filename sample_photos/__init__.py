"""Fruit photos drawn by code: for `make run`, tests and benchmarks."""
