"""Processes that are no part of the stack."""

import subprocess
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def sleep() -> "Iterator[Callable[[], subprocess.Popen[bytes]]]":
    """Starts a process that does nothing and leads a session; it ends with the test, however that goes."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
