"""The service's promises: what it answers, what it refuses, and what it does while publications change."""

import asyncio
import gc
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fruits.analysis.moments import moments_of
from fruits.analysis.pca import fit
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.reader import current_publication
from fruits.serve import current as current_module
from fruits.serve import service as module
from fruits.serve.current import CurrentEngine
from fruits.serve.identify import NO_CLASSIFIER, Engine
from fruits.serve.service import make_app
from fruits.settings import Settings
from tests.environments import unconfigured

pytestmark = [pytest.mark.jobs, pytest.mark.heavy]

JPEG = {"Content-Type": "image/jpeg"}


def serving(settings, *, look=True, waiting=4):
    """A service of a lake, whose looks at the lake are the test's; its client."""
    current = CurrentEngine(settings, threads=2, refresh_seconds=15)
    if look:
        current.look()
    return current, TestClient(make_app(current, threads=2, waiting=waiting), raise_server_exceptions=False)


@pytest.fixture
def client(published):
    """A client of a service of the published photos."""
    return serving(published)[1]


@pytest.fixture
def photo(photos):
    """A published photo of a kiwi."""
    return photos["train/Kiwi/0.img"]


def renamed(rows, old, new):
    return {key.replace(old, new): vector for key, vector in rows.items()}


@pytest.fixture
def rows(photos, feature) -> Mapping[str, np.ndarray]:
    """The photos' features by key."""
    return {key: feature(data) for key, data in photos.items()}


def publish(fake_run, settings, rows, model_id, components=12):
    """Publish other rows in place of all: those of a PCA of its own."""
    run = fake_run(settings)
    run.classify(rows, model_id)
    pca = fit(moments_of(np.stack(list(rows.values()))), components)
    return run.publish(model_id, run.write(rows, model_id, pca=pca))


class TestAnswers:
    def test_they_are_the_commands_whichever_way_the_photo_comes(self, client, published, photo):
        engine = Engine.load(published)
        expected = {**json.loads(json.dumps(engine.identify(photo, nearest=3).to_document())), "lacks": None}
        raw = client.post("/identify?nearest=3", content=photo, headers=JPEG)
        form = client.post("/identify?nearest=3", files={"photo": ("kiwi.jpg", photo, "image/jpeg")})
        assert (raw.status_code, raw.json()) == (200, expected)
        assert (form.status_code, form.json()) == (200, expected)
        assert expected["label"] == "Kiwi"
        assert expected["nearest"][0]["key"] == "train/Kiwi/0.img"
        assert expected["publication_id"] == engine.publication.publication_id
        assert raw.headers["Cache-Control"] == "no-store"

    def test_without_a_classifier_there_are_neighbours_and_a_sentence(self, new_lake, rows, photo, tmp_path):
        _, client = serving(new_lake(tmp_path, rows, classified=False))
        answer = client.post("/identify", content=photo, headers=JPEG).json()
        assert (answer["label"], answer["labels"], answer["classifier_id"]) == (None, [], None)
        assert answer["nearest"][0]["key"] == "train/Kiwi/0.img"
        assert answer["lacks"] == client.get("/ready").json()["lacks"] == NO_CLASSIFIER

    def test_they_are_described(self, client):
        described = client.get("/openapi.json").json()
        operation = described["paths"]["/identify"]["post"]
        assert set(operation["requestBody"]["content"]) == {"image/*", "multipart/form-data"}
        assert {"200", "400", "408", "413", "415", "422", "503"} <= set(operation["responses"])
        schemas = {
            status: told["content"]["application/json"]["schema"] for status, told in operation["responses"].items()
        }
        assert schemas.pop("200") == {"$ref": "#/components/schemas/Answer"}
        assert {schema["$ref"] for schema in schemas.values()} == {"#/components/schemas/Refusal"}
        assert client.get("/docs").status_code == 200

    def test_the_page_needs_nothing_from_elsewhere(self, client):
        page = client.get("/")
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert not re.search(r"""(src|href)="(?!data:|docs")|url[(]|//|innerHTML""", page.text)


