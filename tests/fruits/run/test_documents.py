import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fruits.errors import FruitsError, GateError, TransientError
from fruits.run.documents import (
    RunDocuments,
    check_tasks_before,
    find_plan,
    listed_runs,
    read_documents,
    read_plan,
    run_store,
    task_document,
)
from fruits.run.state import run_key
from fruits.run.upkeep import run_folders
from fruits.serve.state import runs
from fruits.stores import exists, lake_store, list_files, read_json, write_json
from tests.runs import RUN_ID, START, document, featurized, planned, projected, published, validated, write_documents

KEY = "manual_1"


@pytest.fixture(params=["file", "s3"])
def settings(request, make_settings):
    return make_settings(request.param)


def test_a_task_that_succeeds_leaves_what_it_recorded_and_how_long_it_took(settings):
    with task_document(settings, "featurize", KEY, "manual__1", START) as task:
        with task.phase("wait"):
            time.sleep(0.02)
        with task.phase("wait"):
            time.sleep(0.02)
        task.record(featurized(images=3, quarantine={"truncated": 1}))
    found = read_documents(settings, KEY).featurize
    assert (found.task, found.run_id, found.attempt, found.state) == ("featurize", "manual__1", 1, "succeeded")
    assert found.done == featurized(images=3, quarantine={"truncated": 1})
    assert 0.04 <= found.seconds["wait"] <= found.wall_seconds
    assert found.started_at <= found.finished_at
    assert set(found.versions) == {"fruits", "python"}
    assert found.error is None


def test_a_task_under_way_can_be_seen(settings):
    with task_document(settings, "pca", KEY, "manual__1"):
        found = read_documents(settings, KEY).pca
        assert (found.state, found.finished_at, found.done) == ("running", None, None)


@pytest.mark.parametrize(
    ("error", "text", "retryable"),
    [
        (FruitsError("bucket 'x' does not exist"), "bucket 'x' does not exist", False),
        (GateError("gate probe failed"), "gate probe failed", False),
        (TransientError("no answer"), "no answer", True),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError('division by zero')", True),
        (KeyboardInterrupt(), "KeyboardInterrupt()", True),
    ],
    ids=["non-retryable", "gate", "transient", "defect", "interrupt"],
)
def test_a_task_that_fails_says_why_keeps_what_it_recorded_and_still_fails(settings, error, text, retryable):
    def work():
        with task_document(settings, "validate", KEY, "manual__1") as task:
            task.record(validated(features=7))
            with task.phase("gates"):
                raise error

    with pytest.raises(type(error)):
        work()
    found = read_documents(settings, KEY).validate
    assert (found.state, found.error, found.retryable) == ("failed", text, retryable)
    assert (found.result.features, found.done) == (7, None)
    assert set(found.seconds) == {"gates"}
    assert found.wall_seconds >= found.seconds["gates"]


def test_each_retry_counts_and_starts_from_a_clean_document(settings):
    for _ in (1, 2):
        with pytest.raises(FruitsError), task_document(settings, "plan", KEY, "manual__1") as task:
            task.record(planned())
            raise FruitsError("not yet")
    with task_document(settings, "plan", KEY, "manual__1"):
        pass
    found = read_documents(settings, KEY).plan
    assert (found.attempt, found.state, found.error, found.result) == (3, "succeeded", None, None)


def test_attempts_of_one_task_never_share_a_branch(settings):
    """Not even when both count the same number: the first may not have written its document yet."""
    branches = set()
    for _ in range(3):
        with task_document(settings, "featurize", KEY, "manual__1") as task:
            branches.add(task.document.writer(KEY).branch)
        (run_path,) = [item["path"] for batch in run_store(settings, KEY).list() for item in batch]
        run_store(settings, KEY).delete(run_path)
    assert len(branches) == 3
    assert all(branch.startswith(f"run_{KEY}__featurize_1_") for branch in branches)


def test_an_attempt_of_featurize_names_the_attempts_before_at_the_same_plan(settings):
    plan, other = datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)

    def attempt(task, planned_at):
        with task_document(settings, task, KEY, "manual__1", planned_at) as recorder:
            return recorder.document.writer(KEY)

    first, second, third = (attempt("featurize", plan) for _ in range(3))
    assert (first.earlier, second.earlier) == ((), (first.attempt,))
    assert third.earlier == (first.attempt, second.attempt)
    again = attempt("featurize", other)
    assert again.earlier == ()
    assert attempt("featurize", other).earlier == (again.attempt,)
    assert [attempt("pca", plan).earlier for _ in range(2)] == [(), ()]


