"""The functions that executors run, on batches as Spark gives them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.moments import moments_of
from fruits.errors import FruitsError
from fruits.lake.appends import append_files, file_target
from fruits.lake.branches import Writer, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.files import FileTarget, write_rows
from fruits.lake.schemas import FEATURES
from fruits.photos.entry import Action, Entry
from fruits.photos.featurize import Feature, Outcome
from fruits.photos.quarantine import Pending, Reason
from fruits.run.manifest import entries_batch
from fruits.settings import Settings
from fruits.spark import executors
from fruits.spark.executors import (
    TASKS_SCHEMA,
    TOTALS_SCHEMA,
    Statistics,
    featurize,
    merge_partials,
    merged_statistics,
    packed,
    partial_statistics,
    share_of_keys,
    vector_totals,
)
from fruits.spark.featurizing import Outcomes
from fruits.spark.statistics import FAN_IN, tree

VECTORS = np.random.default_rng(7).normal(size=(9, 4)).astype(np.float32)
LABELS = list("aabcabcca")


def batch(vectors: np.ndarray, first: int = 0) -> pa.RecordBatch:
    keys = [f"{first + number}.jpg" for number in range(len(vectors))]
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    labels = LABELS[first : first + len(vectors)]
    return pa.RecordBatch.from_arrays(
        [pa.array(keys, pa.string()), pa.array(labels, pa.string()), column], names=["key", "label", "vector"]
    )


def statistics(*batches: pa.RecordBatch) -> Statistics:
    return merge_partials(partial_statistics(4)(iter(batches)), 4)


def check_equal(found: Statistics) -> None:
    """Statistics are those of all of ``VECTORS``."""
    expected = moments_of(VECTORS)
    assert found.moments.n == expected.n == 9
    np.testing.assert_allclose(found.moments.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.moments.scatter, expected.scatter, rtol=1e-12, atol=1e-12)
    assert set(found.labels) == {"a", "b", "c"}
    for label, one in found.labels.items():
        rows = VECTORS[np.array(LABELS) == label].astype(float)
        assert one.n == len(rows)
        np.testing.assert_allclose(one.mean, rows.mean(0), rtol=1e-12, atol=1e-12)


def test_the_statistics_of_a_task_are_those_of_the_rows_of_all_its_batches() -> None:
    check_equal(statistics(batch(VECTORS[:2]), batch(VECTORS[:0]), batch(VECTORS[2:], 2)))


def test_partial_statistics_are_merged_by_executors_as_on_the_driver() -> None:
    leaves = [[*partial_statistics(4)(iter([batch(VECTORS[first : first + 2], first)]))] for first in range(0, 9, 2)]
    above = [[*merged_statistics(4)(chain.from_iterable(some))] for some in (leaves[:2], leaves[2:])]
    assert [sum(row is None for part in some for row in part["label"].to_pylist()) for some in above] == [1, 1]
    check_equal(merge_partials(chain.from_iterable(above), 4))


def test_a_task_without_a_row_sends_nothing() -> None:
    assert not list(partial_statistics(4)(iter([]))) + list(partial_statistics(4)(iter([batch(VECTORS[:0])])))
    assert not list(merged_statistics(4)(iter([])))


@pytest.mark.parametrize(
    ("tasks", "levels"), [(1, []), (8, []), (9, [2]), (163, [21, 3]), (100_000, [12_500, 1_563, 196, 25, 4])]
)
def test_few_partial_results_come_to_the_driver_however_many_tasks_there_are(tasks: int, levels: list[int]) -> None:
    assert [*tree(tasks)] == levels
    assert [tasks, *levels][-1] <= FAN_IN


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_a_number_is_named(value: float) -> None:
    spoilt = VECTORS.copy()
    spoilt[5, 3] = value
    with pytest.raises(FruitsError, match=r"the vector of 5\.jpg has NaN or infinity.*Nothing is published"):
        statistics(batch(spoilt))


def test_what_travels_to_executors_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark import cloudpickle

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "marker-of-the-environment")
    settings = Settings.load(
        lake="file:///lake",
        catalog_uri="postgresql://user:marker-of-the-catalog@host/db",
        weights="https://host/a.h5?signature=marker-of-the-weights",
        weights_from="https://host",
    )
    assert b"marker" in cloudpickle.dumps(settings), "a secret is pickled like anything else"
    travelling = cloudpickle.dumps(featurize(settings, "model", "run", FileTarget("file:///lake", pa.schema([]), 1)))
    assert b"marker" not in travelling
    assert b"file:///lake" in travelling


WHEN = datetime(2026, 11, 20, tzinfo=UTC)


def outcome(number: int) -> Outcome:
    """A feature; every fifth photo is quarantined, and one is pending."""
    entry = Entry(f"train/Kiwi/{number:02}.jpg", "planned", 1, WHEN, Action.CREATE, "Kiwi", "train")
    read = Outcome(entry, f"read {number}", 100 + number, WHEN, seconds={"get": 0.5, "infer": 0.25})
    if number == 7:
        return replace(read, pending=Pending.UNANSWERED, detail="no answer")
    if number % 5 == 0:
        return replace(read, reason=Reason.TOO_MANY_BYTES, detail="too many", limit=99)
    vector = np.random.default_rng(number).normal(size=3).astype(np.float32)
    return replace(read, feature=Feature(f"sha {number}", -number, 8, 9, "JPEG", vector))


@pytest.fixture
def task(folder_lake: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Carries out a task over photos by their numbers, as ``outcome`` says; returns its row."""
    monkeypatch.setattr(executors, "load_backbone_once", lambda *_: None)
    monkeypatch.setattr(executors, "_server_once", lambda *_: None)
    monkeypatch.setattr(executors, "_freeze_once", lambda: None)

    def outcomes(entries: Iterable[Entry], *_: object) -> Iterator[Outcome]:
        return (outcome(int(entry.key[-6:-4])) for entry in entries)

    monkeypatch.setattr(executors, "featurize_entries", outcomes)
    target = file_target(Lake.open(folder_lake), FEATURES, "model")

    def run(*numbers: int) -> dict[str, Any]:
        entries = packed(pa.Table.from_batches([entries_batch([outcome(number).entry for number in numbers])]))
        work = pa.RecordBatch.from_pylist([{"entries": entries}], TASKS_SCHEMA)
        (rows,) = featurize(folder_lake, "model", "run", target, rows_per_batch=4)(iter([work]))
        (row,) = rows.to_pylist()
        return dict(row)

    return run


