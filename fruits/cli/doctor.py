"""``fruits doctor``: checks of everything that a run needs."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fruits.cli.airflow import (
    Airflow,
    NoAirflowError,
    find_airflow,
    is_paused,
    schedule_of,
    ui_health,
    ui_note,
)
from fruits.cli.output import Document, fields, table
from fruits.cli.place import Place, opened
from fruits.errors import FruitsError
from fruits.run import DAG_ID
from fruits.serve import doctor, watch
from fruits.serve.doctor import Check, CheckResult
from fruits.settings import DagSettings

_AIRFLOW_SECONDS = 120.0
_MOST_RUNS = 3


def examine(data: Path | None) -> dict[str, Any]:
    """Do all checks; without a lake, or with wrong settings, only the checks of this machine."""
    try:
        with opened(data, "bucket") as place:
            settings = place.settings
            if place.stack is not None:
                settings = settings.model_copy(update={"event_queue": ui_note(place.stack.data).get("queue")})
            checks = [*doctor.machine_checks(settings), *doctor.lake_checks(settings), *_airflow(place)]
            findings = [doctor.Finding("settings", "ok", f"the settings are valid; the lake is {place.settings.lake}")]
            findings += doctor.examine(checks)
    except FruitsError as error:
        findings = [doctor.Finding("settings", "fail", str(error), "fix this first: lake and Airflow were not checked")]
        findings += doctor.examine(doctor.machine_checks(_machine_settings()))
    return {"ok": doctor.worst(findings) != "fail", "checks": [finding.to_document() for finding in findings]}


def examine_freshness(data: Path | None) -> dict[str, Any]:
    """Do the checks of ``fruit_watchdog``: the age of the tables and, where there is an Airflow, its schedule."""
    try:
        with opened(data, "bucket") as place:
            schedule, errors = _schedule(place)
            findings = watch.stale(watch.observe(place.settings, schedule, errors))
    except FruitsError as error:
        findings = [doctor.Finding("settings", "fail", str(error), "fix the settings; the lake was not checked")]
    findings = findings or [doctor.Finding("tables", "ok", "runs keep the tables up to date")]
    return {"ok": doctor.worst(findings) != "fail", "checks": [finding.to_document() for finding in findings]}


def _schedule(place: Place) -> tuple[watch.Schedule | None, dict[str, str]]:
    """Airflow's schedule of the DAG, or the error of Airflow; neither where there is no Airflow."""
    try:
        airflow = find_airflow(place)
    except NoAirflowError:
        return None, {}
    try:
        return schedule_of(airflow), {}
    except FruitsError as error:
        return None, {"airflow": str(error)}


def _machine_settings() -> DagSettings:
    try:
        return DagSettings.load()
    except FruitsError:
        return DagSettings.model_construct(**{name: field.default for name, field in DagSettings.model_fields.items()})


def _airflow(place: Place) -> list[Check]:
    """The checks of Airflow. Each starts Airflow's program, which takes seconds."""
    try:
        airflow = find_airflow(place)
    except NoAirflowError as error:
        message = str(error)
        return [Check("airflow", lambda: CheckResult(message, "warn", "`make ui` starts Airflow"))]
    if place.stack is not None:
        health = ui_health(place.stack.data)
        if health is None:
            return [Check("airflow", lambda: CheckResult("Airflow does not run", "warn", "`make ui` starts Airflow"))]
        logs = place.stack.data / "logs"
        return [Check("airflow", lambda: _parts(health, logs)), Check("DAG", lambda: _dag(airflow), _AIRFLOW_SECONDS)]
    return [
        Check("airflow", lambda: _scheduler(airflow), _AIRFLOW_SECONDS),
        Check("DAG", lambda: _dag(airflow), _AIRFLOW_SECONDS),
    ]


def _scheduler(airflow: Airflow) -> CheckResult:
    airflow.check("jobs", "check", "--job-type", "SchedulerJob", "--allow-multiple", "--limit", "100")
    return CheckResult("the scheduler is alive")


def _parts(health: Mapping[str, str], logs: Path) -> CheckResult:
    unhealthy = [f"{name} is {state}" for name, state in health.items() if state != "healthy"]
    if unhealthy:
        return CheckResult(", ".join(unhealthy), "fail", f"read the logs in {logs}")
    return CheckResult(f"{', '.join(health)} are healthy")


def _dag(airflow: Airflow) -> CheckResult:
    """Check that Airflow can import the DAG and that the DAG is on; name its last runs with their states."""
    if errors := airflow.ask("dags", "list-import-errors"):
        reason = str(errors[0]["error"]).strip().splitlines()[-1]
        fix = "fix the file, or the setting that the error names"
        return CheckResult(f"{errors[0]['filepath']}: {reason}", "fail", fix)
    paused = is_paused(airflow)
    runs = airflow.ask("dags", "list-runs", DAG_ID)[:_MOST_RUNS]
    last = ", ".join(f"{run['run_id']} {run['state']}" for run in runs) or "none"
    if paused:
        return CheckResult(f"paused; last runs: {last}", "warn", "switch the DAG on in Airflow's UI")
    if runs and runs[0]["state"] == "failed":
        return CheckResult(f"last runs: {last}", "warn", "`fruits status` shows the run's error")
    return CheckResult(f"on; last runs: {last}")


def render(document: Document) -> Iterable[RenderableType]:
    """The findings for a terminal, then the fixes."""
    findings = document["checks"]
    rows = ((finding["state"], finding["check"], finding["found"]) for finding in findings)
    yield table(("", "check", "found"), rows)
    fixes = [(finding["check"], finding["fix"]) for finding in findings if finding["fix"]]
    yield ""
    if fixes:
        yield "To do:"
        yield fields(fixes)
    else:
        yield f"All is well ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC)."