def bomb():
    """400 million pixels in some kilobytes."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    return file.getvalue()


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "kind", "status", "reason"),
        [
            (b"%PDF-1.7\n", "application/pdf", 415, "wrong_content_type"),
            (b"%PDF-1.7\n", "image/jpeg", 415, "unsupported_format"),
            (b"{}", "application/json", 415, "wrong_content_type"),
            (b"photo=1", "application/x-www-form-urlencoded", 415, "wrong_content_type"),
            (b"", "image/jpeg", 422, "empty"),
            (b"<!doctype html>", "image/png", 415, "not_an_image"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl", 415, "unsupported_format"),
            (b"--x\r\n", "multipart/form-data", 400, "bad_form"),
            (b"nothing of a form", "multipart/form-data; boundary=x", 400, "bad_form"),
            (
                b'--x\r\nContent-Disposition: form-data; name="photo"\r\n\r\ntext\r\n--x--\r\n',
                "multipart/form-data; boundary=x",
                400,
                "bad_form",
            ),
            (
                b'--x\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nx\r\n--x--\r\n',
                "multipart/form-data; boundary=x",
                400,
                "bad_form",
            ),
        ],
    )
    def test_what_is_no_photo(self, client, body, kind, status, reason):
        refused(client.post("/identify", content=body, headers={"Content-Type": kind}), status, reason)

    def test_no_content_type(self, client, photo):
        refused(client.post("/identify", content=photo), 415, "wrong_content_type")

    def test_a_truncated_photo(self, client, photo):
        refused(client.post("/identify", content=photo[: len(photo) // 2], headers=JPEG), 422, "truncated")

    def test_a_bomb_costs_little(self, client):
        before = time.process_time()
        refused(client.post("/identify", content=bomb(), headers={"Content-Type": "image/png"}), 413, "too_many_pixels")
        assert time.process_time() - before < 2

    @pytest.mark.parametrize("query", ["nearest=-1", "nearest=1000", "nearest=many"])
    def test_a_wrong_number_of_neighbours(self, client, photo, query):
        refused(client.post(f"/identify?{query}", content=photo, headers=JPEG), 422, "invalid")

    def test_another_path_or_method(self, client):
        refused(client.get("/identify"), 405, "method_not_allowed")
        refused(client.get("/elsewhere"), 404, "not_found")

    def test_a_defect_is_told_without_its_details(self, published, photo, monkeypatch):
        _, client = serving(published)
        monkeypatch.setattr(Engine, "feature", lambda *_: 1 / 0)
        answer = client.post("/identify", content=photo, headers=JPEG)
        refused(answer, 500, "defect")
        assert "zero" not in answer.text


def refused(answer, status, reason):
    """The answer is a refusal with a code and one sentence."""
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    assert set(answer.json()) == {"reason", "detail"}
    assert answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def asked(app, receive, **headers):
    """The status and the document that the app answers to a request whose body ``receive`` gives."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/identify",
        "raw_path": b"/identify",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


class TestBounds:
    def test_a_large_body_is_refused_by_its_announced_length(self, client):
        async def receive():
            pytest.fail("the body was read")

        status, told = asked(client.app, receive, content_type="image/jpeg", content_length="60000000")
        assert (status, told["reason"]) == (413, "too_many_bytes")
        assert "50,000,000" in told["detail"]

    @pytest.mark.parametrize("kind", ["image/jpeg", "multipart/form-data; boundary=x"])
    def test_a_large_body_of_unknown_length_is_read_up_to_the_limit(self, published, kind):
        _, client = serving(published.model_copy(update={"max_photo_bytes": 500_000}))
        given = 0
        start = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'

        async def receive():
            nonlocal given
            chunk = start if not given and kind.startswith("multipart") else bytes(10_000)
            given += len(chunk)
            assert given < 2_000_000, "the body is read on and on"
            return {"type": "http.request", "body": chunk, "more_body": True}

        status, told = asked(client.app, receive, content_type=kind)
        assert (status, told["reason"]) == (413, "too_many_bytes")
        assert 500_000 < given < 600_000

    def test_a_slow_upload_ends(self, client, monkeypatch):
        monkeypatch.setattr(module, "_UPLOAD_SECONDS", 0.05)

        async def receive():
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"x", "more_body": True}

        status, told = asked(client.app, receive, content_type="image/jpeg")
        assert (status, told["reason"]) == (408, "too_slow")

    def test_a_client_that_goes_away_is_no_defect(self, client, caplog):
        async def receive():
            return {"type": "http.disconnect"}

        assert asked(client.app, receive, content_type="image/jpeg")[0] == 400
        assert not caplog.records

    def test_a_photo_is_never_on_a_disk(self, client, photo, monkeypatch):
        monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda _: pytest.fail("a file was written"))
        large = photo + bytes(3_000_000)
        answer = client.post("/identify", content=large, headers=JPEG)
        assert answer.status_code == 200
        assert client.post("/identify", files={"photo": ("a.jpg", large)}).json() == answer.json()

    def test_more_photos_than_places_are_refused_and_the_others_answered(self, published, photo, monkeypatch):
        _, client = serving(published, waiting=1)
        inside, go = [], Event()
        feature = Engine.feature

        def slow(engine, data):
            inside.append(data)
            go.wait(60)
            return feature(engine, data)

        monkeypatch.setattr(Engine, "feature", slow)
        with ThreadPoolExecutor(4) as pool:
            try:
                ask = (client.post, "/identify")
                waiting = [pool.submit(*ask, content=photo, headers=JPEG) for _ in range(3)]
                deadline = time.monotonic() + 60
                while client.app.state.places.free and time.monotonic() < deadline:
                    time.sleep(0.01)
                answer = client.post("/identify", content=photo, headers=JPEG)
                refused(answer, 503, "busy")
                assert int(answer.headers["Retry-After"]) >= 1
                assert len(inside) <= 2, "threads compute two at once"
            finally:
                go.set()
            assert [one.result().status_code for one in waiting] == [200] * 3
        assert client.post("/identify", content=photo, headers=JPEG).status_code == 200, "places are given back"


