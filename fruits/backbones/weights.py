"""The source of a backbone's weights: a name, a file of this machine, or a URI of a place that the operator allows."""

import http.client
import re
import stat
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self
from urllib.parse import unquote, urlsplit

from obstore.store import ObjectStore

from fruits.backbones.card import sha256
from fruits.errors import FruitsError
from fruits.settings import Settings, public_uri
from fruits.stores import head, open_store, read_bytes

IMAGENET = "imagenet"
RANDOM = "random"
_NAMED = {"default": IMAGENET, IMAGENET: IMAGENET, RANDOM: RANDOM}
_ANSWER_SECONDS = 60
_DOWNLOAD_SECONDS = 1_800
_MOST_BYTES = 2_000_000_000  # the largest of keras.applications without its classifier has 1.4 GB
_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"#sha256=([0-9a-f]{64})$")


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


def check_place(weights: str, places: Sequence[str]) -> None:
    """Check that weights are a name, or a file in one of ``places`` (FRUITS_WEIGHTS_FROM). Opens nothing.

    Raises:
        FruitsError: when they are neither.
    """
    if named(weights) is not None or any(_is_inside(weights, place) for place in places):
        return
    allowed = ", ".join(places) or "no place"
    raise FruitsError(
        f"weights {public_uri(weights)}: expected default, imagenet, random, or a file in a place that "
        f"FRUITS_WEIGHTS_FROM lists, now {allowed}; choose such weights, or have the operator list the file's folder"
    )


def identity(settings: Settings) -> str:
    """A text that changes when the settings' weights change: with a local file's bytes, or an S3 object's ETag.

    Raises:
        FruitsError: when there is no such file or object, or a URI is outside FRUITS_WEIGHTS_FROM.
    """
    weights = settings.weights
    if (name := named(weights)) is not None:
        return name
    if (path := _local_path(weights)) is not None:
        digest = sha256(_read_file(path))
        _check_digest(weights, digest)
        return f"file {digest}"
    check_place(weights, settings.weights_from)
    if weights.startswith("s3://"):
        store, key = _s3_object(settings)
        with _explained(settings):
            return f"{weights} {head(store, key)['e_tag']}"
    return weights


@contextmanager
def opened(settings: Settings) -> Iterator[str | WeightsFile]:
    """The weights of the settings: a name, or a file that exists while the context is open.

    Raises:
        FruitsError: when the weights are neither a name nor an existing file, can't be downloaded, are outside
            FRUITS_WEIGHTS_FROM, too large, or not those of the digest.
    """
    weights = settings.weights
    if (name := named(weights)) is not None:
        yield name
    elif (path := _local_path(weights)) is not None:
        file = WeightsFile.at(path)
        _check_digest(weights, file.sha256)
        yield file
    else:
        check_place(weights, settings.weights_from)
        with tempfile.TemporaryDirectory(prefix="fruits-weights-") as folder:
            path = Path(folder, PurePosixPath(unquote(urlsplit(weights).path)).name or "weights")
            _download(settings, path)
            file = WeightsFile(path, public_uri(weights), sha256(path.read_bytes()))
            _check_digest(weights, file.sha256)
            yield file


def _check_digest(weights: str, actual: str) -> None:
    expected = _DIGEST.search(weights)
    if expected and expected[1] != actual:
        raise FruitsError(
            f"FRUITS_WEIGHTS {public_uri(_DIGEST.sub('', weights))}: expected a file of sha256 {expected[1]}, found "
            f"{actual}; the file was changed, or the digest belongs to another file."
        )


def _is_inside(weights: str, place: str) -> bool:
    """Whether a file is in a folder, both of this machine or both at addresses. Links of this machine are followed."""
    file, folder = _local_path(weights), _local_path(place)
    if file is not None and folder is not None:
        return file.resolve().is_relative_to(folder.resolve())
    if file is not None or folder is not None:
        return False
    there, here = urlsplit(weights), urlsplit(place)
    path = PurePosixPath(unquote(there.path))
    return (
        (there.scheme, there.netloc.lower()) == (here.scheme, here.netloc.lower())
        and ".." not in path.parts
        and "\\" not in str(path)
        and path.is_relative_to(PurePosixPath(unquote(here.path) or "/"))
    )


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone: plain http can be read and replaced on its way."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.lower().startswith("https://"):
            raise OSError(f"the server redirects to {public_uri(newurl)}; expected an https:// address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_OnlyHttps)


def _download(settings: Settings, path: Path) -> None:
    if settings.weights.startswith("s3://"):
        store, key = _s3_object(settings)
        with _explained(settings):
            size = head(store, key)["size"]
        _check_size(settings.weights, size)
        with _explained(settings):
            path.write_bytes(read_bytes(store, key))
        return
    try:
        with _opener().open(settings.weights, timeout=_ANSWER_SECONDS) as response, path.open("wb") as file:
            deadline = time.monotonic() + _DOWNLOAD_SECONDS
            while chunk := response.read1(_CHUNK_BYTES):  # what is there already: a slow server meets the deadline
                file.write(chunk)
                _check_size(settings.weights, file.tell())
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {_DOWNLOAD_SECONDS:,} s")
    except http.client.InvalidURL:  # its text has the query
        raise FruitsError(
            f"FRUITS_WEIGHTS {public_uri(settings.weights)}: expected an address without spaces and control characters."
        ) from None
    except (http.client.HTTPException, OSError) as error:
        raise FruitsError(
            f"FRUITS_WEIGHTS {public_uri(settings.weights)}: the download failed ({error}); "
            "check the address and the network, or download the file elsewhere and give its path."
        ) from error


def _check_size(weights: str, size: int) -> None:
    if size > _MOST_BYTES:
        raise FruitsError(
            f"FRUITS_WEIGHTS {public_uri(weights)}: expected a weights file of at most {_MOST_BYTES:,} bytes, and this "
            "is larger; choose another file."
        )


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    weights = public_uri(settings.weights)
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
        raise FruitsError(f"FRUITS_WEIGHTS {public_uri(settings.weights)}: expected s3://bucket/key of a weights file.")
    return open_store(settings, f"s3://{parts.netloc}"), key


def _local_path(weights: str) -> Path | None:
    """The local path in ``weights``; None for an ``https://`` or ``s3://`` URI."""
    location = _DIGEST.sub("", weights)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    if scheme is None:
        return Path(location).expanduser().absolute()
    if scheme[1] == "file":
        return Path(unquote(urlsplit(location).path))
    if scheme[1] in ("https", "s3") and "@" not in urlsplit(location).netloc:
        return None
    raise FruitsError(
        f"FRUITS_WEIGHTS {public_uri(weights)}: expected default, imagenet, random, a path, "
        "or a URI that starts with https://, s3:// or file:// and holds no password."
    )


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        problem = None if stat.S_ISREG(status.st_mode) else "Not a file"  # a device may never end
        _check_size(str(path), status.st_size)
        if not problem:
            return path.read_bytes()
    except OSError as error:
        problem = error.strerror or str(error)
    raise FruitsError(
        f"FRUITS_WEIGHTS {path}: {problem}; expected a weights file there, or one of the names default, imagenet and "
        "random."
    )
