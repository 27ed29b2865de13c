"""The events of our own S3 server: an SQS queue, and a bridge from the server's webhook to the queue.

``python -m local.queue DATA`` serves both; ``make ui`` and docker-compose.yaml start it. SeaweedFS posts every change
of its files to a webhook, in its own format. The bridge translates those about photos into S3's event notifications, so
that Airflow reads the same from this queue as from AWS's. The queue is in memory. A queue that is started again begins
with a message, which wakes the DAG to look for missed photos.
"""

import base64
import hmac
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote_plus

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import FruitsError
from local.stack import BUCKET, REGION, free_ports, stop_process, write_secret

if TYPE_CHECKING:
    from flask import Flask

log = logging.getLogger("fruits")

_ACCOUNT = "123456789012"  # moto's owner of all queues
_NAME = "fruits-events"
_FOLDER = "/buckets/"  # of all buckets, in SeaweedFS's file system
_UPLOADS = ".uploads/"  # of a bucket: parts of multipart uploads
_MOST_BYTES = 10_000_000  # an entry lists its chunks, 4 MB of the photo each
# While so many messages wait, some more ask for a sweep, and the rest are dropped: the sweep finds their photos. moto
# (5.2) takes seconds to hand out ten of a thousand.
_MOST_WAITING, _MOST_SWEEPS = 100, 10
_SWEEP = json.dumps({"Event": "fruits:Sweep"})
"""A message that names no photo, so the run that it wakes looks at the whole bucket."""
_START_SECONDS = 60


@dataclass(frozen=True)
class EventQueue:
    """Where the queue and the bridge are. The S3 server authenticates to the bridge with ``token``.

    ``host`` is this machine's name for other programs, ``bind`` the address to listen on.
    """

    sqs_port: int
    webhook_port: int
    token: str
    host: str = "127.0.0.1"
    bind: str = "127.0.0.1"
    bucket: str = BUCKET

    @classmethod
    def choose(cls, data: Path) -> Self:
        """Choose free ports and a new token; write them to ``data``, where only their owner can read them."""
        sqs_port, webhook_port = free_ports(2)
        chosen = cls(sqs_port, webhook_port, secrets.token_urlsafe(30))
        write_secret(data / "queue.json", json.dumps(asdict(chosen)))
        return chosen

    @classmethod
    def read(cls, data: Path) -> Self:
        """Read what ``choose`` wrote."""
        return cls(**json.loads((data / "queue.json").read_text()))

    @property
    def endpoint(self) -> str:
        """URL of the SQS server."""
        return f"http://{self.host}:{self.sqs_port}"

    @property
    def url(self) -> str:
        """URL of the queue: ``FRUITS_EVENT_QUEUE``."""
        return f"{self.endpoint}/{_ACCOUNT}/{_NAME}"

    @property
    def notifications(self) -> str:
        """SeaweedFS's ``notification.toml``: every change in the bucket of photos goes to the bridge."""
        return f"""[notification.webhook]
enabled = true
endpoint = "http://{self.host}:{self.webhook_port}/"
bearer_token = "{self.token}"
path_prefixes = ["{_FOLDER}{self.bucket}/"]
"""

    def serving(self) -> bool:
        """Whether the bridge listens, which starts last."""
        with socket.socket() as probe:
            return probe.connect_ex((self.bind, self.webhook_port)) == 0

    def client(self) -> Any:
        """A boto3 client of the SQS server, which takes any keys."""
        return boto3.client(
            "sqs",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="any",
            aws_secret_access_key="any",  # noqa: S106 -- not a secret
            config=Config(connect_timeout=5, retries={"total_max_attempts": 2}),
        )


