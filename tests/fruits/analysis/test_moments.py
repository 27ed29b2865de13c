from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fruits.analysis.moments import (
    ACCURACY,
    Moments,
    from_bytes,
    merge,
    merge_all,
    moments_of,
    packed_scatter,
    should_recompute,
    subtract,
    to_bytes,
    unpacked_scatter,
)

PROMISE = 1e-9


def exact(rows):
    """Mean and scatter in rational arithmetic: no rounding before the last step, and none of the code under test.

    A float is an integer over a power of two, and sums of integers cost a tenth of sums of fractions.
    """
    ratios = [[float(value).as_integer_ratio() for value in row] for row in rows]
    scale = max(denominator for row in ratios for _, denominator in row)
    table = np.array([[top * (scale // bottom) for top, bottom in row] for row in ratios], dtype=object)
    n, total = len(rows), table.sum(axis=0)
    scatter = n * (table.T @ table) - np.outer(total, total)
    return fractions(total, n * scale), fractions(scatter, n * scale**2)


def fractions(table, denominator):
    return np.vectorize(lambda numerator: Fraction(numerator, denominator), otypes=[object])(table)


def errors(moments, rows):
    """Relative errors of the mean (against the rows' root mean square norm) and of the scatter (Frobenius norm)."""
    mean, scatter = exact(rows)
    mean_error = np.linalg.norm(np.array(np.vectorize(Fraction)(moments.mean) - mean, dtype=float))
    scatter_error = np.linalg.norm(np.array(np.vectorize(Fraction)(moments.scatter) - scatter, dtype=float))
    row_norm = np.sqrt(float(np.square(np.asarray(rows, dtype=float)).sum(axis=1).mean()))
    scatter_norm = np.linalg.norm(scatter.astype(float))
    return relative(mean_error, row_norm), relative(scatter_error, scatter_norm)


def relative(error, norm):
    return 0.0 if error == 0 else np.inf if norm == 0 else error / norm


def assert_promise_kept(moments, rows):
    assert moments.n == len(rows)
    assert np.array_equal(moments.scatter, moments.scatter.T)
    mean_error, scatter_error = errors(moments, rows)
    assert mean_error <= PROMISE
    assert scatter_error <= PROMISE


def assert_bounds_hold(moments, rows):
    mean, scatter = exact(rows)
    mean_error = np.linalg.norm(np.array(np.vectorize(Fraction)(moments.mean) - mean, dtype=float))
    scatter_error = np.linalg.norm(np.array(np.vectorize(Fraction)(moments.scatter) - scatter, dtype=float))
    assert mean_error <= moments.mean_error
    assert scatter_error <= moments.scatter_error


def features(rng, n, kind, d=4):
    """Rows as a backbone may give them, and as it had better not."""
    rows = np.abs(rng.normal(size=(n, d)))
    match kind:
        case "ordinary":
            pass
        case "constant feature":
            rows[:, 0] = 0.1
        case "all constant":
            rows[:] = [0.1, 1e6, -7.3, 0.0]
        case "huge mean":
            rows += 1e6
        case "outliers":
            rows[rng.random(n) < 0.2] *= 1e6
        case "scales":
            rows *= 10.0 ** rng.integers(-6, 7, size=(n, 1))
    return rows.astype(np.float32)


KINDS = ["ordinary", "constant feature", "all constant", "huge mean", "outliers", "scales"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 50, 5000])
def test_moments_are_those_of_the_rows(kind, n):
    rows = features(np.random.default_rng(n), n, kind)
    moments = moments_of(rows)
    assert_promise_kept(moments, rows)
    assert_bounds_hold(moments, rows)
    assert moments.mean.dtype == moments.scatter.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_dtype_is_summed_in_float64(dtype):
    rows = np.full((3000, 2), 30.1, dtype=dtype)
    moments = moments_of(rows)
    assert moments.mean.tolist() == rows[0].astype(np.float64).tolist()
    assert not moments.scatter.any()


def test_no_rows_have_empty_moments():
    moments = moments_of(np.empty((0, 3), dtype=np.float32))
    assert (moments.n, moments.mean.tolist(), moments.scatter.tolist()) == (0, [0.0] * 3, [[0.0] * 3] * 3)
    assert not should_recompute(moments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 4100])
def test_a_row_that_is_not_finite_is_named(bad, row):
    rows = np.ones((5000, 2), dtype=np.float32)
    rows[row, 1] = bad
    with pytest.raises(ValueError, match=f"row {row:,} holds NaN or infinity"):
        moments_of(rows)


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(n, d\).*\(3,\)"):
        moments_of(np.ones(3))


@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_merging_in_any_order_equals_the_whole(seed, kind, sizes):
    rng = np.random.default_rng(seed)
    rows = features(rng, sum(sizes) + 1, kind)
    parts = [moments_of(part) for part in np.split(rows, np.cumsum(sizes))]
    in_order = merge_all(parts)
    shuffled = merge_all(parts[i] for i in rng.permutation(len(parts)))
    assert_bounds_hold(in_order, rows)
    for merged in (in_order, shuffled):
        assert_promise_kept(merged, rows)


def test_merge_all_is_deterministic_in_the_order_given():
    rng = np.random.default_rng(0)
    parts = [moments_of(rng.normal(size=(7, 3))) for _ in range(13)]
    assert to_bytes(merge_all(parts)) == to_bytes(merge_all(iter(parts)))


def test_merge_all_merges_as_a_balanced_tree():
    a, b, c, d, e = (moments_of(np.random.default_rng(i).normal(size=(9, 3))) for i in range(5))
    tree = merge(merge(merge(a, b), merge(c, d)), e)
    assert to_bytes(merge_all([a, b, c, d, e])) == to_bytes(tree)


def test_merge_all_of_nothing_says_what_to_give():
    with pytest.raises(ValueError, match="at least one"):
        merge_all([])


def test_the_empty_sample_is_neutral():
    moments = moments_of(np.random.default_rng(0).normal(size=(5, 3)))
    empty = Moments.empty(3)
    for same in (merge(moments, empty), merge(empty, moments), subtract(moments, empty)):
        assert to_bytes(same) == to_bytes(moments)
    assert to_bytes(subtract(moments, moments)) == to_bytes(empty)


def test_more_rows_than_there_are_cannot_be_removed():
    few, many = moments_of(np.ones((2, 3))), moments_of(np.ones((1200, 3)))
    with pytest.raises(ValueError, match="cannot remove 1,200 rows from a sample of 2"):
        subtract(few, many)


@pytest.mark.parametrize("operation", [merge, subtract])
def test_moments_of_other_features_are_refused(operation):
    with pytest.raises(ValueError, match="3 and 4 features"):
        operation(moments_of(np.ones((5, 3))), moments_of(np.ones((2, 4))))


STEPS = st.lists(st.tuples(st.sampled_from(["add", "update", "delete"]), st.integers(1, 15)), min_size=1, max_size=25)


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), STEPS)
def test_any_history_equals_the_final_sample(seed, kind, steps):
    rng = np.random.default_rng(seed)
    sample = features(rng, 5, kind)
    moments = moments_of(sample)
    for step, size in steps:
        removed = rng.permutation(len(sample))[: 0 if step == "add" else size]
        added = features(rng, 0 if step == "delete" else size, kind)
        moments = merge(subtract(moments, moments_of(sample[removed])), moments_of(added))
        sample = np.concatenate([np.delete(sample, removed, axis=0), added])
        if len(sample) == 0:
            assert to_bytes(moments) == to_bytes(Moments.empty(4))
            continue
        assert_bounds_hold(moments, sample)
        if should_recompute(moments):
            moments = moments_of(sample)
        assert_promise_kept(moments, sample)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 37])
