"""The tasks of the DAG that need no JVM, a file each."""
