"""``fruits quarantine``: which objects could not be featurized and why, and reading them again."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fruits.cli.output import Document, table
from fruits.errors import FruitsError
from fruits.lake.reader import current_publication
from fruits.photos.quarantine import SETTINGS_REASONS

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake

_COLUMNS = ("key", "etag", "size", "last_modified", "reason", "detail", "run_id")
_MOST_CONF_BYTES = 100_000  # what one argument of a program may have, nearly
_MOST_SHOWN = 5

Object = dict[str, Any]


def read(lake: "Lake", *, reason: str | None = None, prefix: str = "") -> dict[str, Any]:
    """The quarantined objects that readers see, by key, those of a reason and a prefix.

    Raises:
        FruitsError: when there is no object of that reason or prefix; says what there is.
    """
    publication = current_publication(lake)
    rows = lake.read(
        "quarantine", publication.snapshots["quarantine"], _COLUMNS, model_id=str(publication.model_id)
    ).to_pylist()
    counts = Counter(row["reason"] for row in rows)
    if reason is not None and reason not in counts:
        there = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items())) or "none"
        raise FruitsError(f"reason {reason!r}: no object is in quarantine for it; reasons there are: {there}")
    chosen = [row for row in rows if reason in (None, row["reason"]) and row["key"].startswith(prefix)]
    if rows and not chosen:
        raise FruitsError(f"prefix {prefix!r}: no quarantined object has a key that starts so; there are {len(rows):,}")
    return {
        "publication_id": publication.publication_id,
        "model_id": publication.model_id,
        "reasons": dict(sorted(counts.items())),
        "objects": [
            {**row, "last_modified": row["last_modified"].isoformat()}
            for row in sorted(chosen, key=lambda row: str(row["key"]))
        ],
    }


def conf_of_retry(found: Document, keys: Sequence[str], *, everything: bool) -> dict[str, Any]:
    """The params of a run that reads quarantined objects again: ``keys`` of them, else all that were ``found``.

    Raises:
        FruitsError: when a key is not in quarantine, when none of the objects would be read again, or when there are
            too many for one run's params.
    """
    objects = {row["key"]: row for row in found["objects"]}
    if not objects:
        raise FruitsError("quarantine: it is empty, so there is nothing to read again")
    unknown = [key for key in keys if key not in objects]
    if unknown:
        shown = "\n".join(f"  {key}" for key in list(objects)[:_MOST_SHOWN])
        more = len(objects) - _MOST_SHOWN
        raise FruitsError(
            f"key {unknown[0]!r}: not in quarantine; keys there are:\n{shown}"
            + (f"\n  and {more:,} more" if more > 0 else "")
        )
    chosen = [objects[key] for key in keys] or list(objects.values())
    readable = [row["key"] for row in chosen if row["reason"] not in SETTINGS_REASONS]
    if not readable:
        raise FruitsError(
            "these objects were never read: their keys are not accepted. Change FRUITS_KEY_PATTERN or FRUITS_LABELS, "
            "and the next run takes them up by itself; or upload them under other keys"
        )
    conf = {"retry_quarantined": True, "keys": [] if everything else sorted(set(readable))}
    if len(json.dumps(conf)) > _MOST_CONF_BYTES:
        raise FruitsError(
            f"{len(readable):,} keys are too many for one run's params; without KEY and --reason all of the quarantine "
            "is read again"
        )
    return conf


def render(found: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    if not found["objects"]:
        yield "The quarantine is empty."
        return
    rows = (
        (row["key"], row["reason"], row["size"], row["last_modified"][:19], row["detail"]) for row in found["objects"]
    )
    yield table(("key", "reason", ">bytes", "uploaded", "what was found"), rows)
    yield ""
    yield table((">objects", "reason"), ((count, reason) for reason, count in found["reasons"].items()))


def render_retry(done: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    keys = done["conf"]["keys"]
    what = f"{len(keys):,} objects" if keys else "all quarantined objects"
    yield f"Run {done['run_id']} reads {what} again; `fruits status` shows what comes of it."
