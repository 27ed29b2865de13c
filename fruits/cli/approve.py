"""``fruits approve``: a person approves a question that waits."""

import getpass
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document, fields, printable
from fruits.errors import FruitsError
from fruits.lake.approvals import Approval, approve, chosen, read_approvals
from fruits.run.decisions import after_approval
from fruits.run.state import run_key
from fruits.settings import Settings


def find(settings: Settings, digest: str | None, run: str | None, gates: Sequence[str]) -> Approval:
    """Find the question that the arguments name.

    Raises:
        FruitsError: when no question or several questions fit, or ``gates`` differ from the gates that failed.
    """
    stored = read_approvals(settings)
    if run is None:
        if gates:
            raise FruitsError("--gate: expected with --run, the run whose gates failed")
        return chosen(stored, digest)
    of_run = [
        question
        for question in stored
        if question.kind == "gates" and question.run in (run, run_key(run)) and not question.decided
    ]
    if not of_run:
        raise FruitsError(f"run {run}: none of its gates waits for an approval; `fruits status` lists what waits")
    question = of_run[-1]  # the earlier questions are about earlier attempts, whose findings no longer count
    failed = set(question.details["gates"])
    if set(gates) != failed:
        raise FruitsError(
            f"run {run}: the required gates that failed are {', '.join(sorted(failed))}; name each by --gate: an "
            "approval is for all of them"
        )
    return question


def preview(question: Approval) -> Iterator[str]:
    """The question and its details, line by line, for the person who decides."""
    yield printable(question.question)
    for reason in question.details.get("reasons", ()):
        yield printable(f"  because {reason}")
    for name, gate in question.details.get("gates", {}).items():
        yield printable(f"  {name}: measured {gate['value']}, threshold {gate['threshold']}: {gate['detail']}")
    labels = question.details.get("by_label", {})
    for label, number in labels.items():
        yield printable(f"  {number:,} of {label}")
    if question.details.get("labels", 0) > len(labels):
        yield f"  and of {question.details['labels'] - len(labels):,} more labels"
    keys = question.details.get("first_keys", ())
    for key in keys:
        yield printable(f"  {key}")
    if keys and question.number > len(keys):
        yield f"  ... and {question.number - len(keys):,} more"
    yield f"Digest {question.digest}, asked by run {question.run}"


def run(settings: Settings, question: Approval, *, by: str | None, why: str) -> dict[str, Any]:
    """Record the approval; also says what carries the approval out."""
    approval = approve(settings, question, by=by or getpass.getuser(), why=why, via="fruits approve")
    return {**approval.to_document(), "next": after_approval(approval)}


def render(done: Document) -> Iterable[RenderableType]:
    """The approval for a terminal."""
    yield fields(
        [
            ("approved", done["question"]),
            ("digest", done["digest"]),
            ("by", f"{done['approved_by']}, {done['approved_at'][:19]}Z"),
            ("why", done["why"]),
        ]
    )
    yield f"\n{done['next']}"
