"""``fruits quarantine``: list the objects in quarantine, and start a run that reads them again."""

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
_MOST_CONF_BYTES = 100_000  # Linux allows 128 KiB in one argument of a program
_MOST_SHOWN = 5

Object = dict[str, Any]


def read(lake: "Lake", *, reason: str | None = None, prefix: str = "") -> dict[str, Any]:
    """The published quarantine in the order of keys, limited to a reason and a prefix.

    Raises:
        FruitsError: if no object has this reason or prefix; names the reasons that occur.
    """
    publication = current_publication(lake)
    rows = lake.read(
        "quarantine", publication.snapshots["quarantine"], _COLUMNS, model_id=str(publication.model_id)
    ).to_pylist()
    counts = Counter(row["reason"] for row in rows)
    if reason is not None and reason not in counts:
        existing = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items())) or "none"
        raise FruitsError(
            f"reason {reason!r}: no object is in quarantine for this reason; reasons that occur: {existing}"
        )
    chosen = [row for row in rows if reason in (None, row["reason"]) and row["key"].startswith(prefix)]
    if rows and not chosen:
        raise FruitsError(
            f"prefix {prefix!r}: none of the {len(rows):,} objects in quarantine has a key with this prefix; correct "
            "the prefix"
        )
    return {
        "publication_id": publication.publication_id,
        "model_id": publication.model_id,
        "reasons": dict(sorted(counts.items())),
        "objects": [
            {**row, "last_modified": row["last_modified"].isoformat()}
            for row in sorted(chosen, key=lambda row: str(row["key"]))
        ],
    }


def conf_of_retry(quarantine: Document, keys: Sequence[str], *, everything: bool) -> dict[str, Any]:
    """The params of a run that reads quarantined objects again: the objects ``keys``, or else all of ``quarantine``.

    Raises:
        FruitsError: if a key is not in quarantine, if no object would be read again, or if there are too many keys for
            one run's params.
    """
    objects = {row["key"]: row for row in quarantine["objects"]}
    if not objects:
        raise FruitsError("the quarantine is empty, so there is nothing to read again")
    unknown = [key for key in keys if key not in objects]
    if unknown:
        shown = "\n".join(f"  {key}" for key in list(objects)[:_MOST_SHOWN])
        more = len(objects) - _MOST_SHOWN
        raise FruitsError(
            f"key {unknown[0]!r}: not in quarantine; keys in quarantine:\n{shown}"
            + (f"\n  and {more:,} more" if more > 0 else "")
        )
    chosen = [objects[key] for key in keys] or list(objects.values())
    readable = [row["key"] for row in chosen if row["reason"] not in SETTINGS_REASONS]
    if not readable:
        raise FruitsError(
            "these objects were never read, because their keys are not accepted. Change FRUITS_KEY_PATTERN or "
            "FRUITS_LABELS, and the next run reads them by itself; or upload them under other keys"
        )
    conf = {"retry_quarantined": True, "keys": [] if everything else sorted(set(readable))}
    if len(json.dumps(conf)) > _MOST_CONF_BYTES:
        raise FruitsError(
            f"{len(readable):,} keys are too many for one run's params; leave out KEY and --reason to read all of the "
            "quarantine again"
        )
    return conf


def render(quarantine: Document) -> Iterable[RenderableType]:
    """The quarantine for a terminal."""
    if not quarantine["objects"]:
        yield "The quarantine is empty."
        return
    rows = (
        (row["key"], row["reason"], row["size"], row["last_modified"][:19], row["detail"])
        for row in quarantine["objects"]
    )
    yield table(("key", "reason", ">bytes", "uploaded", "detail"), rows)
    yield ""
    yield table((">objects", "reason"), ((count, reason) for reason, count in quarantine["reasons"].items()))


def render_retry(done: Document) -> Iterable[RenderableType]:
    """The started run for a terminal."""
    keys = done["conf"]["keys"]
    objects = f"{len(keys):,} objects" if keys else "all quarantined objects"
    yield f"Run {done['run_id']} reads {objects} again; `fruits status` shows the result."
