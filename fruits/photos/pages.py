"""Pages of a bucket's listing as Arrow batches, and listings of many ranges of keys at once.

S3 lists keys in the order of their UTF-8 bytes, and takes the key after which a listing starts: so ranges of keys can
be listed at once. Other servers may keep another order. SeaweedFS lists ``Apple/1`` before ``Apple 6/1``, and leaves
``Apple/1`` out after ``Apple-``. ``in_ranges`` checks each key, and refuses such a listing.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import pairwise
from queue import Empty, Full, Queue
from typing import Any
from xml.etree import ElementTree as ET

import pyarrow as pa
import pyarrow.compute as pc
from botocore.compat import unquote_str
from botocore.handlers import _handle_200_error

from fruits.settings import Settings
from fruits.stores import MOST_CONNECTIONS, list_client, list_requester, parsed_timestamp

MOST_RANGES = MOST_CONNECTIONS
"""Ranges of a listing at once, one connection each. More find no more: reading the answers is then bound by the CPU."""

_POLL_SECONDS = 0.1
_PAGES_AHEAD = 2  # of a range
_reading = threading.Lock()  # one page at a time: all that are read at once share a core, and each takes memory

LISTED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
    ]
)
"""The objects of a listing in a batch. ``etag`` is without quotes, ``size`` in bytes."""

VERSIONS_SCHEMA = pa.schema([*LISTED_SCHEMA, pa.field("gone", pa.bool_()), pa.field("sequence", pa.string())])
"""Versions of objects in a batch. ``gone`` is a delete marker's; of a key, the largest ``sequence`` counts."""


class UnorderedError(Exception):
    """Ranges of keys can't be listed apart: the server keeps another order, or the bucket changed where they meet."""


@dataclass(frozen=True)
class Page:
    """A page of a listing; ``token`` asks for the next one, None after the last."""

    objects: pa.RecordBatch
    token: str | None


Pages = Callable[[str], Iterator[pa.RecordBatch]]
"""The pages of a listing after a key, those of the whole listing after an empty key."""


def pages_of(settings: Settings, prefix: str) -> Pages:
    """The pages of the objects whose key starts with ``prefix``. Raises errors of botocore."""
    client = list_client(settings)
    client.meta.events.unregister("before-parse.s3.*", _handle_200_error)  # reads every answer as well
    client.meta.events.register("before-parse.s3.ListObjectsV2", _read_page)
    asked = {"Bucket": settings.bucket, "Prefix": prefix, **list_requester(settings)}

    def pages(after: str) -> Iterator[pa.RecordBatch]:
        where = {"StartAfter": after} if after else {}
        while True:
            page = client.list_objects_v2(**asked, **where)["Page"]
            yield page.objects
            if page.token is None:
                return
            where = {"ContinuationToken": page.token}

    return pages


