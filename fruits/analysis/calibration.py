"""From scores to answers with a meaning: calibrated confidences, and sets of labels with a guarantee.

Both are taken from photos that the classifier was not fitted on, and hold for photos like these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fruits.analysis.quality import Quality

FEWEST_OF_LABEL = 19
"""Photos of a label from which on a set at an error of 5 % has a threshold of its own: a quantile of fewer is 1."""

_TEMPERATURES = (1e-3, 1e3)
_HALVINGS = 50  # from 14 to 1e-14, in the logarithm
_BINS = 15

Scores = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """How scores become confidences and sets of labels.

    Attributes:
        temperature: Divisor of the scores.
        error: Share of photos whose set may lack the right label, 0 to 1.
        thresholds: Shape ``(c,)``: a label with at least this confidence is in the set.
        n: Photos that this was taken from; 0: none, so the confidences are the classifier's own.
    """

    temperature: float
    error: float
    thresholds: NDArray[np.float64]
    n: int

    def probabilities(self, scores: Scores) -> NDArray[np.float64]:
        """Confidences, shape ``(n, c)``; each row sums to 1."""
        return softmax(scores / self.temperature)

    def sets(self, scores: Scores) -> NDArray[np.bool_]:
        """Which labels are in the set of each row, shape ``(n, c)``; a row may have one, several or none."""
        sets: NDArray[np.bool_] = self.probabilities(scores) >= self.thresholds
        return sets


def calibrate(scores: Scores, truth: Indices, *, error: float = 0.05) -> Calibration:
    """Temperature and thresholds from held-out photos.

    Temperature scaling: Guo et al. (2017). Sets: split conformal prediction by the confidence of the right label
    (Sadinle, Lei & Wasserman 2019). A label with at least ``FEWEST_OF_LABEL`` photos has a threshold of its own (Vovk
    2012, class-conditional); the others share one.

    The quantile is all of the method, so no library is worth its weight here: those there are wrap estimators.

    Args:
        scores: Shape ``(n, c)``, n may be 0: the sets then have every label.
        truth: The right labels' numbers, shape ``(n,)``.
        error: Share of photos whose set may lack the right label, 0 to 1.
    """
    labels = scores.shape[1]
    if not len(truth):
        return Calibration(1.0, error, np.zeros(labels), 0)
    temperature = temperature_of(scores, truth)
    right = softmax(scores / temperature)[np.arange(len(truth)), truth]
    thresholds = np.full(labels, conformal_threshold(right, error))
    for label in np.flatnonzero(np.bincount(truth, minlength=labels) >= FEWEST_OF_LABEL):
        thresholds[label] = conformal_threshold(right[truth == label], error)
    return Calibration(temperature, error, thresholds, len(truth))


def temperature_of(scores: Scores, truth: Indices) -> float:
    """The divisor of the scores that makes the right labels likeliest; ``truth`` has at least one row.

    The surprise is convex in the divisor's inverse, so bisection finds where its slope is zero: where the scores that
    the confidences expect are those of the right labels. (Without scipy, which `fruits verify` has not.)
    """
    beyond = scores - scores[np.arange(len(truth)), truth][:, np.newaxis]
    low, high = np.log(_TEMPERATURES)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_too_sharp = float((softmax(scores * np.exp(-middle)) * beyond).sum()) > 0
        low, high = (middle, high) if is_too_sharp else (low, middle)
    return float(np.exp((low + high) / 2))


def conformal_threshold(right: NDArray[np.floating[Any]], error: float) -> float:
    """The confidence that the right label of a new photo reaches with probability ``1 - error``, at the least.

    ``right`` are the confidences of the right labels of photos like the new one; 0 where they are too few to tell.
    """
    rank = int(np.floor(error * (len(right) + 1)))  # of n + 1 equally likely places, so many may be missed
    return float(np.sort(right)[rank - 1]) if rank else 0.0


def quality_of(calibration: Calibration, scores: Scores, truth: Indices) -> Quality | None:
    """What held-out photos tell, see ``Quality``; None without photos."""
    if not len(truth):
        return None
    probabilities, rows = calibration.probabilities(scores), np.arange(len(truth))
    best, sets = probabilities.argmax(axis=1), calibration.sets(scores)
    return Quality(
        n=len(truth),
        accuracy=float(np.mean(best == truth)),
        calibration_error=expected_calibration_error(probabilities[rows, best], best == truth),
        coverage=float(sets[rows, truth].mean()),
        labels_of_set=float(sets.sum(axis=1).mean()),
    )


def expected_calibration_error(confidence: NDArray[np.floating[Any]], right: Sequence[bool] | NDArray[Any]) -> float:
    """Mean distance between confidence and accuracy, over 15 bins of equal width (Guo et al. 2017, equation 3)."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=confidence - np.asarray(right, dtype=float), minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def softmax(scores: Scores) -> NDArray[np.float64]:
    """Probabilities of scores, shape ``(n, c)``; each row sums to 1."""
    return np.exp(log_softmax(scores))


def log_softmax(scores: Scores) -> NDArray[np.float64]:
    """Logarithms of ``softmax``."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
