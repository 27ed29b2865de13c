from typing import Any

import numpy as np
import pytest

from fruits.analysis.calibration import softmax
from fruits.analysis.probe import fit_classifier, probe_accuracy

CENTRES = np.random.default_rng(99).normal(size=(5, 20)) * 3


def clusters(rng, n, labels=5) -> tuple[Any, Any]:
    """Rows around one centre per label."""
    picked = rng.integers(labels, size=n)
    rows = CENTRES[picked] + rng.normal(size=(n, 20))
    return rows.astype(np.float32), [f"fruit {i}" for i in picked]


@pytest.mark.jobs
class TestProbeAccuracy:
    def test_labels_that_planes_separate_are_told_apart(self):
        rng = np.random.default_rng(0)
        assert probe_accuracy(*clusters(rng, 300), *clusters(rng, 200)) > 0.99

    def test_shuffled_labels_score_about_chance(self):
        rng = np.random.default_rng(0)
        rows, labels = clusters(rng, 300)
        assert probe_accuracy(rows, rng.permutation(labels), *clusters(rng, 1000)) < 0.4

    def test_it_is_the_share_of_right_answers(self):
        rng = np.random.default_rng(0)
        held_out, truth = clusters(rng, 200)
        wrong = ["fruit 1" if label == "fruit 0" else "fruit 0" for label in truth]
        mixed = truth[:150] + wrong[150:]
        assert probe_accuracy(*clusters(rng, 300), held_out, mixed) == pytest.approx(0.75, abs=0.01)

    def test_labels_that_the_fit_has_not_seen_are_not_scored(self):
        rng = np.random.default_rng(0)
        fit = clusters(rng, 300)
        held_out, truth = clusters(rng, 100)
        strange = np.full((900, 20), 50.0, dtype=np.float32)
        with_strange = probe_accuracy(*fit, np.concatenate([held_out, strange]), truth + ["durian"] * 900)
        assert with_strange == probe_accuracy(*fit, held_out, truth) > 0.9

    def test_a_rotation_and_a_change_of_units_change_nothing(self):
        """So an embedding that keeps everything scores what its features score."""
        rng = np.random.default_rng(0)
        fit_rows, fit_labels = clusters(rng, 200)
        held_out, truth = (rng.normal(size=(400, 20)) * 3, [f"fruit {i}" for i in rng.integers(5, size=400)])
        rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0]
        turned = probe_accuracy(fit_rows @ rotation * 1e3 + 7, fit_labels, held_out @ rotation * 1e3 + 7, truth)
        assert turned == pytest.approx(probe_accuracy(fit_rows, fit_labels, held_out, truth), abs=0.01)

    def test_held_out_rows_do_not_shape_the_scaling(self):
        """Scored alone or beside far outliers, the same rows get the same answers."""
        rng = np.random.default_rng(0)
        fit = clusters(rng, 300)
        held_out, truth = clusters(rng, 100)
        outliers = np.full((100, 20), 1e4, dtype=np.float32)
        both = probe_accuracy(*fit, np.concatenate([held_out, outliers]), truth + ["fruit 0"] * 100)
        alone = probe_accuracy(*fit, held_out, truth)
        assert both in (pytest.approx(alone / 2), pytest.approx((alone + 1) / 2))

    def test_it_is_deterministic(self):
        def accuracy():
            rng = np.random.default_rng(0)
            return probe_accuracy(*clusters(rng, 60), rng.normal(size=(500, 20)) * 3, ["fruit 1"] * 500)

        assert accuracy() == accuracy()

    def test_labels_may_be_of_unequal_length(self):
        rows = np.array([[0.0], [0.1], [9.0], [9.1]])
        held_out = np.array([[0.05], [9.05]])
        assert (
            probe_accuracy(rows, ["fig", "fig", "dragon fruit", "dragon fruit"], held_out, ["fig", "dragon fruit"]) == 1
        )

    @pytest.mark.parametrize(
        ("fit_labels", "test_labels", "rows"),
        [
            (["fig", "fig", "fig"], ["fig"], [[0.0], [1], [2]]),
            (["fig", "kiwi", "kiwi"], ["durian"], [[0.0], [1], [2]]),
            (["fig", "kiwi", "kiwi"], ["fig"], [[1.0], [1], [1]]),
            ([], ["fig"], np.empty((0, 1))),
            (["fig", "kiwi", "kiwi"], [], [[0.0], [1], [2]]),
        ],
        ids=["one label", "only strange labels", "constant rows", "no fit rows", "no held-out rows"],
    )
    def test_nothing_to_tell_gives_none(self, fit_labels, test_labels, rows):
        held_out = np.zeros((len(test_labels), 1))
        assert probe_accuracy(np.asarray(rows), fit_labels, held_out, test_labels) is None


@pytest.mark.jobs
class TestClassifier:
    @pytest.mark.parametrize("labels", [1, 2, 5])
    def test_it_is_scikit_learns_logistic_regression(self, labels):
        """Of two labels scikit-learn keeps one row of weights, and of one it keeps none."""
        from sklearn.linear_model import LogisticRegression

        rng = np.random.default_rng(0)
        rows, names = clusters(rng, 90, labels)
        classifier = fit_classifier(rows, names)
        probabilities = softmax(classifier.logits(rows))
        assert classifier.labels == tuple(sorted(set(names)))
        assert probabilities.sum(axis=1) == pytest.approx(1)
        if labels > 1:
            centred = rows - rows.mean(axis=0)
            scaled = centred / np.sqrt(np.square(centred).sum(axis=1).mean())
            theirs = LogisticRegression(C=100, tol=1e-4, max_iter=300).fit(scaled, names).predict_proba(scaled)
            assert probabilities == pytest.approx(theirs, abs=1e-3)

    def test_rows_that_do_not_vary_are_no_error(self):
        classifier = fit_classifier(np.ones((6, 2)), ["fig", "kiwi"] * 3)
        assert classifier.logits(np.ones((1, 2)))[0] == pytest.approx([0, 0], abs=0.05)
