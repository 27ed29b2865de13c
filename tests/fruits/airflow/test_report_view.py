"""The report's pages in a real API server: who may see them, what they answer when something is amiss."""

import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from fruits.lake.catalog import Lake
from fruits.run.documents import task_document
from fruits.run.state import run_key
from fruits.serve.report import content_security_policy, read_overview
from fruits.settings import Settings
from local.airflow import airflow_environment
from local.stack import Stack, environment_of
from tests.running_ui import UI, wait_for

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[3]
RUN_ID = "manual__2026-11-22T09:30:00+00:00"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def server(start_ui: Callable[[], UI]) -> UI:
    """The session's Airflow, in whose lake a run failed; `viewer` may see all of it."""
    running = start_ui()
    with environment_of(running.stack):
        settings = Settings.load()
    Lake.open(settings)
    with (
        pytest.raises(ValueError, match="alert"),
        task_document(settings, "plan", run_key(RUN_ID), RUN_ID),
    ):
        raise ValueError(HOSTILE)
    return running


def get(server: UI, path: str, token: str | None = None, *, cookie: str | None = None) -> httpx.Response:
    """What the server answers to exactly this path: a client would resolve `..` by itself."""
    headers = {"Authorization": f"Bearer {token}"} if token else {"Cookie": f"_token={cookie}"} if cookie else {}
    with httpx.Client(headers=headers, timeout=60) as client:
        return client.get(f"{server.url}{path}", extensions={"target": path.encode()})


