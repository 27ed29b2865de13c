"""The one way to S3 and to the lake's files: obstore stores, small documents in them, a boto3 client to list with."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import boto3
import botocore.session
import obstore
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.utils import parse_timestamp
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from fruits.errors import FruitsError, TransientError
from fruits.settings import Settings

_NO_CREDENTIALS = (
    "there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
)


_TRANSIENT = (
    "error sending request",
    "Could not connect",
    "timeout on endpoint",
    "timed out",
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "status code 50",
)
"""Signs, in what obstore and boto3 say, that the same request may succeed later."""

_DENIED = re.compile(
    r"(?<!java\.nio\.file\.)AccessDenied|Access Denied|ACCESS_DENIED|not authorized to perform|\(403\) when calling"
    r"|403 Forbidden: *(?:\n|$)|Insufficient Lake Formation permission"
)
"""Signs of a denial in what AWS, obstore, boto3, PyArrow and the Java SDK say; a local file's is none of AWS."""

_DENIED_REQUESTS = (
    r'not authorized to perform: (?P<request>\S+?)(?: on resource: "?(?P<arn>[^\s"]+)"?)?(?:[\s<]|$)',  # AWS itself
    r"performing (?P<request>[A-Z]+) (?P<url>\S+) in",  # obstore
    r"(?P<request>DeleteObjects) request failed for key (?P<key>.+?): ",
    r"key '(?P<key>[^']+)' in bucket '(?P<bucket>[^']+)': AWS Error ACCESS_DENIED during (?P<request>\w+)",  # PyArrow
    r"when calling the (?P<request>\w+) operation",  # boto3
)
_PERMISSIONS = {
    **dict.fromkeys(("ListObjects", "ListObjectsV2", "HeadBucket"), "s3:ListBucket"),
    **dict.fromkeys(("GetObject", "HeadObject", "GET", "HEAD"), "s3:GetObject"),
    **dict.fromkeys(("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "s3:PutObject"),
    **dict.fromkeys(("PutObject", "PUT", "POST"), "s3:PutObject"),
    **dict.fromkeys(("DeleteObject", "DeleteObjects", "DELETE"), "s3:DeleteObject"),
}
"""The permission that a request needs, by operation or HTTP method."""


def photo_store(settings: Settings) -> S3Store:
    """The bucket of photos. Safe to share between threads; not picklable: open it where it is used."""
    return _s3_store(settings, settings.bucket)


def list_client(settings: Settings) -> Any:
    """A boto3 client of the S3 server: unlike obstore, it lists object keys as they are and by any prefix."""
    session = botocore.session.get_session()
    # botocore's own way with timestamps takes half the time of a listing.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return boto3.Session(botocore_session=session).client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        config=Config(
            connect_timeout=10,
            retries={"mode": "standard", "max_attempts": 5},
            s3={"addressing_style": "path" if settings.s3_endpoint else "auto"},
        ),
    )


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
    return obstore.get(store, path).bytes().to_bytes()


def write_bytes(store: ObjectStore, path: str, data: bytes) -> None:
    """Write ``data`` at ``path``, all or nothing, over whatever was there."""
    obstore.put(store, path, data)


def read_json(store: ObjectStore, path: str) -> dict[str, Any]:
    """The JSON document at ``path``. Raises ``FileNotFoundError`` when there is none."""
    return cast("dict[str, Any]", json.loads(read_bytes(store, path)))


def write_json(store: ObjectStore, path: str, document: Mapping[str, Any]) -> None:
    """Write ``document`` as JSON at ``path``, all or nothing."""
    write_bytes(store, path, json.dumps(document, indent=2, ensure_ascii=False).encode())


def exists(store: ObjectStore, path: str) -> bool:
    """Whether there is an object at ``path``."""
    try:
        obstore.head(store, path)
    except FileNotFoundError:
        return False
    return True


def check_photo(settings: Settings, key: str, *, denials_only: bool = False) -> None:
    """See that an object of the bucket can be read.

    With ``denials_only``, what may be wrong with this one object alone (archived, under another KMS key) is let pass.

    Raises:
        FruitsError: saying what is denied or wrong.
    """
    try:
        obstore.get_range(photo_store(settings), key, start=0, length=1)
    except (FileNotFoundError, ValueError):  # gone meanwhile; a key that obstore takes for a wrong path
        return
    except BaseError as error:
        if not denials_only or _denies_photos(str(error)):
            raise explain(error, settings, settings.bucket) from error


def _denies_photos(said: str) -> bool:
    """Whether reading is denied as such: a plain "Access Denied", or by the permission's name."""
    permission = denied_permission(said) or ""
    return permission.startswith("s3:GetObject") and bool(re.search("Access Denied|perform: s3:GetObject", said))


