"""The one way to S3 and to the lake's files: stores, the reads and writes on them, and a boto3 client that lists.

All writes and deletes of files go through ``write_bytes``, ``write_json`` and ``remove_files``: photos, backbones, run
documents and leases. No other module calls the writing functions of obstore or boto3. The functions here raise
``FileNotFoundError``, ``AlreadyExistsError`` or a ``FruitsError`` that says what to do (see ``fruits.denials``).

Each of them is an ``effect``, and so is every commit to the lake's catalog (``open_catalog`` in ``fruits.lake``). A
test makes the n-th effect fail with ``effects_watched``: its watcher counts the calls and raises at the n-th. A watcher
that raises before an effect prevents the effect; a watcher that raises after an effect loses only the answer. An error
of obstore that a watcher raises is explained like a real one.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast
from urllib.parse import unquote, urlsplit

import boto3
import botocore.session
import obstore
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader
from botocore.utils import parse_timestamp
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from fruits.denials import NO_CREDENTIALS, error_code, explain, is_transient, refusal
from fruits.disks import advice
from fruits.errors import FruitsError, TransientError
from fruits.settings import Settings

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import ClientConfig, RetryConfig, S3Config

_METADATA_SERVICE = {"metadata_service_timeout": 5, "metadata_service_num_attempts": 4}
"""Seconds and attempts for the instance's metadata service. botocore's own, 1 and 1, make one slow answer an error."""

_SMALL_OBJECT_BYTES = 16 * 2**20
_RANGE_BYTES = 2**20

_MOST_RETRIES = 10
"""Of a request that was not answered; ``s3_retry_seconds`` may end them earlier."""

Effect = Literal["put", "delete", "commit"]
Moment = Literal["before", "after"]
Watcher = Callable[[Effect, str, Moment], None]
Permission = Literal["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]

_watchers: list[Watcher] = []


MOST_CONNECTIONS = 16  # that a client of listings keeps
_PARTS_AT_ONCE = 2  # of a large object that is uploaded: each is held in memory


def photo_store(settings: Settings) -> S3Store:
    """The bucket of photos. Safe to share between threads; not picklable: open it where it is used."""
    return _s3_store(settings, settings.bucket, requester_pays=settings.requester_pays)


def list_requester(settings: Settings) -> dict[str, str]:
    """The argument of a request for the photos' listing that says who pays."""
    return {"RequestPayer": "requester"} if settings.requester_pays else {}


def list_client(settings: Settings) -> Any:
    """A boto3 client of the S3 server. Unlike obstore, it lists object keys as they are and by any prefix."""
    session = _botocore_session()
    # botocore's own parser of timestamps takes half the time of a listing.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parsed_timestamp)
    return boto3.Session(botocore_session=session).client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        config=Config(
            connect_timeout=10,
            max_pool_connections=MOST_CONNECTIONS,
            retries={"mode": "standard", "max_attempts": 5},
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        ),
    )


def aws_session() -> boto3.Session:
    """A session of boto3 that finds credentials as the jobs do, with their patience for the metadata service."""
    return boto3.Session(botocore_session=_botocore_session())


def server_name(settings: Settings) -> str:
    """The S3 server's name in messages."""
    return settings.s3_endpoint or f"AWS ({settings.s3_region})"


def lake_store(settings: Settings, folder: str = "") -> ObjectStore:
    """A folder of the lake (a local folder is made when missing)."""
    return open_store(settings, f"{settings.lake}/{folder}".rstrip("/"))


def open_store(settings: Settings, uri: str) -> ObjectStore:
    """The store at ``file:///folder`` or ``s3://bucket/prefix``."""
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return _s3_store(settings, parts.netloc, prefix=parts.path.strip("/") or None)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)), mkdir=True)
    raise FruitsError(f"{uri}: expected a URI that starts with file:/// or s3://")


def read_bytes(store: ObjectStore, path: str) -> bytes:
    """The whole object at ``path``. Raises ``FileNotFoundError`` when there is none."""
    with errors_explained(store, "s3:GetObject", path):
        return obstore.get(store, path).bytes().to_bytes()


def read_json(store: ObjectStore, path: str) -> dict[str, Any]:
    """The JSON document at ``path``. Raises ``FileNotFoundError`` when there is none."""
    return cast("dict[str, Any]", json.loads(read_bytes(store, path)))


def open_file(store: ObjectStore, path: str, in_memory: int = _SMALL_OBJECT_BYTES) -> io.BufferedIOBase:
    """The object at ``path`` as a file to read from: one of at most so many bytes in memory, a larger one by ranges.

    Raises ``FileNotFoundError`` when there is none.
    """
    size = head(store, path)["size"]
    if size <= in_memory:
        return io.BytesIO(read_bytes(store, path))
    return io.BufferedReader(_Ranges(store, path, size), _RANGE_BYTES)


