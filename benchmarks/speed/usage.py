"""The seconds and the memory that a program takes: its own, and those of all processes that it starts."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_TICK, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
_EVERY_SECONDS = 0.2
JVM, WORKERS, DRIVER = "JVM", "Python workers", "Python"


@dataclass
class Usage:
    """What a program took.

    Attributes:
        wall: Seconds by the clock.
        core: Core seconds, user and system, by kind of process.
        worker_megabytes: The most resident memory of one of the Python workers.
    """

    wall: float = 0.0
    core: Mapping[str, float] = field(default_factory=dict)
    worker_megabytes: float = 0.0

    @property
    def core_seconds(self) -> float:
        """Core seconds of all processes."""
        return sum(self.core.values())


def watched(process: "subprocess.Popen[str]", what: str) -> Usage:
    """What a process takes until it ends. It must lead a session, whose processes all count.

    Looks at the processes five times a second, so the last fifth of each may be missing.

    Raises:
        RuntimeError: when the process fails.
    """
    started, spent, kinds, worker_megabytes = time.perf_counter(), dict[int, float](), dict[int, str](), 0.0
    running = True
    try:
        while running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EVERY_SECONDS)
                running = False
            for pid, seconds, megabytes in _of_session(process.pid):
                spent[pid] = seconds
                kinds[pid] = kind = _kind(pid) or kinds.get(pid, DRIVER)
                if kind == WORKERS:
                    worker_megabytes = max(worker_megabytes, megabytes)
    finally:
        if running:  # somebody stops the benchmark
            os.killpg(process.pid, signal.SIGKILL)
    wall = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{what} ended with exit code {process.returncode}")
    core = {kind: sum(spent[pid] for pid in spent if kinds[pid] == kind) for kind in (JVM, WORKERS, DRIVER)}
    return Usage(wall, core, worker_megabytes)


def _of_session(session: int) -> Iterator[tuple[int, float, float]]:
    """The process id, core seconds and megabytes of each process of a session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(values[3]) == session:
            yield int(folder.name), (int(values[11]) + int(values[12])) / _TICK, int(values[21]) * _PAGE / 1e6


def core_seconds_of(pid: int) -> float:
    """Core seconds of one process so far."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / _TICK


def _kind(pid: int) -> str | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    if not command:  # it has ended, and waits for its parent
        return None
    if command.split(b"\0")[0].endswith(b"java"):
        return JVM
    return WORKERS if b"pyspark.daemon" in command or b"popen_loky" in command else DRIVER