class TestPublications:
    def test_without_one_the_service_says_so_and_answers_when_there_is_one(
        self, new_lake, rows, photo, tmp_path, folder_lake
    ):
        current, client = serving(folder_lake, look=False)
        answer = client.post("/identify", content=photo, headers=JPEG)
        refused(answer, 503, "not_ready")
        current.look()
        answer = client.post("/identify", content=photo, headers=JPEG)
        refused(answer, 503, "not_ready")
        assert "no lake there" in answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) == 15
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        assert new_lake(tmp_path, rows).lake == folder_lake.lake
        current.look()
        assert client.post("/identify", content=photo, headers=JPEG).json()["label"] == "Kiwi"
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["ready"], ready.json()["problem"]) == (200, True, None)

    def test_a_new_one_takes_over_as_a_whole_and_the_old_engine_is_freed(
        self, new_lake, rows, photo, fake_run, backbone, tmp_path
    ):
        settings = new_lake(tmp_path, rows)
        current, client = serving(settings)
        old, before = weakref.ref(current.loaded.engine), current.loaded.engine.versions
        later = publish(fake_run, settings, renamed(rows, "Kiwi", "Lemon"), backbone.card.model_id)
        assert client.post("/identify", content=photo, headers=JPEG).json()["publication_id"] == before.publication_id
        current.look()
        answer = client.post("/identify", content=photo, headers=JPEG).json()
        assert (answer["label"], answer["publication_id"]) == ("Lemon", later.publication_id)
        assert answer["nearest"][0]["key"] == "train/Lemon/0.img"
        assert answer["classifier_id"] == later.classifier_id != before.classifier_id
        gc.collect()
        assert old() is None

    def test_nothing_is_loaded_anew_without_one(self, published, monkeypatch):
        current, _ = serving(published)
        engine = current.loaded.engine
        monkeypatch.setattr(current_module, "current_publication", lambda _: pytest.fail("publications were read"))
        current.look()
        assert current.loaded.engine is engine
        assert current.loaded.problem is None

    def test_while_one_cannot_be_loaded_the_one_before_answers(
        self, new_lake, rows, photo, fake_run, backbone, tmp_path, monkeypatch
    ):
        settings = new_lake(tmp_path, rows)
        current, client = serving(settings)
        before = current.loaded.engine
        later = publish(fake_run, settings, renamed(rows, "Kiwi", "Lemon"), backbone.card.model_id)

        def broken(*_, **__):
            raise FruitsError("classifiers: a file is gone; expected all of them")

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "of", broken)
            current.look()
            first = client.get("/ready").json()
            current.look()
            assert client.get("/ready").json() == first
        assert first["ready"] is True
        assert first["publication_id"] == before.publication.publication_id
        assert "a file is gone" in first["problem"]
        assert first["since"]
        assert client.post("/identify", content=photo, headers=JPEG).json()["label"] == "Kiwi"
        current.look()
        healed = client.get("/ready").json()
        assert (healed["publication_id"], healed["problem"], healed["since"]) == (later.publication_id, None, None)

    def test_photos_beyond_those_that_are_compared_get_an_index(self, published, photo, tmp_path, monkeypatch):
        settings = published.model_copy(update={"index_folder": tmp_path / "index"})
        expected = Engine.load(settings).identify(photo)
        monkeypatch.setattr(current_module, "EXACT_ROWS", 5)
        for name in ("build", "open_neighbours"):
            monkeypatch.setattr(current_module, name, partial(getattr(current_module, name), exact_rows=5))
        current, client = serving(settings)
        assert current.loaded.engine.neighbours.segments
        assert current.loaded.engine.identify(photo) == expected
        assert client.get("/ready").json()["problem"] is None
        monkeypatch.setattr(current_module, "build", lambda *_, **__: pytest.fail("built once more"))
        current.look()

    def test_a_defect_while_loading_does_not_end_the_looks(self, published, monkeypatch):
        current = CurrentEngine(published, threads=1, refresh_seconds=0.01)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "of", lambda *_, **__: 1 / 0)
            current.look()
            assert "ZeroDivisionError" in current.loaded.problem
        current.start()
        deadline = time.monotonic() + 60
        while current.loaded.engine is None and time.monotonic() < deadline:
            time.sleep(0.01)
        current.stop()
        assert current.loaded.engine is not None

    def test_what_cannot_be_loaded_is_tried_less_and_less_often(self, published, monkeypatch):
        current = CurrentEngine(published, threads=1, refresh_seconds=15)
        waits = []

        def wait(seconds):
            waits.append(seconds)
            if len(waits) == 8:
                current.stop()

        monkeypatch.setattr(current._stop, "wait", wait)
        monkeypatch.setattr(current, "look", lambda: None)
        current.loaded = replace(current.loaded, problem="the disk is full")
        current._look_again()
        assert waits == [30, 60, 120, 240, 480, 600, 600, 600]