class _Ranges(io.RawIOBase):
    """An object that is read by ranges."""

    def __init__(self, store: ObjectStore, path: str, size: int) -> None:
        self._store, self._path, self._size, self._at = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        with errors_explained(self._store, "s3:GetObject", self._path):
            data = obstore.get_range(self._store, self._path, start=self._at, end=end)
        buffer[: len(data)] = bytes(data)
        self._at = end
        return len(data)


def head(store: ObjectStore, path: str) -> "ObjectMeta":
    """Size, ETag and date of the object at ``path``. Raises ``FileNotFoundError`` when there is none."""
    with errors_explained(store, "s3:GetObject", path):
        return obstore.head(store, path)


def exists(store: ObjectStore, path: str) -> bool:
    """Whether there is an object at ``path``."""
    try:
        head(store, path)
    except FileNotFoundError:
        return False
    return True


def list_files(store: ObjectStore, prefix: str | None = None, offset: str | None = None) -> Iterator["ObjectMeta"]:
    """The objects of a store, or of a folder in it, whose path comes after ``offset``; in no order."""
    with errors_explained(store, "s3:ListBucket"):
        for batch in obstore.list(store, prefix, offset=offset):
            yield from batch


def list_folders(store: ObjectStore, folder: str) -> list[str]:
    """The paths of the folders in a folder of a store."""
    with errors_explained(store, "s3:ListBucket"):
        return [str(path).rstrip("/") for path in obstore.list_with_delimiter(store, folder)["common_prefixes"]]


def write_bytes(
    store: ObjectStore, path: str, data: bytes | IO[bytes], *, create: bool = False, one_part: bool = False
) -> None:
    """Write ``data`` at ``path``, all or nothing.

    Args:
        store: Where to write.
        path: The object's path in the store. An object that is there is replaced.
        data: The whole object, or an open file of it.
        create: Replace nothing. Of several writers only one succeeds.
        one_part: Use a single PUT whatever the size, so that the ETag is the MD5 of ``data``.

    Raises:
        AlreadyExistsError: with ``create``, when there is an object at ``path``.
    """
    with errors_explained(store, "s3:PutObject", path), effect("put", _full_path(store, path)):
        obstore.put(
            store,
            path,
            data,
            mode="create" if create else "overwrite",
            use_multipart=False if one_part else None,
            max_concurrency=_PARTS_AT_ONCE,
        )


def write_json(store: ObjectStore, path: str, document: Mapping[str, Any], *, create: bool = False) -> None:
    """Write ``document`` as JSON at ``path``; see ``write_bytes``."""
    write_bytes(store, path, json.dumps(document, indent=2, ensure_ascii=False).encode(), create=create)


def remove_files(store: ObjectStore, *paths: str) -> None:
    """Delete objects. An object that is gone already is no error."""
    # S3 deletes many objects by one request. In a folder, a missing file would end the deletion of the others.
    groups = [paths] if isinstance(store, S3Store) else [(path,) for path in paths]
    for group in filter(None, groups):
        full_paths = [_full_path(store, path) for path in group]
        with (
            suppress(FileNotFoundError),
            errors_explained(store, "s3:DeleteObject", group[0]),
            effect("delete", *full_paths),
        ):
            obstore.delete(store, list(group))


@contextmanager
def effect(kind: Effect, *paths: str) -> Iterator[None]:
    """Tell the watchers of an outside effect inside: a ``put`` or ``delete`` of paths, or a table's ``commit``.

    The watchers are called before the effect, and after the effect when it succeeded.

    Raises:
        Exception: whatever a watcher raises. Before the effect, the effect must not happen; after it, the answer is
            lost.
    """
    _tell_watchers(kind, paths, "before")
    yield
    _tell_watchers(kind, paths, "after")


def _tell_watchers(kind: Effect, paths: Sequence[str], moment: Moment) -> None:
    for path in paths:
        for watcher in _watchers:
            watcher(kind, path, moment)


