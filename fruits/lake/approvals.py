"""Approvals: questions that wait for a person's decision, and the decisions. Each is a file in the lake.

The file is ``approvals/<namespace>/<kind>_<digest>.json``. A run that would remove or replace much of the tables writes
such a file, and goes on without that part. A person approves by ``fruits approve`` or in Airflow's DAG
`fruit_approval`. The next run that finds the same digest uses the approval, and its publication records the approval.
A digest covers exactly the rows, the gates or the change in question: one more deletion has another digest.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Literal

from obstore.exceptions import AlreadyExistsError
from obstore.store import ObjectStore
from pydantic import TypeAdapter, ValidationError

from fruits.errors import FruitsError
from fruits.settings import Settings
from fruits.stores import lake_store, list_files, read_json, remove_files, write_json

Kind = Literal["deletions", "gates", "rebuild", "refit", "backbone"]
Via = Literal["fruits approve", "Airflow", "allow_deletes"]

LAPSES_AFTER = timedelta(days=7)
"""An approval that no run has used for so long lapses; so does a question that no plan repeats."""

_FOLDER = "approvals"
_SHORT = 12  # characters of a digest that people see and type
_FEWEST = 8  # characters of a digest that a person has to type


@dataclass(frozen=True)
class Approval:
    """The question of a run, and the decision; undecided while ``approved_at`` is None.

    Attributes:
        kind: The subject of the question.
        digest: SHA-256, hexadecimal, of exactly the rows, the gates or the change in question.
        question: The consequence of an approval, in one sentence.
        number: How many rows or gates the question is about.
        details: Facts for the decision: first keys, rows by label, reasons, measured values.
        run: Key of the run that asked.
        asked_at: When a run first asked.
        approved_at: When a person approved.
        approved_by: Who approved.
        via: How the person approved: by the command, in Airflow's UI or by the param of a run.
        why: The reason that the person gave.
    """

    kind: Kind
    digest: str
    question: str
    number: int
    run: str
    asked_at: datetime
    details: Mapping[str, Any] = field(default_factory=dict)
    approved_at: datetime | None = None
    approved_by: str | None = None
    via: Via | None = None
    why: str | None = None

    @property
    def short(self) -> str:
        """The digest as people see and type it."""
        return self.digest[:_SHORT]

    @property
    def command(self) -> str:
        """The command that approves."""
        gates = "".join(f" --gate {name}" for name in self.details.get("gates", ()))
        which = f"--run {self.run}{gates}" if self.kind == "gates" else self.short
        return f'fruits approve {which} --why "..."'

    @property
    def decided(self) -> bool:
        """Whether a person has approved."""
        return self.approved_at is not None

    def approved(self, by: str, why: str, via: Via) -> "Approval":
        """This question, approved now."""
        return replace(self, approved_at=datetime.now(UTC), approved_by=by, why=why, via=via)

    def to_document(self) -> dict[str, Any]:
        """The approval as JSON types."""
        document: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return document


def digest_of(kind: Kind, parts: Iterable[str]) -> str:
    """SHA-256 of the parts of a question; the order of ``parts`` must not depend on the run."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(b"\0" + part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_approvals(settings: Settings) -> list[Approval]:
    """The questions that wait for a decision, and the approvals that no run has used yet; the oldest question first.

    Raises:
        FruitsError: naming a file that is no approval.
    """
    store = lake_store(settings)
    approvals = (_read(store, item["path"]) for item in list_files(store, f"{_FOLDER}/{settings.namespace}"))
    return sorted(filter(None, approvals), key=lambda approval: (approval.asked_at, approval.digest))


def ask(settings: Settings, question: Approval) -> Approval:
    """Store a question; returns the stored question of the same digest, which may be older or decided."""
    store, path = lake_store(settings), _path(settings, question)
    try:
        write_json(store, path, question.to_document(), create=True)
    except AlreadyExistsError:
        return _read(store, path) or question
    return question


def approve(settings: Settings, approval: Approval, *, by: str, why: str, via: Via) -> Approval:
    """Record a person's approval, for the next run to use.

    Raises:
        FruitsError: when no reason is given.
    """
    if not why.strip():
        raise FruitsError(f"approval {approval.short}: expected a reason, which the publication keeps; give one")
    decided = approval.approved(by, why.strip(), via)
    write_json(lake_store(settings), _path(settings, approval), decided.to_document())
    return decided


def withdraw(settings: Settings, approvals: Iterable[Approval]) -> None:
    """Remove approvals that a publication records, and questions that nothing waits for any more."""
    remove_files(lake_store(settings), *(_path(settings, approval) for approval in approvals))


def chosen(approvals: Sequence[Approval], digest: str | None) -> Approval:
    """The undecided question whose digest starts with ``digest``; without a digest, the only undecided question.

    Raises:
        FruitsError: when no question or more than one fits; lists the undecided questions.
    """
    undecided = [approval for approval in approvals if not approval.decided]
    listed = "; ".join(f"{question.short}: {question.question}" for question in undecided) or "nothing"
    if digest is None:
        fitting = undecided
    elif len(digest) < _FEWEST:
        raise FruitsError(
            f"digest {digest!r}: expected at least {_FEWEST} characters; waiting for a decision: {listed}"
        )
    else:
        fitting = [question for question in undecided if question.digest.startswith(digest.lower())]
    if len(fitting) != 1:
        expected = "exactly one" if digest is None else f"one with digest {digest!r}"
        raise FruitsError(f"approval: expected {expected}; waiting for a decision: {listed}")
    return fitting[0]


def outdated(known: Iterable[Approval], asked: Iterable[Approval], now: datetime) -> list[Approval]:
    """The questions and approvals of ``known`` that a plan of the whole bucket leaves behind.

    ``asked`` are the questions that the plan asked, and the approvals that it used. Each plan of the whole bucket asks
    about deletions anew, so a stored question of another digest is about other photos. Other kinds lapse.
    """
    digests = {approval.digest for approval in asked}
    return [
        approval
        for approval in known
        if approval.digest not in digests
        and (approval.kind == "deletions" or now - (approval.approved_at or approval.asked_at) > LAPSES_AFTER)
    ]


def _path(settings: Settings, approval: Approval) -> str:
    return f"{_FOLDER}/{settings.namespace}/{approval.kind}_{approval.digest}.json"


def _read(store: ObjectStore, path: str) -> Approval | None:
    try:
        return _adapter().validate_python(read_json(store, path))
    except FileNotFoundError:  # used or withdrawn meanwhile
        return None
    except (ValidationError, json.JSONDecodeError) as error:
        raise FruitsError(
            f"{path} in the lake: not a document of an approval ({str(error).splitlines()[0]}); remove the file, and "
            "the next run asks again"
        ) from error


@cache
def _adapter() -> TypeAdapter[Approval]:
    return TypeAdapter(Approval)
