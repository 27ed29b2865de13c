"""The classifier of a backbone: a linear discriminant, calibrated on photos that it was not fitted on.

Fitting costs no pass over the photos (``discriminant``). Calibration and the figures of quality read a sample of
bounded size, so a new version costs the same at any number of photos.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fruits.analysis.calibration import Calibration, calibrate, quality_of
from fruits.analysis.discriminant import Discriminant, fit_discriminant
from fruits.analysis.labels import LabelSums, subtract_sums, sums_of
from fruits.analysis.moments import Matrix, Moments, moments_of, subtract
from fruits.analysis.quality import CalibratedOn, Confusion, Quality, confusion_of

FEWEST_HELD_OUT = 200
"""Held-out photos from which on they alone calibrate; with fewer, photos of the fit split do so as well."""

FEWEST_SCORED = 100
"""Photos that a half must have, to tell the quality: one photo is then 1 % of the accuracy."""

_FOLDS = 3


@dataclass(frozen=True, eq=False)
class Sample:
    """Photos of a backbone, at most some thousands, in the order of their keys.

    Attributes:
        keys: Object keys, ``n`` of them.
        labels: Their labels.
        fitted: Shape ``(n,)``: whether the photo is in the fit split.
        vectors: Their features, shape ``(n, d)``, float32.
        groups: Photos of one group, such as the shots of one fruit, calibrate together or are scored together, as near
            copies of one another. Empty: each photo is a group.
    """

    keys: Sequence[str]
    labels: Sequence[str]
    fitted: NDArray[np.bool_]
    vectors: NDArray[np.float32]
    groups: Sequence[str] = ()

    def group(self, row: int) -> str:
        """The group of a photo."""
        return self.groups[row] if self.groups else self.keys[row]


@dataclass(frozen=True, eq=False)
class Classifier:
    """A discriminant with its calibration.

    Attributes:
        discriminant: The linear discriminant.
        calibration: Temperature, and thresholds of the sets.
        calibrated_on: Which photos it was calibrated on; on nothing, its confidences and sets say little.
        quality: What photos tell that neither fit nor calibration knew; None with too few of them.
        confusion: Which labels these photos are taken for; None with too few of them, and of a classifier that comes
            from the table.
    """

    discriminant: Discriminant
    calibration: Calibration
    calibrated_on: CalibratedOn
    quality: Quality | None
    confusion: Confusion | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return self.discriminant.labels

    @property
    def classifier_id(self) -> str:
        """Identity: a hash of labels, weights and calibration."""
        digest = hashlib.sha256("\0".join(self.labels).encode())
        found, calibration = self.discriminant, self.calibration
        for values in (found.weights, found.intercept, calibration.thresholds, [calibration.temperature]):
            digest.update(np.asarray(values, dtype="<f8").tobytes())
        return f"lda-{digest.hexdigest()[:12]}"

    def probabilities(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Confidences of the labels, shape ``(n, c)`` for features of shape ``(n, d)``; each row sums to 1."""
        return self.calibration.probabilities(self.discriminant.scores(rows))

    def sets(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Which labels are in the set of each row, shape ``(n, c)``."""
        return self.calibration.sets(self.discriminant.scores(rows))


def fit_classifier(moments: Moments, sums: LabelSums, sample: Sample, *, error: float = 0.05) -> Classifier:
    """Fit on running statistics of the fit split, calibrate on one half of a sample, and score on the other.

    Held-out photos are scored by the classifier itself. With fewer than ``FEWEST_HELD_OUT`` of them, photos of the fit
    split take part, scored by a classifier that was fitted without them: their statistics are subtracted. A half is
    chosen by a hash of the group, or of the key where there is none. Photos of a label that the fit does not know take
    no part.

    Args:
        moments: Of the fit split.
        sums: Of the fit split, by label.
        sample: Photos of the backbone.
        error: Share of photos whose set may lack the right label, 0 to 1.

    Raises:
        ValueError: when the fit split has no row, or ``sums`` has other rows than ``moments``.
    """
    discriminant = fit_discriminant(moments, sums)
    rows, scores, truth = _scored(discriminant, moments, sums, sample)
    calibrated_on: CalibratedOn = "held-out photos" if _enough_held_out(discriminant, sample) else "cross-fitted photos"
    first = np.fromiter((_half(sample.group(row)) == 0 for row in rows), bool, len(rows))
    if min(first.sum(), (~first).sum()) < FEWEST_SCORED:
        first = np.ones(len(rows), bool)  # all of them calibrate, and nothing tells the quality
    calibration = calibrate(scores[first], truth[first], error=error)
    quality = quality_of(calibration, scores[~first], truth[~first])
    confusion = None
    if quality:
        labels = np.asarray(discriminant.labels)
        right, likeliest = labels[truth[~first]].tolist(), labels[scores[~first].argmax(axis=1)].tolist()
        confusion = confusion_of([sample.keys[row] for row in compress(rows, ~first)], right, likeliest)
    return Classifier(discriminant, calibration, calibrated_on if calibration.n else "nothing", quality, confusion)


def _enough_held_out(discriminant: Discriminant, sample: Sample) -> bool:
    known = np.isin(np.asarray(sample.labels, dtype=str), discriminant.labels)
    return int((known & ~sample.fitted).sum()) >= FEWEST_HELD_OUT


def _scored(
    discriminant: Discriminant, moments: Moments, sums: LabelSums, sample: Sample
) -> tuple[list[int], Matrix, NDArray[np.int64]]:
    """The sample's rows that calibrate or are scored, their scores, and their right labels' numbers."""
    labels = np.asarray(sample.labels, dtype=str)
    parts = [(discriminant, ~sample.fitted)]
    if not _enough_held_out(discriminant, sample):
        parts += _cross_fits(moments, sums, sample)
    taken: list[int] = []
    scores, truth = [np.empty((0, len(discriminant.labels)))], [np.empty(0, np.int64)]
    for fitted, rows in parts:
        chosen = np.flatnonzero(rows & np.isin(labels, fitted.labels)).tolist()
        taken += chosen
        scores.append(_with_all_labels(fitted, discriminant.labels, sample.vectors[chosen]))
        truth.append(np.searchsorted(discriminant.labels, labels[chosen]))
    return taken, np.concatenate(scores), np.concatenate(truth)


def _cross_fits(moments: Moments, sums: LabelSums, sample: Sample) -> Iterator[tuple[Discriminant, NDArray[np.bool_]]]:
    """For each third of the fit split's photos in the sample, a discriminant that was fitted without them."""
    folds = _folds(sample)
    for number in range(_FOLDS):
        rows = folds == number
        if not rows.any() or rows.sum() >= moments.n:
            continue
        labels = [label for label, left_out in zip(sample.labels, rows, strict=True) if left_out]
        vectors = sample.vectors[rows]
        left = subtract_sums(sums, sums_of(vectors, labels))
        yield fit_discriminant(subtract(moments, moments_of(vectors)), left), rows


def _folds(sample: Sample) -> NDArray[np.int64]:
    """The fold of each photo of the fit split, shape ``(n,)``, -1 for the others.

    A group is in one fold, and a fold has neighbouring groups of each label: without groups, a series of shots of one
    fruit then tends to be in one fold by its keys.
    """
    rows = sorted(np.flatnonzero(sample.fitted).tolist(), key=sample.group)
    count, seen = Counter(sample.labels[row] for row in rows), Counter[str]()
    starts: dict[str, int] = {}
    folds = np.full(len(sample.keys), -1, dtype=np.int64)
    for row in rows:
        label = sample.labels[row]
        start = starts.setdefault(sample.group(row), seen[label])
        folds[row] = start * _FOLDS // count[label]
        seen[label] += 1
    return folds


def _with_all_labels(fitted: Discriminant, labels: Sequence[str], vectors: NDArray[np.float32]) -> Matrix:
    """Scores with a column for each of ``labels``; a label that the fit does not know is the least likely one."""
    scores = fitted.scores(vectors)
    if tuple(labels) == fitted.labels or not len(vectors):
        return scores if len(vectors) else np.empty((0, len(labels)))
    filled = np.repeat(scores.min(axis=1, keepdims=True), len(labels), axis=1)
    filled[:, np.searchsorted(labels, fitted.labels)] = scores
    return filled


def _half(group: str) -> int:
    """0 or 1, by a hash of the group."""
    return hashlib.blake2b(group.encode(), digest_size=1).digest()[0] & 1
