"""A linear discriminant of statistics is that of the rows."""

import numpy as np
import pytest
from scipy.linalg import inv
from sklearn.covariance import OAS
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fruits.analysis.discriminant import fit_discriminant, within_covariance
from fruits.analysis.labels import merge_sums, subtract_sums, sums_of
from fruits.analysis.moments import merge, moments_of, subtract
from fruits.analysis.shrinkage import oracle_shrinkage

LABELS = ("Apple", "Banana", "Kiwi")


def photos(n, d=6, seed=1):
    """Features around a mean of each label, shape ``(n, d)``, float32, and labels."""
    rng = np.random.default_rng(seed)
    labels = [LABELS[number % 3] for number in range(n)]
    means = rng.normal(size=(3, d)) * 3
    mixing = rng.normal(size=(d, d))
    rows = np.stack([means[number % 3] + mixing @ rng.normal(size=d) for number in range(n)])
    return (rows + 5).astype(np.float32), labels


def fitted(rows, labels):
    return fit_discriminant(moments_of(rows), sums_of(rows, labels))


def test_it_is_scikit_learns_with_the_same_shrinkage_and_equal_priors():
    rows, labels = photos(300)
    found = fitted(rows, labels)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3, covariance_estimator=Shrunk(found.shrinkage))
    theirs.fit(rows.astype(float), labels)
    expected, scores = theirs.decision_function(rows.astype(float)), found.scores(rows)
    differences = (scores - scores[:, :1]) - (expected - expected[:, :1])
    assert np.abs(differences).max() < 0.02 * np.abs(expected).max()  # scikit-learn shrinks the covariance of n rows
    assert found.labels == LABELS
    assert found.counts.tolist() == [100, 100, 100]


class Shrunk:
    """A covariance for scikit-learn, shrunk by a given share."""

    def __init__(self, shrinkage):
        self.shrinkage = shrinkage

    def fit(self, rows):
        covariance = np.cov(rows.T, bias=True)
        level = np.trace(covariance) / len(covariance)
        self.covariance_ = (1 - self.shrinkage) * covariance + self.shrinkage * level * np.eye(len(covariance))
        return self


def test_the_covariance_is_that_of_rows_less_their_labels_means():
    rows, labels = photos(90)
    sums, moments = sums_of(rows, labels), moments_of(rows)
    centred = np.stack([sums[label].mean for label in LABELS]) - moments.mean
    found = within_covariance(moments, centred, [30, 30, 30])
    left = rows - np.stack([sums[label].mean for label in labels])
    np.testing.assert_allclose(found, left.T @ left / (90 - 3), rtol=1e-9)


@pytest.mark.parametrize("n", [10, 60, 1_000])
def test_the_shrinkage_is_that_of_scikit_learns_oas(n):
    rows = np.random.default_rng(n).normal(size=(n, 8)) * np.arange(1, 9)
    oas = OAS(assume_centered=True).fit(rows)
    covariance = rows.T @ rows / n
    found = oracle_shrinkage(np.trace(covariance), np.square(covariance).sum(), 8, n)
    assert found == pytest.approx(oas.shrinkage_, rel=0.3)
    assert oracle_shrinkage(0.0, 0.0, 3, 5) == oracle_shrinkage(3.0, 3.0, 3, 5) == 1


def test_a_history_of_additions_and_removals_gives_the_classifier_of_what_is_left():
    rows, labels = photos(240)
    more, of_more = photos(60, seed=2)
    moments = subtract(merge(moments_of(rows), moments_of(more)), moments_of(rows[:120]))
    sums = subtract_sums(merge_sums([sums_of(rows, labels), sums_of(more, of_more)]), sums_of(rows[:120], labels[:120]))
    found = fit_discriminant(moments, sums)
    expected = fitted(np.concatenate([rows[120:], more]), [*labels[120:], *of_more])
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-7, atol=1e-9 * np.abs(expected.weights).max())
    np.testing.assert_allclose(found.intercept, expected.intercept, rtol=1e-7)
    assert found.counts.tolist() == expected.counts.tolist()


def test_a_large_common_offset_costs_no_digits():
    rows, labels = photos(120)
    far = rows + np.float32(4_096)
    scores, expected = fitted(far, labels).scores(far), fitted(far - np.float32(4_096), labels).scores(far - 4_096.0)
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], atol=1e-3)


def test_one_photo_of_each_label_is_the_nearest_mean():
    rows = np.eye(3, dtype=np.float32)
    found = fitted(rows, list(LABELS))
    assert found.shrinkage == 1
    assert found.scores(rows).argmax(axis=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("copies", [2, 5, 40])
@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3])
def test_photos_that_hardly_differ_within_their_labels_are_told_apart(copies, spread):
    rng = np.random.default_rng(copies)
    means = rng.normal(size=(3, 50)).astype(np.float32) * 7
    rows = np.repeat(means, copies, axis=0) + (spread * rng.normal(size=(3 * copies, 50))).astype(np.float32)
    labels = [label for label in LABELS for _ in range(copies)]
    found = fitted(rows, labels)
    assert np.isfinite(found.weights).all()
    assert np.asarray(LABELS)[found.scores(rows).argmax(axis=1)].tolist() == labels


def test_photos_that_are_equal_after_others_left_are_no_spread():
    rows, _ = photos(60)
    kept = np.repeat(rows[:1], 4, axis=0)
    moments = subtract(merge(moments_of(rows), moments_of(kept)), moments_of(rows))
    sums = sums_of(kept, ["Apple", "Apple", "Kiwi", "Kiwi"])
    found = fit_discriminant(moments, sums)
    assert np.isfinite(found.scores(rows)).all()


def test_a_single_label_is_always_the_answer():
    rows, _ = photos(9)
    found = fitted(rows, ["Kiwi"] * 9)
    assert (found.labels, found.scores(rows).shape) == (("Kiwi",), (9, 1))


def test_sums_of_other_rows_are_refused():
    rows, labels = photos(9)
    with pytest.raises(ValueError, match="9 rows, at least one; got those of 6"):
        fit_discriminant(moments_of(rows), sums_of(rows[:6], labels[:6]))
    with pytest.raises(ValueError, match="0 rows"):
        fit_discriminant(moments_of(rows[:0]), {})


def test_the_weights_are_the_means_times_the_inverse_covariance():
    rows, labels = photos(90)
    found, sums, moments = fitted(rows, labels), sums_of(rows, labels), moments_of(rows)
    centred = np.stack([sums[label].mean for label in LABELS]) - moments.mean
    covariance = within_covariance(moments, centred, [30] * 3)
    level = np.trace(covariance) / len(covariance)
    shrunk = (1 - found.shrinkage) * covariance + found.shrinkage * level * np.eye(len(covariance))
    np.testing.assert_allclose(found.weights, centred @ inv(shrunk), rtol=1e-8)
