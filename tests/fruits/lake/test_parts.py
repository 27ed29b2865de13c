"""Executors read each live row of a table's files once, whatever was deleted, and however files are cut."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fruits.lake import parts
from fruits.lake.catalog import Lake
from fruits.lake.files import FilePart, read_part
from fruits.lake.parts import file_parts, in_tasks
from fruits.settings import Settings

MODEL = "m"


@pytest.fixture
def lake(folder_lake: Settings, fake_run: Any) -> Lake:
    """Three publications' files of features of one backbone, and one of another."""
    rng = np.random.default_rng(3)
    for number, model in enumerate((MODEL, "other", MODEL, MODEL)):
        run = fake_run(folder_lake)
        keys = [f"{('train', 'test')[n % 2]}/Kiwi/{number}-{n:02} 100%" for n in range(12)]
        run.publish(model, run.write(dict(zip(keys, rng.random((12, 4), dtype=np.float32), strict=True)), model))
    return Lake.open(folder_lake)


def read(lake: Lake, some: list[FilePart], **where: str) -> pa.Table:
    batches = [rows for part in some for rows in read_part(lake.settings, part, ("key", "vector"), where)]
    return pa.Table.from_batches(batches).sort_by("key")


def rows_of(lake: Lake, **equal: str) -> pa.Table:
    return lake.read("features", lake.head("features"), ("key", "vector"), **equal).sort_by("key")


def test_the_parts_have_the_rows_of_the_partition_in_the_order_of_keys(lake: Lake) -> None:
    head = lake.head("features")
    assert head is not None
    some = file_parts(lake, "features", head, model_id=MODEL)
    assert some is not None
    assert sum(part.rows for part in some) == 36
    found, expected = read(lake, some), rows_of(lake, model_id=MODEL)
    assert found["key"].to_pylist() == expected["key"].to_pylist()
    assert found["vector"].to_pylist() == expected["vector"].to_pylist()
    assert len({part.uri for part in some}) == 3


def test_rows_are_chosen_by_the_values_of_columns(lake: Lake) -> None:
    some = file_parts(lake, "features", lake.head("features") or 0, model_id=MODEL)
    assert some is not None
    found = read(lake, some, split="train")
    assert found["key"].to_pylist() == [
        key for key in rows_of(lake, model_id=MODEL)["key"].to_pylist() if "train" in key
    ]


def test_the_files_since_a_snapshot_are_those_that_came(lake: Lake) -> None:
    snapshots = [snapshot.snapshot_id for snapshot in lake.table("features").snapshots()]
    before = [one for one in snapshots if lake.read("features", one, ("key",)).num_rows == 36][-1]
    some = file_parts(lake, "features", lake.head("features") or 0, since=before, model_id=MODEL)
    assert some is not None
    assert {key.split("/")[-1][0] for key in read(lake, some)["key"].to_pylist()} == {"3"}


@pytest.fixture
def cut(tmp_path: Any, folder_lake: Settings) -> tuple[Settings, str, list[int]]:
    """A file of ten row groups of three rows; its address, and where the row groups begin."""
    table = pa.table({"key": [f"k{n:02}" for n in range(30)], "vector": [[float(n)] for n in range(30)]})
    pq.write_table(table, tmp_path / "a b.parquet", row_group_size=3)
    groups = pq.read_metadata(tmp_path / "a b.parquet")
    columns = [groups.row_group(number).column(0) for number in range(10)]
    return (
        folder_lake,
        f"file://{tmp_path}/a b.parquet",
        [c.dictionary_page_offset or c.data_page_offset for c in columns],
    )


def keys(settings: Settings, part: FilePart) -> list[int]:
    return [int(key[1:]) for rows in read_part(settings, part, ("key",), {}) for key in rows["key"].to_pylist()]


def test_each_row_group_is_in_one_part(cut: tuple[Settings, str, list[int]]) -> None:
    settings, uri, starts = cut
    assert keys(settings, FilePart(uri, 0, None, 30, 1)) == list(range(30))
    assert keys(settings, FilePart(uri, starts[2], starts[4], 6, 1)) == [6, 7, 8, 9, 10, 11]
    ends = [0, *starts[1:]]
    found = [key for n in range(9) for key in keys(settings, FilePart(uri, ends[n], ends[n + 1], 3, 1))]
    assert found == list(range(27))


def test_deleted_rows_are_left_out_by_their_place_in_the_whole_file(
    cut: tuple[Settings, str, list[int]], tmp_path: Any
) -> None:
    settings, uri, starts = cut
    deletes = {"file_path": [uri, "another", uri, uri], "pos": pa.array([7, 8, 0, 29], pa.int64())}
    for number in range(2):
        some = pa.table(deletes).slice(2 * number, 2)
        pq.write_table(some, tmp_path / f"deletes-{number}.parquet")
    gone = tuple(f"file://{tmp_path}/deletes-{number}.parquet" for number in range(2))
    assert keys(settings, FilePart(uri, starts[2], starts[4], 6, 1, gone)) == [6, 8, 9, 10, 11]
    assert keys(settings, FilePart(uri, 0, None, 30, 1, gone)) == [n for n in range(30) if n not in (0, 7, 29)]


def test_a_file_is_cut_at_its_row_groups(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    head = lake.head("features") or 0
    scan = lake.scan("features", head, ("key",), model_id=MODEL)
    (task, *_) = lake.scan_tasks("features", scan, None)
    size = task.file.file_size_in_bytes
    monkeypatch.setattr(parts, "_PART_BYTES", 1)
    monkeypatch.setattr(type(task.file), "split_offsets", property(lambda _: [4, 100, 200]))
    assert [(part.start, part.end) for part in parts._parts(task)] == [(0, 100), (100, 200), (200, None)]
    monkeypatch.setattr(type(task.file), "split_offsets", property(lambda _: None))
    assert [(part.start, part.end, part.size) for part in parts._parts(task)] == [(0, None, size)]


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [[1], [5, 1, 1, 1, 9], [10] * 100, [300] * 40])
def test_tasks_keep_the_order_and_are_of_about_one_size(sizes: list[int], cores: int) -> None:
    some = [FilePart(f"f{n}", 0, None, 1, size) for n, size in enumerate(sizes)]
    tasks = in_tasks(some, cores, most_bytes=1_000)
    assert [part for task in tasks for part in task] == some
    assert len(tasks) <= max(1, -(-sum(sizes) // (1_000 * cores))) * cores
    assert max(sum(part.size for part in task) for task in tasks) <= 1_000 + max(sizes)


def test_a_file_with_rows_deleted_by_value_is_left_to_another_reader(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_by_place", lambda _: False)
    assert file_parts(lake, "features", lake.head("features") or 0, model_id=MODEL) is None
