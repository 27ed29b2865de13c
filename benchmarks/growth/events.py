"""What a run woken by events asks the bucket for: 100 keys, one HEAD each, and no listing.

A synthetic bucket on an S3 server that counts requests, and a lake with a published row for each photo. Half of the
keys are new, half are overwritten. `prepare` asks for a byte of one of them besides, as a check of the permission.
`make bench-growth ARGS=events` prints the figures.
"""

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa

from benchmarks.figure import Figure, figure
from fruits.backbones.card import Card, Preprocessing
from fruits.lake.branches import Writer, commit_rows, drop_run_branches, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, current_base, publication_id, publish
from fruits.lake.schemas import DATA_TABLES, FEATURES
from fruits.run.events import Burst, keep
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps import plan as planning
from fruits.steps import prepare as preparing

SIZES = (2_000, 200_000)
KEYS = 100
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
WIDTH = 64
MODEL_ID = "synthetic"
SINCE = datetime(2026, 1, 1, tzinfo=UTC)
PLACE = {
    "size": 6_000,
    "last_modified": SINCE,
    "sha256": "0",
    "phash": 0,
    "width": 100,
    "height": 100,
    "format": "JPEG",
}


class Bucket(ThreadingHTTPServer):
    """A bucket of objects by key with their ETags, which counts requests: by ``HEAD``, ``GET`` and ``LIST``."""

    daemon_threads = True

    def __init__(self, objects: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.objects = objects
        self.requests: Counter[str] = Counter()

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """An answer about one object; a listing is counted and refused."""

    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_HEAD(self) -> None:
        """Tell of an object."""
        key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        self.server.requests[self.command if key else "LIST"] += 1
        etag = self.server.objects.get(key)
        self.send_response(404 if etag is None else 206 if self.headers["Range"] else 200)
        if self.headers["Range"]:
            self.send_header("Content-Range", "bytes 0-0/1")
        self.send_header("Content-Length", "1")
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"a")

    do_GET = do_HEAD  # noqa: N815 -- the name that http.server calls

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def key_of(number: int) -> str:
    """The key of a photo."""
    return f"Training/label {number % 100:03}/{number:08}.jpg"


@contextmanager
def bucket_of(objects: dict[str, str]) -> Iterator[Bucket]:
    """A running server with these objects."""
    server = Bucket(objects)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def publish_rows(lake: Lake, keys: list[str]) -> None:
    """Publish a row of ``features`` for each key."""
    base = current_base(lake)
    writer = Writer("synthetic", "featurize_1_ab")
    for name in DATA_TABLES:
        start_branch(lake, name, writer.branch, base.publication.snapshots[name])
    vector = np.zeros(WIDTH, np.float32).tolist()
    common = {"etag": "1", "split": "train", "model_id": MODEL_ID, "run_id": "synthetic", "vector": vector, **PLACE}
    rows = [{"key": key, "label": key.split("/")[1], **common} for key in sorted(keys)]
    table = pa.Table.from_pylist(rows, schema=FEATURES.schema)
    commit_rows(lake, "features", lambda change: change.append(table, **writer.commit), branch=writer.branch)
    heads = {name: lake.head(name, writer.branch) or base.publication.snapshots[name] for name in DATA_TABLES}
    counts = {"features": len(keys), "quarantine": 0, "remaining": 0}
    identity = publication_id(1, heads)
    publish(lake, base, writer, Publication(1, heads, identity, "synthetic", SINCE, MODEL_ID, "pca", counts))
    drop_run_branches(lake, writer.run)


def card() -> Card:
    """The card of the synthetic backbone."""
    return Card(
        model_id=MODEL_ID,
        backbone="synthetic",
        weights="default",
        weights_sha256=None,
        preprocessing=Preprocessing(height=8, width=8, resample="bicubic", crop_share=1.0),
        feature_width=WIDTH,
        flatbuffer_sha256="0" * 64,
        flatbuffer_bytes=1,
        licence="Apache-2.0",
        built_with={},
    )


def figures() -> list[Figure]:
    """The figures of runs that events woke."""
    return [one for rows in SIZES for one in measured(rows, KEYS)]


def measured(rows: int, keys: int) -> list[Figure]:
    """The requests of `prepare` and `plan` for the bucket, and the seconds of `plan`."""
    known = [key_of(number) for number in range(rows)]
    named = [key_of(rows + number) for number in range(keys // 2)] + known[:: max(1, rows // (keys - keys // 2))]
    named = named[:keys]
    with tempfile.TemporaryDirectory() as folder, bucket_of(dict.fromkeys(known, "1")) as bucket:
        place = {"lake": f"file://{folder}/lake", "catalog_uri": f"sqlite:///{folder}/catalog.db"}
        settings = Settings.load(**place, s3_endpoint=bucket.endpoint)
        publish_rows(Lake.open(settings), known)
        bucket.objects |= dict.fromkeys(named, "2")
        keep(settings, Burst(tuple(named), SINCE))
        request = RunRequest(prefix="", mode="events")
        with (
            patch.dict(os.environ, CREDENTIALS),
            patch.object(planning, "staged_card", lambda _: card()),
            patch.object(preparing, "stage_missing"),
        ):
            preparing.prepare(settings, request)
            prepared = Counter(bucket.requests)
            bucket.requests.clear()
            start = time.perf_counter()
            planned = planning.plan_run(settings, request, "events")
            seconds = time.perf_counter() - start
    work = planned.counts["create"] + planned.counts["update"]
    if work != keys:
        raise AssertionError(f"the plan has {work} of {keys} photos")
    listings = prepared["LIST"] + bucket.requests["LIST"]
    total = sum(prepared.values()) + sum(bucket.requests.values())
    what = f"{keys} keys of events, {rows:,} rows"
    return [
        figure(f"{what}: requests", total, most=keys + 1),
        figure(f"{what}: listings", listings, most=0),
        figure(f"{what}: plan", seconds, "s"),
    ]
