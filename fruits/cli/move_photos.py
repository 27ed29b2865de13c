"""``fruits move-photos``: a person records another place as that of the lake's photos."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fruits.cli.output import Document
from fruits.cli.place import person
from fruits.errors import FruitsError
from fruits.lake.publication import publications
from fruits.lake.source import PhotoSource, move_source, recorded_source

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake


def preview(lake: "Lake") -> str:
    """The question to confirm; an empty text if the settings name the recorded place."""
    recorded, source = recorded_source(lake), PhotoSource.of(lake.settings)
    if recorded == source:
        return ""
    published = publications(lake)
    features = (published[-1].counts or {}).get("features", 0) if published else 0
    return (
        f"Lake {lake.settings.lake} holds {features:,} features of the photos of {recorded or 'no bucket yet'}. From "
        f"now on, it will hold the photos of {source}: the next run compares them with the tables by key, and a photo "
        "that is missing there counts as deleted. Record the new place?"
    )


def run(lake: "Lake", why: str) -> dict[str, Any]:
    """Record the place that the settings name; return the old and the new place.

    Raises:
        FruitsError: if ``why`` is empty.
    """
    if not why.strip():
        raise FruitsError("move-photos: expected a reason, which the lake keeps; add --why")
    recorded, source = recorded_source(lake), PhotoSource.of(lake.settings)
    if recorded != source:
        move_source(lake, person(), why)
    return {"before": str(recorded) if recorded else None, "now": str(source), "changed": recorded != source}


def render(done: Document) -> Iterable[RenderableType]:
    """The answer for a terminal."""
    if done["changed"]:
        yield f"The lake now holds the photos of {done['now']}, and no longer those of {done['before'] or 'no bucket'}."
        yield "`fruits plan` shows what the next run would do."
    else:
        yield f"Nothing to do: the lake already holds the photos of {done['now']}."
