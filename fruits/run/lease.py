"""Turns: the runs of a lake work one after the other.

Of two runs planned from one base only the first can be published; the work of the second would be thrown away. So a run
takes its turn before it plans, and the others wait. Turns only spare work: that the tables stay right is up to the
publication's compare-and-swap.

A turn is a file ``turns/<number>.json`` in the lake. Whoever makes the file of the next number has the turn, and both
S3 and file systems let only one do so. The run that has it renews it while a task of it is at work. A turn is over when
its run is published, has nothing to do or fails for good; one not renewed for ``LAPSE`` belongs to a run that died.
"""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from fruits.errors import FruitsError, TransientError
from fruits.settings import Settings
from fruits.stores import lake_store, read_json

log = logging.getLogger("fruits")

LAPSE = timedelta(minutes=5)
"""A turn not renewed for so long is over. Longer than the pause before a task is tried again."""

_RENEW_SECONDS = 30.0


@dataclass(frozen=True)
class Turn:
    """A turn: its number, the run (slug) that has it, when it was last renewed, and whether the run is done with it."""

    number: int
    run: str
    renewed_at: datetime
    ended: bool = False

    def is_over(self, now: datetime) -> bool:
        """Whether the next run may have its turn."""
        return self.ended or now - self.renewed_at > LAPSE


def take_turn(settings: Settings, run: str) -> Turn | None:
    """Take a turn for ``run``, or renew the one it has; returns the turn of another run that is in the way, if any."""
    store, now = _store(settings), datetime.now(UTC)
    last = _last(store)
    if last is not None and not last.is_over(now):
        if last.run != run:
            return last
        _write(store, Turn(last.number, run, now))
        return None
    turn = Turn(last.number + 1 if last else 1, run, now)
    try:
        _write(store, turn, "create")
    except AlreadyExistsError:
        return _last(store)
    if last is not None:  # those before it went when it was taken
        _remove(store, _name(last.number))
    return None


@contextmanager
def hold_turn(settings: Settings, run: str) -> Iterator[None]:
    """Hold the turn of ``run`` while its task works inside; a failure that a person has to mend ends it.

    Raises:
        TransientError: when another run has the turn.
    """
    other = take_turn(settings, run)
    if other is not None:
        raise TransientError(
            f"run {run}: it is the turn of run {other.run}; this task is tried again, or clear the run from its plan"
        )
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(settings, run, stop), daemon=True)
    thread.start()
    over = False
    try:
        yield
    except TransientError:
        raise
    except FruitsError:
        over = True
        raise
    finally:
        stop.set()
        thread.join()  # else it might renew what has ended
        if over:
            end_turn(settings, run)


def end_turn(settings: Settings, run: str) -> None:
    """Let the next run have its turn; a run that has none changes nothing. Not while it is held: see ``hold_turn``."""
    store = _store(settings)
    last = _last(store)
    if last is not None and last.run == run and not last.ended:
        _write(store, Turn(last.number, run, datetime.now(UTC), ended=True))


def current_turn(settings: Settings) -> Turn | None:
    """The turn that some run has now, if any."""
    last = _last(_store(settings))
    return None if last is None or last.is_over(datetime.now(UTC)) else last


def _renew(settings: Settings, run: str, stop: threading.Event) -> None:
    while not stop.wait(_RENEW_SECONDS):
        try:
            if take_turn(settings, run) is not None:
                log.warning("run %s lost its turn: it was not renewed for %s", run, LAPSE)
                return
        except (BaseError, FruitsError, OSError) as error:  # the next time may do; if none does, the turn lapses
            log.warning("run %s: its turn can't be renewed: %s", run, error)


def _last(store: ObjectStore) -> Turn | None:
    while names := [item["path"] for batch in obstore.list(store) for item in batch]:
        try:
            document = read_json(store, max(names))
        except FileNotFoundError:  # removed by the run that took the next turn, so there is a newer one
            continue
        return Turn(**{**document, "renewed_at": datetime.fromisoformat(document["renewed_at"])})
    return None


def _write(store: ObjectStore, turn: Turn, mode: Literal["create", "overwrite"] = "overwrite") -> None:
    document = {**asdict(turn), "renewed_at": turn.renewed_at.isoformat()}
    obstore.put(store, _name(turn.number), json.dumps(document).encode(), mode=mode)


def _remove(store: ObjectStore, name: str) -> None:
    try:
        obstore.delete(store, name)
    except FileNotFoundError:
        return  # by a run that did the same


def _name(number: int) -> str:
    return f"{number:09d}.json"


def _store(settings: Settings) -> ObjectStore:
    return lake_store(settings, "turns")
