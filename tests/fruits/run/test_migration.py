"""Runs and leases of lake format 1 go on, and what is left of an earlier plan does not mix in."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from fruits.errors import FruitsError
from fruits.lake.approvals import Approval
from fruits.lake.branches import start_branch
from fruits.lake.catalog import LAKE_FORMAT, Lake
from fruits.lake.publication import current_base, publications
from fruits.lake.schemas import DATA_TABLES, PUBLICATIONS, TABLES
from fruits.run.documents import RunDocuments, find_plan, read_documents, run_store
from fruits.run.lease import acquire_lease, current_lease
from fruits.run.migration import migrate, with_snapshots
from fruits.run.state import run_key
from fruits.stores import lake_store, list_files, write_json
from tests.runs import RUN_ID, START, document, featurized, planned, projected, validated

KEY = run_key(RUN_ID)
OLD_TABLES = tuple(table.name for table in TABLES if table.since == 1 and table is not PUBLICATIONS)
NEWER = tuple(table.name for table in TABLES if table.since > 1)
PLAN = {
    "task": "plan", "run_id": RUN_ID, "attempt": 1, "state": "succeeded",
    "started_at": "2026-11-22T09:30:00.000000+00:00",
    "finished_at": "2026-11-22T09:30:01.000000+00:00", "wall_seconds": 1.0, "versions": {"fruits": "0.1.0"},
    "seconds": {"list": 0.1}, "slug": KEY,
    "request": {
        "prefix": "", "mode": "reconcile", "keys": ["a"], "interval": None, "backbone": None, "weights": None,
        "n_components": 0.95, "refit": "auto", "limit": 3, "retry_quarantined": False, "dry_run": False,
    },
    "model_id": "m-1",
    "card": {
        "model_id": "m-1", "backbone": "b", "weights": "w", "weights_sha256": None, "feature_width": 4,
        "preprocessing": {"height": 8, "width": 8, "resample": "bicubic", "crop_share": 1.0},
        "flatbuffer_sha256": "0", "flatbuffer_bytes": 1, "licence": "l", "built_with": {},
    },
    "base": {
        "sequence": 2, "publication_id": "pub-2", "pca_id": "pca-1", "model_id": "m-1",
        "probe": {"raw": 0.9, "embedded": None}, "counts": {"features": 7},
        "snapshots": {**dict.fromkeys(DATA_TABLES, 5), "publications": 6},
    },
    "known_rows": 7, "unknown_keys": [], "building": False, "counts": {"create": 1, "pending": 0}, "remaining": 0,
    "work": True, "other_work": None,
}  # fmt: skip


def test_a_plan_of_format_1_is_a_planned_run(folder_lake):
    write_json(run_store(folder_lake, KEY), "plan.json", PLAN)
    run = find_plan(folder_lake, KEY)
    assert (run.key, run.model_id, run.known_rows, run.request.limit, run.request.keys) == (KEY, "m-1", 7, 3, ("a",))
    assert (run.base.publication.sequence, run.base.publications_snapshot) == (2, 6)
    assert run.base.snapshots == {**dict.fromkeys(DATA_TABLES, 5), "publications": 6}
    assert run.manifest == "manifest.parquet"


def test_documents_of_format_1_are_read(folder_lake):
    store = run_store(folder_lake, KEY)
    common = {name: PLAN[name] for name in ("run_id", "attempt", "started_at", "versions", "seconds")}
    common |= {"planned_at": PLAN["started_at"]}
    counts = {"images": 3, "features": 2, "quarantine": {"empty": 1}, "bytes": 9, "images_per_second": 1.0}
    done = {**counts, "stages": {"get": 0.1}, "removed": 0}
    write_json(store, "featurize.json", {**common, **done, "task": "featurize", "state": "succeeded"})
    failed = {"task": "pca", "state": "failed", "error": "no photo", "mendable": True}
    write_json(store, "pca.json", {**common, **failed})
    write_json(store, "plan.json", PLAN)
    documents = read_documents(folder_lake, KEY)
    assert documents.featurized.photo_seconds == {"get": 0.1}
    assert (documents.pca.error, documents.pca.retryable, documents.pca.result) == ("no photo", False, None)
    maintenance = {"task": "plan", "state": "succeeded", "slug": "m", "found": {"a": 1}}
    maintenance |= {"request": {"retention_days": 3, "retention_publications": 2}}
    write_json(run_store(folder_lake, "m"), "plan.json", {**common, **maintenance})
    assert read_documents(folder_lake, "m").plan_maintenance.done.found == {"a": 1}
    assert find_plan(folder_lake, "m") is None
    unfinished = {name: value for name, value in maintenance.items() if name != "slug"}
    write_json(run_store(folder_lake, "u"), "plan.json", {**common, **unfinished, "state": "failed"})
    assert read_documents(folder_lake, "u").plan_maintenance.result is None


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_holds_the_turn_holds_the_lease(folder_lake, ended):
    moment = datetime.now(UTC).isoformat()
    turn = {"number": 7, "run": "old", "renewed_at": moment, "ended": ended}
    write_json(lake_store(folder_lake, "turns"), "000000007.json", turn)
    other = acquire_lease(folder_lake, "new")
    assert (other is None) == ended
    assert current_lease(folder_lake).run == ("new" if ended else "old")
    assert current_lease(folder_lake).number == (8 if ended else 7)
    assert not list(list_files(lake_store(folder_lake), "turns"))


def test_migrating_says_the_format_once(folder_lake):
    lake = Lake.open(folder_lake)
    assert lake.format() == LAKE_FORMAT
    with lake.table("publications").transaction() as transaction:
        transaction.remove_properties("fruits.lake-format")
    assert lake.format() == 1
    migrate(lake)
    migrate(lake)
    assert lake.format() == LAKE_FORMAT


def test_a_lake_of_format_2_gets_the_column_of_approvals_and_keeps_its_publications(folder_lake, monkeypatch, fake_run):
    columns = [field for field in PUBLICATIONS.schema if field.name != "approvals"]
    old = replace(PUBLICATIONS, schema=pa.schema(columns))
    with monkeypatch.context() as patch:
        patch.setattr("fruits.lake.catalog.TABLES", (*TABLES[:-1], old))
        first = fake_run(folder_lake).publish("lite0-0123", "pca-1")  # readers and rollbacks migrate nothing
    Lake(folder_lake).set_properties({"fruits.lake-format": "2"})
    lake = Lake.open(folder_lake)
    assert publications(lake) == [first]
    migrate(lake)
    migrate(lake)
    assert lake.format() == LAKE_FORMAT
    question = Approval("deletions", "d" * 64, "?", 3, "run", START, {"first_keys": ["a"]})
    decided = question.approved("ada", "moved", "Airflow")
    second = fake_run(folder_lake).publish_row(replace(first, sequence=2, run_id="second", approvals=(decided,)))
    assert publications(lake) == [first, second]


def test_a_lake_of_a_newer_format_is_refused_by_name(folder_lake):
    lake = Lake.open(folder_lake)
    with lake.table("publications").transaction() as transaction:
        transaction.set_properties({"fruits.lake-format": "99"})
    with pytest.raises(FruitsError, match="has format 99; Fruits .* knows formats up to 5"):
        Lake.open(folder_lake)


class TestSnapshots:
    """The documents of format 1 name no snapshots: the run's one branch has them."""

    @pytest.fixture
    def lake(self, folder_lake):
        lake = Lake.open(folder_lake)
        for name in OLD_TABLES:
            start_branch(lake, name, f"run_{KEY}", current_base(lake).snapshots[name])
        return lake

    def documents(self, *, later=timedelta(hours=1), **changed):
        moment = datetime.now(UTC) + later
        old = {"token": "", "started_at": moment, **changed}
        return RunDocuments(
            document("plan", 0, planned()),
            document("featurize", 1, featurized(wrote=None), **old),
            document("pca", 2, projected(read=None, wrote=None), **old),
            document("validate", 3, validated(snapshots=None), **old),
        )

    def test_they_are_where_the_branch_is(self, lake):
        filled = with_snapshots(lake, planned(), self.documents())
        heads = {name: lake.head(name, f"run_{KEY}") for name in OLD_TABLES}
        newer = {name: planned().base.snapshots[name] for name in NEWER}
        assert dict(filled.validated.snapshots) == {**heads, **newer}
        assert {**filled.featurized.wrote, **filled.projected.wrote} == {**heads, **newer}
        assert filled.projected.read == filled.featurized.wrote

    def test_rows_that_came_after_a_task_had_read_are_refused(self, lake):
        with pytest.raises(FruitsError, match="was written to after its pca job began; clear the run from `pca`"):
            with_snapshots(lake, planned(), self.documents(later=timedelta(hours=-1)))

    def test_what_an_earlier_plan_left_is_left_alone(self, folder_lake):
        """Its branch is gone, and the run was planned again."""
        leftovers = self.documents(planned_at=datetime(2026, 11, 1, tzinfo=UTC))
        assert with_snapshots(Lake.open(folder_lake), planned(), leftovers) == leftovers

    def test_a_branch_that_is_gone_is_named(self, folder_lake):
        with pytest.raises(FruitsError, match="its branch of table features is gone.*clear the run from `wait_for_"):
            with_snapshots(Lake.open(folder_lake), planned(), self.documents())
