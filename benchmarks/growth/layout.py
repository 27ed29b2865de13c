"""How many bytes of the vectors' files an update of some photos reads, and what small row groups cost a whole scan.

Writes `features` by Spark as `featurize` does, in two layouts: row groups as they are, and of 128 MB as before. Vectors
are a tenth as wide as those of 1,280 features, and so are row groups: as many rows share a row group, in a tenth of the
bytes. Then looks up and deletes rows of scattered keys, and reads all vectors. The kernel counts the bytes that
Spark reads. `make bench-growth ARGS=layout` prints the figures in some minutes, with 3 GB of disk.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from benchmarks.figure import Figure, figure
from fruits.lake.branches import Writer
from fruits.lake.catalog import ROW_GROUP_BYTES, Lake, spark_configuration
from fruits.lake.schemas import FEATURES
from fruits.settings import Settings
from fruits.spark.session import map_batches, start_session
from fruits.spark.tables import Tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS, WIDTH, REAL_WIDTH = 2_000_000, 128, 1_280
ROWS_PER_FILE = 25_000  # of a compacted table: 128 MB of vectors
SCALE = REAL_WIDTH // WIDTH
MODEL, LABELS = "backbone-0123456789ab", 50
OLD_ROW_GROUP_BYTES = 128 * 2**20
UPDATES, MOST_SLOWER = 100, 1.2

ROOT = Path(__file__).resolve().parents[2]


def figures(rows: int = ROWS) -> list[Figure]:
    """The figures of tables of so many rows."""
    with tempfile.TemporaryDirectory(prefix="fruits-layout-") as folder:
        # Spark's Python workers know neither this environment nor this folder.
        os.environ.update(PYSPARK_PYTHON=sys.executable, PYTHONPATH=str(ROOT))
        small, large = (lake_in(Path(folder) / name) for name in ("small", "large"))
        spark = start_session("layout", spark_configuration(small.settings))
        try:
            return [*measured(tables_of(spark, small), tables_of(spark.newSession(), large), rows)]
        finally:
            spark.stop()


def measured(small: Tables, large: Tables, rows: int) -> Iterator[Figure]:
    """Write both tables, look up and delete, and read."""
    for tables in (small, large):  # while Spark and its workers start
        write(tables, ROWS_PER_FILE, OLD_ROW_GROUP_BYTES, rows)
    wrote = {
        "now": write(small, rows, ROW_GROUP_BYTES // SCALE),
        "before": write(large, rows, OLD_ROW_GROUP_BYTES // SCALE),
    }
    groups, size = row_groups(small)
    group = size / groups
    yield figure(f"row groups of {rows:,} rows, each on average", SCALE * group / 2**20, "MB", most=16)
    keys = scattered(rows, UPDATES)
    read = bytes_of_updates(small, keys)
    for what, count in read.items():
        name = f"{UPDATES} updates scattered over {rows:,} rows: {what}"
        yield figure(name, count / group, "row groups", most=UPDATES)
        yield figure(f"{name}, at {REAL_WIDTH} features", SCALE * count / 2**20, "MB")
    for what, count in bytes_of_updates(large, keys).items():
        name = f"the same with row groups of {OLD_ROW_GROUP_BYTES // 2**20} MB: {what}"
        yield figure(name, SCALE * count / 2**20, "MB")
    against = "against row groups as before"
    yield figure(f"bytes of the files, {against}", size / row_groups(large)[1], "x", most=1.02)
    yield figure(f"writing, {against}", wrote["now"] / wrote["before"], "x", most=MOST_SLOWER)
    took = [min(times) for times in zip(*((scan_seconds(small), scan_seconds(large)) for _ in range(3)), strict=True)]
    yield figure(f"reading all vectors, {against}", took[0] / took[1], "x", most=MOST_SLOWER)


def lake_in(folder: Path) -> Lake:
    """A lake in a folder."""
    folder.mkdir()
    database = f"sqlite:///{folder}/catalog.db"
    return Lake.open(Settings.load(lake=f"file://{folder}/lake", catalog_uri=database, catalog_name=folder.name))


def tables_of(spark: "SparkSession", lake: Lake) -> Tables:
    """The tables of a lake, with a branch of `features` to write on."""
    for name, value in spark_configuration(lake.settings).items():
        if name.startswith("spark.sql.catalog."):
            spark.conf.set(name, value)
    tables = Tables(lambda: spark, lake, Writer("layout", "featurize_1_abcdef"))
    head = lake.head("features")
    assert head is not None  # noqa: S101 -- made with the table
    tables.start_branch("features", head)
    return tables


def write(tables: Tables, rows: int, row_group_bytes: int, first: int = 0) -> float:
    """Append rows of so many numbers from ``first`` on, in files as `featurize` writes them; returns the seconds."""
    with tables.lake.table("features").transaction() as change:
        change.set_properties({"write.parquet.row-group-size-bytes": str(row_group_bytes)})
    start = time.perf_counter()
    files = max(1, rows // ROWS_PER_FILE)
    made = map_batches(tables.spark.range(first, first + rows, 1, files), features, FEATURES.schema)
    tables.append("features", made.sortWithinPartitions("key"))
    return time.perf_counter() - start


def features(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows with random vectors, of the numbers in ``batches``."""
    for batch in batches:
        numbers = batch["id"].to_pylist()
        rng = np.random.default_rng(numbers[:1])
        vectors = pa.array(rng.random(len(numbers) * WIDTH, np.float32))
        offsets = pa.array(np.arange(0, (len(numbers) + 1) * WIDTH, WIDTH, dtype=np.int32))
        columns = {
            "key": pa.array([key(number) for number in numbers]),
            "etag": pa.array([f"{number:032x}" for number in numbers]),
            "sha256": pa.array([f"{hash((number, 0)):064x}"[-64:] for number in numbers]),
            "phash": pa.array(rng.integers(0, 2**62, len(numbers))),
            "vector": pa.ListArray.from_arrays(offsets, vectors, type=FEATURES.schema.field("vector").type),
        }
        for field in FEATURES.schema:
            if field.name not in columns:
                columns[field.name] = pa.array([same(field)] * len(numbers), field.type)
        yield pa.RecordBatch.from_arrays([columns[name] for name in FEATURES.schema.names], schema=FEATURES.schema)


