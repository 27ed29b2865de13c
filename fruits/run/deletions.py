"""Which deletions of a run wait for a person's decision. Pure functions; no I/O.

How the bounds combine:

- **Share and number.** The run's deletions count together with those of the last 24 hours that nobody approved. When
  the sum is more than FRUITS_MAX_DELETED_SHARE of the rows and more than FRUITS_FEW_DELETIONS, or more than
  FRUITS_MAX_DELETIONS, all deletions of the run are withheld.
- **An empty listing** withholds all deletions, however few.
- **Undecided before.** Withheld deletions stay withheld, however much time passes, as long as one of the photos
  that the question named is still gone.
- **The last photo of a label.** When none of the above holds, only deletions that would leave a label without a row are
  withheld; the other deletions go on. A label with a new or changed photo keeps a row.

Created and updated photos always go on.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fruits.lake.approvals import digest_of
from fruits.lake.publication import Publication
from fruits.settings import Settings

WINDOW = timedelta(hours=24)
"""Deletions of so long count together, so that an hourly trickle is noticed."""

_FIRST_KEYS = 20


@dataclass(frozen=True)
class DeletionBounds:
    """The settings that bound deletions without a decision."""

    share: float
    few: int
    most: int
    keep_labels: bool = True

    @classmethod
    def of(cls, settings: Settings) -> "DeletionBounds":
        """The bounds of the settings."""
        return cls(
            settings.max_deleted_share, settings.few_deletions, settings.max_deletions, settings.keep_last_of_label
        )


@dataclass(frozen=True)
class Withheld:
    """Which deletions wait for a decision: those of ``labels`` (None: all), for ``reasons``. None without a reason."""

    reasons: tuple[str, ...] = ()
    labels: frozenset[str] | None = None

    def __bool__(self) -> bool:
        """Whether any deletion waits."""
        return bool(self.reasons)


@dataclass(frozen=True)
class Leaving:
    """Rows that leave: their number, the first keys, and SHA-256 over the sorted keys and ETags.

    ``by_label`` has their number by label, the most frequent first; quarantined objects count as ``(quarantined)``.
    """

    number: int
    digest: str
    by_label: Mapping[str, int]
    first_keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str | None]]) -> "Leaving":
        """Key, ETag and label of each row, in the order of their keys; read once, and not kept."""
        labels: Counter[str] = Counter()
        first: list[str] = []

        def parts() -> Iterator[str]:
            for key, etag, label in rows:
                labels[label or "(quarantined)"] += 1
                if len(first) < _FIRST_KEYS:
                    first.append(key)
                yield f"{key}\0{etag}"

        digest = digest_of("deletions", parts())
        by_label = dict(sorted(labels.items(), key=lambda item: (-item[1], item[0])))
        return cls(labels.total(), digest, by_label, tuple(first))


def withheld_deletions(
    leaving: Mapping[str | None, int],
    known_by_label: Mapping[str | None, int],
    recent: int,
    bounds: DeletionBounds,
    *,
    arriving: Collection[str | None] = (),
    nothing_listed: bool = False,
    still_waiting: bool = False,
) -> Withheld:
    """Decide which of a run's deletions are withheld.

    Args:
        leaving: The deletions that the run would make, by the row's label.
        known_by_label: Rows before the run, by label; quarantined objects have the label None.
        recent: Rows that were deleted within ``WINDOW`` without an approval.
        bounds: The bounds.
        arriving: Labels that get a photo in this run, or in a later run when a limit leaves photos over.
        nothing_listed: Whether the listing had no object at all.
        still_waiting: Whether one of the deletions was named by a question which nobody has decided yet.
    """
    number = sum(leaving.values())
    if not number:
        return Withheld()
    reasons = _mass_reasons(number, sum(known_by_label.values()) + recent, recent, bounds)
    if nothing_listed:
        reasons = ("the listing has no object at all", *reasons)
    if not reasons and still_waiting:
        reasons = ("earlier deletions still wait for a decision",)
    if reasons:
        return Withheld(reasons)
    emptied = _emptied_labels(leaving, known_by_label, arriving) if bounds.keep_labels else frozenset()
    return Withheld((f"the last photos of {_names(emptied)}",), emptied) if emptied else Withheld()


def recent_deletions(published: Sequence[Publication], now: datetime) -> int:
    """Rows that publications of the last ``WINDOW`` deleted without an approval, as they recorded."""
    return sum(
        max((publication.counts or {}).get("delete", 0) - _approved(publication), 0)
        for publication in published
        if publication.published_at is not None and now - publication.published_at < WINDOW and publication.made_by_run
    )


def _approved(publication: Publication) -> int:
    return sum(approval.number for approval in publication.approvals if approval.kind == "deletions")


def _mass_reasons(number: int, rows: int, recent: int, bounds: DeletionBounds) -> tuple[str, ...]:
    total = number + recent
    before = f" ({recent:,} of them in the last 24 hours)" if recent else ""
    reasons = []
    if total > bounds.few and total > bounds.share * rows:
        reasons.append(f"{total:,} deletions{before} are more than {bounds.share:.0%} of {rows:,} rows")
    if total > bounds.most:
        reasons.append(f"{total:,} deletions{before} are more than {bounds.most:,}")
    return tuple(reasons)


def _emptied_labels(
    leaving: Mapping[str | None, int], known_by_label: Mapping[str | None, int], arriving: Collection[str | None]
) -> frozenset[str]:
    return frozenset(
        label
        for label, number in leaving.items()
        if label is not None and number >= known_by_label.get(label, 0) and label not in arriving
    )


def _names(labels: Collection[str], most: int = 3) -> str:
    ordered = sorted(labels)
    more = f" and {len(ordered) - most:,} more labels" if len(ordered) > most else ""
    return ", ".join(f"label {label!r}" for label in ordered[:most]) + more
