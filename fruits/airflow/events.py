"""New photos start a run: the asset that schedules the DAG, and the trigger that watches the queue of S3's events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import unquote_plus

from airflow.providers.amazon.aws.hooks.sqs import SqsHook
from airflow.sdk import Asset, AssetWatcher
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from botocore.exceptions import BotoCoreError, ClientError

from fruits.settings import queue_region

_WAIT_SECONDS = 20  # SQS's longest: an idle queue costs three requests a minute
_LULL_SECONDS = 1  # without a message; then a burst has ended
_GATHER_SECONDS = 10
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

    An event only wakes the DAG, which then compares the bucket with the tables. So the event carries no more than a
    count and some keys, messages are deleted on receipt, and any message counts: a double, a late one, S3's
    ``s3:TestEvent``.

    The amazon provider's trigger (9.39, which ``MessageQueueTrigger`` makes for SQS) ends after one batch and starts
    again a second or two later, takes the messages through Airflow's database, and ends with a stack trace every second
    while the queue is denied or missing.
    """

    def __init__(self, queue: str, aws_conn_id: str | None = "aws_default") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sqs_queue = queue
        self.aws_conn_id = aws_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, from which the triggerer makes the trigger."""
        return f"{__name__}.{type(self).__name__}", {"queue": self.sqs_queue, "aws_conn_id": self.aws_conn_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch for ever. After an error of the queue, log the remedy and try again in a minute."""
        while True:
            try:
                hook = SqsHook(aws_conn_id=self.aws_conn_id, region_name=queue_region(self.sqs_queue))
                async with await hook.get_async_conn() as client:
                    while True:
                        if messages := await self._gather(client):
                            yield TriggerEvent(_summary(messages))
                            await asyncio.sleep(_REST_SECONDS)  # more messages wait in the queue meanwhile
            except (AirflowException, BotoCoreError, ClientError, ValueError) as error:
                self.log.error(
                    "queue %s: %s; check FRUITS_EVENT_QUEUE, and that the role may sqs:ReceiveMessage and "
                    "sqs:DeleteMessage there. Next attempt in %d s; until then photos wait for the hourly sweep.",
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
            except (BotoCoreError, ClientError):  # the next wait meets the error; the gathered messages must still fire
                break
        return messages

    async def _take(self, client: Any, seconds: int) -> list[dict[str, Any]]:
        """Receive up to ten messages and delete them. A message that is not deleted comes again, which is harmless."""
        received = await client.receive_message(
            QueueUrl=self.sqs_queue, MaxNumberOfMessages=10, WaitTimeSeconds=seconds
        )
        messages: list[dict[str, Any]] = received.get("Messages", [])
        if messages:
            entries = [{"Id": str(i), "ReceiptHandle": message["ReceiptHandle"]} for i, message in enumerate(messages)]
            await client.delete_message_batch(QueueUrl=self.sqs_queue, Entries=entries)
        return messages


def _summary(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The asset event's payload: the number of messages, and the first few object keys."""
    keys = dict.fromkeys(key for message in messages for key in object_keys(message.get("Body", "")))
    return {"messages": len(messages), "keys": list(keys)[:_MAX_KEYS]}


def object_keys(body: str) -> Iterator[str]:
    """The object keys in an S3 event notification; none in any other message."""
    try:
        for record in json.loads(body)["Records"]:
            yield unquote_plus(record["s3"]["object"]["key"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return
