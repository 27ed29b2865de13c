"""The sensors and their triggers, against a real S3 server and a real lake."""

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk.api.datamodels._generated import DagRunType

from fruits.lake.catalog import Lake
from fruits.lake.schemas import QUARANTINE
from fruits.run.events import Burst, keep
from fruits.settings import Settings
from local.stack import Stack
from tests.triggers import event_of, made_again

pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def sensors(airflow_variables: pytest.MonkeyPatch) -> Any:
    """The module."""
    airflow_variables.setenv("FRUITS_LAKE", "file:///nowhere")
    airflow_variables.setenv("FRUITS_CATALOG_URI", "sqlite:////nowhere/catalog.db")
    from fruits.airflow import sensors

    return sensors


@pytest.fixture
def put(stack: Stack, bucket: str) -> Callable[..., None]:
    """Uploads an object."""
    client = stack.client()

    def put(key: str, body: bytes = b"photo") -> None:
        client.put_object(Bucket=bucket, Key=key, Body=body)

    return put


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a trigger listed the bucket."""
    from aiobotocore.client import AioBaseClient

    times: list[float] = []
    real = AioBaseClient._make_api_call

    async def counting(self: Any, operation_name: str, api_params: Any) -> Any:
        if operation_name.startswith("List"):
            times.append(time.monotonic())
        return await real(self, operation_name, api_params)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", counting)
    return times


def shortest_pause(moments: list[float]) -> float:
    """The least seconds between a moment and the next; infinite when there is but one moment."""
    return min((after - before for before, after in pairwise(moments)), default=math.inf)


class TaskInstance:
    """A task instance of a run whose `prepare` resolved a request."""

    def __init__(self, published: bool | None = None, **request: Any) -> None:
        self.prepared = {"request": request} if published is None else {"request": request, "published": published}

    def xcom_pull(self, task_ids: str) -> dict[str, Any]:
        return {"prepare": self.prepared}[task_ids]


def dag_run(run_type: str = "manual", **conf: Any) -> Any:
    """A run as its tasks know it."""
    return SimpleNamespace(dag_id="fruit_features", run_type=DagRunType(run_type), conf=conf)


def run_params(prefix: str = "", run_type: str = "manual", **params: Any) -> dict[str, Any]:
    """The context of a task."""
    params = {"settle_seconds": 60, "sensor_timeout": 3600, **params}
    return {"params": params, "ti": TaskInstance(prefix=prefix), "dag_run": dag_run(run_type)}


def settled_sensor(sensors: Any, bucket: str, prefix: str = "") -> Any:
    return sensors.UploadsSettledSensor(task_id="uploads_settled", bucket_name=bucket, prefix=prefix, deferrable=True)


def present_sensor(sensors: Any, bucket: str, prefix: str = "") -> Any:
    return sensors.PhotosPresentSensor(
        task_id="wait_for_images", bucket_name=bucket, bucket_key=prefix, deferrable=True
    )


@pytest.mark.parametrize("pays", [True, False])
def test_requests_say_who_pays_where_that_is_set(
    sensors: Any, put: Callable[..., None], bucket: str, lake: Settings, monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    """Every request of the sensors: those of a task, and those of our trigger."""
    from aiobotocore.client import AioBaseClient
    from botocore.client import BaseClient

    payers = []

    def watched(real: Any) -> Any:
        def call(self: Any, operation_name: str, params: Any) -> Any:
            payers.append(params.get("RequestPayer"))
            return real(self, operation_name, params)

        return call

    monkeypatch.setenv("FRUITS_REQUESTER_PAYS", str(pays))
    put("Kiwi/1.jpg")
    for kind in (AioBaseClient, BaseClient):
        monkeypatch.setattr(kind, "_make_api_call", watched(kind._make_api_call))
    present_sensor(sensors, bucket).execute(run_params())
    settled_sensor(sensors, bucket).execute(run_params(settle_seconds=0))
    trigger = sensors.UploadsSettledTrigger(
        bucket_name=bucket, prefix="", inactivity_period=0, aws_conn_id="aws_default"
    )
    assert asyncio.run(event_of(trigger))["status"] == "success"
    assert len(payers) >= 3
    assert set(payers) == {"requester" if pays else None}


def deferral(sensor: Any, **params: Any) -> Any:
    """The deferral that the sensor raises."""
    from airflow.sdk.exceptions import TaskDeferred

    with pytest.raises(TaskDeferred) as raised:
        sensor.execute(run_params(prefix=str(getattr(sensor, "bucket_key", "")).rstrip("*"), **params))
    return raised.value


def append_a_row(lake: Settings) -> None:
    """Put a row of a refused photo into the tables."""
    row = {
        "key": "Training/Apple/1.jpg", "etag": "e", "size": 1, "last_modified": datetime.now(UTC),
        "model_id": "m", "reason": "empty", "detail": "0 bytes", "run_id": "r",
    }  # fmt: skip
    Lake.open(lake).table("quarantine").append(pa.Table.from_pylist([row], schema=QUARANTINE.schema))


def test_a_sweep_by_an_inventory_lists_nothing(
    sensors: Any, put: Callable[..., None], bucket: str, lake: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.client import BaseClient

    put("Training/Apple/1.jpg")
    append_a_row(lake)
    monkeypatch.setenv("FRUITS_LISTING", "inventory")
    monkeypatch.setenv("FRUITS_INVENTORY", "s3://reports/fruits/daily")
    monkeypatch.setattr(BaseClient, "_make_api_call", lambda self, name, _: pytest.fail(f"the sensor asked: {name}"))
    present_sensor(sensors, bucket).execute(run_params())
    settled_sensor(sensors, bucket).execute(run_params())


class TestPhotosPresent:
    def test_goes_on_when_there_is_a_photo(self, sensors: Any, bucket: str, put: Callable[..., None]) -> None:
        put("Training/Apple/1.jpg")
        present_sensor(sensors, bucket, "Training/").execute(run_params())

    def test_a_prefix_is_taken_literally(
        self, sensors: Any, bucket: str, put: Callable[..., None], lake: Settings
    ) -> None:
        put("Training/[red]* Kiwi?/1.jpg")
        present_sensor(sensors, bucket, "Training/[red]* Kiwi?/").execute(run_params())
        deferral(present_sensor(sensors, bucket, "Training/[der]* Kiwi?/"))

    def test_waits_for_the_runs_time_out_when_there_is_none(
        self, sensors: Any, bucket: str, put: Callable[..., None], lake: Settings
    ) -> None:
        put("Test/Apple/1.jpg")
        deferred = deferral(present_sensor(sensors, bucket, "Training/"), sensor_timeout=77)
        assert deferred.timeout == timedelta(seconds=77)

    @pytest.mark.parametrize("run_type", ["scheduled", "asset_triggered", "backfill"])
    def test_an_empty_bucket_is_no_failure_of_a_run_that_nobody_asked_for(
        self, sensors: Any, bucket: str, put: Callable[..., None], lake: Settings, run_type: str
    ) -> None:
        from airflow.sdk.exceptions import AirflowSkipException

        with pytest.raises(AirflowSkipException, match=f"s3://{bucket}/ has no photo .* nothing to do.* Upload photos"):
            present_sensor(sensors, bucket).execute(run_params(run_type=run_type))
        put("Training/Apple/1.jpg")
        present_sensor(sensors, bucket).execute(run_params(run_type=run_type))

    def test_the_wait_ends_when_a_photo_comes_and_not_for_objects_that_no_run_takes(
        self, sensors: Any, bucket: str, put: Callable[..., None], listings: list[float], lake: Settings
    ) -> None:
        for key in ("Training/Apple/", "AWSLogs/today.log.gz", "Training/Apple/.DS_Store"):
            put(key)
        sensor = present_sensor(sensors, bucket)
        sensor.poke_interval = 1
        deferred = deferral(sensor)
        trigger = made_again(deferred.trigger)

        async def scenario() -> dict[str, Any]:
            waiting = asyncio.create_task(event_of(trigger))
            await asyncio.sleep(1.5)
            assert not waiting.done()
            await asyncio.to_thread(put, "Training/Apple/1.jpg")
            return await asyncio.wait_for(waiting, 60)

        event = asyncio.run(scenario())
        assert event["status"] == "success"
        assert len(listings) >= 2
        assert shortest_pause(listings) >= 0.9
        sensor.resume_execution(deferred.method_name, {"event": event}, run_params())

    def test_a_look_stops_at_the_first_photo(self, sensors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """So a large prefix costs one page of the listing."""
        keys, listed = ("Training/.DS_Store", "Training/Apple/1.jpg", "Training/Apple/2.jpg"), []

        def listing(self: Any, prefix: str, bucket: str) -> Any:
            for key in keys:
                listed.append((bucket, prefix, key))
                yield {"Key": key}

        sensor = present_sensor(sensors, "photos", "Training/")
        monkeypatch.setattr(type(sensor.hook), "iter_file_metadata", listing)
        assert sensor.poke(run_params())
        assert listed == [("photos", "Training/", key) for key in keys[:2]]

    def test_goes_on_when_the_last_photo_was_removed(self, sensors: Any, bucket: str, lake: Settings) -> None:
        """Its row is still there, and removing it is work."""
        append_a_row(lake)
        present_sensor(sensors, bucket, "Training/").execute(run_params(prefix="Training/"))
        deferral(present_sensor(sensors, bucket, "Test/"))

    def test_a_wait_in_vain_says_what_was_waited_for(self, sensors: Any, bucket: str) -> None:
        message = timed_out(present_sensor(sensors, bucket, "Training/"), sensor_timeout=77)
        assert f"no photo came under s3://{bucket}/Training/ within 77 s" in message
        assert "`prefix`" in message
        assert "`sensor_timeout`" in message

    def test_a_mistyped_prefix_is_not_waited_for(
        self, sensors: Any, bucket: str, put: Callable[..., None], lake: Settings
    ) -> None:
        from airflow.sdk.exceptions import AirflowFailException

        put("Training/Apple/1.jpg")
        context = run_params(sensor_timeout=None)
        context["params"]["prefix"] = "Trainnig/"
        with pytest.raises(AirflowFailException, match=f"no photo under s3://{bucket}/Trainnig/; .* `prefix`"):
            present_sensor(sensors, bucket, "Trainnig/").execute(context)
        context["params"]["prefix"] = "Training/"
        present_sensor(sensors, bucket, "Training/").execute(context)
        deferred = deferral(present_sensor(sensors, bucket, "Test/"), sensor_timeout=None)
        assert deferred.timeout == timedelta(hours=1), "for the settings' prefix"


class TestUploadsSettled:
    def test_old_photos_need_no_wait(self, sensors: Any, bucket: str, put: Callable[..., None]) -> None:
        put("Training/Apple/1.jpg")
        time.sleep(2.1)
        settled_sensor(sensors, bucket).execute(run_params(settle_seconds=1))

    def test_no_settle_time_needs_no_wait(self, sensors: Any, bucket: str, put: Callable[..., None]) -> None:
        put("Training/Apple/1.jpg")
        settled_sensor(sensors, bucket).execute(run_params(settle_seconds=0))

    def test_where_nothing_is_nothing_can_be_unfinished(self, sensors: Any, bucket: str) -> None:
        settled_sensor(sensors, bucket).execute(run_params())

    def test_fresh_photos_elsewhere_do_not_matter(self, sensors: Any, bucket: str, put: Callable[..., None]) -> None:
        put("Training/Apple/1.jpg")
        time.sleep(2.1)
        put("Test/Apple/1.jpg")
        settled_sensor(sensors, bucket, "Training/").execute(run_params(settle_seconds=1))
        deferral(settled_sensor(sensors, bucket, "Test/"), settle_seconds=30)

    def test_fresh_photos_defer(self, sensors: Any, bucket: str, put: Callable[..., None]) -> None:
        put("Training/Apple/1.jpg")
        deferred = deferral(settled_sensor(sensors, bucket, "Training/"), settle_seconds=9)
        assert isinstance(deferred.trigger, sensors.UploadsSettledTrigger)
        assert deferred.method_name == "execute_complete"
        again = made_again(deferred.trigger)
        assert type(again) is sensors.UploadsSettledTrigger
        assert again.serialize() == deferred.trigger.serialize()
        assert (again.bucket_name, again.prefix, again.inactivity_period) == (bucket, "Training/", 9)

    def test_what_the_triggerer_keeps_does_not_grow_with_the_bucket(
        self, sensors: Any, bucket: str, put: Callable[..., None]
    ) -> None:
        sizes = []
        for count in (1, 20):
            for number in range(count):
                put(f"Training/Apple/{number}.jpg")
            deferred = deferral(settled_sensor(sensors, bucket), settle_seconds=30)
            sizes.append(len(json.dumps(deferred.trigger.serialize())))
        assert sizes[0] == sizes[1]

    def test_the_wait_ends_after_the_period_without_listing_all_the_time(
        self, sensors: Any, bucket: str, put: Callable[..., None], listings: list[float]
    ) -> None:
        sensor = settled_sensor(sensors, bucket)
        start = time.time()
        put("Training/Apple/1.jpg")
        deferred = deferral(sensor, settle_seconds=60)  # on a busy machine the look itself may take three seconds
        trigger = made_again(deferred.trigger)
        trigger.inactivity_period = 3
        event = asyncio.run(event_of(trigger))
        waited = time.time() - start
        assert event["status"] == "success"
        assert 2 <= waited < 30, "S3 tells LastModified to the second"
        assert shortest_pause(listings) >= 0.9
        sensor.resume_execution(deferred.method_name, {"event": event}, run_params())

    def test_objects_that_no_run_takes_are_not_waited_for(
        self, sensors: Any, bucket: str, put: Callable[..., None]
    ) -> None:
        for key in ("Training/Apple/", "Training/.DS_Store", "AWSLogs/today.log.gz"):
            put(key)
        settled_sensor(sensors, bucket).execute(run_params())
        trigger = sensors.UploadsSettledTrigger(
            bucket_name=bucket, prefix="", inactivity_period=60, aws_conn_id="aws_default"
        )
        assert asyncio.run(asyncio.wait_for(event_of(trigger), 30))["status"] == "success"

    @pytest.mark.heavy
    def test_a_photo_that_comes_or_changes_meanwhile_prolongs_the_wait(
        self, sensors: Any, bucket: str, put: Callable[..., None]
    ) -> None:
        period = 8
        put("Training/Apple/1.jpg")
        trigger = made_again(deferral(settled_sensor(sensors, bucket), settle_seconds=period).trigger)

        async def scenario() -> float:
            waiting = asyncio.create_task(event_of(trigger))
            for key in ("Training/Apple/2.jpg", "Training/Apple/1.jpg"):
                await asyncio.sleep(2)
                start = time.monotonic()
                await asyncio.to_thread(put, key, b"another photo")
            assert (await asyncio.wait_for(waiting, 60))["status"] == "success"
            return time.monotonic() - start

        # Without the second photo the wait ends after 6 s more, without either after 4 s.
        assert asyncio.run(scenario()) > period - 1.5, "a whole period after the last upload, to the second"

    def test_an_s3_server_that_refuses_fails_the_task(self, sensors: Any, bucket: str) -> None:
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        trigger = sensors.UploadsSettledTrigger(
            bucket_name="no-such-bucket", prefix="", inactivity_period=1, aws_conn_id="aws_default"
        )
        event = asyncio.run(event_of(trigger))
        assert event["status"] == "error"
        with pytest.raises(AirflowException, match="NoSuchBucket") as raised:
            settled_sensor(sensors, bucket).resume_execution("execute_complete", {"event": event}, run_params())
        assert not isinstance(raised.value, AirflowFailException), "S3 may answer the next time"

    @pytest.mark.heavy
    def test_photos_that_never_stop_coming_do_not_hold_up_the_first(
        self, sensors: Any, bucket: str, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put("Training/Apple/0.jpg")
        trigger = made_again(deferral(settled_sensor(sensors, bucket), settle_seconds=60).trigger)
        trigger.inactivity_period = 3
        monkeypatch.setattr(sys.modules[type(trigger).__module__], "_MAX_SETTLE_PERIODS", 2)

        async def scenario() -> float:
            start, number = time.monotonic(), 0
            waiting = asyncio.create_task(event_of(trigger))
            while not waiting.done() and number < 60:
                number += 1
                await asyncio.to_thread(put, f"Training/Apple/{number}.jpg")
                await asyncio.sleep(0.5)
            assert waiting.result()["status"] == "success"
            return time.monotonic() - start

        assert asyncio.run(scenario()) >= 5, "two periods of three seconds, to the second"


class TestRunsThatLookUpKeys:
    """Such a run lists nothing, in no sensor: here there is no bucket, and any request would fail."""

    @pytest.fixture
    def context(self) -> dict[str, Any]:
        return run_params(run_type="asset_triggered") | {"ti": TaskInstance(prefix="", mode="events", published=False)}

    def test_an_event_is_proof_enough_of_a_photo(self, sensors: Any, context: dict[str, Any]) -> None:
        present_sensor(sensors, "no-such-bucket").execute(context)

    def test_once_anything_is_published_no_event_is_waited_for(self, sensors: Any, lake: Settings) -> None:
        keep(lake, Burst(("new",), datetime.now(UTC)))
        published = {"ti": TaskInstance(prefix="", mode="events", published=True)}
        settled_sensor(sensors, "no-such-bucket").execute(run_params(run_type="asset_triggered") | published)

    def test_the_newest_event_that_is_kept_is_waited_for_before_the_first_publication(
        self, sensors: Any, lake: Settings, context: dict[str, Any]
    ) -> None:
        from airflow.sdk.exceptions import TaskDeferred

        sensor, now = settled_sensor(sensors, "no-such-bucket"), datetime.now(UTC)
        sensor.execute(context)
        keep(lake, Burst(("old",), now - timedelta(seconds=61)))
        sensor.execute(context)
        keep(lake, Burst(("new",), now - timedelta(seconds=30)))
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute(context)
        moment = made_again(deferred.value.trigger).moment
        assert abs(moment - now - timedelta(seconds=30)) < timedelta(seconds=5)
        sensor.resume_execution(deferred.value.method_name, {"event": moment}, context)

    def test_an_event_of_a_clock_that_is_ahead_is_waited_for_one_period(
        self, sensors: Any, lake: Settings, context: dict[str, Any]
    ) -> None:
        from airflow.sdk.exceptions import TaskDeferred

        keep(lake, Burst(("new",), datetime.now(UTC) + timedelta(days=1)))
        with pytest.raises(TaskDeferred) as deferred:
            settled_sensor(sensors, "no-such-bucket").execute(context)
        assert deferred.value.trigger.moment < datetime.now(UTC) + timedelta(seconds=61)

    def test_a_run_whose_params_name_the_photos_waits_for_no_others(self, sensors: Any) -> None:
        context = run_params() | {"ti": TaskInstance(prefix="", keys=["Training/Kiwi/1.jpg"])}
        present_sensor(sensors, "no-such-bucket").execute(context)
        settled_sensor(sensors, "no-such-bucket").execute(context)


def timed_out(sensor: Any, **params: Any) -> str:
    """The message with which a sensor fails when Airflow ends its deferral, and not to be tried again."""
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException) as raised:
        sensor.resume_execution("__fail__", {"error": "Trigger timeout"}, run_params(**params))
    return str(raised.value)


class TestUpgrade:
    """A run may wait across an upgrade: Airflow keeps the path of its trigger's class."""

    @pytest.mark.parametrize("name", ["PhotosPresentTrigger", "UploadsSettledTrigger", "LeaseTrigger"])
    def test_the_class_path_of_a_trigger_stays(self, sensors: Any, name: str) -> None:
        assert callable(getattr(sensors, name))

    def test_a_wait_for_the_lease_of_an_older_release_goes_on(self, sensors: Any) -> None:
        assert made_again(sensors.LeaseTrigger("run")).run_key == "run"

    @pytest.mark.parametrize("sensor", ["photos", "uploads", "lease"])
    def test_a_wait_whose_trigger_is_gone_is_retried(self, sensors: Any, bucket: str, sensor: str) -> None:
        """The triggerer fails such a wait by this call (airflow.models.trigger.Trigger.submit_failure)."""
        from airflow.sdk.exceptions import AirflowFailException, TaskDeferralError

        from fruits.airflow.lease import LeaseSensor

        task = {
            "photos": lambda: present_sensor(sensors, bucket),
            "uploads": lambda: settled_sensor(sensors, bucket),
            "lease": lambda: LeaseSensor(task_id="wait_for_lease"),
        }[sensor]()
        failure = {"error": "Trigger failure", "traceback": ["ModuleNotFoundError: No module named 'fruits_operators'"]}
        with pytest.raises(TaskDeferralError) as raised:
            task.resume_execution("__fail__", failure, run_params())
        assert not isinstance(raised.value, AirflowFailException)
