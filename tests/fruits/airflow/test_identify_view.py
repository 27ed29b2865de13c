"""The route to the service: what it passes on, and what it answers without a service."""

import json
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from fruits.airflow.identify_view import add_identify

pytestmark = pytest.mark.airflow


class Service(BaseHTTPRequestHandler):
    """Answers as it is told, and notes what it is asked."""

    answer: ClassVar[tuple[int, str, bytes]]
    asked: ClassVar[list[dict[str, Any]]]

    def do_POST(self) -> None:
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length else b""
        self.asked.append({"path": self.path, "body": body, "type": self.headers["Content-Type"], "length": length})
        status, kind, text = self.answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", "7")
        self.send_header("Set-Cookie", "theirs")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Service]]:
    """A stand-in for the service, which FRUITS_SERVICE_URL names."""
    Service.asked = []
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        monkeypatch.setenv("FRUITS_SERVICE_URL", f"http://127.0.0.1:{server.server_port}/")
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield Service
        server.shutdown()
        thread.join()


@pytest.fixture
def client() -> TestClient:
    """A client of the route alone, without the report's app and so without a session."""
    app = FastAPI()
    add_identify(app)
    return TestClient(app)


def test_a_photo_goes_to_the_service_and_its_answer_comes_back(client: TestClient, service: type[Service]) -> None:
    for status, told in ((200, {"label": "Kiwi"}), (415, {"reason": "not_an_image", "detail": "no"})):
        service.answer = (status, "application/json", json.dumps(told).encode())
        answer = client.post("/identify?nearest=2", content=b"a photo", headers={"Content-Type": "image/jpeg"})
        assert (answer.status_code, answer.json()) == (status, told)
        assert answer.headers["Retry-After"] == "7"
        assert "Set-Cookie" not in answer.headers
    assert (
        service.asked == [{"path": "/identify?nearest=2", "body": b"a photo", "type": "image/jpeg", "length": "7"}] * 2
    )


def test_what_is_no_service_is_not_passed_on(client: TestClient, service: type[Service]) -> None:
    service.answer = (200, "text/html", b"<script>alert(1)</script>")
    answer = client.post("/identify", content=b"a photo", headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 503
    assert "alert" not in answer.text
    assert "FRUITS_SERVICE_URL" in answer.json()["detail"]


def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRUITS_SERVICE_URL", raising=False)


def _down(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("FRUITS_SERVICE_URL", f"http://user:hidden@127.0.0.1:{taken.getsockname()[1]}")


def _wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRUITS_SERVICE_URL", "localhost:8100")


@pytest.mark.parametrize("problem", [_unset, _down, _wrong])
def test_without_a_service_the_answer_names_the_setting(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, problem: Callable[[pytest.MonkeyPatch], None]
) -> None:
    problem(monkeypatch)
    answer = client.post("/identify", content=b"a photo", headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 503
    assert answer.json()["reason"] == "no_service"
    assert "FRUITS_SERVICE_URL" in answer.json()["detail"]
    assert "fruits serve" in answer.json()["detail"]
    assert "hidden" not in answer.text
