"""What wakes the DAG: messages of a real SQS server (moto's), and an asset that is watched where there is a queue."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from fruits.errors import FruitsError
from fruits.run.events import forget, kept_events
from fruits.settings import Settings
from fruits.stores import effects_watched
from local.queue import EventQueue, s3_notification, start_queue
from local.stack import stop_process

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[3]
TEST_EVENT = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "fruits"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventQueue]:
    """An SQS server."""
    queue, process = start_queue(tmp_path_factory.mktemp("queue"))
    yield queue
    stop_process(process)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a lake in a folder."""
    folder = tmp_path_factory.mktemp("lake")
    return Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")


@pytest.fixture(scope="module")
def events(server: EventQueue, lake: Settings) -> Iterator[Any]:
    """The plugin's module, where the connection leads to the SQS server."""
    extra = {"region_name": "us-east-1", "service_config": {"sqs": {"endpoint_url": server.endpoint}}}
    connection = {"conn_type": "aws", "login": "any", "password": "any", "extra": extra}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        patch.setenv("FRUITS_LAKE", lake.lake)
        patch.setenv("FRUITS_CATALOG_URI", lake.catalog_uri.get_secret_value())
        from fruits.airflow import events as fruits_events

        patch.setattr(fruits_events, "_PAUSE_SECONDS", 0.2)
        patch.setattr(fruits_events, "_REST_SECONDS", 0.2)
        yield fruits_events


@pytest.fixture
def queue(server: EventQueue, lake: Settings, request: pytest.FixtureRequest) -> str:
    """URL of an empty queue of this test's own; no key is kept yet."""
    forget(lake, kept_events(lake).files)
    name = str(abs(hash(request.node.name)))
    return str(server.client().create_queue(QueueName=name)["QueueUrl"])


def send(server: EventQueue, queue: str, *bodies: str) -> None:
    client = server.client()
    for body in bodies:
        client.send_message(QueueUrl=queue, MessageBody=body)


def notification(key: str) -> str:
    entry = {"name": key, "attributes": {"file_size": 3}}
    event = {"event_type": "create", "key": f"/buckets/fruits/{key}", "message": {"new_entry": entry}}
    return json.dumps(s3_notification(event))


async def payload(stream: AsyncIterator[Any], seconds: float = 30) -> dict[str, Any]:
    """The payload of a trigger's next event."""
    event = await asyncio.wait_for(anext(stream), seconds)
    return dict(event.payload)


def first(trigger: Any) -> dict[str, Any]:
    """The payload of a trigger's first event."""

    async def run() -> dict[str, Any]:
        async with aclosing(trigger.run()) as stream:
            return await payload(stream)

    return asyncio.run(run())


class EnoughError(Exception):
    """All complaints that were waited for were made."""


def complaints(events: Any, queue: str, count: int = 1) -> list[str]:
    """What a trigger logs as errors, as an operator reads it."""
    said: list[str] = []

    class Log:
        def error(self, message: str, *values: Any) -> None:
            said.append(message % values)
            if len(said) == count:
                raise EnoughError

        def warning(self, message: str, *values: Any) -> None:
            self.error(message, *values)

    class Heard(events.PhotoEventsTrigger):
        log = Log()

    with pytest.raises(EnoughError):
        first(Heard(queue))
    return said


