"""The sample that classifiers are calibrated on is a function of the photos, however they came; no Spark is needed."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.labels import sums_of
from fruits.analysis.moments import moments_of
from fruits.lake.branches import start_branch
from fruits.lake.classifier_tables import load_classifier, load_sample, save_sample
from fruits.lake.pca_tables import save_label_sums
from fruits.lake.schemas import CALIBRATION_SAMPLE
from fruits.settings import Settings
from fruits.spark import classification
from fruits.spark.classification import first_of, update_classifier, update_sample
from fruits.spark.job import Job
from tests.fruits.spark.test_small import KEYS, VECTORS, Small
from tests.runs import MODEL_ID

pytestmark = pytest.mark.jobs

NOTHING = pa.table({"key": pa.array([], pa.string())})


@pytest.fixture
def job(folder_lake: Settings, fake_run: Any) -> Job:
    """The job `pca` of a run that adds two photos to three published ones."""
    job = Small(folder_lake, fake_run).wrote(3, 4)
    job = replace(job, tables=replace(job.tables, writer=replace(job.tables.writer, attempt="pca")))
    for name in ("calibration_sample", "label_statistics", "classifiers"):
        start_branch(job.lake, name, job.tables.writer.branch, job.start[name])
    return job


def by_hash(*keys: str) -> list[str]:
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())


def with_sample(job: Job, *numbers: int) -> Job:
    """The job when the run before left photos in the sample."""
    rows = [
        {"key": KEYS[n], "label": "Fig", "split": "train", "model_id": MODEL_ID, "vector": VECTORS[n], "run_id": "r"}
        for n in numbers
    ]
    save_sample(job.lake, job.tables.writer, MODEL_ID, pa.Table.from_pylist(rows, CALIBRATION_SAMPLE.schema))
    return replace(job, start={**job.start, "calibration_sample": head(job, "calibration_sample")})


def head(job: Job, name: Any) -> int:
    found = job.lake.head(name, job.tables.writer.branch)
    assert found is not None
    return found


def test_new_photos_join_by_their_place(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "SAMPLE_PHOTOS", 4)
    rows = update_sample(with_sample(job, 0, 1, 2), NOTHING)
    assert rows["key"].to_pylist() == sorted(by_hash(*KEYS)[:4])
    saved = load_sample(job.lake, head(job, "calibration_sample"), MODEL_ID)
    assert saved["key"].to_pylist() == rows["key"].to_pylist()
    np.testing.assert_array_equal(
        np.array(saved["vector"].to_pylist(), np.float32), VECTORS[[KEYS.index(key) for key in rows["key"].to_pylist()]]
    )


def test_a_sample_that_is_not_full_loses_what_is_replaced(job: Job) -> None:
    rows = update_sample(with_sample(job, 0, 1, 2), pa.table({"key": pa.array([KEYS[1]])}))
    assert rows["key"].to_pylist() == [KEYS[0], KEYS[2], KEYS[3], KEYS[4]]


@pytest.mark.parametrize(
    ("before", "replaced", "why"),
    [((), (), "an earlier release left no sample"), ((0, 1, 2), (1,), "a full sample lost a photo")],
)
def test_all_features_are_looked_at_where_the_sample_may_lack_some(
    job: Job, monkeypatch: pytest.MonkeyPatch, before: tuple[int, ...], replaced: tuple[int, ...], why: str
) -> None:
    asked = []

    def of_all(rows: Any) -> pa.Table:
        asked.append(rows)
        return job.few_new_features

    monkeypatch.setattr(classification, "SAMPLE_PHOTOS", 3)
    monkeypatch.setattr(classification, "first_photos", of_all)
    monkeypatch.setattr(Job, "features", lambda _: "all features")
    start = with_sample(job, *before) if before else job
    update_sample(start, pa.table({"key": pa.array([KEYS[n] for n in replaced], pa.string())}))
    assert asked == ["all features"], why


def test_an_unchanged_sample_is_not_written(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    start = with_sample(job, 0, 1, 2)
    none = job.few_new_features.slice(0, 0)
    monkeypatch.setattr(Job, "few_new_features", property(lambda _: none))
    before = head(start, "calibration_sample")
    update_sample(start, NOTHING)
    assert head(start, "calibration_sample") == before


def test_held_out_photos_come_first() -> None:
    keys = [f"k{n}" for n in range(9)]
    rows = pa.table({"key": keys, "split": ["train", "test", "train"] * 3})
    order = first_of(rows)["key"].to_pylist()
    held_out = by_hash(*keys[1::3])
    assert order == [*held_out, *by_hash(*(key for key in keys if key not in held_out))]


def test_a_classifier_needs_sums_of_the_rows_that_the_moments_have(job: Job) -> None:
    moments, sample = moments_of(VECTORS), update_sample(with_sample(job, 0, 1, 2), NOTHING)
    assert update_classifier(job, moments, sample) is None
    sums = sums_of(VECTORS, ["Fig"] * 3 + ["Kiwi"] * 2)
    save_label_sums(job.lake, job.tables.writer, MODEL_ID, sums, job.run.run_id)
    found = update_classifier(job, moments, sample)
    assert found is not None
    assert (found.labels, found.n, found.quality) == (2, 5, None)
    saved = load_classifier(job.lake, {"classifiers": head(job, "classifiers")}, MODEL_ID)
    assert saved is not None
    assert (saved.classifier_id, saved.labels) == (found.classifier_id, ("Fig", "Kiwi"))
