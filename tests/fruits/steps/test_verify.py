"""The whole pass finds each thing that no gate of a run looks at, and names the run that mends it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.expressions import EqualTo

from fruits.analysis.labels import LabelSum, sums_of
from fruits.analysis.moments import moments_of
from fruits.analysis.pca import fit
from fruits.errors import GateError
from fruits.lake.branches import advance_main, commit_rows
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import save_sample
from fruits.lake.counters import Counters, Kind
from fruits.lake.pca_tables import replace_row, save_label_sums, save_statistics
from fruits.lake.places import first_of
from fruits.lake.publication import Publication, current_base
from fruits.lake.reader import open_read_only
from fruits.lake.schemas import CALIBRATION_SAMPLE, CLASSIFIERS, DATA_TABLES, QUARANTINE, TableName
from fruits.settings import Settings
from fruits.steps import verify as module
from fruits.steps.verify import Check, repair_of, verify, verify_or_fail
from fruits.stores import photo_store, remove_files, write_bytes
from tests.runs import MODEL_ID, RUN_ID, card, document, planned, write_documents

WIDTH = 4
DATA = b"a photo"
ETAG = hashlib.md5(DATA).hexdigest()  # noqa: S324 -- what S3 answers
KEYS = [
    f"{folder}/{number}.jpg"
    for folder, n in (("train/Kiwi", 5), ("train/Lime", 4), ("test/Fig", 4))
    for number in range(n)
]
ILL = "train/Kiwi/ill.jpg"
COUNTERS = Counters(
    {
        Kind(MODEL_ID, "Kiwi", "train"): 5,
        Kind(MODEL_ID, "Lime", "train"): 4,
        Kind(MODEL_ID, "Fig", "test"): 4,
        Kind(MODEL_ID, reason="empty"): 1,
    }
)
VECTORS = dict(zip(KEYS, np.random.default_rng(7).random((len(KEYS), WIDTH), dtype=np.float32), strict=True))
FITTED = np.stack([VECTORS[key] for key in KEYS if key.startswith("train")])

LATELY = datetime.now(UTC) - timedelta(hours=1)
FakeRun = Callable[[Settings], Any]
Spoil = Callable[..., dict[str, Check]]


@pytest.fixture
def place(make_settings: Callable[..., Settings], fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A bucket and a lake in which everything agrees."""
    monkeypatch.setattr(module, "read_card", lambda settings, model_id: card(model_id, WIDTH))
    monkeypatch.setattr(module, "_MOST_HASHES", 5)  # so that there are several parts
    settings = make_settings()
    run = fake_run(settings)
    common = run._common
    run._common = lambda key, model: {**common(key, model), "etag": ETAG}
    pca_id = run.write(VECTORS, MODEL_ID, pca=fit(moments_of(FITTED), 2, 2))
    quarantined = {"size": 0, "last_modified": datetime.now(UTC), "reason": "empty", "detail": "-", "run_id": run.key}
    run._append(QUARANTINE, [{"key": ILL, "etag": ETAG, "model_id": MODEL_ID, **quarantined}])
    save_statistics(run.lake, run.writer, MODEL_ID, moments_of(FITTED), run.key)
    save_label_sums(run.lake, run.writer, MODEL_ID, sums_of(FITTED, ["Kiwi"] * 5 + ["Lime"] * 4), run.key)
    save_sample(run.lake, run.writer, MODEL_ID, sample_rows(KEYS))
    run.classify(VECTORS, MODEL_ID)
    findings = {"counters": COUNTERS.counts, "counts": {}, "published_at": LATELY}
    identity = {"model_id": MODEL_ID, "pca_id": pca_id, "classifier_id": run.classifiers[MODEL_ID]}
    publish(run, Publication(0, {}, **identity, **findings))
    for key in (*KEYS, ILL):
        write_bytes(photo_store(settings), key, DATA)
    return settings


