"""The chain as the DAG runs it, in this process: a real plan, the real Spark jobs in one JVM, a real publication.

The jobs find the session of ``spark`` and work in new sessions beside it. A test that needs a Spark of its own starts a
process: ``spark_submit``, or a cluster (``benchmarks/standalone.py``).
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
import pytest
from pyiceberg.expressions import EqualTo

from fruits.errors import ExitCode
from fruits.lake.branches import Writer, commit_rows, start_branch
from fruits.lake.catalog import Lake, spark_configuration
from fruits.lake.publication import Publication, publications
from fruits.lake.schemas import TABLES, TableName
from fruits.run.documents import RunDocuments, TaskName, read_documents, run_store
from fruits.run.lease import current_lease, release_lease
from fruits.run.request import resolve_request
from fruits.run.state import WRITTEN, PlannedRun, run_key
from fruits.settings import Settings
from fruits.spark.session import start_session
from fruits.spark.tasks import LocalExecutors
from fruits.steps.plan import plan_run
from fruits.steps.publish import publish_run
from fruits.stores import lake_store, photo_store, read_json, write_bytes, write_json
from local.stack import Stack, make_bucket
from sample_photos import BROKEN, draw, draw_broken
from tests.loading import load_file

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parents[2]
SCHEMAS = {table.name: table.schema for table in TABLES}
JOBS: tuple[TaskName, ...] = ("featurize", "pca", "validate")
LABELS = ("Apple Red", "Banana", "Kiwi")

NewSettings = Callable[..., Settings]


@dataclass(frozen=True)
class Chain:
    """What the DAG does, task by task or as a whole; what tests do to the bucket; what readers find."""

    jobs: Mapping[str, ModuleType]

    def put(self, settings: Settings, photos: Mapping[str, bytes]) -> None:
        """Upload photos, over those that are there."""
        for key, data in photos.items():
            write_bytes(photo_store(settings), key, data)

    def delete(self, settings: Settings, *keys: str) -> None:
        """Remove photos from the bucket."""
        for key in keys:
            obstore.delete(photo_store(settings), key)

    def plan(self, settings: Settings, run_id: str, **params: Any) -> PlannedRun:
        """The task `plan`."""
        self.lapse(settings)
        return plan_run(settings, resolve_request(params, settings), run_id)

    def environment(self, settings: Settings) -> AbstractContextManager[None]:
        """Inside, ``Settings.load()`` finds these settings, as a job does in a process of its own."""
        return environment(settings)

    def submit(self, job: TaskName, settings: Settings, run_id: str) -> int:
        """One Spark job, with the settings in its environment; returns its exit code."""
        self.lapse(settings)
        with environment(settings):
            return int(self.jobs[job].main(["--run", run_key(run_id)]))

    def submit_all(self, settings: Settings, run_id: str) -> None:
        """All Spark jobs of a planned run; none may fail."""
        for job in JOBS:
            assert self.submit(job, settings, run_id) == ExitCode.OK, self.documents(settings, run_id).of(job)

    def publish(self, settings: Settings, run_id: str) -> Publication:
        """The task `publish`."""
        self.lapse(settings)
        return publish_run(settings, run_key(run_id)).publication

    def lapse(self, settings: Settings) -> None:
        """Release any lease: tests leave runs unfinished, and let runs overlap that would wait for each other."""
        if lease := current_lease(settings):
            release_lease(settings, lease.run)

    def run(self, settings: Settings, run_id: str, **params: Any) -> RunDocuments:
        """The whole chain, which must find work and must publish it; returns the run's documents."""
        assert self.plan(settings, run_id, **params).work, "the plan found nothing to do"
        self.submit_all(settings, run_id)
        self.publish(settings, run_id)
        return self.documents(settings, run_id)

    def documents(self, settings: Settings, run_id: str) -> RunDocuments:
        """The run's documents, those that there are."""
        return read_documents(settings, run_key(run_id))

    def published(self, settings: Settings) -> Publication:
        """The current publication."""
        return publications(Lake.open(settings))[-1]

    def rows(self, settings: Settings, name: TableName, *, without: tuple[str, ...] = (), **equal: str) -> list[Any]:
        """What readers of the current publication find in a table, by key; ``without`` some columns."""
        snapshot = self.published(settings).snapshots[name]
        rows = Lake.open(settings).read(name, snapshot, **equal).drop_columns(list(without)).to_pylist()
        return sorted(rows, key=lambda row: str(row.get("key")))

    def branch_rows(self, settings: Settings, run_id: str, name: TableName) -> list[Any]:
        """What the last attempt of a run's task left on its branch of a table, by key."""
        lake = Lake.open(settings)
        rows = lake.read(name, lake.head(name, self.writer(settings, run_id, name).branch)).to_pylist()
        return sorted(rows, key=lambda row: str(row.get("key")))

    def writer(self, settings: Settings, run_id: str, name: TableName) -> Writer:
        """The last attempt of a run's task that writes a table."""
        (task,) = [task for task, tables in WRITTEN.items() if name in tables]
        document = self.documents(settings, run_id).of(task)
        assert document is not None
        return document.writer(run_key(run_id))

    @contextmanager
    def written_otherwise(
        self, settings: Settings, run_id: str, name: TableName, key: str, rows: list[Any]
    ) -> Iterator[int]:
        """Inside, ``rows`` are all that a table has for ``key``, as if the task that writes the table had done that.

        Gives the snapshot. The documents of `featurize` and `pca` name it where they named the snapshot that was there.
        """
        lake, store = Lake.open(settings), run_store(settings, run_key(run_id))
        branch = self.writer(settings, run_id, name).branch
        before = lake.head(name, branch)
        assert before is not None
        after = replace_rows(lake, self.writer(settings, run_id, name), name, key, rows)
        originals = {}
        for task in WRITTEN:
            with suppress(FileNotFoundError):
                originals[task] = read_json(store, f"{task}.json")
        for task, document in originals.items():
            write_json(store, f"{task}.json", {**document, "result": naming(document["result"], name, after)})
        try:
            yield after
        finally:
            for task, document in originals.items():
                current = read_json(store, f"{task}.json")
                if current["token"] == document["token"]:  # otherwise the task ran meanwhile
                    write_json(store, f"{task}.json", {**current, "result": document["result"]})
            start_branch(lake, name, branch, before)

    def photo(self, number: int, label: str = LABELS[0]) -> bytes:
        """A small sound photo."""
        return _photo(number, label)

    def photos(self, count: int, start: int = 0) -> dict[str, bytes]:
        """Photos of each of ``LABELS`` by object key, every fourth of them held out."""
        photos = {}
        for number in range(start, start + count):
            label, split = LABELS[number % len(LABELS)], "Test" if number % 4 == 3 else "Training"
            photos[f"{split}/{label}/{number}.img"] = _photo(number, label)
        return photos

    def heads(self, settings: Settings) -> dict[str, int | None]:
        """Where ``main`` of each table is."""
        lake = Lake.open(settings)
        return {table.name: lake.head(table.name) for table in TABLES}


