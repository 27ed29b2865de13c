"""The event that announces a publication to other DAGs.

Apart from the module ``tasks``: an asset with a URI makes Airflow import the assets of every installed provider.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, Context
from airflow.sdk.exceptions import AirflowSkipException

from fruits.errors import FruitsError

if TYPE_CHECKING:
    from fruits.lake.publication import Publication

EMBEDDINGS = Asset(name="fruits_embeddings", uri="fruits://lake/embeddings")
"""The published tables. A publication is an event of this asset, whoever made the publication."""

_NEWEST_EVENTS = 20
_RUNS_TURN = timedelta(minutes=5)  # a run announces its publication within seconds
_NEWS = timedelta(days=1)  # Airflow's old events may have been removed, and old publications are no news


def event_extra(publication: "Publication") -> dict[str, Any]:
    """The ``extra`` of the asset event that announces a publication to other DAGs."""
    run_id = str(publication.run_id)
    kinds = {"rollback__": "rollback", "maintenance__": "compaction"}
    return {
        "publication_id": publication.publication_id,
        "sequence": publication.sequence,
        "kind": next((kind for prefix, kind in kinds.items() if run_id.startswith(prefix)), "run"),
        "model_id": publication.model_id,
        "pca_id": publication.pca_id,
        "counts": dict(publication.counts or {}),
        "rows": publication.rows,
    }


def is_news(context: Context, publication: "Publication", current: "Publication") -> bool:
    """Whether a publication is the one that readers see, and no event has announced it yet."""
    events = context["inlet_events"][EMBEDDINGS].ascending(False).limit(_NEWEST_EVENTS)
    announced = {(event.extra or {}).get("publication_id") for event in events}
    return publication.publication_id == current.publication_id and publication.publication_id not in announced


def announce(context: Context, publication: "Publication", current: "Publication") -> dict[str, Any]:
    """Give the task's asset event the publication, or skip the task; returns the event's ``extra``.

    Raises:
        AirflowSkipException: when the publication is no news. A skipped task sends no event.
    """
    if not is_news(context, publication, current):
        raise AirflowSkipException(
            f"nothing to announce: {publication.publication_id} was published and announced before; readers see "
            f"{current.publication_id}"
        )
    extra = event_extra(publication)
    context["outlet_events"][EMBEDDINGS].extra = extra
    return extra


def announce_current(context: Context) -> dict[str, Any]:
    """Announce the current publication when nobody did: a rollback's, a compaction's, a crashed run's.

    Raises:
        AirflowSkipException: when there is none or the lake cannot be read, or the publication is no news, or its run
            may still announce it.
    """
    from fruits.lake.publication import publications
    from fruits.lake.reader import open_read_only
    from fruits.settings import Settings

    try:
        published = publications(open_read_only(Settings.load()))
    except FruitsError as error:  # the task `look` alerts of it
        raise AirflowSkipException(str(error)) from None
    if not published:
        raise AirflowSkipException("nothing is published yet")
    current = published[-1]
    age = datetime.now(UTC) - (current.published_at or datetime.now(UTC))
    if not _RUNS_TURN <= age <= _NEWS:
        raise AirflowSkipException(f"{current.publication_id} is for its run to announce, or too old to be news")
    return announce(context, current, current)
