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
from fruits.lake.counters import Counters, Kind
from fruits.lake.pca_tables import save_label_sums
from fruits.lake.places import first_of
from fruits.lake.publication import Publication
from fruits.lake.schemas import CALIBRATION_SAMPLE
from fruits.photos.keys import KeyPattern
from fruits.settings import Settings
from fruits.spark import classification
from fruits.spark.classification import update_classifier, update_sample
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


def with_sample(job: Job, *numbers: int, label: str = "Fig", split: str = "train", there: int | None = None) -> Job:
    """The job when the run before kept photos, of ``there`` that there were."""
    rows = [
        {"key": KEYS[n], "label": label, "split": split, "model_id": MODEL_ID, "vector": VECTORS[n], "run_id": "r"}
        for n in numbers
    ]
    save_sample(job.lake, job.tables.writer, MODEL_ID, pa.Table.from_pylist(rows, CALIBRATION_SAMPLE.schema))
    counts = Counters({Kind(MODEL_ID, label, split): len(numbers) if there is None else there}).counts
    base = replace(job.run.base, publication=replace(job.run.base.publication, counters=counts))
    start = {**job.start, "calibration_sample": head(job, "calibration_sample")}
    return replace(job, run=job.run.model_copy(update={"base": base}), start=start)


def head(job: Job, name: Any) -> int:
    found = job.lake.head(name, job.tables.writer.branch)
    assert found is not None
    return found


def keys_of(*numbers: int) -> pa.Table:
    return pa.table({"key": pa.array([KEYS[n] for n in numbers], pa.string())})


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many photos calibrate, and how many are kept."""

    def choose(sample: int, kept: int) -> None:
        monkeypatch.setattr(classification, "SAMPLE_PHOTOS", sample)
        monkeypatch.setattr(classification, "KEPT_PHOTOS", kept)

    return choose


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Looks at all features; they find the run's own rows."""
    asked: list[Job] = []

    def of_all(job: Job) -> pa.Table:
        asked.append(job)
        return job.few_new_features.select(["key", "label", "split", "vector"])

    monkeypatch.setattr(classification, "first_of_all", of_all)
    return asked


def saved(job: Job) -> list[str]:
    keys: list[str] = load_sample(job.lake, head(job, "calibration_sample"), MODEL_ID)["key"].to_pylist()
    return keys


def test_new_photos_join_by_their_place_and_the_sample_is_the_first_of_those_that_are_kept(
    job: Job, sizes: Any
) -> None:
    sizes(2, 4)
    start = with_sample(job, 0, 1, 2)
    rows = update_sample(start, NOTHING)
    assert rows["key"].to_pylist() == sorted(by_hash(*KEYS)[:2])
    assert saved(start) == sorted(by_hash(*KEYS)[:4])
    vectors = load_sample(job.lake, head(start, "calibration_sample"), MODEL_ID)["vector"].to_pylist()
    np.testing.assert_array_equal(np.array(vectors, np.float32), VECTORS[[KEYS.index(key) for key in saved(start)]])


def test_a_new_photo_behind_those_that_are_kept_is_not_kept_where_others_are_not(job: Job, sizes: Any) -> None:
    """Photos that the table lacks may stand before the new one."""
    sizes(1, 4)
    order = by_hash(*KEYS)
    assert [order.index(KEYS[n]) for n in (3, 2, 4)] == [0, 1, 2], "the two new photos stand before and behind"
    start = with_sample(job, 2, there=3_000)
    update_sample(start, NOTHING)
    assert saved(start) == [KEYS[2], KEYS[3]]


def test_what_is_replaced_leaves(job: Job) -> None:
    rows = update_sample(with_sample(job, 0, 1, 2), keys_of(1))
    assert rows["key"].to_pylist() == [KEYS[0], KEYS[2], KEYS[3], KEYS[4]]


@pytest.mark.parametrize(("there", "times"), [(3, 0), (3_000, 1), (None, 1)])
def test_all_features_are_looked_at_where_too_few_photos_are_left_or_nobody_knows_whether(
    job: Job, sizes: Any, looks: list[Job], there: int | None, times: int
) -> None:
    sizes(8, 16)
    start = with_sample(job, 0, 1, 2, there=there)
    if there is None:
        base = start.run.base
        unknown = replace(base, publication=replace(base.publication, counters=None))
        start = replace(start, run=start.run.model_copy(update={"base": unknown}))
    update_sample(start, NOTHING)
    assert looks == [start] * times


