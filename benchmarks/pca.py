"""Our PCA against scikit-learn's on the same rows, and what moments, merging, subtracting and fitting cost.

Rows are made up (low rank, noise, a mean away from zero), or read from a `.npy` file of shape (n, d). The incremental
fit has seen them in ten parts, plus rows that were removed again. The command fails when a subspace or a variance ratio
differs from scikit-learn's by more than 1e-6. Needs the jobs environment.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fruits.analysis.moments import Moments, from_bytes, merge, merge_all, moments_of, subtract, to_bytes
from fruits.analysis.pca import PCA, fit, subspace_angle, transform

LARGEST_DIFFERENCE = 1e-6
"""Of subspaces in radians, and of explained variance ratios."""

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, measure and print; 1 when a difference is too large."""
    args = parse_args(argv)
    rows = np.load(args.features) if args.features else made_up_rows(args.rows, args.width, args.seed)
    print(f"{len(rows):,} x {rows.shape[1]:,} {rows.dtype}, {args.components} components")
    angle, ratio = compare(rows, args.components, args.seed)
    print_costs(rows, args.components)
    return 0 if max(angle, ratio) < LARGEST_DIFFERENCE else 1


def compare(rows: NDArray[np.float32], components: int, seed: int) -> tuple[float, float]:
    """Print and return the largest subspace angle, in radians, and the largest difference of a variance ratio."""
    from sklearn import decomposition

    theirs = timed(
        "scikit-learn, full SVD", lambda: decomposition.PCA(components, svd_solver="full").fit(as_double(rows))
    )
    fits = {"full": fit(moments_of(rows), components), "incremental": fit(incremental(rows, seed), components)}
    angles = {name: subspace_angle(pca.components, theirs.components_) for name, pca in fits.items()}
    ratios = {name: ratio_difference(pca, theirs.explained_variance_ratio_) for name, pca in fits.items()}
    for name in fits:
        print(f"{name:<28} largest subspace angle {angles[name]:.1e} rad, largest ratio difference {ratios[name]:.1e}")
    return max(angles.values()), max(ratios.values())


def incremental(rows: NDArray[np.float32], seed: int) -> Moments:
    """The moments of ``rows`` after ten additions and, in between, as many rows again that came and went."""
    passing = np.random.default_rng(seed + 1).permutation(rows)[:, ::-1]
    moments = Moments.empty(rows.shape[1])
    for part, guest in zip(np.array_split(rows, 10), np.array_split(passing, 10), strict=True):
        guests = moments_of(guest)
        moments = subtract(merge(merge(moments, guests), moments_of(part)), guests)
    return moments


def ratio_difference(pca: PCA, theirs: NDArray[np.float64]) -> float:
    """Largest absolute difference of the explained variance ratios."""
    return float(np.abs(pca.explained_variance_ratio - theirs).max())


def print_costs(rows: NDArray[np.float32], components: int) -> None:
    """Print the seconds of each step on its own."""
    moments = timed("moments", lambda: moments_of(rows))
    part = moments_of(rows[:64])
    timed("moments of 64 rows", lambda: moments_of(rows[:64]))
    timed("merge", lambda: merge(moments, part))
    timed("merge_all of 100", lambda: merge_all(part for _ in range(100)))
    timed("subtract", lambda: subtract(moments, part))
    timed("to and from bytes", lambda: from_bytes(to_bytes(moments)))
    pca = timed("fit (eigh)", lambda: fit(moments, components))
    timed("transform", lambda: transform(pca, rows))
    timed("transform 1 row", lambda: transform(pca, rows[:1]))


def timed(name: str, step: Callable[[], T]) -> T:
    """What ``step`` returns; its wall-clock seconds are printed."""
    start = time.perf_counter()
    result = step()
    print(f"{name:<28} {time.perf_counter() - start:8.3f} s")
    return result


def made_up_rows(n: int, d: int, seed: int) -> NDArray[np.float32]:
    """Low rank and noise, as float32 of shape ``(n, d)``."""
    rng = np.random.default_rng(seed)
    rank = max(1, d // 4)
    scores = rng.normal(size=(n, rank)) * np.geomspace(10, 0.1, rank)
    basis = np.linalg.qr(rng.normal(size=(d, rank)))[0].T
    return np.asarray(scores @ basis + rng.normal(size=(n, d)) * 0.02 + rng.random(d), dtype=np.float32)


def as_double(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """The rows as float64: scikit-learn would otherwise decompose them in float32."""
    return rows.astype(np.float64)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="made-up rows (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1_280, help="features of a made-up row (default: %(default)s)")
    parser.add_argument("--components", type=int, default=50, help="components of the PCA (default: %(default)s)")
    parser.add_argument("--features", type=Path, help="a .npy file of feature rows, shape (n, d), instead")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up rows (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
