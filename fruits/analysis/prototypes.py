"""A few prototypes of each label, which stand for its photos where these can't be searched: on a phone.

They are made in whitened space, where the nearest photo tells known things from unknown ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fruits.analysis.calibration import conformal_threshold
from fruits.analysis.quality import CalibratedOn
from fruits.errors import FruitsError

FEWEST_HELD_OUT = 200
"""Held-out photos from which on they alone give the threshold; with fewer, photos of the fit split do so as well."""

LOST = 0.1
"""Share of known photos that the threshold takes for unknown ones."""

_FOLDS = 10
_MOST_ROUNDS = 50

Directions = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Photos:
    """Photos of ``n`` keys in their order, those of the fit split before the others.

    Attributes:
        directions: Whitened embeddings of length 1, shape ``(n, k)``.
        labels: Shape ``(n,)``.
        held_out: Whether a photo is not in the fit split, shape ``(n,)``.
    """

    directions: Directions
    labels: NDArray[np.str_]
    held_out: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_]) -> "Photos":
        """Some of the photos."""
        return Photos(self.directions[chosen], self.labels[chosen], self.held_out[chosen])


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Prototypes of ``c`` labels, ``m`` of each, and the similarity from which on a photo shows something known.

    Attributes:
        directions: Shape ``(c, m, k)``, float32, of length 1. A label with fewer photos than ``m`` has one of them
            several times.
        threshold: A photo whose cosine with every prototype is below it shows something unknown; -1 with too few photos
            to tell.
        calibrated_on: Which photos the threshold was taken from.
        n: How many photos these were.
    """

    directions: Directions
    threshold: float
    calibrated_on: CalibratedOn
    n: int


def fit_prototypes(labels: Sequence[str], photos: Photos, count: int) -> Prototypes:
    """Prototypes of all photos, and a threshold that keeps all but ``LOST`` of the known photos.

    The threshold is a quantile of similarities with prototypes that were made without the photo: without its tenth of
    the photos. With at least ``FEWEST_HELD_OUT`` held-out photos, only theirs count.

    Args:
        labels: The ``c`` labels. Photos of other labels take no part.
        photos: The photos.
        count: Prototypes of each label, ``m``, at least 1.

    Raises:
        FruitsError: when a label has no photo.
    """
    photos = photos.where(np.isin(photos.labels, labels))
    if missing := sorted({*labels} - {*photos.labels.tolist()}):
        raise FruitsError(f"label {missing[0]!r}: expected a published photo; `fruits verify` says what is missing")
    similarities, held_out = _cross_fitted(photos, count)
    calibrated_on: CalibratedOn = "cross-fitted photos" if len(similarities) else "nothing"
    if held_out.sum() >= FEWEST_HELD_OUT:
        similarities, calibrated_on = similarities[held_out], "held-out photos"
    if math.floor(LOST * (len(similarities) + 1)) == 0:  # too few for a quantile
        return Prototypes(_of_labels(labels, photos, count), -1.0, "nothing", len(similarities))
    threshold = conformal_threshold(similarities, LOST)
    return Prototypes(_of_labels(labels, photos, count), threshold, calibrated_on, len(similarities))


def similarity(prototypes: Directions, directions: Directions) -> Directions:
    """The greatest cosine with a prototype of each label, shape ``(n, c)``, for directions of shape ``(n, k)``."""
    labels, count, k = prototypes.shape
    cosines = directions @ prototypes.reshape(-1, k).T
    greatest: Directions = cosines.reshape(len(directions), labels, count).max(axis=2)
    return greatest


def spherical_means(directions: Directions, count: int) -> Directions:
    """``count`` directions, shape ``(count, k)``, that are near to all of some directions ``(n, k)``, at least one.

    Spherical k-means (Dhillon & Modha 2001) from ``representatives``, so without any random number. With ``count`` rows
    or fewer, these are the rows, the last one several times.
    """
    chosen = representatives(directions, count)
    means = directions[chosen + chosen[-1:] * (count - len(chosen))]
    if len(directions) <= count:
        return means
    nearest = np.full(len(directions), -1)
    for _ in range(_MOST_ROUNDS):
        before, nearest = nearest, (directions @ means.T).argmax(axis=1)
        if np.array_equal(before, nearest):
            break
        for place in np.unique(nearest):
            total = directions[nearest == place].sum(axis=0, dtype=np.float64)
            means[place] = total / max(float(np.linalg.norm(total)), np.finfo(np.float32).tiny)
    return means


def representatives(directions: Directions, count: int) -> list[int]:
    """Up to ``count`` rows that are together nearest to all rows, the one that helps most first.

    Facility location: the sum over all rows of the greatest cosine with a chosen row, at its greatest. Greedy choice
    comes within 1 - 1/e of the best one (Nemhauser, Wolsey & Fisher 1978). Of equal rows the first one is taken.

    Args:
        directions: Shape ``(n, k)``, at least one row.
        count: At least 1.
    """
    cosines = directions @ directions.T
    nearest = np.full(len(directions), -1.0, np.float32)
    chosen: list[int] = []
    while len(chosen) < min(count, len(directions)):
        gains = np.maximum(cosines - nearest, 0).sum(axis=1, dtype=np.float64)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        nearest = np.maximum(nearest, cosines[chosen[-1]])
    return chosen


def _of_labels(labels: Sequence[str], photos: Photos, count: int) -> Directions:
    return np.stack([spherical_means(photos.directions[photos.labels == label], count) for label in labels])


def _cross_fitted(photos: Photos, count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """For each tenth of the photos, how near they are to prototypes of the others; and whether they are held out."""
    folds = _folds(photos)
    similarities, held_out = [np.empty(0, np.float32)], [np.empty(0, bool)]
    for fold in range(_FOLDS):
        others = photos.where(folds != fold)
        labels = np.unique(others.labels).tolist()
        left_out = photos.where((folds == fold) & np.isin(photos.labels, labels))
        if len(left_out.labels):
            similarities.append(similarity(_of_labels(labels, others, count), left_out.directions).max(axis=1))
            held_out.append(left_out.held_out)
    return np.concatenate(similarities), np.concatenate(held_out)


def _folds(photos: Photos) -> NDArray[np.int64]:
    """The fold of each photo, shape ``(n,)``: of each label and split, every tenth photo.

    So the other shots of a photo's series are there, as they are when `identify` compares published photos.
    """
    folds = np.empty(len(photos.labels), dtype=np.int64)
    for label in np.unique(photos.labels):
        for held_out in (False, True):
            rows = np.flatnonzero((photos.labels == label) & (photos.held_out == held_out))
            folds[rows] = np.arange(len(rows)) % _FOLDS
    return folds
