import re
from collections import Counter
from datetime import UTC, datetime

import obstore
import pyarrow as pa
import pytest

from fruits.errors import FruitsError
from fruits.lake import catalog
from fruits.lake.approvals import Approval
from fruits.lake.branches import start_branch
from fruits.lake.catalog import Lake
from fruits.lake.schemas import DATA_TABLES, EMBEDDINGS, QUARANTINE
from fruits.run.documents import RunDocuments, run_store
from fruits.run.request import RunRequest
from fruits.run.state import run_key
from fruits.serve.report import UnknownRunError, read_overview, read_run, reading, render
from fruits.serve.report.content import Building
from fruits.serve.state import outcome_of
from fruits.stores import lake_store, read_json, write_json
from local.run import _write_report
from tests.fruits.serve.report.conftest import (
    COUNTS,
    GATES,
    LABELS,
    PCA_ID,
    RATIOS,
    append,
    embedding,
    pca_model,
    plan,
    publish,
    quarantined,
    start_of,
)
from tests.runs import (
    MODEL_ID,
    RUN_ID,
    START,
    card,
    document,
    featurized,
    planned,
    planned_maintenance,
    projected,
    validated,
    write_documents,
    writer,
)

KEY = run_key(RUN_ID)


def run_folders(settings):
    return obstore.list_with_delimiter(lake_store(settings, f"runs/{settings.namespace}"))["common_prefixes"]


def test_an_overview_tells_what_readers_see(filled):
    found = read_overview(filled)
    assert found.publication.publication_id == "pub-000001-abcdef"
    assert found.tables.quarantine.counts == {"not_an_image": 2, "empty": 1, "key_pattern": 1}
    assert (found.tables.pca.pca_id, tuple(found.tables.pca.explained_variance_ratio)) == (PCA_ID, RATIOS)
    assert found.tables.pca.explained_variance == sum(RATIOS)
    assert (found.tables.map.shown, found.tables.map.read, found.tables.map.total) == (90, 90, 90)
    assert {label: len(points) for label, points in found.tables.map.points.items()} == dict.fromkeys(LABELS, 30)
    assert found.tables.map.points[LABELS[1]][:2] == [(1.0, 0.5), (4.0, 2.0)], "not the rows of another PCA version"
    assert [task.task for task in found.work.tasks] == ["plan", "featurize", "pca", "validate", "publish"]
    assert (found.work.featurized.images_per_second, found.work.wall_seconds) == (67.1, 50.0)
    assert found.work.versions == {"fruits": "0.1.0", "spark": "4.1.4"}
    assert [past.explained_variance for past in found.history] == [sum(RATIOS)]
    assert "What readers see now" in render(found)


def test_examples_come_with_a_picture_or_with_what_they_are(filled):
    shown = {one.key: one.picture for one in read_overview(filled).tables.quarantine.examples}
    assert shown["stray.jpg"].jpeg is not None
    assert shown["Kiwi/page.jpg"].note == "begins with b'<html>503'"
    assert shown["Kiwi/none.jpg"].note == "no bytes"
    assert shown["Kiwi/old.jpg"].note == "overwritten in the bucket since"


def test_an_empty_lake_has_a_page(settings):
    Lake.open(settings)
    found = read_overview(settings)
    assert (found.publication, found.tables, found.work, found.history) == (None, None, None, ())
    assert "Nothing is published yet" in render(found)


def test_a_published_run(filled):
    found = read_run(filled, KEY)
    assert (found.outcome, found.run_id, found.error) == ("published", RUN_ID, None)
    assert (found.publication, found.publication.run_id) == (found.current, RUN_ID)
    assert (found.planned.counts, found.gates, found.pca.action) == (COUNTS, GATES, "fit")
    assert found.tables.map.shown == 90
    assert "7 pending" in render(found)
    assert "3 not read" in render(found)


