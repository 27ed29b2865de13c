"""The one way to S3 and to the lake's files: obstore stores, and small documents in them."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import boto3
import obstore
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from fruits.errors import FruitsError
from fruits.settings import Settings


def photo_store(settings: Settings) -> S3Store:
    """The bucket of photos. Safe to share between threads; not picklable: open it where it is used."""
    return _s3_store(settings, settings.bucket)


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


def explain(error: BaseError | FileNotFoundError, settings: Settings, bucket: str) -> FruitsError:
    """Turn what an S3 server answered into a message that says what to do."""
    text = str(error)
    server = settings.s3_endpoint or f"AWS ({settings.s3_region})"
    causes = {
        "NoSuchBucket": f"bucket {bucket!r} does not exist there; create it, or set FRUITS_BUCKET to the right one",
        "InvalidAccessKeyId": "it does not know the access key; check AWS_ACCESS_KEY_ID, profile or instance role",
        "SignatureDoesNotMatch": "it refuses the secret key; check AWS_SECRET_ACCESS_KEY",
        "AccessDenied": f"it denies access to bucket {bucket!r}; the role needs s3:ListBucket and s3:GetObject on it",
        "ExpiredToken": "the session token has expired; fetch new credentials",
        "Unable to locate credentials": "there are no AWS credentials; set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, a profile or an instance role",
        "error sending request": "it does not answer; check FRUITS_S3_ENDPOINT and the network",
    }
    cause = next((said for sign, said in causes.items() if sign in text), text.splitlines()[0])
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
    return Boto3CredentialProvider(boto3.Session())