@pytest.fixture
def server(new_lake, rows, tmp_path) -> Iterator[tuple[Settings, str, int]]:
    """A process of `fruits serve`; the settings of its lake, host and port."""
    settings = new_lake(tmp_path, rows)
    catalog = settings.catalog_uri.get_secret_value()
    process = subprocess.Popen(
        [sys.executable, "-m", "fruits", "serve", "--port", "0", "--refresh", "0.3", "--workers", "2"],
        env=unconfigured(FRUITS_LAKE=settings.lake, FRUITS_CATALOG_URI=catalog),
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://([0-9.]+):(\d+) answers", line):
                break
        else:
            pytest.fail("".join(lines))
        Thread(target=process.stderr.read, daemon=True).start()  # an ended pipe would block the server
        yield settings, found[1], int(found[2])
    finally:
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM, "the server ends in order"


def wait_for(host, port, publication_id):
    """Wait until a publication answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        connection = HTTPConnection(host, port, timeout=120)
        connection.request("GET", "/ready")
        if json.loads(connection.getresponse().read())["publication_id"] == publication_id:
            return
        time.sleep(0.1)
    pytest.fail(f"{publication_id} does not answer")


class TestServer:
    def test_a_publication_takes_over_under_load_and_nothing_is_dropped_or_mixed(
        self, server, rows, photo, fake_run, backbone
    ):
        settings, host, port = server
        assert host == "127.0.0.1"
        ended = Event()

        def ask():
            answers = []
            connection = HTTPConnection(host, port, timeout=120)
            while not ended.is_set():
                connection.request("POST", "/identify", photo, JPEG)
                response = connection.getresponse()
                answers.append((response.status, json.loads(response.read())))
            return answers

        first = current_publication(Lake(settings)).publication_id
        wait_for(host, port, first)
        names = {first: "Kiwi"}
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            try:
                for name, components in (("Lemon", 12), ("Mango", 13)):
                    later = publish(fake_run, settings, renamed(rows, "Kiwi", name), backbone.card.model_id, components)
                    names[later.publication_id] = name
                    wait_for(host, port, later.publication_id)
            finally:
                ended.set()
            answers = [answer for one in asking for answer in one.result()]
        assert {status for status, _ in answers} == {200}
        told = {(one["publication_id"], one["label"], one["nearest"][0]["key"]) for _, one in answers}
        assert told == {(publication, name, f"train/{name}/0.img") for publication, name in names.items()}

    def test_a_body_that_is_too_large_gets_its_answer_and_the_next_photo_too(self, server, photo):
        settings, host, port = server
        wait_for(host, port, current_publication(Lake(settings)).publication_id)
        connection = HTTPConnection(host, port, timeout=120)
        for body, status in ((bytes(60_000_000), 413), (photo, 200), (b"%PDF-1.7", 415), (photo, 200)):
            connection.request("POST", "/identify", body, JPEG)
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, True)

    def test_a_page_on_the_web_whose_name_leads_here_is_refused(self, server):
        _, host, port = server
        for name, status in ((f"{host}:{port}", 200), ("localhost", 200), ("evil.example", 400)):
            connection = HTTPConnection(host, port, timeout=120)
            connection.request("GET", "/health", headers={"Host": name})
            assert connection.getresponse().status == status

    def test_a_port_that_is_taken_is_named(self, server):
        settings, host, port = server
        catalog = settings.catalog_uri.get_secret_value()
        done = subprocess.run(
            [sys.executable, "-m", "fruits", "serve", "--port", str(port)],
            env=unconfigured(FRUITS_LAKE=settings.lake, FRUITS_CATALOG_URI=catalog),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert f"{host}:{port}: Address already in use" in done.stderr