def _read_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Read an answer in a fraction of the time that botocore takes, and leave it nothing to read.

    An error that comes with status 200 gets that of a server's error, so that botocore asks again. Botocore reads the
    other answers: errors, and what is no XML.
    """
    with _reading, suppress(ET.ParseError):
        root = ET.fromstring(response_dict["body"])  # noqa: S314 -- expat bounds how entities expand
        if root.tag.endswith("ListBucketResult"):
            customized_response_dict["Page"] = _page(root)
            response_dict["body"] = b"<ListBucketResult/>"
        elif response_dict["status_code"] == HTTPStatus.OK:
            response_dict["status_code"] = HTTPStatus.INTERNAL_SERVER_ERROR.value


def _page(root: ET.Element) -> Page:
    namespace = root.tag.removesuffix("ListBucketResult")

    def texts(name: str) -> list[str]:
        return [element.text or "" for element in root.iter(namespace + name)]

    keys = texts("Key")
    if root.findtext(f"{namespace}EncodingType") == "url":
        keys = [unquote_str(key) if "%" in key or "+" in key else key for key in keys]
    columns = [
        pa.array(keys, pa.string()),
        pc.utf8_trim(pa.array(texts("ETag"), pa.string()), '"'),
        pa.array(texts("Size"), pa.string()).cast(pa.int64()),
        _moments(texts("LastModified")),
    ]
    more = root.findtext(f"{namespace}IsTruncated") == "true"
    return Page(
        pa.RecordBatch.from_arrays(columns, schema=LISTED_SCHEMA),
        root.findtext(f"{namespace}NextContinuationToken") if more else None,
    )


def _moments(texts: Sequence[str]) -> pa.Array:
    kind = LISTED_SCHEMA.field("last_modified").type
    try:
        return pa.array(texts, pa.string()).cast(kind)
    except pa.ArrowInvalid:  # another form than S3's own
        return pa.array(map(parsed_timestamp, texts), kind)


def in_ranges(pages: Pages, bounds: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All objects, listed in ranges of keys at once, a range after each of ``bounds`` and one before them.

    A listing after a bound has to begin with the very key at which the range before it goes on. If all do, and each
    range is in order, then the ranges leave nothing out, wherever the server keeps a key.

    Raises:
        UnorderedError: when a key is out of order, or two ranges do not meet; take what came for nothing, and list
            without ranges.
    """
    starts = ["", *sorted(set(bounds))]
    ranges = [_Range(pages, start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    queue: Queue[pa.RecordBatch] = Queue(_PAGES_AHEAD * len(ranges))
    stopped = threading.Event()

    def put(objects: pa.RecordBatch) -> None:
        while not stopped.is_set():
            with suppress(Full):
                queue.put(objects, timeout=_POLL_SECONDS)
                break

    with ThreadPoolExecutor(len(ranges), thread_name_prefix="list") as pool:
        try:
            running = [pool.submit(one.list, put, stopped) for one in ranges]
            while not (all(one.done() for one in running) and queue.empty()):
                _raise_failures(running)
                with suppress(Empty):
                    yield queue.get(timeout=_POLL_SECONDS)
            _raise_failures(running)
        finally:
            stopped.set()
    for before, after in pairwise(ranges):
        if before.beyond != after.first:
            raise UnorderedError(
                f"the keys up to {before.end!r} go on with {before.beyond!r}, and those after it begin with "
                f"{after.first!r}"
            )


def _raise_failures(running: Sequence["Future[None]"]) -> None:
    for one in running:
        if one.done():
            one.result()


@dataclass
class _Range:
    """The keys after ``start``, up to and with ``end`` (None: all).

    ``first`` is the first key that the server lists, and ``beyond`` the first one after the range, if any.
    """

    pages: Pages
    start: str
    end: str | None
    first: str | None = None
    beyond: str | None = None

    def list(self, put: Callable[[pa.RecordBatch], None], stopped: threading.Event) -> None:
        """List the objects of the range. Raises ``UnorderedError`` when a key is out of order."""
        last = self.start
        for objects in self.pages(self.start):
            if not objects.num_rows:
                continue
            keys = objects["key"]
            self.first = keys[0].as_py() if self.first is None else self.first
            last = _check_order(keys, last)
            if self.end is not None and last > self.end:
                inside = pc.sum(pc.less_equal(keys, self.end)).as_py()
                self.beyond = keys[inside].as_py()
                put(objects.slice(0, inside))
                return
            put(objects)
            if stopped.is_set():
                return


def _check_order(keys: pa.Array, last: str) -> str:
    """The last of ``keys``, which have to come after ``last`` and be in order; strings compare as their UTF-8 does."""
    first = keys[0].as_py()
    if first <= last or not pc.all(pc.less(keys[:-1], keys[1:]), min_count=0).as_py():
        raise UnorderedError(f"the keys after {max(first, last)!r} are not in the order of UTF-8")
    return str(keys[-1].as_py())
