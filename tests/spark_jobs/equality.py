"""Whether two lakes have the same tables: the same rows, and the same statistics and PCA up to rounding."""

from typing import Any

import numpy as np

from fruits.analysis.classifier import Classifier
from fruits.analysis.labels import LabelSums
from fruits.analysis.moments import Moments
from fruits.analysis.pca import subspace_angle
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import load_classifier
from fruits.lake.pca_tables import PCAVersion, load_label_sums, load_statistics, load_versions
from fruits.settings import Settings

WIDTH = 1280
FLOAT32 = float(np.finfo(np.float32).eps)


def assert_equal_tables(chain: Any, ours: Settings, theirs: Settings) -> None:
    """Features and quarantine equal to the last bit but for the run; the rest up to rounding.

    Two buckets have the same photos from different times.
    """
    without = ("run_id",) if ours.bucket == theirs.bucket else ("run_id", "last_modified")
    for name in ("features", "quarantine"):
        rows, expected = (chain.rows(settings, name, without=without) for settings in (ours, theirs))
        assert [row["key"] for row in rows] == [row["key"] for row in expected]
        assert rows == expected
    assert_equal_moments(statistics(chain, ours), statistics(chain, theirs))
    assert_equal_sums(*(labels(chain, settings) for settings in (ours, theirs)))
    assert_equal_classifiers(*(classifier(chain, settings) for settings in (ours, theirs)))
    samples = [chain.rows(settings, "calibration_sample", without=("run_id",)) for settings in (ours, theirs)]
    assert samples[0] == samples[1]
    pca, expected_pca = (current_version(chain, settings).pca for settings in (ours, theirs))
    assert subspace_angle(pca.components, expected_pca.components) < 1e-6
    assert pca.n == expected_pca.n
    np.testing.assert_allclose(pca.explained_variance, expected_pca.explained_variance, rtol=1e-9)
    assert_equal_embeddings(chain, ours, theirs)


def assert_equal_moments(ours: Moments, theirs: Moments) -> None:
    """The same count, and the same mean and scatter to 1e-9."""
    assert ours.n == theirs.n
    assert np.linalg.norm(ours.mean - theirs.mean) < 1e-9 * np.linalg.norm(theirs.mean)
    assert np.linalg.norm(ours.scatter - theirs.scatter) < 1e-9 * np.linalg.norm(theirs.scatter)


def assert_equal_sums(ours: LabelSums, theirs: LabelSums) -> None:
    """The same labels with the same counts, and the same means to 1e-9."""
    assert {label: one.n for label, one in ours.items()} == {label: one.n for label, one in theirs.items()}
    for label, one in ours.items():
        assert np.linalg.norm(one.mean - theirs[label].mean) < 1e-9 * np.linalg.norm(one.mean)


def assert_equal_classifiers(ours: Classifier, theirs: Classifier) -> None:
    """The same labels, weights and calibration up to rounding, and the same quality."""
    assert ours.labels == theirs.labels
    assert (ours.calibrated_on, ours.calibration.n) == (theirs.calibrated_on, theirs.calibration.n)
    largest = np.abs(theirs.discriminant.weights).max()
    np.testing.assert_allclose(ours.discriminant.weights, theirs.discriminant.weights, rtol=1e-6, atol=1e-7 * largest)
    assert np.isclose(ours.calibration.temperature, theirs.calibration.temperature, rtol=1e-3)
    np.testing.assert_allclose(ours.calibration.thresholds, theirs.calibration.thresholds, rtol=1e-3, atol=1e-6)
    assert np.isclose(ours.discriminant.shrinkage, theirs.discriminant.shrinkage, rtol=1e-6)


def assert_equal_embeddings(chain: Any, ours: Settings, theirs: Settings) -> None:
    """The same embeddings under the current PCA version, up to rounding."""
    rows, expected = (
        chain.rows(settings, "embeddings", without=("run_id", "pca_id"), pca_id=chain.published(settings).pca_id)
        for settings in (ours, theirs)
    )
    for name in ("key", "etag", "label", "split", "model_id"):
        assert [row[name] for row in rows] == [row[name] for row in expected]
    values, wanted = (np.array([[*row["embedding"], row["residual"]] for row in some]) for some in (rows, expected))
    np.testing.assert_allclose(values, wanted, rtol=8 * FLOAT32, atol=8 * FLOAT32 * np.abs(wanted).max())


def statistics(chain: Any, settings: Settings) -> Moments:
    """The published moments."""
    published = chain.published(settings)
    snapshot, model_id = published.snapshots["pca_statistics"], published.model_id
    return load_statistics(Lake.open(settings), snapshot, model_id, WIDTH)


def labels(chain: Any, settings: Settings) -> LabelSums:
    """The published sums by label, which count the rows that the published moments count."""
    published = chain.published(settings)
    sums = load_label_sums(Lake.open(settings), published.snapshots["label_statistics"], published.model_id)
    assert sum(one.n for one in sums.values()) == statistics(chain, settings).n
    return sums


def classifier(chain: Any, settings: Settings) -> Classifier:
    """The published classifier, which the publication names."""
    published = chain.published(settings)
    found = load_classifier(Lake.open(settings), published)
    assert found is not None
    assert found.classifier_id == published.classifier_id
    return found


def current_version(chain: Any, settings: Settings) -> PCAVersion:
    """The published PCA version."""
    published = chain.published(settings)
    versions = load_versions(Lake.open(settings), published.snapshots["pca_models"], published.model_id)
    return next(version for version in versions if version.pca_id == published.pca_id)
