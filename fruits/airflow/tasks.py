"""What the tasks of the DAGs share: their defaults, and what a run was asked for."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from fruits.airflow.alerts import keep_error
from fruits.run import DAG_ID

if TYPE_CHECKING:
    from fruits.run.lease import Kind
    from fruits.run.request import RunRequest
    from fruits.settings import Settings

KEPT = "kept"
"""The name of the file with an event's keys, in the payload of the event."""

TASK_DEFAULTS: dict[str, Any] = {
    "owner": "fruits",
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(hours=12),
    "on_failure_callback": keep_error,
}
"""Defaults of every task: retries with growing pauses, and an error that is kept for the alert."""


def requested(context: Context, settings: "Settings") -> "RunRequest":
    """The request of a run of `fruit_features`, from its params, its run type and its data interval.

    Raises:
        FruitsError: naming the param, the expected value and the fix.
    """
    from fruits.run.request import resolve_request

    run = context["dag_run"]
    start, end = run.data_interval_start, run.data_interval_end
    return resolve_request(
        context["params"],
        settings,
        run_type=run.run_type.value,
        data_interval=(start, end) if start and end else None,
        keys_are_kept=keys_are_kept(context),
    )


def keys_are_kept(context: Context) -> bool:
    """Whether the keys of all events that woke the run are kept in the lake.

    Those of an event that was posted over Airflow's API, or sent by an earlier release, are not.
    """
    events = [event for of_asset in (context.get("triggering_asset_events") or {}).values() for event in of_asset]
    return bool(events) and all(((event.extra or {}).get("payload") or {}).get(KEPT) for event in events)


def is_automatic(context: Context) -> bool:
    """Whether nobody started the run by hand: a sweep, an event or a day of a backfill."""
    return context["dag_run"].run_type.value in ("scheduled", "asset_triggered", "backfill")


def kind_of_run(context: Context) -> "Kind | None":
    """Whether the clock or an event started the run to sweep, or an event to look up its keys; None for other runs."""
    run = context["dag_run"]
    if run.dag_id != DAG_ID or run.conf or run.run_type.value not in ("scheduled", "asset_triggered"):
        return None
    return "events" if run.run_type.value == "asset_triggered" and keys_are_kept(context) else "sweep"


def skip_when_another_waits(context: Context, settings: "Settings") -> None:
    """Skip a run while another one waits for the lease: that one has yet to plan, and will find the same photos.

    A sweep that waits finds what any run would; a run by events finds all keys that are kept, and nothing else. So
    events cannot pile up runs while a long run works, although the DAG lets many runs be active.

    Raises:
        AirflowSkipException: naming the run that waits.
    """
    from fruits.run.lease import waiting_run

    kind = kind_of_run(context)
    if kind is None:
        return
    ours = (context["dag_run"].dag_id, context["run_id"])
    for run in {waiting_run(settings, "sweep"), waiting_run(settings, kind)} - {None, ours}:
        dag_id, run_id = run  # type: ignore[misc]  # not None
        if context["ti"].get_ti_count(dag_id, task_ids=["wait_for_lease"], run_ids=[run_id], states=["deferred"]):
            raise AirflowSkipException(f"run {run_id} waits for the lease, and will find the same photos")