def test_a_task_writes_its_features_and_says_what_became_of_each_photo(
    task: Callable[..., dict[str, Any]], folder_lake: Settings
) -> None:
    outcomes = Outcomes.of([task(*range(6)), task(*range(6, 12)), task(20, 25)])
    counts = outcomes.counts
    assert (counts.images, counts.features, len(outcomes.files)) == (14, 8, 2)
    assert (counts.quarantine, counts.pending) == ({"too_many_bytes": 5}, {"unanswered": 1})
    assert counts.bytes == sum(100 + number for number in [*range(12), 20, 25] if number != 7)
    assert (counts.photo_seconds["get"], counts.photo_seconds["infer"]) == (7.0, 3.5)
    assert [row["key"][-6:-4] for row in outcomes.pending] == ["07"]
    assert outcomes.quarantine["limit"].to_pylist() == [99] * 5
    lake, writer = Lake.open(folder_lake), Writer("run", "featurize_1_ab")
    start_branch(lake, "features", writer.branch, lake.head("features") or 0)
    append_files(lake, FEATURES, "model", outcomes.files, writer)
    rows = lake.read("features", lake.head("features", writer.branch))
    assert rows.cast(FEATURES.schema).num_rows == counts.features
    for row in rows.to_pylist():
        expected = outcome(int(row["key"][-6:-4]))
        assert expected.feature is not None
        assert (row["etag"], row["size"], row["last_modified"]) == (expected.etag, expected.size, WHEN)
        assert (row["phash"], row["sha256"]) == (expected.feature.phash, expected.feature.sha256)
        assert np.array(row["vector"], np.float32).tobytes() == expected.feature.vector.tobytes()
        assert (row["label"], row["split"], row["model_id"], row["run_id"]) == ("Kiwi", "train", "model", "run")


