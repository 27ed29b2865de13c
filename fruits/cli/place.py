"""The lake that a command works on: the lake of the ``FRUITS_*`` variables, or else the embedded stack's."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fruits.lake.reader import NoLakeError, explain_lake_errors
from fruits.settings import Settings

if TYPE_CHECKING:
    from local.stack import Stack

DATA = Path(__file__).parents[2] / "data"
Needs = Literal["lake", "bucket", "files"]
"""``files``: the lake's files alone, without a catalog."""


@dataclass(frozen=True)
class Place:
    """The settings of the lake, and the embedded stack that the lake belongs to; None if the lake is another."""

    settings: Settings
    stack: "Stack | None" = None


@contextmanager
def opened(data: Path | None, needs: Needs) -> Iterator[Place]:
    """Open the place of a command, and set its environment variables until the context ends.

    ``data`` is the folder of an embedded stack. Without ``data``, ``FRUITS_LAKE`` decides. A command that needs the
    bucket starts the stack's S3 server, unless the server runs already.

    Raises:
        FruitsError: if the settings are wrong, or the embedded stack was never run.
    """
    if data is None and os.environ.get("FRUITS_LAKE"):
        settings = Settings.load()
        with explain_lake_errors(settings):
            yield Place(settings)
        return
    data = (data or DATA).resolve()
    if not (data / ("lake" if needs == "files" else "catalog.db")).exists():
        raise NoLakeError(
            f"no data yet in {data}; run `make run` first, name another folder with --data, or set FRUITS_LAKE and "
            "FRUITS_CATALOG_URI to a lake elsewhere. If catalog.db is lost: `fruits catalog rebuild`"
        )
    from local.stack import environment_of, running_stack

    with (
        running_stack(data) if needs == "bucket" else nullcontext(resting_stack(data)) as stack,
        environment_of(stack),
    ):
        settings = Settings.load()
        with explain_lake_errors(settings):
            yield Place(settings, stack)


def person() -> str:
    """The name of the system's user, who decides; ``user <id>`` where a container's user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def resting_stack(data: Path) -> "Stack":
    """The embedded stack for a command that only reads the lake: without an S3 server and without keys."""
    from local.stack import Stack

    return Stack(data, "http://127.0.0.1:9", "unused", "unused")  # port 9: discard
