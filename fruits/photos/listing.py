"""Listing the bucket."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from botocore.exceptions import BotoCoreError, ClientError

from fruits.denials import explain
from fruits.photos.ignore import IgnoreRules
from fruits.settings import Settings
from fruits.stores import list_client, server_name

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
    try:
        pages = list_client(settings).get_paginator("list_objects_v2").paginate(Bucket=settings.bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", ()):
                yield ListedObject(item["Key"], item["ETag"].strip('"'), item["Size"], item["LastModified"])
    except (BotoCoreError, ClientError) as error:
        raise explain(error, server_name(settings), settings.bucket) from error


def first_photo(settings: Settings, prefix: str) -> ListedObject | None:
    """The first object that no rule ignores, among the first page of the listing; else the first object, if any."""
    page = list(islice(list_objects(settings, prefix), _PAGE))
    ignore = IgnoreRules.of(settings)
    return next((item for item in page if ignore.rule_of(item.key) is None), page[0] if page else None)
