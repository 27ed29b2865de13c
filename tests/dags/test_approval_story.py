"""A question reaches a person in Airflow, and the answer reaches the lake: a real Airflow, asked over HTTP."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fruits.lake.approvals import Approval, ask, digest_of, read_approvals
from fruits.settings import Settings
from local import ui
from local.airflow import airflow_environment

pytestmark = [pytest.mark.airflow, pytest.mark.heavy, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DECIDE = "taskInstances/decide/-1/hitlDetails"
QUESTION = Approval(
    "deletions",
    digest_of("deletions", ["a"]),
    "Remove 480 of 1,000 rows?",
    480,
    "run",
    datetime(2026, 11, 26, tzinfo=UTC),
    {"first_keys": ["Kiwi/{{ 7 * 7 }}```.jpg"], "by_label": {"Kiwi": 480}, "labels": 1, "reasons": ["a bound"]},
)
ASKING = """
from airflow.sdk import DAG, get_current_context, task
from fruits.airflow.approvals import ASKED, announce_questions

with DAG("asking", schedule=None):

    @task(outlets=[ASKED])
    def plan():
        from fruits.lake.approvals import read_approvals
        from fruits.settings import Settings

        announce_questions(read_approvals(Settings.load()), get_current_context())

    plan()
"""


@dataclass(frozen=True)
class Airflow:
    """A running Airflow, over HTTP."""

    url: str
    token: str

    def ask(self, path: str, method: str = "GET", body: object = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/v2/{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def runs(self, dag: str, state: str) -> list[Any]:
        return list(self.ask(f"dags/{dag}/dagRuns?state={state}")["dag_runs"])

    def waiting(self) -> str | None:
        """The run of fruit_approval whose question waits for an answer."""
        for run in self.runs("fruit_approval", "running"):
            tasks = self.ask(f"dags/fruit_approval/dagRuns/{run['dag_run_id']}/taskInstances")["task_instances"]
            if any((task["task_id"], task["state"]) == ("decide", "awaiting_input") for task in tasks):
                return str(run["dag_run_id"])
        return None


def wait_for(what: Callable[[], Any], seconds: float = 180) -> Any:
    """The first answer that is not empty."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of an embedded stack."""
    return tmp_path / "data"


@pytest.fixture
def airflow(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    """The embedded stack's Airflow with `fruit_approval`, and a DAG that asks as `plan` does."""
    dags = data.parent / "dags"
    dags.mkdir()
    (dags / "asking.py").write_text(ASKING)
    (dags / "fruit_approval.py").write_text((ROOT / "dags" / "fruit_approval.py").read_text())
    ours = {"AIRFLOW__CORE__DAGS_FOLDER": str(dags), "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False"}
    monkeypatch.setattr(ui, "airflow_environment", lambda *given: airflow_environment(*given) | ours)
    ui.start(data)
    try:
        running = json.loads((data / "ui.json").read_text())
        login = {"username": running["user"], "password": ui._password(data, running["user"])}
        request = urllib.request.Request(
            f"{running['url']}/auth/token", json.dumps(login).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            token = json.load(answer)["access_token"]
        started = Airflow(running["url"], token)
        wait_for(lambda: started.ask("dags")["total_entries"] == 2)
        yield started
    finally:
        ui.stop(data)


def test_a_question_starts_the_dag_and_the_answer_is_recorded(airflow: Airflow, data: Path) -> None:
    settings = Settings.load(lake=f"file://{data / 'lake'}", catalog_uri=f"sqlite:///{data}/catalog.db")
    ask(settings, QUESTION)
    airflow.ask("dags/asking/dagRuns", "POST", {"logical_date": None})
    run = wait_for(airflow.waiting)
    shown = airflow.ask(f"dags/fruit_approval/dagRuns/{run}/{DECIDE}")
    assert shown["subject"] == QUESTION.question
    assert "Kiwi/{{ 7 * 7 }}'''.jpg" in shown["body"], "a key is no template and ends no code block"
    assert read_approvals(settings) == [QUESTION]

    answer = {"chosen_options": ["Approve"], "params_input": {"why": "the farm moved"}}
    airflow.ask(f"dags/fruit_approval/dagRuns/{run}/{DECIDE}", "PATCH", answer)
    wait_for(lambda: airflow.runs("fruit_approval", "success"))
    (approval,) = read_approvals(settings)
    assert (approval.decided, approval.why, approval.via) == (True, "the farm moved", "Airflow")
    assert approval.approved_by not in (None, "unknown")