def test_an_attempt_that_was_overtaken_does_not_write_over_the_later_ones_document(settings):
    def overtaken(error=None):
        with task_document(settings, "featurize", KEY, "manual__1") as first:
            first.record(featurized(images=1))
            with task_document(settings, "featurize", KEY, "manual__1") as second:
                second.record(featurized(images=2))
            if error:
                raise error

    with pytest.raises(TransientError, match="a later attempt of featurize has begun, so this one does not count"):
        overtaken()
    assert read_documents(settings, KEY).featurize.done.images == 2
    with pytest.raises(ZeroDivisionError):
        overtaken(ZeroDivisionError())
    assert read_documents(settings, KEY).featurize.state == "succeeded"


def test_runs_and_tasks_do_not_mix(settings):
    for task, key in (("plan", KEY), ("pca", KEY), ("plan", "manual_2")):
        with task_document(settings, task, key, f"run of {key}"):
            pass
    assert [document.task for document in read_documents(settings, KEY)] == ["plan", "pca"]
    assert [document.run_id for document in read_documents(settings, "manual_2")] == ["run of manual_2"]
    assert not read_documents(settings, "manual_3")


def test_namespaces_of_one_lake_have_run_folders_of_their_own(settings):
    """The hourly runs of both have the same ids, and so the same keys."""
    other = settings.model_copy(update={"namespace": "other"})
    for namespace, run_id in ((settings, "of fruits"), (other, "of other")):
        with task_document(namespace, "plan", KEY, run_id):
            pass
    assert [read_documents(one, KEY).plan.run_id for one in (settings, other)] == ["of fruits", "of other"]
    assert [read_documents(one, KEY).plan.attempt for one in (settings, other)] == [1, 1]
    with task_document(other, "plan", "manual_2", "of other"):
        pass
    assert list(listed_runs(settings)) == [KEY]
    assert set(listed_runs(other)) == {KEY, "manual_2"}


def test_a_run_of_an_earlier_release_goes_on_in_its_folder(settings):
    """Up to 0.2.0 a folder was named by the run's key alone."""
    old = document("plan", 0, planned(), run_id="of the earlier release")
    write_json(lake_store(settings), f"runs/{KEY}/plan.json", old.model_dump(mode="json"))
    assert read_documents(settings, KEY).plan == old
    assert find_plan(settings, KEY) == old.result
    with task_document(settings, "featurize", KEY, "of the earlier release"):
        pass
    with task_document(settings, "plan", "manual_2", "a new run"):
        pass
    assert [one.task for one in read_documents(settings, KEY)] == ["plan", "featurize"]
    assert set(listed_runs(settings)) == {KEY, "manual_2"}
    assert exists(lake_store(settings), f"runs/{KEY}/featurize.json")


def test_runs_are_listed_once_however_many_are_read(settings, monkeypatch):
    """The listing shows each run's folder, that of an earlier release as well."""
    old = document("plan", 0, planned(), run_id="of the earlier release")
    write_json(lake_store(settings), f"runs/{KEY}/plan.json", old.model_dump(mode="json"))
    for key in ("manual_2", "manual_3"):
        with task_document(settings, "plan", key, f"run of {key}"):
            pass
    listings = []
    monkeypatch.setattr(
        "fruits.run.documents.list_files", lambda store, prefix: listings.append(prefix) or list_files(store, prefix)
    )
    found = {key: documents.plan.run_id for key, documents in runs(settings)}
    assert found == {KEY: "of the earlier release", "manual_2": "run of manual_2", "manual_3": "run of manual_3"}
    assert {folder.key for folder in run_folders(settings, START - timedelta(days=1)) if folder.planned} == {KEY}
    assert listings == ["runs", "runs"]


def test_a_document_is_a_json_file_where_the_docs_say(make_settings):
    settings = make_settings("file")
    with task_document(settings, "publish", KEY, "manual__1") as task:
        task.record(published(publication_id="Pomme d'été"))
    path = Path(settings.lake.removeprefix("file://")) / "runs" / "fruits" / KEY / "publish.json"
    assert json.loads(path.read_text())["result"]["publication_id"] == "Pomme d'été"


