"""What goes wrong in a history: a fault meets the n-th effect of a run, before it or after it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from pyiceberg.exceptions import CommitFailedException

from fruits.errors import DeniedError, FruitsError, TransientError
from fruits.run import lease as leases

if TYPE_CHECKING:
    from tests.chaos.world import World

Kind = Literal[
    "killed",  # the process is gone: none of its later effects happens
    "no answer",  # a server does not answer; the program goes on with the error
    "denied",  # a person must fix it
    "refused",  # a commit is refused; after: although it is in effect, as when its first answer was lost
    "rolled back",  # a person rolls back meanwhile
    "maintained",  # maintenance runs meanwhile, the lease notwithstanding
    "overtaken",  # another attempt of the same task runs meanwhile
    "expired",  # the clock jumps beyond the lease
    "approved",  # a person approves meanwhile what waits
    "pinned",  # a person pins readers meanwhile
    "vanished",  # a photo leaves the bucket meanwhile
    "overwritten",  # a photo is overwritten meanwhile
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SEEN_LATER: frozenset[Kind] = frozenset({"rolled back", "vanished", "overwritten"})
"""What a run that is under way need not see: the next one does."""


class KilledError(BaseException):
    """The process of a task is gone."""


class NoAnswerError(ConnectionError):
    """A server did not answer."""


class RefusedError(CommitFailedException):
    """The catalog refused a commit."""


INJECTED = (KilledError, NoAnswerError, RefusedError)


@dataclass(frozen=True)
class Fault:
    """What happens at the ``number``-th effect of a run, before it or after it."""

    number: int
    moment: Literal["before", "after"]
    kind: Kind


class Faulty:
    """A watcher of effects that lets the faults of a run happen, and looks at the lake at each effect."""

    def __init__(self, world: "World", run_id: str, faults: Sequence[Fault]) -> None:
        self.world, self.run_id = world, run_id
        self.faults = {(fault.number, fault.moment): fault for fault in faults}
        self.count, self.task, self.dead, self.busy = 0, "", False, False

    def __call__(self, kind: str, path: str, moment: Literal["before", "after"]) -> None:
        if self.dead:
            raise KilledError
        if self.busy:
            return
        self.world.look()
        self.count += moment == "before"
        fault = self.faults.pop((self.count, moment), None)
        if fault is not None:
            self.busy = True
            try:
                self.happen(fault, kind, path)
            finally:
                self.busy = False
                self.world.table[f"{fault.kind} {moment}", subject(kind, path), self.world.state()] += 1

    def happen(self, fault: Fault, kind: str, path: str) -> None:
        """Let a fault happen."""
        if fault.kind == "killed":
            self.dead = True
            raise KilledError
        if fault.kind == "no answer":
            raise TransientError(f"{path}: no answer") if kind != "commit" else NoAnswerError(path)
        if fault.kind == "denied":
            raise DeniedError(f"{path}: denied")
        if fault.kind == "refused" and kind == "commit":
            raise RefusedError("Requirement failed: branch has changed" if fault.moment == "after" else "try again")
        if fault.kind in MEANWHILE:
            MEANWHILE[fault.kind](self, fault)


def _expire(faulty: Faulty, _: Fault) -> None:
    faulty.world.offset += leases.DURATION * 2


def _roll_back(faulty: Faulty, fault: Fault) -> None:
    faulty.world.roll_back(fault.number)


def _maintain(faulty: Faulty, fault: Fault) -> None:
    if faulty.task != "maintain":
        faulty.world.keep_house(f"maintenance__at {faulty.run_id} {fault.number}")


def _overtake(faulty: Faulty, _: Fault) -> None:
    if faulty.task not in ("maintain", "notify"):
        with suppress(FruitsError):
            faulty.world.attempt(faulty.task, faulty.run_id)


def _approve(faulty: Faulty, _: Fault) -> None:
    faulty.world.approve()


def _pin(faulty: Faulty, _: Fault) -> None:
    faulty.world.pin()


def _vanish(faulty: Faulty, fault: Fault) -> None:
    faulty.world.delete(fault.number)


def _overwrite(faulty: Faulty, fault: Fault) -> None:
    keys = sorted(faulty.world.bucket)
    faulty.world.put(keys[fault.number % len(keys)], f"overwritten {fault.number}".encode())


MEANWHILE: dict[Kind, Callable[[Faulty, Fault], None]] = {
    "expired": _expire,
    "rolled back": _roll_back,
    "maintained": _maintain,
    "overtaken": _overtake,
    "approved": _approve,
    "pinned": _pin,
    "vanished": _vanish,
    "overwritten": _overwrite,
}
"""What somebody else does between two steps of a task."""


def subject(kind: str, path: str) -> str:
    """What an effect is done to, in a few words."""
    if kind == "commit":
        return f"commit to {path}"
    folder, _, name = path.rpartition("/")
    for place in ("leases", "approvals", "pins", "events"):
        if f"/{place}" in folder:
            return f"{kind} of {'the lease' if place == 'leases' else place}"
    return f"{kind} of {name.partition('_')[0] if name.endswith('.parquet') else name}"
