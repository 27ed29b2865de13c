"""Where tasks run: on Spark's executors, or in worker processes of the driver where Spark has this machine alone.

A task is a function of batches of rows, from `fruits/spark/executors.py`, and a row that says what is its work. Both
kinds of executors run the same functions on the same work, so a run makes the same rows on each.
"""

import logging
import os
import re
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, TypeAlias

import pyarrow as pa

from fruits.disks import full_disks_explained
from fruits.errors import TransientError
from fruits.settings import Settings
from fruits.spark.executors import run_task
from fruits.spark.release import BatchFunction
from fruits.spark.session import a_partition_each, map_batches, map_each, running_session

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Merge: TypeAlias = Callable[["DataFrame", int], "DataFrame"]
"""From the rows of so many tasks to fewer rows, by Spark."""

log = logging.getLogger("fruits")

_LOCAL = re.compile(r"local(?:\[(\d+|\*)\])?")
_SENT_TO_ALL = 2**20  # bytes of work that may go to each executor with the function


@dataclass(frozen=True)
class Progress:
    """What the log says of tasks under way: done/total, rate and time left, every few seconds.

    Attributes:
        what: The work.
        total: Items in all. An item counts as done when its task is.
        before: Items that were done before.
        inside: Items of the tasks under way; None for all that are left.
        every: Seconds between two lines of the log.
    """

    what: str
    total: int
    before: int = 0
    inside: int | None = None
    every: float = 3.0

    @contextmanager
    def logged(self, share_done: Callable[[], float]) -> Iterator[None]:
        """Log it while the tasks run inside; ``share_done`` gives the share of them that is done, 0 to 1."""
        ours = self.total - self.before if self.inside is None else self.inside
        stop = threading.Event()
        start = time.perf_counter()

        def write() -> None:
            done = 0
            while not stop.wait(self.every):
                done = max(done, round(ours * share_done()))
                rate = done / (time.perf_counter() - start)
                left = f"{(self.total - self.before - done) / rate:.0f} s left" if rate else "starting"
                log.info("progress %s %d/%d %.0f/s %s", self.what, self.before + done, self.total, rate, left)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        spent = time.perf_counter() - start
        rate = ours / spent if spent else 0
        log.info("progress %s %d/%d %.0f/s done in %.1f s", self.what, self.before + ours, self.total, rate, spent)


