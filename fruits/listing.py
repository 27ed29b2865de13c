"""Listing the bucket."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import obstore
from obstore.exceptions import BaseError

from fruits.settings import Settings
from fruits.stores import explain, photo_store


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as the bucket lists it. ``etag`` is without quotes, ``size`` in bytes."""

    key: str
    etag: str
    size: int
    last_modified: datetime


def list_objects(settings: Settings, prefix: str) -> Iterator[ListedObject]:
    """The objects whose key starts with ``prefix`` (any string, not only a folder), in the server's order.

    Keys that end in ``/`` are left out: the S3 console makes them to show empty folders.

    Raises:
        FruitsError: when bucket, credentials or server are wrong; says which and what to do.
    """
    # obstore's own prefix only matches whole folders: list the folder, then compare.
    folder = prefix.rpartition("/")[0]
    try:
        for chunk in obstore.list(photo_store(settings), folder or None, chunk_size=1000):
            for meta in chunk:
                key = meta["path"]
                if key.startswith(prefix) and not key.endswith("/"):
                    yield ListedObject(key, (meta["e_tag"] or "").strip('"'), meta["size"], meta["last_modified"])
    except (BaseError, FileNotFoundError) as error:
        raise explain(error, settings, settings.bucket) from error
