"""Questions that wait for a person's approval, in Airflow: they are announced, shown and answered here."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias, Context

from fruits.airflow.alerts import Message, alert

if TYPE_CHECKING:
    from fruits.lake.approvals import Approval

QUESTIONS = Asset(name="fruits_questions", uri="fruits://lake/approvals")
"""Its events start the DAG `fruit_approval`."""

ASKED = AssetAlias("fruits_asked")
"""The outlet of `plan`: with an alias, a plan that asks nothing makes no event."""

_APPROVE = "Approve"


def announce_questions(questions: "Iterable[Approval]", context: Context) -> None:
    """Send an alert for each new question, and start the DAG `fruit_approval`."""
    from fruits.run.decisions import described

    for question in questions:
        context["outlet_events"][ASKED].add(QUESTIONS, extra={"digest": question.digest})
        alert(Message(f"Fruits waits for an approval: {question.kind} {question.short}", described(question)))


def find_question(digest: str | None) -> dict[str, str]:
    """Digest, subject and body of the question to decide; empty when nothing waits.

    Raises:
        FruitsError: when no undecided question has the digest.
    """
    from fruits.lake.approvals import chosen, read_approvals
    from fruits.run.decisions import described
    from fruits.settings import Settings

    undecided = [one for one in read_approvals(Settings.load()) if not one.decided]
    if not digest and not undecided:
        return {}
    found = chosen(undecided, digest) if digest else undecided[-1]
    # A code block, because object keys may hold anything that Markdown acts on.
    body = described(found).replace("`", "'").replace(". ", ".\n")
    return {"digest": found.digest, "subject": found.question, "body": f"```text\n{body}\n```"}


def record_decision(digest: str, decision: Mapping[str, Any]) -> dict[str, Any]:
    """Record the answer of `decide`; returns the approval as JSON types, empty when the answer is not to approve.

    Raises:
        FruitsError: when the question is no longer there: a run took it back meanwhile.
    """
    from fruits.lake.approvals import approve, chosen, read_approvals
    from fruits.settings import Settings

    if decision["chosen_options"] != [_APPROVE]:
        return {}
    settings = Settings.load()
    question = chosen(read_approvals(settings), digest)
    user = decision.get("responded_by_user") or {}
    why = str((decision.get("params_input") or {}).get("why") or "").strip() or "no reason given in Airflow's UI"
    by = str(user.get("name") or user.get("id") or "unknown")
    return approve(settings, question, by=by, why=why, via="Airflow").to_document()