@pytest.mark.parametrize("key", ["nope", "../../etc", "", ".", "manual_", "a/b"])
def test_an_unknown_run_is_named_and_leaves_nothing_behind(filled, key):
    before = run_folders(filled)
    with pytest.raises(UnknownRunError) as raised:
        read_run(filled, key)
    said = str(raised.value)
    assert f"run {key}:" in said
    assert "`airflow dags list-runs fruit_features` lists the runs" in said
    assert KEY in said, "the runs that there are"
    assert run_folders(filled) == before


def test_a_run_of_the_maintenance_has_no_report(published):
    found = document("plan_maintenance", 0, planned_maintenance())
    key = write_documents(published, found, document("maintain", 1), run_id="maintenance")
    with pytest.raises(UnknownRunError, match="a run of maintenance has no report"):
        read_run(published, key)


QUESTION = Approval("deletions", "ab" * 32, "Remove 147 of 518 rows?", 147, "run", datetime(2026, 11, 27, tzinfo=UTC))


def planned_as(work=True, dry_run=False, pinned=None, undecided=()):
    request = RunRequest(prefix="", dry_run=dry_run)
    return document("plan", 0, planned(work=work, pinned=pinned, undecided=undecided, request=request))


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ([document("plan", 0, state="running")], "running"),
        ([document("plan", 0, state="failed", error="no")], "failed"),
        ([planned_as()], "unfinished"),
        ([planned_as(work=False)], "nothing to do"),
        ([planned_as(work=False, undecided=(QUESTION,))], "waits for approval"),
        ([planned_as(work=False, pinned="anna pinned readers")], "pinned"),
        ([planned_as(dry_run=True)], "dry run"),
        ([planned_as(work=False, dry_run=True)], "dry run"),
        ([planned_as(), document("featurize", 1, state="running")], "running"),
        ([planned_as(), document("featurize", 1)], "unfinished"),
        ([planned_as(), document("validate", 1, state="failed", error="no")], "failed"),
        ([planned_as(), document("publish", 4)], "published"),
    ],
)
def test_the_documents_tell_what_became_of_a_run(settings, documents, expected):
    assert outcome_of(RunDocuments(**{one.task: one for one in documents})) == expected
    Lake.open(settings)
    key = write_documents(settings, *documents, run_id=f"manual__{expected}_{len(documents)}_{documents[-1].state}")
    found = read_run(settings, key)
    assert found.outcome == expected
    page = render(found)
    assert found.run_id in page


def test_a_failed_run_shows_what_it_wrote_and_readers_where_they_were(published):
    lake = Lake.open(published)
    run_id = "manual__later"
    key, start = run_key(run_id), start_of(lake, sequence=1, pca_id=PCA_ID)
    branch = writer(key).branch
    start_branch(lake, "quarantine", branch, start.snapshots["quarantine"])
    rows = [quarantined(f"new/{number}.jpg", "e", "truncated", 9) for number in range(3)]
    lake.table("quarantine").append(pa.Table.from_pylist(rows, schema=QUARANTINE.schema), branch=branch)
    wrote = {"features": start.snapshots["features"], "quarantine": lake.head("quarantine", branch)}
    write_documents(
        published,
        plan(lake, run_id, base=start),
        document("featurize", 1, featurized(wrote=wrote)),
        document("pca", 2, state="failed", error="the PCA <b>failed</b>"),
        run_id=run_id,
    )
    found = read_run(published, key)
    assert (found.outcome, found.error, found.publication) == ("failed", "the PCA <b>failed</b>", None)
    assert found.tables.quarantine.counts["truncated"] == 3
    assert found.tables.pca.pca_id == PCA_ID, "the version that was there before"
    assert found.current.sequence == 1
    assert "truncated" not in read_overview(published).tables.quarantine.counts
    assert "the PCA &lt;b&gt;failed&lt;/b&gt;" in render(found)


