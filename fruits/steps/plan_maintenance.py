"""The task `plan` of the DAG `fruit_maintenance`: say what there is to compact and to drop. Needs no JVM."""

from datetime import UTC, datetime

from fruits.lake.catalog import Lake
from fruits.lake.reader import open_read_only
from fruits.lake.rebuild import check_catalog_is_current
from fruits.run.documents import PlannedMaintenance, task_document
from fruits.run.migration import migrate
from fruits.run.request import MaintenanceRequest
from fruits.run.state import run_key
from fruits.run.upkeep import log_upkeep, survey
from fruits.settings import Settings


def plan_maintenance(settings: Settings, request: MaintenanceRequest, run_id: str) -> PlannedMaintenance:
    """Survey the lake, and write what there is to do to the run's document."""
    key = run_key(run_id)
    with task_document(settings, "plan_maintenance", key, run_id) as document:
        lake = open_read_only(settings) if request.dry_run else Lake.open(settings)
        check_catalog_is_current(lake)
        if not request.dry_run:
            migrate(lake)
        upkeep = survey(lake, request, datetime.now(UTC))
        planned = PlannedMaintenance(key=key, run_id=run_id, request=request, found=upkeep.to_document())
        document.record(planned)
    log_upkeep(upkeep, "would" if request.dry_run else "to")
    return planned
