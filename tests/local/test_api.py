"""A client of Airflow's API: what it repeats, and what it says. The server is a stand-in."""

import httpx
import pytest

from fruits.errors import FruitsError
from local import api as module
from local.api import AirflowAPI

pytestmark = pytest.mark.airflow


class Server:
    """Answers a login with a token, and anything else with what the test says, in turn."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            return httpx.Response(201, json={"access_token": "t"})
        assert request.headers["Authorization"] == "Bearer t"
        self.asked.append(f"{request.method} {request.url.path}")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={"status": answer}) if answer != 204 else httpx.Response(204)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._REPEATED, "sleep", lambda _: None)


def api(server: Server) -> AirflowAPI:
    """The API of a stand-in."""
    made = AirflowAPI("http://airflow", "admin", "password")
    made.__dict__["_client"] = httpx.Client(base_url=made.url, transport=httpx.MockTransport(server))
    return made


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize("late", [httpx.ReadTimeout("late"), httpx.ConnectError("refused"), 503])
def test_what_may_be_done_twice_is_asked_for_again(method: str, late: int | Exception) -> None:
    server = Server(late, late, 200)
    assert api(server).ask("dags/a", method) == {"status": 200}
    assert server.asked == [f"{method} /api/v2/dags/a"] * 3


@pytest.mark.parametrize("late", [httpx.ReadTimeout("late"), 503])
def test_a_run_is_not_started_twice(late: int | Exception) -> None:
    server = Server(late, 200)
    with pytest.raises(FruitsError, match="POST http://airflow/api/v2/dags/a/dagRuns: (no answer|503)"):
        api(server).ask("dags/a/dagRuns", "POST", {})
    assert len(server.asked) == 1


@pytest.mark.parametrize("late", [httpx.ReadTimeout("late"), 503])
def test_after_three_attempts_it_says_what_did_not_answer(late: int | Exception) -> None:
    server = Server(late, late, late, 200)
    with pytest.raises(FruitsError, match="GET http://airflow/api/v2/dags: (no answer|503)"):
        api(server).ask("dags")
    assert len(server.asked) == 3


def test_a_refusal_is_raised_at_once_with_airflows_words() -> None:
    server = Server(404)
    with pytest.raises(FruitsError, match='GET http://airflow/api/v2/dags/a: 404 {"status":404}'):
        api(server).ask("dags/a")
    assert len(server.asked) == 1


def test_an_answer_without_content_is_none() -> None:
    assert api(Server(204)).ask("dags/a", "DELETE") is None


@pytest.mark.parametrize("late", [httpx.ReadTimeout("late"), 503])
def test_what_an_earlier_try_deleted_is_deleted(late: int | Exception) -> None:
    assert api(Server(late, 404)).ask("dags/a", "DELETE") is None
    for method, *answers in (("DELETE", 404), ("PATCH", late, 404)):
        with pytest.raises(FruitsError, match=f"{method} http://airflow/api/v2/dags/a: 404"):
            api(Server(*answers)).ask("dags/a", method)
