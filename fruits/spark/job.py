"""What a Spark job works on: its run as planned, the snapshots that it starts from, its own branch of each table."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fruits.denials import denials_explained
from fruits.disks import full_disks_explained, temporary_folders
from fruits.errors import ExitCode, FruitsError
from fruits.lake.branches import Snapshots, resumable_heads
from fruits.lake.catalog import Lake
from fruits.lake.publication import check_current
from fruits.lake.reader import open_read_only
from fruits.lake.schemas import BY_NAME, DATA_TABLES, TableName
from fruits.run.documents import (
    PlannedMaintenance,
    RunDocuments,
    TaskName,
    TaskRecorder,
    check_tasks_before,
    read_documents,
    read_plan,
    run_folder,
    run_store,
    task_document,
)
from fruits.run.lease import hold_lease, release_lease
from fruits.run.manifest import StoredManifest
from fruits.run.migration import migrate, with_every_table, with_snapshots
from fruits.run.state import WRITTEN, PlannedRun
from fruits.settings import Settings
from fruits.spark.cluster import executor_errors
from fruits.spark.release import check_release
from fruits.spark.session import session
from fruits.spark.stored import Rows, RowsAtHand, rows_at
from fruits.spark.tables import Tables

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("fruits")

_FEW_ROWS_OF_A_PHOTO = 10
"""`pca` and `validate` take a tenth of the time that `featurize` takes for a photo, or less."""

_FEW_KEYS_OF_A_PHOTO = 500
"""Without its vector a row takes the driver some microseconds, and with it some tens of these."""


@dataclass(frozen=True)
class Job:
    """One attempt of a Spark job of a run.

    Attributes:
        run: The run, as planned.
        tables: The tables; what the job writes is on the branch of its attempt.
        start: The snapshots that the job starts from: the plan's base, and what the tasks before wrote.
        documents: The documents of the tasks before.
        recorder: The job's own document.
    """

    run: PlannedRun
    tables: Tables
    start: Snapshots
    documents: RunDocuments
    recorder: TaskRecorder[Any]

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.tables.lake.settings

    @property
    def lake(self) -> Lake:
        """The lake, through PyIceberg."""
        return self.tables.lake

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a phase of the job."""
        return self.recorder.phase(name)

    def manifest(self) -> StoredManifest:
        """The run's manifest: the plan's for `featurize`, and for later jobs what `featurize` carried out of that.

        Raises:
            FruitsError: when maintenance has removed the run's folder.
        """
        document = self.documents.featurize if self.recorder.document.task != "featurize" else None
        carried_out = document.done.manifest if document and document.done else None
        name = carried_out or self.run.manifest
        try:
            return StoredManifest(run_store(self.settings, self.run.key), name)
        except FileNotFoundError:
            raise FruitsError(
                f"run {self.run.key}: its manifest {name} is gone from {self.settings.lake}/runs; clear the run from "
                "`wait_for_lease`, so that it is planned again"
            ) from None

    @property
    def remaining(self) -> int | None:
        """Objects that await work after this run: those that the plan left over, and photos that are pending.

        None when that is unknown, because the run did not list the bucket.
        """
        if self.run.remaining is None:
            return None
        document = self.documents.featurize
        return self.run.remaining + (document.done.due if document and document.done else 0)

    def start_branches(self, *names: TableName) -> None:
        """Fork the attempt's branches of tables from the job's starting snapshots."""
        for name in names:
            self.tables.start_branch(name, self.start[name])

    def resume_branches(self, *names: TableName) -> Snapshots:
        """Fork the attempt's branches of tables from where the attempt before ended; returns these snapshots."""
        heads = resumable_heads(self.lake, self.tables.writer, {name: self.start[name] for name in names})
        for name, snapshot_id in heads.items():
            self.tables.start_branch(name, snapshot_id)
        return heads

    def wrote(self, *names: TableName) -> Snapshots:
        """The snapshots at the ends of the attempt's branches, when this attempt and those before alone wrote them."""
        return {name: self.tables.head(name, self.start[name]) for name in names}

    def rows(self, name: TableName) -> "DataFrame":
        """Rows of a table at the job's starting snapshot."""
        return self.tables.read(name, self.start[name])

    def features(self) -> "DataFrame":
        """The features of the run's backbone at the job's starting snapshot."""
        return self.rows("features").where(f"model_id = '{self.run.model_id}'")

    @cached_property
    def is_small(self) -> bool:
        """Whether the driver reads the run's rows itself: for so few, that takes less time than a start of Spark."""
        return len(self.manifest()) <= _FEW_ROWS_OF_A_PHOTO * self.settings.few_photos

    @property
    def most_at_hand(self) -> int:
        """Most photos whose rows the driver reads itself where it keeps no vectors of them."""
        return _FEW_KEYS_OF_A_PHOTO * self.settings.few_photos

    def read_all(self, name: TableName, *columns: str, **equal: str) -> pa.Table:
        """Columns of the rows of all backbones in a table, in the order of keys."""
        return self._gathered(name, columns, self.lake.batches(name, self.start[name], columns, since=None, **equal))

    def read_appended(self, name: TableName, *columns: str, **equal: str) -> pa.Table:
        """Columns of the rows of the run's backbone that a run appended to a table, in the order of keys."""
        since, of_run = self.run.base.snapshots[name], {"model_id": self.run.model_id, **equal}
        return self._gathered(name, columns, self.lake.batches(name, self.start[name], columns, since=since, **of_run))

    @cached_property
    def few_new_features(self) -> pa.Table:
        """The features that a small run wrote, with what statistics, drift and embeddings need: read once."""
        columns = ("key", "etag", "label", "split", "vector")
        return self.read_appended("features", *columns, run_id=self.run.run_id)

    def new_rows(self) -> Rows:
        """The rows of ``features`` that this run wrote."""
        return RowsAtHand(self.few_new_features) if self.is_small else self.written_rows

    @cached_property
    def written_rows(self) -> Rows:
        """The same of a larger run."""
        before, model_id = self.run.base.snapshots["features"], self.run.model_id
        rows = rows_at(self.tables, "features", self.start["features"], since=before, model_id=model_id)
        return rows.only(run_id=self.run.run_id)

    def all_rows(self) -> Rows:
        """The rows of ``features``."""
        return rows_at(self.tables, "features", self.start["features"], model_id=self.run.model_id)

    def read_keys(self, name: TableName, snapshot_id: int, keys: pa.Table, *columns: str) -> pa.Table:
        """Columns of the rows that few ``keys`` (one column, ``key``) have in a table at a snapshot."""
        asked = sorted(keys["key"].to_pylist())
        batches = self.lake.batches(name, snapshot_id, columns, keys=asked, model_id=self.run.model_id)
        return self._gathered(name, columns, batches if asked else ())

    def _gathered(self, name: TableName, columns: Sequence[str], batches: Iterable[pa.RecordBatch]) -> pa.Table:
        schema = pa.schema([BY_NAME[name].schema.field(column) for column in columns])
        rows = pa.Table.from_batches([batch.select(columns).cast(schema) for batch in batches], schema)
        return rows.sort_by("key") if "key" in columns else rows