def sample_rows(keys: Sequence[str], **changed: Any) -> pa.Table:
    """Photos as rows of the sample that calibrates; the first one has other values where they are given."""
    rows: list[dict[str, Any]] = []
    for key in keys:
        split, label, _ = key.split("/")
        rows.append({"key": key, "label": label, "split": split, "vector": VECTORS[key], "run_id": "r"})
    rows[0] |= changed
    return pa.Table.from_pylist([{**row, "model_id": MODEL_ID} for row in rows], CALIBRATION_SAMPLE.schema)


def publish(run: Any, row: Publication) -> None:
    """Publish what is on a run's branches, with the findings of ``row``."""
    snapshots = {name: run.lake.head(name, run.branch) for name in DATA_TABLES}
    sequence = run.base.publication.sequence + 1
    changed = {"sequence": sequence, "snapshots": snapshots, "publication_id": f"p{sequence}", "run_id": run.key}
    run.publish_row(replace(row, **changed))


@pytest.fixture
def spoil(place: Settings, fake_run: FakeRun) -> Spoil:
    """Publishes a change of a table, and of the publication's findings, that no run would make; gives the checks."""

    def change(what: Callable[[Any], None] = lambda run: None, **findings: Any) -> dict[str, Check]:
        run = fake_run(place)
        what(run)
        publish(run, replace(run.base.publication, **findings))
        return checks_of(place)

    return change


def checks_of(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in verify(settings, open_read_only(settings))}


def different(checks: dict[str, Check]) -> dict[str, int | None]:
    return {name: check.differences for name, check in checks.items() if check.state == "differs"}


def append(name: TableName, of: str, **changed: Any) -> Callable[[Any], None]:
    """A copy of the row of a key, with other values."""

    def change(run: Any) -> None:
        rows = run.lake.read(name, run.lake.head(name, run.branch))
        copies = rows.filter(pc.equal(rows["key"], of)).slice(0, 1).to_pylist()
        table = pa.Table.from_pylist([{**row, **changed} for row in copies], schema=rows.schema)
        commit_rows(run.lake, name, lambda change: change.append(table, **run.writer.commit), branch=run.branch)

    return change


def remove(name: TableName, key: str) -> Callable[[Any], None]:
    """The rows of a key leave."""

    def change(run: Any) -> None:
        where = EqualTo("key", key)
        commit_rows(run.lake, name, lambda change: change.delete(where, **run.writer.commit), branch=run.branch)

    return change


def moments(run: Any) -> None:
    """The statistics of one row fewer."""
    save_statistics(run.lake, run.writer, MODEL_ID, moments_of(FITTED[1:]), run.key)


def means(run: Any) -> None:
    """The statistics of as many rows, which are a little larger."""
    save_statistics(run.lake, run.writer, MODEL_ID, moments_of(FITTED * np.float32(1 + 1e-6)), run.key)


def labels(run: Any) -> None:
    """The sum of another label beside those that there are."""
    figs = {"Fig": LabelSum(1, np.ones(WIDTH), np.zeros(WIDTH))}
    save_label_sums(run.lake, run.writer, MODEL_ID, figs, run.key)


def sampled(keys: Sequence[str], **changed: Any) -> Callable[[Any], None]:
    """Another sample than the one that the classifier was calibrated on."""
    return lambda run: save_sample(run.lake, run.writer, MODEL_ID, sample_rows(keys, **changed))


def sampled_none(run: Any) -> None:
    """No photo calibrates."""
    save_sample(run.lake, run.writer, MODEL_ID, CALIBRATION_SAMPLE.schema.empty_table())


def weights(run: Any) -> None:
    """A classifier whose weights are not those of the statistics, under the published name."""
    name, branch = "classifiers", run.branch
    row = run.lake.read(name, run.lake.head(name, branch)).to_pylist()[0]
    row["weights"][0][0] += 0.5
    replace_row(run.lake, run.writer, CLASSIFIERS, row, "model_id")