def same(field: pa.Field) -> Any:
    """A value that all rows have."""
    values: Mapping[str, Any] = {"model_id": MODEL, "split": "train", "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}
    return values.get(field.name, "x" if pa.types.is_string(field.type) else 1)


def key(number: int) -> str:
    """The key of a photo; numbers in order are keys in order."""
    return f"Training/{number // 40_000:04d}/{number:09d}_100.jpg"


def scattered(rows: int, count: int) -> pa.Table:
    """Keys of rows anywhere in the table."""
    numbers = np.random.default_rng(7).choice(rows, count, replace=False)
    return pa.table({"key": [key(int(number)) for number in numbers]})


def bytes_of_updates(tables: Tables, keys: pa.Table) -> dict[str, int]:
    """Bytes that subtracting and deleting the rows of some keys read, metadata and all, once Spark has its classes.

    The rows are read as `update_statistics` reads them; what it computes from them in Python is left out.
    """
    head = tables.lake.state("features").refs[tables.writer.branch]
    rows = tables.read_keys("features", head, keys, MODEL).select("key", "label", "split", "vector")
    if (found := rows.count()) != keys.num_rows:
        raise RuntimeError(f"{found} rows found of {keys.num_rows}")
    rows.limit(1).write.format("noop").mode("overwrite").save()
    tables.delete_keys("features", pa.table({"key": ["no such key"]}), MODEL)
    before = bytes_read(tables.spark)
    rows.write.format("noop").mode("overwrite").save()
    between = bytes_read(tables.spark)
    tables.delete_keys("features", keys, MODEL)
    return {"subtracting": between - before, "deleting": bytes_read(tables.spark) - between}


def bytes_read(spark: "SparkSession") -> int:
    """Bytes that the JVM has read so far, by the kernel's count: Spark's own leaves out what Parquet reads ahead."""
    pid = spark.sparkContext._gateway.jvm.ProcessHandle.current().pid()  # type: ignore[union-attr]  # noqa: SLF001
    counts = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(counts["rchar"])


def row_groups(tables: Tables) -> tuple[int, int]:
    """How many row groups the files of `features` have, and the bytes of all files."""
    import pyarrow.parquet as pq

    lake = tables.lake
    paths = [
        urlsplit(task.file.file_path).path
        for task in lake.table("features")
        .scan(snapshot_id=lake.state("features").refs[tables.writer.branch])
        .plan_files()
    ]
    return sum(pq.ParquetFile(path).num_row_groups for path in paths), sum(Path(path).stat().st_size for path in paths)


def scan_seconds(tables: Tables) -> float:
    """Seconds to read all vectors by PyIceberg, as the readers of the lake do."""
    head = tables.lake.state("features").refs[tables.writer.branch]
    start = time.perf_counter()
    for _ in tables.lake.batches("features", head, ("key", "vector")):
        pass
    return time.perf_counter() - start