@dataclass(frozen=True)
class MaintenanceJob:
    """One attempt of the Spark job of a run of maintenance."""

    planned: PlannedMaintenance
    tables: Tables
    recorder: TaskRecorder[Any]

    @property
    def lake(self) -> Lake:
        """The lake, through PyIceberg."""
        return self.tables.lake

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time a phase of the job."""
        return self.recorder.phase(name)


def run_job(task: TaskName, description: str, work: Callable[[Job], None], argv: list[str] | None) -> int:
    """Run a Spark job of a run from the command line; returns an ``ExitCode``."""
    return _exit_code(task, description, argv, lambda settings, run: _run(task, settings, run, work))


def run_maintenance_job(description: str, work: Callable[[MaintenanceJob], None], argv: list[str] | None) -> int:
    """Run the Spark job of a run of maintenance from the command line; returns an ``ExitCode``."""
    return _exit_code("maintain", description, argv, lambda settings, run: _run_maintenance(settings, run, work))


def _run(task: TaskName, settings: Settings, run: str, work: Callable[[Job], None]) -> None:
    planned = read_plan(settings, run)  # without the lease: see fruits/run/lease.py
    with _attempt(task, settings, planned, dry_run=planned.request.dry_run) as (lake, recorder):
        planned = with_every_table(lake, planned)
        documents = with_snapshots(lake, planned, read_documents(settings, run))
        check_tasks_before(task, planned, documents)
        check_current(lake, planned.base, planned.run_id)
        start = starting_snapshots(task, planned, documents)
        check_snapshots(lake, planned, start)
        with _tables(task, lake, planned.key, recorder) as tables:
            work(Job(planned, tables, start, documents, recorder))


def _run_maintenance(settings: Settings, run: str, work: Callable[[MaintenanceJob], None]) -> None:
    document = read_documents(settings, run).plan_maintenance
    planned = document.done if document else None
    if planned is None:
        raise FruitsError(
            f"run {run}: no finished plan of maintenance in {settings.lake}/{run_folder(settings, run)}; clear the run "
            "from `wait_for_lease`, or correct --run"
        )
    with (
        _attempt("maintain", settings, planned, dry_run=planned.request.dry_run) as (lake, recorder),
        _tables("maintain", lake, planned.key, recorder) as tables,
    ):
        work(MaintenanceJob(planned, tables, recorder))
    release_lease(settings, planned.key)


def starting_snapshots(task: TaskName, planned: PlannedRun, documents: RunDocuments) -> Snapshots:
    """The snapshots that a task starts from: the plan's base, overlaid with what the tasks before it wrote."""
    written: dict[TableName, int] = {}
    for before, document in (("featurize", documents.featurize), ("pca", documents.pca)):
        if before == task:
            break
        if document and document.done:
            written |= {name: (document.done.wrote or {})[name] for name in WRITTEN[before]}
    return {**planned.base.snapshots, **written}


