"""What messages name, and how their keys are kept until a publication has them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from fruits.errors import FruitsError
from fruits.run import events
from fruits.run.events import Burst, Named, forget, keep, kept_events, kept_files, objects_in
from fruits.stores import effects_watched, lake_store, write_bytes

AT = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


def s3(*keys: str, bucket: str = "fruits") -> dict[str, Any]:
    """A notification of S3: keys are URL-encoded, with plus signs for blanks."""
    entities = [{"bucket": {"name": bucket}, "object": {"key": key, "size": 3, "eTag": "e"}} for key in keys]
    return {"Records": [{"eventTime": "2026-11-20T09:30:00.000Z", "s3": entity} for entity in entities]}


def event_bridge(key: str, bucket: str = "fruits") -> dict[str, Any]:
    """An event of EventBridge: keys are as they are."""
    detail = {"bucket": {"name": bucket}, "object": {"key": key, "size": 3, "etag": "e"}, "reason": "PutObject"}
    return {"source": "aws.s3", "detail-type": "Object Created", "time": "2026-11-20T09:30:00Z", "detail": detail}


def sns(message: Any) -> dict[str, Any]:
    """A message of an SNS topic that the queue subscribes to."""
    return {"Type": "Notification", "TopicArn": "arn:aws:sns:::photos", "Message": json.dumps(message)}


KIWI = Named("fruits", "Training/red Kiwi/a+b%.jpg", AT)
ENCODED = "Training/red+Kiwi/a%2Bb%25.jpg"


@pytest.mark.parametrize(
    "message",
    [s3(ENCODED), sns(s3(ENCODED)), event_bridge(KIWI.key), sns(event_bridge(KIWI.key))],
    ids=["S3", "S3 by SNS", "EventBridge", "EventBridge by SNS"],
)
def test_every_form_of_a_notification_names_the_key_as_it_is(message):
    assert objects_in(json.dumps(message)) == [KIWI]


def test_a_notification_without_a_time_is_read_too():
    message = s3("1.jpg")
    message["Records"][0]["eventTime"] = "yesterday"
    assert objects_in(json.dumps(message)) == [Named("fruits", "1.jpg")]


@pytest.mark.parametrize(
    "body",
    [
        *("", "null", "[]", "{}", "no JSON", '{"Records": [{}]}', '{"Records": null}', "[" * 100_000),
        *('{"Message": "hello"}', '{"detail": {"object": {}}}', json.dumps({"Event": "fruits:Sweep"})),
    ],
)
def test_a_message_in_no_known_form_makes_the_next_run_sweep(folder_lake, body):
    assert objects_in(body) is None
    burst = Burst.of([body, json.dumps(s3("1.jpg"))], folder_lake)
    assert (burst.keys, burst.unread) == (("1.jpg",), 1)
    keep(folder_lake, burst)
    assert kept_events(folder_lake).sweep


def test_nothing_is_kept_of_the_test_event_and_of_other_places(folder_lake):
    settings = folder_lake.model_copy(update={"prefix": "photos/"})
    others = [{"Event": "s3:TestEvent", "Bucket": "fruits"}, s3("logs/1"), s3("photos/1.jpg", bucket="other")]
    assert not Burst.of(map(json.dumps, others), settings)
    burst = Burst.of(map(json.dumps, [*others, s3("photos/1.jpg")]), settings)
    assert (burst.keys, burst.newest, burst.unread) == (("photos/1.jpg",), AT, 0)


def test_keys_of_late_doubled_and_reordered_events_are_kept_once_each(folder_lake):
    for keys in (["b", "a"], ["a"], ["c", "b", "b"]):
        keep(folder_lake, Burst.of([json.dumps(s3(*keys))], folder_lake))
    kept = kept_events(folder_lake)
    assert (kept.keys, len(kept.files), kept.newest, kept.sweep) == (("a", "b", "c"), 3, AT, False)
    forget(folder_lake, kept.files[:2])
    assert kept_events(folder_lake).keys == ("b", "c")
    forget(folder_lake, kept.files)
    assert kept_files(folder_lake) == ()


def test_namespaces_of_one_lake_keep_events_of_their_own(folder_lake):
    keep(folder_lake, Burst(("a",)))
    assert kept_files(folder_lake.model_copy(update={"namespace": "other"})) == ()


def test_a_key_that_the_prefix_left_out_since_is_not_looked_up(folder_lake):
    keep(folder_lake, Burst(("a/1", "b/1")))
    assert kept_events(folder_lake.model_copy(update={"prefix": "b/"})).keys == ("b/1",)


def test_a_file_that_cannot_be_read_makes_the_next_run_sweep_and_is_forgotten(folder_lake):
    write_bytes(lake_store(folder_lake), f"events/{folder_lake.namespace}/broken.json", b"{")
    kept = kept_events(folder_lake)
    assert (kept.files, kept.sweep) == (("broken.json",), True)


def test_more_keys_than_a_run_looks_up_make_a_sweep(folder_lake, monkeypatch):
    monkeypatch.setattr(events, "MOST_KEYS", 3)
    keep(folder_lake, Burst(("a", "b", "c")))
    assert not kept_events(folder_lake).sweep
    keep(folder_lake, Burst(("c", "d")))
    assert kept_events(folder_lake).sweep


def test_more_files_than_a_run_reads_make_a_sweep(folder_lake, monkeypatch):
    monkeypatch.setattr(events, "_MOST_FILES", 1)
    keep(folder_lake, Burst(("a",)))
    keep(folder_lake, Burst(("a",)))
    assert kept_events(folder_lake).sweep


def test_files_that_cannot_be_removed_are_looked_at_again(folder_lake, caplog):
    def fails(kind: str, path: str, moment: str) -> None:
        if kind == "delete":
            raise FruitsError("no s3:DeleteObject")

    keep(folder_lake, Burst(("a",)))
    with effects_watched(fails):
        forget(folder_lake, kept_files(folder_lake))
    assert "no s3:DeleteObject" in caplog.text
    assert kept_events(folder_lake).keys == ("a",)