def test_a_refit_that_a_person_asks_for_looks_at_all_features_and_mends_the_sample(job: Job, looks: list[Job]) -> None:
    start = with_sample(job, 0, 1, 2)
    asked = start.run.request.model_copy(update={"refit": "always"})
    update_sample(replace(start, run=start.run.model_copy(update={"request": asked})), NOTHING)
    assert len(looks) == 1
    assert saved(start) == [KEYS[3], KEYS[4]], "whatever the sample had"


def test_a_deletion_costs_no_look_while_enough_photos_are_left(job: Job, sizes: Any, looks: list[Job]) -> None:
    sizes(1, 3)
    update_sample(with_sample(job, 0, 1, 2, there=3_000), keys_of(1))
    assert looks == []
    sizes(3, 3)
    update_sample(with_sample(job, 0, 1, 2, there=3_000), keys_of(0, 1, 2))
    assert len(looks) == 1


def test_an_unchanged_sample_is_not_written(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    start = with_sample(job, 0, 1, 2)
    none = job.few_new_features.slice(0, 0)
    monkeypatch.setattr(Job, "few_new_features", property(lambda _: none))
    before = head(start, "calibration_sample")
    update_sample(start, NOTHING)
    assert head(start, "calibration_sample") == before


@pytest.mark.parametrize("before", [{"label": "fig"}, {"split": "test"}])
def test_a_photo_whose_label_or_split_changed_with_the_rules_is_written_again(job: Job, before: dict[str, str]) -> None:
    """Its bytes are the same, and so is its vector."""
    start = with_sample(job, 3, 4, **before)
    update_sample(start, keys_of(3, 4))
    rows = load_sample(job.lake, head(start, "calibration_sample"), MODEL_ID)
    assert rows.select(["label", "split"]).to_pylist() == [{"label": "Fig", "split": "train"}] * 2


def test_held_out_photos_come_first() -> None:
    keys = [f"k{n}" for n in range(9)]
    rows = pa.table({"key": keys, "split": ["train", "test", "train"] * 3})
    order = first_of(rows, 9)["key"].to_pylist()
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
    snapshots: Any = {"classifiers": head(job, "classifiers")}
    published = Publication(1, snapshots, model_id=MODEL_ID, classifier_id=found.classifier_id)
    classifier = load_classifier(job.lake, published)
    assert classifier is not None
    assert (classifier.classifier_id, classifier.labels) == (found.classifier_id, ("Fig", "Kiwi"))

    assert update_classifier(job, moments_of(VECTORS[:0]), sample) is None, "the fit split is empty"
    assert job.lake.read("classifiers", head(job, "classifiers")).num_rows == 0
    removed = head(job, "classifiers")
    assert update_classifier(job, moments_of(VECTORS[:0]), sample) is None
    assert head(job, "classifiers") == removed, "there was nothing to remove"


def test_without_any_photo_there_is_no_classifier(job: Job) -> None:
    """The last photo was deleted."""
    moments = moments_of(VECTORS[:0].reshape(0, VECTORS.shape[1]))
    assert update_classifier(job, moments, CALIBRATION_SAMPLE.schema.empty_table()) is None


def test_halves_are_those_of_the_groups_that_the_pattern_reads(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []
    monkeypatch.setattr(classification, "fit_classifier", lambda moments, sums, sample: fitted.append(sample))
    pattern = r"(?P<split>[^/]+)/(?P<label>[^/]+)/(?P<group>[0-9]).*"
    settings = job.settings.model_copy(update={"key_pattern": pattern})
    sample = update_sample(with_sample(job, 0, 1, 2), NOTHING)
    sums = sums_of(VECTORS, ["Fig"] * 5)
    save_label_sums(job.lake, job.tables.writer, MODEL_ID, sums, job.run.run_id)
    monkeypatch.setattr(Job, "settings", settings)
    update_classifier(job, moments_of(VECTORS), sample)
    (found,) = fitted
    assert found.groups == [KeyPattern.of(settings).group(key) for key in found.keys]
    assert found.groups != found.keys
