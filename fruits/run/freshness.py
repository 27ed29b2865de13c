"""When the tables were last up to date with the whole bucket, by the lake's run documents."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fruits.run.documents import TaskName, current_documents, last_written, read_documents
from fruits.settings import Settings


def last_up_to_date(settings: Settings) -> datetime | None:
    """When a run last brought the tables up to date with the whole prefix; None when no run ever did."""
    moments = (
        up_to_date_at(current_documents(read_documents(settings, run)), settings.prefix)
        for run in last_written(settings)
    )
    return next((moment for moment in moments if moment), None)


def up_to_date_at(documents: Mapping[TaskName, Mapping[str, Any]], prefix: str) -> datetime | None:
    """When a run brought the tables up to date; None when it did not, or was asked for a part of the photos only.

    A run that leaves objects over does not count. So a run under a new backbone counts once readers have that backbone.
    """
    plan = documents.get("plan", {})
    if "counts" not in plan or plan["remaining"]:  # a plan without counts has failed, still runs, or is maintenance's
        return None
    request = plan["request"]
    if request["dry_run"] or request["keys"] or request["mode"] == "interval" or request["prefix"] != prefix:
        return None
    last = documents.get("publish", {}) if plan["work"] else plan
    return datetime.fromisoformat(last["finished_at"]) if last.get("state") == "succeeded" else None
