"""``fruits move-photos``: the lake's photos are elsewhere from now on, which a person decides."""

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
    """What a person is asked to confirm; nothing where the settings name the recorded place."""
    recorded, source = recorded_source(lake), PhotoSource.of(lake.settings)
    if recorded == source:
        return ""
    published = publications(lake)
    features = (published[-1].counts or {}).get("features", 0) if published else 0
    return (
        f"Lake {lake.settings.lake} holds the photos of {recorded or 'no bucket yet'}: {features:,} features. Its "
        f"photos are those of {source} from now on: the next run compares them with the tables by key, and what is "
        "not there counts as deleted. Is that right?"
    )


def run(lake: "Lake", why: str) -> dict[str, Any]:
    """Record the place that the settings name as the lake's; returns the place before and the place now.

    Raises:
        FruitsError: when no reason is given.
    """
    if not why.strip():
        raise FruitsError("move-photos: expected a reason, for those who look later; add --why")
    recorded, source = recorded_source(lake), PhotoSource.of(lake.settings)
    if recorded != source:
        move_source(lake, person(), why)
    return {"before": str(recorded) if recorded else None, "now": str(source), "changed": recorded != source}


def render(done: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    if done["changed"]:
        yield f"The lake's photos are those of {done['now']}, no more those of {done['before'] or 'no bucket'}."
        yield "`fruits plan` shows what the next run would do."
    else:
        yield f"Nothing to do: the lake holds the photos of {done['now']} already."
