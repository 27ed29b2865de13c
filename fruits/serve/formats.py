"""Rows of photos as a file: Parquet, CSV, NumPy or TFRecord. Each file names the publication."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fruits.errors import FruitsError
from fruits.lake.schemas import matrix

Format = Literal["parquet", "csv", "npz", "tfrecord"]

MAX_NPZ_BYTES = 2 * 1024**3
"""Most memory that the arrays of an ``.npz`` file may take: they are complete before it is written."""

_FORMULA = r"^[=+\-@\t\r\n\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"  # with the wide forms of the signs
_NUMBERS = ("v", "e")
"""In CSV, the columns of the first vector's numbers begin with `v`, those of a second vector with `e`."""
_MATRICES = ("X", "embeddings")
"""In NumPy's files, the names of the first and the second vector."""
_ARRAYS = {"target": "y", "key": "keys", "label": "labels", "split": "splits", "sha256": "sha256", "phash": "phash"}
"""In NumPy's files, the names of other columns; columns of other names are left out."""
_EXAMPLES_AT_ONCE = 256  # as Python's numbers, a vector takes eight times its bytes


@dataclass(frozen=True)
class Rows:
    """The rows of a file.

    Attributes:
        name: What messages call the rows.
        schema: Columns and types.
        total: How many rows there are.
        origin: What they are of: ``publication_id``, ``model_id``, ``pca_id``.
        batches: The rows, to be read once.
        metadata: What the metadata of a Parquet file has besides.
    """

    name: str
    schema: pa.Schema
    total: int
    origin: Mapping[str, str]
    batches: Iterator[pa.RecordBatch]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def vectors(self) -> list[str]:
        """The names of the columns that hold vectors."""
        return [column.name for column in self.schema if pa.types.is_list(column.type)]


def check_writable(format: Format) -> None:  # noqa: A002 -- the word for it
    """See that this environment can write a format.

    Raises:
        FruitsError: when a package is missing.
    """
    if format == "tfrecord" and find_spec("tensorflow") is None:
        raise FruitsError(
            "format tfrecord: TensorFlow writes it, and this environment has none. Install it, then try again: "
            "make setup-tensorflow"
        )


def write_parquet(path: Path, rows: Rows) -> None:
    """The columns and types as they are; the origin is in the file's metadata. Memory does not grow with the rows."""
    origin = {f"fruits.{name}": value for name, value in rows.origin.items()}
    schema = rows.schema.with_metadata({"fruits.table": rows.name, **origin, **rows.metadata})
    texts = [column.name for column in schema if pa.types.is_string(column.type)]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=texts) as writer:
        for batch in rows.batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def write_csv(path: Path, rows: Rows) -> None:
    """A header, texts in quotes; the column ``publication_id``, and a vector as columns ``v0``, ``v1`` and so on.

    Text that a spreadsheet would take for a formula (keys are anybody's) has an apostrophe before it. Memory does not
    grow with the rows.
    """
    tables = (_flat(batch, rows) for batch in rows.batches)
    first = next(tables, None)
    if first is None:
        first = _flat(pa.RecordBatch.from_pylist([], schema=rows.schema), rows)
    with pa.csv.CSVWriter(path, first.schema) as writer:
        writer.write_table(first)
        for flat in tables:
            writer.write_table(flat)


def write_npz(path: Path, rows: Rows) -> None:
    """For ``numpy.load``: ``X``, float32 of shape ``(n, d)``, the columns of ``_ARRAYS`` with ``n`` values; the origin.

    Raises:
        FruitsError: when the arrays need more than ``MAX_NPZ_BYTES`` of memory.
    """
    matrices: dict[str, NDArray[np.float32]] = {name: np.empty((0, 0), np.float32) for name in rows.vectors}
    columns, done, others = [name for name in rows.schema.names if name in _ARRAYS], 0, []
    for batch in rows.batches:
        vectors = {name: matrix(batch.column(name)) for name in rows.vectors}
        if not done:
            _check_memory(sum(rows.total * found.shape[1] * found.itemsize for found in vectors.values()), rows)
            matrices = {name: np.empty((rows.total, found.shape[1]), np.float32) for name, found in vectors.items()}
        for name, found in vectors.items():
            matrices[name][done : done + len(found)] = found
        done += batch.num_rows
        others.append(batch.select(columns))
    table = pa.Table.from_batches(others, schema=pa.schema([rows.schema.field(name) for name in columns]))
    longest = sum(
        (pc.max(pc.utf8_length(text)).as_py() or 0) for text in table.columns if pa.types.is_string(text.type)
    )
    filled = sum(matrix.nbytes for matrix in matrices.values())
    _check_memory(filled + rows.total * longest * np.dtype("U1").itemsize, rows)
    arrays = {_ARRAYS[name]: _array(table[name]) for name in columns}
    arrays |= dict(zip(_MATRICES, matrices.values(), strict=False))
    arrays |= {name: np.array(value) for name, value in rows.origin.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_tfrecord(path: Path, rows: Rows) -> None:
    """For ``tf.data.TFRecordDataset``: a ``tf.train.Example`` for each row, with the columns' names as keys.

    Memory does not grow with the rows.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    kinds = {column.name: _feature_of(column.type, tf.train) for column in rows.schema}
    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in _by_row(rows.batches):
                features = {name: kinds[name](value) for name, value in row.items()}
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    except tf.errors.OpError as error:  # a full disk, for one
        raise OSError(error.message) from error


Writer = Callable[[Path, Rows], None]
WRITERS: Mapping[Format, Writer] = {
    "parquet": write_parquet,
    "csv": write_csv,
    "npz": write_npz,
    "tfrecord": write_tfrecord,
}


def _flat(batch: pa.RecordBatch, rows: Rows) -> pa.Table:
    """The batch as a CSV file has it: safe texts, the publication, a column for each number of a vector."""
    vectors = rows.vectors
    columns = {name: _safe(batch.column(name)) for name in batch.schema.names if name not in vectors}
    columns["publication_id"] = pa.array([rows.origin["publication_id"]] * batch.num_rows, pa.string())
    for letter, vector in zip(_NUMBERS, vectors, strict=False):
        numbers = matrix(batch.column(vector)).T
        columns |= {f"{letter}{place}": pa.array(np.ascontiguousarray(column)) for place, column in enumerate(numbers)}
    return pa.table(columns)


def _safe(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        return column
    return pc.if_else(pc.match_substring_regex(column, _FORMULA), pc.binary_join_element_wise("'", column, ""), column)


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=str)
    return cast("NDArray[Any]", column.to_numpy())


def _check_memory(needed: int, rows: Rows) -> None:
    if needed > MAX_NPZ_BYTES:
        raise FruitsError(
            f"{rows.name} as npz: its arrays need {needed / 1e9:.1f} GB of memory, and at most "
            f"{MAX_NPZ_BYTES / 1e9:.1f} GB are allowed; export as parquet, which can be read in parts"
        )


def _by_row(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for start in range(0, batch.num_rows, _EXAMPLES_AT_ONCE):
            yield from batch.slice(start, _EXAMPLES_AT_ONCE).to_pylist()


def _feature_of(kind: pa.DataType, train: Any) -> Callable[[Any], Any]:
    """Makes the ``tf.train.Feature`` of a value of a column's type."""
    if pa.types.is_list(kind):
        return lambda numbers: train.Feature(float_list=train.FloatList(value=numbers))
    if pa.types.is_string(kind):
        return lambda text: train.Feature(bytes_list=train.BytesList(value=[text.encode()]))
    return lambda number: train.Feature(int64_list=train.Int64List(value=[number]))
