"""The classifier of statistics and a sample: calibrated on photos that its fit did not know."""

import numpy as np
import pytest

from fruits.analysis.classifier import FEWEST_HELD_OUT, Sample, fit_classifier
from fruits.analysis.labels import sums_of
from fruits.analysis.moments import moments_of

LABELS = ("Apple", "Banana", "Kiwi", "Lime")
MEANS = np.random.default_rng(7).normal(size=(4, 12)) * 0.9


def photos(n, seed=0, labels=LABELS):
    """Features and labels of photos that overlap somewhat."""
    rng = np.random.default_rng(seed)
    chosen = [labels[number % len(labels)] for number in range(n)]
    rows = np.stack([MEANS[LABELS.index(label)] + rng.normal(size=12) for label in chosen])
    return rows.astype(np.float32), chosen


def sample(rows, labels, fitted=False, first=0):
    keys = [f"{label}/{first + number:06}" for number, label in enumerate(labels)]
    order = np.argsort(keys)
    return Sample(
        [keys[row] for row in order],
        [labels[row] for row in order],
        np.full(len(rows), fitted),
        rows[order],
    )


def joined(*parts):
    rows = np.concatenate([part.vectors for part in parts])
    return Sample(
        [key for part in parts for key in part.keys],
        [label for part in parts for label in part.labels],
        np.concatenate([part.fitted for part in parts]),
        rows,
    )


def fit(rows, labels, of):
    return fit_classifier(moments_of(rows), sums_of(rows, labels), of)


def test_held_out_photos_calibrate_and_tell_the_quality():
    rows, labels = photos(2_000)
    found = fit(rows, labels, sample(*photos(3_000, 1)))
    assert found.calibrated_on == "held-out photos"
    assert found.quality is not None
    assert found.calibration.n + found.quality.n == 3_000
    new, truth = photos(4_000, 2)
    probabilities = found.probabilities(new)
    right = np.asarray(found.labels)[probabilities.argmax(axis=1)] == truth
    assert found.quality.accuracy == pytest.approx(right.mean(), abs=0.03)
    assert probabilities.max(axis=1).mean() == pytest.approx(right.mean(), abs=0.03)
    columns = np.searchsorted(found.labels, truth)
    assert found.sets(new)[np.arange(len(new)), columns].mean() == pytest.approx(0.95, abs=0.02)


def test_a_photo_calibrates_or_is_scored_whatever_the_company():
    rows, labels = photos(200)
    some, others = sample(*photos(300, 1)), sample(*photos(300, 2), first=300)
    one, both = fit(rows, labels, some), fit(rows, labels, joined(some, others))
    assert one.calibration.n < both.calibration.n
    assert one.discriminant.weights.tolist() == both.discriminant.weights.tolist()


def test_without_held_out_photos_those_of_the_fit_are_scored_by_fits_without_them():
    """With as many features as photos, the fit's own photos would all be right and certain."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(240, 200)).astype(np.float32)  # nothing to learn here
    labels = [LABELS[number % 4] for number in range(240)]
    found = fit(rows, labels, sample(rows, labels, fitted=True))
    assert found.calibrated_on == "cross-fitted photos"
    assert found.probabilities(rows).max(axis=1).mean() < 0.6
    assert found.quality is not None
    assert found.quality.accuracy < 0.5


def test_few_held_out_photos_calibrate_beside_cross_fitted_ones():
    rows, labels = photos(400)
    held_out = sample(*photos(FEWEST_HELD_OUT - 1, 1), first=400)
    found = fit(rows, labels, joined(sample(rows, labels, fitted=True), held_out))
    assert found.calibrated_on == "cross-fitted photos"
    assert found.quality is not None
    assert found.calibration.n + found.quality.n == 400 + FEWEST_HELD_OUT - 1


def test_too_few_photos_calibrate_and_tell_no_quality():
    rows, labels = photos(40)
    found = fit(rows, labels, sample(rows, labels, fitted=True))
    assert (found.calibration.n, found.quality) == (40, None)


def test_nothing_to_calibrate_on_is_said():
    rows, labels = photos(4)
    found = fit(rows, labels, sample(rows[:0], []))
    assert (found.calibrated_on, found.calibration.n, found.quality) == ("nothing", 0, None)


def test_a_label_that_only_held_out_photos_have_takes_no_part():
    rows, labels = photos(300, labels=LABELS[:3])
    found = fit(rows, labels, sample(*photos(400, 1)))
    assert found.labels == LABELS[:3]
    assert found.calibration.n + (found.quality.n if found.quality else 0) == 300


def test_a_label_of_one_photo_is_left_out_of_the_cross_fit_that_lacks_it():
    rows, labels = photos(120, labels=LABELS[:3])
    rows = np.concatenate([rows, photos(4)[0][3:]])
    labels = [*labels, "Lime"]
    found = fit(rows, labels, sample(rows, labels, fitted=True))
    assert found.labels == LABELS
    assert found.calibration.n == 120


def test_the_identity_is_that_of_weights_and_calibration():
    rows, labels = photos(400)
    of = sample(*photos(300, 1))
    assert fit(rows, labels, of).classifier_id == fit(rows, labels, of).classifier_id
    assert fit(rows[:-4], labels[:-4], of).classifier_id != fit(rows, labels, of).classifier_id
    assert fit(rows, labels, sample(*photos(300, 2))).classifier_id != fit(rows, labels, of).classifier_id
