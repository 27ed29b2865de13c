"""``fruits report``: write the report of a run, or of the current publication, as one HTML page."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document
from fruits.errors import FruitsError
from fruits.run.documents import listed_runs
from fruits.run.state import run_key
from fruits.serve.report import read_overview, read_run
from fruits.serve.report import render as page
from fruits.settings import Settings

_MOST_SHOWN = 5


def write(settings: Settings, run: str | None, target: Path) -> dict[str, Any]:
    """Write the page of a run (its id in Airflow, or its folder in the lake), or else of the current publication.

    Raises:
        FruitsError: if there is no such run, or the file cannot be written.
    """
    key = None if run is None else _key(settings, run)
    html = page(read_overview(settings) if key is None else read_run(settings, key))
    try:
        target.write_text(html, encoding="utf-8")
    except OSError as error:
        raise FruitsError(f"{target}: {error.strerror}; name a file that can be written with -o") from error
    return {"run": key, "path": str(target), "bytes": target.stat().st_size}


def _key(settings: Settings, run: str) -> str:
    known = list(listed_runs(settings))
    key = next((name for name in (run, run_key(run)) if name in known), None)
    if key is None:
        shown = ", ".join(known[:_MOST_SHOWN]) or "none"
        raise FruitsError(
            f"run {run!r}: the lake has no documents of a run with this id or folder; newest runs: {shown}"
        )
    return key


def render(done: Document) -> Iterable[RenderableType]:
    """The answer for a terminal."""
    yield f"{done['path']}: {done['run'] or 'the current publication'}, {done['bytes']:,} bytes; open it in a browser"
