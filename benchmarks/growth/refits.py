"""How often photos of a rare kind refit the PCA, and how much of the moments comes to the driver.

Synthetic features on one core, a few seconds: 100 photos of a second kind in each of 40 increments, beside 20,000 of
the first. `make bench-growth ARGS=refits` prints the figures.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, figure
from fruits.analysis.moments import Moments, merge, moments_of, to_bytes
from fruits.analysis.pca import FittedSummary, fit, refit_gain, refit_reason, transform, unexplained_share
from fruits.settings import Settings
from fruits.spark.statistics import FAN_IN, tree

INCREMENTS, NEW, FIRST, WIDTH = 40, 100, 20_000, 64
MOST_REFITS = 4
TASKS = 10_000
FEATURES = 1_280
RESULT_LIMIT_MB = 1_024  # spark.driver.maxResultSize

Draw = Callable[[int], NDArray[np.float64]]


def figures() -> list[Figure]:
    """The figures of refits."""
    refits = {n_components: count_refits(n_components) for n_components in (12, 0.9)}
    parts = [TASKS, *tree(TASKS)][-1]
    megabytes = parts * len(to_bytes(Moments.empty(FEATURES))) / 2**20
    return [
        *(
            figure(
                f"refits in {INCREMENTS} increments of a rare kind, {n_components:g} components",
                count,
                most=MOST_REFITS,
            )
            for n_components, count in refits.items()
        ),
        figure(f"moments that come to the driver from {TASKS:,} tasks", megabytes, "MB", most=RESULT_LIMIT_MB / 10),
        figure(f"partial results that come to the driver from {TASKS:,} tasks", parts, most=FAN_IN),
    ]


def count_refits(n_components: float) -> int:
    """How many of the increments refit, by the default settings."""
    settings = Settings.model_fields
    limits = {name: settings[f"refit_{name}"].default for name in ("drift", "drift_rows", "growth", "gain")}
    rng = np.random.default_rng(3)
    usual, rare = camera(rng), camera(rng)
    moments = moments_of(usual(FIRST))
    pca, held_out = fit(moments, n_components), usual(FIRST // 4)
    expected = unexplained_share(*transform(pca, held_out))
    refits = 0
    for _ in range(INCREMENTS):
        new, held_out = rare(NEW), np.concatenate([held_out, rare(NEW // 4)])
        moments = merge(moments, moments_of(new))
        reason = refit_reason(
            "auto",
            FittedSummary(pca.n, ""),
            asked="",
            n_now=moments.n,
            n_new=NEW,
            drift=unexplained_share(*transform(pca, new)) - expected,
            max_drift=limits["drift"],
            min_drift_rows=limits["drift_rows"],
            growth=limits["growth"],
            gain=refit_gain(pca, moments, n_components),
            min_gain=limits["gain"],
        )
        if reason:
            refits += 1
            pca = fit(moments, n_components)
            expected = unexplained_share(*transform(pca, held_out))
    return refits


def camera(rng: np.random.Generator) -> Draw:
    """Photos of one kind: their own centre, axes and falling variances."""
    axes = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] * np.geomspace(1, 0.02, WIDTH)[:, np.newaxis]
    centre = 0.3 * rng.normal(size=WIDTH)
    return lambda n: centre + rng.normal(size=(n, WIDTH)) @ axes
