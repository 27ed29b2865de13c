"""``fruits export``: write the published rows of a table to one file."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast, get_args

from rich.console import Console, RenderableType
from rich.progress import Progress

from fruits.cli.output import Document
from fruits.errors import FruitsError
from fruits.serve.export import ExportFormat, ExportTable, export
from fruits.settings import Settings


def write(settings: Settings, table: str, target: Path, file_format: str | None, *, overwrite: bool) -> dict[str, Any]:
    """Write the file, with a progress bar on a terminal.

    Raises:
        FruitsError: if there is no such table or format, or the file cannot be written.
    """
    if table not in get_args(ExportTable):
        raise FruitsError(f"table {table!r}: expected {', '.join(get_args(ExportTable))}")
    chosen = file_format or target.suffix.removeprefix(".").lower()
    if chosen not in get_args(ExportFormat):
        raise FruitsError(
            f"format {chosen!r}: expected --format {', '.join(get_args(ExportFormat))}, or a file with such a suffix"
        )
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{table} to {target.name}", total=None)
        done = export(
            settings,
            cast("ExportTable", table),
            target,
            cast("ExportFormat", chosen),
            overwrite=overwrite,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
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
