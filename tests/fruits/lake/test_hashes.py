"""Equal bytes are found among the features, whatever ``photo_hashes`` knows of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fruits.lake import hashes
from fruits.lake.catalog import Lake
from fruits.lake.hashes import FEATURES_PROPERTY, hashed_snapshot, hashes_are_due, same_bytes
from fruits.lake.schemas import DATA_TABLES, FEATURES, PHOTO_HASHES
from tests.fruits.lake.test_catalog import delete_rows

pytestmark = pytest.mark.jobs

MODEL = "m"
PHOTOS = {f"k{number:02d}": f"{number:064x}" for number in range(12)}


def append(lake: Lake, photos: dict[str, str], *, split: str = "train", model_id: str = MODEL) -> None:
    """A file of features: the hashes of photos by key."""
    stored = {"size": 1, "last_modified": 0, "phash": 0, "width": 8, "height": 8, "vector": [1.0]}
    texts = dict.fromkeys(set(FEATURES.schema.names) - set(stored), "-") | {"split": split, "model_id": model_id}
    rows = [{**stored, **texts, "key": key, "sha256": sha256} for key, sha256 in photos.items()]
    lake.table("features").append(pa.Table.from_pylist(rows, schema=FEATURES.schema))


def hash_features(lake: Lake, *, lost: int = 0) -> None:
    """Write ``photo_hashes`` as maintenance does, in small row groups, maybe without some rows."""
    table = lake.table("photo_hashes")
    rows = lake.read("features", None, PHOTO_HASHES.schema.names).sort_by("sha256").slice(lost)
    with table.transaction() as change:
        change.set_properties({"write.parquet.row-group-limit": "4"})
        change.overwrite(
            rows.select(PHOTO_HASHES.schema.names).cast(PHOTO_HASHES.schema),
            snapshot_properties={FEATURES_PROPERTY: str(lake.head("features"))},
        )


def now(lake: Lake) -> dict[Any, int]:
    """The snapshots of a run that begins now."""
    return {name: lake.state(name).main for name in DATA_TABLES}


def found(lake: Lake, *keys: str) -> list[str] | None:
    """The keys of the features with the bytes of some photos."""
    rows = same_bytes(lake, now(lake), MODEL, [PHOTOS[key] for key in keys])
    return None if rows is None else sorted(rows["key"].to_pylist())


@pytest.fixture
def hashed(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake with twelve photos, whose hashes maintenance has written; six more would be too many to read."""
    monkeypatch.setattr(hashes, "FEWEST_ROWS", 6)
    append(lake, PHOTOS)
    hash_features(lake)
    return lake


@pytest.fixture
def read_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The tables and numbers of the rows that are read."""
    rows: list[tuple[str, int]] = []
    batches = Lake.batches

    def counted(lake: Lake, name: Any, *args: Any, **kwargs: Any) -> Iterable[pa.RecordBatch]:
        for batch in batches(lake, name, *args, **kwargs):
            rows.append((name, batch.num_rows))
            yield batch

    monkeypatch.setattr(Lake, "batches", counted)
    return rows


def test_few_features_are_read_without_hashes_of_them(lake: Lake) -> None:
    append(lake, PHOTOS)
    append(lake, {"copy": PHOTOS["k03"]}, split="test")
    append(lake, {"elsewhere": PHOTOS["k03"]}, model_id="another")
    rows = same_bytes(lake, now(lake), MODEL, [PHOTOS["k03"], "f" * 64])
    assert rows is not None
    assert sorted(map(repr, rows.to_pylist())) == [
        repr({"key": "copy", "sha256": PHOTOS["k03"], "split": "test"}),
        repr({"key": "k03", "sha256": PHOTOS["k03"], "split": "train"}),
    ]
    assert found(lake) == []


def test_among_many_features_those_alone_are_read_that_have_the_hashes_or_came_since(
    hashed: Lake, read_rows: list[tuple[str, int]]
) -> None:
    append(hashed, {"new": PHOTOS["k05"], "other": "e" * 64}, split="test")
    assert found(hashed, "k05") == ["k05", "new"]
    assert read_rows == [("features", 2), ("photo_hashes", 1), ("features", 1)]


def test_a_photo_that_was_overwritten_or_deleted_since_is_not_found(
    hashed: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = hashed.table("features").scan().plan_files()
    append(hashed, {"k07": "e" * 64, "copy": PHOTOS["k08"]}, split="test")
    delete_rows(monkeypatch, tmp_path, {task.file.file_path: [7, 8]})
    assert found(hashed, "k06", "k07", "k08") == ["copy", "k06"]


def test_too_many_rows_are_left_to_spark(hashed: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    append(hashed, {f"new{number}": "e" * 64 for number in range(5)})
    assert found(hashed, "k01") == ["k01"]
    append(hashed, {"one too many": "e" * 64})
    assert found(hashed, "k01") is None, "too many came since"
    hash_features(hashed)
    assert found(hashed, "k01") == ["k01"]
    monkeypatch.setattr(hashes, "MOST_HASHES", 1)
    assert found(hashed, "k01", "k02") is None, "too many to look up"
    append(hashed, {"copy": PHOTOS["k01"]})
    hash_features(hashed)
    assert found(hashed, "k01") is None, "too many have these bytes"


def test_rows_that_are_few_tell_of_any_number_of_hashes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "MOST_HASHES", 1)
    append(lake, PHOTOS)
    assert found(lake, "k01", "k02") == ["k01", "k02"]


def test_hashes_that_cannot_be_relied_on_are_not_used(hashed: Lake) -> None:
    start, at = now(hashed), hashed.state("features").main
    assert hashed_snapshot(hashed, start) == at
    append(hashed, {"new": "e" * 64})
    later = now(hashed)
    assert hashed_snapshot(hashed, later) == at
    hash_features(hashed, lost=1)
    assert hashed_snapshot(hashed, now(hashed)) is None, "a row is missing"
    hash_features(hashed)
    assert hashed_snapshot(hashed, now(hashed)) == later["features"]
    rolled_back = {**now(hashed), "features": at}
    assert hashed_snapshot(hashed, rolled_back) is None, "photos may be live again that had no row then"


def test_hashes_are_due_where_there_are_many_features_and_other_ones(
    hashed: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hashes_are_due(hashed, now(hashed))
    append(hashed, {"new": "e" * 64})
    assert hashes_are_due(hashed, now(hashed))
    monkeypatch.setattr(hashes, "FEWEST_ROWS", 14)
    assert not hashes_are_due(hashed, now(hashed)), "13 are few"
    older = {name: snapshot for name, snapshot in now(hashed).items() if name != "photo_hashes"}
    assert not hashes_are_due(hashed, older), "only readers have opened the lake"