def test_where_everything_agrees_no_check_differs(place: Settings) -> None:
    checks = checks_of(place)
    assert {name: check.state for name, check in checks.items()} == dict.fromkeys(checks, "ok")
    assert repair_of(checks.values()) is None
    verify_or_fail(place, open_read_only(place))


def test_objects_that_are_gone_differ_and_those_that_came_later_await_the_next_run(
    place: Settings, spoil: Spoil
) -> None:
    remove_files(photo_store(place), KEYS[2])
    write_bytes(photo_store(place), "train/Kiwi/late.jpg", DATA)
    checks = checks_of(place)
    assert different(checks) == {"bucket": 1}
    assert checks["bucket"].examples == (KEYS[2],)
    assert "1 arrived since the newest run was planned" in checks["bucket"].found
    assert repair_of(checks.values()) == {}

    checks = spoil(published_at=datetime.now(UTC) + timedelta(hours=1))
    assert different(checks) == {"bucket": 2}
    with pytest.raises(GateError, match=r"bucket: 14 rows; 2 objects differ .* `fruits verify --repair`"):
        verify_or_fail(place, open_read_only(place))


def test_objects_that_arrived_while_the_newest_run_or_maintenance_was_at_work_await_the_next_run(
    place: Settings, spoil: Spoil
) -> None:
    write_bytes(photo_store(place), "train/Kiwi/late.jpg", DATA)
    later = datetime.now(UTC) + timedelta(hours=2)

    def of(run_id: str) -> Callable[[Any], None]:
        return lambda run: setattr(run, "key", run_id)

    checks = spoil(of("maintenance__2026"), published_at=later)
    assert (different(checks), "1 arrived" in checks["bucket"].found) == ({}, True)
    assert different(spoil(of(RUN_ID), published_at=later)) == {"bucket": 1}
    plan = planned(planned_at=datetime.now(UTC) - timedelta(hours=1))
    write_documents(place, document("plan", result=plan))
    assert different(checks_of(place)) == {}
    write_documents(place, document("plan", result=plan.model_copy(update={"run_id": f"{RUN_ID}#2"})))
    assert different(checks_of(place)) == {"bucket": 1}, "the plan of a publication to come"


OF_KEY = {"mode": "rebuild", "keys": [KEYS[0]]}
REFIT = {"refit": "always"}
FEWER = COUNTERS.changed({Kind(MODEL_ID, "Kiwi", "train"): -1})
SPOILT: dict[str, Any] = {
    "an embedding is gone": (remove("embeddings", KEYS[0]), {}, {"embeddings": 1}, OF_KEY),
    "two embeddings": (append("embeddings", KEYS[0]), {}, {"embeddings": 1}, OF_KEY),
    "a stale embedding": (
        lambda run: (
            remove("embeddings", KEYS[0])(run),
            append("embeddings", KEYS[1], key=KEYS[0], etag="old")(run),
        ),
        {},
        {"embeddings": 2},
        OF_KEY,
    ),
    "a photo is also in quarantine": (
        append("quarantine", ILL, key=KEYS[0]),
        {},
        {"keys": 1, "counters": 1},
        {**OF_KEY, **REFIT},
    ),
    "a vector of zeros": (
        lambda run: (remove("features", KEYS[-1])(run), append_zeros(run)),
        {},
        {"vectors": 1, "calibration sample": 1},
        {"mode": "rebuild", "keys": [KEYS[-1]], **REFIT},
    ),
    "statistics of fewer rows": (moments, {}, {"statistics": 1, "classifier": 1}, REFIT),
    "statistics of other rows": (means, {}, {"statistics": 1}, REFIT),
    "a label too many": (labels, {}, {"label statistics": 1, "classifier": 1}, REFIT),
    "a photo is not in the sample": (sampled(KEYS[1:]), {}, {"calibration sample": 1, "classifier": 1}, REFIT),
    "an old vector in the sample": (sampled(KEYS, vector=[9.0] * WIDTH), {}, {"calibration sample": 1}, REFIT),
    "an old label in the sample": (
        sampled(KEYS, label="Fig"),
        {},
        {"calibration sample": 1, "classifier": 1},
        REFIT,
    ),
    "a photo in the sample that is gone": (
        sampled(KEYS, key="train/Kiwi/gone.jpg"),
        {},
        {"calibration sample": 2},
        REFIT,
    ),
    "no sample": (sampled_none, {}, {"calibration sample": 13, "classifier": 1}, REFIT),
    "weights of another classifier": (weights, {}, {"classifier": 1}, REFIT),
    "a classifier that is not there": (lambda run: None, {"classifier_id": "lda-0"}, {"classifier": 1}, REFIT),
    "a counter is too low": (lambda run: None, {"counters": FEWER.counts}, {"counters": 1}, REFIT),
}
"""By name: what no run does to the tables, or to the publication's row; checks that differ; params of the repair."""


