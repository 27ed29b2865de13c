import hashlib
import io
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fruits import stores
from fruits.backbones.weights import WeightsFile, identity, named, opened
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


def test_a_download_is_hashed_keeps_its_suffix_and_hides_its_signature(
    settings: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"numbers"))
    with opened(settings(weights="https://host/a/net.weights.h5?signature=secret")) as file:
        assert isinstance(file, WeightsFile)
        assert file.path.read_bytes() == b"numbers"
        assert file.path.name == "net.weights.h5"
        assert file.sha256 == hashlib.sha256(b"numbers").hexdigest()
        assert file.source == "https://host/a/net.weights.h5"
    assert not file.path.exists()


def test_a_failed_download_says_so_without_its_signature(settings: Load) -> None:
    with (
        pytest.raises(FruitsError, match=r"https://127.0.0.1:1/net.h5: the download failed") as caught,
        opened(settings(weights="https://127.0.0.1:1/net.h5?signature=secret")),
    ):
        pass
    assert "secret" not in str(caught.value)


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
    given = settings(weights="s3://weights/a/net.h5", s3_endpoint=endpoint)
    with pytest.raises(FruitsError, match=r"s3://weights/a/net.h5: there is no such object"):
        identity(given)
    objects["/weights/a/net.h5"] = b"old"
    before = identity(given)
    with opened(given) as file:
        assert isinstance(file, WeightsFile)
        assert (file.path.read_bytes(), file.source) == (b"old", "s3://weights/a/net.h5")
    objects["/weights/a/net.h5"] = b"new"
    assert identity(given) != before
