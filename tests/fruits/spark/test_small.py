"""A small run needs no session of Spark after `featurize`: the driver reads its rows, by the same functions."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.moments import moments_of
from fruits.analysis.pca import PCA, fit, transform
from fruits.lake.branches import commit_rows, start_branch
from fruits.lake.counters import Counters, Kind
from fruits.lake.pca_tables import load_label_sums, load_statistics
from fruits.lake.publication import current_base
from fruits.lake.schemas import BY_NAME, DATA_TABLES, TableName
from fruits.photos.entry import Action, Entry
from fruits.run.documents import run_store
from fruits.run.manifest import entries_batch, write_manifest
from fruits.settings import Settings
from fruits.spark.changes import changes_of
from fruits.spark.job import Job
from fruits.spark.measurements import (
    Measured,
    duplicates_across_splits,
    misplaced,
    missing_embeddings,
    new_vectors,
    probe_sample,
)
from fruits.spark.projection import measure_drift, project, unprojected_features
from fruits.spark.statistics import rows_before, update_statistics
from fruits.spark.stored import RowsAtHand
from fruits.spark.tables import Tables
from tests.runs import MODEL_ID, START, card, planned

pytestmark = pytest.mark.jobs

VECTORS = np.random.default_rng(1).random((5, 4), dtype=np.float32)
KEYS = tuple(f"train/Fig/{number}" for number in range(5))
FITTED = fit(moments_of(VECTORS[:3]), 2, 2)


class Small:
    """A run that adds photos to three published ones."""

    def __init__(self, settings: Settings, fake_run: Any) -> None:
        first = fake_run(settings)
        self.pca_id = first.write(dict(zip(KEYS[:3], VECTORS, strict=False)), MODEL_ID, pca=FITTED)
        first.publish(MODEL_ID, self.pca_id)
        self.settings = settings
        self.run = fake_run(settings)
        self.lake = self.run.lake

    def wrote(self, *numbers: int, embedded: bool = True, action: Action = Action.CREATE) -> Job:
        """The job after `featurize`, and after `pca` when ``embedded``, wrote the photos of such numbers."""
        if numbers:
            self.run.write({KEYS[number]: VECTORS[number] for number in numbers}, MODEL_ID, pca=FITTED)
        entries = [Entry(KEYS[number], "e", 1, START, action, "Fig", "train") for number in numbers]
        write_manifest(run_store(self.settings, self.run.key), [entries_batch(entries)])
        base = current_base(self.lake)
        counted = replace(
            base.publication, counters=Counters({Kind(MODEL_ID, "Fig", "train"): 3}).counts, counts={"remaining": 0}
        )
        plan = planned(base=replace(base, publication=counted), backbone=card(MODEL_ID), known_rows=3).model_copy(
            update={"key": self.run.key, "run_id": self.run.key}
        )
        start = {name: self.lake.head(name, self.run.branch) or base.snapshots[name] for name in DATA_TABLES}
        if not embedded:
            start["embeddings"] = base.snapshots["embeddings"]
        documents: Any = SimpleNamespace(projected=None, featurize=None)
        recorder: Any = SimpleNamespace(document=SimpleNamespace(task="pca"))
        return Job(plan, Tables(no_spark, self.lake, self.run.writer), start, documents, recorder)

    def append(self, job: Job, name: TableName, **changed: Any) -> Job:
        """The job when a copy of the run's first row, with other values, stands in a table as well."""
        rows = self.lake.read(name, job.start[name], run_id=self.run.key).to_pylist()[:1]
        table = pa.Table.from_pylist([{**rows[0], **changed}], schema=BY_NAME[name].schema)
        commit_rows(
            self.lake, name, lambda change: change.append(table, **self.run.writer.commit), branch=self.run.branch
        )
        head = self.lake.head(name, self.run.branch)
        assert head is not None
        return replace(job, start={**job.start, name: head})

    def quarantined(self, job: Job) -> Job:
        """The job when a photo that it has featurized is in quarantine as well."""
        self.run.quarantine(KEYS[3:4], MODEL_ID)
        head = self.lake.head("quarantine", self.run.branch)
        assert head is not None
        return replace(job, start={**job.start, "quarantine": head})


def no_spark() -> Any:
    raise AssertionError("a small run started Spark")


@pytest.fixture
def small(folder_lake: Settings, fake_run: Any) -> Small:
    """A small run that has written nothing yet."""
    return Small(folder_lake, fake_run)


