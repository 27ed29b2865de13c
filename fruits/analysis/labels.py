"""Sums of feature vectors by label to 106 bits, which merge and subtract without the rows.

A sum is two float64 vectors: ``total``, and ``rest``, the digits that rounding took from ``total``, together 106 bits.
Features are float32 with 24 bits. So the sum of a few thousand features whose sizes lie within 2^70 of each other is
exact, and a label that lost all its rows but a few has the sum of just these rows. Where sizes differ more, the digits
beyond 106 bits are rounded. So no bound on errors is needed, unlike for ``Moments``.

With the moments of the same rows they are all that a linear discriminant needs: the scatter within the labels is
``scatter - sum of n (label's mean - mean)(label's mean - mean)^T``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fruits.analysis.moments import Vector


@dataclass(frozen=True, eq=False)
class LabelSum:
    """Count and sum of the rows of one label.

    Attributes:
        n: Number of rows, at least 1.
        total: Shape ``(d,)``, float64: the sum of the rows, rounded.
        rest: Shape ``(d,)``, float64: the sum less ``total``.
    """

    n: int
    total: Vector
    rest: Vector

    @property
    def mean(self) -> Vector:
        """Mean of the rows, shape ``(d,)``, float64, right to the last bit but one."""
        return self.total / self.n


LabelSums = Mapping[str, LabelSum]
"""Sums by label; a label without rows is not there."""


def sums_of(rows: NDArray[np.floating[Any]], labels: Sequence[str]) -> dict[str, LabelSum]:
    """The sums of ``rows``, shape ``(n, d)``, finite, any float dtype, by their ``n`` labels."""
    totals: dict[str, tuple[int, Vector, Vector]] = {}
    for label, row in zip(labels, rows.astype(np.float64), strict=True):
        n, total, rest = totals.get(label) or (0, np.zeros_like(row), np.zeros_like(row))
        total, error = _two_sum(total, row)
        rest += error
        totals[label] = (n + 1, total, rest)
    return {label: _normal(*parts) for label, parts in totals.items()}


def merge_sums(parts: Iterable[LabelSums]) -> dict[str, LabelSum]:
    """The sums of disjoint samples together."""
    merged: dict[str, LabelSum] = {}
    for part in parts:
        for label, one in part.items():
            merged[label] = _added(merged[label], one, sign=1) if label in merged else one
    return merged


def subtract_sums(a: LabelSums, b: LabelSums) -> dict[str, LabelSum]:
    """The sums of sample ``a`` without its sub-sample ``b``; a label that loses all its rows is left out.

    Raises:
        ValueError: when ``b`` has more rows of a label than ``a``.
    """
    left = dict(a)
    for label, gone in b.items():
        known = left[label].n if label in left else 0
        if gone.n > known:
            raise ValueError(f"cannot remove {gone.n:,} rows of label {label!r} from {known:,}: expected a sub-sample")
        if gone.n == known:
            del left[label]
        else:
            left[label] = _added(left[label], gone, sign=-1)
    return left


def sum_to_bytes(one: LabelSum) -> bytes:
    """All of a sum as little-endian float64: n, total, rest."""
    return np.concatenate([[one.n], one.total, one.rest]).astype("<f8").tobytes()


def sum_from_bytes(data: bytes) -> LabelSum:
    """The sum in the bytes of ``sum_to_bytes``, bit for bit."""
    numbers = np.frombuffer(data, dtype="<f8").astype(np.float64)
    total, rest = np.split(numbers[1:], 2)
    return LabelSum(int(numbers[0]), total, rest)


def _added(a: LabelSum, b: LabelSum, sign: int) -> LabelSum:
    total, error = _two_sum(a.total, sign * b.total)
    return _normal(a.n + sign * b.n, total, error + (a.rest + sign * b.rest))


def _normal(n: int, total: Vector, rest: Vector) -> LabelSum:
    """The same sum with ``total`` as near to it as float64 can be."""
    return LabelSum(n, *_two_sum(total, rest))


def _two_sum(a: Vector, b: Vector) -> tuple[Vector, Vector]:
    """``a + b`` rounded, and the exact error of that (Knuth, The Art of Computer Programming, volume 2, 4.2.2)."""
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)
