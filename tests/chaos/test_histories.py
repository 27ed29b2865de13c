"""Histories under faults, as many as fit in some seconds; `make chaos` runs them for as long as one likes."""

import random
import time

import pytest

from tests.chaos.__main__ import passes
from tests.chaos.machine import Histories, RealHistories

SECONDS = 12


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Merge on read is not yet supported", "ignore:Delete operation did not match")
@pytest.mark.parametrize(("machine", "histories"), [(Histories, 25), (RealHistories, 2)], ids=["memory", "real"])
def test_after_any_history_a_retry_equals_a_full_run_and_readers_saw_whole_publications(machine, histories):
    """On failure the log has the shortest history that was found, and the command that runs its seed again."""
    deadline = time.monotonic() + SECONDS / (1 if machine is Histories else 3)
    while time.monotonic() < deadline:
        assert passes(machine, random.randrange(10**9), histories)  # noqa: S311 -- a seed that pytest repeats
