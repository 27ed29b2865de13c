"""The published rows of a table as one Parquet, CSV or NumPy file. ``dataset`` exports rows to train from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from fruits.errors import FruitsError
from fruits.lake.publication import Publication
from fruits.lake.reader import PublishedRows, current_publication, open_read_only
from fruits.serve.formats import WRITERS, Format, Rows
from fruits.serve.targets import new_file
from fruits.settings import Settings

ExportTable = Literal["features", "embeddings", "quarantine", "pca_models"]
Progress = Callable[[int, int], None]

FORMATS: Mapping[ExportTable, tuple[Format, ...]] = {
    "features": ("parquet", "csv", "npz"),
    "embeddings": ("parquet", "csv", "npz"),
    "quarantine": ("parquet", "csv"),
    "pca_models": ("parquet",),
}
"""What each table can be exported as: a matrix of components fits into no cell, and a reason is no vector."""


@dataclass(frozen=True)
class Exported:
    """The result of an export: the number of rows, the file or folder, its size in bytes, the publication."""

    rows: int
    bytes: int
    path: Path
    publication_id: str


def export(
    settings: Settings,
    table: ExportTable,
    target: Path,
    format: Format,  # noqa: A002 -- the word for it
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the published rows of ``table`` to ``target``: those of the publication's backbone and PCA version.

    Rows come in the table's own order. ``fruits.serve.formats`` says what a file of each format has.

    Args:
        settings: Where the lake is.
        table: One of ``FORMATS``.
        target: The file to make; complete, or not there.
        format: One of those that ``FORMATS`` has for the table.
        overwrite: Whether a file that is there may be replaced.
        progress: Called with (written rows, all rows).

    Raises:
        FruitsError: when table, format or target can't be, nothing has been published, or an ``npz`` would be too big.
    """
    _check_format(table, format)
    lake = open_read_only(settings)
    publication = current_publication(lake)
    with new_file(target, overwrite=overwrite) as part:
        published = PublishedRows(lake, publication, table)
        batches = reported(published.batches(), published.total, progress)
        rows = Rows(table, published.schema, published.total, origin_of(publication), batches)
        WRITERS[format](part, rows)
    return Exported(rows.total, target.stat().st_size, target, str(publication.publication_id))


def origin_of(publication: Publication) -> dict[str, str]:
    """What a file says about where its rows are from."""
    return {name: str(getattr(publication, name)) for name in ("publication_id", "model_id", "pca_id")}


def reported(
    batches: Iterator[pa.RecordBatch], total: int, progress: Progress | None, *, done: int = 0
) -> Iterator[pa.RecordBatch]:
    """The batches; ``progress`` is called with ``done`` and the number of rows that were used, and with ``total``."""
    if progress:
        progress(done, total)
    for batch in batches:
        yield batch
        done += batch.num_rows
        if progress:
            progress(done, total)


def _check_format(table: ExportTable, format: Format) -> None:  # noqa: A002
    if table not in FORMATS:
        raise FruitsError(f"table {table!r}: expected one of {', '.join(FORMATS)}")
    if format not in FORMATS[table]:
        raise FruitsError(f"table {table} as {format!r}: expected {' or '.join(FORMATS[table])}")
