"""The report's pages in a real API server: who may see them, what they answer when something is amiss."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fruits.lake.catalog import Lake
from fruits.run.documents import task_document
from fruits.run.state import run_key
from fruits.serve.report import content_security_policy, read_overview
from fruits.settings import Settings
from local.airflow import airflow, airflow_environment, migrate
from local.stack import Stack, free_ports, make_bucket, stop_process

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[3]
RUN_ID = "manual__2026-11-22T09:30:00+00:00"
HOSTILE = "<script>alert(1)</script>"
READY_SECONDS = 120
JWT_SECRET = "a secret of these tests, which is long enough to be one: " + "x" * 32

AUTH_MANAGER = '''
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager


class OneDagIsSecret(SimpleAuthManager):
    """`stranger` may read every DAG but fruit_features, `nosy` that DAG but not its runs."""

    def is_authorized_dag(self, *, method, user, access_entity=None, details=None):
        asked = details.id if details else None
        if asked == "fruit_features" and (user.username == "stranger" or (user.username == "nosy" and access_entity)):
            return False
        return super().is_authorized_dag(method=method, user=user, access_entity=access_entity, details=details)
'''


@dataclass(frozen=True)
class Answer:
    status: int
    headers: HTTPMessage
    text: str


@dataclass(frozen=True)
class Server:
    """An API server with the plugin, and its users' tokens."""

    url: str
    log: Path
    passwords: Path

    def get(self, path: str, token: str | None = None, *, cookie: str | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {"Cookie": f"_token={cookie}"} if cookie else {}
        return self._answer(urllib.request.Request(f"{self.url}{path}", headers=headers))

    def token(self, user: str) -> str:
        body = {"username": user, "password": json.loads(self.passwords.read_text())[user]}
        request = urllib.request.Request(
            f"{self.url}/auth/token", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        return str(json.loads(self._answer(request).text)["access_token"])

    def _answer(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.headers, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read().decode())


def environment(stack: Stack, folder: Path, port: int) -> dict[str, str]:
    (folder / "one_dag_is_secret.py").write_text(AUTH_MANAGER)
    mine = airflow_environment(stack)
    return {
        **mine,
        "PYTHONPATH": f"{folder}{os.pathsep}{mine['PYTHONPATH']}",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": JWT_SECRET,
        "AIRFLOW__CORE__AUTH_MANAGER": "one_dag_is_secret.OneDagIsSecret",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "viewer:viewer,stranger:viewer,nosy:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
    }


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    """The settings of the server's lake, in which a run failed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment.items():
            patch.setenv(name, value)
        settings = Settings.load()
    Lake.open(settings)
    with (
        pytest.raises(ValueError, match="alert"),
        task_document(settings, "plan", run_key(RUN_ID), RUN_ID),
    ):
        raise ValueError(HOSTILE)
    return settings


@pytest.fixture(scope="module")
def server(stack: Stack, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The API server alone: nobody here needs a scheduler."""
    make_bucket(stack)
    migrate(stack)
    folder = tmp_path_factory.mktemp("api")
    (port,) = free_ports(1)
    server = Server(f"http://127.0.0.1:{port}", folder / "api-server.log", folder / "passwords.json")
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            [airflow(), "api-server"],
            env=environment(stack, folder, port), cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_it_answers(server, process)
        yield server
    finally:
        stop_process(process)


def wait_until_it_answers(server: Server, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if server.get("/api/v2/version").status == 200:
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the API server did not start:\n{server.log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def plugin() -> Iterator[ModuleType]:
    """The plugin's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "plugins"))
        from fruits.airflow import report_view as fruits_report

        yield fruits_report


@pytest.fixture(scope="module")
def paths(plugin: ModuleType) -> list[str]:
    """An address of each route that the app has, whatever it is."""
    values = {"dag_id": "fruit_features", "run_id": urllib.parse.quote(RUN_ID, safe="")}
    return [f"{plugin.PREFIX}{route.path.format_map(values)}" for route in plugin.make_app().routes]


@pytest.mark.heavy
def test_no_route_answers_without_a_session(server: Server, paths: list[str]) -> None:
    assert len(paths) >= 2
    for path in paths:
        for refused in (
            server.get(path),
            server.get(path, "not.a.token"),
            server.get(path, cookie="not.a.token"),
            server.get(path, server.token("viewer")[:-4] + "AAAA"),
        ):
            assert refused.status in (401, 403), path
            assert_nothing_is_told(refused)


@pytest.mark.heavy
@pytest.mark.parametrize("user", ["stranger", "nosy"])
def test_no_route_answers_who_may_not_read_the_dags_runs(server: Server, paths: list[str], user: str) -> None:
    token = server.token(user)
    assert server.get("/api/v2/dags", token).status == 200, "the session itself is good"
    for path in paths:
        for refused in (server.get(path, token), server.get(path, cookie=token)):
            assert refused.status == 403, path
            assert_nothing_is_told(refused)


@pytest.mark.heavy
def test_no_route_answers_a_session_that_has_expired(server: Server, paths: list[str]) -> None:
    for seconds, status in ((600, 200), (-600, 401)):
        token = changed(server.token("viewer"), exp=int(time.time()) + seconds)
        for path in paths:
            for answer in (server.get(path, token), server.get(path, cookie=token)):
                assert answer.status == status, path
                if status != 200:
                    assert_nothing_is_told(answer)


def changed(token: str, **claims: Any) -> str:
    """The token with other claims, signed as the server signs."""
    import jwt

    header = jwt.get_unverified_header(token)
    known = jwt.decode(token, options={"verify_signature": False})
    return str(jwt.encode({**known, **claims}, JWT_SECRET, algorithm=header["alg"], headers=header))


def assert_nothing_is_told(refused: Answer) -> None:
    assert "bucket" not in refused.text
    assert "lake" not in refused.text
    assert "Traceback" not in refused.text


@pytest.mark.heavy
def test_every_route_answers_who_may(server: Server, paths: list[str]) -> None:
    token = server.token("viewer")
    for path in paths:
        for answer in (server.get(path, token), server.get(path, cookie=token)):
            assert answer.status == 200, f"{path}: {answer.text}"
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert answer.headers["Content-Security-Policy"] == f"{content_security_policy()}; frame-ancestors 'self'"
            assert answer.headers["X-Frame-Options"] is None, "it would forbid the frame or repeat the policy"
            assert answer.headers["Cache-Control"] == "no-store"
    assert "Nothing is published yet" in server.get("/fruits/overview", token).text


@pytest.mark.heavy
@pytest.mark.parametrize("path", ["docs", "redoc", "openapi.json", "", "overview/", "../ui/config"])
def test_there_is_nothing_else(server: Server, path: str) -> None:
    assert server.get(f"/fruits/{path}").status in (307, 401, 404)
    assert "swagger" not in server.get(f"/fruits/{path}").text.lower()


@pytest.mark.heavy
def test_what_a_run_says_is_shown_as_text(server: Server, settings: Settings) -> None:
    page = server.get(f"/fruits/dags/fruit_features/runs/{urllib.parse.quote(RUN_ID)}", server.token("viewer"))
    assert page.status == 200
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
def test_a_run_that_is_not_there(server: Server, path: str, said: str) -> None:
    answer = server.get(f"/fruits/{path}", server.token("viewer"))
    assert answer.status == 404
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

        assert not [route.path for route in plugin.make_app().routes if inspect.iscoroutinefunction(route.endpoint)]
