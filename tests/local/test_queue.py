"""The queue of events: what the S3 server tells, in S3's own words, and from nobody else."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest

from fruits.errors import FruitsError
from fruits.run.events import objects_in
from local import queue as module
from local.queue import EventQueue, s3_notification, start_queue
from local.stack import free_ports, make_bucket, start_s3, stop_process, stop_s3

# As SeaweedFS 4.48 posted them.
ATTRIBUTES = {"file_size": 3, "mtime": 1795381218, "file_mode": 432, "mime": "image/jpeg", "inode": 46297201646}
ENTRY = {
    "name": "1.jpg",
    "chunks": [{"size": 3, "modified_ts_ns": 1795381218288346448, "e_tag": "kAFQmDzST7DWlj99KOF/cg=="}],
    "attributes": ATTRIBUTES,
    "extended": {
        "Seaweed-X-Amz-ETag": "OTAwMTUwOTgzY2QyNGZiMGQ2OTYzZjdkMjhlMTdmNzI=",
        "Seaweed-X-Amz-Owner": "YWRtaW4=",
    },
}
TOKEN = "token"
FOLDER = {"name": "Kiwi", "is_directory": True, "attributes": {"mtime": 1795381218, "file_mode": 2147484153}}


def event(kind: str, key: str, *, old: Any = None, new: Any = None, parent: str | None = None) -> dict[str, Any]:
    entries = {name: entry for name, entry in (("old_entry", old), ("new_entry", new)) if entry is not None}
    message = {**entries, **({"new_parent_path": parent} if parent is not None else {}), "signatures": [645449484]}
    return {"event_type": kind, "key": key, "message": message}


def created(key: str) -> dict[str, Any]:
    parent, _, name = f"/buckets/fruits/{key}".rpartition("/")
    return event("create", f"{parent}/{name}", new={**ENTRY, "name": name}, parent=parent)


def record(told: dict[str, Any]) -> dict[str, Any]:
    notification = s3_notification(told)
    assert notification is not None
    (only,) = notification["Records"]
    return only


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (created("Training/Kiwi/1.jpg"), "ObjectCreated:Put"),
        (event("update", "/buckets/fruits/Training/Kiwi/1.jpg", old=ENTRY, new=ENTRY), "ObjectCreated:Put"),
        (event("delete", "/buckets/fruits/Training/Kiwi/1.jpg", old=ENTRY), "ObjectRemoved:Delete"),
    ],
    ids=["new", "overwritten", "deleted"],
)
def test_an_object_is_told_of_in_the_words_of_s3(told, name):
    said = record(told)
    assert (said["eventSource"], said["eventName"], said["awsRegion"]) == ("aws:s3", name, "us-east-1")
    assert said["eventVersion"].startswith("2.")
    assert said["eventTime"].endswith("Z")
    assert said["s3"]["bucket"] == {"name": "fruits", "arn": "arn:aws:s3:::fruits"}
    said["s3"]["object"].pop("sequencer")
    facts = {"size": 3, "eTag": "900150983cd24fb0d6963f7d28e17f72"} if name == "ObjectCreated:Put" else {}
    assert said["s3"]["object"] == {"key": "Training/Kiwi/1.jpg", **facts}


def test_a_renamed_object_is_told_of_by_its_new_name():
    told = event("rename", "/buckets/fruits/a/1.jpg", old=ENTRY, new=ENTRY, parent="/buckets/fruits/b")
    assert record(told)["s3"]["object"]["key"] == "b/1.jpg"


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        ("a b/c d.jpg", "a+b/c+d.jpg"),
        ("1+1.jpg", "1%2B1.jpg"),
        ("100%25.jpg", "100%2525.jpg"),
        ("Pomme d'été/é.jpg", "Pomme+d%27%C3%A9t%C3%A9/%C3%A9.jpg"),
        ('🍎&=?#;"<>.jpg', "%F0%9F%8D%8E%26%3D%3F%23%3B%22%3C%3E.jpg"),
        (".uploads", ".uploads"),
        ("a/.uploads/1.jpg", "a/.uploads/1.jpg"),
        ("buckets/fruits/1.jpg", "buckets/fruits/1.jpg"),
    ],
)
def test_keys_are_encoded_as_s3_does(key, encoded):
    said = record(created(key))["s3"]["object"]["key"]
    assert said == encoded
    assert unquote_plus(said) == key


@pytest.mark.parametrize(
    "told",
    [
        event("create", "/buckets/fruits", new=FOLDER, parent="/buckets"),
        event("create", "/buckets/fruits/Training/Kiwi", new=FOLDER, parent="/buckets/fruits/Training"),
        event("delete", "/buckets/fruits/Training/Kiwi", old=FOLDER),
        event("create", "/buckets/fruits/.uploads/62_20", new=FOLDER, parent="/buckets/fruits/.uploads"),
        event("create", "/buckets/fruits/.uploads/62_20/0001_11.part", new=ENTRY, parent="/buckets/fruits/.uploads"),
        event("delete", "/buckets/fruits/.uploads/62_20/0001_11.part", old=ENTRY),
        event("create", "/buckets/fruits-other/1.jpg", new=ENTRY, parent="/buckets/fruits-other"),
        event("create", "/buckets/other/fruits/1.jpg", new=ENTRY, parent="/buckets/other/fruits"),
        event("create", "/etc/fruits/1.jpg", new=ENTRY, parent="/etc/fruits"),
    ],
    ids=["bucket", "folder", "folder gone", "upload begun", "part", "part gone", "namesake", "other bucket", "outside"],
)
def test_what_is_no_object_of_the_bucket_is_not_told_of(told):
    assert s3_notification(told) is None


# What follows needs Flask and moto, which only the airflow environment has.


@pytest.fixture
def queue() -> EventQueue:
    port, admin = free_ports(2)
    return EventQueue(port, admin, TOKEN)


class Sent:
    """A client of SQS that keeps what it is sent."""

    waiting = 0

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def send_message(self, QueueUrl: str, MessageBody: str) -> None:  # noqa: N803 -- boto3's names
        self.bodies.append(json.loads(MessageBody))

    def get_queue_attributes(self, QueueUrl: str, AttributeNames: list[str]) -> dict[str, Any]:  # noqa: N803
        return {"Attributes": {name: str(self.waiting) for name in AttributeNames}}


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def post(queue, sent) -> Callable[..., int]:
    """Posts a body to the bridge; returns the status of the answer."""
    bridge = module.webhook(queue, sent).test_client()
    return lambda body, token=TOKEN: (
        bridge.post("/", data=body, headers={"Authorization": f"Bearer {token}"}).status_code
    )


GOOD = json.dumps(created("Kiwi/1.jpg")).encode()


@pytest.mark.airflow
@pytest.mark.parametrize("token", ["", "wrong", TOKEN * 2, "é"])
def test_nobody_without_the_token_is_listened_to(post, sent, token):
    assert post(GOOD, token.encode().decode("latin-1")) == 401
    assert sent.bodies == []
    assert post(GOOD) == 204
    assert len(sent.bodies) == 1


@pytest.mark.airflow
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"[]",
        b"17",
        b'"create"',
        b"{}",
        b'{"event_type": "create"}',
        b'{"event_type": "create", "key": "/buckets/fruits/1.jpg", "message": null}',
        b'{"event_type": "create", "key": "/buckets/fruits/1.jpg", "message": {"new_entry": []}}',
        b'{"event_type": "create", "key": "/buckets/fruits/1.jpg", "message": {"new_entry": {"name": "1.jpg"}}}',
        b'{"event_type": "create", "key": "/buckets/fruits/\\ud800.jpg", "message": {"new_entry": {"attributes": {}}}}',
        json.dumps(created("1.jpg")).replace("OTAw", "!!!!").encode(),
        b"[" * 100_000,
    ],
)
def test_bad_input_is_refused_and_the_next_event_is_taken(post, sent, body):
    assert post(body) == 400
    assert sent.bodies == []
    assert post(GOOD) == 204
    assert len(sent.bodies) == 1


@pytest.mark.airflow
def test_a_queue_that_nobody_empties_does_not_grow_for_ever_and_asks_for_a_sweep(post, sent):
    """What is dropped is found by the sweep, which begins after the upload."""
    for sent.waiting in (99, 100, 109, 110, 500):
        assert post(GOOD) == 204
    keys = [objects_in(json.dumps(body)) for body in sent.bodies]
    assert [bool(named) for named in keys] == [True, False, False]
    assert keys[1:] == [None, None], "a sweep, to whoever reads the queue"


@pytest.mark.airflow
def test_a_queue_that_is_gone_is_named_in_the_log_and_the_event_refused(queue, caplog):
    bridge = module.webhook(queue, queue.client()).test_client()
    assert bridge.post("/", data=GOOD, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 502
    assert queue.url in caplog.text


def test_ports_and_token_are_for_their_owner_only(tmp_path):
    chosen = EventQueue.choose(tmp_path)
    path = tmp_path / "queue.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert EventQueue.read(tmp_path) == chosen
    assert len(chosen.token) >= 40
    path.chmod(0o644)
    assert EventQueue.choose(tmp_path).token != chosen.token
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.airflow
@pytest.mark.heavy
def test_objects_put_and_deleted_over_s3_are_in_the_queue(tmp_path):
    """The real S3 server and the real queue; also after the bridge was killed and started again."""
    queue, process = start_queue(tmp_path)
    stack = start_s3(tmp_path, queue.notifications)
    again: subprocess.Popen[bytes] | None = None
    try:
        for bucket in ("fruits", "fruits-other"):
            make_bucket(stack, bucket)
        client = stack.client()
        client.put_object(Bucket="fruits-other", Key="1.jpg", Body=b"1")
        client.put_object(Bucket="fruits", Key="folder/", Body=b"")
        for key in ("é a+b%20.jpg", "Kiwi/1.jpg"):
            client.put_object(Bucket="fruits", Key=key, Body=b"photo")
        client.put_object(Bucket="fruits", Key="Kiwi/1.jpg", Body=b"another")
        upload = client.create_multipart_upload(Bucket="fruits", Key="Kiwi/large.jpg")["UploadId"]
        parts = [
            {
                "PartNumber": number,
                "ETag": client.upload_part(
                    Bucket="fruits", Key="Kiwi/large.jpg", UploadId=upload, PartNumber=number, Body=body
                )["ETag"],
            }
            for number, body in ((1, b"1" * 5 * 1024 * 1024), (2, b"2"))
        ]
        etag = client.complete_multipart_upload(
            Bucket="fruits", Key="Kiwi/large.jpg", UploadId=upload, MultipartUpload={"Parts": parts}
        )["ETag"].strip('"')
        client.delete_object(Bucket="fruits", Key="Kiwi/1.jpg")
        put, removed = "ObjectCreated:Put", "ObjectRemoved:Delete"
        assert sorted(received(queue, 5), key=str) == sorted(
            [
                (put, "é a+b%20.jpg", 5, "5ae0c1c8a5260bc7b6648f6fbd115c35"),
                (put, "Kiwi/1.jpg", 5, "5ae0c1c8a5260bc7b6648f6fbd115c35"),
                (put, "Kiwi/1.jpg", 7, "b32d73e56ec99bc5ec8f83871cde708a"),
                (put, "Kiwi/large.jpg", 5 * 1024 * 1024 + 1, etag),
                (removed, "Kiwi/1.jpg", None, None),
            ],
            key=str,
        )
        stop_process(process)
        client.put_object(Bucket="fruits", Key="unheard.jpg", Body=b"the S3 server goes on without it")
        command = [sys.executable, "-m", "local.queue", str(tmp_path)]
        again = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not queue.serving():
            assert again.poll() is None
            time.sleep(0.1)
        (woken,) = queue.client().receive_message(QueueUrl=queue.url)["Messages"]  # to look for what was missed
        assert json.loads(woken["Body"]) == {"Event": "fruits:Sweep"}
        queue.client().delete_message(QueueUrl=queue.url, ReceiptHandle=woken["ReceiptHandle"])
        client.put_object(Bucket="fruits", Key="heard.jpg", Body=b"photo")
        assert "heard.jpg" in {key for _, key, _, _ in received(queue, 1)}
    finally:
        stop_s3(tmp_path)
        for started in filter(None, (process, again)):
            stop_process(started)


def received(queue: EventQueue, count: int) -> list[tuple[str, str, int | None, str | None]]:
    """At least so many notifications, and what else is there then."""
    client = queue.client()
    found: list[tuple[str, str, int | None, str | None]] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        wait = 1 if len(found) >= count else 5
        messages = client.receive_message(QueueUrl=queue.url, MaxNumberOfMessages=10, WaitTimeSeconds=wait)
        if "Messages" not in messages and len(found) >= count:
            break
        for message in messages.get("Messages", ()):
            client.delete_message(QueueUrl=queue.url, ReceiptHandle=message["ReceiptHandle"])
            for said in json.loads(message["Body"])["Records"]:
                thing = said["s3"]["object"]
                found.append((said["eventName"], unquote_plus(thing["key"]), thing.get("size"), thing.get("eTag")))
    return found


def test_a_queue_that_does_not_start_is_reported_with_its_log_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FruitsError, match=r"did not start; its log is .*queue\.log"):
        start_queue(Path(tmp_path))
