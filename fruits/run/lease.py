"""The lease: the runs of a lake work one after the other.

Of two runs planned from one base, only the first can publish, and the work of the second would be lost. So a run
acquires the lease before it plans, and the other runs wait. The lease only saves work; the publication's
compare-and-swap keeps the tables right.

A lease is a file ``leases/<namespace>/<number>.json`` in the lake. The process that creates the file of the next number
holds the lease; S3 and file systems let only one process succeed. The run that holds the lease renews the lease while
one of its tasks works. The run releases the lease when the run is published, has nothing to do or fails for good.

Nobody renews a lease between two tasks, and nobody releases the lease of a run that a person marked as failed. So a run
that waits asks Airflow about the run that holds a silent lease. The lease of an ended run is free at once, and an
active run keeps its lease for ``PATIENCE``. Where nobody knows the run, a lease that was not renewed for ``DURATION``
has expired.

A task that finds no plan, or cannot read it, does not touch the lease: it has no attempt yet. The run may be planned
anew at that moment, or by a newer release, under the same lease. So tasks read the plan first and hold the lease then.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore

from fruits.errors import FruitsError, TransientError
from fruits.run.migration import take_over_lease
from fruits.settings import Settings
from fruits.stores import lake_store, list_files, read_json, remove_files, write_json

log = logging.getLogger("fruits")

DURATION = timedelta(minutes=5)
"""A lease not renewed for so long has expired. Longer than the pause before a failed task is tried again."""

PATIENCE = timedelta(hours=1)
"""So long an active run keeps its lease without renewing it: its next task may wait for a slot or for a retry."""

_QUIET = timedelta(minutes=1)  # a lease that was renewed since then belongs to a task at work, so nobody needs to ask
_RENEW_SECONDS = 30.0
_LOOKS, _LOOK_SECONDS = 50, 0.1  # for the newest lease, while other runs acquire and remove leases

AirflowRun = tuple[str, str]
"""A run as Airflow knows it: id of the DAG, id of the run."""

Kind = Literal["sweep", "events"]
"""What a run that nobody asked for covers: the whole prefix, or the keys of the events that are kept."""

IsActive = Callable[[AirflowRun], bool | None]
"""Whether a run is queued or running; False when it has ended, None when Airflow does not know it."""


@dataclass(frozen=True)
class Lease:
    """A lease.

    Attributes:
        number: Its number.
        run: Key of the run that holds it.
        renewed_at: When it was last renewed.
        released: Whether it was released.
        airflow_run: The run as Airflow knows it; None when no DAG's sensor acquired the lease.
    """

    number: int
    run: str
    renewed_at: datetime
    released: bool = False
    airflow_run: AirflowRun | None = None

    def is_free(self, now: datetime, is_active: IsActive = lambda _: None) -> bool:
        """Whether another run may acquire the next lease."""
        if self.released:
            return True
        silence = now - self.renewed_at
        active = is_active(self.airflow_run) if self.airflow_run and silence > _QUIET else None
        if active is None:
            return silence > DURATION
        return not active or silence > PATIENCE


def acquire_lease(
    settings: Settings, run: str, airflow_run: AirflowRun | None = None, is_active: IsActive = lambda _: None
) -> Lease | None:
    """Acquire or renew the lease for ``run``; returns the lease of another run that is in the way, if any.

    The lease keeps ``airflow_run``, so that waiting runs can ask about this run by ``is_active``.
    """
    store, now = _store(settings), datetime.now(UTC)
    last = _last(settings)
    ours = last is not None and last.run == run
    if last is not None and not (last.is_free(now) if ours else last.is_free(now, is_active)):
        if not ours:
            return last
        _write(store, replace(last, renewed_at=now, airflow_run=airflow_run or last.airflow_run))
        return None
    known = last.airflow_run if last is not None and ours else None
    lease = Lease(last.number + 1 if last else 1, run, now, airflow_run=airflow_run or known)
    try:
        _write(store, lease, create=True)
    except AlreadyExistsError:
        winner = _last(settings)
        if winner is None or winner.run != run:  # otherwise ours, written by a request whose answer was lost
            return winner
    _remove_older(store, lease.number)
    return None


@contextmanager
def hold_lease(settings: Settings, run: str) -> Iterator[None]:
    """Hold the lease of ``run`` while a task works inside; an error that a person must fix releases the lease.

    Raises:
        TransientError: when another run holds the lease.
    """
    other = acquire_lease(settings, run)
    if other is not None:
        raise TransientError(
            f"run {run}: run {other.run} holds the lease; this task is tried again, or clear the run from "
            "`wait_for_lease`"
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
        thread.join()  # else the thread might renew a released lease
        if over:
            _release_quietly(settings, run)


def release_lease(settings: Settings, run: str) -> None:
    """Let the next run acquire the lease; a run that holds none changes nothing. Not inside ``hold_lease``."""
    store = _store(settings)
    last = _last(settings)
    if last is not None and last.run == run and not last.released:
        # Under the next number: a renewal that is under way in another process can't undo the release.
        released = replace(last, number=last.number + 1, renewed_at=datetime.now(UTC), released=True)
        with suppress(AlreadyExistsError):  # the lease had expired, and is another run's by now
            _write(store, released, create=True)
        _remove_older(store, released.number)


def _release_quietly(settings: Settings, run: str) -> None:
    """Release the lease after an error. A failing release must not hide the error; the lease then expires."""
    try:
        release_lease(settings, run)
    except (BaseError, FruitsError, OSError) as error:
        log.warning("run %s: its lease can't be released: %s", run, error)


def waiting_run(settings: Settings, kind: Kind = "sweep") -> AirflowRun | None:
    """The Airflow run of a kind that began last to wait for the lease."""
    try:
        document = read_json(lake_store(settings), _waiting_path(settings, kind))
    except FileNotFoundError:
        return None
    return document["dag_id"], document["run_id"]


def note_waiting(settings: Settings, run: AirflowRun, kind: Kind = "sweep") -> None:
    """Note that a run which covers the whole prefix, or the keys of all events, begins to wait for the lease."""
    write_json(lake_store(settings), _waiting_path(settings, kind), {"dag_id": run[0], "run_id": run[1]})


def _waiting_path(settings: Settings, kind: Kind) -> str:
    return f"waiting/{settings.namespace}{'' if kind == 'sweep' else f'.{kind}'}.json"


def current_lease(settings: Settings) -> Lease | None:
    """The lease that some run holds now, if any."""
    last = _last(settings)
    return None if last is None or last.is_free(datetime.now(UTC)) else last


def _renew(settings: Settings, run: str, stop: threading.Event) -> None:
    while not stop.wait(_RENEW_SECONDS):
        try:
            last = _last(settings)
            if last is None or last.run != run or last.released:
                log.warning("run %s lost its lease: it was released, or not renewed for %s", run, DURATION)
                return
            _write(_store(settings), replace(last, renewed_at=datetime.now(UTC)))
        except (BaseError, FruitsError, OSError) as error:  # the next try may succeed; if none does, the lease expires
            log.warning("run %s: its lease can't be renewed: %s", run, error)


def _last(settings: Settings) -> Lease | None:
    """The newest lease; None when there is none.

    Raises:
        TransientError: when a lease stays in the listing but not in the store.
    """
    store = _store(settings)
    for _ in range(_LOOKS):
        # The listing of a folder can miss both the lease that goes meanwhile and the one that takes its place.
        names = _names(store) or _names(store)
        if not names:
            return _last(settings) if take_over_lease(settings) else None
        try:
            document = read_json(store, max(names))
        except FileNotFoundError:  # removed by the run that acquired the next lease, so there should be a newer one
            time.sleep(_LOOK_SECONDS)
            continue
        airflow_run = tuple(document.get("airflow_run") or ()) or None
        renewed_at = datetime.fromisoformat(document["renewed_at"])
        return Lease(**{**document, "renewed_at": renewed_at, "airflow_run": airflow_run})
    raise TransientError(f"lease {max(names)}: it is listed, and cannot be read; this task is tried again")


def _names(store: ObjectStore) -> list[str]:
    return [item["path"] for item in list_files(store)]


def _write(store: ObjectStore, lease: Lease, *, create: bool = False) -> None:
    document = {**asdict(lease), "renewed_at": lease.renewed_at.isoformat()}
    write_json(store, _name(lease.number), document, create=create)


def _remove_older(store: ObjectStore, number: int) -> None:
    remove_files(store, *(name for name in _names(store) if name < _name(number)))


def _name(number: int) -> str:
    return f"{number:09d}.json"


def _store(settings: Settings) -> ObjectStore:
    return lake_store(settings, f"leases/{settings.namespace}")
