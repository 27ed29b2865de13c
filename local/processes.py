"""Processes by identity, and how to end those that lead a session, with all that they started."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

import psutil

STOP_SECONDS = 30
_KILL_SECONDS = 2


def identity(pid: int) -> dict[str, float]:
    """A process by id and start time: an id alone may belong to another process tomorrow."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def process_of(identity: Mapping[str, float]) -> psutil.Process | None:
    """The process of an identity, also when it has ended and its parent has not asked for its exit code yet."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(identity["pid"]))
        return process if abs(process.create_time() - identity["started"]) < 1 else None
    return None


def runs(process: psutil.Process | None) -> bool:
    """Whether there is a process that has not ended."""
    with suppress(psutil.NoSuchProcess):
        return process is not None and process.status() != psutil.STATUS_ZOMBIE
    return False


def end_sessions(identities: Iterable[Mapping[str, float]]) -> None:
    """End processes that lead a session, and all that they started: SIGTERM, then SIGKILL."""
    family = {member for identity in identities for member in _family(identity) if runs(member)}
    for wait, end in ((STOP_SECONDS, psutil.Process.terminate), (_KILL_SECONDS, psutil.Process.kill)):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                end(member)
        family = set(psutil.wait_procs(family, timeout=wait)[1])


def _family(identity: Mapping[str, float]) -> list[psutil.Process]:
    """The members of a session, also those that its killed leader left behind, and the leader's other descendants."""
    process, leader = process_of(identity), int(identity["pid"])
    if process is None and psutil.pid_exists(leader):
        return []  # the id belongs to another process now, so no member of the session is left
    family = [member for member in psutil.process_iter() if _session(member) == leader]
    with suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True) if process else []
    return family


def _session(process: psutil.Process) -> int | None:
    with suppress(OSError):  # it has ended, or belongs to another user
        return os.getsid(process.pid)
    return None
