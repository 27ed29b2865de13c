"""``fruits pin`` and ``fruits unpin``: readers stay on a publication, until they may follow the runs again."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fruits.cli.output import Document
from fruits.cli.place import person
from fruits.lake.publication import readers_base, refuse_runs_under_way
from fruits.run.pin import current_pin, pinned, remove_pin, to_pin
from fruits.settings import Settings

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake


def run(lake: "Lake", wanted: str | None, why: str) -> dict[str, Any]:
    """Pin readers to the publication that they see. Nothing is published; a second pin replaces person and reason.

    A run that looked for a pin just before then finds that its base is gone, and does not publish.

    Raises:
        FruitsError: when readers see another one, or no reason is given.
        ConflictError: when a run published meanwhile; that publication stays, and there is no new pin.
    """
    base = readers_base(lake)
    publication = to_pin(lake, base, wanted)
    with pinned(lake.settings, publication, person(), why) as pin:
        refuse_runs_under_way(lake, base)
    return {"pin": pin.model_dump(mode="json"), "shown": str(pin)}


def render(done: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    yield f"{done['shown']}. Runs end without work from now on; `fruits unpin` lets them publish again."


def lift(settings: Settings) -> dict[str, Any]:
    """Take the pin away; returns whether there was one."""
    return {"changed": remove_pin(settings)}


def render_lifted(done: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    yield "Readers follow the runs again." if done["changed"] else "Nothing to do: there is no pin."


def describe(settings: Settings) -> str | None:
    """The pin for a person; None when there is none."""
    pin = current_pin(settings)
    return str(pin) if pin else None
