"""The published rows of a table as one Parquet, CSV or NumPy file.

Each file names its publication. A file is written under a temporary name, and renamed when the file is complete.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fruits.errors import FruitsError
from fruits.lake.publication import Publication
from fruits.lake.reader import PublishedRows, current_publication, open_read_only
from fruits.settings import Settings

ExportTable = Literal["features", "embeddings", "quarantine", "pca_models"]
ExportFormat = Literal["parquet", "csv", "npz"]
Progress = Callable[[int, int], None]

FORMATS: Mapping[ExportTable, tuple[ExportFormat, ...]] = {
    "features": ("parquet", "csv", "npz"),
    "embeddings": ("parquet", "csv", "npz"),
    "quarantine": ("parquet", "csv"),
    "pca_models": ("parquet",),
}
"""What each table can be exported as: a matrix of components fits into no cell, and a reason is no vector."""

MAX_NPZ_BYTES = 2 * 1024**3
"""Most memory that the arrays of an ``.npz`` file may take: they are complete before it is written."""

_VECTORS: Mapping[str, str] = {"features": "vector", "embeddings": "embedding"}
_FORMULA = r"^[=+\-@\t\r\n\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"  # with the wide forms of the signs


@dataclass(frozen=True)
class Exported:
    """The result of an export: the number of rows, the file, its size in bytes, the publication."""

    rows: int
    bytes: int
    path: Path
    publication_id: str


def export(
    settings: Settings,
    table: ExportTable,
    target: Path,
    format: ExportFormat,  # noqa: A002 -- the word for it
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the published rows of ``table`` to ``target``: those of the publication's backbone and PCA version.

    Rows come in the table's own order.

    - ``parquet``: the table's columns and types; publication, backbone and PCA version are in the file's metadata.
      Memory does not grow with the rows.
    - ``csv``: a header, texts in quotes; the column ``publication_id`` besides, and a vector as columns ``v0``, ``v1``
      and so on. Text that a spreadsheet would take for a formula (keys are anybody's) has an apostrophe before it.
      Memory does not grow with the rows.
    - ``npz``: for ``numpy.load``: ``X``, float32 of shape ``(n, d)``, and the texts ``keys``, ``labels`` and ``splits``
      of ``n``; ``publication_id``, ``model_id`` and ``pca_id``. At most ``MAX_NPZ_BYTES`` of memory.

    Args:
        settings: Where the lake is.
        table: One of ``FORMATS``.
        target: The file to make.
        format: One of those that ``FORMATS`` has for the table.
        overwrite: Whether a file that is there may be replaced.
        progress: Called with (written rows, all rows).

    Raises:
        FruitsError: when table, format or target can't be, nothing has been published, or an ``npz`` would be too big.
    """
    write = _writer(table, format)
    _check_target(target, overwrite=overwrite)
    lake = open_read_only(settings)
    publication = current_publication(lake)
    rows = PublishedRows(lake, publication, table)
    with _complete_or_absent(target, overwrite=overwrite) as part:
        write(part, rows, _reported(rows, progress))
    return Exported(rows.total, target.stat().st_size, target, str(publication.publication_id))


Writer = Callable[[Path, PublishedRows, Iterator[pa.RecordBatch]], None]


def _write_parquet(part: Path, rows: PublishedRows, batches: Iterator[pa.RecordBatch]) -> None:
    origin = {f"fruits.{name}": value for name, value in _origin(rows.publication).items()}
    schema = rows.schema.with_metadata({"fruits.table": rows.name, **origin})
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=texts) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def _write_csv(part: Path, rows: PublishedRows, batches: Iterator[pa.RecordBatch]) -> None:
    tables = (_flat(batch, rows) for batch in batches)
    first = next(tables, None)
    if first is None:
        first = _flat(pa.RecordBatch.from_pylist([], schema=rows.schema), rows)
    with pa.csv.CSVWriter(part, first.schema) as writer:
        writer.write_table(first)
        for flat in tables:
            writer.write_table(flat)


