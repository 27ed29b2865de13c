"""Libraries that tasks and DAG files use, imported once before Airflow forks. A listener of Airflow's plugin.

The scheduler forks the LocalExecutor's workers, a worker forks a process for each of its tasks, and the DAG processor
forks one for each DAG file. What the first process has imported, none of the others imports again (Airflow 3.3). Only
libraries are listed: of our modules, forked processes have those that the plugin imports.
"""

from importlib import import_module
from typing import Any

from airflow.listeners import hookimpl

_LIBRARIES = (
    "airflow.dag_processing.dagbag",
    "airflow.providers.amazon.aws.sensors.s3",
    "airflow.providers.apache.spark.operators.spark_submit",
    "airflow.providers.standard.operators.hitl",
    "airflow.sdk.execution_time.task_runner",
    "boto3",
    "duckdb",
    "obstore",
    "pyarrow.compute",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.pyarrow",
)


@hookimpl
def on_starting(component: Any) -> None:
    """Import them when a scheduler, DAG processor or triggerer starts; a task's process has them already."""
    from airflow.jobs.job import Job

    if isinstance(component, Job):
        for name in _LIBRARIES:
            import_module(name)