def findings(job: Job, pca_id: str) -> dict[str, Any]:
    """What the gates learn of rows."""
    version: Any = SimpleNamespace(pca_id=pca_id, pca=FITTED)
    changes = changes_of(job, pca_id)
    assert changes.at_hand
    assert not changes.of_all
    found = findings_of(Measured(job, version, changes))
    of_all = findings_of(Measured(job, version, replace(changes, of_all=True)))
    found["kinds"] = found["kinds"] | {"Fig": found["kinds"]["Fig"] + 3}  # beside what the base has
    assert found == of_all, "all rows tell what the changes tell"
    return found


def findings_of(measured: Measured) -> dict[str, Any]:
    vectors = new_vectors(measured)
    vectors.pop("scale_ratio")
    return {
        "kinds": {kind.label or kind.reason: rows for kind, rows in measured.changes.by_kind().items()},
        "misplaced": misplaced(measured.changes, measured.job.manifest()),
        "missing": missing_embeddings(measured.changes),
        "duplicates": duplicates_across_splits(measured.changes),
        **vectors,
    }


SOUND = {"kinds": {"Fig": 5}, "misplaced": [], "missing": 0, "duplicates": 0}
SOUND |= {"new_rows": 2, "unusable_vectors": 0, "wrong_widths": 0}
OTHERWISE: dict[str, tuple[Callable[[Small, Job], Job], dict[str, Any]]] = {
    "sound": (lambda _, job: job, {}),
    "a photo twice": (
        lambda small, job: small.append(job, "features"),
        {"kinds": {"Fig": 6}, "misplaced": [KEYS[3]], "missing": 1, "new_rows": 3},
    ),
    "a row that another run wrote": (
        lambda small, job: small.append(job, "features", run_id="another"),
        {"kinds": {"Fig": 6}, "misplaced": [KEYS[3]], "missing": 1, "new_rows": 3},
    ),
    "a photo that nobody planned": (
        lambda small, job: small.append(job, "features", key="train/Fig/foreign"),
        {"kinds": {"Fig": 6}, "missing": 1, "new_rows": 3},
    ),
    "a photo whose bytes are held out as well": (
        lambda small, job: small.append(job, "features", key="test/Fig/3", split="test", label="Kiwi"),
        {"kinds": {"Fig": 5, "Kiwi": 1}, "missing": 1, "new_rows": 3, "duplicates": 3},
    ),
    "a vector with NaN, of another width": (
        lambda small, job: small.append(job, "features", vector=[np.nan]),
        {"kinds": {"Fig": 6}, "misplaced": [KEYS[3]], "missing": 1, "new_rows": 3}
        | {"unusable_vectors": 1, "wrong_widths": 1},
    ),
    "a photo that is in quarantine as well": (
        lambda small, job: small.quarantined(job),
        {"kinds": {"Fig": 5, "empty": 1}, "misplaced": [KEYS[3]]},
    ),
    "two embeddings": (lambda small, job: small.append(job, "embeddings"), {"missing": 1}),
    "an embedding of another object": (
        lambda small, job: small.append(job, "embeddings", etag="other"),
        {"missing": 1},
    ),
}
"""By name: what is written beside two sound rows, and what the gates then learn."""


@pytest.mark.parametrize("case", OTHERWISE)
def test_the_gates_of_a_small_run_find_what_is_not_as_planned(small: Small, case: str) -> None:
    change, expected = OTHERWISE[case]
    assert findings(change(small, small.wrote(3, 4)), small.pca_id) == SOUND | expected


def test_a_photo_without_an_embedding_is_missed(small: Small) -> None:
    job = small.wrote(3, 4, embedded=False)
    assert findings(job, small.pca_id)["missing"] == 2


@pytest.mark.parametrize(
    ("most", "is_small", "action", "of_changes", "of_all"),
    [
        (5, False, Action.UPDATE, True, True),
        (4, False, Action.CREATE, True, False),
        (4, True, Action.UPDATE, True, False),
        (4, False, Action.UPDATE, False, False),
        (1, True, Action.CREATE, False, False),
    ],
    ids=["a small lake", "new photos beside many rows", "a small run", "many updates", "a large run"],
)
def test_rows_are_left_to_spark_where_the_driver_would_read_many(
    small: Small,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    is_small: bool,
    action: Action,
    of_changes: bool,
    of_all: bool,
) -> None:
    monkeypatch.setattr(Job, "most_at_hand", most)
    monkeypatch.setattr(Job, "is_small", is_small)
    changes = changes_of(small.wrote(3, 4, action=action), small.pca_id)
    assert (changes.at_hand, replace(changes, of_all=True).at_hand) == (of_changes, of_all)