def left(server: EventQueue, queue: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = server.client().get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


def test_the_photos_are_watched_where_there_is_a_queue(events):
    asset = events.photos_asset("https://sqs.eu-west-3.amazonaws.com/123456789012/fruits")
    assert asset.name == "fruits_photos"
    (watcher,) = asset.watchers
    _, kwargs = watcher.trigger.serialize()
    assert kwargs["queue"] == "https://sqs.eu-west-3.amazonaws.com/123456789012/fruits"
    assert events.photos_asset(None).watchers == []
    assert events.photos_asset(None).uri == asset.uri, "who posts an event of it needs no queue"


@pytest.mark.heavy
def test_the_hourly_sweep_goes_on_when_the_queue_is_nonsense(tmp_path):
    """In a process of its own, as a DAG file is parsed; and all of it is such that Airflow can keep it."""
    parse = """
import sys
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
bag = DagBag(sys.argv[1])
assert bag.import_errors == {}, bag.import_errors
dag = DagSerialization.from_dict(DagSerialization.to_dict(bag.dags["fruit_features"]))
assets = [asset.name for asset in dag.timetable.asset_condition.objects]
print(type(dag.timetable).__name__, dag.timetable.timetable.summary, assets)
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FRUITS_", "AIRFLOW"))}
    variables = {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH")])),
        "FRUITS_EVENT_QUEUE": "nonsense",
    }
    done = subprocess.run(
        [sys.executable, "-c", parse, str(ROOT / "dags" / "fruit_features.py")],
        env={**kept, **variables}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "AssetOrTimeSchedule every hour, backfills daily ['fruits_photos']"


def test_the_triggerer_makes_the_same_trigger_again(events, server, queue):
    from airflow._shared.module_loading import import_string

    path, kwargs = events.PhotoEventsTrigger(queue).serialize()
    json.dumps(kwargs)
    send(server, queue, notification("Kiwi/1.jpg"))
    assert first(import_string(path)(**kwargs))["keys"] == ["Kiwi/1.jpg"]


def test_a_burst_is_one_event_and_one_file_with_the_keys_as_they_are_and_empties_the_queue(events, server, queue, lake):
    keys = [f"é a+b%20/{number}.jpg" for number in range(35)]
    send(server, queue, *map(notification, keys))
    payload = first(events.PhotoEventsTrigger(queue))
    assert payload["messages"] == 35
    assert set(payload["keys"]) < set(keys)
    assert len(payload["keys"]) == 20, "it goes through Airflow's database"
    kept = kept_events(lake)
    assert (set(kept.keys), kept.files, kept.sweep) == (set(keys), (payload["kept"],), False)
    assert left(server, queue) == 0


def test_a_lake_that_cannot_be_written_to_keeps_the_messages_in_the_queue(events, server, queue, lake):
    """They come again, and the log says what to do."""

    def fails(kind: str, path: str, moment: str) -> None:
        raise FruitsError("it denies s3:PutObject")

    send(server, queue, notification("1.jpg"))
    with effects_watched(fails):
        (said,) = complaints(events, queue)
    assert "can't be kept, so its messages stay: it denies s3:PutObject; check FRUITS_LAKE" in said
    assert (left(server, queue), kept_events(lake).files) == (1, ())


def test_a_crash_between_file_and_queue_lets_the_message_come_again_and_the_key_is_kept(
    events, server, queue, lake, monkeypatch
):
    class KilledError(Exception):
        """The process is gone."""

    async def killed(*_: Any) -> None:
        raise KilledError

    server.client().set_queue_attributes(QueueUrl=queue, Attributes={"VisibilityTimeout": "1"})
    send(server, queue, notification("1.jpg"))
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(events.PhotoEventsTrigger, "_delete", killed)
        first(events.PhotoEventsTrigger(queue))
    assert kept_events(lake).keys == ("1.jpg",)
    assert first(events.PhotoEventsTrigger(queue))["keys"] == ["1.jpg"]
    assert (kept_events(lake).keys, len(kept_events(lake).files), left(server, queue)) == (("1.jpg",), 2, 0)


def test_events_about_other_objects_wake_nobody(events, server, queue, lake, monkeypatch):
    monkeypatch.setenv("FRUITS_PREFIX", "photos/")
    send(server, queue, TEST_EVENT, notification("logs/1.log"))

    async def scenario() -> dict[str, Any]:
        async with aclosing(events.PhotoEventsTrigger(queue).run()) as stream:
            waiting = asyncio.create_task(payload(stream))
            while await asyncio.to_thread(left, server, queue):
                await asyncio.sleep(0.1)
            assert not waiting.done()
            await asyncio.to_thread(send, server, queue, notification("photos/1.jpg"))
            return await waiting

    assert asyncio.run(scenario())["keys"] == ["photos/1.jpg"]
    assert kept_events(lake).keys == ("photos/1.jpg",)


def test_a_message_in_an_unknown_form_wakes_a_sweep_and_is_told(events, server, queue, lake):
    message = json.dumps({"Event": "fruits:Sweep"})
    send(server, queue, message)
    assert "1 of 1 messages are in no form that Fruits knows" in complaints(events, queue)[0]
    send(server, queue, message)
    assert first(events.PhotoEventsTrigger(queue))["keys"] == []
    assert kept_events(lake).sweep


def test_a_trickle_does_not_hold_an_event_up_for_ever(events, server, queue, monkeypatch):
    monkeypatch.setattr(events, "_GATHER_SECONDS", 1.5)

    async def scenario() -> int:
        async def trickle() -> None:
            while True:
                await asyncio.to_thread(send, server, queue, notification("Kiwi/1.jpg"))
                await asyncio.sleep(0.1)

        sending = asyncio.create_task(trickle())
        async with aclosing(events.PhotoEventsTrigger(queue).run()) as stream:
            messages = (await payload(stream))["messages"]
        sending.cancel()
        return int(messages)

    assert asyncio.run(scenario()) > 1


def test_one_trigger_fires_again_and_again(events, server, queue):
    async def scenario() -> list[list[str]]:
        found = []
        async with aclosing(events.PhotoEventsTrigger(queue).run()) as stream:
            for number in range(2):
                await asyncio.to_thread(send, server, queue, notification(f"{number}.jpg"))
                found.append((await payload(stream))["keys"])
        return found

    assert asyncio.run(scenario()) == [["0.jpg"], ["1.jpg"]]


def test_a_queue_that_is_not_there_is_named_and_looked_at_again(events, server, queue):
    """Nothing is raised: the triggerer would write a stack trace, every second."""
    missing = f"{queue}-later"
    said = complaints(events, missing, count=2)
    assert all(missing in line and "does not exist" in line and "FRUITS_EVENT_QUEUE" in line for line in said), said
    server.client().create_queue(QueueName=missing.rpartition("/")[2])
    send(server, missing, notification("1.jpg"))
    assert first(events.PhotoEventsTrigger(missing))["keys"] == ["1.jpg"]


@pytest.mark.parametrize("url", ["nonsense", "http://[", "é"])
def test_a_malformed_queue_is_named_too(events, url):
    assert f"queue {url}: " in complaints(events, url)[0]


def test_a_server_that_does_not_answer_or_denies_is_named_and_asked_again(events, server, queue, monkeypatch):
    from aiobotocore.client import AioBaseClient
    from botocore.exceptions import ClientError, EndpointConnectionError

    errors = [
        ClientError({"Error": {"Code": "AccessDenied", "Message": "no sqs:ReceiveMessage"}}, "ReceiveMessage"),
        EndpointConnectionError(endpoint_url="http://sqs"),
    ]
    left = errors.copy()
    real = AioBaseClient._make_api_call

    async def failing(self: Any, operation_name: str, api_params: Any) -> Any:
        if left:
            raise left.pop(0)
        return await real(self, operation_name, api_params)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", failing)
    denied, unreached = complaints(events, queue, count=2)
    assert queue in denied
    assert "no sqs:ReceiveMessage" in denied
    assert queue in unreached
    assert "Could not connect" in unreached
    left[:] = errors
    send(server, queue, notification("1.jpg"))
    assert first(events.PhotoEventsTrigger(queue))["keys"] == ["1.jpg"]


def test_messages_that_were_received_fire_whatever_the_queue_answers_next(events, server, queue, monkeypatch):
    from aiobotocore.client import AioBaseClient
    from botocore.exceptions import ClientError

    calls: list[str] = []
    real = AioBaseClient._make_api_call

    async def failing_after_the_first(self: Any, operation_name: str, api_params: Any) -> Any:
        if operation_name == "DeleteMessageBatch" or (operation_name == "ReceiveMessage" and calls):
            raise ClientError({"Error": {"Code": "InternalError", "Message": "later"}}, operation_name)
        calls.append(operation_name)
        return await real(self, operation_name, api_params)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", failing_after_the_first)
    send(server, queue, *(notification(f"{number}.jpg") for number in range(12)))
    found = first(events.PhotoEventsTrigger(queue))
    assert found["messages"] == len(found["keys"]) == 10
