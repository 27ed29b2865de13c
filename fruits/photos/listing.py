"""Listing the bucket."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from fruits.denials import explain
from fruits.photos.ignore import IgnoreRules
from fruits.settings import Settings
from fruits.stores import list_client, list_requester, server_name

_PAGE = 1_000  # keys of a page of the listing

LISTED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
    ]
)
"""Objects of a listing in a batch, with the columns of ``ListedObject``."""


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object in the bucket's listing. ``etag`` is without quotes, ``size`` in bytes."""

    key: str
    etag: str
    size: int
    last_modified: datetime


def list_objects(settings: Settings, prefix: str) -> Iterator[ListedObject]:
    """The objects whose key starts with ``prefix`` (any string, not only a folder), in the server's order.

    Raises:
        FruitsError: when bucket, credentials or server are wrong; names the cause and the next step.
    """
    try:
        paginator = list_client(settings).get_paginator("list_objects_v2")
        pages = paginator.paginate(Bucket=settings.bucket, Prefix=prefix, **list_requester(settings))
        for page in pages:
            for item in page.get("Contents", ()):
                yield ListedObject(item["Key"], item["ETag"].strip('"'), item["Size"], item["LastModified"])
    except (BotoCoreError, ClientError) as error:
        raise explain(error, server_name(settings), settings.bucket) from error


def listed_batches(settings: Settings, prefix: str) -> Iterator[pa.RecordBatch]:
    """The objects whose key starts with ``prefix``, in batches with ``LISTED_SCHEMA``.

    Raises:
        FruitsError: as ``list_objects`` does.
    """
    objects = list_objects(settings, prefix)
    while page := list(islice(objects, _PAGE)):
        yield batch_of(page)


def batch_of(objects: Sequence[ListedObject]) -> pa.RecordBatch:
    """Objects as a batch with ``LISTED_SCHEMA``."""
    columns = [pa.array([getattr(item, one.name) for item in objects], one.type) for one in LISTED_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=LISTED_SCHEMA)


def first_photos(settings: Settings, prefix: str) -> list[ListedObject]:
    """Of the first page of the listing the objects that no rule ignores; else the first object, if any."""
    page = list(islice(list_objects(settings, prefix), _PAGE))
    ignore = IgnoreRules.of(settings)
    return [item for item in page if ignore.rule_of(item.key) is None] or page[:1]