def test_a_run_that_builds_another_backbone_shows_none_of_the_pca_that_readers_use(published):
    lake = Lake.open(published)
    run_id = "manual__building"
    key, start = run_key(run_id), start_of(lake, sequence=1, pca_id=PCA_ID)
    publish(lake, {"run_id": run_id})
    write_documents(
        published,
        plan(lake, run_id, base=start, backbone=card("lite4-0123"), building=True, remaining=1_204),
        document("pca", 2, projected(action="none", reason=None, pca_id=None, wrote=start.snapshots)),
        document("publish", 4),
        run_id=run_id,
    )
    found = read_run(published, key)
    assert (found.tables.pca, found.tables.map) == (None, None)
    assert found.building == Building(MODEL_ID, 1_204)
    page = " ".join(re.sub("<[^>]*>", "", render(found)).split())
    assert f"Readers still use {MODEL_ID}; 1,204 objects remain before they switch to lite4-0123." in page
    assert "Readers see what this run made" not in page
    write_documents(published, document("publish", 4, state="failed", error="no"), run_id=run_id)
    assert "Readers still use" not in render(read_run(published, key)), "it is not known what remains"


def test_a_run_without_a_finished_plan_has_a_report(published):
    key = write_documents(published, document("plan", 0, state="failed", error="no bucket"), run_id="manual__other")
    found = read_run(published, key)
    assert (found.planned, found.tables, found.error) == (None, None, "no bucket")
    assert "The run has no plan (yet)." in render(found)


def test_documents_of_an_earlier_try_are_left_out(published):
    write_documents(published, document("plan", 24 * 60, planned()))
    found = read_run(published, KEY)
    assert [task.task for task in found.work.tasks] == ["plan"]
    assert found.gates == ()


def test_what_waits_and_what_was_approved_comes_from_every_task(published):
    approvals = [Approval("deletions", f"{one:064}", f"Remove {one}?", one, KEY, START) for one in range(5)]
    waiting, used = [(one,) for one in approvals[:2]], [(one,) for one in approvals[2:]]
    run = write_documents(
        published,
        document("plan", result=planned(undecided=waiting[0], approvals=used[0])),
        document("pca", 1, result=projected(undecided=waiting[1], approvals=used[1])),
        document("validate", 2, result=validated(approvals=used[2])),
    )
    found = read_run(published, run)
    assert (*found.questions, *found.approvals) == tuple(approvals)


def test_a_publication_whose_run_was_planned_again_has_no_tasks(published):
    path = "plan.json"
    store = run_store(published, KEY)
    write_json(store, path, {**read_json(store, path), "run_id": f"{RUN_ID}#2"})
    found = read_overview(published)
    assert found.work is None
    assert "have expired, or the run was planned again" in render(found)


def test_a_publication_of_the_second_time_has_the_documents_of_its_run(published):
    lake = Lake.open(published)
    publish(lake, {"run_id": f"{RUN_ID}#2"})
    store = run_store(published, KEY)
    write_json(store, "plan.json", {**read_json(store, "plan.json"), "run_id": f"{RUN_ID}#2"})
    assert read_overview(published).work is not None


def test_expired_snapshots_are_said_to_be_so(published):
    lake = Lake.open(published)
    snapshots = {**{name: lake.head(name) for name in DATA_TABLES}, "features": 1}
    publish(lake, {"snapshots": snapshots})
    found = read_overview(published)
    assert found.tables is None
    assert "pub-000002" in render(found)


def test_the_newest_publications_are_the_history(published):
    lake = Lake.open(published)
    publish(lake, *({"run_id": f"run {number}", "pca_id": "expired"} for number in range(22)))
    history = read_overview(published).history
    assert [past.publication.sequence for past in history] == list(range(4, 24))
    assert {past.explained_variance for past in history} == {None}


