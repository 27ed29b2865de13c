"""Turns: one run at a time, nobody waits for a run that is done or dead, and every run gets one."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest

from fruits.errors import FruitsError, TransientError
from fruits.run import lease as turns
from fruits.run.lease import current_turn, end_turn, hold_turn, take_turn
from fruits.settings import Settings


@pytest.fixture(params=["file", "s3"])
def settings(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(request.param)


def test_a_run_waits_until_the_one_before_it_is_done(settings):
    assert take_turn(settings, "first") is None
    assert take_turn(settings, "second").run == "first"
    assert current_turn(settings).run == "first"
    end_turn(settings, "first")
    assert current_turn(settings) is None
    assert take_turn(settings, "second") is None
    assert current_turn(settings).run == "second"


def test_the_run_that_has_the_turn_keeps_it_from_task_to_task(settings):
    take_turn(settings, "run")
    number = current_turn(settings).number
    before = current_turn(settings).renewed_at
    assert take_turn(settings, "run") is None
    assert current_turn(settings).number == number
    assert current_turn(settings).renewed_at > before


def test_only_one_of_many_gets_a_turn(settings):
    """Over three turns, each of which eight runs want at once."""
    for turn in range(3):
        barrier = Barrier(8)

        def want(number, barrier=barrier, turn=turn):
            barrier.wait()
            return take_turn(settings, f"run-{turn}-{number}")

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(want, range(8)))
        assert Counter(other is None for other in found) == {True: 1, False: 7}
        assert {other.run for other in found if other} == {f"run-{turn}-{found.index(None)}"}
        end_turn(settings, f"run-{turn}-{found.index(None)}")


def test_nobody_waits_for_ever_for_a_run_that_died(settings, monkeypatch):
    take_turn(settings, "dead")
    monkeypatch.setattr(turns, "LAPSE", timedelta(0))
    assert take_turn(settings, "next") is None
    monkeypatch.undo()
    assert take_turn(settings, "dead").run == "next", "it comes back to life: the turn is another's now"
    end_turn(settings, "dead")
    assert current_turn(settings).run == "next"


def test_a_task_at_work_renews_the_turn(settings, monkeypatch):
    monkeypatch.setattr(turns, "_RENEW_SECONDS", 0.02)
    with hold_turn(settings, "run"):
        before = current_turn(settings).renewed_at
        while current_turn(settings).renewed_at == before:
            pass
    assert current_turn(settings).run == "run", "the next task of the run goes on with it"


def test_a_task_does_not_work_in_the_turn_of_another_run(settings):
    take_turn(settings, "other")
    with pytest.raises(TransientError, match="it is the turn of run other"), hold_turn(settings, "run"):
        pytest.fail("it worked")


@pytest.mark.parametrize(
    ("error", "holder"),
    [(FruitsError("mend it"), None), (TransientError("later"), "run"), (ValueError("defect"), "run")],
)
def test_a_failure_that_is_not_tried_again_ends_the_turn(settings, error, holder):
    with pytest.raises(type(error)), hold_turn(settings, "run"):
        raise error
    turn = current_turn(settings)
    assert (turn.run if turn else None) == holder


def test_turns_leave_no_heap_of_files(settings):
    for number in range(5):
        take_turn(settings, f"run-{number}")
        end_turn(settings, f"run-{number}")
    store = turns._store(settings)
    assert len([item for batch in store.list() for item in batch]) == 1
