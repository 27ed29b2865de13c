"""Sums by label are exact, whatever was added and taken away before."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fruits.analysis.labels import merge_sums, subtract_sums, sum_from_bytes, sum_to_bytes, sums_of
from fruits.analysis.moments import moments_of

D = 4


def photos(seed, n, kind="ordinary"):
    """Features, shape ``(n, D)``, float32, and labels."""
    rng = np.random.default_rng(seed)
    rows = np.abs(rng.normal(size=(n, D))).astype(np.float32)
    if kind == "many magnitudes":
        rows *= np.float32(10.0) ** rng.integers(-12, 12, size=(n, D)).astype(np.float32)
    return rows, [f"label {number}" for number in rng.integers(0, 5, size=n)]


def assert_exact(sums, rows, labels):
    """The sums are those of the rows in rational arithmetic; labels without a row are not there."""
    assert {label: one.n for label, one in sums.items()} == Counter(labels)
    for label, one in sums.items():
        own = [row for row, other in zip(rows.tolist(), labels, strict=True) if other == label]
        exact = [sum(map(Fraction, column), Fraction()) for column in zip(*own, strict=True)]
        found = [Fraction(total) + Fraction(rest) for total, rest in zip(one.total, one.rest, strict=True)]
        for value, expected in zip(found, exact, strict=True):
            assert abs(value - expected) <= abs(expected) * Fraction(1, 10**20)
        np.testing.assert_allclose(one.mean, [float(value / one.n) for value in exact], rtol=3e-16)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    kind=st.sampled_from(["ordinary", "many magnitudes"]),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    gone=st.integers(0, 60),
)
@settings(max_examples=60, deadline=None)
def test_many_small_runs_leave_the_sums_of_one_run_over_the_rows_that_are_left(seed, n, kind, cuts, gone):
    rows, labels = photos(seed, n, kind)
    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = [sums_of(rows[a:b], labels[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    everything = merge_sums(parts)
    assert_exact(everything, rows, labels)
    gone = min(gone, n)
    left = subtract_sums(everything, sums_of(rows[:gone], labels[:gone]))
    assert_exact(left, rows[gone:], labels[gone:])


def test_a_label_that_loses_all_but_one_of_many_rows_has_the_sum_of_that_row():
    rows = np.full((5_001, D), 1e9, np.float32)
    rows[-1] = 1e-9
    left = subtract_sums(sums_of(rows, ["a"] * 5_001), sums_of(rows[:-1], ["a"] * 5_000))
    assert left["a"].mean.tolist() == [float(np.float32(1e-9))] * D


def test_more_rows_than_there_are_cannot_be_removed():
    sums = sums_of(*photos(1, 3))
    with pytest.raises(ValueError, match="cannot remove 1 rows of label 'kiwi' from 0: expected a sub-sample"):
        subtract_sums(sums, sums_of(np.ones((1, D)), ["kiwi"]))


def test_a_sum_comes_back_from_its_bytes_to_the_last_bit():
    (one,) = sums_of(photos(2, 9, "many magnitudes")[0], ["a"] * 9).values()
    again = sum_from_bytes(sum_to_bytes(one))
    assert (again.n, again.total.tobytes(), again.rest.tobytes()) == (one.n, one.total.tobytes(), one.rest.tobytes())


def test_with_the_moments_they_give_the_scatter_within_the_labels():
    """What a linear discriminant is fitted from, without a pass over the rows."""
    rows, labels = photos(3, 200)
    moments, sums = moments_of(rows), sums_of(rows, labels)
    between = sum(one.n * np.outer(one.mean - moments.mean, one.mean - moments.mean) for one in sums.values())
    within = sum(moments_of(rows[np.array(labels) == label]).scatter for label in sums)
    np.testing.assert_allclose(moments.scatter - between, within, rtol=1e-9, atol=1e-9)
