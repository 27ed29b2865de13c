"""The waits of `fruit_features` for photos and for uploads to settle, each deferred to a trigger.

Airflow keeps a deferred task's trigger by the path of its class. A run that waits across an upgrade finds the trigger
as long as that path stays. Otherwise the triggerer fails the wait, and the task's retry waits anew (Airflow 3.3:
``TriggerRunner.create_triggers`` and ``Trigger.submit_failure``).
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.amazon.aws.sensors.base_aws import AwsBaseSensor
from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor, S3KeysUnchangedSensor
from airflow.providers.amazon.aws.triggers.s3 import S3KeysUnchangedTrigger, S3KeyTrigger
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow.triggers.base import TriggerEvent
from botocore.exceptions import BotoCoreError, ClientError

from fruits.airflow.errors import non_retryable
from fruits.airflow.lease import LeaseTrigger  # noqa: F401 -- runs that wait since an older release look for it here
from fruits.airflow.tasks import is_automatic
from fruits.settings import Settings

if TYPE_CHECKING:
    from fruits.photos.ignore import IgnoreRules
    from fruits.run.request import RunRequest

_DEFAULT_TIMEOUT_SECONDS = 3_600
_MAX_SETTLE_PERIODS = 10
_MIN_LISTING_PAUSE = 1.0  # seconds; S3's LastModified has a resolution of one second
_COUNTED = "Objects that FRUITS_IGNORE leaves out do not count."

_Listed = Mapping[str, Any]
"""An object of a listing, as boto3 has it."""


class _PayingSensor(AwsBaseSensor[S3Hook]):
    """A sensor whose requests are paid by us, where the bucket asks for that (``FRUITS_REQUESTER_PAYS``)."""

    @property
    def _hook_parameters(self) -> dict[str, Any]:
        return {**super()._hook_parameters, "requester_pays": Settings.load().requester_pays}

    def _photos_in(self, bucket: str | None, prefix: str) -> Iterator[_Listed]:
        """The photos under a prefix of the bucket, listed page by page as they are asked for."""
        return _photos(self.hook.iter_file_metadata(prefix, bucket), _ignore_rules(Settings.load()))


class PhotosPresentSensor(_PayingSensor, S3KeySensor):
    """Waits until there is a photo under the prefix, for as long as the run's param ``sensor_timeout`` allows.

    A photo is any object that no rule of FRUITS_IGNORE takes: a run with the others alone would have nothing to do.
    A run that nobody asked for (a sweep, an event, a backfill) does not wait: an empty bucket is no failure, and the
    next event or sweep looks again. Such a run is skipped. A run by hand waits an hour without the param. It does not
    wait at all for a prefix that its params name, because such a prefix is more likely mistyped. ``bucket_key`` is the
    prefix, taken literally. A poke stops at the first photo, so a large prefix costs one page of the listing, unless
    many ignored objects come first. A sweep by S3 Inventory or S3 Metadata lists nothing while the tables have a row.

    A run that looks up single keys goes on at once: its plan sees which of them are there.
    """

    def execute(self, context: Context) -> None:
        """Look once; defer when there is no photo yet."""
        if not _request(context).lists:
            return
        params, prefix = context["params"], str(self.bucket_key)
        self.timeout = params["sensor_timeout"] or _DEFAULT_TIMEOUT_SECONDS
        if is_automatic(context) and not self.poke(context):
            raise AirflowSkipException(
                f"s3://{self.bucket_name}/{prefix} has no photo and the tables hold none: nothing to do. {_COUNTED} "
                "Upload photos as [Training|Test]/<label>/<file>; the next event or sweep finds them"
            )
        if params.get("prefix") and not params["sensor_timeout"] and not self.poke(context):
            raise AirflowFailException(
                f"no photo under s3://{self.bucket_name}/{prefix}; upload photos as [Training|Test]/<label>/<file>, "
                f"correct the param `prefix`, or set `sensor_timeout` to wait for photos. {_COUNTED}"
            )
        super().execute(context)

    def poke(self, context: Context) -> bool:
        """Whether there is a photo, or a row of an object that is gone: removing the last photo is work, too."""
        if Settings.load().listing != "list" and self._holds_a_row(context):
            return True
        return any(self._photos_in(self.bucket_name, str(self.bucket_key))) or self._holds_a_row(context)

    def _holds_a_row(self, context: Context) -> bool:
        from fruits.lake.catalog import Lake

        with non_retryable():
            return Lake.open(Settings.load()).holds(_request(context).prefix)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the wait; when the wait has timed out, name the prefix and the remedies."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            seconds = context["params"]["sensor_timeout"] or _DEFAULT_TIMEOUT_SECONDS
            raise AirflowFailException(
                f"no photo came under s3://{self.bucket_name}/{self.bucket_key} within {seconds} s; upload photos as "
                "[Training|Test]/<label>/<file>, correct the param `prefix`, or raise `sensor_timeout`. "
                f"{_COUNTED}"
            ) from None

    def _defer(self) -> None:
        self.defer(
            timeout=timedelta(seconds=self.timeout),
            trigger=PhotosPresentTrigger(
                bucket_name=str(self.bucket_name),
                bucket_key=self.bucket_key,
                poke_interval=self.poke_interval,
                aws_conn_id=self.aws_conn_id,
            ),
            method_name="execute_complete",
        )


class PhotosPresentTrigger(S3KeyTrigger):
    """Fires when there is a photo under the prefix ``bucket_key``. The provider's trigger (9.39) takes any object."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, from which the triggerer makes the trigger."""
        names = ("bucket_name", "bucket_key", "poke_interval", "aws_conn_id")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """List until there is a photo. An error of the S3 server fails the task, and Airflow retries the task."""
        try:
            async with await self.hook.get_async_conn() as client:
                while not await self._present(client):
                    await asyncio.sleep(self.poke_interval)
            yield TriggerEvent({"status": "success"})
        except (BotoCoreError, ClientError) as error:
            yield TriggerEvent({"status": "error", "message": str(error)})

    async def _present(self, client: Any) -> bool:
        async for photos in _pages_of_photos(client, self.bucket_name, str(self.bucket_key)):
            if any(photos):
                return True
        return False


