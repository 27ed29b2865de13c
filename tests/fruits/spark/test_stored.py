"""The job `pca` on the files of a larger run: under a local master no Spark is needed, and the rows are the same."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.labels import sums_of
from fruits.analysis.moments import moments_of
from fruits.analysis.pca import transform, unexplained_share
from fruits.lake.branches import start_branch
from fruits.lake.places import first_of
from fruits.spark import classification
from fruits.spark.classification import first_photos
from fruits.spark.job import Job
from fruits.spark.projection import held_out_unexplained, measure_drift, project
from fruits.spark.statistics import statistics_of_rows
from fruits.spark.stored import Rows, RowsAtHand, StoredRows, rows_at
from fruits.spark.tables import Tables
from tests.fruits.spark.test_small import FITTED, Small, no_spark
from tests.runs import MODEL_ID

pytestmark = pytest.mark.jobs

ROWS = 300
VECTORS = np.random.default_rng(3).normal(size=(ROWS, 4)).astype(np.float32)
SPLITS = ["test" if number % 5 == 0 else "train" for number in range(ROWS)]
LABELS = ["Fig" if number % 2 else "Kiwi" for number in range(ROWS)]
KEYS = [f"{split}/{label}/{number:04}" for number, (split, label) in enumerate(zip(SPLITS, LABELS, strict=True))]
IS_FITTED = np.array(SPLITS) == "train"
NAMES = pa.schema([("key", pa.string())])


@pytest.fixture
def job(folder_lake: Any, fake_run: Any, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The job of a run that is not small: it wrote three files, beside photos of another run. Spark must not start."""
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[2] pyspark-shell")
    monkeypatch.setattr("fruits.spark.tasks.running_session", lambda: None)
    monkeypatch.setattr(Job, "is_small", False)
    small = Small(folder_lake, fake_run)
    for some in (slice(0, 100), slice(100, 101), slice(101, ROWS)):
        small.run.write(dict(zip(KEYS[some], VECTORS[some], strict=True)), MODEL_ID, pca=FITTED)
    job = small.wrote()
    tables = Tables(no_spark, small.lake, replace(job.tables.writer, attempt="pca"))
    start_branch(small.lake, "embeddings", tables.writer.branch, job.start["embeddings"])
    return replace(job, tables=tables)


def names(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The keys."""
    for batch in batches:
        yield batch.select(["key"]).cast(NAMES)


def keys_of(rows: Rows) -> list[str]:
    keys: list[str] = pa.Table.from_batches(rows.apply("keys", names, ("key",), NAMES), NAMES)["key"].to_pylist()
    return sorted(keys)


def test_the_rows_of_a_run_are_those_that_it_wrote(job: Job) -> None:
    rows = job.new_rows()
    assert isinstance(rows, StoredRows)
    assert keys_of(rows) == sorted(KEYS)
    assert len(keys_of(job.all_rows())) == ROWS + 3


def test_statistics_are_those_of_the_fit_split(job: Job) -> None:
    found = statistics_of_rows(job.new_rows(), 4)
    expected = moments_of(VECTORS[IS_FITTED])
    assert found.moments.n == expected.n
    np.testing.assert_allclose(found.moments.scatter, expected.scatter, rtol=1e-12, atol=1e-9)
    sums = sums_of(VECTORS[IS_FITTED], [label for label, fitted in zip(LABELS, IS_FITTED, strict=True) if fitted])
    assert {label: one.n for label, one in found.labels.items()} == {label: one.n for label, one in sums.items()}
    for label, one in sums.items():
        np.testing.assert_array_equal(found.labels[label].total, one.total)


def test_each_row_is_projected_once_in_the_order_of_keys_of_its_file(job: Job) -> None:
    assert project(job, "pca-2", FITTED, job.new_rows()) == ROWS
    head = job.lake.head("embeddings", job.tables.writer.branch)
    rows = job.lake.read("embeddings", head, pca_id="pca-2").sort_by("key")
    order = np.argsort(KEYS)
    assert rows["key"].to_pylist() == [KEYS[number] for number in order]
    embedding, residual = transform(FITTED, VECTORS[order])
    assert np.array(rows["embedding"].to_pylist(), np.float32).tobytes() == embedding.tobytes()
    assert rows["residual"].to_numpy().tobytes() == residual.tobytes()


def test_the_held_out_rows_alone_say_what_a_version_leaves_unexplained(job: Job) -> None:
    assert held_out_unexplained(job, "pca-2") is None
    project(job, "pca-2", FITTED, job.new_rows())
    expected = unexplained_share(*transform(FITTED, VECTORS[~IS_FITTED]))
    assert held_out_unexplained(job, "pca-2") == pytest.approx(expected, rel=1e-12)


def test_drift_is_measured_on_the_fit_split_of_this_run_and_of_the_runs_since_the_fit(job: Job) -> None:
    """Embeddings of the run that fitted are no news."""
    version: Any = type("Version", (), {"pca_id": "pca-2", "pca": FITTED, "expected_unexplained": 0.0, "run_id": "r"})
    once = unexplained_share(*transform(FITTED, VECTORS[IS_FITTED]))
    assert measure_drift(job, version) == (pytest.approx(once, rel=1e-12), IS_FITTED.sum())

    project(job, "pca-2", FITTED, job.new_rows())
    head = job.lake.head("embeddings", job.tables.writer.branch)
    base = replace(job.run.base, publication=replace(job.run.base.publication, counts={"remaining": 1}))
    decides = replace(
        job, start={**job.start, "embeddings": head}, run=job.run.model_copy(update={"base": base, "remaining": 0})
    )
    assert measure_drift(decides, version) == (pytest.approx(once, rel=1e-6), 2 * IS_FITTED.sum())
    version.run_id = job.run.run_id
    assert measure_drift(decides, version)[1] == IS_FITTED.sum()


@pytest.mark.parametrize("most", [1, 7, 60, 90, ROWS + 5])
def test_the_first_photos_are_those_of_all_whatever_files_they_are_in(
    job: Job, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(classification, "KEPT_PHOTOS", most)
    all_rows = pa.table({"key": KEYS, "split": SPLITS})
    found = first_photos(job.new_rows())
    assert sorted(found["key"].to_pylist()) == sorted(first_of(all_rows, most)["key"].to_pylist())
    for row in found.to_pylist():
        number = KEYS.index(row["key"])
        assert row["label"] == LABELS[number]
        assert np.array(row["vector"], np.float32).tobytes() == VECTORS[number].tobytes()


def test_rows_at_hand_and_rows_in_files_answer_alike(job: Job) -> None:
    at_hand = RowsAtHand(job.lake.read("features", job.start["features"], run_id=job.run.run_id))
    expected = sorted(key for key in KEYS if key.startswith("test/Fig"))
    assert keys_of(at_hand.only(split="test", label="Fig")) == expected
    assert keys_of(job.new_rows().only(split="test", label="Fig")) == expected


def test_a_table_without_a_file_has_no_rows_and_starts_nothing(job: Job) -> None:
    assert keys_of(rows_at(job.tables, "embeddings", job.start["embeddings"], pca_id="none")) == []
