"""Kinds that the lake has never seen, at a small size: each label in turn is left out, and asked."""

import numpy as np
import pytest

from benchmarks.classify import Photos, of_unseen_kinds

pytestmark = pytest.mark.jobs

LABELS, WIDTH, FITTED, HELD_OUT = 8, 24, 40, 12


def photos(count: int, *, apart: float, seed: int) -> Photos:
    """So many photos of each label, whose features lie around a mean of their label."""
    means = np.random.default_rng(0).normal(size=(LABELS, WIDTH)) * apart
    labels = np.repeat(np.arange(LABELS), count)
    vectors = means[labels] + np.random.default_rng(seed).normal(size=(len(labels), WIDTH))
    return Photos(vectors.astype(np.float32), np.array([f"label {label}" for label in labels]))


@pytest.mark.parametrize(("apart", "told"), [(6.0, True), (0.0, False)])
def test_a_kind_that_was_left_out_is_told_from_the_others_where_kinds_differ(*, apart: float, told: bool) -> None:
    found = list(of_unseen_kinds(photos(FITTED, apart=apart, seed=1), photos(HELD_OUT, apart=apart, seed=2)))
    auroc, taken, right_and_kept = (figure["value"] for figure in found)
    assert (auroc > 0.98) == told
    assert (taken < 0.05) == told
    assert (right_and_kept > 0.8) == told