def test_a_sample_that_shrinks_slowly_keeps_its_accuracy(kind, step):
    rows = features(np.random.default_rng(step), 10_000, kind)
    moments = moments_of(rows)
    rows_read_again = 0
    while len(rows) > 10:
        gone = min(step, len(rows) - 10)
        moments = subtract(moments, moments_of(rows[:gone]))
        rows = rows[gone:]
        if should_recompute(moments):
            moments = moments_of(rows)
            rows_read_again += len(rows)
        if len(rows) in (5000, 500, 50) or len(rows) < 20:
            assert_promise_kept(moments, rows)
    if kind != "huge mean":  # there a mean of 1e6 deviations leaves too few digits to be less cautious
        assert rows_read_again < 9990 / 4  # caution costs a part of what the change itself cost


def test_outliers_removed_one_by_one_are_not_forgotten():
    """Each removal loses a digit or two, which no rule on a single removal would mind; together they lose all."""
    rng = np.random.default_rng(0)
    core = rng.normal(size=(20, 4))
    outliers = rng.normal(size=(24, 4)) * 2.0 ** np.arange(24, 0, -1)[:, np.newaxis]
    moments = merge(moments_of(core), moments_of(outliers))
    for outlier in outliers:
        moments = subtract(moments, moments_of(outlier[np.newaxis]))
    assert errors(moments, core)[1] > PROMISE  # else this history tests nothing
    assert should_recompute(moments)


