"""When the tables were last up to date with the whole bucket, by the lake's run documents."""

from datetime import datetime

from fruits.run.documents import RunDocuments
from fruits.serve.state import runs
from fruits.settings import Settings


def last_up_to_date(settings: Settings) -> datetime | None:
    """When a run last brought the tables up to date with the whole prefix; None when no run ever did."""
    moments = (up_to_date_at(documents, settings.prefix) for _, documents in runs(settings))
    return next((moment for moment in moments if moment), None)


def up_to_date_at(documents: RunDocuments, prefix: str) -> datetime | None:
    """When a run brought the tables up to date; None when it did not, or when it covered only a part of the photos.

    A run that leaves objects over does not count, nor does a run under a pin. So a run under a new backbone counts once
    readers have that backbone.
    """
    planned = documents.planned
    featurized = documents.featurized
    if planned is None or planned.remaining or planned.pinned or (featurized and featurized.due):
        return None
    request = planned.request
    if request.dry_run or not request.sweeps(prefix):
        return None
    last = documents.publish if planned.work else documents.plan
    return last.finished_at if last and last.state == "succeeded" else None
