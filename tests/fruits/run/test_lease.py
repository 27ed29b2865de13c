"""The lease: one run at a time, nobody waits for a run that is done or dead, and every run gets it in the end."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Barrier

import pytest

from fruits.errors import FruitsError, TransientError
from fruits.run import lease as module
from fruits.run.lease import Lease, acquire_lease, current_lease, hold_lease, release_lease
from fruits.settings import Settings
from fruits.stores import lake_store, list_files, write_json


@pytest.fixture(params=["file", "s3"])
def settings(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(request.param)


def test_a_run_waits_until_the_one_before_it_is_done(settings):
    assert acquire_lease(settings, "first") is None
    assert acquire_lease(settings, "second").run == "first"
    assert current_lease(settings).run == "first"
    release_lease(settings, "first")
    assert current_lease(settings) is None
    assert acquire_lease(settings, "second") is None
    assert current_lease(settings).run == "second"


def test_the_run_that_holds_the_lease_keeps_it_from_task_to_task(settings):
    acquire_lease(settings, "run")
    number = current_lease(settings).number
    before = current_lease(settings).renewed_at
    assert acquire_lease(settings, "run") is None
    assert current_lease(settings).number == number
    assert current_lease(settings).renewed_at > before


def test_only_one_of_many_acquires_the_lease(settings):
    """Three leases in a row, each wanted by eight runs at once."""
    for round_ in range(3):
        barrier = Barrier(8)

        def want(number, barrier=barrier, round_=round_):
            barrier.wait()
            return acquire_lease(settings, f"run-{round_}-{number}")

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(want, range(8)))
        assert Counter(other is None for other in found) == {True: 1, False: 7}
        assert {other.run for other in found if other} == {f"run-{round_}-{found.index(None)}"}
        release_lease(settings, f"run-{round_}-{found.index(None)}")


def test_a_listing_that_misses_the_lease_once_gives_no_second_one(settings, monkeypatch):
    """As that of a folder can, while a lease takes the place of another."""
    acquire_lease(settings, "first")
    release_lease(settings, "first")
    assert acquire_lease(settings, "first") is None
    looks = count()
    monkeypatch.setattr(module, "list_files", lambda store: list_files(store) if next(looks) else [])
    assert acquire_lease(settings, "second").run == "first"


def test_namespaces_of_one_lake_have_leases_of_their_own(settings):
    other = settings.model_copy(update={"namespace": "other"})
    assert acquire_lease(settings, "scheduled_1") is None
    assert acquire_lease(other, "scheduled_2") is None
    release_lease(other, "scheduled_2")
    assert current_lease(settings).run == "scheduled_1"


def test_the_lease_of_an_earlier_release_is_taken_over(settings):
    """Up to 0.2.0 a lake had one lease for all namespaces."""
    held = {"number": 7, "run": "first", "renewed_at": datetime.now(UTC).isoformat(), "released": False}
    write_json(lake_store(settings, "leases"), "000000007.json", held)
    assert acquire_lease(settings, "second").run == "first"
    assert acquire_lease(settings, "first") is None
    release_lease(settings, "first")
    assert acquire_lease(settings, "second") is None
    assert current_lease(settings).number == 9, "after that lease and its release"


def test_nobody_waits_for_ever_for_a_run_that_died(settings, monkeypatch):
    acquire_lease(settings, "dead")
    monkeypatch.setattr(module, "DURATION", timedelta(0))
    assert acquire_lease(settings, "next") is None
    monkeypatch.undo()
    assert acquire_lease(settings, "dead").run == "next", "it comes back to life: another run holds the lease now"
    release_lease(settings, "dead")
    assert current_lease(settings).run == "next"


@pytest.mark.parametrize(
    ("active", "minutes", "free"),
    [
        (False, 0.5, False),  # renewed just now: a task works, and Airflow is not asked
        (False, 1.5, True),  # a person marked the run as failed: nobody renews or releases its lease
        (True, 6, False),  # between two tasks: the next one waits for a slot or for a retry
        (True, 61, True),  # the DAG was paused: others are not held up for ever
        (None, 4, False),  # another Airflow's run
        (None, 6, True),
    ],
)
def test_a_silent_lease_is_as_alive_as_its_run(active, minutes, free):
    asked = []

    def is_active(run):
        asked.append(run)
        return active

    now = datetime.now(UTC)
    lease = Lease(1, "holder", now - timedelta(minutes=minutes), airflow_run=("fruit_features", "manual__1"))
    assert lease.is_free(now, is_active) == free
    assert asked == ([("fruit_features", "manual__1")] if minutes > 1 else [])
    assert replace(lease, released=True).is_free(now, is_active)


def test_the_run_that_waits_knows_whom_to_ask_about(settings, monkeypatch):
    monkeypatch.setattr(module, "_QUIET", timedelta(0))
    acquire_lease(settings, "first", ("fruit_features", "manual__1"))
    with hold_lease(settings, "first"):
        pass  # a task renews the lease without naming the run again
    runs = []
    assert acquire_lease(settings, "second", is_active=lambda run: runs.append(run) or True).run == "first"
    assert runs == [("fruit_features", "manual__1")]
    assert acquire_lease(settings, "second", is_active=lambda _: False) is None


def test_a_task_at_work_renews_the_lease(settings, monkeypatch):
    monkeypatch.setattr(module, "_RENEW_SECONDS", 0.02)
    with hold_lease(settings, "run"):
        before = current_lease(settings).renewed_at
        while current_lease(settings).renewed_at == before:
            pass
    assert current_lease(settings).run == "run", "the next task of the run goes on with it"


def test_a_task_does_not_work_under_the_lease_of_another_run(settings):
    acquire_lease(settings, "other")
    with pytest.raises(TransientError, match="run other holds the lease"), hold_lease(settings, "run"):
        pytest.fail("it worked")


@pytest.mark.parametrize(
    ("error", "holder"),
    [(FruitsError("mend it"), None), (TransientError("later"), "run"), (ValueError("defect"), "run")],
)
def test_a_failure_that_is_not_tried_again_releases_the_lease(settings, error, holder):
    with pytest.raises(type(error)), hold_lease(settings, "run"):
        raise error
    lease = current_lease(settings)
    assert (lease.run if lease else None) == holder


def test_leases_leave_no_heap_of_files(settings):
    for number in range(5):
        acquire_lease(settings, f"run-{number}")
        release_lease(settings, f"run-{number}")
    store = module._store(settings)
    assert len([item for batch in store.list() for item in batch]) == 1


def test_a_process_that_was_left_behind_does_not_acquire_what_its_run_released(settings, monkeypatch, caplog):
    monkeypatch.setattr(module, "_RENEW_SECONDS", 0.02)
    with hold_lease(settings, "run"):
        release_lease(settings, "run")
        while "lost its lease" not in caplog.text:
            pass
        assert current_lease(settings) is None


def test_a_renewal_that_is_under_way_does_not_undo_the_release(settings):
    """The renewal has read the lease, then the run releases it, then the renewal writes."""
    acquire_lease(settings, "run")
    read = current_lease(settings)
    release_lease(settings, "run")
    module._write(module._store(settings), read)
    assert current_lease(settings) is None
    assert acquire_lease(settings, "next") is None
    assert current_lease(settings).run == "next"
    assert len(list(list_files(module._store(settings)))) == 1


def test_a_lease_that_cannot_be_released_does_not_hide_the_error(settings, monkeypatch):
    def refuse(*_):
        raise OSError("no route")

    monkeypatch.setattr(module, "release_lease", refuse)
    with pytest.raises(FruitsError, match="fix it"), hold_lease(settings, "run"):
        raise FruitsError("fix it")


def test_a_lease_that_is_listed_and_cannot_be_read_stops_nobody_for_ever(settings, monkeypatch):
    acquire_lease(settings, "first")

    def gone(*_):
        raise FileNotFoundError

    monkeypatch.setattr(module, "read_json", gone)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0)
    with pytest.raises(TransientError, match=r"lease 000000001\.json: it is listed, and cannot be read"):
        acquire_lease(settings, "second")
