"""Whether the tables stay fast after many small increments, and what maintenance does about it.

Makes a lake by hundreds of small publications, without Spark: each appends a few features (1,280 wide) and embeddings
and replaces the statistics, as a run of the chain does. Measures it, runs maintenance once, measures again, and
compares with a lake of the same rows written in one go. Needs the jobs environment.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fruits.errors import ExitCode
from fruits.lake.branches import Writer, commit_rows, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, _to_rows, current_base, publication_id, publish
from fruits.lake.schemas import (
    DATA_TABLES,
    EMBEDDINGS,
    FEATURES,
    PCA_MODELS,
    PCA_STATISTICS,
    QUARANTINE,
    TABLES,
    TableDefinition,
    TableName,
)
from fruits.run.documents import Maintained, TaskDocument, read_documents
from fruits.run.request import resolve_maintenance
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import known_rows
from fruits.steps.plan_maintenance import plan_maintenance

if TYPE_CHECKING:
    from pyiceberg.table import Transaction

WIDTH, COMPONENTS = 1280, 128
MODEL, PCA = "backbone-0123456789ab", "pca-0123456789ab"
REPEATS = 3
TOGETHER = 50
COMPARED = ("plan: known objects (s)", "read embeddings (s)")
NOW = datetime.now(UTC)


def main(argv: Sequence[str] | None = None) -> int:
    """Make both lakes, measure, maintain, measure; 1 when maintenance failed or left the tables slow."""
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message="Merge on read is not yet supported")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        grown, whole = settings_in(Path(folder) / "grown"), settings_in(Path(folder) / "whole")
        print(f"{args.increments} increments of {args.photos} photos")
        grow(grown, args.increments, args.photos)
        before = measure(grown)
        grow(whole, 1, args.increments * args.photos)
        show("after the increments", before)
        print_document(maintain(grown))
        after = measure(grown)
        show("after maintenance", after)
        in_one_go = measure(whole)
        show("written in one go", in_one_go)
    slower = max(after[name] / in_one_go[name] for name in COMPARED)
    print(f"\nafter maintenance, planning and reading cost at most {slower:.2f} times what they do in one go")
    return 0 if slower < args.most_slower else 1


def settings_in(folder: Path) -> Settings:
    """Settings of a lake in a folder."""
    folder.mkdir(parents=True)
    return Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db", bucket="fruits")


def grow(settings: Settings, increments: int, photos: int) -> None:
    """Publish ``increments`` times ``photos`` new photos, all of them past retention but for the newest few.

    Each leaves in the tables what a run of the chain does: a file and a snapshot here, two there. Some are committed
    together, and on `main`, which saves time and shows nowhere. Real statistics would take 6.6 MB each, these do not.
    """
    lake = Lake.open(settings)
    for first in range(0, increments, TOGETHER):
        grow_together(lake, range(first, min(first + TOGETHER, increments)), photos)


def grow_together(lake: Lake, numbers: range, photos: int) -> None:
    """Publish some increments in one commit to each table."""
    tables = (FEATURES, EMBEDDINGS, PCA_STATISTICS)
    for definition in tables:
        commit_rows(lake, definition.name, partial(append_all, definition=definition, numbers=numbers, photos=photos))
    written = {definition.name: appended(lake, definition.name, len(numbers)) for definition in tables}
    heads = {definition.name: head(lake, definition.name) for definition in (QUARANTINE, PCA_MODELS)}
    commit_rows(lake, "publications", lambda change: publish_all(change, numbers, written, heads, photos))


def append_all(change: "Transaction", definition: TableDefinition, numbers: range, photos: int) -> None:
    """Write the rows of increments, each as a snapshot of its own; statistics replace those before."""
    for number in numbers:
        if definition is PCA_STATISTICS and number:
            change.delete("n > 0")
        change.append(rows_of(definition, f"scheduled__{number:05d}", number * photos, photos))


def head(lake: Lake, name: TableName, ref: str = "main") -> int:
    """Snapshot of a branch that exists."""
    snapshot = lake.head(name, ref)
    assert snapshot is not None, f"{name} has no {ref}"  # noqa: S101 -- made just before
    return snapshot


def appended(lake: Lake, name: TableName, count: int) -> list[int]:
    """The newest snapshots of a table that added rows."""
    added = [one.snapshot_id for one in lake.table(name).snapshots() if one.summary.operation.value == "append"]
    return added[-count:]


def publish_all(
    change: "Transaction",
    numbers: range,
    written: Mapping[TableName, Sequence[int]],
    heads: Mapping[TableName, int],
    photos: int,
) -> None:
    """Write the publications of increments, each as a snapshot of its own."""
    for index, number in enumerate(numbers):
        snapshots = {**heads, **{name: ids[index] for name, ids in written.items()}}
        publication = publication_of(snapshots, number + 1, f"scheduled__{number:05d}", (number + 1) * photos)
        change.append(_to_rows(publication))


def publish_increment(settings: Settings) -> None:
    """One increment as a run commits it: on branches, then by ``publish``."""
    lake, run_id = Lake.open(settings), f"manual__{time.time_ns()}"
    base, writer = current_base(lake), Writer(run_key(run_id), "benchmark")
    sequence = base.publication.sequence + 1
    for name, snapshot in base.publication.snapshots.items():
        start_branch(lake, name, writer.branch, snapshot)
    for definition in (FEATURES, EMBEDDINGS):
        rows = rows_of(definition, run_id, 10**6 + sequence * 10, 10)
        commit_rows(lake, definition.name, methodcaller("append", rows, branch=writer.branch))
    snapshots = {name: head(lake, name, writer.branch) for name in DATA_TABLES}
    publish(lake, base, writer, publication_of(snapshots, sequence, run_id, 0))


def rows_of(definition: TableDefinition, run_id: str, first: int, rows: int) -> pa.Table:
    """Rows of new photos, whose keys lie all over the key range; one row of statistics."""
    constants = {
        "size": 0, "last_modified": NOW, "label": "Kiwi", "split": "train", "phash": 0, "width": 100, "height": 100,
        "format": "JPEG", "model_id": MODEL, "pca_id": PCA, "run_id": run_id, "residual": 0.5, "n": first + rows,
        "mean_error": 0.0, "scatter_error": 0.0,
    }  # fmt: skip
    if definition is PCA_STATISTICS:
        return pa.Table.from_pylist([{**constants, "mean": [0.0], "scatter": [0.0]}], schema=definition.schema)
    vectors = np.random.default_rng(first).normal(size=(rows, WIDTH)).astype(np.float32)
    keys = pa.array([key(number) for number in range(first, first + rows)])
    values = {name: pa.repeat(value, rows) for name, value in constants.items()} | dict.fromkeys(
        ("key", "etag", "sha256"), keys
    )
    values |= {"vector": lists(vectors), "embedding": lists(vectors[:, :COMPONENTS])}
    schema = definition.schema
    return pa.table([values[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def key(number: int) -> str:
    """The object key of the photo of a number."""
    return f"Training/Kiwi/{number * 7919 % 10**9:09d}.jpg"


def publication_of(snapshots: Mapping[TableName, int], sequence: int, run_id: str, features: int) -> Publication:
    """A publication of two months ago."""
    identity = publication_id(sequence, snapshots)
    published_at = NOW - timedelta(days=60)
    return Publication(sequence, snapshots, identity, run_id, published_at, MODEL, PCA, {"features": features})


def lists(matrix: NDArray[np.float32]) -> pa.Array:
    """A matrix as a list column."""
    offsets = pa.array(range(0, matrix.size + 1, matrix.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(matrix).ravel())


def measure(settings: Settings) -> dict[str, float]:
    """CPU seconds (the least of a few times) and sizes of what readers and planners do and find."""
    lake = Lake.open(settings)
    snapshots = current_base(lake).publication.snapshots
    tables = {table.name: lake.table(table.name) for table in TABLES}
    files = sum(len(lake.files(name, table.metadata.current_snapshot_id)) for name, table in tables.items())
    folder = Path(settings.lake.removeprefix("file://"))
    return {
        "open, find the base (s)": least(lambda: current_base(Lake.open(settings))),
        "plan: known rows (s)": least(lambda: list(known_rows(lake, snapshots, MODEL))),
        "read embeddings (s)": least(lambda: lake.read("embeddings", snapshots["embeddings"], pca_id=PCA)),
        "read vectors (s)": least(lambda: lake.read("features", snapshots["features"], ("key", "vector"))),
        "find one key (s)": least(lambda: lake.read("embeddings", snapshots["embeddings"], ("key",), key=key(1))),
        "data files": files,
        "snapshots": sum(len(table.snapshots()) for table in tables.values()),
        "metadata of features (kB)": len(tables["features"].metadata.model_dump_json()) / 1e3,
        "metadata files on disk (MB)": megabytes(folder.rglob("*.metadata.json")),
        "all on disk (MB)": megabytes(path for path in folder.rglob("*") if path.is_file()),
        "publish an increment (s)": least(lambda: publish_increment(settings)),
    }


def megabytes(paths: Iterator[Path]) -> float:
    """Size of files."""
    return sum(path.stat().st_size for path in paths) / 1e6


def least(work: Callable[[], Any]) -> float:
    """CPU seconds of the cheapest of a few times: unlike seconds, they do not depend on what else the machine does."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def show(title: str, figures: Mapping[str, float]) -> None:
    """Print figures."""
    print(f"\n{title}")
    for name, value in figures.items():
        print(f"  {name:<30} {value:>10,.2f}" if "(" in name else f"  {name:<30} {value:>10,.0f}")


