import math
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.photos.entry import Action
from fruits.run.chunks import (
    FEWEST_PHOTOS,
    Limits,
    Piece,
    in_chunks,
    in_tasks,
    limits_of,
    piece_to_do,
    tasks_of,
)
from fruits.run.manifest import MANIFEST_SCHEMA, Manifest
from fruits.settings import Settings

MOMENT = datetime(2026, 11, 20, tzinfo=UTC)


def manifest_of(actions, sizes=None):
    """A manifest with an entry of each action, with the keys 0, 1, 2 ..."""
    rows = [
        {"key": str(key), "etag": "e", "size": size, "last_modified": MOMENT, "action": action}
        for key, (action, size) in enumerate(zip(actions, sizes or [1] * len(actions), strict=True))
    ]
    return Manifest(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))


def keys_of(manifest):
    return manifest.table["key"].to_pylist()


@pytest.fixture(scope="module")
def settings():
    return Settings.load(lake="file:///nowhere", catalog_uri="sqlite:////nowhere/catalog.db")


def test_what_remains_is_what_has_no_row_of_the_run_and_every_removal_of_a_row():
    """The attempt before may have been killed between a removal and the rows in its place."""
    create, update, delete = Action.CREATE, Action.UPDATE, Action.DELETE
    entries = manifest_of([create, create, update, update, delete])
    left = piece_to_do(entries, pa.array(["1", "3"]))
    assert keys_of(left.entries) == ["0", "2", "3", "4"]
    assert keys_of(left.photos) == ["0", "2"]
    assert left.entries.replaced_keys["key"].to_pylist() == ["2", "3", "4"]


actions = st.lists(st.sampled_from([Action.CREATE, Action.UPDATE, Action.DELETE]), max_size=20)


@given(st.lists(actions, max_size=4), st.data())
def test_chunks_hold_every_entry_once_in_order_within_the_limits(slices, data):
    limits = Limits(*(data.draw(st.integers(1, 30)) for _ in range(3)))
    pieces = []
    for some in slices:
        sizes = data.draw(st.lists(st.integers(0, 20), min_size=len(some), max_size=len(some)))
        there = data.draw(st.sets(st.integers(0, 20).map(str)))
        pieces.append(piece_to_do(manifest_of(some, sizes), pa.array(sorted(there), pa.string())))
    chunks = list(in_chunks(pieces, limits))
    assert [key for chunk in chunks for key in keys_of(chunk.entries)] == [
        key for piece in pieces for key in keys_of(piece.entries)
    ]
    assert [key for chunk in chunks for key in keys_of(chunk.photos)] == [
        key for piece in pieces for key in keys_of(piece.photos)
    ]
    for chunk in chunks:
        used = chunk.costs().sum(axis=0)
        assert (used <= (limits.photos, limits.bytes, limits.entries)).all() or len(chunk.entries) == 1


@given(st.integers(0, 10**8), st.integers(1, 1_000))
def test_a_run_has_chunks_of_one_size_few_when_it_is_small_and_bounded_when_it_is_large(settings, photos, cores):
    limits = limits_of(settings, photos, cores)
    chunks = math.ceil(photos / limits.photos)
    assert limits.photos <= min(settings.chunk_photos * cores, 500_000)
    assert chunks <= 1 or photos > FEWEST_PHOTOS
    assert chunks == 0 or limits.photos - photos / chunks < 1
    assert photos < 20 * FEWEST_PHOTOS or chunks >= 20


def test_few_photos_and_many_deletions_are_one_chunk(settings):
    entries = manifest_of([Action.CREATE, *[Action.DELETE] * 5_000])
    pieces = [piece_to_do(entries, pa.array([], pa.string()))]
    assert len(list(in_chunks(pieces, limits_of(settings, 1, 2)))) == 1


@pytest.mark.parametrize(
    ("photos", "size", "cores", "tasks"),
    [
        (1, 10**8, 64, 1),
        (100, 10_000, 2, 2),
        (100, 10_000, 64, 4),
        (900, 10_000, 2, 2),
        (2_000, 10_000, 2, 4),
        (40_000, 10_000, 2, 20),
        (40_001, 10_000, 2, 22),
        (5_000, 4_000_000, 2, 10),
        (40, 1_000_000_000, 2, 20),
        (1_280_000, 100_000, 64, 640),
    ],
)
def test_a_task_is_bounded_by_photos_and_bytes_and_every_core_has_as_many(settings, photos, size, cores, tasks):
    table = pa.table({"size": np.full(photos, size)})
    assert tasks_of(Manifest(table), settings, cores) == tasks
    assert tasks % cores == 0 or photos < 32 * cores
    assert photos / tasks <= settings.photos_per_task
    assert photos * size / tasks <= settings.bytes_per_task


def test_a_task_has_no_more_photos_than_the_setting_allows_however_few_there_are(settings):
    photos = Manifest(pa.table({"size": np.full(12, 1_000)}))
    assert tasks_of(photos, settings.model_copy(update={"photos_per_task": 1}), 8) == 12


@given(
    sizes=st.lists(st.integers(0, 30_000_000), min_size=1, max_size=300),
    cores=st.integers(1, 8),
    most=st.integers(1, 90),
)
def test_tasks_have_each_photo_once_in_the_order_of_keys_within_the_limit(settings, sizes, cores, most):
    photos = manifest_of([Action.CREATE] * len(sizes), sizes)
    tasks = in_tasks(photos, settings.model_copy(update={"photos_per_task": most}), cores)
    assert [key for task in tasks for key in keys_of(task)] == sorted(keys_of(photos))
    assert all(0 < len(task) <= most for task in tasks)


def test_a_folder_of_large_photos_does_not_fall_to_one_task(settings):
    """Keys of a folder are neighbours: 3,000 small photos, then 1,000 of 4 MB, which take eleven times as long each."""
    sizes = [5_000] * 3_000 + [4_000_000] * 1_000
    photos = manifest_of([Action.CREATE] * len(sizes), sizes)
    table = photos.table.set_column(0, "key", pa.array([f"{number:05}" for number in range(len(sizes))]))
    tasks = in_tasks(Manifest(table), settings, 2)
    costs = [sum(400_000 + size for size in task.table["size"].to_pylist()) for task in tasks]
    assert max(costs) / (sum(costs) / len(costs)) < 1.1
    assert len(set(map(len, tasks))) > 1


def test_a_piece_says_what_an_entry_costs():
    piece = Piece(manifest_of([Action.CREATE, Action.DELETE], [7, 9]), np.array([True, False]))
    assert piece.costs().tolist() == [[1, 7, 1], [0, 0, 1]]
