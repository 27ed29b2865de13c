from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fruits.analysis.moments import Moments, merge, moments_of, should_recompute, subtract
from fruits.analysis.pca import (
    FittedSummary,
    components_asked,
    fit,
    orthonormality_error,
    pca_identity,
    refit_gain,
    refit_reason,
    subspace_angle,
    transform,
    unexplained_share,
)
from fruits.errors import FruitsError


def low_rank(seed, n=400, d=60, rank=12):
    """Float32 rows with a clear spectrum: falling directions, some noise, a mean away from zero."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(d, rank)))[0].T
    scores = rng.normal(size=(n, rank)) * np.geomspace(10, 1, rank)
    return (scores @ basis + rng.normal(size=(n, d)) * 0.05 + 3).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return low_rank(0)


@pytest.mark.jobs
class TestAgainstScikitLearn:
    @pytest.mark.parametrize("n_components", [1, 7, 12, 0.5, 0.9, 0.99])
    def test_the_fit_is_theirs(self, rows, n_components):
        from sklearn.decomposition import PCA

        theirs = PCA(n_components, svd_solver="full").fit(rows.astype(np.float64))
        ours = fit(moments_of(rows), n_components)
        assert ours.components.shape == theirs.components_.shape
        assert subspace_angle(ours.components, theirs.components_) < 1e-6
        np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-9)
        np.testing.assert_allclose(ours.components, theirs.components_, atol=1e-6)  # signs too
        np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-9)
        np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, atol=1e-9)

    def test_the_embedding_and_the_residual_are_theirs(self, rows):
        from sklearn.decomposition import PCA

        theirs = PCA(7, svd_solver="full").fit(rows.astype(np.float64))
        unseen = low_rank(5, n=300)
        embedding, residual = transform(fit(moments_of(rows), 7), unseen)
        expected = theirs.transform(unseen.astype(np.float64))
        np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-5)
        left = np.linalg.norm(unseen - theirs.inverse_transform(expected), axis=1)
        np.testing.assert_allclose(residual, left, rtol=1e-5)

    def test_fewer_rows_than_features_fit_like_theirs(self):
        from sklearn.decomposition import PCA

        few = low_rank(2, n=9)
        theirs = PCA(8, svd_solver="full").fit(few.astype(np.float64))
        ours = fit(moments_of(few), 8)
        assert subspace_angle(ours.components, theirs.components_) < 1e-6
        np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-7)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(["add", "update", "delete"]), min_size=1, max_size=12))
def test_an_incremental_fit_equals_a_full_fit(seed, steps):
    rng = np.random.default_rng(seed)
    sample = low_rank(seed, n=150)
    moments = moments_of(sample)
    for step in steps:
        removed = rng.permutation(len(sample))[: 0 if step == "add" else min(9, len(sample) - 40)]
        added = low_rank(rng.integers(2**32), n=0 if step == "delete" else 9)
        moments = merge(subtract(moments, moments_of(sample[removed])), moments_of(added))
        sample = np.concatenate([np.delete(sample, removed, axis=0), added])
        assert not should_recompute(moments)
    incremental, full = fit(moments, 12), fit(moments_of(sample), 12)
    assert subspace_angle(incremental.components, full.components) < 1e-6
    np.testing.assert_allclose(incremental.explained_variance_ratio, full.explained_variance_ratio, atol=1e-9)
    for ours, theirs in zip(transform(incremental, sample), transform(full, sample), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_components_are_orthonormal_and_their_largest_loading_is_positive(rows):
    components = fit(moments_of(rows), 12).components
    assert orthonormality_error(components) < 1e-12
    for component in components:
        assert component[np.abs(component).argmax()] > 0


def test_mirrored_rows_give_the_same_components(rows):
    there, back = (fit(moments_of(sign * rows), 12).components for sign in (1, -1))
    np.testing.assert_allclose(there, back, atol=1e-9)


def test_a_variance_target_takes_the_fewest_components_that_reach_it(rows):
    moments = moments_of(rows)
    for target in (0.3, 0.6, 0.95, 0.999):
        ratio = fit(moments, target).explained_variance_ratio
        assert ratio.sum() >= target > ratio[:-1].sum()


def test_a_variance_target_stops_at_the_most_components(rows):
    moments = moments_of(rows)
    assert fit(moments, 0.999).n_components > 4
    assert fit(moments, 0.999, max_components=4).n_components == 4
    assert fit(moments, 8, max_components=4).n_components == 8  # a count is a count


@pytest.mark.parametrize(("n", "d"), [(2, 5), (4, 60), (50, 3)])
def test_a_variance_target_stops_at_the_rank(n, d):
    moments = moments_of(np.random.default_rng(0).normal(size=(n, d)))
    assert fit(moments, 1 - 1e-16).n_components <= min(n - 1, d)
    assert fit(moments, 0.999999999999).n_components == min(n - 1, d)


def test_the_shares_and_the_unexplained_share_make_the_whole(rows):
    pca = fit(moments_of(rows), 7)
    assert pca.total_variance == pytest.approx(rows.astype(np.float64).var(axis=0, ddof=1).sum())
    assert pca.explained_variance_ratio.sum() + pca.unexplained_share == pytest.approx(1)
    assert unexplained_share(*transform(pca, rows)) == pytest.approx(pca.unexplained_share, rel=1e-5)


@pytest.mark.parametrize("asked", [0, -1, 12, 500])
def test_a_count_that_the_photos_do_not_allow_names_both(asked):
    with pytest.raises(
        FruitsError, match=rf"{asked} components.*12 photos of 60 features.*1 to 11.*FRUITS_N_COMPONENTS"
    ):
        fit(moments_of(low_rank(0, n=12)), asked)


def test_a_count_that_the_features_do_not_allow_is_refused():
    moments = moments_of(np.random.default_rng(0).normal(size=(50, 3)))
    assert fit(moments, 3).n_components == 3
    with pytest.raises(FruitsError, match="1 to 3"):
        fit(moments, 4)


@pytest.mark.parametrize(("n", "said"), [(0, "0 photos"), (1, "1 photo,")])
def test_too_few_photos_for_a_fit_are_named(n, said):
    with pytest.raises(FruitsError, match=said):
        fit(moments_of(np.ones((n, 3))), 0.95)


def test_photos_that_do_not_vary_are_refused():
    with pytest.raises(FruitsError, match=r"5 photos.*same features"):
        fit(moments_of(np.full((5, 3), 0.1, dtype=np.float32)), 0.95)


def test_variance_below_the_rounding_error_is_no_variance():
    noise = replace(Moments.empty(2), n=9, scatter=np.eye(2) * 1e-12, scatter_error=1e-11)
    with pytest.raises(FruitsError, match="same features"):
        fit(noise, 0.95)


def test_a_row_in_the_subspace_has_a_residual_of_rounding_only(rows):
    pca = fit(moments_of(rows), 7)
    inside = pca.mean + np.random.default_rng(0).normal(size=(50, 7)) * 100 @ pca.components
    embedding, residual = transform(pca, inside)
    assert np.linalg.norm(embedding, axis=1).min() > 10
    assert residual.max() < 1e-11  # a difference of squared norms would leave about 1e-6


def test_shapes_and_dtypes_of_a_projection(rows):
    pca = fit(moments_of(rows), 7)
    for n in (0, 1, 255, 256, 257):
        embedding, residual = transform(pca, rows[:1].repeat(n, axis=0))
        assert (embedding.shape, residual.shape) == ((n, 7), (n,))
        assert embedding.dtype == residual.dtype == np.float32


def test_an_embedding_does_not_depend_on_the_rows_it_is_projected_with():
    wide = np.random.default_rng(0).normal(size=(700, 640)).astype(np.float32)
    pca = fit(moments_of(wide), 97)
    centred = wide - pca.mean
    # Rows outside the subspace: their embedding is nothing but rounding, so any difference in rounding shows.
    outside = pca.mean + centred - centred @ pca.components.T @ pca.components
    embedding, residual = transform(pca, outside)
    order = np.random.default_rng(1).permutation(len(wide))
    for picked in (order, order[:300], order[:5], order[:1]):
        some_embedding, some_residual = transform(pca, outside[picked])
        np.testing.assert_array_equal(some_embedding, embedding[picked])
        np.testing.assert_array_equal(some_residual, residual[picked])


def test_unexplained_share_is_that_of_the_squared_distances(rows):
    pca = fit(moments_of(rows), 3)
    new = low_rank(7, n=80)[:, ::-1]
    embedding, residual = transform(pca, new)
    centred = new - pca.mean
    left = centred - centred @ pca.components.T @ pca.components
    assert unexplained_share(embedding, residual) == pytest.approx(np.square(left).sum() / np.square(centred).sum())
    assert unexplained_share(embedding[:0], residual[:0]) == 0
    assert unexplained_share(embedding * 0, residual * 0) == 0


def test_orthonormality_error_is_the_largest_departure():
    assert orthonormality_error(np.eye(2, 5)) == 0
    assert orthonormality_error(np.eye(2, 5) * 1.1) == pytest.approx(0.21)
    assert orthonormality_error(np.array([[1.0, 0], [0.3, np.sqrt(1 - 0.09)]])) == pytest.approx(0.3)


@pytest.mark.parametrize("angle", [0, 1e-15, 1e-12, 1e-9, 1e-4, 0.5, np.pi / 4, 1.2, np.pi / 2 - 1e-9, np.pi / 2])
def test_subspace_angle_is_accurate_at_every_size(angle):
    a = np.eye(3, 10)
    b = a.copy()
    b[2, 2], b[2, 7] = np.cos(angle), np.sin(angle)
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(3, 3)) @ b  # another basis of the same subspace
    assert subspace_angle(a, b) == pytest.approx(angle, rel=1e-13, abs=1e-16)
    assert subspace_angle(a, mixed) == pytest.approx(angle, rel=1e-13, abs=5e-15)
    assert subspace_angle(mixed, a) == pytest.approx(angle, rel=1e-13, abs=5e-15)


@pytest.mark.jobs
@pytest.mark.parametrize(("k", "other_k"), [(3, 3), (3, 5), (5, 3), (1, 1)])
def test_subspace_angle_agrees_with_scipy(k, other_k):
    from scipy.linalg import subspace_angles

    rng = np.random.default_rng(k + other_k)
    a, b = rng.normal(size=(k, 12)), rng.normal(size=(other_k, 12))
    assert subspace_angle(a, b) == pytest.approx(subspace_angles(a.T, b.T).max(), rel=1e-12)


def test_identity_is_a_function_of_backbone_mean_and_components(rows):
    pca = fit(moments_of(rows), 5)
    identity = pca_identity("model-1", pca)
    assert identity.startswith("pca-")
    assert len(identity) == len("pca-") + 12
    assert identity == pca_identity("model-1", fit(moments_of(rows), 5))
    others = [
        pca_identity("model-2", pca),
        pca_identity("model-1", replace(pca, mean=np.nextafter(pca.mean, 9))),
        pca_identity("model-1", replace(pca, components=-pca.components)),
        pca_identity("model-1", fit(moments_of(rows), 4)),
    ]
    assert len({identity, *others}) == 5


def test_what_was_asked_is_told_apart():
    asked = [components_asked(*a) for a in ((50,), (0.5,), (0.95,), (0.95, 160), (0.95, 80), (0.9512345678,))]
    assert len(set(asked)) == len(asked)
    assert components_asked(50, 160) == components_asked(50, 80) == "50"
    assert components_asked(0.95, 160) == "0.95 of the variance, at most 160"


CURRENT = FittedSummary(n=100, components_asked="50")
QUIET = {"asked": "50", "n_now": 120, "n_new": 60, "drift": 0.01}


@pytest.mark.parametrize(
    ("policy", "current", "seen", "reason"),
    [
        ("auto", CURRENT, {}, None),
        ("auto", None, {}, "first fit"),
        ("always", None, {}, "first fit"),
        ("always", CURRENT, {}, "asked for"),
        ("always", CURRENT, {"n_now": 100, "n_new": 0, "drift": None}, "asked for"),
        ("never", CURRENT, {}, None),
        ("never", CURRENT, {"asked": "60", "n_now": 900, "drift": 0.9}, None),
        ("auto", CURRENT, {"asked": "60"}, "components asked changed from 50 to 60"),
        ("auto", CURRENT, {"n_now": 199}, None),
        ("auto", CURRENT, {"n_now": 200}, "fit split grew from 100 to 200"),
        ("auto", CURRENT, {"n_now": 2100}, "fit split grew from 100 to 2,100"),
        ("auto", CURRENT, {"n_now": 51, "n_new": 0, "drift": None}, None),
        ("auto", CURRENT, {"n_now": 50, "n_new": 0, "drift": None}, "fit split shrank from 100 to 50"),
        ("auto", CURRENT, {"n_now": 2, "n_new": 0, "drift": None}, "fit split shrank from 100 to 2"),
        ("auto", CURRENT, {"n_now": 1, "n_new": 0, "drift": None}, None),
        ("auto", CURRENT, {"drift": 0.05}, None),
        ("auto", CURRENT, {"drift": 0.12}, "60 new photos leave 12.0% more variance unexplained than the fit"),
        (
            "auto",
            CURRENT,
            {"drift": 0.12, "n_new": 50},
            "50 new photos leave 12.0% more variance unexplained than the fit",
        ),
        ("auto", CURRENT, {"drift": 0.12, "n_new": 49}, None),
        ("auto", CURRENT, {"drift": None}, None),
        ("auto", CURRENT, {"drift": -0.5}, None),
        ("auto", CURRENT, {"drift": 0.12, "gain": 0.019}, None),
        (
            "auto",
            CURRENT,
            {"drift": 0.12, "gain": 0.02},
            "60 new photos leave 12.0% more variance unexplained than the fit, and a refit explains 2.0% more",
        ),
        ("auto", CURRENT, {"n_now": 200, "drift": 0.12, "gain": 0.0}, "fit split grew from 100 to 200"),
        ("auto", CURRENT, {"split_rules": "b"}, None),
        ("auto", replace(CURRENT, split_rules="b"), {"split_rules": "b"}, None),
        ("auto", replace(CURRENT, split_rules="a"), {"split_rules": "b"}, "the rules of the split changed from a to b"),
        ("never", replace(CURRENT, split_rules="a"), {"split_rules": "b"}, None),
    ],
)
def test_reasons_to_refit(policy, current, seen, reason):
    limits = {"max_drift": 0.05, "min_drift_rows": 50, "growth": 2.0, "min_gain": 0.02}
    assert refit_reason(policy, current, **(QUIET | seen), **limits) == reason


def test_never_refitting_without_a_pca_is_refused():
    with pytest.raises(FruitsError, match=r"`never`.*`auto`"):
        refit_reason("never", None, **QUIET, max_drift=0.05, min_drift_rows=50, growth=2.0)


class TestGain:
    def test_it_is_what_a_refit_explains_of_the_rows_beyond_what_the_pca_in_use_explains_of_them(self, rows):
        early = fit(moments_of(rows[:40]), 5)
        now = moments_of(rows)
        embedding, residual = transform(replace(early, mean=now.mean), rows)
        expected = fit(now, 5).explained_variance_ratio.sum() - (1 - unexplained_share(embedding, residual))
        assert refit_gain(early, now, 5) == pytest.approx(expected, abs=1e-6)
        assert refit_gain(fit(now, 5), now, 5) == pytest.approx(0, abs=1e-12)

    def test_a_share_of_variance_that_is_reached_leaves_nothing_to_gain(self, rows):
        now = moments_of(rows)
        assert refit_gain(fit(now, 5), now, 0.01) < 0

    @pytest.mark.parametrize("n_components", [12, 0.9])
    def test_increments_of_a_rare_kind_refit_rarely(self, n_components):
        """40 increments of another camera, which every fit on so many other photos explains badly."""
        with_gain, without = (refits_of(n_components, min_gain) for min_gain in (0.02, -1))
        assert without == 40
        assert with_gain <= 4


def refits_of(n_components, min_gain):
    """How many of 40 increments refit."""
    rng = np.random.default_rng(3)
    usual, rare = camera(rng), camera(rng)
    moments = moments_of(usual(20_000))
    pca, held_out = fit(moments, n_components), usual(5_000)
    expected = unexplained_share(*transform(pca, held_out))
    limits = {"max_drift": 0.05, "min_drift_rows": 50, "growth": 2.0}
    refits = 0
    for _ in range(40):
        new, held_out = rare(100), np.concatenate([held_out, rare(25)])
        moments = merge(moments, moments_of(new))
        known = {"asked": "a", "n_now": moments.n, "n_new": 100, "min_gain": min_gain, **limits}
        drift = unexplained_share(*transform(pca, new)) - expected
        gain = refit_gain(pca, moments, n_components)
        if refit_reason("auto", FittedSummary(pca.n, "a"), **known, drift=drift, gain=gain):
            refits += 1
            pca = fit(moments, n_components)
            expected = unexplained_share(*transform(pca, held_out))
    return refits


def camera(rng, d=64):
    """Photos of one kind: their own centre, axes and falling variances."""
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.geomspace(1, 0.02, d)[:, np.newaxis]
    centre = 0.3 * rng.normal(size=d)
    return lambda n: centre + rng.normal(size=(n, d)) @ axes
