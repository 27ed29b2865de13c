"""The questions that runs ask a person: many deletions, a large rebuild or refit, a switch of backbone, failed gates.

Pure functions on values. The tasks `plan`, `pca` and `validate` read the stored approvals and write the questions.
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
    """The questions of a run that wait for a person's approval, and the approvals that the run uses."""

    undecided: tuple[Approval, ...] = ()
    approvals: tuple[Approval, ...] = ()

    def waits(self, kind: Kind) -> bool:
        """Whether a question of this kind waits."""
        return any(question.kind == kind for question in self.undecided)

    def uses(self, kind: Kind) -> bool:
        """Whether the run uses an approval of this kind."""
        return any(approval.kind == kind for approval in self.approvals)

    def __add__(self, other: "Decisions") -> "Decisions":
        """The decisions of both."""
        return Decisions(self.undecided + other.undecided, self.approvals + other.approvals)


def decide(
    questions: Iterable[Approval], stored: Sequence[Approval], allowed: Callable[[Approval], bool] = lambda _: False
) -> Decisions:
    """Sort questions into undecided and approved questions.

    A question with the digest of a stored question takes the stored answer. ``allowed`` approves by the run's params.
    """
    by_digest = {(approval.kind, approval.digest): approval for approval in stored}
    answers = []
    for question in questions:
        answer = by_digest.get((question.kind, question.digest), question)
        if not answer.decided and allowed(answer):
            answer = answer.approved(f"the params of run {question.run}", "allow_deletes", "allow_deletes")
        answers.append(answer)
    return Decisions(
        undecided=tuple(answer for answer in answers if not answer.decided),
        approvals=tuple(answer for answer in answers if answer.decided),
    )


def allowed_by(request: RunRequest, settings: Settings, *, nothing_listed: bool) -> Callable[[Approval], bool]:
    """Return a predicate: does the param ``allow_deletes`` approve a question?

    A digest approves its question. True approves deletions and a switch that loses rows. True approves neither
    deletions after an empty listing, nor a switch of more than ``FRUITS_APPROVAL_ROWS`` rows.
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
    """Ask whether every photo shall be featurized again."""
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
    """Ask whether the PCA shall be fitted and every row projected again. ``reasons`` do not change the digest."""
    components = components_asked(request.n_components, settings.max_components)
    return _question(
        "refit",
        digest_of("refit", (model_id, components)),
        f"Fit the PCA of backbone {model_id} again (components: {components}), and replace {rows:,} embeddings?",
        rows,
        run,
        {"reasons": list(reasons)} if reasons else {},
    )


def due_refit_question(planned: PlannedRun, reason: str | None, settings: Settings) -> Approval | None:
    """Ask whether a refit that `pca` finds due shall be done; None if the refit needs no approval.

    The plan has decided about a refit that the run requests or that a person has approved. A run under another backbone
    than the readers' replaces no embedding that readers have.
    """
    decided = planned.request.refit != "auto" or any(approval.kind == "refit" for approval in planned.approvals)
    of_readers = planned.base.publication.model_id == planned.model_id
    if reason is None or decided or not of_readers or planned.known_rows <= settings.approval_rows:
        return None
    return refit_question(planned.request, planned.model_id, planned.known_rows, settings, planned.key, reason)


def gates_question(planned: PlannedRun, snapshots: Snapshots, broken: Sequence[Gate]) -> Approval:
    """Ask whether this run shall be published although required gates failed.

    The digest covers exactly the measured values and the snapshots that were measured.
    """
    values = [f"{gate.name} {_rounded(gate.value)} {_rounded(gate.threshold)}" for gate in broken]
    measured = [f"{name} {snapshot}" for name, snapshot in sorted(snapshots.items())]
    return _question(
        "gates",
        digest_of("gates", (planned.key, planned.planned_at.isoformat(), *measured, *values)),
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
    """Round a measured value for a digest, because the last bits of a sum depend on the order of the rows."""
    return "none" if value is None else f"{value:.9g}"


def continued(question: Approval, stored: Iterable[Approval]) -> Approval:
    """Continue a question about deletions that waits already: keep its run, its time and its announcement.

    The question is announced again only after its number of rows has doubled. Otherwise a bucket that loses a photo
    each hour would send an alert each hour.
    """
    waiting = [earlier for earlier in stored if earlier.kind == "deletions" and not earlier.decided]
    if question.kind != "deletions" or not waiting:
        return question
    earlier = waiting[-1]
    announced = earlier.details.get("announced", earlier.number)
    if question.number >= 2 * announced:
        return question
    details = {**question.details, "announced": announced}
    return replace(question, run=earlier.run, asked_at=earlier.asked_at, details=details)


def check_requested(request: RunRequest, undecided: Iterable[Approval]) -> None:
    """Check that no rebuild or refit that the run requests waits for an approval.

    Raises:
        FruitsError: when one waits; names the command that approves.
    """
    for question in undecided:
        if question.kind == "rebuild" or (question.kind == "refit" and request.refit == "always"):
            raise FruitsError(
                f"a {question.kind} of {question.number:,} rows is more than FRUITS_APPROVAL_ROWS; approve by "
                f"`{question.command}`, then clear the run from `wait_for_lease`"
            )


def described(question: Approval) -> str:
    """Describe a question for logs, alerts and pages: consequence, reasons, first labels and keys, the command."""
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
                "The next run under the same backbone does it: a sweep, when the settings name that backbone "
                "and it is new to readers. Otherwise start a run with the same param."
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
