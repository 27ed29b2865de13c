"""PCA on rows of 1,280 features: a fit from the table against Spark's own PCA, refits as the rows grow, projecting.

The rows are made up, and lie in `features` of a lake on this machine's disk. Ours run as a job does under the master
`local[2]`, Spark's in a warm session on the same two cores; what they compare is the clock. Refits and numpy's
projection run in this process. The goal of a projection is for a rate, and so for many rows: of few rows, starts of
tasks and the commit are the most.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.figure import Figure, figure, median
from benchmarks.growth.gates import head, lists, planned
from benchmarks.pca import LARGEST_DIFFERENCE, made_up_rows
from benchmarks.speed.scale import Scale
from fruits.analysis.moments import Moments, merge, moments_of
from fruits.analysis.pca import PCA, fit, subspace_angle, transform
from fruits.lake.appends import append_files, file_target
from fruits.lake.branches import start_branch
from fruits.lake.catalog import Lake, spark_configuration
from fruits.lake.files import write_rows
from fruits.lake.publication import current_base
from fruits.lake.schemas import FEATURES
from fruits.run.documents import RunDocuments, task_document
from fruits.settings import Settings
from fruits.spark.job import Job
from fruits.spark.projection import project
from fruits.spark.session import start_session
from fruits.spark.statistics import statistics_of_rows
from fruits.spark.tables import Tables

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

WIDTH, COMPONENTS = 1_280, 100
SUBMITTED = {"PYSPARK_SUBMIT_ARGS": "--master local[2] pyspark-shell"}
PHOTOS_PER_TASK = Settings.model_fields["photos_per_task"].default
LEAST_FASTER, MOST_REFIT, LEAST_OF_NUMPY = 15.0, 1.5, 0.5
REFITTED, SHARE = (20_000, 200_000), 0.01
FITTED = 20_000  # rows of the PCA that is projected on
NOW = datetime(2026, 11, 27, tzinfo=UTC)

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """A table of rows, as a job reads it, and the same rows in memory."""

    job: Job
    rows: NDArray[np.float32]

    def features(self) -> "DataFrame":
        """The rows."""
        return self.job.rows("features")


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of fits, refits and projections."""
    rows = made_up_rows(scale.rows, WIDTH, seed=0)
    python = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {**python, **SUBMITTED}):
        many = np.tile(rows, (scale.projected // scale.rows, 1))
        small, large = stored(Path(folder) / "small", rows), stored(Path(folder) / "large", many)
        yield from projections(large, scale.runs, least=LEAST_OF_NUMPY)
        yield from projections(small, scale.runs, least=None)
        try:
            yield from fits(small, scale.runs)
        finally:
            small.job.tables.spark.stop()
    yield from refits(rows, scale.runs)


def stored(folder: Path, rows: NDArray[np.float32]) -> Table:
    """Rows in `features` of a lake in a folder, as a job under the master `local[2]` reads them."""
    folder.mkdir()
    settings = Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")
    configuration = {**spark_configuration(settings), "spark.ui.enabled": "false", "spark.driver.memory": "2g"}
    with task_document(settings, "pca", "r", "r") as recorder:
        writer = recorder.document.writer("r")
        tables = Tables(lambda: start_session("benchmark of rows", configuration), Lake.open(settings), writer)
        print(f"tasks run in {type(tables.executors).__name__}")  # chosen before a session starts, as in a job
        return Table(written(tables, recorder, rows), rows)


def written(tables: Tables, recorder: Any, rows: NDArray[np.float32]) -> Job:
    """A job whose starting snapshot has the rows, in files as `featurize` writes them."""
    lake, writer = tables.lake, tables.writer
    base = current_base(lake)
    for name in ("features", "embeddings"):
        start_branch(lake, name, writer.branch, base.snapshots[name])
    model_id = planned(base, 0).model_id
    constants = {"size": 6_000, "last_modified": NOW, "phash": 0, "width": 8, "height": 8, "format": "JPEG"}
    constants |= {"model_id": model_id, "run_id": "r", "split": "train", "label": "Kiwi", "sha256": "0" * 64}
    target, files = file_target(lake, FEATURES, model_id), []
    for start in range(0, len(rows), PHOTOS_PER_TASK):
        part = rows[start : start + PHOTOS_PER_TASK]
        keys = pa.array([f"Training/Kiwi/{number:08d}.jpg" for number in range(start, start + len(part))])
        columns = {"key": keys, "etag": keys, "vector": lists(part)}
        arrays = [
            columns[one.name] if one.name in columns else pa.repeat(pa.scalar(constants[one.name], one.type), len(part))
            for one in FEATURES.schema
        ]
        batch = pa.RecordBatch.from_arrays(arrays, names=FEATURES.schema.names)
        files += [write_rows(lake.settings, target, pa.Table.from_batches([batch]).cast(target.schema).to_batches())]
    append_files(lake, FEATURES, model_id, [file for file in files if file], writer)
    snapshots = {**base.snapshots, "features": head(lake, "features", writer.branch)}
    return Job(planned(base, 0), tables, snapshots, RunDocuments(), recorder)


def fits(table: Table, runs: int) -> Iterator[Figure]:
    """A fit from the table, ours and Spark's, and how far their subspaces lie apart."""
    turns = [(timed(lambda: fitted(table)), timed(lambda: fitted_by_spark(table))) for _ in range(runs + 1)][1:]
    angle = max(subspace_angle(ours[1].components, theirs[1]) for ours, theirs in turns)
    what = f"PCA fit from the table, {len(table.rows):,} x {WIDTH:,}"
    yield median(f"{what}", [ours[0] for ours, _ in turns], "s")
    yield median(f"{what}: pyspark.ml", [theirs[0] for _, theirs in turns], "s")
    ratios = [theirs[0] / ours[0] for ours, theirs in turns]
    yield median(f"{what}, against pyspark.ml", ratios, "x", least=LEAST_FASTER)
    yield figure(f"{what}: largest angle of the subspaces", 1e6 * angle, "µrad", most=1e6 * LARGEST_DIFFERENCE)


def fitted(table: Table) -> PCA:
    """Our fit: statistics of all rows, merged, then the components, with one thread for BLAS as in a job."""
    with threadpool_limits(1, "blas"):
        return fit(statistics_of_rows(table.job.all_rows(), WIDTH).moments, COMPONENTS)


def fitted_by_spark(table: Table) -> NDArray[np.float64]:
    """The components of Spark's PCA, shape ``(k, d)``."""
    from pyspark.ml.feature import PCA as SparkPCA  # noqa: N811 -- ours has the same name
    from pyspark.ml.functions import array_to_vector

    features = table.features()
    vectors = features.select(array_to_vector(features.vector).alias("features"))
    model = SparkPCA(k=COMPONENTS, inputCol="features", outputCol="pca").fit(vectors)
    components: NDArray[np.float64] = np.ascontiguousarray(model.pc.toArray().T)
    return components


def projections(table: Table, runs: int, *, least: float | None) -> Iterator[Figure]:
    """Rows a second that the job projects and writes, and that numpy projects in memory, on the same cores."""
    pca, count = fit(moments_of(table.rows[:FITTED]), COMPONENTS), len(table.rows)

    def turn(number: int) -> tuple[float, float]:
        ours = timed(lambda: project(table.job, f"pca-{number}", pca, table.job.all_rows()))[0]
        return count / ours, count / timed(lambda: transform(pca, table.rows))[0]

    rates = [turn(number) for number in range(runs + 1)][1:]
    what = f"projecting {count:,} rows"
    yield median(f"{what}: from table to table", [ours for ours, _ in rates], "rows/s")
    yield median(f"{what}: numpy in memory", [theirs for _, theirs in rates], "rows/s")
    ratios = [ours / theirs for ours, theirs in rates]
    yield median(f"{what}: of numpy's rate", ratios, "x", least=least)


def refits(rows: NDArray[np.float32], runs: int) -> Iterator[Figure]:
    """What a refit costs after one percent more rows, without projecting."""
    moments = {count: repeated(moments_of(rows[: REFITTED[0]]), count) for count in REFITTED}
    new = {count: rows[: round(count * SHARE)] for count in REFITTED}

    def turn() -> list[float]:
        return [timed(partial(refitted, moments[count], new[count]))[0] for count in REFITTED]

    turns = [turn() for _ in range(runs + 1)][1:]
    for place, count in enumerate(REFITTED):
        yield median(f"refit after +1 % of {count:,} rows", [seconds[place] for seconds in turns], "s")
    ratios = [after / before for seconds in turns for before, after in pairwise(seconds)]
    yield median(f"refit after +1 %, {REFITTED[1]:,} rows over {REFITTED[0]:,}", ratios, "x", most=MOST_REFIT)


def repeated(moments: Moments, count: int) -> Moments:
    """Moments of so many rows."""
    total = moments
    while total.n < count:
        total = merge(total, moments)
    return total


def refitted(before: Moments, new: NDArray[np.float32]) -> PCA:
    """The PCA after new rows."""
    return fit(merge(before, moments_of(new)), COMPONENTS)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds by the clock, and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