def test_a_lookup_skips_files_of_other_keys_and_other_backbones(
    task: Callable[..., dict[str, Any]], folder_lake: Settings
) -> None:
    outcomes = Outcomes.of([task(*range(6)), task(*range(6, 12))])
    lake, writer = Lake.open(folder_lake), Writer("run", "featurize_1_ab")
    start_branch(lake, "features", writer.branch, lake.head("features") or 0)
    append_files(lake, FEATURES, "model", outcomes.files, writer)
    head = lake.head("features", writer.branch)
    snapshot = lake.table("features").snapshot_by_id(head or 0)
    assert snapshot is not None
    assert snapshot.summary is not None
    assert {name: snapshot.summary[name] for name in writer.snapshot_properties} == writer.snapshot_properties
    files = [scan.file for scan in lake.scan("features", head).plan_files()]
    assert sorted(file.lower_bounds[1] for file in files) == [b"train/Kiwi/01.jpg", b"train/Kiwi/06.jpg"]
    assert sorted(file.upper_bounds[1] for file in files) == [b"train/Kiwi/04.jpg", b"train/Kiwi/11.jpg"]
    assert not list(lake.scan("features", head, model_id="another").plan_files())


@pytest.mark.parametrize("folder", ["with space", "with%20code"])
def test_files_are_where_tables_look_for_them_whatever_the_folders_name(tmp_path: Path, folder: str) -> None:
    catalog = f"sqlite:///{tmp_path}/catalog.db"
    lake = Lake.open(Settings.load(lake=f"file://{tmp_path}/{folder}", catalog_uri=catalog))
    target = file_target(lake, FEATURES, "model")
    rows = {field.name: ["x"] if pa.types.is_string(field.type) else [1] for field in target.schema}
    table = pa.table({**rows, "last_modified": [WHEN], "vector": [[0.5]]}, target.schema)
    file, writer = write_rows(lake.settings, target, table.to_batches()), Writer("run", "featurize_1_ab")
    assert file is not None
    start_branch(lake, "features", writer.branch, lake.head("features") or 0)
    append_files(lake, FEATURES, "model", [file], writer)
    assert lake.read("features", lake.head("features", writer.branch))["vector"].to_pylist() == [[0.5]]


def test_a_task_that_runs_twice_counts_once(task: Callable[..., dict[str, Any]]) -> None:
    """Spark hands the driver the row of one of its attempts; the file of the other is in no snapshot."""
    first, second = task(*range(6)), task(*range(6))
    assert first["uri"] != second["uri"]
    assert {**first, "uri": None} == {**second, "uri": None}


def test_a_task_without_a_readable_photo_writes_no_file(task: Callable[..., dict[str, Any]]) -> None:
    assert (task(0, 5, 7)["uri"], Outcomes.of([task(0, 5, 7)]).files) == (None, [])


def test_totals_of_vectors_count_what_is_no_number_and_what_has_another_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "_SQUARED_AT_ONCE", 3)
    some = [[1, 2], [0, 0], [], [np.nan, 1], [np.inf, 1], [3e38, 3e38], [1, 2, 3], [2, 0]]
    column = pa.array(some, pa.list_(pa.float32()))
    batches = [pa.record_batch([column.slice(start, 4)], names=["vector"]) for start in (0, 4, 8)]
    found = pa.Table.from_batches(vector_totals(2)(iter(batches)), TOTALS_SCHEMA)
    assert [sum(found[name].to_pylist()) for name in ("rows", "unusable", "wrong_width")] == [8, 4, 2]
    squares = found["square"].to_pylist()
    assert squares[0] == 5
    assert np.isnan(squares[1])
    assert squares[-1] == 4


def test_a_share_of_keys_is_the_same_in_all_batches_and_grows_with_the_share() -> None:
    rows = [batch(VECTORS[:5]), batch(VECTORS[5:], first=5)]
    shares = [
        {key for some in share_of_keys(share)(iter(rows)) for key in some["key"].to_pylist()} for share in (0, 0.5, 1)
    ]
    assert not shares[0]
    assert shares[1] == {key for key in shares[2] if sha256(key.encode()).hexdigest()[0] in "01234567"}
    assert 0 < len(shares[1]) < len(shares[2]) == 9
