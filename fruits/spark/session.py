"""What the Spark jobs share: session, arguments, progress, exit code."""

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from fruits.errors import ExitCode, FruitsError
from fruits.lake.branches import branch_name
from fruits.lake.catalog import Lake, spark_configuration
from fruits.lake.publication import check_current, written_head
from fruits.lake.schemas import TableName
from fruits.photos.entry import Action
from fruits.run.documents import TASKS, RunDocument, TaskName, check_tasks_before, read_plan, run_store, task_document
from fruits.run.lease import hold_lease, release_lease
from fruits.run.manifest import read_manifest
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.spark.cluster import await_executor, check_master, executor_errors
from fruits.spark.release import BatchFunction, check_release, same_release
from fruits.stores import denials_explained

if TYPE_CHECKING:
    from obstore.store import ObjectStore
    from pyspark.sql import DataFrame, Row, SparkSession

log = logging.getLogger("fruits")

_SESSION = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
    "spark.executorEnv.OPENBLAS_NUM_THREADS": "1",  # one thread per task: more only wait for each other
    "spark.python.worker.reuse": "true",  # a worker keeps its backbone from task to task
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
}


@dataclass(frozen=True)
class Job:
    """A job's view of its run: the plan, and the tables at the run's branch or at the base it started from."""

    settings: Settings
    spark: "SparkSession"
    lake: Lake
    plan: dict[str, Any]
    document: RunDocument

    @property
    def run_id(self) -> str:
        """Run id as Airflow has it."""
        return str(self.plan["run_id"])

    @property
    def slug(self) -> str:
        """Run id as branches and paths have it."""
        return str(self.plan["slug"])

    @property
    def model_id(self) -> str:
        """Backbone of the run."""
        return str(self.plan["model_id"])

    @property
    def feature_width(self) -> int:
        """Length of the backbone's feature vectors."""
        return int(self.plan["card"]["feature_width"])

    @property
    def branch(self) -> str:
        """The run's branch."""
        return branch_name(self.slug)

    @property
    def request(self) -> RunRequest:
        """What the run was asked to do."""
        return RunRequest.from_document(self.plan["request"])

    @property
    def store(self) -> "ObjectStore":
        """The run's folder in the lake."""
        return run_store(self.settings, self.slug)

    def base(self, name: TableName) -> int:
        """Snapshot of a table that the plan started from."""
        return int(self.plan["base"]["snapshots"][name])

    def head(self, name: TableName) -> int:
        """Snapshot of a table with what the run has written so far, see ``written_head``."""
        return written_head(self.lake, name, self.plan)

    def read(self, name: TableName, snapshot_id: int) -> "DataFrame":
        """Rows of a table at a snapshot."""
        return self.spark.read.option("versionAsOf", snapshot_id).table(self.identifier(name))

    def call(self, procedure: str, name: TableName, arguments: str) -> "list[Row]":
        """Call one of Iceberg's procedures on a table."""
        catalog, table = self.settings.catalog_name, self.identifier(name)
        return self.spark.sql(f"CALL {catalog}.system.{procedure}(table => '{table}', {arguments})").collect()

    def replaced_keys(self) -> pa.Table:
        """Keys of the manifest's updated and deleted objects; one column, ``key``."""
        manifest = read_manifest(self.store)
        return manifest.filter(pc.not_equal(manifest["action"], Action.CREATE.value)).select(["key"])

    def remove_keys(self, name: TableName, keys: pa.Table) -> None:
        """Delete the rows of ``keys`` (one column, ``key``) and the run's backbone from the run's branch of a table."""
        if keys.num_rows:
            self.spark.createDataFrame(keys).createOrReplaceTempView("removed")
            self.spark.sql(
                f"DELETE FROM {self.branch_identifier(name)} WHERE model_id = '{self.model_id}' "  # noqa: S608 -- our own hash
                "AND key IN (SELECT key FROM removed)"
            )

    def branch_identifier(self, name: TableName) -> str:
        """The run's branch of a table, as SQL and ``writeTo`` take it."""
        return f"{self.identifier(name)}.branch_{self.branch}"

    def identifier(self, name: TableName) -> str:
        """A table, as SQL takes it."""
        return f"{self.settings.catalog_name}.{self.settings.namespace}.{name}"


