import hashlib
import io
import threading
import time
import urllib.request
import urllib.response
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import fruits.backbones.weights as weights_module
from fruits import stores
from fruits.backbones.weights import WeightsFile, check_place, identity, named, opened
from fruits.errors import FruitsError
from fruits.settings import Settings

Load = Callable[..., Settings]


@pytest.mark.parametrize("name", ["default", "imagenet", "ImageNet"])
def test_default_weights_are_imagenet(name: str, settings: Load) -> None:
    assert named(name) == "imagenet"
    assert identity(settings(weights=name)) == identity(settings(weights="default"))
    assert identity(settings(weights=name)) != identity(settings(weights="random"))


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_local_file_is_identified_by_its_bytes(form: str, settings: Load, tmp_path: Path) -> None:
    path = tmp_path / "my weights.h5"
    path.write_bytes(b"old")
    given = settings(weights=form.format(str(path).replace(" ", "%20") if "file" in form else path))
    before = identity(given)
    with opened(given) as file:
        assert file == WeightsFile(path, str(path), hashlib.sha256(b"old").hexdigest())
    path.write_bytes(b"new")
    assert identity(given) != before
    path.write_bytes(b"old")
    assert identity(given) == before


@pytest.mark.parametrize("weights", ["absent.h5", "file:///absent.h5", "http://host/a.h5", "gs://bucket/a.h5", "/"])
def test_weights_that_cannot_be_read_are_named(weights: str, settings: Load) -> None:
    with pytest.raises(FruitsError, match=r"FRUITS_WEIGHTS .*expected"):
        identity(settings(weights=weights))
    with pytest.raises(FruitsError, match=r"FRUITS_WEIGHTS .*expected"), opened(settings(weights=weights)):
        pass


class Host:
    """Stands in for the network: what an https address answers, by its path."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], io.BufferedIOBase]] = {}
        self.asked: list[str] = []

    def answer(self, path: str, data: bytes | io.BufferedIOBase, status: int = 200, **headers: str) -> None:
        self.answers[path] = (status, headers, io.BytesIO(data) if isinstance(data, bytes) else data)

    def __call__(self, request: urllib.request.Request) -> urllib.response.addinfourl:
        self.asked.append(request.full_url)
        status, headers, data = self.answers[urlsplit(request.full_url).path]
        message = Message()
        for name, value in headers.items():
            message[name] = value
        answer = urllib.response.addinfourl(data, message, request.full_url, status)
        answer.msg = "Found"  # type: ignore[attr-defined] # as http.client's
        return answer


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return host(req)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return host(req)

    real = weights_module._opener

    def opener() -> urllib.request.OpenerDirector:
        made = real()
        for handler in (Https(), Http()):
            handler.handler_order = 1
            made.add_handler(handler)
        return made

    monkeypatch.setattr(weights_module, "_opener", opener)
    return host


HOST = "https://host"
SIGNED = "https://host/a/net.weights.h5?signature=secret"


def test_a_download_is_hashed_keeps_its_suffix_and_hides_its_signature(settings: Load, host: Host) -> None:
    host.answer("/a/net.weights.h5", b"numbers")
    with opened(settings(weights=SIGNED, weights_from=HOST)) as file:
        assert isinstance(file, WeightsFile)
        assert file.path.read_bytes() == b"numbers"
        assert file.path.name == "net.weights.h5"
        assert file.sha256 == hashlib.sha256(b"numbers").hexdigest()
        assert file.source == "https://host/a/net.weights.h5"
    assert host.asked == [SIGNED]
    assert not file.path.exists()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("https://127.0.0.1:1/net.h5?signature=secret", "https://127.0.0.1:1/net.h5: the download failed"),
        ("https://127.0.0.1:1/a b?signature=secret", "expected an address without spaces"),
    ],
)
def test_a_failed_download_says_so_without_its_signature(settings: Load, weights: str, says: str) -> None:
    with (
        pytest.raises(FruitsError, match=says) as caught,
        opened(settings(weights=weights, weights_from="https://127.0.0.1:1")),
    ):
        pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", ["http://host/b.h5?signature=secret", "file:///etc/passwd", "ftp://host/b.h5"])
def test_a_redirect_away_from_https_is_refused(settings: Load, host: Host, target: str) -> None:
    host.answer("/a/net.weights.h5", b"", 302, Location=target)
    host.answer("/b.h5", b"somebody's")
    with (
        pytest.raises(FruitsError, match="download failed") as caught,
        opened(settings(weights=SIGNED, weights_from=HOST)),
    ):
        pass
    assert "secret" not in str(caught.value)
    assert host.asked == [SIGNED], "nothing else was asked"


def test_a_redirect_to_https_is_followed(settings: Load, host: Host) -> None:
    host.answer("/a/net.weights.h5", b"", 302, Location="https://objects/b.h5")
    host.answer("/b.h5", b"numbers")
    with opened(settings(weights=SIGNED, weights_from=HOST)) as file:
        assert isinstance(file, WeightsFile)
        assert (file.path.read_bytes(), file.source) == (b"numbers", "https://host/a/net.weights.h5")


class Endless(io.BufferedIOBase):
    """A body that never ends; each piece takes a second of ``clock``."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def read1(self, size: int = -1) -> bytes:
        self.clock[0] += 1
        return b"x" * min(size, 10)


