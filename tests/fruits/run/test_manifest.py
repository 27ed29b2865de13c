from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest

import fruits.run.manifest
import fruits.stores
from fruits.photos.entry import WORK, Action, Entry
from fruits.photos.quarantine import Reason
from fruits.run.documents import run_store
from fruits.run.manifest import (
    DEFAULT_NAME,
    DUE_ETAG,
    MANIFEST_SCHEMA,
    Manifest,
    StoredManifest,
    entries_batch,
    entries_of,
    evenly,
    write_manifest,
    write_slices,
)
from fruits.settings import Settings

MOMENT = datetime(2026, 11, 20, 12, 30, 15, 123456, tzinfo=UTC)
ENTRIES = (
    Entry("Test/Kiwi/a b%20ü🍎.jpg", "etag", 5_000_000_000, MOMENT, Action.CREATE, "Kiwi", "test"),
    Entry("Kiwi/2.jpg", "etag-2", 0, MOMENT, Action.UPDATE, "Kiwi", "train"),
    Entry("stray.jpg", "", 1, MOMENT, Action.CREATE, rejection=Reason.KEY_PATTERN),
    Entry("Fig/1.jpg", "etag", 0, MOMENT, Action.DELETE, "Fig", "train"),
)


@pytest.fixture
def store(tmp_path):
    settings = Settings.load(lake=f"file://{tmp_path}", catalog_uri=f"sqlite:///{tmp_path}/catalog.db")
    return run_store(settings, "manual_1")


def read(store, name: str = DEFAULT_NAME) -> Manifest:
    return Manifest(StoredManifest(store, name).columns(*MANIFEST_SCHEMA.names))


def entries_in(manifest: Manifest) -> tuple[Entry, ...]:
    return tuple(entry for batch in manifest.table.to_batches() for entry in entries_of(batch))


@pytest.mark.parametrize("entries", [ENTRIES, ()], ids=["some", "none"])
def test_what_was_written_is_read(store, entries):
    write_manifest(store, [entries_batch(entries)])
    manifest = read(store)
    assert entries_in(manifest) == entries
    assert manifest.table.schema.equals(MANIFEST_SCHEMA)


def test_a_plan_made_again_replaces_the_manifest(store):
    write_manifest(store, [entries_batch(ENTRIES)])
    write_manifest(store, [entries_batch(ENTRIES[:1])])
    assert entries_in(read(store)) == ENTRIES[:1]


def test_a_run_without_a_manifest_has_none(store):
    with pytest.raises(FileNotFoundError):
        read(store)


def test_it_says_what_is_featurized_what_leaves_and_how_much_of_each(store):
    write_manifest(store, [entries_batch(ENTRIES)])
    manifest = read(store)
    assert len(manifest) == len(ENTRIES)
    assert manifest.replaced_keys.to_pydict() == {"key": ["Kiwi/2.jpg", "Fig/1.jpg"]}
    assert [manifest.count(action) for action in (Action.CREATE, Action.UPDATE, Action.DELETE)] == [2, 1, 1]
    assert Manifest(manifest.table.slice(0, 0)).count(Action.CREATE) == 0


@pytest.mark.parametrize("rebuilt", [False, True])
def test_what_was_not_read_keeps_its_row_which_a_rebuild_makes_due_again(store, rebuilt):
    entries = tuple(
        Entry(f"Kiwi/{action}-{fate}", "etag", 1, MOMENT, action, "Kiwi", "train")
        for action in (Action.CREATE, Action.UPDATE, Action.DELETE)
        for fate in ("read", "pending", "gone")
        if action != Action.DELETE or fate == "read"
    )
    write_manifest(store, [entries_batch(entries)])
    unread = [entry.key for entry in entries if not entry.key.endswith("read")]
    done = read(store).without(unread, rebuilt=rebuilt)
    kept = ["update-pending", "update-gone"] if rebuilt else []
    assert {entry.key.removeprefix("Kiwi/"): entry.action for entry in entries_in(done)} == {
        "create-read": Action.CREATE,
        "update-read": Action.UPDATE,
        "delete-read": Action.DELETE,
        **dict.fromkeys(kept, Action.UPDATE),
    }
    assert done.kept_keys["key"].to_pylist() == [f"Kiwi/{name}" for name in kept]
    assert [entry.etag for entry in entries_in(done)] == ["etag"] * 3 + [DUE_ETAG] * len(kept)
    write_slices(store, [done], "carried_out.parquet")
    assert read(store, "carried_out.parquet").table.equals(done.table)
    assert done.table.schema.equals(MANIFEST_SCHEMA)


def test_keys_to_read_are_neither_deleted_nor_rejected(store):
    write_manifest(store, [entries_batch(ENTRIES)])
    assert read(store).readable_keys == [ENTRIES[0].key, ENTRIES[1].key]


@pytest.mark.parametrize(("count", "most"), [(0, 3), (2, 3), (3, 3), (4, 3), (1_000, 32)])
def test_a_sample_is_spread_over_all(count, most):
    items = [str(number) for number in range(count)]
    sample = evenly(items, most)
    assert min(count, most) // 2 <= len(sample) <= most
    assert len(set(sample)) == len(sample)
    assert not items or int(sample[-1]) >= count / 2 or count < most


class TestAManifestThatIsReadSliceBySlice:
    @pytest.fixture(params=["in memory", "by ranges"])
    def stored(self, request, store, monkeypatch):
        """Ten times the entries, in row groups of three; and how many bytes are in memory at most."""
        if request.param == "by ranges":
            monkeypatch.setattr(fruits.stores, "_SMALL_OBJECT_BYTES", 0)
        monkeypatch.setattr(fruits.run.manifest, "_SLICE_ROWS", 7)
        entries = [replace(entry, key=f"{number}/{entry.key}") for number in range(10) for entry in ENTRIES]
        write_manifest(store, [entries_batch(entries)])
        whole = read(store)
        slices = [Manifest(whole.table.slice(start, 3)) for start in range(0, len(whole), 3)]
        write_slices(store, slices, "slices.parquet")
        return whole, StoredManifest(store, "slices.parquet")

    def test_has_the_entries_of_the_whole(self, stored):
        whole, slices = stored
        assert pa.concat_tables(some.table for some in slices.slices()).equals(whole.table)
        assert max(len(some) for some in slices.slices()) <= 7
        assert slices.columns("action", "key").equals(whole.table.select(["action", "key"]))
        assert len(slices) == len(whole)

    def test_says_the_same_of_them(self, stored):
        whole, slices = stored
        assert slices.replaced_keys["key"].to_pylist() == whole.replaced_keys["key"].to_pylist()
        assert {action: slices.count(action) for action in WORK} == {action: whole.count(action) for action in WORK}

    @pytest.mark.parametrize("most", [1, 3, 7, 19, 20, 1_000])
    def test_gives_a_sample_of_the_readable_keys_at_even_distances(self, stored, most):
        whole, slices = stored
        assert slices.sample_of_readable(most) == evenly(whole.readable_keys, most)

    def test_may_be_empty(self, store):
        write_manifest(store, [])
        empty = StoredManifest(store)
        assert len(empty) == 0
        assert empty.replaced_keys.num_rows == 0
        assert empty.sample_of_readable(3) == []
        assert empty.count(Action.CREATE) == 0
