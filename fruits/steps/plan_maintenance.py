"""The task `plan` of the DAG `fruit_maintenance`: say what there is to compact and to drop. Needs no JVM."""

from datetime import UTC, datetime
from typing import Any

from fruits.lake.catalog import Lake
from fruits.run.documents import run_document
from fruits.run.state import run_key
from fruits.run.upkeep import MaintenanceRequest, log_upkeep, survey
from fruits.settings import Settings


def plan_maintenance(settings: Settings, request: MaintenanceRequest, run_id: str) -> dict[str, Any]:
    """Say what there is to do, and write it and the request to the run's plan document; returns the document."""
    slug = run_key(run_id)
    with run_document(settings, "plan", run_id, slug, request=request.to_document(), found={}) as document:
        upkeep = survey(Lake.open(settings), request, datetime.now(UTC))
        document.record(slug=slug, found=upkeep.to_document())
    log_upkeep(upkeep, "would" if request.dry_run else "to")
    return document.content