@contextmanager
def effects_watched(watcher: Watcher) -> Iterator[None]:
    """For tests: inside, ``watcher`` is called before and after each effect of this process, in any thread."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def errors_explained(store: ObjectStore, permission: Permission, path: str = "") -> Iterator[None]:
    """Raise obstore's errors inside as a ``FruitsError`` that says what to do.

    ``FileNotFoundError`` and ``AlreadyExistsError`` pass, but a missing bucket is no missing object.

    Args:
        store: The store that is asked.
        permission: The permission that the request needs.
        path: The object's path in the store; none for a listing.
    """
    try:
        yield
    except AlreadyExistsError:
        raise
    except (BaseError, FileNotFoundError) as error:
        if isinstance(error, FileNotFoundError) and error_code(error) != "NoSuchBucket":
            raise
        if not isinstance(store, S3Store):
            reason = " ".join(str(error).partition("\n\n")[0].split())
            raise FruitsError(f"{_full_path(store, path)}: {reason}; {advice(error)}") from error
        server = store.config.get("endpoint") or f"AWS ({store.config.get('region')})"
        key = _full_path(store, path) if path else ""
        raise explain(error, server, store.config["bucket"], permission, key) from error


def can_read_any(store: ObjectStore, keys: Iterable[str], *, archived: bool = True) -> bool:
    """Whether the bucket lets us read: asks for a byte of one object after the other until one is given.

    An archived object counts (unless ``archived`` is false): S3 says so only to those who may read. Whatever else is
    wrong with single objects (denied, encrypted with another key, gone) leaves the question open. False when no object
    answered it.

    Raises:
        FruitsError: when credentials, bucket or server are wrong.
        TransientError: when the server does not answer.
    """
    for key in keys:
        try:
            obstore.get_range(store, key, start=0, length=1)
        except ValueError:  # obstore takes no such key as a path
            continue
        except (BaseError, FileNotFoundError) as error:
            problem = refusal(error)
            if problem in ("caller", "transient"):
                with errors_explained(store, "s3:GetObject", key):
                    raise
            if (problem == "archived" and archived) or "416 Range" in str(error):  # an empty object has no first byte
                return True
            continue
        return True
    return False


def check_photos(settings: Settings, keys: Iterable[str]) -> None:
    """Check that photos can be read: at least one of ``keys``, unless all of them are gone.

    Raises:
        FruitsError: the refusal of the first one; says which permission is missing, or what is wrong.
    """
    store, asked = photo_store(settings), list(keys)
    if can_read_any(store, asked):
        return
    for key in asked:
        with suppress(FileNotFoundError, ValueError), errors_explained(store, "s3:GetObject", key):
            obstore.get_range(store, key, start=0, length=1)


def check_lake(settings: Settings, caller: str) -> None:
    """Check that a lake in a bucket can be written, read, listed and cleaned up.

    The check leaves nothing behind, unless deleting is denied: then one object for each ``caller``.

    Raises:
        FruitsError: says which permission is missing, or what is wrong.
    """
    store = lake_store(settings, "checks")
    write_bytes(store, caller, b"?")
    with suppress(FileNotFoundError):  # a check that runs at the same time has cleaned up
        read_bytes(store, caller)
    next(list_files(store), None)
    remove_files(store, caller)


def _full_path(store: ObjectStore, path: str) -> str:
    """``path`` with the store's prefix: a key of the bucket, or a path of this machine."""
    return "/".join(filter(None, (str(getattr(store, "prefix", None) or ""), path)))


def _s3_store(settings: Settings, bucket: str, prefix: str | None = None, *, requester_pays: bool = False) -> S3Store:
    place: S3Config = {
        "region": settings.s3_region,
        "virtual_hosted_style_request": True,
        "request_payer": requester_pays,
    }
    client: ClientConfig = {"timeout": f"{settings.s3_timeout_seconds}s"}
    if settings.s3_endpoint:
        place |= {"endpoint": settings.s3_endpoint, "virtual_hosted_style_request": False}
        client |= {"allow_http": True}
    # obstore waits a random part of each pause, so that many clients do not come back at the same moment.
    retry: RetryConfig = {
        "max_retries": _MOST_RETRIES,
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
        "retry_timeout": timedelta(seconds=settings.s3_retry_seconds),
    }
    return S3Store(
        bucket,
        prefix=prefix,
        config=place,
        client_options=client,
        retry_config=retry,
        credential_provider=_credentials(),
    )


def _botocore_session() -> botocore.session.Session:
    """A session of botocore that bears a slow answer of the instance's metadata service."""
    session = botocore.session.get_session()
    session.register_component("data_loader", _aws_data())
    for name, value in _METADATA_SERVICE.items():
        if f"AWS_{name.upper()}" not in os.environ:
            session.set_config_variable(name, value)
    return session


@cache
def _aws_data() -> Loader:
    """What botocore knows of AWS's services. Reading that takes 0.2 s, so all sessions of a process share it."""
    return create_loader()


@cache
def _credentials() -> "Boto3CredentialProvider":
    """boto3's whole chain of credentials: environment, profile, SSO, container, instance role."""
    from obstore.auth.boto3 import Boto3CredentialProvider  # takes 0.1 s; DAG files need none

    try:
        session = aws_session()
        credentials = session.get_credentials()
    except BotoCoreError as error:
        kind = TransientError if is_transient(error) else FruitsError
        raise kind(f"AWS credentials: {error}") from error
    if credentials is None:
        raise FruitsError(f"S3: {NO_CREDENTIALS}.")
    return Boto3CredentialProvider(session)


def parsed_timestamp(text: Any) -> datetime:
    """The moment that a service's answer has, in any form that botocore takes."""
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):  # the timestamp of a service that issues credentials
        return cast("datetime", parse_timestamp(text))
