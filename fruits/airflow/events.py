"""New photos start a run: the asset that schedules the DAG, and the trigger that watches the queue of S3's events."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from airflow.providers.amazon.aws.hooks.sqs import SqsHook
from airflow.sdk import Asset, AssetWatcher
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError

from fruits.airflow.tasks import KEPT
from fruits.errors import FruitsError
from fruits.run.events import Burst, keep
from fruits.settings import Settings, queue_region

_WAIT_SECONDS = 20  # SQS's longest: an idle queue costs three requests a minute
_LULL_SECONDS = 1  # without a message; then a burst has ended
_GATHER_SECONDS = 10
_BATCH = 10  # SQS's largest
_MAX_MESSAGES = 1_000
_MAX_KEYS = 20
_REST_SECONDS = 60  # between two events: each starts a run, and each run costs a process
_PAUSE_SECONDS = 60  # after an error of the queue


def photos_asset(queue: str | None) -> Asset:
    """The asset of the photos, watched when there is a queue. Its events may also be posted over Airflow's API."""
    watchers = [AssetWatcher(name="fruits_events", trigger=PhotoEventsTrigger(queue))] if queue else []
    return Asset(name="fruits_photos", uri="fruits://bucket/photos", watchers=watchers)


class PhotoEventsTrigger(BaseEventTrigger):
    """Fires when S3's notifications arrive: one event for a burst of notifications.

    The keys that the notifications name are written to the lake first (``fruits.run.events``), then the messages are
    deleted, then the event fires. So a crash in between loses no key: a message comes again, or the file is read by the
    next run. While the lake cannot be written to, no message is deleted. A burst without a photo of ours fires nothing.

    The amazon provider's trigger (9.39, which ``MessageQueueTrigger`` makes for SQS) deletes messages on receipt, ends
    after one batch and starts again a second or two later, takes the messages through Airflow's database, and ends with
    a stack trace every second while the queue is denied or missing.
    """

    def __init__(self, queue: str, aws_conn_id: str | None = "aws_default") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sqs_queue = queue
        self.aws_conn_id = aws_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, from which the triggerer makes the trigger."""
        return f"{__name__}.{type(self).__name__}", {"queue": self.sqs_queue, "aws_conn_id": self.aws_conn_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch for ever. After an error of queue or lake, log the remedy and try again in a minute."""
        while True:
            try:
                settings = Settings.load()
                hook = SqsHook(aws_conn_id=self.aws_conn_id, region_name=queue_region(self.sqs_queue))
                async with await hook.get_async_conn() as client:
                    while True:
                        messages = await self._gather(client)
                        payload = await self._keep(settings, messages)
                        await self._delete(client, messages)
                        if payload:
                            yield TriggerEvent(payload)
                            await asyncio.sleep(_REST_SECONDS)  # more messages wait in the queue meanwhile
            except (AirflowException, BotoCoreError, ClientError, ValueError) as error:
                self.log.error(
                    "queue %s: %s; check FRUITS_EVENT_QUEUE, and that the role may sqs:ReceiveMessage and "
                    "sqs:DeleteMessage there. Next attempt in %d s; until then photos wait for the next sweep.",
                    self.sqs_queue,
                    error,
                    _PAUSE_SECONDS,
                )
                await asyncio.sleep(_PAUSE_SECONDS)
            except (BaseError, FruitsError, OSError) as error:
                self.log.error(
                    "queue %s: the keys of its events can't be kept, so its messages stay: %s; check FRUITS_LAKE, and "
                    "that the role may write to it. Next attempt in %d s; until then photos wait for the next sweep.",
                    self.sqs_queue,
                    error,
                    _PAUSE_SECONDS,
                )
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _gather(self, client: Any) -> list[dict[str, Any]]:
        """Wait for a message, then gather more until none arrives for a second, for ten seconds at most."""
        messages: list[dict[str, Any]] = []
        batch = await self._take(client, _WAIT_SECONDS)
        deadline = time.monotonic() + _GATHER_SECONDS
        while batch:
            messages += batch
            if len(messages) >= _MAX_MESSAGES or time.monotonic() > deadline:
                break
            try:
                batch = await self._take(client, _LULL_SECONDS)
            except (BotoCoreError, ClientError):  # the next wait meets the error
                break
        return messages

    async def _take(self, client: Any, seconds: int) -> list[dict[str, Any]]:
        """Receive up to ten messages. The queue hides them for a while; one that is not deleted comes again."""
        received = await client.receive_message(
            QueueUrl=self.sqs_queue, MaxNumberOfMessages=10, WaitTimeSeconds=seconds
        )
        messages: list[dict[str, Any]] = received.get("Messages", [])
        return messages

    async def _keep(self, settings: Settings, messages: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Write the keys to the lake; returns the payload of the event, or None when there is nothing to look at."""
        burst = Burst.of((message.get("Body", "") for message in messages), settings)
        if burst.unread:
            self.log.warning(
                "queue %s: %d of %d messages are in no form that Fruits knows (S3, SNS, EventBridge); the next run "
                "looks at the whole bucket",
                self.sqs_queue,
                burst.unread,
                len(messages),
            )
        if not burst:
            return None
        kept = await asyncio.to_thread(keep, settings, burst)
        return {"messages": len(messages), "keys": list(burst.keys[:_MAX_KEYS]), KEPT: kept}

    async def _delete(self, client: Any, messages: Sequence[dict[str, Any]]) -> None:
        """Delete messages. One that cannot be deleted comes again, which is harmless."""
        handles = [message["ReceiptHandle"] for message in messages]
        try:
            for start in range(0, len(handles), _BATCH):
                batch = handles[start : start + _BATCH]
                entries = [{"Id": str(place), "ReceiptHandle": handle} for place, handle in enumerate(batch)]
                await client.delete_message_batch(QueueUrl=self.sqs_queue, Entries=entries)
        except (BotoCoreError, ClientError) as error:
            self.log.warning(
                "queue %s: its messages can't be deleted, and come again: %s; see that the role may sqs:DeleteMessage",
                self.sqs_queue,
                error,
            )
