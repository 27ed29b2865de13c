"""The questions that runs ask a person: many deletions, a large rebuild or refit, a switch of backbone, failed gates.

Values in, values out; the tasks `plan`, `pca` and `validate` read the approvals and write the questions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from fruits.analysis.gates import Gate
from fruits.analysis.pca import components_asked
from fruits.errors import FruitsError
from fruits.lake.approvals import Approval, Kind, digest_of
from fruits.lake.branches import Snapshots
from fruits.photos.entry import Action
from fruits.run.deletions import Leaving, Withheld
from fruits.run.reconciliation import Plan
from fruits.run.request import RunRequest
from fruits.run.state import PlannedRun
from fruits.settings import Settings

_MOST_LABELS = 50
_SHOWN = 3


@dataclass(frozen=True)
class Decisions:
    """What of a plan waits for an approval, and the approvals that it uses."""

    undecided: tuple[Approval, ...] = ()
    approvals: tuple[Approval, ...] = ()

    def waits(self, kind: Kind) -> bool:
        """Whether something of a kind waits."""
        return any(approval.kind == kind for approval in self.undecided)

    def uses(self, kind: Kind) -> bool:
        """Whether an approval of a kind is used."""
        return any(approval.kind == kind for approval in self.approvals)

    def __add__(self, other: "Decisions") -> "Decisions":
        """Both together."""
        return Decisions(self.undecided + other.undecided, self.approvals + other.approvals)


def decide(
    questions: Iterable[Approval], stored: Sequence[Approval], allowed: Callable[[Approval], bool] = lambda _: False
) -> Decisions:
    """Sort questions into undecided and approved ones, by what is stored; ``allowed`` approves by the run's params."""
    by_digest = {(one.kind, one.digest): one for one in stored}
    known = [by_digest.get((question.kind, question.digest), question) for question in questions]
    answered = [
        one.approved(f"the params of run {question.run}", "allow_deletes", "allow_deletes")
        if not one.decided and allowed(one)
        else one
        for question, one in zip(questions, known, strict=True)
    ]
    return Decisions(
        undecided=tuple(one for one in answered if not one.decided),
        approvals=tuple(one for one in answered if one.decided),
    )


def allowed_by(request: RunRequest, settings: Settings, *, nothing_listed: bool) -> Callable[[Approval], bool]:
    """Does the param ``allow_deletes`` approve a question?

    A digest approves its question. True approves deletions and a switch that loses rows, but no empty listing and no
    switch that waits for its size.
    """
    allow = request.allow_deletes
    if isinstance(allow, str):
        return lambda question: question.digest.startswith(allow)
    return lambda question: (
        allow and not nothing_listed and (question.kind == "deletions" or question.number <= settings.approval_rows)
    )


def named_by_questions(stored: Iterable[Approval]) -> list[str]:
    """The first keys of the deletions that wait for a decision since an earlier plan."""
    waiting = (one for one in stored if one.kind == "deletions" and not one.decided)
    return [key for one in waiting for key in one.details.get("first_keys", ())]


def deletions_question(withheld: Withheld, leaving: Leaving, rows: int, place: str, run: str) -> Approval:
    """Shall these rows leave?"""
    return _question(
        "deletions",
        leaving.digest,
        f"Remove {leaving.number:,} of {rows:,} rows, because their photos are gone from {place}?",
        leaving.number,
        run,
        _details(withheld, leaving),
    )


def switch_question(
    readers: str, model_id: str, rows: int, withheld: Withheld, lost: Leaving | None, run: str
) -> Approval:
    """Shall readers get another backbone? ``lost`` are rows that they lose by that, when these are many."""
    losing = f" {lost.number:,} rows of photos that are gone leave." if lost else ""
    return _question(
        "backbone",
        digest_of("backbone", (readers, model_id, lost.digest if lost else digest_of("deletions", ()))),
        f"Switch readers from backbone {readers} to {model_id}, with {rows:,} rows?{losing}",
        rows,
        run,
        _details(withheld, lost) if lost else {},
    )


def rebuild_question(request: RunRequest, model_id: str, plan: Plan, run: str) -> Approval:
    """Shall every photo be featurized again?"""
    number = plan.counts[Action.UPDATE]
    return _question(
        "rebuild",
        digest_of("rebuild", (model_id, request.prefix, *request.keys)),
        f"Featurize {number:,} photos again under backbone {model_id}, and replace their rows?",
        number,
        run,
    )


def refit_question(
    request: RunRequest, model_id: str, rows: int, settings: Settings, run: str, *reasons: str
) -> Approval:
    """Shall the PCA be fitted again, and every row be projected again? The same question for any reason."""
    asked = components_asked(request.n_components, settings.max_components)
    return _question(
        "refit",
        digest_of("refit", (model_id, asked)),
        f"Fit the PCA of backbone {model_id} again (components: {asked}), and replace {rows:,} embeddings?",
        rows,
        run,
        {"reasons": list(reasons)} if reasons else {},
    )