class Executors(Protocol):
    """What runs tasks."""

    @property
    def cores(self) -> int:
        """How many tasks run at a time."""

    def run(
        self,
        work: pa.Table,
        function: BatchFunction,
        schema: pa.Schema,
        progress: Progress,
        *,
        in_threads: bool = False,
        merge: Merge | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows, with ``schema``, that ``function`` makes of each row of ``work``, in a task each.

        The rows of a task are in the driver's memory at once, and come in the order of ``work``.

        Args:
            work: A row for each task.
            function: What makes rows of a task's work.
            schema: The columns of these rows.
            progress: What the log says meanwhile.
            in_threads: Whether tasks may share a process, because they leave Python's lock for most of their time.
            merge: Merges the rows of very many tasks of Spark before they come to the driver.
        """


def executors_of(settings: Settings, start: "Callable[[], SparkSession]") -> Executors:
    """Worker processes where the submitted master is this machine and Spark has not started, else Spark's executors."""
    has_started = "pyspark" in sys.modules and running_session() is not None
    cores = None if has_started else local_cores(os.environ)
    return SparkExecutors(start) if cores is None else LocalExecutors(settings, cores)


def local_cores(environment: Mapping[str, str]) -> int | None:
    """The cores of a submitted master such as ``local[2]``; None where it is another one, or only the JVM knows it."""
    words = shlex.split(environment.get("PYSPARK_SUBMIT_ARGS", ""))
    options = {one.partition("=")[0]: one.partition("=")[2] for one in words if one.startswith("--master=")}
    options |= {one: other for one, other in pairwise(words) if one == "--master"}
    if "PYSPARK_GATEWAY_PORT" in environment or not (found := _LOCAL.fullmatch(options.get("--master", ""))):
        return None
    if found[1] == "*":
        from joblib import cpu_count  # knows the limits of a container

        return int(cpu_count())
    return int(found[1] or 1)


@dataclass(frozen=True)
class SparkExecutors:
    """The executors of the session that ``start`` starts."""

    start: "Callable[[], SparkSession]"

    def __str__(self) -> str:
        return "Spark's executors"

    @property
    def spark(self) -> "SparkSession":
        """The session."""
        return self.start()

    @property
    def cores(self) -> int:
        """How many tasks run at a time."""
        return self.spark.sparkContext.defaultParallelism

    def run(
        self,
        work: pa.Table,
        function: BatchFunction,
        schema: pa.Schema,
        progress: Progress,
        *,
        in_threads: bool = False,  # noqa: ARG002 -- Spark's processes are there
        merge: Merge | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """See ``Executors``."""
        if work.nbytes <= _SENT_TO_ALL:
            made = map_each(self.spark, work, function, schema)
        else:
            made = map_batches(a_partition_each(self.spark, work), function, schema)
        if merge:
            made = merge(made, len(work))
        with followed(self.spark, progress):
            rows = made.toArrow().cast(schema)
        yield from rows.to_batches()


@dataclass(frozen=True)
class LocalExecutors:
    """Processes of this machine, which joblib keeps from one call to the next, or threads of the driver."""

    settings: Settings
    cores: int

    def __str__(self) -> str:
        return f"processes and threads of this machine, {self.cores} at a time"

    def run(
        self,
        work: pa.Table,
        function: BatchFunction,
        schema: pa.Schema,
        progress: Progress,
        *,
        in_threads: bool = False,
        merge: Merge | None = None,  # noqa: ARG002 -- rows of tasks come one after the other
    ) -> Iterator[pa.RecordBatch]:
        """See ``Executors``.

        Raises:
            TransientError: when a process was killed.
        """
        from joblib import Parallel, delayed
        from threadpoolctl import threadpool_limits

        tasks = tasks_of(work)
        processes = {} if in_threads else {"max_nbytes": None, "inner_max_num_threads": 1}
        pool = Parallel(
            self.cores, "threading" if in_threads else "loky", return_as="generator", batch_size=1, **processes
        )
        task, done = delayed(run_task), 0
        with (
            progress.logged(lambda: done / len(tasks)),
            full_disks_explained(self.settings, (tempfile.gettempdir(),)),
            killed_processes_explained(self.cores),
            threadpool_limits(1, "blas"),  # as in any other worker: one thread for each task
            closing(pool(task(os.getpid(), function, row, schema) for row in tasks)) as results,
        ):
            for batches in results:
                done += 1
                yield from batches


def tasks_of(work: pa.Table) -> list[pa.RecordBatch]:
    """The work of each task. A slice of the rows would be pickled with all rows that it is a slice of."""
    return [row.take(pa.array([0])) for row in work.to_batches(1)]


@contextmanager
def killed_processes_explained(cores: int) -> Iterator[None]:
    """Raise the end of a worker process as an error that says what to do."""
    try:
        yield
    except BrokenProcessPool as error:
        raise TransientError(
            f"a worker process of this machine ended, killed or out of memory. It runs {cores} beside the job: give it "
            "more memory, or fewer of them: local[1] in the connection spark_default"
        ) from error


@contextmanager
def followed(spark: "SparkSession", progress: Progress) -> Iterator[None]:
    """Log the progress of the Spark tasks that run inside."""
    group = f"progress-{threading.get_ident()}-{time.monotonic_ns()}"
    spark.sparkContext.setJobGroup(group, progress.what)
    try:
        with progress.logged(lambda: _share_done(spark, group)):
            yield
    finally:
        spark.sparkContext._jsc.clearJobGroup()  # noqa: SLF001 -- PySpark has no public way to leave a group


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
