"""What the gates of a run of 100 new photos cost, beside 2,000 to 2,000,000 rows.

Synthetic rows with short vectors, written by PyIceberg in files of 25,000 rows and row groups of 1,600, as those of
1,280 features have; `photo_hashes` as maintenance writes it; then what `validate` measures on the run's changes and, to
compare, on all rows, which a warm Spark session reads where they are many. `make bench-growth ARGS=gates` prints the
figures in some minutes.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.figure import Figure, figure
from benchmarks.growth.layout import ROWS_PER_FILE
from fruits.analysis.moments import moments_of
from fruits.analysis.pca import fit, pca_identity
from fruits.backbones.card import Card, Preprocessing
from fruits.lake.branches import Writer, commit_rows, start_branch
from fruits.lake.catalog import Lake, spark_configuration
from fruits.lake.counters import Counters, Kind
from fruits.lake.hashes import hashes_are_due
from fruits.lake.pca_tables import PCAVersion, save_version
from fruits.lake.publication import Base, Publication, current_base, publication_id, publish
from fruits.lake.schemas import DATA_TABLES, EMBEDDINGS, FEATURES, TableDefinition
from fruits.photos.entry import Action, Entry
from fruits.run.documents import RunDocuments, run_store, task_document
from fruits.run.manifest import entries_batch, write_manifest
from fruits.run.request import RunRequest
from fruits.run.state import PlannedRun
from fruits.settings import Settings
from fruits.spark.hashes import write_hashes
from fruits.spark.job import Job
from fruits.spark.measurements import Measured, duplicates_across_splits, measure
from fruits.spark.session import start_session
from fruits.spark.tables import Tables

WORKERS = {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
SIZES, NEW, WIDTH, TRIES = (2_000, 20_000, 200_000, 2_000_000), 100, 8, 3
MOST_GROWTH = 1.3
CARD = Card("synthetic-1", "synthetic", "none", None, Preprocessing(8, 8), WIDTH, "0" * 64, 1, "none", {})
LABELS = 33
NOW = datetime(2026, 11, 27, tzinfo=UTC)


def figures(sizes: Sequence[int] = SIZES) -> list[Figure]:
    """The figures of the gates."""
    found = []
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, WORKERS):
        settings = Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")
        session = start_session("growth of gates", {**spark_configuration(settings), "spark.ui.enabled": "false"})
        try:
            places = {size: settings.model_copy(update={"namespace": f"rows_{size}"}) for size in sizes}
            jobs = {size: run_of(place, size, session) for size, place in places.items()}
            tries = [{size: measured_seconds(job) for size, job in jobs.items()} for _ in range(TRIES + 1)]
        finally:
            session.stop()
    warm = tries[1:]
    seconds = {size: tuple(min(times) for times in zip(*(one[size] for one in warm), strict=True)) for size in sizes}
    for size, (changes, all_rows, hashes) in seconds.items():
        what = f"gates of {NEW} new photos beside {size:,} rows"
        found.append(figure(f"{what}, on the changes", changes, "s"))
        found.append(figure(f"{what}, on the changes without duplicates", changes - hashes, "s"))
        found.append(figure(f"{what}, duplicates looked up by hash", hashes, "s"))
        found.append(figure(f"{what}, on all rows", all_rows, "s"))
    first, last = (seconds[size] for size in (sizes[0], sizes[-1]))
    growth = f"the largest over the smallest, {sizes[-1]:,} rows over {sizes[0]:,}"
    alone = (last[0] - last[2]) / (first[0] - first[2])
    found.append(figure(f"{growth}, on the changes without duplicates", alone, "x", most=MOST_GROWTH))
    found.append(figure(f"{growth}, on the changes", last[0] / first[0], "x", most=MOST_GROWTH))
    found.append(figure(f"{growth}, on all rows", last[1] / first[1], "x"))
    return found


def measured_seconds(job: Job) -> tuple[float, float, float]:
    """Wall seconds on the changes, on all rows, and of the duplicates alone."""
    on_changes = Measured.of(job, job.run.base.publication.pca_id)
    if on_changes.changes.of_all:
        raise RuntimeError("the gates would read all rows")
    on_all = replace(on_changes, changes=replace(on_changes.changes, of_all=True))
    works = (
        lambda: measure(on_changes),
        lambda: measure(on_all),
        lambda: duplicates_across_splits(on_changes.changes),
    )
    changes, all_rows, duplicates = (timed(work) for work in works)
    return changes, all_rows, duplicates


def timed(work: Any) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_of(settings: Settings, size: int, session: Any) -> Job:
    """A job of a run that has written its photos beside ``size`` published ones."""
    lake = Lake.open(settings)
    lake.table("features").transaction().set_properties({"write.parquet.row-group-limit": "1600"}).commit_transaction()
    first = Writer("first", "featurize_1_a")
    base = current_base(lake)
    for name in DATA_TABLES:
        start_branch(lake, name, first.branch, base.snapshots[name])
    pca = fit(moments_of(np.random.default_rng(1).normal(size=(64, WIDTH))), 3, 3)
    pca_id = pca_identity(CARD.model_id, pca)
    save_version(lake, first, PCAVersion(pca_id, CARD.model_id, pca, "3", None, 1, "first fit", "first", NOW))
    for start in range(0, size, ROWS_PER_FILE):
        write(lake, first, pca_id, range(start, min(size, start + ROWS_PER_FILE)), "old")
    labels = np.arange(size) % LABELS
    counters = Counters(
        {Kind(CARD.model_id, f"Fruit {label:02d}", "train"): int(n) for label, n in enumerate(np.bincount(labels))}
    )
    row = Publication(
        1,
        {name: head(lake, name, first.branch) for name in DATA_TABLES},
        "p1",
        "first",
        NOW,
        CARD.model_id,
        pca_id,
        {"features": size, "quarantine": 0},
        counters=counters.counts,
    )
    publish(lake, base, first, replace(row, publication_id=publication_id(1, row.snapshots)))
    base = current_base(lake)
    with task_document(settings, "validate", "r", "r") as recorder:
        writer = recorder.document.writer("r")
        for name in DATA_TABLES:
            start_branch(lake, name, writer.branch, base.snapshots[name])
        write(lake, writer, pca_id, range(size, size + NEW), "r")
        write_manifest(run_store(settings, "r"), [entries_batch([entry(number) for number in range(size, size + NEW)])])
    tables = Tables(lambda: session, lake, writer)
    if hashes_are_due(lake, base.snapshots):
        write_hashes(tables, base.snapshots["features"])
    snapshots = {name: head(lake, name, writer.branch) for name in DATA_TABLES}
    return Job(planned(base, size), tables, snapshots, RunDocuments(), recorder)


def write(lake: Lake, writer: Writer, pca_id: str, numbers: range, run_id: str) -> None:
    """The features and embeddings of some photos, by key in one file each."""
    generator = np.random.default_rng(numbers.start)
    keys = sorted(key_of(number) for number in numbers)
    hashes = generator.bytes(32 * len(keys)).hex()
    constants = {"size": 6_000, "last_modified": NOW, "phash": 0, "width": 8, "height": 8, "format": "PNG"}
    constants |= {"model_id": CARD.model_id, "pca_id": pca_id, "run_id": run_id, "residual": 0.0, "split": "train"}
    columns = {
        "key": pa.array(keys),
        "etag": pa.array(keys),
        "label": pa.array([key.split("/")[1] for key in keys]),
        "sha256": pa.array([hashes[64 * n : 64 * n + 64] for n in range(len(keys))]),
        "vector": lists(generator.random((len(keys), WIDTH), dtype=np.float32)),
        "embedding": lists(generator.random((len(keys), 3), dtype=np.float32)),
    }
    for definition in (FEATURES, EMBEDDINGS):
        arrays = [
            columns[one.name] if one.name in columns else pa.repeat(pa.scalar(constants[one.name], one.type), len(keys))
            for one in definition.schema
        ]
        append(lake, writer, definition, arrays)


def lists(matrix: NDArray[np.float32]) -> pa.ListArray:
    """The rows of a matrix as a list column."""
    offsets = pa.array(np.arange(len(matrix) + 1) * matrix.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.ravel()))


def append(lake: Lake, writer: Writer, definition: TableDefinition, arrays: Sequence[pa.Array]) -> None:
    """Append rows to the writer's branch."""
    schema = definition.schema
    rows = pa.table([array.cast(one.type) for array, one in zip(arrays, schema, strict=True)], schema=schema)
    commit_rows(lake, definition.name, lambda change: change.append(rows, **writer.commit), branch=writer.branch)


def key_of(number: int) -> str:
    """New photos come under all labels, between the keys that are there."""
    return f"Training/Fruit {number % LABELS:02d}/{(number * 7_919) % 10_000_019:08d}.jpg"


def entry(number: int) -> Entry:
    """A new photo, in the manifest."""
    key = key_of(number)
    return Entry(key, key, 6_000, NOW, Action.CREATE, key.split("/")[1], "train")


def head(lake: Lake, name: Any, branch: str) -> int:
    """The snapshot at a branch."""
    return int(lake.state(name).refs[branch])


def planned(base: Base, size: int) -> PlannedRun:
    """The plan of the run."""
    counts = {**dict.fromkeys([action.value for action in Action], 0), "create": NEW, "pending": 0}
    return PlannedRun(
        key="r",
        run_id="r",
        planned_at=NOW,
        request=RunRequest(prefix=""),
        base=base,
        backbone=CARD,
        counts=counts,
        known_rows=size,
        remaining=0,
        building=False,
        work=True,
    )