def s3_notification(event: Mapping[str, Any], bucket: str = BUCKET) -> dict[str, Any] | None:
    """The S3 event notification for one of SeaweedFS's events; None when it is not about an object of the bucket.

    Folders and the parts of multipart uploads are not objects; an upload in parts is one object once it is complete. As
    with S3, the key is URL-encoded with plus signs for blanks, and a removal has neither size nor ETag.

    Raises:
        KeyError, TypeError, ValueError: when ``event`` is not an event of SeaweedFS (4.48).
    """
    path, message = str(event["key"]), event["message"]
    if event["event_type"] == "rename":  # the key is the old one
        path = f"{message['new_parent_path']}/{message['new_entry']['name']}"
    folder = f"{_FOLDER}{bucket}/"
    key = path.removeprefix(folder)
    removed = event["event_type"] == "delete"
    entry = message["old_entry" if removed else "new_entry"]
    if not path.startswith(folder) or key.startswith(_UPLOADS) or entry.get("is_directory"):
        return None
    s3_object: dict[str, Any] = {"key": quote_plus(key, safe="/"), "sequencer": f"{datetime.now(UTC).timestamp():.6f}"}
    if not removed:
        etag = base64.b64decode(entry.get("extended", {}).get("Seaweed-X-Amz-ETag", ""), validate=True).decode()
        s3_object |= {"size": int(entry["attributes"].get("file_size", 0)), "eTag": etag}
    return {
        "Records": [
            {
                "eventVersion": "2.1",
                "eventSource": "aws:s3",
                "awsRegion": REGION,
                "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "eventName": "ObjectRemoved:Delete" if removed else "ObjectCreated:Put",
                "s3": {
                    "s3SchemaVersion": "1.0",
                    "configurationId": "fruits",
                    "bucket": {"name": bucket, "arn": f"arn:aws:s3:::{bucket}"},
                    "object": s3_object,
                },
            }
        ]
    }


def webhook(queue: EventQueue, client: Any) -> "Flask":
    """The bridge: an application that takes the S3 server's posts and sends them, translated, to the queue."""
    from flask import Flask, Response, request

    expected = f"Bearer {queue.token}".encode()

    def take() -> Response:
        """Send an event to the queue; the S3 server repeats a post that fails, three times."""
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected):
            return Response(status=HTTPStatus.UNAUTHORIZED)
        try:
            notification = s3_notification(json.loads(request.get_data()), queue.bucket)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            log.warning("webhook: not an event of SeaweedFS: %r", error)
            return Response(status=HTTPStatus.BAD_REQUEST)
        try:
            waiting = _waiting(queue, client) if notification is not None else _MOST_WAITING + _MOST_SWEEPS
            if waiting < _MOST_WAITING + _MOST_SWEEPS:
                body = json.dumps(notification) if waiting < _MOST_WAITING else _SWEEP
                client.send_message(QueueUrl=queue.url, MessageBody=body)
        except (BotoCoreError, ClientError) as error:
            log.error("queue %s: %s", queue.url, error)
            return Response(status=HTTPStatus.BAD_GATEWAY)
        return Response(status=HTTPStatus.NO_CONTENT)

    app = Flask("fruits")
    app.config["MAX_CONTENT_LENGTH"] = _MOST_BYTES
    app.add_url_rule("/", "take", take, methods=["POST"])
    app.add_url_rule("/", "health", Response, methods=["GET"])
    return app


def _waiting(queue: EventQueue, client: Any) -> int:
    name = "ApproximateNumberOfMessages"
    return int(client.get_queue_attributes(QueueUrl=queue.url, AttributeNames=[name])["Attributes"][name])


def serve(queue: EventQueue, *, again: bool = False) -> None:
    """Serve queue and bridge until the process is ended; ``again``: events were missed since the last time."""
    from moto.server import ThreadedMotoServer
    from moto.sqs.models import Message
    from werkzeug.serving import make_server

    class ForgetfulMessages(list[Any]):
        """Where moto keeps all messages for its dashboard, for ever: here it keeps none."""

        def append(self, message: Any) -> None:
            """Forget the message."""

    tracked: Any = Message
    tracked.instances_tracked = ForgetfulMessages()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
    ThreadedMotoServer(queue.bind, queue.sqs_port, verbose=False).start()
    client = queue.client()
    client.create_queue(QueueName=_NAME)
    if again:
        client.send_message(QueueUrl=queue.url, MessageBody=_SWEEP)
    log.info("queue %s", queue.url)
    make_server(queue.bind, queue.webhook_port, webhook(queue, client), threaded=True).serve_forever()


def start_queue(data: Path) -> tuple[EventQueue, "subprocess.Popen[bytes]"]:
    """Start a process that serves queue and bridge, on new ports, and wait until both listen.

    Raises:
        FruitsError: when they do not; names the log.
    """
    queue = EventQueue.choose(data)
    log_path = data / "logs" / "queue.log"
    log_path.parent.mkdir(exist_ok=True)
    with log_path.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603 -- our own program
            [sys.executable, "-m", "local.queue", str(data)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_SECONDS
    while not queue.serving():
        if process.poll() is not None or time.monotonic() > deadline:
            stop_process(process)
            raise FruitsError(f"the queue of events did not start; its log is {log_path}")
        time.sleep(0.1)
    return queue, process


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    data = Path(sys.argv[1])
    started = data / "queue.started"
    again = started.exists()
    started.touch()
    serve(EventQueue.read(data), again=again)