@pytest.mark.parametrize("damage", [{"state": "fine"}, {"more": 1}, {"result": {"images": 1}}])
def test_a_document_of_another_kind_is_refused_by_name(settings, damage):
    write_documents(settings, document("featurize", 1, featurized()))
    store, path = run_store(settings, run_key(RUN_ID)), "featurize.json"
    write_json(store, path, {**read_json(store, path), **damage})
    with pytest.raises(FruitsError, match="featurize.json: not a document of `featurize` that Fruits .* knows"):
        read_documents(settings, run_key(RUN_ID))


def test_documents_survive_being_written(settings):
    documents = [
        document("plan", 0, planned()),
        document("featurize", 1, featurized()),
        document("pca", 2, projected()),
        document("validate", 3, validated()),
        document("publish", 4, published()),
    ]
    write_documents(settings, *documents)
    assert list(read_documents(settings, run_key(RUN_ID))) == documents


def test_documents_of_an_earlier_try_do_not_belong_to_the_plan_that_stands():
    documents = RunDocuments(document("plan", 0), document("featurize", 1), document("pca", 2), document("validate", 3))
    assert documents.current() == documents
    planned_again = RunDocuments(document("plan", 9), document("featurize", 1), document("pca", 2))
    assert planned_again.current() == RunDocuments(document("plan", 9))
    featurized_again = RunDocuments(document("plan", 0), document("featurize", 5), document("pca", 2))
    assert featurized_again.current() == RunDocuments(document("plan", 0), document("featurize", 5))


def test_the_run_that_was_written_to_last_is_the_newest(make_settings):
    settings = make_settings("file")
    assert listed_runs(settings) == {}
    for task, key in (("plan", "a"), ("plan", "b"), ("featurize", "a")):
        with task_document(settings, task, key, "manual__1"):
            pass
        time.sleep(0.02)
    found = listed_runs(settings)
    assert list(found) == ["a", "b"]
    assert found["b"].written_at < found["a"].written_at <= datetime.now(UTC)


def test_a_run_without_a_finished_plan_says_what_to_do(settings):
    with pytest.raises(FruitsError, match="no finished plan.*clear the run from `wait_for_lease`"):
        read_plan(settings, "nosuch")
    with pytest.raises(ZeroDivisionError), task_document(settings, "plan", "broken", "broken"):
        _ = 1 / 0
    assert find_plan(settings, "broken") is None


class TestTasksBefore:
    WROTE = featurized(), projected(), validated()

    def documents(self, *, featurize=WROTE[0], pca=WROTE[1], validate=WROTE[2], **changed):
        return RunDocuments(
            document("plan", 0, planned()),
            document("featurize", 1, featurize, **changed),
            document("pca", 2, pca),
            document("validate", 3, validate),
        )

    def test_a_run_whose_tasks_fit_together_goes_on(self):
        for task in ("featurize", "pca", "validate", "publish"):
            check_tasks_before(task, planned(), self.documents())

    def test_a_task_waits_for_the_tasks_before_it(self):
        with pytest.raises(FruitsError, match="its featurize job has not succeeded; run that first"):
            check_tasks_before("pca", planned(), RunDocuments(document("plan", 0, planned())))
        failed = self.documents(state="failed", error="out of memory")
        with pytest.raises(FruitsError, match="featurize job has not succeeded; run that first .out of memory"):
            check_tasks_before("publish", planned(), failed)

    def test_a_task_works_on_the_plan_that_stands_only(self):
        again = planned(planned_at=START + timedelta(hours=1))
        with pytest.raises(FruitsError, match="planned again after its featurize job; clear .* `wait_for_lease`"):
            check_tasks_before("pca", again, self.documents())

    @pytest.mark.parametrize("task", ["validate", "publish"])
    def test_rows_that_pca_did_not_read_go_no_further(self, task):
        other = featurized(wrote={"features": 2, "quarantine": 1})
        with pytest.raises(FruitsError, match="featurize job ran again after its pca job; clear the run from `pca`"):
            check_tasks_before(task, planned(), self.documents(featurize=other))
        check_tasks_before("pca", planned(), self.documents(featurize=other))

    @pytest.mark.parametrize("wrote", [("embeddings", 2), ("pca_models", 2)])
    def test_rows_that_no_gate_measured_are_not_published(self, wrote):
        name, snapshot = wrote
        other = projected(wrote={**projected().wrote, name: snapshot})
        with pytest.raises(FruitsError, match="pca job ran again after its validate job; clear .* from `validate`"):
            check_tasks_before("publish", planned(), self.documents(pca=other))
