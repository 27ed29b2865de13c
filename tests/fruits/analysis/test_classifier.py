"""The classifier of statistics and a sample: calibrated on photos that its fit did not know."""

import numpy as np
import pytest

from fruits.analysis.classifier import FEWEST_HELD_OUT, Sample, _folds, _half, fit_classifier
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


def test_the_scored_photos_alone_tell_which_labels_are_confused():
    rows, labels = photos(2_000)
    held_out = sample(*photos(3_000, 1))
    found = fit(rows, labels, held_out)
    counted = [(label, answer, n) for label, row in found.confusion.table.items() for answer, n in row.items()]
    assert sum(n for _, _, n in counted) == found.quality.n
    right = sum(n for label, answer, n in counted if label == answer)
    assert right / found.quality.n == pytest.approx(found.quality.accuracy)
    answers = np.asarray(found.labels)[found.probabilities(held_out.vectors).argmax(axis=1)]
    of_key = {key: (label, answer) for key, label, answer in zip(held_out.keys, held_out.labels, answers, strict=True)}
    assert found.confusion.pairs
    for pair in found.confusion.pairs:
        assert {of_key[key] for key in pair.keys} == {(pair.label, pair.likeliest)}
    assert fit(rows, labels, sample(*photos(4))).confusion is None


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


def in_groups(of, groups):
    return Sample(of.keys, of.labels, of.fitted, of.vectors, groups)


def test_photos_of_a_group_calibrate_together_or_are_scored_together():
    """A group of two near copies, one of which would tell the other's label."""
    rows, labels = photos(600)
    keys = [f"{label}/{number:06}" for number, label in enumerate(labels)]
    held_out = Sample(keys, labels, np.zeros(600, bool), rows, [f"{number % 300}" for number in range(600)])
    fitted = photos(2_000, 1)
    found = fit(*fitted, of=held_out)
    calibrated = found.calibration.n
    assert found.quality.n == 600 - calibrated
    halves = fit(*fitted, of=in_groups(held_out, ["one"] * 600))
    assert (halves.calibration.n, halves.quality) == (600, None), "one group is no two halves"
    by_pair = [group for group in map(str, range(300)) if _half(group) == 0]
    assert calibrated == 2 * len(by_pair)


def test_a_group_is_left_out_of_a_cross_fit_as_a_whole():
    rows, labels = photos(240, labels=LABELS[:2])
    of = sample(rows, labels, fitted=True)
    of = in_groups(of, [f"{label}\0{int(key[-3:]) % 7}" for key, label in zip(of.keys, of.labels, strict=True)])
    folds = _folds(of)
    assert len(set(of.groups)) == 14
    assert len(set(zip(of.groups, folds.tolist(), strict=True))) == 14, "each group is in one fold"
    assert set(folds.tolist()) == {0, 1, 2}