def test_many_small_increments_are_kept_without_reading_rows_again():
    rng = np.random.default_rng(0)
    rows = features(rng, 5000, "ordinary")
    moments = Moments.empty(4)
    for row in rows:
        moments = merge(moments, moments_of(row[np.newaxis]))
        assert not should_recompute(moments)
    assert_promise_kept(moments, rows)


def test_the_promise_has_room_for_two_histories():
    assert 2 * ACCURACY < PROMISE


def test_bounds_past_the_accuracy_ask_for_a_recomputation():
    moments = moments_of(np.random.default_rng(0).normal(size=(50, 3)))
    assert not should_recompute(moments)
    assert should_recompute(replace(moments, scatter_error=2 * ACCURACY * float(np.linalg.norm(moments.scatter))))
    assert should_recompute(replace(moments, mean_error=2 * ACCURACY * 10))
    assert should_recompute(replace(moments, scatter_error=float("nan")))


def test_scatter_of_a_wide_sample_is_symmetric_to_the_last_bit():
    rng = np.random.default_rng(0)
    a, b = (moments_of(rng.normal(size=(n, 301)).astype(np.float32)) for n in (97, 41))
    for moments in (a, merge(a, b), subtract(merge(a, b), b)):
        assert np.array_equal(moments.scatter, moments.scatter.T)


@pytest.mark.parametrize("d", [1, 2, 33])
def test_packing_and_bytes_round_trip_bit_for_bit(d):
    moments = moments_of(np.random.default_rng(d).normal(size=(40, d)))
    packed = packed_scatter(moments)
    assert packed.shape == (d * (d + 1) // 2,)
    assert packed.tobytes() == packed.astype("<f8").tobytes()
    assert np.array_equal(unpacked_scatter(packed), moments.scatter)
    again = from_bytes(to_bytes(moments))
    assert (again.n, again.mean_error, again.scatter_error) == (moments.n, moments.mean_error, moments.scatter_error)
    assert np.array_equal(again.mean, moments.mean)
    assert np.array_equal(again.scatter, moments.scatter)


def test_the_packed_triangle_runs_row_by_row():
    moments = replace(Moments.empty(3), scatter=np.array([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]]))
    assert packed_scatter(moments).tolist() == [1, 2, 3, 4, 5, 6]


def test_a_length_that_is_no_triangle_is_refused():
    with pytest.raises(ValueError, match="got 4"):
        unpacked_scatter(np.zeros(4))
