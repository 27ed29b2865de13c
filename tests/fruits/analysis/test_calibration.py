"""Confidences match their accuracy, and sets have the right label as often as they promise."""

import numpy as np
import pytest

from fruits.analysis.calibration import (
    FEWEST_OF_LABEL,
    calibrate,
    conformal_threshold,
    expected_calibration_error,
    quality_of,
    softmax,
    temperature_of,
)

LABELS = 4


def answers(n, seed=0, scale=1.0):
    """Scores whose softmax over ``scale`` is the right label's probability, and the right labels."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, LABELS)) * 2
    probabilities = softmax(scores)
    truth = np.array([rng.choice(LABELS, p=row) for row in probabilities])
    return scores * scale, truth


@pytest.mark.parametrize("scale", [0.1, 1.0, 40.0])
def test_the_temperature_takes_an_overconfidence_back(scale):
    scores, truth = answers(20_000, scale=scale)
    assert temperature_of(scores, truth) == pytest.approx(scale, rel=0.05)
    calibration, other = calibrate(*answers(4_000, 1, scale)), answers(4_000, 2, scale)
    quality = quality_of(calibration, *other)
    assert quality is not None
    assert quality.calibration_error < 0.03
    assert quality.accuracy == pytest.approx(np.mean(other[0].argmax(axis=1) == other[1]))


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_sets_have_the_right_label_as_often_as_they_promise(error):
    qualities = [
        quality_of(calibrate(*answers(400, seed, 10), error=error), *answers(2_000, seed + 1_000, 10))
        for seed in range(30)
    ]
    coverage = np.array([quality.coverage for quality in qualities if quality])
    assert 1 - error - 0.005 < coverage.mean() < 1 - error + 0.02
    assert all(quality and quality.labels_of_set > 1 for quality in qualities)


def test_a_label_with_enough_photos_has_a_threshold_of_its_own():
    scores, truth = answers(2_000)
    truth[truth == 3] = 0  # what the fourth label would have been is wrong now
    truth[: FEWEST_OF_LABEL - 1] = 3
    calibration = calibrate(scores, truth)
    right = softmax(scores / calibration.temperature)[np.arange(len(truth)), truth]
    shared = conformal_threshold(right, 0.05)
    assert calibration.thresholds[3] == shared
    assert calibration.thresholds[0] == conformal_threshold(right[truth == 0], 0.05) < shared
    sets = calibration.sets(scores)
    for label in range(3):
        assert sets[truth == label, label].mean() >= 0.95


def test_too_few_photos_leave_every_label_in_the_set():
    scores, truth = answers(18)
    assert calibrate(scores, truth).sets(scores).all()
    nothing = calibrate(np.empty((0, LABELS)), np.empty(0, np.int64))
    assert (nothing.n, nothing.temperature) == (0, 1.0)
    assert nothing.sets(scores).all()
    assert quality_of(nothing, np.empty((0, LABELS)), np.empty(0, np.int64)) is None


def test_of_19_photos_one_may_be_missed():
    right = np.linspace(0.05, 0.95, 19)
    assert conformal_threshold(right, 0.05) == pytest.approx(0.05)
    assert conformal_threshold(right[1:], 0.05) == 0
    assert conformal_threshold(right, 0.1) == pytest.approx(0.1)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    assert expected_calibration_error(np.full(10, 0.9), [True] * 9 + [False]) == pytest.approx(0)
    assert expected_calibration_error(np.full(10, 0.9), [True] * 4 + [False] * 6) == pytest.approx(0.5)
    mixed = expected_calibration_error(np.array([0.3] * 5 + [1.0] * 5), [True] * 5 + [True] * 5)
    assert mixed == pytest.approx(0.35)
