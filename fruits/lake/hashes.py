"""The table ``photo_hashes``: the features at a snapshot in the order of their photos' hashes.

Maintenance writes the table anew. A run looks up equal bytes in it, and reads only the features that came since. See
``docs/decisions/15-equal-bytes.md``.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from fruits.lake.branches import Snapshots
from fruits.lake.catalog import Lake
from fruits.lake.counters import live_rows

FEATURES_PROPERTY = "fruits.features-snapshot"
"""What a snapshot of ``photo_hashes`` carries in its summary: the snapshot of ``features`` that it was made of."""

FEWEST_ROWS = 200_000
"""The hashes of fewer features are read faster than looked up."""

MOST_HASHES = 10_000
"""Most hashes to look up in ``photo_hashes``: more touch most of its row groups."""

_COLUMNS = ("key", "sha256", "split")


def same_bytes(lake: Lake, snapshots: Snapshots, model_id: str, hashes: Sequence[str]) -> pa.Table | None:
    """The features of a backbone whose photos have one of some ``hashes``: ``key``, ``sha256`` and ``split``.

    None when too many rows would have to be read here: those that ``photo_hashes`` does not know, or that it names.
    """
    wanted = sorted(set(hashes))
    at, hashed = snapshots["features"], hashed_snapshot(lake, snapshots)
    if hashed is not None and len(wanted) > MOST_HASHES:
        return None
    if sum(file.rows for file in lake.files("features", at, since=hashed)) >= FEWEST_ROWS:
        return None
    found = list(lake.batches("features", at, _COLUMNS, since=hashed, model_id=model_id))
    if hashed is not None:
        at_hashes = snapshots["photo_hashes"]
        named = lake.batches("photo_hashes", at_hashes, ("key", "sha256"), keys=wanted, by="sha256", model_id=model_id)
        keys = sorted({key for batch in named for key in batch["key"].to_pylist()})
        if len(keys) > MOST_HASHES:
            return None
        # Their rows may have been replaced or deleted since, so the features decide.
        found += lake.batches("features", at, _COLUMNS, keys=keys, model_id=model_id)
    schema = pa.schema([(name, pa.string()) for name in _COLUMNS])
    rows = pa.Table.from_batches([batch.select(_COLUMNS).cast(schema) for batch in found], schema)
    return rows.filter(pc.is_in(rows["sha256"], pa.array(wanted, pa.string())))


def hashed_snapshot(lake: Lake, snapshots: Snapshots) -> int | None:
    """The snapshot of ``features`` whose rows ``photo_hashes`` has; the features at ``snapshots`` descend from it.

    None when there is no such snapshot, or rows are missing.
    """
    table = lake.table("photo_hashes")
    at = table.snapshot_by_id(snapshots["photo_hashes"])
    noted = at.summary[FEATURES_PROPERTY] if at and at.summary else None
    if noted is None or int(noted) not in lake.state("features").line(snapshots["features"]):
        return None
    rows = live_rows(lake.table("features"), int(noted))
    return int(noted) if rows is not None and rows == live_rows(table, snapshots["photo_hashes"]) else None


def hashes_are_due(lake: Lake, snapshots: Snapshots) -> bool:
    """Whether maintenance has to write ``photo_hashes`` of the features at ``snapshots``."""
    if "photo_hashes" not in snapshots:  # in a lake that only readers have opened since
        return False
    rows = live_rows(lake.table("features"), snapshots["features"]) or 0
    return rows >= FEWEST_ROWS and hashed_snapshot(lake, snapshots) != snapshots["features"]
