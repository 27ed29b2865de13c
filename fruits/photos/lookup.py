"""Looking objects up in the bucket by their keys, one HEAD each: no listing."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from fruits.denials import error_code, explain, is_transient
from fruits.errors import FruitsError
from fruits.photos.listing import ListedObject, batch_of, list_objects
from fruits.settings import Settings
from fruits.stores import list_client, list_requester, server_name

_BATCH = 1_000
_IN_FLIGHT = 10  # connections of botocore's pool
_GONE = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})


def looked_up_batches(settings: Settings, keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The objects of these keys that are in the bucket now, in batches with ``LISTED_SCHEMA``.

    Raises:
        FruitsError: when bucket, credentials or server are wrong; names the cause and the next step.
    """
    client = list_client(settings)
    gone = False
    with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="head") as pool:
        for start in range(0, len(keys), _BATCH):
            few = keys[start : start + _BATCH]
            found = [item for item in pool.map(lambda key: _look_up(settings, client, key), few) if item]
            gone = gone or len(found) < len(few)
            if found:
                yield batch_of(found)
    if gone:
        _check_bucket(settings, client)


def _look_up(settings: Settings, client: Any, key: str) -> ListedObject | None:
    """The object of a key; None when it is gone."""
    try:
        item = client.head_object(Bucket=settings.bucket, Key=key, **list_requester(settings))
    except ClientError as error:
        if error_code(error) in _GONE:
            return None
        if is_transient(error):
            raise explain(error, server_name(settings), settings.bucket, "s3:GetObject", key) from error
        # A denied object, or one under a customer's key, is there for a listing, which alone can tell.
        return next((one for one in list_objects(settings, key) if one.key == key), None)
    except BotoCoreError as error:
        raise explain(error, server_name(settings), settings.bucket, "s3:GetObject", key) from error
    return ListedObject(key, item["ETag"].strip('"'), item["ContentLength"], item["LastModified"])


def _check_bucket(settings: Settings, client: Any) -> None:
    """See that the bucket is there: an answer to HEAD does not tell a missing bucket from a missing object."""
    try:
        client.head_bucket(Bucket=settings.bucket)
    except (BotoCoreError, ClientError) as error:
        if error_code(error) in _GONE:
            raise FruitsError(
                f"S3 server {server_name(settings)}: bucket {settings.bucket!r} does not exist there; create it, or "
                "correct FRUITS_BUCKET"
            ) from error
        raise explain(error, server_name(settings), settings.bucket) from error
