"""What photos tell of a classifier, as run documents and gates take it; without numpy, which they do not need."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CalibratedOn = Literal["held-out photos", "cross-fitted photos", "nothing"]
"""The photos that a classifier was calibrated on; cross-fitted ones were scored by a fit without them."""

MOST_TABLE_LABELS = 40
_MOST_PAIRS = 10
_MOST_KEYS = 3


@dataclass(frozen=True)
class Quality:
    """What photos tell of a calibrated classifier that knew them neither at its fit nor at its calibration.

    Attributes:
        n: The photos.
        accuracy: Share whose likeliest label is right.
        calibration_error: Expected calibration error.
        coverage: Share whose set has the right label.
        labels_of_set: Labels of a set, on average.
    """

    n: int
    accuracy: float
    calibration_error: float
    coverage: float
    labels_of_set: float

    def __str__(self) -> str:
        """For a person."""
        return (
            f"accuracy {self.accuracy:.3f}, calibration error {self.calibration_error:.3f}, coverage "
            f"{self.coverage:.3f} with {self.labels_of_set:.2f} labels a set, on {self.n:,} photos"
        )


@dataclass(frozen=True)
class ConfusedPair:
    """Photos of one label whose likeliest label is another.

    Attributes:
        label: The right label.
        likeliest: The likeliest label.
        n: The photos.
        keys: The first few of them, by key.
    """

    label: str
    likeliest: str
    n: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Confusion:
    """Which labels a classifier takes for one another, on the photos that tell its quality.

    Attributes:
        pairs: The pairs of most photos, the most first, at most 10.
        table: Photos by label and likeliest label, without zeros; empty for more than ``MOST_TABLE_LABELS`` labels.
    """

    pairs: tuple[ConfusedPair, ...]
    table: Mapping[str, Mapping[str, int]]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the table, right or likeliest, sorted."""
        return tuple(sorted({*self.table, *(label for row in self.table.values() for label in row)}))


def confusion_of(keys: Sequence[str], labels: Sequence[str], likeliest: Sequence[str]) -> Confusion:
    """The confusion of photos: their keys, right and likeliest labels, each of length ``n``."""
    photos = list(zip(labels, likeliest, keys, strict=True))
    counts = Counter((label, answer) for label, answer, _ in photos)
    confused = sorted((pair for pair in counts if pair[0] != pair[1]), key=lambda pair: (-counts[pair], pair))
    pairs = tuple(
        ConfusedPair(*pair, counts[pair], tuple(sorted(key for *of, key in photos if tuple(of) == pair)[:_MOST_KEYS]))
        for pair in confused[:_MOST_PAIRS]
    )
    if len({*labels, *likeliest}) > MOST_TABLE_LABELS:
        return Confusion(pairs, {})
    table: dict[str, dict[str, int]] = {}
    for (label, answer), n in sorted(counts.items()):
        table.setdefault(label, {})[answer] = n
    return Confusion(pairs, table)
