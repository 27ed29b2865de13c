"""What the tasks of both DAGs share: their defaults, and what a run was asked for, from Airflow's context."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from fruits.airflow.alerts import keep_error

if TYPE_CHECKING:
    from fruits.lake.publication import Publication
    from fruits.run.request import RunRequest
    from fruits.settings import Settings

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
    )


def event_extra(publication: "Publication") -> dict[str, Any]:
    """The ``extra`` of the asset event that announces a publication to other DAGs."""
    return {
        "publication_id": publication.publication_id,
        "sequence": publication.sequence,
        "model_id": publication.model_id,
        "pca_id": publication.pca_id,
        "counts": dict(publication.counts or {}),
    }
