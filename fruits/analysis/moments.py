"""Exact sufficient statistics of a sample: count, mean and scatter, which merge and subtract without the rows.

The cost of a merge or a subtraction depends on the changed rows only, so a PCA refit never reads rows a second time.
The price is rounding: each operation adds a small error, and after a large subtraction the error is large in relation
to the rest. So the statistics carry bounds on their own rounding error (running error analysis: Higham, Accuracy and
Stability of Numerical Algorithms, 2002, section 3.3), and ``should_recompute`` says when the bounds are too large and
the statistics must be computed from the rows again.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

ACCURACY = 1e-10
"""Largest relative error of statistics in use; any two histories of a sample then agree to 1e-9 with a margin."""

_UNIT_ROUNDOFF = float(np.finfo(np.float64).eps) / 2
_BLOCK_ROWS = 4096  # bounds the float64 copy of the rows (42 MB at 1,280 features) and the length of each summation


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and scatter of ``n`` rows of ``d`` features, with bounds on their rounding errors.

    Attributes:
        n: Number of rows.
        mean: Shape ``(d,)``, float64; zeros when ``n`` is 0.
        scatter: Shape ``(d, d)``, float64, exactly symmetric: the sum over rows of ``(x - mean)(x - mean)^T``.
        mean_error: Bound on the Euclidean norm of the mean's error, in the features' units.
        scatter_error: Bound on the Frobenius norm of the scatter's error, in the features' units squared.
    """

    n: int
    mean: Vector
    scatter: Matrix
    mean_error: float
    scatter_error: float

    @classmethod
    def empty(cls, d: int) -> Self:
        """The moments of no rows of ``d`` features, the neutral element of merging."""
        return cls(n=0, mean=np.zeros(d), scatter=np.zeros((d, d)), mean_error=0.0, scatter_error=0.0)

    @property
    def d(self) -> int:
        """Number of features."""
        return len(self.mean)


def moments_of(rows: NDArray[np.floating[Any]]) -> Moments:
    """The moments of ``rows``, shape ``(n, d)``, any float dtype; ``n`` may be 0.

    Two passes in float64 over blocks of rows, which are then merged.

    Raises:
        ValueError: when ``rows`` is not two-dimensional, or a row holds NaN or infinity (which no subtraction removes).
    """
    if rows.ndim != 2:  # noqa: PLR2004
        raise ValueError(f"expected rows of shape (n, d), got an array of shape {rows.shape}")
    if len(rows) == 0:
        return Moments.empty(rows.shape[1])
    starts = range(0, len(rows), _BLOCK_ROWS)
    return merge_all(_block_moments(rows[start : start + _BLOCK_ROWS], first_row=start) for start in starts)


def merge(a: Moments, b: Moments) -> Moments:
    """Combine the moments of two disjoint samples.

    Exact up to rounding, so the order of merging does not matter to 1e-9 relative. Chan, Golub & LeVeque (1979),
    pairwise update.

    Raises:
        ValueError: when the numbers of features differ.
    """
    _check_same_features(a, b)
    if a.n == 0:
        return b
    return a if b.n == 0 else _combine(a, b, sign=1)


def subtract(a: Moments, b: Moments) -> Moments:
    """The moments of sample ``a`` without its sub-sample ``b``: the pairwise update, solved for the remaining rows.

    Digits cancel when few rows remain: check ``should_recompute`` before you keep the result.

    Raises:
        ValueError: when the numbers of features differ, or ``b`` has more rows than ``a``.
    """
    _check_same_features(a, b)
    if b.n > a.n:
        raise ValueError(f"cannot remove {b.n:,} rows from a sample of {a.n:,}: expected a sub-sample")
    if b.n == 0:
        return a
    return Moments.empty(a.d) if b.n == a.n else _combine(a, b, sign=-1)


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Merge the moments of disjoint samples as a balanced tree, which rounds less than a sequence of merges.

    The tree depends on the given order alone. At most ``log2(parts)`` partial results are held at once.

    Raises:
        ValueError: when there are no parts, or their numbers of features differ.
    """
    pending: list[tuple[int, Moments]] = []  # (height of its tree, moments), heights falling: a binary counter
    for part in parts:
        height, merged = 0, part
        while pending and pending[-1][0] == height:
            merged = merge(pending.pop()[1], merged)
            height += 1
        pending.append((height, merged))
    if not pending:
        raise ValueError("expected the moments of at least one sample; Moments.empty(d) stands for no rows")
    merged = pending.pop()[1]
    while pending:
        merged = merge(pending.pop()[1], merged)
    return merged


def should_recompute(moments: Moments) -> bool:
    """Whether ``moments`` may be off by more than ``ACCURACY``, and must be computed from their rows again.

    The scatter's error is relative to its own Frobenius norm, the mean's to the rows' root mean square norm (a mean
    near zero has no digits of its own). A rule on row counts is not enough: the removal of one outlier cancels more
    digits than that of a thousand neighbours, and many small removals never look large. The bounds reflect the whole
    history, so they must be stored with the statistics.
    """
    variance = max(float(np.trace(moments.scatter)), 0.0) / max(moments.n, 1)
    row_norm = math.sqrt(float(moments.mean @ moments.mean) + variance)
    scatter_norm = float(np.linalg.norm(moments.scatter))
    kept = moments.mean_error <= ACCURACY * row_norm and moments.scatter_error <= ACCURACY * scatter_norm
    return not kept


def packed_scatter(moments: Moments) -> Vector:
    """The scatter's upper triangle, row by row: shape ``(d(d+1)/2,)``, little-endian float64."""
    return np.concatenate([row[number:] for number, row in enumerate(moments.scatter)]).astype("<f8")


