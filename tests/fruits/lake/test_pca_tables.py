import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from fruits.analysis.labels import sums_of
from fruits.analysis.moments import Moments, moments_of
from fruits.analysis.pca import fit, pca_identity
from fruits.lake.branches import Writer, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import (
    PCAVersion,
    count_by_label,
    load_label_sums,
    load_statistics,
    load_versions,
    save_label_sums,
    save_statistics,
    save_version,
)

WRITER = Writer("a", "pca_1_ab")
BRANCH = WRITER.branch
WIDTH = 12


def sample(seed=0, n=40):
    """Moments of awkward numbers: over many magnitudes, none of them round."""
    rng = np.random.default_rng(seed)
    return moments_of(rng.normal(size=(n, WIDTH)) * np.geomspace(1e-8, 1e8, WIDTH) + np.pi)


def version_of(moments, **changes):
    """A version with every field set."""
    pca = fit(moments, 5)
    card = PCAVersion(
        pca_id=pca_identity("m", pca),
        model_id="m",
        pca=pca,
        n_components="5",
        held_out_unexplained=0.1 + 0.2,
        features_snapshot_id=2**62 + 1,
        reason="first fit",
        run_id="a",
        fitted_at=datetime(2026, 11, 22, 9, 30, 0, 123456, tzinfo=UTC),
        split_rules="by the key",
    )
    return replace(card, **changes)


def same_bits(a, b):
    """Whether two PCAs or moments are equal to the last bit, in every field."""
    for name in vars(a):
        x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
        assert (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes()), name
    return True


@pytest.fixture
def branch(lake):
    for name in ("pca_models", "pca_statistics", "label_statistics"):
        start_branch(lake, name, BRANCH, lake.head(name))
    return lake


def versions(lake, model_id="m"):
    return load_versions(lake, lake.head("pca_models", BRANCH), model_id)


def statistics(lake, model_id="m"):
    return load_statistics(lake, lake.head("pca_statistics", BRANCH), model_id, WIDTH)


class TestVersions:
    @pytest.mark.parametrize("held_out", [0.1 + 0.2, None])
    def test_a_version_comes_back_to_the_last_bit(self, branch, held_out):
        saved = version_of(sample(), held_out_unexplained=held_out)
        save_version(branch, WRITER, saved)
        (loaded,) = versions(branch)
        assert same_bits(loaded.pca, saved.pca)
        assert replace(loaded, pca=saved.pca) == saved
        assert pca_identity("m", loaded.pca) == saved.pca_id

    def test_the_same_version_again_replaces_the_first(self, branch):
        saved = version_of(sample())
        save_version(branch, WRITER, saved)
        save_version(branch, WRITER, replace(saved, run_id="b", reason="asked for"))
        (loaded,) = versions(branch)
        assert (loaded.run_id, loaded.reason) == ("b", "asked for")
        assert same_bits(loaded.pca, saved.pca)

    def test_versions_of_the_backbone_come_oldest_first(self, branch):
        newest = version_of(sample(1))
        oldest = version_of(sample(2), fitted_at=newest.fitted_at - timedelta(days=1))
        for version in (newest, oldest, version_of(sample(3), pca_id="pca-other", model_id="other")):
            save_version(branch, WRITER, version)
        assert [version.pca_id for version in versions(branch)] == [oldest.pca_id, newest.pca_id]
        assert [version.pca_id for version in versions(branch, "other")] == ["pca-other"]

    def test_nothing_shows_on_main(self, branch):
        save_version(branch, WRITER, version_of(sample()))
        assert load_versions(branch, branch.head("pca_models"), "m") == []

    def test_drift_is_held_against_the_held_out_share_or_else_the_fits(self):
        fitted = version_of(sample(), held_out_unexplained=None)
        assert fitted.expected_unexplained == fitted.pca.unexplained_share
        assert replace(fitted, held_out_unexplained=0.25).expected_unexplained == 0.25


def labelled(seed, *labels):
    """Sums of a few photos of each label."""
    return sums_of(np.random.default_rng(seed).normal(size=(len(labels), WIDTH)).astype(np.float32), labels)


class TestLabelSums:
    def head(self, lake):
        return lake.head("label_statistics", BRANCH)

    def test_they_come_back_to_the_last_bit(self, branch):
        saved = labelled(0, *"aabc")
        save_label_sums(branch, WRITER, "m", saved, "a")
        loaded = load_label_sums(branch, self.head(branch), "m")
        assert count_by_label(branch, self.head(branch), "m") == {"a": 2, "b": 1, "c": 1}
        assert loaded.keys() == saved.keys()
        assert all(same_bits(loaded[label], saved[label]) for label in saved)
        assert load_label_sums(branch, self.head(branch), "m", {"b", "z"}).keys() == {"b"}

    def test_only_labels_that_changed_are_written_and_an_emptied_label_leaves_no_row(self, branch):
        save_label_sums(branch, WRITER, "m", labelled(0, *"abc"), "first")
        save_label_sums(branch, WRITER, "other", labelled(1, *"abc"), "first")
        save_label_sums(branch, WRITER, "m", labelled(2, *"bd"), "second", replaced={"b", "c"})
        rows = branch.read("label_statistics", self.head(branch)).to_pylist()
        assert {(row["model_id"], row["label"], row["run_id"]) for row in rows} == {
            *(("m", label, run) for label, run in (("a", "first"), ("b", "second"), ("d", "second"))),
            *(("other", label, "first") for label in "abc"),
        }

    def test_nothing_changed_commits_nothing(self, branch):
        before = self.head(branch)
        save_label_sums(branch, WRITER, "m", {}, "a")
        assert self.head(branch) == before


class TestStatistics:
    def test_they_come_back_to_the_last_bit(self, branch):
        save_statistics(branch, WRITER, "m", sample(), "a")
        assert same_bits(statistics(branch), sample())

    def test_there_are_none_to_begin_with(self, branch):
        assert same_bits(statistics(branch), Moments.empty(WIDTH))

    def test_new_ones_replace_those_of_the_same_backbone_only(self, branch):
        save_statistics(branch, WRITER, "m", sample(0), "a")
        save_statistics(branch, WRITER, "other", sample(1), "a")
        save_statistics(branch, WRITER, "m", sample(2), "b")
        assert same_bits(statistics(branch), sample(2))
        assert same_bits(statistics(branch, "other"), sample(1))
        assert branch.read("pca_statistics", branch.head("pca_statistics", BRANCH)).num_rows == 2

    def test_runs_that_save_at_once_keep_each_its_own(self, lake):
        base, barrier = lake.head("pca_statistics"), threading.Barrier(5)

        def save(seed):
            own = Lake.open(lake.settings)
            barrier.wait()
            for _ in range(2):
                start_branch(own, "pca_statistics", Writer(str(seed), "pca_1_ab").branch, base)
                save_statistics(own, Writer(str(seed), "pca_1_ab"), "m", sample(seed), str(seed))

        with ThreadPoolExecutor(5) as pool:
            list(pool.map(save, range(5)))
        for seed in range(5):
            loaded = load_statistics(
                lake, lake.head("pca_statistics", Writer(str(seed), "pca_1_ab").branch), "m", WIDTH
            )
            assert same_bits(loaded, sample(seed))
