"""The DAG fruit_approval: a person decides, and no lease or worker waits."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.execution_time import task_runner

from fruits.airflow.approvals import questions_announced, record_decision, start_approval
from fruits.airflow.errors import non_retryable
from fruits.analysis.gates import Gate
from fruits.errors import FruitsError, GateError, TransientError
from fruits.lake.approvals import Approval, approve, ask, digest_of, read_approvals
from fruits.run.decisions import gates_question
from fruits.run.documents import TaskName, run_store
from fruits.run.lease import current_lease
from fruits.run.request import RunRequest
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.stores import write_json
from tests.runs import RUN_ID, SNAPSHOTS, document, planned, projected, write_documents

pytestmark = pytest.mark.airflow

RUN = run_key(RUN_ID)
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def question(number: int, **details: Any) -> Approval:
    """A question about so many deletions."""
    return Approval("deletions", digest_of("deletions", [str(number)]), f"Remove {number}?", number, RUN, NOW, details)


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


def test_an_approval_of_a_set_that_grew_is_red_and_the_grown_set_is_asked_about(
    settings: Settings, started: list[str]
) -> None:
    ask(settings, question(2))
    approve(settings, ask(settings, question(3)), by="ada", why="moved", via="fruits approve")
    with pytest.raises(FruitsError, match=f"waiting for a decision: {question(2).short}: Remove 2"):
        record_decision(question(1).digest, decision())
    assert started == [question(2).digest]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The alerts."""
    from fruits.airflow import approvals

    messages: list[Any] = []
    monkeypatch.setattr(approvals, "alert", messages.append)
    return messages


@pytest.fixture
def kept() -> dict[str, Any]:
    """The XComs of the task that asks."""
    return {}


@pytest.fixture
def announced(settings: Settings, kept: dict[str, Any]) -> Callable[[TaskName], Any]:
    """``questions_announced`` around a task of the run `RUN`."""
    context: Any = {"ti": SimpleNamespace(xcom_push=kept.__setitem__)}
    return lambda task: questions_announced(settings, task, RUN, context)


def planned_with(settings: Settings, *undecided: Approval, dry_run: bool = False) -> None:
    """Write the document of a `plan` that left out what these questions are about."""
    request = RunRequest(prefix="", dry_run=dry_run)
    write_documents(settings, document("plan", result=planned(request=request, undecided=undecided)))


