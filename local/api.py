"""Airflow's API, asked by a user who has logged in."""

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import httpx
from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_attempt, wait_fixed

from fruits.errors import FruitsError

_SECONDS = 90  # longer than a writer waits for SQLite (local/sqlite.py), so that the server gives up first
_REPEATABLE = frozenset({"GET", "PATCH", "DELETE"})  # done twice, they leave what they leave when done once
_REPEATED = Retrying(
    retry=retry_if_exception_type(httpx.TransportError) | retry_if_result(lambda answer: answer.is_server_error),
    stop=stop_after_attempt(3),
    wait=wait_fixed(2),
    retry_error_callback=lambda last: last.outcome and last.outcome.result(),
)


@dataclass(frozen=True)
class AirflowAPI:
    """The API of the Airflow at ``url``, as its user sees it."""

    url: str
    user: str
    password: str

    @classmethod
    def of(cls, data: Path) -> Self:
        """The API of the Airflow that `make ui` started on a data folder.

        Raises:
            FileNotFoundError: when there is none.
        """
        running = json.loads((data / "ui.json").read_text())
        return cls(running["url"], running["user"], password_of(data, running["user"]))

    @cached_property
    def token(self) -> str:
        """A token of the user's, from the first login."""
        return self.login()

    def login(self, path: str = "auth/token") -> str:
        """A new token of the user's.

        Raises:
            FruitsError: when user and password are refused.
        """
        login = {"username": self.user, "password": self.password}
        return str(_checked(self._send("POST", path, json=login)).json()["access_token"])

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The answer to a request for ``path``, such as ``dags/fruit_features``; None when it has no content.

        Raises:
            FruitsError: when the API refuses; has its words.
        """
        answer = _checked(self.request(f"api/v2/{path}", method, body))
        return answer.json() if answer.content else None

    def request(self, path: str, method: str = "GET", body: object = None) -> httpx.Response:
        """The response for any path of the server, whatever its status.

        A busy Airflow over SQLite answers late, or with a 5xx, because its writers take turns. So a request that may be
        done twice is sent up to three times. Where a repeated DELETE finds nothing, an earlier try has deleted it.

        Raises:
            FruitsError: when there is no answer.
        """
        return self._send(method, path, json=body, headers={"Authorization": f"Bearer {self.token}"})

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_SECONDS)

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        send = partial(self._client.request, method, path, **content)
        try:
            if method not in _REPEATABLE:
                return send()
            answer: httpx.Response = _REPEATED(send)
        except httpx.TransportError as error:
            raise FruitsError(
                f"{method} {self.url}/{path}: no answer ({error!r}); see the logs of Airflow's api-server"
            ) from error
        repeated = _REPEATED.statistics["attempt_number"] > 1
        if repeated and method == "DELETE" and answer.status_code == httpx.codes.NOT_FOUND:
            return httpx.Response(httpx.codes.NO_CONTENT, request=answer.request)  # an earlier try deleted it
        return answer


def password_file(data: Path) -> Path:
    """Where the Airflow of a data folder keeps its users' passwords."""
    return data / "airflow" / "simple_auth_manager_passwords.json.generated"


def password_of(data: Path, user: str) -> str:
    """The password of a user of the Airflow of a data folder."""
    path = password_file(data)
    return str(json.loads(path.read_text()).get(user, "?")) if path.is_file() else "see the log"


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    request = answer.request
    raise FruitsError(f"{request.method} {request.url}: {answer.status_code} {answer.text[:1000]}")
