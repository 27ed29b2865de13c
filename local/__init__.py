"""The embedded stack: everything Fruits needs on one machine, under one folder: ``make run``, ``make ui``."""