def replace_rows(lake: Lake, writer: Writer, name: TableName, key: str, rows: list[Any]) -> int:
    """Put ``rows`` in place of those of ``key`` on an attempt's branch of a table; returns the snapshot at its end."""
    commit = writer.commit

    def change(transaction: Any) -> None:
        transaction.delete(EqualTo("key", key), **commit)
        if rows:
            transaction.append(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), **commit)

    commit_rows(lake, name, change, branch=writer.branch)
    head = lake.head(name, writer.branch)
    assert head is not None
    return head


def naming(result: Any, name: TableName, snapshot: int) -> Any:
    """The result of a task's document with another snapshot of a table."""
    if result is None:
        return None
    changed = {
        field: {**result[field], name: snapshot} for field in ("read", "wrote") if name in (result.get(field) or {})
    }
    return {**result, **changed}


@contextmanager
def environment(settings: Settings) -> Iterator[None]:
    """Inside, ``Settings.load()`` finds these settings, as a job does in a process of its own."""
    secret = {"catalog_uri": settings.catalog_uri.get_secret_value()}
    values = {name: getattr(settings, name) for name in settings.model_fields_set} | secret
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FRUITS_")]:
            patch.delenv(name)
        for name, value in values.items():
            patch.setenv(f"FRUITS_{name.upper()}", ",".join(value) if isinstance(value, tuple) else str(value))
        yield


def job_module(job: str) -> ModuleType:
    """A job script as a module."""
    module: ModuleType = load_file(ROOT / "spark_jobs" / f"{job}.py", f"spark_job_{job}")
    return module