def run_job(
    task: TaskName, description: str, work: Callable[[Job], None], argv: list[str] | None, *, last: bool = False
) -> int:
    """Run one Spark job of a run: parse arguments, open session and document, work, and say how it ended.

    The run releases its lease when its ``last`` job has succeeded.

    Returns an ``ExitCode``. Errors that a person can mend are one line in the log; only defects show a stack trace.
    """
    arguments = _parser(task, description).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout)
    try:
        with denials_explained():
            _run(task, arguments.run, work, last=last)
    except FruitsError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:
        log.exception("%s failed", task)
        return ExitCode.UNEXPECTED
    return ExitCode.OK


def _run(task: TaskName, run: str, work: Callable[[Job], None], *, last: bool) -> None:
    settings = Settings.load()
    plan = read_plan(settings, run)
    with (
        task_document(settings, task, plan) as document,
        # A dry run changes nothing, so it need not wait.
        nullcontext() if plan["request"]["dry_run"] else hold_lease(settings, plan["slug"]),
    ):
        check_release(os.environ)
        lake = Lake.open(settings)
        if task in TASKS:
            check_tasks_before(settings, task, plan)
            check_current(lake, plan)
        with executor_errors(), _session(f"fruits {task}", settings, document) as spark:
            work(Job(settings, spark, lake, plan, document))
    if last:
        release_lease(settings, plan["slug"])


def _parser(task: TaskName, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{task}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings come from FRUITS_* variables: docs/configuration.md. Exit codes: 0 done, 1 defect, "
        "2 bad input, 3 a required gate failed.",
    )
    parser.add_argument(
        "--run", required=True, metavar="SLUG", help="folder of the run in the lake, as the plan task names it"
    )
    return parser


@contextmanager
def _session(name: str, settings: Settings, document: RunDocument) -> Iterator["SparkSession"]:
    from pyspark.sql import SparkSession

    with document.stage("session"):
        builder = SparkSession.builder.appName(name)
        for key, value in {**spark_configuration(settings), **_SESSION}.items():
            builder = builder.config(key, value)
        check_master()
        spark = builder.getOrCreate()
        document.content["versions"]["spark"] = spark.version
    try:
        with document.stage("session"):
            await_executor(spark, settings.executor_seconds)
            spark.conf.set("spark.sql.shuffle.partitions", str(4 * spark.sparkContext.defaultParallelism))
        yield spark
    finally:
        spark.stop()


def map_batches(rows: "DataFrame", function: BatchFunction, schema: pa.Schema) -> "DataFrame":
    """What ``function`` makes of the rows, with ``schema``; on executors of the driver's release only."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return rows.mapInArrow(same_release(function), from_arrow_schema(schema))  # type: ignore[arg-type]


@contextmanager
def progress(spark: "SparkSession", what: str, total: int, every: float = 3.0) -> Iterator[None]:
    """Log done/total, rate and time left of the Spark tasks that run inside, every few seconds.

    ``total`` is in items; an item counts as done when its task is.
    """
    group = f"progress-{threading.get_ident()}-{time.monotonic_ns()}"
    spark.sparkContext.setJobGroup(group, what)
    stop = threading.Event()
    start = time.perf_counter()

    def report() -> None:
        done = 0
        while not stop.wait(every):
            done = max(done, round(total * _share_done(spark, group)))
            spent = time.perf_counter() - start
            rate = done / spent
            left = f"{(total - done) / rate:.0f} s left" if rate else "starting"
            log.info("progress %s %d/%d %.0f/s %s", what, done, total, rate, left)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        spark.sparkContext._jsc.clearJobGroup()  # noqa: SLF001 -- PySpark has no public way to leave a group
    spent = time.perf_counter() - start
    log.info("progress %s %d/%d %.0f/s done in %.1f s", what, total, total, total / spent if spent else 0, spent)


def _share_done(spark: "SparkSession", group: str) -> float:
    """Share of the largest stage's tasks that are done, 0 to 1, over the jobs of a group."""
    tracker = spark.sparkContext.statusTracker()
    stages = [
        stage
        for job_id in tracker.getJobIdsForGroup(group)
        if (job := tracker.getJobInfo(job_id))
        for stage_id in job.stageIds
        if (stage := tracker.getStageInfo(stage_id))
    ]
    largest = max(stages, key=lambda stage: stage.numTasks, default=None)
    return largest.numCompletedTasks / largest.numTasks if largest and largest.numTasks else 0.0