def maintain(settings: Settings) -> TaskDocument[Maintained]:
    """One maintenance run, as the DAG does it; returns its document."""
    run_id = "maintenance__benchmark"
    plan_maintenance(settings, resolve_maintenance({}, settings), run_id)
    jobs = Path(__file__).parents[1] / "spark_jobs"
    sys.path.insert(0, str(jobs))
    job = importlib.import_module("maintain")  # its functions travel to executors by this name
    os.environ |= {"FRUITS_LAKE": settings.lake, "FRUITS_CATALOG_URI": settings.catalog_uri.get_secret_value()}
    os.environ["PYSPARK_SUBMIT_ARGS"] = (
        "--master local[*] --driver-memory 2g --conf spark.ui.enabled=false pyspark-shell"
    )
    if job.main(["--run", run_key(run_id)]) != ExitCode.OK:
        raise SystemExit("maintenance failed: see its log above")
    document = read_documents(settings, run_key(run_id)).maintain
    assert document is not None  # noqa: S101 -- the job succeeded
    return document


def print_document(document: TaskDocument[Maintained]) -> None:
    """Print what a maintenance run cost."""
    print(f"\nmaintenance: {document.wall_seconds} s: {dict(document.seconds)}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--increments", type=int, default=500)
    parser.add_argument("--photos", type=int, default=20, help="new photos of each increment (default 20)")
    parser.add_argument("--folder", help="where the lakes are made, and removed again (1 GB); default: the system's")
    parser.add_argument("--most-slower", type=float, default=2.0, help="fail when reads take this many times longer")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