@pytest.fixture(scope="session")
def spark(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[SparkSession]":
    """The one Spark of this process; the jobs of all tests work in new sessions beside it."""
    options = (
        "--master local[2] --driver-memory 1g "
        # Nothing here runs long enough to repay a better compilation, or several threads of garbage collection; and
        # with room for all of Spark's code and classes, and for young objects, there is little to collect.
        '--driver-java-options "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC -Xmn300m '
        '-XX:MetaspaceSize=256m"'
    )
    nowhere = Settings.load(lake="file:///nowhere", catalog_uri="sqlite:////nowhere/catalog.db")
    configuration = {
        "spark.sql.extensions": spark_configuration(nowhere)["spark.sql.extensions"],
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("spark")),
        "spark.ui.enabled": "false",
        # To compile a query, or to plan it again after each of its stages, takes longer than to run it on a few rows.
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", f"{options} pyspark-shell")
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("PYSPARK_DRIVER_PYTHON", sys.executable)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        session = start_session("fruits tests", configuration)
        yield session
        session.stop()


@pytest.fixture(scope="session")
def chain(spark: "SparkSession") -> Chain:
    """The chain; its jobs run in this process and its Spark."""
    return Chain({job: job_module(job) for job in (*JOBS, "maintain")})


@pytest.fixture
def worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run in worker processes of this one, as under a local master, and not in its Spark."""
    monkeypatch.setattr("fruits.spark.tables.executors_of", lambda settings, _: LocalExecutors(settings, 2))


@pytest.fixture
def spark_submit() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs a script as the DAG does: a process of its own, from the environment's spark-submit."""

    def submit(*arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [Path(sys.prefix) / "bin" / "spark-submit", "--conf", "spark.ui.enabled=false", *map(str, arguments)],
            env={
                **{name: value for name, value in os.environ.items() if name != "PYSPARK_SUBMIT_ARGS"},
                "PYSPARK_PYTHON": sys.executable,
                "PYSPARK_DRIVER_PYTHON": sys.executable,
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return submit


@pytest.fixture(scope="session")
def new_settings(stack: Stack, staged_models: Path, tmp_path_factory: pytest.TempPathFactory) -> NewSettings:
    """Makes settings of a fresh lake with the backbone in it, and of a fresh bucket unless one is given.

    ``kind="s3"`` puts the lake into a bucket too. The explained variance gate is low: few photos explain little.
    """

    def make(kind: str = "file", **overrides: Any) -> Settings:
        name = uuid.uuid4().hex[:12]
        folder = tmp_path_factory.mktemp(name)
        bucket = overrides.setdefault("bucket", f"photos-{name}")
        make_bucket(stack, bucket)
        lake = f"file://{folder}"
        if kind == "s3":
            make_bucket(stack, f"lake-{name}")
            lake = f"s3://lake-{name}/warehouse"
        catalog = f"sqlite:///{folder}/catalog.db"
        settings = Settings.load(**{"lake": lake, "catalog_uri": catalog, "s3_endpoint": stack.endpoint, **overrides})
        for path in (path for path in staged_models.rglob("*") if path.is_file()):
            write_bytes(lake_store(settings, "models"), path.relative_to(staged_models).as_posix(), path.read_bytes())
        return settings

    return make


@cache
def _photo(number: int, label: str) -> bytes:
    return draw(label, "Training", number, size=(100, 160))


@dataclass(frozen=True)
class First:
    """A published first run: its settings, its run id, what was in the bucket, its documents. Read only."""

    settings: Settings
    run_id: str
    photos: Mapping[str, bytes]
    documents: RunDocuments


@pytest.fixture(scope="session")
def first(chain: Chain, new_settings: NewSettings) -> First:
    """28 sound photos, all of the generator's broken ones, and a first run over them. Not to be changed by tests.

    Spark does all of it; without ``few_photos=0``, runs of tests are the driver's own work as small runs are.
    """
    settings, run_id = new_settings(few_photos=0), "manual__2026-11-22T09:30:00+00:00"
    photos = chain.photos(28) | {key: draw_broken(key) for key in BROKEN}
    chain.put(settings, photos)
    return First(settings, run_id, photos, chain.run(settings, run_id))
