"""The DAG fruit_approval: a person decides, and no lease or worker waits."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fruits.airflow.approvals import questions_announced
from fruits.errors import FruitsError, GateError
from fruits.lake.approvals import Approval, approve, ask, digest_of, read_approvals
from fruits.run.lease import current_lease
from fruits.run.state import run_key
from fruits.settings import Settings
from tests.runs import document, projected, write_documents

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


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests for which the DAG was started; each run exists once, as in Airflow."""
    from fruits.airflow import approvals

    digests: list[str] = []

    def start(question: Approval) -> bool:
        new = question.digest not in digests
        digests.extend([question.digest] * new)
        return new

    monkeypatch.setattr(approvals, "start_approval", start)
    return digests


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The alerts."""
    from fruits.airflow import approvals

    messages: list[Any] = []
    monkeypatch.setattr(approvals, "alert", messages.append)
    return messages


class TestAnnouncing:
    """What a task asks inside ``questions_announced``."""

    def test_a_question_starts_the_dag_and_sends_an_alert_once(
        self, settings: Settings, started: list[str], sent: list[Any]
    ) -> None:
        for _ in range(2):
            with questions_announced(settings, "run", {}):
                ask(settings, question(3, reasons=["a bound"]))
        assert started == [question(3).digest]
        (message,) = sent
        assert "deletions" in message.subject
        assert f"fruits approve {question(3).short}" in message.text

    def test_failed_gates_start_the_dag_and_leave_the_alert_to_their_run(
        self, settings: Settings, started: list[str], sent: list[Any]
    ) -> None:
        with pytest.raises(GateError), questions_announced(settings, "run", {}):
            ask(settings, replace(question(2), kind="gates"))
            raise GateError("required gates failed")
        assert (started, sent) == ([question(2).digest], [])

    def test_what_is_decided_and_what_another_run_asked_is_not_announced(
        self, settings: Settings, started: list[str], sent: list[Any]
    ) -> None:
        approve(settings, ask(settings, question(1)), by="ada", why="moved", via="fruits approve")
        ask(settings, replace(question(2), run="another"))
        with questions_announced(settings, "run", {}):
            pass
        assert (started, sent) == ([], [])

    def test_the_runs_note_gets_what_waits(self, settings: Settings, started: list[str]) -> None:
        write_documents(settings, document("pca", result=projected(undecided=(question(1),))), run_id="a run")
        kept: dict[str, Any] = {}
        context: Any = {"ti": SimpleNamespace(xcom_push=kept.__setitem__)}
        with questions_announced(settings, run_key("a run"), context):
            pass
        assert kept == {"waits": ["Remove 1?"]}

    def test_an_airflow_that_does_not_answer_fails_no_task(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(_: Approval) -> bool:
            raise OSError("no answer")

        monkeypatch.setattr("fruits.airflow.approvals.start_approval", refuse)
        with questions_announced(settings, "run", {}):
            ask(settings, question(1))
        assert "run run: its questions are not announced: no answer" in caplog.text


def test_a_question_that_was_answered_before_its_run_started_is_skipped(
    module: ModuleType, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(settings, question(1))
    gone = question(2).digest
    monkeypatch.setattr(module, "get_current_context", lambda: {"params": {"digest": gone}})
    assert module.question.function() == {}
