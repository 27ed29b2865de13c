"""The embedded stack's Airflow with DAGs of a test, over HTTP."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from local import ui
from local.airflow import airflow_environment


@dataclass(frozen=True)
class Airflow:
    """A running Airflow."""

    data: Path
    url: str
    token: str

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        """The answer of Airflow's API."""
        return _answer(f"{self.url}/api/v2/{path}", method, body, {"Authorization": f"Bearer {self.token}"})

    def start(self, dag: str) -> str:
        """Start a run; returns its id."""
        return str(self.ask(f"dags/{dag}/dagRuns", "POST", {"logical_date": None})["dag_run_id"])

    def ended(self, dag: str, run: str) -> str | None:
        """The state of a run that has ended."""
        state = str(self.ask(f"dags/{dag}/dagRuns/{run}")["state"])
        return state if state in ("success", "failed") else None

    def finish(self, dag: str, state: str = "success") -> str:
        """Start a run and wait for its end in a state; returns its id."""
        run = self.start(dag)
        assert wait_for(lambda: self.ended(dag, run)) == state
        return run


@contextmanager
def running_airflow(data: Path, dags: Mapping[str, str], count: int, **environment: str) -> Iterator[Airflow]:
    """Inside, Airflow runs with these DAG files, by name, once it knows ``count`` DAGs; none of them is paused."""
    folder = data.parent / "dags"
    folder.mkdir()
    for name, text in dags.items():
        (folder / name).write_text(text)
    ours = {
        **environment,
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ui, "airflow_environment", lambda *given: airflow_environment(*given) | ours)
        ui.start(data)
        try:
            running = json.loads((data / "ui.json").read_text())
            login = {"username": running["user"], "password": ui._password(data, running["user"])}
            token = _answer(f"{running['url']}/auth/token", "POST", login)["access_token"]
            airflow = Airflow(data, running["url"], token)
            wait_for(lambda: airflow.ask("dags")["total_entries"] == count)
            yield airflow
        finally:
            ui.stop(data)


def wait_for(what: Callable[[], Any], seconds: float = 180) -> Any:
    """The first answer that is not empty."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
    return found


def _answer(url: str, method: str, body: object, headers: Mapping[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        url,
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
