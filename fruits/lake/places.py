"""Where photos stand in the order by which a sample takes the first of them: it depends on the photos alone."""

import hashlib

import pyarrow as pa

from fruits.photos.keys import FIT_SPLIT

Place = tuple[bool, str]
"""Where a photo stands among all: held-out ones before those of the fit split, then by the SHA-256 of the key."""


def places(rows: pa.Table | pa.RecordBatch) -> list[Place]:
    """The places of some rows (``key``, ``split``)."""
    pairs = zip(rows["key"].to_pylist(), rows["split"].to_pylist(), strict=True)
    return [(split == FIT_SPLIT, hashlib.sha256(key.encode()).hexdigest()) for key, split in pairs]


def first_of(rows: pa.Table, most: int, last: Place | None = None) -> pa.Table:
    """The first of some rows, at most so many and none behind the place ``last``; in no order."""
    order = sorted((place, number) for number, place in enumerate(places(rows)) if last is None or place <= last)
    return rows.take(pa.array([number for _, number in order[:most]], pa.int64()))