def _write_npz(part: Path, rows: PublishedRows, batches: Iterator[pa.RecordBatch]) -> None:
    column, done = _VECTORS[rows.name], 0
    matrix: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
    texts = []
    for batch in batches:
        vectors = _matrix(batch.column(column))
        if not done:
            _check_memory(rows.total * vectors.shape[1] * vectors.itemsize, rows)
            matrix = np.empty((rows.total, vectors.shape[1]), dtype=np.float32)
        matrix[done : done + len(vectors)] = vectors
        done += len(vectors)
        texts.append(batch.select(["key", "label", "split"]))
    table = pa.Table.from_batches(
        texts, schema=pa.schema([rows.schema.field(name) for name in ("key", "label", "split")])
    )
    longest = sum((pc.max(pc.utf8_length(text)).as_py() or 0) for text in table.columns)
    _check_memory(matrix.nbytes + rows.total * longest * np.dtype("U1").itemsize, rows)
    arrays = {f"{name}s": np.array(table[name].to_pylist(), dtype=str) for name in table.column_names}
    arrays |= {name: np.array(value) for name, value in _origin(rows.publication).items()}
    with part.open("wb") as file:
        np.savez(file, X=matrix, **arrays)  # type: ignore[arg-type]


_WRITERS: Mapping[ExportFormat, Writer] = {"parquet": _write_parquet, "csv": _write_csv, "npz": _write_npz}


def _writer(table: ExportTable, format: ExportFormat) -> Writer:  # noqa: A002
    if table not in FORMATS:
        raise FruitsError(f"table {table!r}: expected one of {', '.join(FORMATS)}")
    formats = FORMATS[table]
    if format not in formats:
        raise FruitsError(f"table {table} as {format!r}: expected {' or '.join(formats)}")
    return _WRITERS[format]


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.is_dir():
        raise FruitsError(f"{target}: is a folder; name the file to write in it")
    if not target.parent.is_dir():
        raise FruitsError(f"{target}: there is no folder {target.parent}; make it first")
    if target.exists() and not overwrite:
        raise FruitsError(f"{target}: exists already; choose another name, or allow to overwrite the file")


def _check_memory(needed: int, rows: PublishedRows) -> None:
    if needed > MAX_NPZ_BYTES:
        raise FruitsError(
            f"table {rows.name} as npz: its arrays need {needed / 1e9:.1f} GB of memory, and at most "
            f"{MAX_NPZ_BYTES / 1e9:.1f} GB are allowed; export the table as parquet, which can be read in parts"
        )


@contextmanager
def _complete_or_absent(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write to, which becomes ``target`` at the end; after an error the file is removed."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        _check_target(target, overwrite=overwrite)
        part.replace(target)
    except OSError as error:
        raise FruitsError(
            f"{target}: not written: {error}; see who may write there, and how much room there is"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _reported(rows: PublishedRows, progress: Progress | None) -> Iterator[pa.RecordBatch]:
    """The rows' batches; ``progress`` is called with the number of written rows."""
    done = 0
    if progress:
        progress(done, rows.total)
    for batch in rows.batches():
        yield batch
        done += batch.num_rows
        if progress:
            progress(done, rows.total)


def _origin(publication: Publication) -> dict[str, str]:
    return {name: str(getattr(publication, name)) for name in ("publication_id", "model_id", "pca_id")}


def _flat(batch: pa.RecordBatch, rows: PublishedRows) -> pa.Table:
    """The batch as a CSV file has it: safe texts, the publication, a column for each number of a vector."""
    vector = _VECTORS.get(rows.name)
    columns = {name: _safe(batch.column(name)) for name in batch.schema.names if name != vector}
    columns["publication_id"] = pa.array([rows.publication.publication_id] * batch.num_rows, pa.string())
    if vector:
        numbers = _matrix(batch.column(vector)).T
        columns |= {f"v{place}": pa.array(np.ascontiguousarray(column)) for place, column in enumerate(numbers)}
    return pa.table(columns)


def _safe(column: pa.Array) -> pa.Array:
    if not pa.types.is_string(column.type):
        return column
    return pc.if_else(pc.match_substring_regex(column, _FORMULA), pc.binary_join_element_wise("'", column, ""), column)


def _matrix(vectors: pa.ListArray) -> NDArray[np.float32]:
    """Vectors of equal length as rows, shape ``(n, d)``; ``(0, 0)`` for none."""
    numbers = vectors.flatten().to_numpy(zero_copy_only=False)
    return cast("NDArray[Any]", numbers.reshape(len(vectors), -1)) if len(vectors) else np.empty((0, 0), np.float32)