@pytest.mark.parametrize(
    ("limit", "says"), [("_MOST_BYTES", "at most 100 bytes"), ("_DOWNLOAD_SECONDS", "after 100 s")]
)
def test_a_download_has_bounded_size_and_time(
    settings: Load, host: Host, monkeypatch: pytest.MonkeyPatch, limit: str, says: str
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(weights_module, limit, 100)
    host.answer("/a/net.weights.h5", Endless(clock))
    with pytest.raises(FruitsError, match=says), opened(settings(weights=SIGNED, weights_from=HOST)):
        pass
    assert clock[0] < 200


@pytest.mark.parametrize("weights", ["/dev/zero", "file:///dev/zero"])
def test_a_device_is_no_weights_file(settings: Load, weights: str) -> None:
    with pytest.raises(FruitsError, match="/dev/zero: Not a file"):
        identity(settings(weights=weights))


def test_a_local_file_has_a_bounded_size(settings: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "_MOST_BYTES", 2)
    (tmp_path / "a.h5").write_bytes(b"old")
    with pytest.raises(FruitsError, match="at most 2 bytes"):
        identity(settings(weights=str(tmp_path / "a.h5")))


@pytest.mark.parametrize("place", ["{}/a.h5", "file://{}/a.h5", "https://host/a.h5"])
def test_a_digest_in_the_address_is_checked(settings: Load, host: Host, tmp_path: Path, place: str) -> None:
    (tmp_path / "a.h5").write_bytes(b"numbers")
    right, wrong = hashlib.sha256(b"numbers").hexdigest(), hashlib.sha256(b"others").hexdigest()
    host.answer("/a.h5", b"numbers")
    with opened(settings(weights=f"{place.format(tmp_path)}#sha256={right}", weights_from=HOST)) as file:
        assert isinstance(file, WeightsFile)
        assert "#" not in file.source
    host.answer("/a.h5", b"numbers")
    with (
        pytest.raises(FruitsError, match=f"expected a file of sha256 {wrong}, found {right}"),
        opened(settings(weights=f"{place.format(tmp_path)}#sha256={wrong}", weights_from=HOST)),
    ):
        pass


INSIDE = [
    "https://host/weights/a.h5",
    "https://HOST/weights/b/a.h5?signature=x",
    "s3://bucket/weights/a.h5",
    "/srv/weights/a.h5",
    "file:///srv/weights/a.h5",
    "default",
    "ImageNet",
]
OUTSIDE = [
    "https://host/weightsecret/a.h5",
    "https://host/weights/../a.h5",
    "https://host/weights/%2e%2e/a.h5",
    "https://host/weights\\..\\a.h5",
    "https://host.evil/weights/a.h5",
    "https://host:8443/weights/a.h5",
    "s3://other/weights/a.h5",
    "s3://bucket/a.h5",
    "/srv/a.h5",
    "/srv/weights/../a.h5",
    "file:///etc/passwd",
    "srv/weights/a.h5",
]
PLACES = ("https://host/weights", "s3://bucket/weights/", "/srv/weights")


@pytest.mark.parametrize("weights", INSIDE)
def test_weights_in_a_listed_place_are_allowed(weights: str) -> None:
    check_place(weights, PLACES)


@pytest.mark.parametrize("weights", OUTSIDE)
def test_weights_outside_the_listed_places_are_refused(weights: str) -> None:
    with pytest.raises(FruitsError, match=r"FRUITS_WEIGHTS_FROM lists, now https://host/weights, s3"):
        check_place(weights, PLACES)


def test_a_link_leads_out_of_a_listed_folder_in_vain(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.h5").symlink_to("/etc/passwd")
    with pytest.raises(FruitsError, match="FRUITS_WEIGHTS_FROM"):
        check_place(str(tmp_path / "weights" / "a.h5"), (str(tmp_path / "weights"),))


@pytest.mark.parametrize("weights", [SIGNED, "s3://bucket/a.h5"])
def test_addresses_are_asked_only_when_their_place_is_listed(settings: Load, host: Host, weights: str) -> None:
    given = settings(weights=weights, weights_from="https://other,s3://other")
    with pytest.raises(FruitsError, match="FRUITS_WEIGHTS_FROM") as caught:
        identity(given)
    with pytest.raises(FruitsError, match="FRUITS_WEIGHTS_FROM"), opened(given):
        pass
    assert "secret" not in str(caught.value)
    assert host.asked == []


def test_a_password_in_a_uri_is_refused_and_not_repeated(settings: Load) -> None:
    with pytest.raises(FruitsError, match=r"https://host/net.h5: expected") as caught:
        identity(settings(weights="https://me:pass@host/net.h5"))
    assert "me:pass" not in str(caught.value)


@pytest.fixture
def s3_objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The endpoint of a server that answers GET and HEAD as S3 does, and its objects by path."""
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = objects.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.send_header("ETag", f'"{hashlib.md5(data or b"", usedforsecurity=False).hexdigest()}"')
            self.send_header("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET  # noqa: N815 the name that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    stores._credentials.cache_clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", objects
    server.shutdown()
    server.server_close()
    stores._credentials.cache_clear()


def test_an_s3_object_is_identified_by_its_etag_and_downloaded(
    settings: Load, s3_objects: tuple[str, dict[str, bytes]]
) -> None:
    endpoint, objects = s3_objects
    given = settings(weights="s3://weights/a/net.h5", weights_from="s3://weights", s3_endpoint=endpoint)
    with pytest.raises(FruitsError, match=r"s3://weights/a/net.h5: there is no such object"):
        identity(given)
    objects["/weights/a/net.h5"] = b"old"
    before = identity(given)
    with opened(given) as file:
        assert isinstance(file, WeightsFile)
        assert (file.path.read_bytes(), file.source) == (b"old", "s3://weights/a/net.h5")
    objects["/weights/a/net.h5"] = b"new"
    assert identity(given) != before
