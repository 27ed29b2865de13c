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


def write_table(
    settings: Settings, table: ExportTable, target: Path, file_format: str | None, *, overwrite: bool
) -> dict[str, Any]:
    """Write the file of a table; by default in the format that its name ends with.

    Raises:
        FruitsError: if there is no such format, or the file cannot be written.
    """
    chosen = _format(file_format or target.suffix.removeprefix(".").lower())
    return _written(table, chosen, target, partial(export, settings, table, target, chosen, overwrite=overwrite))


def write_dataset(
    settings: Settings, target: Path, file_format: str, *, embeddings: bool, overwrite: bool
) -> dict[str, Any]:
    """Write the folder of a dataset.

    Raises:
        FruitsError: if there is no such format, or the folder cannot be written.
    """
    chosen = _format(file_format)
    write = partial(export_dataset, settings, target, chosen, embeddings=embeddings, overwrite=overwrite)
    return _written("dataset", chosen, target, write)


def _written(what: str, file_format: Format, target: Path, write: Callable[..., Exported]) -> dict[str, Any]:
    """What was written, with a progress bar on a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{what} to {target.name}", total=None)
        done = write(progress=lambda done, total: progress.update(task, completed=done, total=total))
    return {
        "table": what,
        "format": file_format,
        "path": str(done.path),
        "rows": done.rows,
        "bytes": done.bytes,
        "publication_id": done.publication_id,
    }


def render(done: Document) -> Iterable[RenderableType]:
    """The answer for a terminal."""
    size = f"{done['rows']:,} rows of {done['table']}, {done['bytes']:,} bytes"
    yield f"{done['path']}: {size}, from {done['publication_id']}"


def _format(name: str) -> Format:
    if name not in get_args(Format):
        raise FruitsError(
            f"format {name!r}: expected --format {', '.join(get_args(Format))}, or a file with such a suffix"
        )
    return cast("Format", name)
