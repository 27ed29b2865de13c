"""Histories under faults, as many as fit in some seconds; `make chaos` runs them for as long as one likes."""

import random
import time

import pytest

from tests.chaos.batches import run_batch

SECONDS = {"memory": 12, "real": 4}


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Merge on read is not yet supported", "ignore:Delete operation did not match")
@pytest.mark.parametrize(("kind", "size"), [("memory", 25), ("real", 2)])
def test_after_any_history_a_retry_equals_a_full_run_and_readers_saw_whole_publications(kind, size):
    """On failure the log has the shortest history that was found, and the command that runs its seed again."""
    deadline = time.monotonic() + SECONDS[kind]
    while time.monotonic() < deadline:
        batch = run_batch(kind, random.randrange(10**9), size)  # noqa: S311 -- a seed that pytest repeats
        print(batch)
        assert not batch.failure
