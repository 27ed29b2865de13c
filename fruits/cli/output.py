"""The answer of a command: one JSON document, or the same as tables for a person."""

import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from fruits.errors import ExitCode

Document = Mapping[str, Any]
Row = Sequence[object]


def answer(document: Document, render: Callable[[Document], Iterable[RenderableType]], *, as_json: bool) -> None:
    """Print the document as JSON, or as ``render`` shows it.

    No object key can act on a terminal. Output to a file or another program has unlimited width, so that no key is cut
    or wrapped.
    """
    if as_json:
        _print_json(document)
        return
    terminal = sys.stdout.isatty()
    file = sys.stdout if terminal else io.StringIO()
    console = Console(file=file, markup=False, emoji=False, highlight=False, width=None if terminal else 1_000_000)
    for part in render(document):
        console.print(printable(part) if isinstance(part, str) else part)
    if isinstance(file, io.StringIO):
        for line in file.getvalue().splitlines():
            print(line.rstrip())  # noqa: T201 the command's output


def answer_error(error: Exception) -> None:
    """Print an error as a JSON document with its message and the exit code."""
    message = getattr(error, "format_message", error.__str__)()  # of a usage error, more than its text
    code = int(getattr(error, "exit_code", ExitCode.UNEXPECTED))
    _print_json({"error": {"message": message or repr(error), "exit_code": code}})


def _print_json(document: Document) -> None:
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, default=str, allow_nan=False)
    inert = "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
    print(inert)  # noqa: T201 the command's output


def _finite(value: object) -> object:
    """``value`` with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def warn(line: str) -> None:
    """Print a line that is not part of the answer."""
    print(line, file=sys.stderr)  # noqa: T201 the command's output


def fields(rows: Iterable[tuple[str, object]]) -> Table:
    """A grid with a name and a value on each line; a value of None is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            grid.add_row(name, printable(value))
    return grid


def table(columns: Sequence[str], rows: Iterable[Row], *, title: str | None = None) -> Table:
    """A table; a column whose name starts with ``>`` is aligned right."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        grid.add_row(*(printable(value) for value in row))
    return grid


def printable(value: object) -> str:
    """A value as text for the terminal, with control characters, which object keys may hold, as escapes."""
    if value is None:
        return "-"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


def share(value: float | None) -> str | None:
    """A share in per cent."""
    return None if value is None else f"{value:.1%}"


def ago(moment: str, now: datetime | None = None) -> str:
    """The rounded time since a moment in ISO 8601, such as ``3 h ago``."""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
