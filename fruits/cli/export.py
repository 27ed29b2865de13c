"""``fruits export``: write the published rows of a table to one file, or a dataset to a folder."""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console, RenderableType
from rich.progress import Progress

from fruits.cli.output import Document
from fruits.errors import FruitsError
from fruits.serve.dataset import export_dataset
from fruits.serve.export import Exported, ExportTable, export
from fruits.serve.formats import Format
from fruits.settings import Settings

DATASET = "dataset"


def write(
    settings: Settings, table: str, target: Path, file_format: str | None, *, embeddings: bool, overwrite: bool
) -> dict[str, Any]:
    """Write the file of a table or the folder of a dataset, with a progress bar on a terminal.

    Raises:
        FruitsError: if there is no such table or format, or the target cannot be written.
    """
    chosen = _format(table, target, file_format)
    write_rows: Callable[..., Exported]
    if table == DATASET:
        write_rows = partial(export_dataset, settings, target, chosen, embeddings=embeddings)
    elif embeddings:
        raise FruitsError(f"--embeddings: is for a dataset; table {table} has its own columns")
    else:
        write_rows = partial(export, settings, cast("ExportTable", table), target, chosen)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{table} to {target.name}", total=None)
        done = write_rows(
            overwrite=overwrite, progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    return {
        "table": table,
        "format": chosen,
        "path": str(done.path),
        "rows": done.rows,
        "bytes": done.bytes,
        "publication_id": done.publication_id,
    }


def render(done: Document) -> Iterable[RenderableType]:
    """The answer for a terminal."""
    size = f"{done['rows']:,} rows of {done['table']}, {done['bytes']:,} bytes"
    yield f"{done['path']}: {size}, from {done['publication_id']}"


def _format(table: str, target: Path, file_format: str | None) -> Format:
    """The format that was asked for; by default that of the file's name, and Parquet for a folder."""
    if table not in (*get_args(ExportTable), DATASET):
        raise FruitsError(f"table {table!r}: expected {', '.join(get_args(ExportTable))}, or {DATASET}")
    chosen = file_format or ("parquet" if table == DATASET else target.suffix.removeprefix(".").lower())
    if chosen not in get_args(Format):
        raise FruitsError(
            f"format {chosen!r}: expected --format {', '.join(get_args(Format))}, or a file with such a suffix"
        )
    return cast("Format", chosen)