def check_snapshots(lake: Lake, planned: PlannedRun, start: Snapshots) -> None:
    """Raise unless the snapshots that a task starts from are still there: maintenance gives up old runs.

    Raises:
        FruitsError: naming the first table without its snapshot.
    """
    for name in DATA_TABLES:
        snapshot_id = start[name]
        if lake.table(name).snapshot_by_id(snapshot_id) is None:
            raise FruitsError(
                f"run {planned.key}: snapshot {snapshot_id} of table {name} is gone, and its rows with it; clear the "
                "run from `wait_for_lease`, so that it is done again"
            )


@contextmanager
def _attempt(
    task: TaskName, settings: Settings, planned: PlannedRun | PlannedMaintenance, *, dry_run: bool
) -> Iterator[tuple[Lake, TaskRecorder[Any]]]:
    """The lake and the document of an attempt, which holds the lease; a dry run changes nothing and needs none."""
    planned_at = planned.planned_at if isinstance(planned, PlannedRun) else None
    with (
        nullcontext() if dry_run else hold_lease(settings, planned.key),
        task_document(settings, task, planned.key, planned.run_id, planned_at) as recorder,
    ):
        check_release(os.environ)
        lake = open_read_only(settings) if dry_run else Lake.open(settings)
        if not dry_run:
            migrate(lake)
        yield lake, recorder


@contextmanager
def _tables(task: TaskName, lake: Lake, run: str, recorder: TaskRecorder[Any]) -> Iterator[Tables]:
    with executor_errors(), ExitStack() as started:

        def start() -> "SparkSession":
            spark = started.enter_context(session(f"fruits {task}", lake.settings, recorder))
            for name, value in tables.session_properties.items():
                spark.conf.set(name, value)
            folders = temporary_folders(spark.sparkContext.getConf().get("spark.local.dir"))
            started.enter_context(full_disks_explained(lake.settings, folders))
            return spark

        tables = Tables(start, lake, recorder.document.writer(run))
        log.info("tasks run on %s", tables.executors)  # decided before a session of ours is there
        yield tables


def _exit_code(
    task: TaskName, description: str, argv: list[str] | None, run: Callable[[Settings, str], None]
) -> ExitCode:
    """Run a job and say how it ended; only defects show a stack trace."""
    arguments = _parser(task, description).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stdout)
    try:
        with denials_explained():
            run(Settings.load(), arguments.run)
    except FruitsError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:
        log.exception("%s failed", task)
        return ExitCode.UNEXPECTED
    return ExitCode.OK


def _parser(task: TaskName, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{task}.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings come from FRUITS_* variables: docs/configuration.md. Exit codes: 0 done, 1 defect, "
        "2 bad input, 3 a required gate failed, 4 another run published in between, 5 try the same again later.",
    )
    parser.add_argument("--run", required=True, metavar="KEY", help="key of the run: its folder in the lake")
    return parser
