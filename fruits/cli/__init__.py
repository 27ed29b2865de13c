"""The command line ``fruits``: each command makes one JSON document, and a terminal gets it as tables."""
