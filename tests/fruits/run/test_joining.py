import tempfile
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.errors import FruitsError
from fruits.photos.entry import Action
from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject, batch_of
from fruits.run import joining
from fruits.run.joining import joined
from fruits.run.reconciliation import Ignored, KnownObject, make_plan
from fruits.run.request import RunRequest
from fruits.settings import Settings
from tests.plans import joined_again, plan_of, rows_of

RULES = KeyRules.of(Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db"))
START = datetime(2026, 11, 20, tzinfo=UTC)


@given(st.lists(st.integers(0, 5), max_size=25), st.none() | st.integers(1, 25))
def test_parts_and_ranges_change_nothing(hours, limit):
    listed = [ListedObject(f"Kiwi/{n}.jpg", "one", 9, START + timedelta(hours=hour)) for n, hour in enumerate(hours)]
    request = RunRequest(prefix="", limit=limit)
    whole = plan_of(listed, {}, RULES, request)
    before = joining._PART_BYTES, joining._SORTED_BYTES
    try:
        joining._PART_BYTES, joining._SORTED_BYTES = 300, 300
        assert plan_of(listed, {}, RULES, request) == whole
    finally:
        joining._PART_BYTES, joining._SORTED_BYTES = before


@pytest.mark.parametrize("same_rules", [True, False])
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (RunRequest(prefix="", mode="rebuild", keys=("Kiwi/1.jpg",)), {Action.UPDATE: 1}),
        (RunRequest(prefix="", mode="rebuild"), {Action.UPDATE: 2, Action.DELETE: 1}),
        (RunRequest(prefix=""), {Action.UPDATE: 1, Action.UNCHANGED: 1, Action.DELETE: 1}),
    ],
)
def test_a_key_that_has_two_rows_has_one_entry(request_, expected, same_rules):
    listed = [ListedObject("Kiwi/1.jpg", "new", 9, START), ListedObject("Kiwi/2.jpg", "old", 9, START)]
    once = {key: KnownObject("old", START, "Kiwi", "train") for key in ("Kiwi/1.jpg", "Kiwi/2.jpg", "Kiwi/gone.jpg")}
    twice = {key: row for key, row in once.items() if key != "Kiwi/2.jpg"}
    with joined_again() as pairs:
        ignored = Ignored.by(RULES, request_)
        pairs.add("known", [rows_of(once), rows_of(twice)])
        pairs.add("listed", [batch_of(listed)])
        plan = make_plan(pairs, ignored, RULES, request_, same_rules=same_rules)
        keys = [entry.key for entry in plan.entries()]
    assert len(keys) == len(set(keys))
    assert plan.repeated == sum(key in twice for key in keys)
    assert {action: number for action, number in plan.counts.items() if number} == expected


def listed(number, length=40):
    """Pages of a listing of so many keys, of so many bytes each."""
    for start in range(0, number, 1_000):
        numbers = range(start, min(number, start + 1_000))
        keys = [f"Training/Kiwi/{sha256(b'%d' % n).hexdigest() * 16}"[: length - 12] + f"{n:08}.jpg" for n in numbers]
        yield batch_of([ListedObject(key, "one", 9, START) for key in keys])


def planned(number, length, *, known=0):
    """The keys of the manifest when there are so many objects, and rows of another ETag for the first of them."""
    request, ignored = RunRequest(prefix=""), Ignored.by(RULES, RunRequest(prefix=""))
    with joined() as pairs:
        for batch in listed(known, length):
            pairs.add("known", [batch.set_column(1, "etag", pa.array(["other"] * batch.num_rows))])
        pairs.add("listed", ignored.others(listed(number, length)))
        plan = make_plan(pairs, ignored, RULES, request)
        return plan.counts, [key for batch in plan.batches() for key in batch["key"].to_pylist()]


@pytest.mark.heavy
def test_a_plan_takes_keys_of_1024_bytes_which_are_the_longest_that_s3_has():
    counts, keys = planned(30_000, 1_024, known=20_000)
    assert (counts[Action.CREATE], counts[Action.UPDATE]) == (10_000, 20_000)
    assert keys == sorted(keys)
    assert {len(key) for key in keys} == {1_024}
    assert len(set(keys)) == 30_000


def test_a_plan_that_needs_too_much_memory_does_not_ask_for_room_on_a_disk(monkeypatch):
    monkeypatch.setattr(joining, "_MEMORY", "3MB")
    with pytest.raises(FruitsError, match=r"^plan: .* 3MB, .*param `prefix`") as caught:
        planned(30_000, 40)
    assert "TMPDIR" not in str(caught.value)


def test_an_error_of_the_database_that_comes_through_arrow_is_explained_as_well():
    full = "SELECT CASE WHEN i = 9000 THEN error('no room below memory_limit') END AS key FROM range(10000) t(i)"
    with joined() as pairs, pytest.raises(FruitsError, match="no room below memory_limit; .*param `prefix`"):
        list(pairs._batches(full, ()))


def test_a_plan_removes_what_a_killed_plan_left_but_nothing_of_a_running_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "fruits-plan-killed"
    left.mkdir()
    (left / "plan.db").write_bytes(b"rows")
    with joined():
        (running,) = tmp_path.iterdir()
        assert running != left
        with joined():
            assert (running / "plan.db").exists()
    assert not list(tmp_path.iterdir())


def test_a_plan_without_a_folder_for_temporary_files_names_tmpdir(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FruitsError, match="Set TMPDIR"), joined():
        pass
