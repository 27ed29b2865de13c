"""The Spark session of a job, and functions of batches in it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fruits.errors import FruitsError
from fruits.lake.catalog import spark_configuration
from fruits.run.documents import TaskRecorder
from fruits.settings import Settings
from fruits.spark.cluster import await_executor, check_master, submitted_configuration, use_executors_python
from fruits.spark.executors import of_numbered
from fruits.spark.release import BatchFunction, same_release

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_PROCESS = {
    "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",  # one thread per task: more only wait for each other
    "spark.python.worker.reuse": "true",  # a worker keeps its backbone from task to task
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
}
"""What Spark reads once, when it starts."""

_SESSION = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
}

_EXTENSIONS = "spark.sql.extensions"


@contextmanager
def session(name: str, settings: Settings, recorder: TaskRecorder[Any]) -> Iterator["SparkSession"]:
    """A session that knows the lake's catalog; where the process has Spark running already, a new session beside it.

    Such a session shares nothing but Spark itself: views, settings, catalog and snapshot properties are its own.
    """
    running = running_session()
    with recorder.phase("session"):
        if running is None:
            submitted = submitted_configuration()
            use_executors_python(submitted)
            check_master(submitted)
            spark = start_session(name, spark_configuration(settings))
        else:
            spark = session_beside(running, settings)
        recorder.version("spark", spark.version)
    try:
        with recorder.phase("session"):
            await_executor(spark, settings.executor_seconds)
            spark.conf.set("spark.sql.shuffle.partitions", str(4 * spark.sparkContext.defaultParallelism))
        yield spark
    finally:
        if running is None:
            spark.stop()


def running_session() -> "SparkSession | None":
    """A session of this process, whatever thread started it; None when there is none."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def start_session(name: str, configuration: Mapping[str, str]) -> "SparkSession":
    """Start Spark in this process, as the jobs need it and with ``configuration``."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName(name)
    for key, value in {**_PROCESS, **_SESSION, **configuration}.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def session_beside(running: "SparkSession", settings: Settings) -> "SparkSession":
    """A new session of a running Spark, with the lake's catalog in place of any other of that name.

    Raises:
        FruitsError: when Spark was started without Iceberg's extension, which no session can add.
    """
    configuration = spark_configuration(settings)
    extension = configuration.pop(_EXTENSIONS)
    if extension not in (running.conf.get(_EXTENSIONS, "") or "").split(","):
        raise FruitsError(f"Spark session: it was started without {_EXTENSIONS}={extension}; start it with that")
    spark = running.newSession()
    catalog = f"spark.sql.catalog.{settings.catalog_name}"
    for key in spark.conf.getAll:
        if key.startswith(f"{catalog}."):  # else a lake in a folder would have the endpoint of a lake in S3
            spark.conf.unset(key)
    for key, value in {**_SESSION, **configuration}.items():
        spark.conf.set(key, value)
    return spark


def map_batches(rows: "DataFrame", function: BatchFunction, schema: pa.Schema) -> "DataFrame":
    """The rows that ``function`` makes of ``rows``, with ``schema``; on executors of the driver's release only."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return rows.mapInArrow(same_release(function), from_arrow_schema(schema))  # type: ignore[arg-type]


def map_table(rows: pa.Table, function: BatchFunction, schema: pa.Schema) -> pa.Table:
    """The same of few rows, which the driver has read itself: no executor has to start a Python for them."""
    return pa.Table.from_batches((made.cast(schema) for made in function(iter(rows.to_batches()))), schema)


def a_partition_each(spark: "SparkSession", work: pa.Table) -> "DataFrame":
    """The tasks in the rows of ``work``, each in a partition of its own: no core has two and another none.

    By ranges of a ``number``: ``repartition(count)`` deals the rows of each partition out from a place of chance on.
    """
    numbered = work.append_column("number", pa.array(range(len(work)), pa.int64()))
    return spark.createDataFrame(numbered).repartitionByRange(len(work), "number")


def map_each(spark: "SparkSession", work: pa.Table, function: BatchFunction, schema: pa.Schema) -> "DataFrame":
    """The rows that ``function`` makes of each row of ``work``, in a task each. All of ``work`` goes to each executor.

    So it is for few and small rows, and costs no shuffle, which ``a_partition_each`` has.
    """
    return map_batches(spark.range(0, len(work), 1, len(work)), of_numbered(work, function), schema)