def unpacked_scatter(packed: Vector) -> Matrix:
    """The symmetric matrix, shape ``(d, d)``, of an upper triangle from ``packed_scatter``.

    Raises:
        ValueError: when the length is not ``d(d+1)/2`` for any ``d``.
    """
    d = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    if d * (d + 1) // 2 != len(packed):
        raise ValueError(f"expected the d(d+1)/2 numbers of an upper triangle, got {len(packed):,}")
    scatter = np.empty((d, d))
    end = 0
    for row in range(d):
        start, end = end, end + d - row
        scatter[row, row:] = scatter[row:, row] = packed[start:end]
    return scatter


def to_bytes(moments: Moments) -> bytes:
    """All of ``moments`` as little-endian float64: n, d, both bounds, the mean, the packed scatter."""
    head = [moments.n, moments.d, moments.mean_error, moments.scatter_error]
    return np.concatenate([head, moments.mean, packed_scatter(moments)]).astype("<f8").tobytes()


def from_bytes(data: bytes) -> Moments:
    """The moments in the bytes of ``to_bytes``, bit for bit."""
    numbers = np.frombuffer(data, dtype="<f8").astype(np.float64)
    n, d = int(numbers[0]), int(numbers[1])
    mean, packed = np.split(numbers[4:], [d])
    return Moments(n, mean, unpacked_scatter(packed), mean_error=float(numbers[2]), scatter_error=float(numbers[3]))


def _combine(a: Moments, b: Moments, sign: int) -> Moments:
    """``a`` with ``b`` (sign 1) or without ``b`` (sign -1): an update in which each row of ``b`` counts ``sign``."""
    n = a.n + sign * b.n
    difference = b.mean - a.mean
    shift = difference * (sign * b.n / n)
    mean = a.mean + shift
    weight = a.n * b.n / n
    scaled = math.sqrt(weight) * difference  # in both factors, so that the product is symmetric to the last bit
    scatter = np.outer(scaled, scaled)
    scatter += b.scatter
    (np.add if sign > 0 else np.subtract)(a.scatter, scatter, out=scatter)

    distance = float(np.linalg.norm(difference))
    distance_error = a.mean_error + b.mean_error + _UNIT_ROUNDOFF * distance
    passed_on = a.scatter_error + b.scatter_error + weight * distance_error * (2 * distance + distance_error)
    # A scatter's trace is at least its Frobenius norm; 8 counts the roundings in the terms and in their sum.
    summed = float(np.trace(a.scatter) + np.trace(b.scatter) + scaled @ scaled)
    return Moments(
        n=n,
        mean=mean,
        scatter=scatter,
        mean_error=(a.n * a.mean_error + b.n * b.mean_error) / n + _sum_error(mean, shift),
        scatter_error=passed_on + 8 * _UNIT_ROUNDOFF * summed,
    )


def _block_moments(rows: NDArray[np.floating[Any]], first_row: int) -> Moments:
    """Two-pass moments of at least one row, with the a priori bounds of both sums."""
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"row {first_row + int(np.argmin(finite)):,} holds NaN or infinity; expected finite features")
    # Subtract the first row first: a constant feature then has a scatter of exactly 0, and a huge mean costs no digits.
    origin = rows[0].astype(np.float64)
    deviations = rows.astype(np.float64) - origin
    n = len(rows)
    shift = deviations.mean(axis=0)
    spread_before = float(np.linalg.norm(deviations))
    deviations -= shift
    mean = origin + shift
    scatter = deviations.T @ deviations  # numpy calls BLAS syrk, which fills both triangles with the same numbers
    # A sum of n terms is off by at most n roundings of the terms' norm.
    shift_error = _UNIT_ROUNDOFF * math.sqrt(n) * spread_before
    trace = float(np.trace(scatter))
    deviation_error = 2 * _UNIT_ROUNDOFF * spread_before
    return Moments(
        n=n,
        mean=mean,
        scatter=scatter,
        mean_error=shift_error + _sum_error(mean, shift),
        scatter_error=n * _UNIT_ROUNDOFF * trace + 2 * deviation_error * math.sqrt(trace) + n * shift_error**2,
    )


def _sum_error(total: Vector, term: Vector) -> float:
    """Bound on the rounding of ``total = x + term``. It never exceeds the term, so adding 0 is exact."""
    size = float(np.linalg.norm(term))
    return min(_UNIT_ROUNDOFF * float(np.linalg.norm(total)), size) + 2 * _UNIT_ROUNDOFF * size


def _check_same_features(a: Moments, b: Moments) -> None:
    if a.d != b.d:
        raise ValueError(f"expected moments of the same features, got {a.d:,} and {b.d:,} features")
