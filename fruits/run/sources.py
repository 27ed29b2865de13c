"""The sources of a sweep other than a listing: S3 Inventory and S3 Metadata, which know the bucket as of a date.

``catch_up`` makes objects as of a date fit for a plan. What the tables know better stays as the tables have it, and
what may have changed since is looked up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import pyarrow as pa

from fruits.lake import metadata
from fruits.photos.inventory import newest_report, reported_batches
from fruits.run.joining import Joined
from fruits.run.reconciliation import Ignored
from fruits.settings import Settings
from fruits.stores import open_store

MOST_LOOKED_UP = 10_000
"""Objects to look up one by one at a plan, whatever the size of the tables: some twenty seconds."""

_ROWS_PER_PAGE = 1_000
_MOST_AGE = timedelta(days=2)

LookUp = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


class TooOldError(Exception):
    """A source differs so much from the tables that a listing is the quicker way to the truth."""


@dataclass(frozen=True)
class Source:
    """The objects of the bucket as of a date.

    Attributes:
        name: What the objects come from.
        date: What happened later, the source may not know.
        batches: The objects, with ``LISTED_SCHEMA``; or their versions, with ``VERSIONS_SCHEMA``.
        versions: Whether the batches are versions.
    """

    name: str
    date: datetime
    batches: Iterator[pa.RecordBatch]
    versions: bool = False

    def __str__(self) -> str:
        return f"{self.name} as of {self.date:%Y-%m-%d %H:%M} UTC"

    def objects(self, pairs: Joined) -> Iterator[pa.RecordBatch]:
        """The objects, each once, with ``LISTED_SCHEMA``; ``pairs`` keeps versions meanwhile."""
        return pairs.latest(self.batches) if self.versions else self.batches

    def warning(self, now: datetime) -> str | None:
        """Says that the source is old; None when it is not."""
        if now - self.date <= _MOST_AGE:
            return None
        return (
            f"{self}, {(now - self.date).days} days ago: what changed since is found by events only. See that S3 still "
            "updates the source, or set FRUITS_LISTING=list"
        )


def source_of(settings: Settings, prefix: str) -> Source | None:
    """The source of a sweep by the settings; None when the bucket is to be listed.

    Raises:
        FruitsError: when the source is missing or unusable; says why, and what to do.
    """
    if settings.listing == "inventory":
        parts = urlsplit(str(settings.inventory))
        store = open_store(settings, f"s3://{parts.netloc}")
        report = newest_report(store, parts.path.strip("/"), settings.bucket)
        return Source("S3 Inventory", report.date, reported_batches(store, report, prefix))
    if settings.listing == "metadata":
        table = metadata.inventory_table(settings)
        date, versions = metadata.date_of(table), metadata.has_versions(table, settings.bucket)
        return Source("S3 Metadata", date, metadata.version_batches(table, settings.bucket, prefix), versions)
    return None


def catch_up(
    pairs: Joined, ignored: Ignored, look_up: LookUp, prefix: str, date: datetime, keys: Sequence[str] = ()
) -> None:
    """Correct the objects of ``pairs``, which are as of ``date``, so that a plan deletes nothing that is there.

    A row that is newer than the date stays as it is, where the source has no object or an older one. Each other row
    without an object is looked up. So is each object that differs from its row, unless there are many: `featurize`
    reads what is there, and goes on where nothing is. ``keys`` are looked up in any case.

    Raises:
        TooOldError: when there is no object at all, or more rows lack one than a listing would have pages.
    """
    if not pairs.rows["listed"] and not ignored.number:
        raise TooOldError(f"no object under {prefix!r}")
    pairs.compare(prefix, date)
    most = max(MOST_LOOKED_UP, pairs.rows["known"] // _ROWS_PER_PAGE)
    # The row of a key that is ignored leaves, whatever the bucket has.
    asked = {key for key in keys if key.startswith(prefix) and ignored.ignore.rule_of(key) is None}
    for key in pairs.lacking():
        if ignored.ignore.rule_of(key) is None:
            asked.add(key)
        if len(asked) > most:
            raise TooOldError(f"more than {most:,} rows have no object there")
    differing = list(pairs.differing(MOST_LOOKED_UP + 1))
    if len(differing) <= MOST_LOOKED_UP:
        asked.update(differing)
    looked_up = sorted(asked)
    pairs.keep_newer(looked_up)
    if looked_up:
        pairs.correct(looked_up, look_up(looked_up))
