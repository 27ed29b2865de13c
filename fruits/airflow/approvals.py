"""Questions that wait for a person's approval, in Airflow: they are announced, shown and answered here."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from fruits.airflow.alerts import Message, alert
from fruits.errors import FruitsError

if TYPE_CHECKING:
    from fruits.lake.approvals import Approval
    from fruits.run.documents import TaskName
    from fruits.settings import Settings

log = logging.getLogger("fruits")

_DAG_ID = "fruit_approval"
_APPROVE = "Approve"
_WHOLE = 64  # characters of a digest


@contextmanager
def questions_announced(settings: "Settings", task: "TaskName", run: str, context: Context) -> Iterator[None]:
    """Announce what a task asks inside, also when the task fails, as failed gates make it; ``run`` is the key.

    Each question starts one run of `fruit_approval` and sends an alert, unless the alert of the task's failure names
    the question. A question that cannot be announced fails no task: `fruits status` names it.
    """
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        try:
            questions = _asked(settings, task, run, failed=failure is not None)
            _announce(run, questions, context, str(failure) if isinstance(failure, AirflowFailException) else "")
        except Exception as error:  # noqa: BLE001 -- the task's work is done, or its own error is to be seen
            log.error("run %s: its questions are not announced: %s", run, error)


def _asked(settings: "Settings", task: "TaskName", run: str, *, failed: bool) -> Sequence["Approval"]:
    """The questions of a task's attempt: in the task's document, or else stored by an attempt that failed."""
    from fruits.lake.approvals import read_approvals
    from fruits.run.documents import read_document

    if failed and task in ("plan", "pca", "validate"):
        return [question for question in read_approvals(settings) if question.run == run and not question.decided]
    if failed or task not in ("plan", "pca"):  # `validate` fails when it asks
        return ()
    document = read_document(settings, run, task)
    result = document.done if document else None
    if result is None or (task == "plan" and result.request.dry_run):  # a dry run stores no question
        return ()
    undecided: Sequence[Approval] = result.undecided
    return undecided


def _announce(run: str, questions: Sequence["Approval"], context: Context, failure_alert: str) -> None:
    """Tell of the questions; ``failure_alert`` is what the alert of the task's failure says, if there is one."""
    from fruits.run.decisions import described

    untold = [question for question in questions if question.command not in failure_alert]
    if untold:
        context["ti"].xcom_push("waits", [question.question for question in untold])
    for question in questions:
        if question.run != run:  # the run that asked first announced it
            continue
        text = described(question)
        try:
            new = start_approval(question)
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with that DAG, the question is still to be told
            log.error("run %s: Airflow did not start %s for %s: %s", run, _DAG_ID, question.short, error)
            new, text = True, f"{text} Airflow did not start {_DAG_ID} ({error}); the command works without that DAG."
        if new and question in untold:
            alert(Message(f"Fruits waits for an approval: {question.kind} {question.short}", text))


def start_approval(question: "Approval") -> bool:
    """Start the run of `fruit_approval` for a question, from inside a task; false when that run exists already.

    Not by an asset's event: Airflow (3.3) drops the events of a task that fails, and gates fail theirs.
    """
    from airflow.sdk.execution_time import task_runner  # its connection to Airflow exists only while a task works
    from airflow.sdk.execution_time.comms import OKResponse, TriggerDagRun

    run_id = f"{question.kind}__{question.asked_at:%Y-%m-%dT%H:%M:%S.%f}__{question.short}"
    request = TriggerDagRun(dag_id=_DAG_ID, run_id=run_id, conf={"digest": question.digest})
    return isinstance(task_runner.SUPERVISOR_COMMS.send(request), OKResponse)


def find_question(digest: str | None) -> dict[str, str]:
    """Digest, subject and body of the question to decide; empty when nothing waits.

    A whole digest, as a run that asked gives it, may be of a question that was answered or taken back meanwhile.

    Raises:
        FruitsError: when no undecided question begins with the digest.
    """
    from fruits.lake.approvals import chosen, read_approvals
    from fruits.run.decisions import described
    from fruits.settings import Settings

    undecided = [one for one in read_approvals(Settings.load()) if not one.decided]
    if not undecided or (digest and len(digest) == _WHOLE and digest not in {one.digest for one in undecided}):
        return {}
    found = chosen(undecided, digest) if digest else undecided[-1]
    # A code block, because object keys may hold anything that Markdown acts on.
    body = described(found).replace("`", "'").replace(". ", ".\n")
    return {"digest": found.digest, "subject": found.question, "body": f"```text\n{body}\n```"}


def record_decision(digest: str, decision: Mapping[str, Any]) -> dict[str, Any]:
    """Record the answer of `decide`; returns the approval as JSON types, empty when the answer is not to approve.

    Raises:
        FruitsError: when the question is no longer there: a run took it back meanwhile, or asks about more deletions.
            Each question that waits instead has a run of `fruit_approval` then.
    """
    from fruits.lake.approvals import approve, chosen, read_approvals
    from fruits.run.decisions import after_approval
    from fruits.settings import Settings

    if decision["chosen_options"] != [_APPROVE]:
        return {}
    settings = Settings.load()
    known = read_approvals(settings)
    try:
        question = chosen(known, digest)
    except FruitsError:
        for one in known:
            if not one.decided:
                start_approval(one)
        raise
    user = decision.get("responded_by_user") or {}
    why = str((decision.get("params_input") or {}).get("why") or "").strip() or "no reason given in Airflow's UI"
    by = str(user.get("name") or user.get("id") or "unknown")
    log.info("%s Approved. %s", question.question, after_approval(question))
    return approve(settings, question, by=by, why=why, via="Airflow").to_document()
