"""The DAG fruit_approval: a person decides, and no lease or worker waits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fruits.errors import FruitsError
from fruits.lake.approvals import Approval, ask, digest_of, read_approvals
from fruits.run.lease import current_lease
from fruits.settings import Settings

pytestmark = pytest.mark.airflow

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def question(number: int, **details: Any) -> Approval:
    """A question about so many deletions."""
    return Approval(
        "deletions", digest_of("deletions", [str(number)]), f"Remove {number}?", number, "run", NOW, details
    )


def decision(option: str = "Approve", why: str = "moved", name: str | None = "ada") -> dict[str, Any]:
    """What a person's answer leaves in XCom."""
    user = {"id": "1", "name": name} if name else None
    return {"chosen_options": [option], "params_input": {"why": why}, "responded_by_user": user}


@pytest.fixture
def settings(module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings of a lake, which the tasks find; the DAG's param is empty."""
    monkeypatch.setenv("FRUITS_LAKE", f"file://{tmp_path}/lake")
    monkeypatch.setenv("FRUITS_CATALOG_URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setattr(module, "get_current_context", lambda: {"params": {"digest": None}})
    return Settings.load()


def test_it_asks_then_waits_then_records(module: ModuleType) -> None:
    assert [task.task_id for task in module.dag.topological_sort()] == ["question", "decide", "record"]
    assert module.dag.get_task("decide").options == ["Approve", "Reject"]
    assert list(module.dag.get_task("decide").serialized_params) == ["why"]  # the form under Required Actions
    assert [asset.name for asset in module.dag.timetable.asset_condition.objects] == ["fruits_questions"]


def test_nobody_who_answers_means_no(module: ModuleType) -> None:
    decide = module.dag.get_task("decide")
    assert (decide.defaults, decide.response_timeout) == (["Reject"], timedelta(days=7))


def test_no_lease_is_held_while_a_person_decides(module: ModuleType, settings: Settings) -> None:
    assert "wait_for_lease" not in module.dag.task_ids
    ask(settings, question(1))
    module.question.function()
    assert current_lease(settings) is None


def test_the_newest_question_is_shown_with_keys_that_cannot_act(module: ModuleType, settings: Settings) -> None:
    ask(settings, question(1))
    key = "Kiwi/```![x](http://example.com).jpg"
    newer = question(2, first_keys=[key], by_label={"Kiwi": 2}, reasons=["a bound"])
    ask(settings, replace(newer, asked_at=NOW + timedelta(hours=1)))
    asked = module.question.function()
    assert (asked["digest"], asked["subject"]) == (question(2).digest, "Remove 2?")
    text = asked["body"].removeprefix("```text\n").removesuffix("\n```")
    assert "`" not in text
    assert "Kiwi/'''![x](http://example.com).jpg" in text
    assert "a bound" in text


def test_without_a_question_the_rest_is_skipped(module: ModuleType, settings: Settings) -> None:
    assert module.question.function() == {}


def test_an_approval_says_who_and_why(module: ModuleType, settings: Settings) -> None:
    asked = ask(settings, question(1))
    module.record.function({"digest": asked.digest}, decision())
    (approval,) = read_approvals(settings)
    assert (approval.approved_by, approval.why, approval.via) == ("ada", "moved", "Airflow")


@pytest.mark.parametrize("answer", [decision(why="", name=None), {"chosen_options": ["Approve"]}])
def test_an_approval_without_name_or_reason_says_so(
    module: ModuleType, settings: Settings, answer: dict[str, Any]
) -> None:
    asked = ask(settings, question(1))
    module.record.function({"digest": asked.digest}, answer)
    (approval,) = read_approvals(settings)
    assert (approval.approved_by, approval.why) == ("unknown", "no reason given in Airflow's UI")


def test_a_rejection_leaves_the_question(module: ModuleType, settings: Settings) -> None:
    asked = ask(settings, question(1))
    assert module.record.function({"digest": asked.digest}, decision("Reject")) == {}
    assert read_approvals(settings) == [asked]


def test_a_question_that_a_run_took_back_is_not_approved(module: ModuleType, settings: Settings) -> None:
    from fruits.airflow.approvals import record_decision

    with pytest.raises(FruitsError, match="waiting for a decision: nothing"):
        record_decision(question(1).digest, decision())


def test_a_new_question_starts_the_dag_and_sends_an_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    from fruits.airflow import approvals

    sent: list[Any] = []
    events: list[Any] = []
    monkeypatch.setattr(approvals, "alert", sent.append)
    outlet = SimpleNamespace(add=lambda asset, extra: events.append((asset.name, extra)))
    context: Any = {"outlet_events": {approvals.ASKED: outlet}}
    approvals.announce_questions([question(3, reasons=["a bound"])], context)
    assert events == [("fruits_questions", {"digest": question(3).digest})]
    assert "deletions" in sent[0].subject
    assert f"fruits approve {question(3).short}" in sent[0].text
