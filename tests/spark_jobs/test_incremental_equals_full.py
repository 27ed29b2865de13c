"""Nothing is lost, anything may run again, incremental equals full, an increment costs an increment."""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from fruits.errors import ExitCode
from fruits.lake.approvals import approve, read_approvals
from fruits.lake.catalog import Lake
from fruits.lake.counters import COUNTED, Counters, Kind, agree
from fruits.lake.publication import roll_back
from tests.spark_jobs.equality import assert_equal_moments, assert_equal_tables, statistics

pytestmark = [pytest.mark.jobs]


@dataclass
class Bucket:
    """The photos of a bucket and a seeded way to change them."""

    chain: Any
    settings: Any
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
        published = self.chain.published(self.settings)
        kinds = ({name: row.get(name) for name in ("model_id", "label", "split", "reason")} for row in rows)
        assert published.counted == Counters(Counter(Kind(**kind) for kind in kinds))
        tables = {name: Lake.open(self.settings).table(name) for name in COUNTED}
        assert agree(published.counted, tables, published.snapshots)
        return True


def test_a_history_of_runs_equals_one_full_run(chain, new_settings, monkeypatch, request):
    """Spark, the driver, and the driver's worker processes each do some of its tasks."""
    settings = new_settings(max_quarantined_share=0.9, min_probe_ratio=0)
    by_spark = settings.model_copy(update={"few_photos": 0})
    bucket = Bucket(chain, settings, seed=20261122)

    bucket.change(add=14)
    chain.run(by_spark, "first")
    assert bucket.accounted()

    # A limited run leaves the rest for later; its tasks are tried again, as Airflow does after a lost machine.
    bucket.change(add=5, overwrite=3, delete=2)
    planned = chain.plan(settings, "limited", limit=4)
    assert (planned.counts["pending"], planned.counts["delete"]) == (4, 2)
    for job in ("featurize", "pca"):
        for one in (settings, by_spark):
            assert chain.submit(job, one, "limited") == ExitCode.OK
    assert chain.submit("validate", settings, "limited") == ExitCode.OK
    chain.publish(settings, "limited")
    assert bucket.accounted(pending=4)

    # A run dies in the middle. It is cleared from its plan, because more photos came.
    bucket.change(add=2, overwrite=2, delete=1)
    before = chain.heads(settings)
    chain.plan(settings, "cleared")
    assert chain.submit("featurize", settings, "cleared") == ExitCode.OK
    with monkeypatch.context() as patch:
        patch.setattr(chain.jobs["pca"], "reason_to_refit", die)
        assert chain.submit("pca", settings, "cleared") == ExitCode.UNEXPECTED
    assert chain.heads(settings) == before
    bucket.change(add=2, overwrite=3, delete=2)
    last = chain.run(settings, "cleared", refit="always")
    assert bucket.accounted()
    assert last.pca.result.reason == "asked for"

    full = new_settings(bucket=settings.bucket, max_quarantined_share=0.9, min_probe_ratio=0, few_photos=0)
    request.getfixturevalue("worker_processes")
    chain.run(full, "full")
    assert chain.rows(full, "quarantine"), "the history quarantined nothing; choose another seed"
    assert_equal_tables(chain, settings, full)
    assert len(chain.rows(settings, "pca_models")) > 1
    old_versions = {row["pca_id"] for row in chain.rows(settings, "embeddings")} - {last.pca.result.pca_id}
    assert old_versions, "embeddings under older versions must stay readable"


def die(*args):
    raise RuntimeError("the power went off")


@pytest.fixture(scope="module")
def grown(chain, new_settings):
    """A history of runs, and what each left: photos added, replaced and deleted; nothing; a refit; the same run again
    after its publication; a rollback and a run after it; all photos deleted, which a person then approves.
    """
    settings = new_settings(min_probe_ratio=0)
    photos = chain.photos(12)
    chain.put(settings, photos)
    chain.run(settings, "first")
    replaced, deleted = list(photos)[4:6], list(photos)[8]
    chain.put(settings, chain.photos(3, start=12) | {key: chain.photo(70 + n) for n, key in enumerate(replaced)})
    chain.delete(settings, deleted)
    steps = {"increment": step(chain, settings, "increment")}

    before = chain.heads(settings)
    idle = chain.plan(settings, "idle")
    assert chain.heads(settings) == before

    steps["refit"] = step(chain, settings, "refit", refit="always")
    chain.put(settings, {f"Training/Kiwi/since-{number}.img": chain.photo(80 + number) for number in range(2)})
    steps["again"] = step(chain, settings, "increment")

    rolled_back = roll_back(Lake.open(settings), "1")
    steps["rolled back"] = Step(chain, settings)
    assert chain.heads(settings)["features"] == rolled_back.snapshots["features"]
    steps["after the rollback"] = step(chain, settings, "after the rollback", refit="always")

    chain.delete(settings, *(row["key"] for row in chain.rows(settings, "features")))
    before = chain.heads(settings)
    asking = chain.plan(settings, "asking")
    assert chain.heads(settings) == before
    approve(settings, asking.undecided[0], by="ada", why="the photos moved", via="fruits approve")
    steps["emptied"] = step(chain, settings, "emptied")
    assert read_approvals(settings) == []
    return SimpleNamespace(
        idle=idle,
        asking=asking,
        published=chain.published(settings),
        **{name.replace(" ", "_"): left for name, left in steps.items()},
    )


