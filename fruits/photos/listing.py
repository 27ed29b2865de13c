"""Listing the bucket."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from fruits.denials import explain
from fruits.photos.ignore import IgnoreRules
from fruits.photos.pages import LISTED_SCHEMA, in_ranges, pages_of
from fruits.settings import Settings
from fruits.stores import server_name

_PAGE = 1_000  # keys of a page of the listing


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
    for objects in listed_batches(settings, prefix):
        for row in zip(*(column.to_pylist() for column in objects.columns), strict=True):
            yield ListedObject(*row)


def listed_batches(settings: Settings, prefix: str, bounds: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The objects whose key starts with ``prefix``, in batches with ``LISTED_SCHEMA``.

    With ``bounds``, ranges of keys between them are listed at once, in no order.

    Raises:
        FruitsError: when bucket, credentials or server are wrong; names the cause and the next step.
        UnorderedError: with ``bounds``, when the server does not keep the order of UTF-8; list without them then.
    """
    try:
        pages = pages_of(settings, prefix)
        yield from in_ranges(pages, bounds) if bounds else pages("")
    except (BotoCoreError, ClientError) as error:
        raise explain(error, server_name(settings), settings.bucket) from error


def batch_of(objects: Sequence[ListedObject]) -> pa.RecordBatch:
    """Objects as a batch with ``LISTED_SCHEMA``."""
    columns = [pa.array([getattr(item, one.name) for item in objects], one.type) for one in LISTED_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=LISTED_SCHEMA)


def first_photos(settings: Settings, prefix: str) -> list[ListedObject]:
    """Of the first page of the listing the objects that no rule ignores; else the first object, if any."""
    page = list(islice(list_objects(settings, prefix), _PAGE))
    ignore = IgnoreRules.of(settings)
    return [item for item in page if ignore.rule_of(item.key) is None] or page[:1]