def append_zeros(run: Any) -> None:
    append("features", KEYS[-2], key=KEYS[-1], vector=[0.0] * WIDTH)(run)


@pytest.mark.parametrize("case", SPOILT)
def test_each_difference_is_found_by_its_check_and_names_the_run_that_mends_it(case: str, spoil: Spoil) -> None:
    change, findings, expected, params = SPOILT[case]
    checks = spoil(change, **findings)
    assert different(checks) == expected
    assert repair_of(checks.values()) == params
    assert all(checks[name].examples for name in expected)


def test_a_publication_of_an_earlier_release_has_no_counters_to_compare(spoil: Spoil) -> None:
    checks = spoil(counters=None)
    assert (checks["counters"].state, different(checks)) == ("unknown", {})


def test_a_publication_of_an_earlier_release_has_no_classifier_to_compare(spoil: Spoil) -> None:
    checks = spoil(sampled_none, classifier_id=None)
    assert different(checks) == {}
    assert [checks[name].state for name in ("calibration sample", "classifier")] == ["unknown"] * 2
    assert "the next run that changes photos" in checks["calibration sample"].found


def test_a_photo_behind_the_last_of_the_sample_need_not_be_there(spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_PHOTOS", 6)
    in_order = first_of(sample_rows(KEYS), len(KEYS))["key"].to_pylist()
    assert different(spoil(sampled(in_order[:8]))).get("calibration sample") is None
    assert different(spoil(sampled(in_order[:5])))["calibration sample"] == 1, "fewer than calibrate"
    assert different(spoil(sampled([*in_order[:7], in_order[8]])))["calibration sample"] == 1, "one is left out"


def test_a_wrong_count_of_icebergs_own_is_left_to_a_person(place: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "live_rows", lambda *_: 11)
    checks = checks_of(place)
    assert different(checks) == {"counters": 2}
    assert checks["counters"].examples[0] == "Iceberg counts 11 rows of features, there are 13"
    assert repair_of(checks.values()) is None


def test_a_main_that_another_program_moved_and_snapshots_that_are_gone(place: Settings) -> None:
    lake = Lake(place)
    first = lake.table("embeddings").snapshots()[0].snapshot_id
    advance_main(lake, "embeddings", expected=current_base(lake).snapshots["embeddings"], target=first)
    checks = checks_of(place)
    assert different(checks) == {"publications": 1}
    assert "main of embeddings is not where p1 has it" in checks["publications"].found
    assert repair_of(checks.values()) == {}


def test_more_keys_than_a_run_takes_are_repaired_by_a_rebuild_of_all() -> None:
    many = Check("embeddings", "-", module.MOST_KEYS + 1, ("a",) * module.MOST_KEYS, "keys")
    assert repair_of([many]) == {"mode": "rebuild"}
    assert repair_of([Check("publications", "-", 1, ("p1",), "person")]) is None
