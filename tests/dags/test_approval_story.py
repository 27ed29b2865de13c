"""A question reaches a person in Airflow, and the answer reaches the lake: a real Airflow, asked over HTTP."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fruits.lake.approvals import Approval, ask, digest_of, read_approvals
from fruits.settings import Settings
from tests.running_airflow import Airflow, running_airflow
from tests.running_ui import wait_for

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
from fruits.airflow.approvals import questions_announced

with DAG("asking", schedule=None):

    @task
    def validate():
        from fruits.settings import Settings

        with questions_announced(Settings.load(), "validate", "run", get_current_context()):
            raise RuntimeError("required gates failed")

    validate()
"""


def waiting(airflow: Airflow) -> str | None:
    """The run of fruit_approval whose question waits for an answer."""
    for run in airflow.api.ask("dags/fruit_approval/dagRuns?state=running")["dag_runs"]:
        tasks = airflow.api.ask(f"dags/fruit_approval/dagRuns/{run['dag_run_id']}/taskInstances")["task_instances"]
        if any((task["task_id"], task["state"]) == ("decide", "awaiting_input") for task in tasks):
            return str(run["dag_run_id"])
    return None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of an embedded stack."""
    return tmp_path / "data"


@pytest.fixture
def airflow(data: Path) -> Iterator[Airflow]:
    """The embedded stack's Airflow with `fruit_approval`, and a DAG that asks and fails as `validate` does."""
    approval = (ROOT / "dags" / "fruit_approval.py").read_text()
    with running_airflow(data, {"asking.py": ASKING, "fruit_approval.py": approval}, count=2) as running:
        yield running


def test_a_question_starts_the_dag_and_the_answer_is_recorded(airflow: Airflow, data: Path) -> None:
    settings = Settings.load(lake=f"file://{data / 'lake'}", catalog_uri=f"sqlite:///{data}/catalog.db")
    ask(settings, QUESTION)
    assert [airflow.finish("asking", "failed") for _ in range(2)], "clearing `validate` asks the same"
    run = wait_for(lambda: waiting(airflow))
    assert airflow.api.ask("dags/fruit_approval/dagRuns")["total_entries"] == 1
    shown = airflow.api.ask(f"dags/fruit_approval/dagRuns/{run}/{DECIDE}")
    assert shown["subject"] == QUESTION.question
    assert "Kiwi/{{ 7 * 7 }}'''.jpg" in shown["body"], "a key is no template and ends no code block"
    assert read_approvals(settings) == [QUESTION]

    # Airflow takes a task that is answered before its scheduler has seen it end for one that was killed from outside.
    log = data / "logs" / "scheduler.log"
    wait_for(lambda: re.search(r"TaskInstance Finished: .*task_id=decide, .*state=awaiting_input", log.read_text()))
    answer = {"chosen_options": ["Approve"], "params_input": {"why": "the farm moved"}}
    airflow.api.ask(f"dags/fruit_approval/dagRuns/{run}/{DECIDE}", "PATCH", answer)
    wait_for(lambda: airflow.api.ask("dags/fruit_approval/dagRuns?state=success")["dag_runs"])
    (approval,) = read_approvals(settings)
    assert (approval.decided, approval.why, approval.via) == (True, "the farm moved", "Airflow")
    assert approval.approved_by not in (None, "unknown")
