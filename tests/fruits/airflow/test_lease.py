"""The sensor of the lease and its trigger, over a lake of the test's own."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from obstore.exceptions import GenericError

from fruits.errors import TransientError
from fruits.run.lease import acquire_lease, current_lease, release_lease, waiting_run
from fruits.run.state import run_key
from fruits.settings import Settings
from tests.triggers import event_of, made_again

pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def lease(airflow_variables: pytest.MonkeyPatch) -> Any:
    """The module."""
    from fruits.airflow import lease

    return lease


def sensor(lease: Any) -> Any:
    return lease.LeaseSensor(task_id="wait_for_lease")


def context(run_id: str, run_type: str = "manual", **params: Any) -> dict[str, Any]:
    dag_run = SimpleNamespace(dag_id="fruit_features", run_type=DagRunType(run_type), conf={})
    return {"run_id": run_id, "params": params, "dag_run": dag_run}


def test_a_run_waits_deferred_while_another_works_and_then_holds_the_lease(lease: Any, lake: Settings) -> None:
    from airflow.sdk.exceptions import TaskDeferred

    sensor(lease).execute(context("first"))
    assert current_lease(lake).run == run_key("first")
    with pytest.raises(TaskDeferred) as deferred:
        sensor(lease).execute(context("second"))
    trigger = made_again(deferred.value.trigger)

    async def scenario() -> dict[str, Any]:
        waiting = asyncio.create_task(event_of(trigger))
        await asyncio.sleep(1)
        assert not waiting.done()
        await asyncio.to_thread(release_lease, lake, run_key("first"))
        return await asyncio.wait_for(waiting, 30)

    event = asyncio.run(scenario())
    assert current_lease(lake).run == run_key("second"), "the next to wait stays asleep"
    getattr(sensor(lease), deferred.value.method_name)(context("second"), event)
    assert current_lease(lake).run == run_key("second")


@pytest.mark.parametrize(("run_type", "noted"), [("scheduled", True), ("manual", False), ("backfill", False)])
def test_a_sweep_that_waits_is_noted_for_the_next_ones(lease: Any, lake: Settings, run_type: str, noted: bool) -> None:
    from airflow.sdk.exceptions import TaskDeferred

    acquire_lease(lake, "somebody")
    with pytest.raises(TaskDeferred):
        sensor(lease).execute(context("waits", run_type))
    assert waiting_run(lake) == (("fruit_features", "waits") if noted else None)


@pytest.mark.parametrize(("counts", "active"), [((1,), True), ((0, 1), False), ((0, 0), None)])
def test_airflow_tells_whether_a_run_is_active(
    lease: Any, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], active: bool | None
) -> None:
    asked, left = [], list(counts)

    def count(dag_id: str, run_ids: list[str], states: list[str]) -> int:
        asked.append((dag_id, run_ids, states))
        return left.pop(0)

    monkeypatch.setattr(RuntimeTaskInstance, "get_dr_count", count)
    assert lease.is_active(("fruit_features", "manual__1")) is active
    assert asked[0] == ("fruit_features", ["manual__1"], ["queued", "running"])


def test_an_airflow_that_does_not_answer_tells_nothing(lease: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> int:
        raise RuntimeError("no supervisor")

    monkeypatch.setattr(RuntimeTaskInstance, "get_dr_count", broken)
    assert lease.is_active(("fruit_features", "manual__1")) is None


def test_a_dry_run_waits_for_nobody(lease: Any, lake: Settings) -> None:
    acquire_lease(lake, "somebody")
    sensor(lease).execute(context("dry", dry_run=True))
    assert current_lease(lake).run == "somebody"


def test_wrong_settings_are_for_the_task_to_meet(lease: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRUITS_LAKE", raising=False)
    assert asyncio.run(event_of(lease.LeaseTrigger("run"))) == {}


def test_a_lake_that_does_not_answer_is_looked_at_again(
    lease: Any, lake: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait of hours is to survive any number of hiccups, and not to spend a retry on each."""
    hiccups = [GenericError("status code 503"), TransientError("no answer"), ConnectionResetError("reset")]
    messages, warned = [str(error) for error in hiccups], []

    class Log:
        def warning(self, message: str, *values: Any) -> None:
            warned.append(message % values)

    class Heard(lease.LeaseTrigger):
        log = Log()

    def answer(settings: Settings, run: str, *_: Any) -> Any:
        if hiccups:
            raise hiccups.pop(0)
        return acquire_lease(settings, run)

    monkeypatch.setattr("fruits.run.lease.acquire_lease", answer)
    monkeypatch.setattr(lease, "_PAUSE_SECONDS", 0.1)
    acquire_lease(lake, "somebody")

    async def scenario() -> dict[str, Any]:
        waiting = asyncio.create_task(event_of(Heard("run")))
        async with asyncio.timeout(60):
            while hiccups:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        assert not waiting.done(), "another run still holds the lease"
        await asyncio.to_thread(release_lease, lake, "somebody")
        return await asyncio.wait_for(waiting, 30)

    assert asyncio.run(scenario()) == {}
    assert [line.rpartition(": ")[2] for line in warned] == messages
