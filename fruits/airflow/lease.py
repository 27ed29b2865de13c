"""The wait of both DAGs for the lease, deferred to a trigger; ``fruits/airflow/sensors.py`` says what upgrades mean.

Apart from the module ``sensors``, whose providers `fruit_maintenance` need not import.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from fruits.airflow import metrics
from fruits.airflow.errors import non_retryable
from fruits.airflow.tasks import kind_of_run
from fruits.errors import FruitsError
from fruits.settings import Settings

if TYPE_CHECKING:
    from fruits.run.lease import AirflowRun

log = logging.getLogger("fruits")

_PAUSE_SECONDS = 3.0  # between two attempts to acquire the lease


class LeaseSensor(BaseSensorOperator):
    """Waits until the run holds the lease, so that no other run is between its plan and its publication.

    A dry run changes nothing and waits for no other run. ``run_prefix`` precedes Airflow's run id in the run's id in
    the lake.
    """

    def __init__(self, *, run_prefix: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run_prefix = run_prefix

    def execute(self, context: Context, since: str | None = None) -> None:
        """Acquire the lease; defer while another run holds it. ``since`` is when the wait began."""
        if context["params"].get("dry_run"):
            return
        from fruits.run.lease import acquire_lease, note_waiting
        from fruits.run.state import run_key

        run = run_key(self.run_prefix + str(context["run_id"]))
        airflow_run = (context["dag_run"].dag_id, str(context["run_id"]))
        with non_retryable():
            settings = Settings.load()
            other = acquire_lease(settings, run, airflow_run, is_active)
        now = datetime.now(UTC)
        began = datetime.fromisoformat(since) if since else now
        if other is None:
            metrics.send(metrics.of_wait(began, now))
            return
        log.info("lease: waiting for run %s, which holds the lease", other.run)
        if kind := kind_of_run(context):
            note_waiting(settings, airflow_run, kind)
        self.defer(
            trigger=LeaseTrigger(run, airflow_run),
            method_name="execute_complete",
            kwargs={"since": began.isoformat()},
            timeout=timedelta(seconds=self.timeout),
        )

    def execute_complete(
        self,
        context: Context,
        event: dict[str, Any],  # noqa: ARG002 -- Airflow's signature
        since: str | None = None,
    ) -> None:
        """Renew the lease that the trigger acquired; wait again when the lease has expired meanwhile."""
        self.execute(context, since)


def is_active(run: "AirflowRun") -> bool | None:
    """Whether a run is queued or running, by Airflow; None when Airflow does not know the run, or does not answer."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    dag_id, run_id = run
    try:
        for active, states in ((True, ["queued", "running"]), (False, ["success", "failed"])):
            if RuntimeTaskInstance.get_dr_count(dag_id, run_ids=[run_id], states=states):
                return active
    except Exception as error:  # noqa: BLE001 -- the lease then counts as that of an unknown run
        log.warning("lease: Airflow does not tell the state of run %s: %s", run_id, error)
    return None


class LeaseTrigger(BaseTrigger):
    """Acquires the lease for the run as soon as the lease is free, then fires: only the run that holds it wakes up."""

    def __init__(self, run: str, airflow_run: Sequence[str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_key = run
        self.airflow_run: AirflowRun | None = (airflow_run[0], airflow_run[1]) if airflow_run else None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, from which the triggerer makes the trigger."""
        arguments = {"run": self.run_key, "airflow_run": list(self.airflow_run or ())}
        return f"{__name__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Try every few seconds, also while the lake does not answer. Leave wrong settings for the task to report."""
        try:
            settings = Settings.load()
        except FruitsError:
            yield TriggerEvent({})
            return
        while await self._must_wait(settings):
            await asyncio.sleep(_PAUSE_SECONDS)
        yield TriggerEvent({})

    async def _must_wait(self, settings: Settings) -> bool:
        """Try to acquire the lease; true when another run holds it, or when the lake does not answer."""
        from obstore.exceptions import BaseError

        from fruits.run.lease import acquire_lease

        try:
            other = await asyncio.to_thread(acquire_lease, settings, self.run_key, self.airflow_run, is_active)
        except (BaseError, FruitsError, OSError) as error:
            self.log.warning("lease: cannot be read, next attempt in %g s: %s", _PAUSE_SECONDS, error)
            return True
        return other is not None