def test_each_reason_is_shown_by_its_newest_objects_and_no_reason_takes_all_the_room(settings):
    lake = Lake.open(settings)
    reasons = [f"reason_{number}" for number in range(11)]
    rows = [quarantined(f"{one}/{at:02}", "e", one, 0, minute=at) for one in reasons for at in range(30)]
    append(lake, QUARANTINE, rows)
    append(lake, QUARANTINE, [quarantined("newest", "e", "reason_0", 0, minute=99)])
    found = reading.read_quarantine(lake, lake.head("quarantine"), MODEL_ID)
    assert found.counts == {"reason_0": 31, **dict.fromkeys(sorted(reasons[1:]), 30)}
    assert found.total == 331
    shown = Counter(one.reason for one in found.examples)
    assert len(found.examples) == reading.MOST_EXAMPLES
    assert set(shown.values()) == {2, 3}
    assert [one.key for one in found.examples[:2]] == ["newest", "reason_0/29"]
    assert {one.key.rpartition("/")[2] for one in found.examples} <= {"newest", "29", "28", "27"}


def test_a_map_of_many_is_a_sample_that_is_always_the_same(settings):
    lake = Lake.open(settings)
    many = [embedding(f"photo-{number}", LABELS[number % 3], number, 0.0) for number in range(10_000)]
    append(lake, EMBEDDINGS, many[:6_000])
    append(lake, EMBEDDINGS, many[6_000:])
    found = reading.read_map(lake, lake.head("embeddings"), PCA_ID)
    assert (found.read, found.total) == (10_000, 10_000)
    assert found.shown == pytest.approx(reading.MOST_POINTS, rel=0.1)
    assert found == reading.read_map(lake, lake.head("embeddings"), PCA_ID)
    shares = [len(points) / found.shown for points in found.points.values()]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04)


def test_reading_for_the_map_ends_somewhere(settings, monkeypatch):
    monkeypatch.setattr(reading, "MOST_ROWS_READ", 2_000)
    monkeypatch.setattr(reading, "MOST_POINTS", 100)
    monkeypatch.setattr(catalog, "_BATCH_ROWS", 500)
    lake = Lake.open(settings)
    append(lake, EMBEDDINGS, [embedding(f"photo-{number}", "Kiwi", number, 0.0) for number in range(5_000)])
    found = reading.read_map(lake, lake.head("embeddings"), PCA_ID)
    assert (found.read, found.total) == (2_000, 5_000)
    assert 50 < found.shown < 150


def test_a_run_without_photos_to_show_does_not_ask_the_bucket(settings):
    lake = Lake.open(settings)
    append(lake, EMBEDDINGS, [embedding("1.jpg", "Kiwi", 1.0, 2.0)])
    publish(lake, {"pca_id": None, "probe_raw": None, "probe_embedded": None, "gates": ()})
    found = read_overview(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    assert (found.tables.pca, found.tables.map, found.tables.quarantine.total) == (None, None, 0)
    assert "every object could be featurized" in render(found)


def test_a_lake_that_cannot_be_read_is_named(published, tmp_path):
    wrong = published.model_copy(update={"lake": f"file://{tmp_path}/elsewhere"})
    with pytest.raises(UnknownRunError, match="elsewhere/runs"):
        read_run(wrong, KEY)
    for path in (tmp_path / published.lake.rpartition("/")[2] / "tables").rglob("*.parquet"):
        path.unlink()
    with pytest.raises(FruitsError, match=r"lake file:///.*: .*; check FRUITS_LAKE, FRUITS_CATALOG_URI"):
        read_overview(published)


def test_what_is_read_is_plain_values(filled):
    assert read_run(filled, KEY).planned.model_dump_json()
    assert pca_model()["pca_id"] == read_run(filled, KEY).tables.pca.pca_id


def test_make_run_writes_the_page_of_its_run(filled, tmp_path):
    path = tmp_path / "build" / "report.html"
    assert not _write_report(filled, "never_planned", path)
    assert not path.exists()
    assert _write_report(filled, KEY, path)
    assert RUN_ID in path.read_text(encoding="utf-8")