def due_refit_question(planned: PlannedRun, reason: str | None, settings: Settings) -> Approval | None:
    """The question whether a refit that `pca` finds due is done; None when that needs no approval.

    A refit that the run was started for, or that a person approved, was decided by the plan. Under another backbone
    than the readers' no embedding that readers have is replaced.
    """
    decided = planned.request.refit != "auto" or any(one.kind == "refit" for one in planned.approvals)
    of_readers = planned.base.publication.model_id == planned.model_id
    if reason is None or decided or not of_readers or planned.known_rows <= settings.approval_rows:
        return None
    return refit_question(planned.request, planned.model_id, planned.known_rows, settings, planned.key, reason)


def gates_question(planned: PlannedRun, snapshots: Snapshots, broken: Sequence[Gate]) -> Approval:
    """Shall this run be published although required gates failed? Covers exactly what was measured."""
    measured = [f"{gate.name} {_rounded(gate.value)} {_rounded(gate.threshold)}" for gate in broken]
    at = [f"{name} {snapshot}" for name, snapshot in sorted(snapshots.items())]
    return _question(
        "gates",
        digest_of("gates", (planned.key, planned.planned_at.isoformat(), *at, *measured)),
        f"Publish run {planned.key} although required gates failed: {', '.join(gate.name for gate in broken)}?",
        len(broken),
        planned.key,
        {
            "gates": {
                gate.name: {"value": gate.value, "threshold": gate.threshold, "detail": gate.detail} for gate in broken
            }
        },
    )


def _rounded(value: float | None) -> str:
    """A measured value for a digest: the last bits of a sum depend on the order of the rows."""
    return "none" if value is None else f"{value:.9g}"


def continued(question: Approval, stored: Iterable[Approval]) -> Approval:
    """A question about deletions that goes on from one that waits already; it is announced again only when it doubled.

    A bucket that loses a photo each hour would otherwise send an alert each hour.
    """
    waiting = [one for one in stored if one.kind == "deletions" and not one.decided]
    if question.kind != "deletions" or not waiting:
        return question
    earlier = waiting[-1]
    announced = earlier.details.get("announced", earlier.number)
    if question.number >= 2 * announced:
        return question
    details = {**question.details, "announced": announced}
    return replace(question, run=earlier.run, asked_at=earlier.asked_at, details=details)


def check_requested(request: RunRequest, undecided: Iterable[Approval]) -> None:
    """See that nothing that the run was started for waits for an approval.

    Raises:
        FruitsError: says how to approve a rebuild or a refit that was asked for.
    """
    for one in undecided:
        if one.kind == "rebuild" or (one.kind == "refit" and request.refit == "always"):
            raise FruitsError(
                f"a {one.kind} of {one.number:,} rows is more than FRUITS_APPROVAL_ROWS; approve by `{one.command}`, "
                "then clear the run from `wait_for_lease`"
            )


def described(question: Approval) -> str:
    """A question in a few sentences, for logs, alerts and pages: what waits, why, an excerpt, what to type."""
    details = question.details
    gates = details.get("gates", {})
    reasons = "; ".join((*details.get("reasons", ()), *(f"{name}: {gate['detail']}" for name, gate in gates.items())))
    labels = ", ".join(f"{label} {number:,}" for label, number in list(details.get("by_label", {}).items())[:_SHOWN])
    keys = ", ".join(map(repr, details.get("first_keys", ())[:_SHOWN]))
    return " ".join(
        (
            question.question,
            f"This waits for a person's approval{f', because {reasons}' if reasons else ''}.",
            *([f"By label: {labels}{' ...' * (len(details['by_label']) > _SHOWN)}."] if labels else []),
            *([f"First keys: {keys}{' ...' * (question.number > _SHOWN)}."] if keys else []),
            f"To approve: `{question.command}`, or Airflow's DAG fruit_approval.",
        )
    )


def after_approval(approval: Approval) -> str:
    """What carries an approval out."""
    match approval.kind:
        case "gates":
            return f"Clear the task `validate` of run {approval.run}, downstream included."
        case "rebuild":
            return f"Clear run {approval.run} from `wait_for_lease`, or start a run with the same params."
        case "refit":
            return (
                "The next run that fits the same components and leaves no photo over does it: a sweep, when these are "
                "FRUITS_N_COMPONENTS, or the run that failed because it was started for the refit, once you clear it "
                "from `wait_for_lease`."
            )
        case "backbone":
            return (
                "The next run under the same backbone does it: a sweep, when that is FRUITS_BACKBONE and new to "
                "readers. Otherwise start a run with the same param."
            )
        case "deletions":
            return "The next run that finds the same photos gone does it: the next sweep, or start a run now."


def _details(withheld: Withheld, leaving: Leaving) -> dict[str, Any]:
    return {
        "reasons": list(withheld.reasons),
        "first_keys": list(leaving.first_keys),
        "by_label": dict(list(leaving.by_label.items())[:_MOST_LABELS]),
        "labels": len(leaving.by_label),
    }


def _question(
    kind: Kind, digest: str, question: str, number: int, run: str, details: Mapping[str, Any] | None = None
) -> Approval:
    return Approval(kind, digest, question, number, run, datetime.now(UTC), details or {})
