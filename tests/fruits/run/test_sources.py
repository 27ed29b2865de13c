"""A sweep by another source than a listing plans what a listing plans, and never deletes what is there."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from fruits.photos.entry import Action
from fruits.photos.inventory import newest_report, reported_batches
from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject, batch_of
from fruits.run import joining, sources
from fruits.run.reconciliation import Ignored, KnownObject, make_plan
from fruits.run.request import RunRequest
from fruits.run.sources import Source, TooOldError, catch_up
from fruits.settings import Settings
from tests.plans import joined_again, rows_of
from tests.sources import Version, versions_of, write_report

SETTINGS = Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db")
RULES, REQUEST = KeyRules.of(SETTINGS), RunRequest(prefix="")
KEYS = [f"Training/Kiwi/{number}.jpg" for number in range(4)]
IGNORED = "Training/Kiwi/.DS_Store"
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
DATE = NOON + timedelta(minutes=30)
FOLDER = "reports/fruits/daily"

Bucket = dict[str, ListedObject]
"""The objects of a bucket by key."""

puts = st.tuples(st.sampled_from([*KEYS, IGNORED]), st.sampled_from(["one", "two", None]))
histories = st.lists(puts, max_size=8)


def after(bucket: Bucket, history: list[tuple[str, str | None]], start: datetime) -> Bucket:
    """The bucket after uploads, and deletions (an ETag of None), one every second."""
    now = dict(bucket)
    for second, (key, etag) in enumerate(history):
        now.pop(key, None)
        if etag:
            now[key] = ListedObject(key, etag, 9, start + timedelta(seconds=second))
    return now


def known(bucket: Bucket, keys: list[str]) -> dict[str, KnownObject]:
    """Rows of some objects of a bucket."""
    shown = [bucket[key] for key in keys if key in bucket and key != IGNORED]
    return {item.key: KnownObject(item.etag, item.last_modified, "Kiwi", "train") for item in shown}


def source_of(kind: str, bucket: Bucket) -> Source:
    """The bucket as a source shows it, with an older version and a delete marker where it tells of versions."""
    objects = [Version(item.key, item.etag, item.last_modified) for item in bucket.values()]
    older = [Version(one.key, "older", NOON - timedelta(days=1), latest=False) for one in objects]
    gone = [
        Version("Test/Kiwi/gone.jpg", "older", NOON, latest=False),
        Version("Test/Kiwi/gone.jpg", None, NOON, size=None, gone=True),
    ]
    versions = [*older, *gone, *objects]
    if kind == "metadata":
        return Source(kind, DATE, iter([versions_of(versions)]), versions=True)
    store = MemoryStore()
    write_report(store, FOLDER, versions, DATE, form=kind, all_versions=True)
    return Source(kind, DATE, reported_batches(store, newest_report(store, FOLDER, "fruits"), ""))


def planned(source: Source | None, bucket: Bucket, rows: Mapping[str, KnownObject], events=(), asked=None):
    """The actions of a plan by key; the bucket is listed when the source is None, or of no use."""

    def look_up(keys):
        if asked is not None:
            asked.extend(keys)
        yield batch_of([bucket[key] for key in keys if key in bucket])

    with joined_again() as pairs:
        pairs.add("known", [rows_of(rows)])
        ignored = Ignored.by(RULES, REQUEST)
        pairs.add("listed", ignored.others(source.objects(pairs) if source else [batch_of(list(bucket.values()))]))
        try:
            if source:
                catch_up(pairs, ignored, look_up, "", source.date, events)
        except TooOldError:
            return planned(None, bucket, rows)
        plan = make_plan(pairs, ignored, RULES, REQUEST)
        return {entry.key: (entry.action, entry.etag) for entry in plan.entries()}, plan.counts


SOURCES = ["Parquet", "metadata"]


@given(history=histories, changes=histories, keys=st.sets(st.sampled_from(KEYS)))
@pytest.mark.parametrize("kind", SOURCES)
def test_on_a_quiet_bucket_each_source_gives_the_plan_of_a_listing(kind, history, changes, keys):
    earlier = after({}, history, NOON)
    rows = known(earlier, sorted(keys))
    bucket = after(earlier, changes, NOON + timedelta(minutes=10))
    assert planned(source_of(kind, bucket), bucket, rows) == planned(None, bucket, rows)


@given(
    before=histories,
    during=histories,
    since=histories,
    seen=st.lists(st.sampled_from(KEYS), unique=True),
    events=st.sets(st.sampled_from(KEYS)),
)
@example(  # an inventory of yesterday: put, seen and published since
    before=[], during=[], since=[(KEYS[0], "one")], seen=[KEYS[0]], events=set()
)
@example(before=[(KEYS[0], "one")], during=[], since=[(KEYS[0], None)], seen=[], events=set())
@pytest.mark.parametrize("kind", SOURCES)
def test_on_a_busy_bucket_no_source_deletes_what_is_there_or_goes_back(kind, before, during, since, seen, events):
    earlier = after({}, before, NOON)
    shown = after(earlier, during, NOON + timedelta(minutes=10))
    bucket = after(shown, since, DATE + timedelta(hours=20))
    rows = known(earlier, KEYS) | known(bucket, seen)
    actions, _ = planned(source_of(kind, shown), bucket, rows, events)
    for key, (action, etag) in actions.items():
        assert key in bucket or action == Action.DELETE
        assert (action == Action.DELETE) == (key not in bucket)
        assert action == Action.DELETE or etag == bucket[key].etag
    truth, _ = planned(None, bucket, rows)
    late = {key for key, _ in since} | {key for key in rows if rows[key].last_modified > DATE}
    assert {key: action for key, action in truth.items() if key not in late or key in events} == {
        key: action for key, action in actions.items() if key not in late or key in events
    }


@pytest.mark.parametrize("part_bytes", [joining._PART_BYTES, 100], ids=["one part", "groups of parts"])
def test_a_sweep_asks_only_for_what_differs_and_for_the_keys_of_events(monkeypatch, part_bytes):
    monkeypatch.setattr(joining, "_PART_BYTES", part_bytes)
    bucket = after({}, [(key, "one") for key in KEYS], NOON)
    rows = known(bucket, KEYS) | {"Test/Kiwi/0.jpg": KnownObject("one", NOON, "Kiwi", "test")}
    rows["Test/Kiwi/1.jpg"] = KnownObject("one", DATE + timedelta(hours=1), "Kiwi", "test")
    asked: list[str] = []
    actions, counts = planned(source_of("Parquet", bucket), bucket, rows, (KEYS[3], IGNORED), asked)
    assert actions == {"Test/Kiwi/0.jpg": (Action.DELETE, "one")}
    assert asked == ["Test/Kiwi/0.jpg", KEYS[3]]
    assert counts[Action.UNCHANGED] == len(KEYS) + 1


def test_many_new_objects_are_not_looked_up_one_by_one(monkeypatch):
    monkeypatch.setattr(sources, "MOST_LOOKED_UP", 2)
    bucket = after({}, [(key, "one") for key in KEYS], NOON)
    asked: list[str] = []
    actions, _ = planned(source_of("Parquet", bucket), {}, {}, (), asked)
    assert (set(actions), asked) == (set(KEYS), [])


@pytest.mark.parametrize("left", [0, 1], ids=["nothing", "little"])
def test_a_source_that_shows_almost_nothing_is_no_reason_to_delete(monkeypatch, left):
    monkeypatch.setattr(sources, "MOST_LOOKED_UP", 2)
    bucket = after({}, [(key, "one") for key in KEYS], NOON)
    shown = dict(list(bucket.items())[:left])
    asked: list[str] = []
    actions, counts = planned(source_of("Parquet", shown), bucket, known(bucket, KEYS), (), asked)
    assert (actions, counts[Action.UNCHANGED], asked) == ({}, len(KEYS), [])


def test_an_old_source_is_warned_of_with_its_date():
    source = Source("S3 Inventory", NOON, iter(()))
    assert source.warning(NOON + timedelta(days=2)) is None
    assert str(source.warning(NOON + timedelta(days=3))).startswith(
        "S3 Inventory as of 2026-11-26 12:00 UTC, 3 days ago: what changed since is found by events only."
    )


def test_a_photo_that_a_rule_ignores_now_leaves_whatever_the_bucket_has():
    bucket = after({}, [(IGNORED, "one"), (KEYS[0], "one")], NOON)
    rows = known(bucket, KEYS) | {IGNORED: KnownObject("one", NOON, "Kiwi", "train")}
    asked: list[str] = []
    actions, _ = planned(source_of("CSV", bucket), bucket, rows, (), asked)
    assert (actions, asked) == ({IGNORED: (Action.DELETE, "one")}, [])