class Step:
    """What a run left: its documents, and what readers find."""

    def __init__(self, chain, settings, documents=None):
        self.documents, self.published = documents, chain.published(settings)
        self.features, self.embeddings = chain.rows(settings, "features"), chain.rows(settings, "embeddings")
        self.statistics = statistics(chain, settings)

    def runs(self, rows):
        """How many of the rows each run wrote."""
        return Counter(row["run_id"] for row in rows)


def step(chain, settings, run_id, **params):
    return Step(chain, settings, chain.run(settings, run_id, **params))


def test_an_increment_costs_an_increment(grown):
    documents = grown.increment.documents
    assert documents.planned.counts == {
        "create": 3, "update": 2, "delete": 1, "unchanged": 9, "quarantined": 0, "pending": 0, "ignored": 0,
    }  # fmt: skip
    featurize, pca = documents.featurize.result, documents.pca.result
    assert (featurize.images, featurize.features, featurize.removed) == (5, 5, 1)
    assert (pca.action, pca.reason, pca.projected) == ("project", None, 5)
    assert pca.recomputed is False


def test_an_increment_leaves_the_rows_it_does_not_concern_as_they_were(grown):
    for rows in (grown.increment.features, grown.increment.embeddings):
        assert grown.increment.runs(rows) == {"first": 9, "increment": 5}


def test_nothing_changed_plans_no_work(grown):
    assert grown.idle.work is False
    assert {name for name, count in grown.idle.counts.items() if count} == {"unchanged"}


def test_a_refit_that_is_asked_for_needs_no_new_photo(grown):
    documents, before = grown.refit.documents, grown.increment.features
    assert documents.featurize.result.images == 0
    assert (documents.pca.result.reason, documents.pca.result.projected) == ("asked for", len(before))
    assert grown.refit.features == before


def test_a_published_run_that_is_cleared_from_its_plan_publishes_what_came_since(grown):
    documents, before, after = grown.again.documents, grown.refit, grown.again
    assert (documents.featurize.result.images, documents.pca.result.projected) == (2, 2)
    assert after.published.sequence == before.published.sequence + 1
    assert after.statistics.n == before.statistics.n + 2
    keys = [row["key"] for row in after.features]
    assert len(set(keys)) == len(keys) == len(before.features) + 2
    pca_id = documents.pca.result.pca_id
    assert [row["key"] for row in after.embeddings if row["pca_id"] == pca_id] == keys


def test_a_run_after_a_rollback_brings_newer_photos_back(grown):
    """Spark branches from the older snapshots."""
    assert len(grown.rolled_back.features) == 12
    counts = grown.after_the_rollback.documents.planned.counts
    assert (counts["create"], counts["update"], counts["delete"]) == (5, 2, 1)
    before, after = (without_run(left.features) for left in (grown.again, grown.after_the_rollback))
    assert after == before
    assert_equal_moments(grown.after_the_rollback.statistics, grown.again.statistics)


def without_run(rows):
    return [{**row, "run_id": None} for row in rows]


def test_a_bucket_that_was_emptied_leaves_the_tables_as_they_are(grown):
    assert (grown.asking.work, grown.asking.known_rows) == (False, 16)
    assert [question.number for question in grown.asking.undecided] == [16]


def test_a_person_approves_empty_tables_and_the_publication_says_who_and_why(grown):
    (approval,) = grown.published.approvals
    assert (approval.number, approval.approved_by, approval.why) == (16, "ada", "the photos moved")
    assert grown.emptied.documents.featurize.result.removed == 16
    assert (grown.emptied.features, grown.emptied.embeddings, grown.emptied.statistics.n) == ([], [], 0)