@pytest.fixture(scope="module")
def plugin() -> Iterator[ModuleType]:
    """The plugin's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "plugins"))
        from fruits.airflow import report_view as fruits_report

        yield fruits_report


@pytest.fixture(scope="module")
def paths(plugin: ModuleType) -> list[str]:
    """An address of each page that the app has, whatever it is."""
    values = {"dag_id": "fruit_features", "run_id": urllib.parse.quote(RUN_ID, safe="")}
    routes = plugin.make_app().routes
    assert {tuple(route.methods) for route in routes} == {("GET",), ("POST",)}
    return [f"{plugin.PREFIX}{route.path.format_map(values)}" for route in routes if route.methods == {"GET"}]


@pytest.mark.heavy
def test_no_route_answers_without_a_session(server: UI, paths: list[str]) -> None:
    assert len(paths) >= 2
    for path in paths:
        for refused in (
            get(server, path),
            get(server, path, "not.a.token"),
            get(server, path, cookie="not.a.token"),
            get(server, path, server.api_of("viewer").token[:-4] + "AAAA"),
        ):
            assert refused.status_code in (401, 403), path
            assert_nothing_is_told(refused)


@pytest.mark.heavy
@pytest.mark.parametrize("user", ["stranger", "nosy"])
def test_no_route_answers_who_may_not_read_the_dags_runs(server: UI, paths: list[str], user: str) -> None:
    token = server.api_of(user).token
    assert get(server, "/api/v2/dags", token).status_code == 200, "the session itself is good"
    for path in paths:
        for refused in (get(server, path, token), get(server, path, cookie=token)):
            assert refused.status_code == 403, path
            assert_nothing_is_told(refused)


@pytest.mark.heavy
def test_no_route_answers_a_session_that_has_expired(server: UI, paths: list[str]) -> None:
    import jwt

    viewer = server.api_of("viewer")
    token = viewer.login("auth/token/cli")
    expires = jwt.decode(token, options={"verify_signature": False})["exp"]
    time.sleep(max(0.0, expires + 1 - time.time()))
    for path in paths:
        assert get(server, path, viewer.token).status_code == 200, "another token of the same user"
        for refused in (get(server, path, token), get(server, path, cookie=token)):
            assert refused.status_code == 401, path
            assert_nothing_is_told(refused)


def assert_nothing_is_told(refused: httpx.Response) -> None:
    assert "bucket" not in refused.text
    assert "lake" not in refused.text
    assert "Traceback" not in refused.text


@pytest.mark.heavy
def test_every_route_answers_who_may(server: UI, paths: list[str]) -> None:
    token = server.api_of("viewer").token
    for path in paths:
        for answer in (get(server, path, token), get(server, path, cookie=token)):
            assert answer.status_code == 200, f"{path}: {answer.text}"
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert answer.headers["Content-Security-Policy"] == f"{content_security_policy()}; frame-ancestors 'self'"
            assert "X-Frame-Options" not in answer.headers, "it would forbid the frame or repeat the policy"
            assert answer.headers["Cache-Control"] == "no-store"
    assert "Nothing is published yet" in get(server, "/fruits/overview", token).text


def send_photo(server: UI, token: str | None) -> httpx.Response:
    headers = {"Content-Type": "image/jpeg", **({"Authorization": f"Bearer {token}"} if token else {})}
    return httpx.post(f"{server.url}/fruits/identify", content=b"a photo", headers=headers, timeout=60)


@pytest.mark.heavy
@pytest.mark.parametrize("user", [None, "stranger", "nosy"])
def test_a_photo_is_passed_on_for_nobody_who_may_not_see_the_report(server: UI, user: str | None) -> None:
    refused = send_photo(server, server.api_of(user).token if user else None)
    assert refused.status_code == (403 if user else 401)
    assert set(refused.json()) == {"reason", "detail"}
    assert_nothing_is_told(refused)
    assert "FRUITS_SERVICE_URL" not in refused.text


@pytest.mark.heavy
def test_a_photo_is_passed_on_for_who_may(server: UI) -> None:
    """The service that `make ui` started answers: nothing is published yet."""

    def answer() -> httpx.Response | None:
        found = send_photo(server, server.api_of("viewer").token)
        return None if found.json()["reason"] == "no_service" else found  # the service may be starting

    assert (wait_for(answer).status_code, answer().json()["reason"]) == (503, "not_ready")


@pytest.mark.heavy
@pytest.mark.parametrize("path", ["docs", "redoc", "openapi.json", "", "overview/", "../ui/config"])
def test_there_is_nothing_else(server: UI, path: str) -> None:
    assert get(server, f"/fruits/{path}").status_code in (307, 401, 404)
    assert "swagger" not in get(server, f"/fruits/{path}").text.lower()


@pytest.mark.heavy
def test_what_a_run_says_is_shown_as_text(server: UI) -> None:
    page = get(server, f"/fruits/dags/fruit_features/runs/{urllib.parse.quote(RUN_ID)}", server.api_of("viewer").token)
    assert page.status_code == 200
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "<script" not in page.text


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("dags/fruit_features/runs/manual__never", "no documents in file://"),
        ("dags/fruit_features/runs/%3Cscript%3E", "`airflow dags list-runs fruit_features` lists the runs"),
        ("dags/another/runs/manual__1", "Only runs of the DAG fruit_features have a report"),
    ],
)
def test_a_run_that_is_not_there(server: UI, path: str, said: str) -> None:
    answer = get(server, f"/fruits/{path}", server.api_of("viewer").token)
    assert answer.status_code == 404
    assert said in answer.text
    assert "<script" not in answer.text


def test_the_ui_is_told_of_the_pages(plugin: ModuleType) -> None:
    views = {view["destination"]: view for view in plugin.EXTERNAL_VIEWS}
    assert views["nav"]["href"] == "fruits/overview"
    assert views["dag_run"]["href"] == "fruits/dags/{DAG_ID}/runs/{RUN_ID}"


@pytest.mark.heavy
def test_a_task_that_loads_the_plugin_does_not_load_the_web_server(stack: Stack) -> None:
    code = (
        "import sys, airflow.plugins_manager; before = set(sys.modules); sys.path.insert(0, 'plugins'); "
        "import fruits_plugin; fruits_plugin.FruitsPlugin(); "
        "heavy = ('fastapi', 'jinja2', 'PIL', 'fruits.serve.report'); "
        "print([name for name in heavy if name in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=airflow_environment(stack),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


class TestWithoutAServer:
    """What a page costs the server, and what it tells, when something goes wrong."""

    def test_a_defect_is_told_without_its_details(self, plugin: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
        def broken() -> Any:
            raise ZeroDivisionError("secret")

        answer = plugin._report_page(broken)
        assert answer.status_code == 500
        assert b"secret" not in answer.body
        assert "secret" in caplog.text, "the log has it"

    def test_settings_that_are_missing_are_named(self, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FRUITS_LAKE", raising=False)
        monkeypatch.setenv("FRUITS_BUCKET", "x")
        answer = plugin._report_page(lambda: read_overview(Settings.load()))
        assert answer.status_code == 503
        assert b"FRUITS_LAKE is not set" in answer.body
        assert b"FRUITS_BUCKET is &#39;x&#39;" in answer.body

    def test_only_a_few_pages_are_made_at_a_time(self, plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugin, "_WAIT_SECONDS", 0.1)
        taken = 0
        while plugin._SLOTS.acquire(blocking=False):
            taken += 1
        try:
            assert plugin._report_page(lambda: None).status_code == 503
        finally:
            for _ in range(taken):
                plugin._SLOTS.release()
        assert 1 <= taken <= 4

    def test_routes_run_in_threads(self, plugin: ModuleType) -> None:
        import inspect

        waiting = [route.path for route in plugin.make_app().routes if inspect.iscoroutinefunction(route.endpoint)]
        assert waiting == ["/identify"], "this one waits for the service, and computes nothing"
