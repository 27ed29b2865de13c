"""Nothing is lost, anything may run again, incremental equals full, an increment costs an increment."""

import hashlib
import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from fruits.analysis.pca import subspace_angle
from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_statistics, load_versions

pytestmark = [pytest.mark.jobs]

WIDTH = 1280
FLOAT32 = float(np.finfo(np.float32).eps)


@dataclass
class Bucket:
    """The photos of a bucket and a seeded way to change them."""

    chain: object
    settings: object
    seed: int
    photos: dict[str, bytes] = field(default_factory=dict)
    drawn: int = 0

    def __post_init__(self):
        self.random = random.Random(self.seed)  # noqa: S311

    def content(self):
        """New bytes, now and then broken ones."""
        self.drawn += 1
        sound = self.chain.photo(self.drawn, self.random.choice(("Apple Red", "Banana", "Kiwi")))
        return self.random.choices((sound, b"", b"<html>", sound[: len(sound) // 2]), (12, 1, 1, 1))[0]

    def change(self, add, overwrite=0, delete=0):
        """Add, overwrite and delete some photos; returns the keys that have new bytes."""
        known = self.random.sample(sorted(self.photos), overwrite + delete)
        overwritten, deleted = known[:overwrite], known[overwrite:]
        labels = [
            self.random.choice(("Training/Banana", "Training/Kiwi", "Test/Kiwi", "Banana", "")) for _ in range(add)
        ]
        added = [f"{label}/{len(self.photos)}-{number}.img".lstrip("/") for number, label in enumerate(labels)]
        written = {key: self.content() for key in (*overwritten, *added)}
        self.photos = {key: data for key, data in self.photos.items() if key not in deleted} | written
        self.chain.put(self.settings, written)
        self.chain.delete(self.settings, *deleted)
        return written

    def accounted(self, pending=0):
        """Whether each object is, by its ETag, in one of features, quarantine and pending, and nothing else is."""
        rows = [*self.chain.rows(self.settings, "features"), *self.chain.rows(self.settings, "quarantine")]
        etags = {key: hashlib.md5(data).hexdigest() for key, data in self.photos.items()}  # noqa: S324
        current = [row["key"] for row in rows if etags.get(row["key"]) == row["etag"]]
        assert len({row["key"] for row in rows}) == len(rows)
        assert len(set(current)) == len(etags) - pending
        return True


def assert_equal_tables(chain, one, other):
    """Features and quarantine equal to the last bit but for the run; the rest up to rounding."""
    for name in ("features", "quarantine"):
        ours, theirs = (chain.rows(settings, name, without=("run_id",)) for settings in (one, other))
        assert [row["key"] for row in ours] == [row["key"] for row in theirs]
        assert ours == theirs
    (n, mean, scatter), (n_full, mean_full, scatter_full) = (statistics(chain, settings) for settings in (one, other))
    assert n == n_full
    assert np.linalg.norm(mean - mean_full) < 1e-9 * np.linalg.norm(mean_full)
    assert np.linalg.norm(scatter - scatter_full) < 1e-9 * np.linalg.norm(scatter_full)
    ours, theirs = (current_version(chain, settings).pca for settings in (one, other))
    assert subspace_angle(ours.components, theirs.components) < 1e-6
    assert ours.n == theirs.n
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance, rtol=1e-9)
    assert_equal_embeddings(chain, one, other)


def assert_equal_embeddings(chain, one, other):
    ours, theirs = (
        chain.rows(settings, "embeddings", without=("run_id", "pca_id"), pca_id=chain.published(settings).pca_id)
        for settings in (one, other)
    )
    for name in ("key", "etag", "label", "split", "model_id"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    embedding, expected = (np.array([[*row["embedding"], row["residual"]] for row in rows]) for rows in (ours, theirs))
    np.testing.assert_allclose(embedding, expected, rtol=8 * FLOAT32, atol=8 * FLOAT32 * np.abs(expected).max())


def statistics(chain, settings):
    published = chain.published(settings)
    moments = load_statistics(Lake.open(settings), published.snapshots["pca_statistics"], published.model_id, WIDTH)
    return moments.n, moments.mean, moments.scatter


def current_version(chain, settings):
    published = chain.published(settings)
    versions = load_versions(Lake.open(settings), published.snapshots["pca_models"], published.model_id)
    return next(version for version in versions if version.pca_id == published.pca_id)


def test_a_history_of_runs_equals_one_full_run(chain, new_settings, monkeypatch):
    settings = new_settings(max_quarantined_share=0.9, min_probe_ratio=0)
    bucket = Bucket(chain, settings, seed=20261122)

    bucket.change(add=18)
    chain.run(settings, "first")
    assert bucket.accounted()

    # A limited run leaves the rest for later; its tasks are tried again, as Airflow does after a lost machine.
    bucket.change(add=5, overwrite=3, delete=2)
    plan = chain.plan(settings, "limited", limit=4)
    assert (plan["counts"]["pending"], plan["counts"]["delete"]) == (4, 2)
    for job in ("featurize", "featurize", "pca", "pca", "validate"):
        assert chain.submit(job, settings, "limited") == ExitCode.OK
    chain.publish(settings, "limited")
    assert bucket.accounted(pending=4)

    # A run dies in the middle and is never heard of again.
    bucket.change(add=2, overwrite=2, delete=1)
    before = chain.heads(settings)
    chain.plan(settings, "lost")
    assert chain.submit("featurize", settings, "lost") == ExitCode.OK
    with monkeypatch.context() as patch:
        patch.setattr(chain.jobs["pca"], "decide", die)
        assert chain.submit("pca", settings, "lost") == ExitCode.UNEXPECTED
    assert chain.heads(settings) == before

    # A run is planned and cleared from there, because more photos came.
    bucket.change(add=2, overwrite=2, delete=2)
    chain.plan(settings, "cleared")
    assert chain.submit("featurize", settings, "cleared") == ExitCode.OK
    bucket.change(add=1, overwrite=1, delete=1)
    chain.run(settings, "cleared")
    assert bucket.accounted()

    bucket.change(add=3, overwrite=4, delete=3)
    last = chain.run(settings, "last", refit="always")
    assert bucket.accounted()
    assert last["pca"]["reason"] == "asked for"

    full = new_settings(bucket=settings.bucket, max_quarantined_share=0.9, min_probe_ratio=0)
    chain.run(full, "full")
    assert chain.rows(full, "quarantine"), "the history quarantined nothing; choose another seed"
    assert_equal_tables(chain, settings, full)
    assert len(chain.rows(settings, "pca_models")) > 1
    old_versions = {row["pca_id"] for row in chain.rows(settings, "embeddings")} - {last["pca"]["pca_id"]}
    assert old_versions, "embeddings under older versions must stay readable"


def die(*args):
    raise RuntimeError("the power went off")


def test_a_history_in_an_s3_lake_equals_one_full_run(chain, new_settings):
    settings = new_settings("s3", max_quarantined_share=0.9, min_probe_ratio=0)
    bucket = Bucket(chain, settings, seed=7)
    bucket.change(add=12)
    chain.run(settings, "first")
    bucket.change(add=3, overwrite=3, delete=2)
    chain.run(settings, "last", refit="always")
    assert bucket.accounted()
    full = new_settings(bucket=settings.bucket, max_quarantined_share=0.9, min_probe_ratio=0)
    chain.run(full, "full")
    assert_equal_tables(chain, settings, full)


@pytest.fixture(scope="module")
def grown(chain, new_settings):
    """Settings, and the documents of a run over 3 photos added, 2 replaced and 1 deleted, after a first one over 16."""
    settings = new_settings(min_probe_ratio=0)
    photos = chain.photos(16)
    chain.put(settings, photos)
    chain.run(settings, "first")
    replaced, deleted = list(photos)[4:6], list(photos)[8]
    chain.put(settings, chain.photos(3, start=16) | {key: chain.photo(70 + n) for n, key in enumerate(replaced)})
    chain.delete(settings, deleted)
    return settings, chain.run(settings, "increment")


def test_an_increment_costs_an_increment(chain, grown):
    _, documents = grown
    assert documents["plan"]["counts"] == {
        "create": 3, "update": 2, "delete": 1, "unchanged": 13, "quarantined": 0, "pending": 0,
    }  # fmt: skip
    featurize, pca = documents["featurize"], documents["pca"]
    assert (featurize["images"], featurize["features"], featurize["removed"]) == (5, 5, 1)
    assert (pca["action"], pca["reason"], pca["projected"]) == ("project", None, 5)
    assert pca["recomputed"] is False


def test_an_increment_leaves_the_rows_it_does_not_concern_as_they_were(chain, grown):
    settings, _ = grown
    for name in ("features", "embeddings"):
        runs = [row["run_id"] for row in chain.rows(settings, name)]
        assert (runs.count("first"), runs.count("increment"), len(runs)) == (13, 5, 18)


def test_nothing_changed_plans_no_work(chain, grown):
    settings, _ = grown
    before = chain.heads(settings)
    plan = chain.plan(settings, "idle")
    assert plan["work"] is False
    assert {name for name, count in plan["counts"].items() if count} == {"unchanged"}
    assert chain.heads(settings) == before


def test_a_refit_that_is_asked_for_needs_no_new_photo(chain, grown):
    settings, _ = grown
    features = chain.rows(settings, "features")
    documents = chain.run(settings, "refit", refit="always")
    assert documents["featurize"]["images"] == 0
    assert (documents["pca"]["reason"], documents["pca"]["projected"]) == ("asked for", len(features))
    assert chain.rows(settings, "features") == features


def test_a_bucket_that_was_emptied_leaves_empty_tables(chain, new_settings):
    settings = new_settings()
    photos = chain.photos(4)
    chain.put(settings, photos)
    chain.run(settings, "first")
    chain.delete(settings, *photos)
    documents = chain.run(settings, "last")
    assert documents["featurize"]["removed"] == 4
    assert [len(chain.rows(settings, name)) for name in ("features", "embeddings", "quarantine")] == [0, 0, 0]
    assert statistics(chain, settings)[0] == 0


def test_a_published_run_that_is_cleared_from_its_plan_publishes_what_came_since(chain, grown):
    settings, _ = grown
    features, sequence = len(chain.rows(settings, "features")), chain.published(settings).sequence
    n = statistics(chain, settings)[0]
    chain.put(settings, {f"Training/Kiwi/since-{number}.img": chain.photo(80 + number) for number in range(2)})
    documents = chain.run(settings, "increment")
    assert (documents["featurize"]["images"], documents["pca"]["projected"]) == (2, 2)
    assert chain.published(settings).sequence == sequence + 1
    assert statistics(chain, settings)[0] == n + 2
    keys = [row["key"] for row in chain.rows(settings, "features")]
    assert len(set(keys)) == len(keys) == features + 2
    embeddings = chain.rows(settings, "embeddings", pca_id=documents["pca"]["pca_id"])
    assert [row["key"] for row in embeddings] == keys
