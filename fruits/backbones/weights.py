"""The source of a backbone's weights: a name, a file of this machine, or a URI."""

import http.client
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self
from urllib.parse import unquote, urlsplit

from obstore.store import ObjectStore

from fruits.backbones.card import sha256
from fruits.errors import FruitsError
from fruits.settings import Settings
from fruits.stores import head, open_store, read_bytes

IMAGENET = "imagenet"
RANDOM = "random"
_NAMED = {"default": IMAGENET, IMAGENET: IMAGENET, RANDOM: RANDOM}
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class WeightsFile:
    """A weights file on this machine, and its source.

    Attributes:
        path: The file; the suffix is the format.
        source: The path or URI in the settings, without a query.
        sha256: Hash of its bytes.
    """

    path: Path
    source: str
    sha256: str

    @classmethod
    def at(cls, path: Path) -> Self:
        """The file at ``path``. Raises ``FruitsError`` when the file can't be read."""
        return cls(path, str(path), sha256(_read_file(path)))


def named(weights: str) -> str | None:
    """``imagenet`` (also called ``default``) or ``random`` when ``weights`` is a name, None for a path or URI."""
    return _NAMED.get(weights.lower())


def identity(settings: Settings) -> str:
    """A text that changes when the settings' weights change: with a local file's bytes, or an S3 object's ETag.

    Raises:
        FruitsError: when there is no such file or object.
    """
    weights = settings.weights
    if (name := named(weights)) is not None:
        return name
    if (path := _local_path(weights)) is not None:
        return f"file {sha256(_read_file(path))}"
    if weights.startswith("s3://"):
        store, key = _s3_object(settings)
        with _explained(settings):
            return f"{weights} {head(store, key)['e_tag']}"
    return weights


@contextmanager
def opened(settings: Settings) -> Iterator[str | WeightsFile]:
    """The weights of the settings: a name, or a file that exists while the context is open.

    Raises:
        FruitsError: when the weights are neither a name nor an existing file, or can't be downloaded.
    """
    weights = settings.weights
    if (name := named(weights)) is not None:
        yield name
    elif (path := _local_path(weights)) is not None:
        yield WeightsFile.at(path)
    else:
        with tempfile.TemporaryDirectory(prefix="fruits-weights-") as folder:
            path = Path(folder, PurePosixPath(unquote(urlsplit(weights).path)).name or "weights")
            _download(settings, path)
            yield WeightsFile(path, _public(weights), sha256(path.read_bytes()))


def _download(settings: Settings, path: Path) -> None:
    if settings.weights.startswith("s3://"):
        store, key = _s3_object(settings)
        with _explained(settings):
            path.write_bytes(read_bytes(store, key))
        return
    try:
        with (
            urllib.request.urlopen(settings.weights, timeout=_TIMEOUT_SECONDS) as response,  # noqa: S310 https only
            path.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except (http.client.HTTPException, OSError) as error:
        raise FruitsError(
            f"FRUITS_WEIGHTS {_public(settings.weights)}: the download failed ({error}); "
            "check the address and the network, or download the file elsewhere and give its path."
        ) from error


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    weights = settings.weights
    try:
        yield
    except FileNotFoundError:
        raise FruitsError(
            f"FRUITS_WEIGHTS {weights}: there is no such object; upload the file, or correct the URI."
        ) from None
    except FruitsError as error:
        raise type(error)(f"FRUITS_WEIGHTS {weights}: {error}") from error


def _s3_object(settings: Settings) -> tuple[ObjectStore, str]:
    parts = urlsplit(settings.weights)
    key = parts.path.lstrip("/")
    if not parts.netloc or not key:
        raise FruitsError(f"FRUITS_WEIGHTS {settings.weights}: expected s3://bucket/key of a weights file.")
    return open_store(settings, f"s3://{parts.netloc}"), key


def _local_path(weights: str) -> Path | None:
    """The local path in ``weights``; None for an ``https://`` or ``s3://`` URI."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", weights)
    if scheme is None:
        return Path(weights).expanduser().absolute()
    if scheme[1] == "file":
        return Path(unquote(urlsplit(weights).path))
    if scheme[1] in ("https", "s3") and "@" not in urlsplit(weights).netloc:
        return None
    raise FruitsError(
        f"FRUITS_WEIGHTS {_public(weights)}: expected default, imagenet, random, a path, "
        "or a URI that starts with https://, s3:// or file:// and holds no password."
    )


def _public(uri: str) -> str:
    """``uri`` without its secrets: a password, or the signature in the query."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FruitsError(
            f"FRUITS_WEIGHTS {path}: {error.strerror or error}; expected a weights file there, or one of the names "
            "default, imagenet and random."
        ) from error
