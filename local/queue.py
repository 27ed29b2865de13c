"""The events of an S3 server of ours: an SQS queue, and the bridge over which the server's news get to it.

``python -m local.queue DATA``, which ``make ui`` and docker-compose.yaml start, serves both. SeaweedFS posts
every change of its files to a webhook, in its own words; the bridge repeats those that are about photos in the words of
S3's event notifications, so that Airflow reads the same from this queue as from AWS's. The queue is in memory: one that
is started again begins with a message, which wakes the DAG to look for what was missed.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote_plus

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import FruitsError
from local.stack import BUCKET, REGION, free_ports, stop_process, write_secret

log = logging.getLogger("fruits")

_ACCOUNT = "123456789012"  # whose queue it is, says moto
_NAME = "fruits-events"
_FOLDER = "/buckets/"  # of all buckets, in SeaweedFS's file system
_UPLOADS = ".uploads/"  # of a bucket: parts of multipart uploads
_MOST_BYTES = 10_000_000  # an entry lists its chunks, 4 MB of the photo each
# While so many wait, whoever takes them will look at the bucket, and find what one more would tell of. moto (5.2) takes
# seconds to hand out ten of a thousand.
_MOST_WAITING = 100
_REQUEST_SECONDS = 30
_START_SECONDS = 60


@dataclass(frozen=True)
class EventQueue:
    """Where the queue and the bridge are; ``token`` is what the S3 server shows to the bridge.

    ``host`` is what others call this machine, ``bind`` the address that is listened on.
    """

    sqs_port: int
    webhook_port: int
    token: str
    host: str = "127.0.0.1"
    bind: str = "127.0.0.1"
    bucket: str = BUCKET

    @classmethod
    def choose(cls, data: Path) -> Self:
        """Free ports and a new token, noted in ``data`` where their owner only can read them."""
        sqs_port, webhook_port = free_ports(2)
        chosen = cls(sqs_port, webhook_port, secrets.token_urlsafe(30))
        write_secret(data / "queue.json", json.dumps(asdict(chosen)))
        return chosen

    @classmethod
    def read(cls, data: Path) -> Self:
        """What ``choose`` noted."""
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
        """Whether the bridge listens; it is the last to."""
        with socket.socket() as probe:
            return probe.connect_ex((self.bind, self.webhook_port)) == 0

    def client(self) -> Any:
        """A boto3 client of the SQS server, which takes any keys."""
        return boto3.client(
            "sqs",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id="any",
            aws_secret_access_key="any",  # noqa: S106 -- none at all
            config=Config(connect_timeout=5, retries={"total_max_attempts": 2}),
        )


def s3_notification(event: Mapping[str, Any], bucket: str = BUCKET) -> dict[str, Any] | None:
    """One of SeaweedFS's events as S3 notifies of it; None when it is not about an object of the bucket.

    Folders and the parts of multipart uploads are none; an upload in parts is one object when it is complete. As with
    S3, the key is URL-encoded with plus signs for blanks, and a removal tells neither size nor ETag.

    Raises:
        KeyError, TypeError, ValueError: when it is no event of SeaweedFS (4.48).
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


class Bridge(ThreadingHTTPServer):
    """The webhook's server, listening: what the S3 server posts goes to the queue, translated."""

    def __init__(self, queue: EventQueue) -> None:
        super().__init__((queue.bind, queue.webhook_port), _Webhook)
        self.queue = queue
        self.client = queue.client()
        self.expected = f"Bearer {queue.token}".encode()

    def take(self, authorization: str, body: bytes) -> HTTPStatus:
        """Send what came; the S3 server repeats three times what is not answered by a success."""
        if not hmac.compare_digest(authorization.encode(), self.expected):
            return HTTPStatus.UNAUTHORIZED
        try:
            notification = s3_notification(json.loads(body), self.queue.bucket)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            log.warning("webhook: not an event of SeaweedFS: %r", error)
            return HTTPStatus.BAD_REQUEST
        try:
            if notification is not None and self._waiting() < _MOST_WAITING:
                self.client.send_message(QueueUrl=self.queue.url, MessageBody=json.dumps(notification))
        except (BotoCoreError, ClientError) as error:
            log.error("queue %s: %s", self.queue.url, error)
            return HTTPStatus.BAD_GATEWAY
        return HTTPStatus.NO_CONTENT

    def _waiting(self) -> int:
        name = "ApproximateNumberOfMessages"
        answer = self.client.get_queue_attributes(QueueUrl=self.queue.url, AttributeNames=[name])
        return int(answer["Attributes"][name])


class _Webhook(BaseHTTPRequestHandler):
    server: Bridge
    timeout = _REQUEST_SECONDS  # nobody may hold a thread for ever

    def do_GET(self) -> None:
        """Whether the bridge is there: what a health check asks."""
        self._answer(HTTPStatus.OK)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(min(int(length), _MOST_BYTES)) if length.isdecimal() else b""
        self._answer(self.server.take(self.headers.get("Authorization", ""), body))

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's signature
        """Say nothing: there is one request for each photo."""


def serve(queue: EventQueue, *, again: bool = False) -> None:
    """Serve queue and bridge until the process is ended; ``again``: not for the first time, so something was missed."""
    from moto.server import ThreadedMotoServer
    from moto.sqs.models import Message

    class ForgettingBridge(Bridge):
        def service_actions(self) -> None:
            """Now and then: moto keeps every message that ever was, for its dashboard."""
            tracked: Any = Message
            tracked.instances_tracked.clear()

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request
    ThreadedMotoServer(queue.bind, queue.sqs_port, verbose=False).start()
    queue.client().create_queue(QueueName=_NAME)
    if again:
        queue.client().send_message(QueueUrl=queue.url, MessageBody=json.dumps({"Event": "fruits:QueueStartedAgain"}))
    with ForgettingBridge(queue) as server:
        log.info("queue %s", queue.url)
        server.serve_forever()


def start_queue(data: Path) -> tuple[EventQueue, "subprocess.Popen[bytes]"]:
    """Start a process that serves queue and bridge, on new ports, and wait until it does.

    Raises:
        FruitsError: when it does not; names its log.
    """
    queue = EventQueue.choose(data)
    log_path = data / "logs" / "queue.log"
    log_path.parent.mkdir(exist_ok=True)
    with log_path.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603 -- ourselves
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