class UploadsSettledSensor(_PayingSensor, S3KeysUnchangedSensor):
    """Waits until no photo came in under the prefix for the run's param ``settle_seconds``.

    The sensor compares the newest LastModified with the clock. So photos that are older than that need no wait, and an
    overwritten photo counts as an upload. (The provider's sensor counts keys and always waits a whole period.) When
    photos never stop coming, the sensor goes on after ten periods, so that the first photos do not wait for ever.

    A sweep by S3 Inventory or S3 Metadata does not wait: its objects are as of an earlier date. Nor does a run whose
    param ``keys`` names the photos, or a run by events: photos that come later have events of their own, and wait for
    the lease together. Before the first publication, on whose photos the PCA is fitted, a run by events compares the
    time of the newest event that is kept.
    """

    def execute(self, context: Context) -> None:
        """Look once; defer when the newest upload is too recent."""
        self.inactivity_period = context["params"]["settle_seconds"]
        request = _request(context)
        if not request.lists:
            if request.mode == "events" and not _prepared(context).get("published"):
                self._wait_for_events()
            return
        if Settings.load().listing == "list" and not self.poke(context):
            self.defer(
                trigger=UploadsSettledTrigger(
                    bucket_name=self.bucket_name,
                    prefix=self.prefix,
                    inactivity_period=self.inactivity_period,
                    aws_conn_id=self.aws_conn_id,
                ),
                method_name="execute_complete",
            )

    def _wait_for_events(self) -> None:
        """Defer until the newest event is old enough, by the clock of this machine: one period at the most."""
        from fruits.run.events import kept_events

        with non_retryable():
            newest = kept_events(Settings.load()).newest
        left = min(self.inactivity_period - _seconds_since(newest), self.inactivity_period)
        if left > 0:
            moment = datetime.now(UTC) + timedelta(seconds=left)
            self.defer(trigger=DateTimeTrigger(moment=moment), method_name="go_on")

    def go_on(self, context: Context, event: Any) -> None:
        """Go on after the wait."""

    def poke(self, context: Context) -> bool:  # noqa: ARG002 -- the provider's signature
        """Whether the newest object is old enough."""
        return _seconds_since(_newest(self._photos_in(self.bucket_name, self.prefix))) >= self.inactivity_period


class UploadsSettledTrigger(S3KeysUnchangedTrigger):
    """Fires when the newest object under the prefix is old enough; lists again at the earliest moment that can be.

    The provider's trigger (9.39) lists without a pause, and takes all keys through Airflow's database.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, from which the triggerer makes the trigger."""
        names = ("bucket_name", "prefix", "inactivity_period", "aws_conn_id")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then fire. An error of the S3 server fails the task, and Airflow retries the task."""
        deadline = time.monotonic() + _MAX_SETTLE_PERIODS * self.inactivity_period
        try:
            async with await self.hook.get_async_conn() as client:
                while (left := self.inactivity_period - _seconds_since(await self._newest(client))) > 0:
                    if time.monotonic() > deadline:
                        self.log.warning("s3://%s/%s: photos keep coming; going on", self.bucket_name, self.prefix)
                        break
                    await asyncio.sleep(max(left, _MIN_LISTING_PAUSE))
            yield TriggerEvent({"status": "success"})
        except (BotoCoreError, ClientError) as error:
            yield TriggerEvent({"status": "error", "message": str(error)})

    async def _newest(self, client: Any) -> datetime | None:
        newest = [_newest(photos) async for photos in _pages_of_photos(client, self.bucket_name, self.prefix)]
        return max(filter(None, newest), default=None)


async def _pages_of_photos(client: Any, bucket: str, prefix: str) -> AsyncIterator[Iterator[_Listed]]:
    """The photos under a prefix, page by page of the listing."""
    from fruits.stores import list_requester

    settings = Settings.load()
    ignore, paginator = _ignore_rules(settings), client.get_paginator("list_objects_v2")
    async for page in paginator.paginate(Bucket=bucket, Prefix=prefix, **list_requester(settings)):
        yield _photos(page.get("Contents", ()), ignore)


def _ignore_rules(settings: Settings) -> "IgnoreRules":
    from fruits.photos.ignore import IgnoreRules

    return IgnoreRules.of(settings)


def _photos(objects: Iterable[_Listed], ignore: "IgnoreRules") -> Iterator[_Listed]:
    """The objects that a run takes: those of no rule, unlike another program's log."""
    return (item for item in objects if ignore.rule_of(item["Key"]) is None)


def _newest(photos: Iterable[_Listed]) -> datetime | None:
    """When the newest photo was uploaded."""
    return max((item["LastModified"] for item in photos), default=None)


def _seconds_since(newest: datetime | None) -> float:
    """Seconds since the newest upload; infinite for an empty prefix, where no upload can be unfinished."""
    return (datetime.now(UTC) - newest).total_seconds() if newest else math.inf


def _request(context: Context) -> "RunRequest":
    """The run's request, as `prepare` resolved it."""
    from fruits.run.request import RunRequest

    return RunRequest.model_validate(_prepared(context)["request"])


def _prepared(context: Context) -> Mapping[str, Any]:
    """What `prepare` found. The ``published`` of a run that an earlier release prepared is unknown."""
    prepared: Mapping[str, Any] = context["ti"].xcom_pull(task_ids="prepare")
    return prepared
