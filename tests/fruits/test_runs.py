import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from fruits.errors import FruitsError, GateError
from fruits.runs import read_documents, run_document, run_store
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
