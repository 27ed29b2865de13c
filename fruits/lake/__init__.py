"""The lake: Iceberg tables, their catalog, run branches and publications."""
