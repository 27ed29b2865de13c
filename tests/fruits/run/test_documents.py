import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fruits.errors import FruitsError, GateError
from fruits.run.documents import (
    check_tasks_before,
    current_documents,
    last_written,
    read_documents,
    read_plan,
    run_document,
    run_store,
    task_document,
)
from fruits.stores import read_json, write_json

SLUG = "manual_1"


@pytest.fixture(params=["file", "s3"])
def settings(request, make_settings):
    return make_settings(request.param)


def document(settings, task="featurize") -> dict:
    return read_documents(settings, SLUG)[task]


def test_a_task_that_succeeds_leaves_what_it_recorded_and_how_long_it_took(settings):
    with run_document(settings, "featurize", "manual__1", SLUG) as task:
        with task.stage("wait"):
            time.sleep(0.02)
        with task.stage("wait"):
            time.sleep(0.02)
        task.record(images=3, quarantine={"truncated": 1})
    found = document(settings)
    assert (found["task"], found["run_id"], found["attempt"], found["state"]) == (
        "featurize",
        "manual__1",
        1,
        "succeeded",
    )
    assert (found["images"], found["quarantine"]) == (3, {"truncated": 1})
    assert 0.04 <= found["seconds"]["wait"] <= found["wall_seconds"]
    assert datetime.fromisoformat(found["started_at"]) <= datetime.fromisoformat(found["finished_at"])
    assert set(found["versions"]) == {"fruits", "python"}
    assert "error" not in found


def test_a_task_under_way_can_be_seen(settings):
    with run_document(settings, "pca", "manual__1", SLUG):
        assert document(settings, "pca")["state"] == "running"
        assert "finished_at" not in document(settings, "pca")


@pytest.mark.parametrize(
    ("error", "text", "mendable"),
    [
        (FruitsError("bucket 'x' does not exist"), "bucket 'x' does not exist", True),
        (GateError("gate probe failed"), "gate probe failed", True),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError('division by zero')", False),
        (KeyboardInterrupt(), "KeyboardInterrupt()", False),
    ],
    ids=["mendable", "gate", "defect", "interrupt"],
)
def test_a_task_that_fails_says_why_keeps_what_it_recorded_and_still_fails(settings, error, text, mendable):
    def work():
        with run_document(settings, "validate", "manual__1", SLUG) as task:
            task.record(features=7)
            with task.stage("gates"):
                raise error

    with pytest.raises(type(error)):
        work()
    found = document(settings, "validate")
    assert (found["state"], found["error"], found["mendable"]) == ("failed", text, mendable)
    assert found["features"] == 7
    assert set(found["seconds"]) == {"gates"}
    assert found["wall_seconds"] >= found["seconds"]["gates"]


def test_each_retry_counts_and_starts_from_a_clean_document(settings):
    for attempt in (1, 2):
        with (
            pytest.raises(FruitsError),
            run_document(settings, "plan", "manual__1", SLUG) as task,
        ):
            task.record(left_by=attempt)
            raise FruitsError("not yet")
    with run_document(settings, "plan", "manual__1", SLUG):
        pass
    found = document(settings, "plan")
    assert (found["attempt"], found["state"]) == (3, "succeeded")
    assert not {"error", "mendable", "left_by"} & set(found)


def test_runs_and_tasks_do_not_mix(settings):
    for task, slug in (("plan", SLUG), ("pca", SLUG), ("plan", "manual_2")):
        with run_document(settings, task, f"run of {slug}", slug):
            pass
    assert list(read_documents(settings, SLUG)) == ["plan", "pca"]
    assert list(read_documents(settings, "manual_2")) == ["plan"]
    assert read_documents(settings, "manual_2")["plan"]["run_id"] == "run of manual_2"
    assert read_documents(settings, "manual_3") == {}


def test_a_document_is_a_json_file_where_the_docs_say(make_settings):
    settings = make_settings("file")
    with run_document(settings, "publish", "manual__1", SLUG) as task:
        task.record(label="Pomme d'été")
    path = Path(settings.lake.removeprefix("file://")) / "runs" / SLUG / "publish.json"
    assert json.loads(path.read_text())["label"] == "Pomme d'été"


def test_the_store_of_a_run_holds_other_documents_too(settings):
    write_json(run_store(settings, SLUG), "more.json", {"a": 1})
    assert read_json(run_store(settings, SLUG), "more.json") == {"a": 1}
    assert read_documents(settings, SLUG) == {}


def test_documents_of_an_earlier_try_do_not_belong_to_the_plan_that_stands(settings):
    for task in ("plan", "featurize", "validate"):
        with run_document(settings, task, "manual__1", SLUG):
            pass
    assert list(current_documents(read_documents(settings, SLUG))) == ["plan", "featurize", "validate"]
    with run_document(settings, "plan", "manual__1", SLUG):
        pass
    assert list(current_documents(read_documents(settings, SLUG))) == ["plan"]


def test_the_run_that_was_written_to_last_is_the_newest(make_settings):
    settings = make_settings("file")
    assert last_written(settings) == {}
    for task, slug in (("plan", "a"), ("plan", "b"), ("featurize", "a")):
        with run_document(settings, task, "manual__1", slug):
            pass
        time.sleep(0.02)
    found = last_written(settings)
    assert list(found) == ["a", "b"]
    assert found["b"] < found["a"] <= datetime.now(UTC)


def plan_of(settings, run_id):
    with run_document(settings, "plan", run_id, run_id) as document:
        document.record(slug=run_id)
    return read_plan(settings, run_id)


def test_a_run_without_a_finished_plan_says_what_to_do(settings):
    with pytest.raises(FruitsError, match="no finished plan.*clear the run from `wait_for_lease`"):
        read_plan(settings, "nosuch")
    with pytest.raises(ZeroDivisionError), run_document(settings, "plan", "broken", "broken"):
        _ = 1 / 0
    with pytest.raises(FruitsError, match="no finished plan"):
        read_plan(settings, "broken")


def test_a_task_goes_on_from_tasks_that_worked_on_the_same_plan_only(settings):
    plan = plan_of(settings, "run")
    with pytest.raises(FruitsError, match="its featurize job has not succeeded"):
        check_tasks_before(settings, "pca", plan)
    with task_document(settings, "featurize", plan):
        pass
    check_tasks_before(settings, "pca", plan)
    with pytest.raises(FruitsError, match="planned again after its featurize job; clear the run from `wait_for_lease`"):
        check_tasks_before(settings, "pca", plan_of(settings, "run"))