class TestAnnouncing:
    """What a task asks inside ``questions_announced``."""

    def test_a_question_starts_the_dag_and_sends_an_alert_once(
        self, settings: Settings, announced: Any, started: list[str], sent: list[Any]
    ) -> None:
        asked = question(3, reasons=["a bound"])
        for _ in range(2):
            with announced("plan"):
                planned_with(settings, asked)
        assert started == [asked.digest]
        (message,) = sent
        assert "deletions" in message.subject
        assert f"fruits approve {asked.short}" in message.text

    def test_failed_gates_start_the_dag_and_leave_the_alert_to_their_run(
        self, settings: Settings, announced: Any, started: list[str], sent: list[Any], kept: dict[str, Any]
    ) -> None:
        asked = gates_question(planned(), SNAPSHOTS, [Gate("probe", "required", False, 0.5, 0.8, "it is off")])
        with pytest.raises(AirflowFailException), announced("validate"), non_retryable():
            ask(settings, asked)
            raise GateError(f"required gates failed; type `{asked.command}`")
        assert (started, sent, kept) == ([asked.digest], [], {})

    def test_a_failure_whose_alert_does_not_name_the_question_leaves_the_alert_to_the_question(
        self, settings: Settings, announced: Any, started: list[str], sent: list[Any], kept: dict[str, Any]
    ) -> None:
        with pytest.raises(AirflowFailException), announced("pca"), non_retryable():
            ask(settings, question(1))
            raise FruitsError("the disk is full")
        assert (len(sent), kept) == (1, {"waits": ["Remove 1?"]})

    def test_a_task_that_asks_and_succeeds_at_its_retry_sends_one_alert(
        self, settings: Settings, announced: Any, started: list[str], sent: list[Any]
    ) -> None:
        with pytest.raises(TransientError), announced("pca"), non_retryable():
            ask(settings, question(1))
            raise TransientError("S3 does not answer")
        with announced("pca"), non_retryable():
            write_documents(settings, document("pca", result=projected(undecided=(ask(settings, question(1)),))))
        assert (started, len(sent)) == ([question(1).digest], 1)

    def test_what_is_decided_and_what_another_run_asked_is_not_announced(
        self, settings: Settings, announced: Any, started: list[str], sent: list[Any], kept: dict[str, Any]
    ) -> None:
        approve(settings, ask(settings, question(1)), by="ada", why="moved", via="fruits approve")
        with pytest.raises(OSError, match="gone"), announced("plan"):
            raise OSError("gone")
        with announced("plan"):
            planned_with(settings, replace(question(2), run="another"))
        assert (started, sent, kept) == ([], [], {"waits": ["Remove 2?"]})

    def test_the_runs_note_gets_what_its_task_left_out_and_not_what_an_earlier_plan_did(
        self, settings: Settings, announced: Any, started: list[str], kept: dict[str, Any]
    ) -> None:
        write_documents(settings, document("pca", result=projected(undecided=(question(1),))))
        with announced("plan"):
            planned_with(settings)
        assert kept == {}
        with announced("pca"):
            pass
        assert kept == {"waits": ["Remove 1?"]}

    def test_a_dry_run_announces_nothing(
        self, settings: Settings, announced: Any, started: list[str], sent: list[Any], kept: dict[str, Any]
    ) -> None:
        with announced("plan"):
            planned_with(settings, question(1), dry_run=True)
        assert (started, sent, kept) == ([], [], {})

    @pytest.mark.parametrize("task", ["plan", "featurize", "pca", "validate", "maintain"])
    def test_a_task_without_a_question_reads_no_more_than_its_document(
        self, settings: Settings, announced: Any, monkeypatch: pytest.MonkeyPatch, task: TaskName
    ) -> None:
        read: list[str] = []
        monkeypatch.setattr("fruits.lake.approvals.read_approvals", lambda _: read.append("approvals"))
        monkeypatch.setattr("fruits.run.documents.read_document", lambda _, __, name: read.append(name))
        with announced(task):
            pass
        assert read == [task] * (task in ("plan", "pca"))

    def test_without_the_dag_each_question_still_sends_its_alert(
        self,
        settings: Settings,
        announced: Any,
        sent: list[Any],
        kept: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(_: Approval) -> bool:
            raise OSError("no such DAG")

        monkeypatch.setattr("fruits.airflow.approvals.start_approval", refuse)
        with announced("plan"):
            planned_with(settings, question(1), question(2))
        assert kept == {"waits": ["Remove 1?", "Remove 2?"]}
        assert [f"fruits approve {question(number).short}" in sent[number - 1].text for number in (1, 2)] == [True] * 2
        assert all("did not start fruit_approval (no such DAG)" in message.text for message in sent)

    def test_questions_that_cannot_be_read_fail_no_task(
        self, settings: Settings, announced: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with announced("plan"):
            write_json(run_store(settings, RUN), "plan.json", {})
        assert f"run {RUN}: its questions are not announced: run document" in caplog.text


def test_a_grown_question_has_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that grows keeps the time at which the set was first asked about."""
    requests: list[Any] = []
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(send=requests.append), raising=False)
    for number in (1, 2, 2):
        start_approval(question(number))
    assert len({request.run_id for request in requests}) == 2


def test_a_question_that_was_answered_before_its_run_started_is_skipped(
    module: ModuleType, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(settings, question(1))
    gone = question(2).digest
    monkeypatch.setattr(module, "get_current_context", lambda: {"params": {"digest": gone}})
    assert module.question.function() == {}