def test_spark_reads_all_rows_where_no_photos_are_few(small: Small) -> None:
    job = small.wrote(3, 4)
    job.lake.settings = job.settings.model_copy(update={"few_photos": 0})
    assert not changes_of(job, small.pca_id).at_hand


@pytest.mark.parametrize(("share", "numbers"), [(1, [0, 1, 2, 3, 4]), (0.3, [2, 3, 4]), (0.2, [2, 3])])
def test_the_probes_photos_are_chosen_by_their_keys_alone(small: Small, share: float, numbers: list[int]) -> None:
    job = small.append(small.wrote(4, 3), "embeddings", pca_id="another")
    sample = probe_sample(Measured(job, None, changes_of(job, small.pca_id)), share)
    np.testing.assert_array_equal(sample.vectors, VECTORS[numbers])
    np.testing.assert_allclose(sample.embeddings, transform(FITTED, VECTORS)[0][numbers], atol=1e-6)
    assert sample.fitted.tolist() == [True] * len(numbers)
    assert sample.labels.tolist() == ["Fig"] * len(numbers)


def test_statistics_embeddings_and_drift_of_a_small_run_are_those_of_its_rows(small: Small) -> None:
    job = small.wrote(3, 4, embedded=False)
    updated = update_statistics(job, pa.table({"key": pa.array([], pa.string())}))
    expected = moments_of(VECTORS[3:5])
    np.testing.assert_allclose(updated.moments.mean, expected.mean, rtol=1e-12)
    saved = load_statistics(job.lake, head_of(job, "pca_statistics"), MODEL_ID, 4)
    np.testing.assert_allclose(saved.scatter, expected.scatter, rtol=1e-9)
    (sums,) = load_label_sums(job.lake, head_of(job, "label_statistics"), MODEL_ID).values()
    np.testing.assert_allclose(sums.total, VECTORS[3:5].sum(0, dtype=float), rtol=1e-12)

    version: Any = SimpleNamespace(pca_id=small.pca_id, pca=FITTED, expected_unexplained=0.0)
    drift, measured = measure_drift(job, version)
    assert measured == 2
    assert drift == pytest.approx(unexplained(FITTED, VECTORS[3:5]), rel=1e-6)


def test_a_small_run_projects_its_rows_and_no_others(small: Small) -> None:
    job = small.wrote(3, 4, embedded=False)
    tables = Tables(no_spark, job.lake, replace(job.tables.writer, attempt="project"))
    job = replace(job, tables=tables)
    start_branch(job.lake, "embeddings", tables.writer.branch, job.start["embeddings"])
    rows = unprojected_features(job, small.pca_id)
    assert isinstance(rows, RowsAtHand)
    assert project(job, small.pca_id, FITTED, rows) == 2
    rows = job.lake.read("embeddings", head_of(job, "embeddings"), run_id=job.run.run_id).sort_by("key")
    assert rows["key"].to_pylist() == list(KEYS[3:])
    embedding, residual = transform(FITTED, VECTORS[3:5])
    np.testing.assert_array_equal(np.array(rows["embedding"].to_pylist(), np.float32), embedding)
    np.testing.assert_array_equal(rows["residual"].to_numpy(), residual)


def test_rows_of_replaced_keys_are_read_as_the_base_has_them(small: Small) -> None:
    job = small.wrote(3, 4)
    before: Any = rows_before(job, pa.table({"key": pa.array([KEYS[2], KEYS[0], "none"], pa.string())}))
    rows = before.rows
    assert rows["key"].to_pylist() == [KEYS[0], KEYS[2]]
    np.testing.assert_array_equal(np.array(rows["vector"].to_pylist(), np.float32), VECTORS[[0, 2]])


def unexplained(pca: PCA, vectors: np.ndarray[Any, Any]) -> float:
    embedding, residual = transform(pca, vectors)
    return float(np.square(residual).sum() / (np.square(residual).sum() + np.square(embedding).sum()))


def head_of(job: Job, name: TableName) -> int:
    head = job.lake.head(name, job.tables.writer.branch)
    assert head is not None
    return head
