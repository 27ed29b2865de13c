"""New photos wake the DAG: the asset that it is scheduled on, and the watch over the queue of S3's notifications."""

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
_LULL_SECONDS = 1
_GATHER_SECONDS = 10
_MOST_MESSAGES = 1_000
_MOST_KEYS = 20
_PAUSE_SECONDS = 60


def photos_asset(queue: str | None) -> Asset:
    """The photos as an asset, watched where there is a queue; its events may be posted over Airflow's API as well."""
    watchers = [AssetWatcher(name="fruits_events", trigger=PhotoEventsTrigger(queue))] if queue else []
    return Asset(name="fruits_photos", uri="fruits://bucket/photos", watchers=watchers)


class PhotoEventsTrigger(BaseEventTrigger):
    """Fires when S3's notifications come in: once for those that follow one another closely.

    An event is a wake-up, and what is done comes from comparing bucket and tables. So it carries no more than a count
    and some keys, messages are deleted when they are received, and any message will do: a double, a late one, S3's
    ``s3:TestEvent``.

    The amazon provider's own (9.39, which ``MessageQueueTrigger`` makes for SQS) ends after one batch and is started
    again a second or two later, waits anew for each further batch, takes the messages through Airflow's database, and
    ends with a stack trace every second where the queue is denied or missing.
    """

    def __init__(self, queue: str, aws_conn_id: str | None = "aws_default") -> None:
        super().__init__()
        self.sqs_queue = queue
        self.aws_conn_id = aws_conn_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again."""
        return f"{__name__}.{type(self).__name__}", {"queue": self.sqs_queue, "aws_conn_id": self.aws_conn_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch for ever; a queue that can't be read is tried again in a minute, and the hourly sweep goes on."""
        while True:
            try:
                hook = SqsHook(aws_conn_id=self.aws_conn_id, region_name=queue_region(self.sqs_queue))
                async with await hook.get_async_conn() as client:
                    while True:
                        if messages := await self._gather(client):
                            yield TriggerEvent(_summary(messages))
            except (AirflowException, BotoCoreError, ClientError, ValueError) as error:
                self.log.error(
                    "queue %s: %s; check FRUITS_EVENT_QUEUE, and that the role may sqs:ReceiveMessage and "
                    "sqs:DeleteMessage there. Tried again in %d s; until then photos wait for the hourly sweep.",
                    self.sqs_queue,
                    error,
                    _PAUSE_SECONDS,
                )
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _gather(self, client: Any) -> list[dict[str, Any]]:
        """Wait for a message, and take what follows until nothing comes for a second, for ten seconds at most."""
        messages: list[dict[str, Any]] = []
        batch = await self._take(client, _WAIT_SECONDS)
        deadline = time.monotonic() + _GATHER_SECONDS
        while batch:
            messages += batch
            if len(messages) >= _MOST_MESSAGES or time.monotonic() > deadline:
                break
            try:
                batch = await self._take(client, _LULL_SECONDS)
            except (BotoCoreError, ClientError):  # the next wait meets it; these messages are gone from the queue
                break
        return messages

    async def _take(self, client: Any, seconds: int) -> list[dict[str, Any]]:
        """Receive up to ten messages and delete them; one that could not be deleted comes again, which harms nobody."""
        answer = await client.receive_message(QueueUrl=self.sqs_queue, MaxNumberOfMessages=10, WaitTimeSeconds=seconds)
        messages: list[dict[str, Any]] = answer.get("Messages", [])
        if messages:
            entries = [{"Id": str(i), "ReceiptHandle": one["ReceiptHandle"]} for i, one in enumerate(messages)]
            await client.delete_message_batch(QueueUrl=self.sqs_queue, Entries=entries)
        return messages


def _summary(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """What the asset event tells: how many messages, and the first few object keys."""
    keys = dict.fromkeys(key for message in messages for key in object_keys(message.get("Body", "")))
    return {"messages": len(messages), "keys": list(keys)[:_MOST_KEYS]}


def object_keys(body: str) -> Iterator[str]:
    """The keys that an S3 event notification is about; none when it is something else."""
    try:
        for record in json.loads(body)["Records"]:
            yield unquote_plus(record["s3"]["object"]["key"])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return