def check_lake(settings: Settings, caller: str) -> None:
    """See that a lake in a bucket can be written, read, listed and cleaned up.

    Leaves nothing behind, unless deleting is denied: then one object for each ``caller``, however often it checks.

    Raises:
        FruitsError: saying what is denied or wrong.
    """
    store = lake_store(settings, "checks")
    try:
        write_bytes(store, caller, b"?")
        with suppress(FileNotFoundError):  # another one that checks at the same time has cleaned up
            read_bytes(store, caller)
        next(iter(obstore.list(store)), None)
        with suppress(FileNotFoundError):
            obstore.delete(store, caller)
    except (BaseError, FileNotFoundError) as error:
        raise explain(error, settings, urlsplit(settings.lake).netloc) from error


@contextmanager
def denials_explained() -> Iterator[None]:
    """Raise what is denied inside as a ``FruitsError`` that names the missing permission, or has the original words."""
    try:
        yield
    except FruitsError:
        raise
    except Exception as error:
        denied = _denied(str(error))
        if denied is None:
            raise
        raise FruitsError(f"AWS denies {denied}; the role lacks that permission.") from error


def _denied(said: str, bucket: str = "") -> str | None:
    """``denied_permission``; where nobody named one, with the line that speaks of the denial."""
    permission = denied_permission(said, bucket)
    if permission is None or re.match(r"[\w-]+:\w", permission):
        return permission
    line = next((line for line in said.splitlines() if _DENIED.search(line)), said)
    return f"{permission} ({' '.join(line.split())})"


def denied_permission(said: str, bucket: str = "") -> str | None:
    """The permission that is missing, such as ``s3:PutObject on arn:aws:s3:::fruits/1.jpg``; None for no denial.

    AWS names it in most of its answers. Where it does not (HEAD, other servers), the request tells.
    """
    if not _DENIED.search(said):
        return None
    found = next(filter(None, (re.search(pattern, said) for pattern in _DENIED_REQUESTS)), None)
    if found is None:
        return f"access to bucket {bucket!r}" if bucket else "access"
    parts = found.groupdict()
    if "url" in parts:
        parts |= _requested(parts["url"])
    permission = _PERMISSIONS.get(parts["request"], parts["request"])
    if parts.get("arn") is None and permission.startswith("s3:"):
        place = (parts.get("bucket") or bucket or "...", parts.get("key"))
        parts["arn"] = f"arn:aws:s3:::{'/'.join(filter(None, place))}"
    return f"{permission} on {parts['arn']}" if parts.get("arn") else permission


def _requested(url: str) -> dict[str, str]:
    """Bucket and key of a request; for a listing, that it is one."""
    parts = urlsplit(url)
    host, path = parts.hostname or "", unquote(parts.path).lstrip("/")
    bucket, _, key = (host.partition(".s3")[0], "", path) if ".amazonaws.com" in host else path.partition("/")
    listing = {"request": "ListObjectsV2"} if "list-type" in parts.query else {}
    return {"bucket": bucket, "key": key, **listing}


def explain(error: Exception, settings: Settings, bucket: str) -> FruitsError:
    """Turn the answer of an S3 server into a message that says what to do."""
    text = str(error)
    server = settings.s3_endpoint or f"AWS ({settings.s3_region})"
    causes = {
        "NoSuchBucket": f"bucket {bucket!r} does not exist there; create it, or correct FRUITS_BUCKET or FRUITS_LAKE",
        "InvalidAccessKeyId": "it does not know the access key; check AWS_ACCESS_KEY_ID, profile or instance role",
        "SignatureDoesNotMatch": "it refuses the secret key; check AWS_SECRET_ACCESS_KEY",
        "ExpiredToken": "the session token has expired; fetch new credentials",
        "Unable to locate credentials": _NO_CREDENTIALS,
    }
    if any(sign in text for sign in _TRANSIENT):
        return TransientError(f"S3 server {server}: it does not answer; check FRUITS_S3_ENDPOINT and the network.")
    cause = next((said for sign, said in causes.items() if sign in text), None)
    if cause is None and (denied := _denied(text, bucket)):
        cause = f"it denies {denied}; the role lacks that permission"
    if cause is None:
        cause = " ".join(text.partition("\n\n")[0].split())
    return FruitsError(f"S3 server {server}: {cause}.")


def _s3_store(settings: Settings, bucket: str, prefix: str | None = None) -> S3Store:
    endpoint = settings.s3_endpoint
    return S3Store(
        bucket,
        prefix=prefix,
        region=settings.s3_region,
        endpoint=endpoint,
        virtual_hosted_style_request=endpoint is None,
        client_options={"allow_http": True, "timeout": "60s"} if endpoint else {"timeout": "60s"},
        credential_provider=_credentials(),
    )


@cache
def _credentials() -> Boto3CredentialProvider:
    """boto3's whole chain of credentials: environment, profile, SSO, container, instance role."""
    try:
        session = boto3.Session()
        found = session.get_credentials()
    except BotoCoreError as error:
        raise FruitsError(f"AWS credentials: {error}") from error
    if found is None:
        raise FruitsError(f"S3: {_NO_CREDENTIALS}.")
    return Boto3CredentialProvider(session)


def _timestamp(text: Any) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):  # not of S3, but of a service that gives out credentials
        return cast("datetime", parse_timestamp(text))
