"""``fruits doctor``: is everything there that a run needs?"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fruits.cli.airflow import (
    DAG_ID,
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
from fruits.serve import doctor, watch
from fruits.serve.doctor import Check, Found
from fruits.settings import DagSettings

_AIRFLOW_SECONDS = 120.0
_MOST_RUNS = 3


def examine(data: Path | None) -> dict[str, Any]:
    """The findings of all checks; of this machine also when there is no lake, or the settings are wrong."""
    try:
        with opened(data, "bucket") as place:
            settings = place.settings
            if place.stack is not None:
                settings = settings.model_copy(update={"event_queue": ui_note(place.stack.data).get("queue")})
            checks = [*doctor.machine_checks(settings), *doctor.lake_checks(settings), *_airflow(place)]
            findings = [doctor.Finding("settings", "ok", f"they are valid; the lake is {place.settings.lake}")]
            findings += doctor.examine(checks)
    except FruitsError as error:
        findings = [
            doctor.Finding("settings", "fail", str(error), "mend this first: lake and Airflow were not checked")
        ]
        findings += doctor.examine(doctor.machine_checks(_machine_settings()))
    return {"ok": doctor.worst(findings) != "fail", "checks": [finding.to_document() for finding in findings]}


def examine_freshness(data: Path | None) -> dict[str, Any]:
    """Whether runs keep the tables up to date, by the lake and by Airflow where there is one, as the watchdog does."""
    try:
        with opened(data, "bucket") as place:
            schedule, errors = _schedule(place)
            findings = watch.stale(watch.observe(place.settings, schedule, errors))
    except FruitsError as error:
        findings = [doctor.Finding("settings", "fail", str(error), "fix the settings; the lake was not looked at")]
    findings = findings or [doctor.Finding("tables", "ok", "runs keep them up to date")]
    return {"ok": doctor.worst(findings) != "fail", "checks": [finding.to_document() for finding in findings]}


def _schedule(place: Place) -> tuple[watch.Schedule | None, dict[str, str]]:
    """What Airflow makes of the DAG, or why Airflow cannot be asked; neither where there is no Airflow."""
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
    """Checks of Airflow, where there is one; each asks its program, which takes seconds."""
    try:
        airflow = find_airflow(place)
    except NoAirflowError as error:
        message = str(error)
        return [Check("airflow", lambda: Found(message, "warn", "`make ui` starts it"))]
    if place.stack is not None:
        health = ui_health(place.stack.data)
        if health is None:
            return [Check("airflow", lambda: Found("it does not run", "warn", "`make ui` starts it"))]
        logs = place.stack.data / "logs"
        return [Check("airflow", lambda: _parts(health, logs)), Check("DAG", lambda: _dag(airflow), _AIRFLOW_SECONDS)]
    return [
        Check("airflow", lambda: _scheduler(airflow), _AIRFLOW_SECONDS),
        Check("DAG", lambda: _dag(airflow), _AIRFLOW_SECONDS),
    ]


def _scheduler(airflow: Airflow) -> Found:
    airflow.check("jobs", "check", "--job-type", "SchedulerJob", "--allow-multiple", "--limit", "100")
    return Found("its scheduler is alive")


def _parts(health: Mapping[str, str], logs: Path) -> Found:
    ill = [f"{name} is {state}" for name, state in health.items() if state != "healthy"]
    if ill:
        return Found(", ".join(ill), "fail", f"look into {logs}")
    return Found(f"{', '.join(health)} are healthy")


def _dag(airflow: Airflow) -> Found:
    """Whether the DAG is known and on, and what became of its last runs."""
    if errors := airflow.ask("dags", "list-import-errors"):
        last = str(errors[0]["error"]).strip().splitlines()[-1]
        return Found(f"{errors[0]['filepath']}: {last}", "fail", "mend the file, or the settings that it reads")
    paused = is_paused(airflow)
    runs = airflow.ask("dags", "list-runs", DAG_ID)[:_MOST_RUNS]
    last = ", ".join(f"{run['run_id']} {run['state']}" for run in runs) or "none"
    if paused:
        return Found(f"paused; last runs: {last}", "warn", "switch it on in Airflow's UI, if that is not meant")
    if runs and runs[0]["state"] == "failed":
        return Found(f"last runs: {last}", "warn", "see what the run says: `fruits status`")
    return Found(f"on; last runs: {last}")


def render(document: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    yield table(("", "check", "found"), ((one["state"], one["check"], one["found"]) for one in document["checks"]))
    wrong = [(one["check"], one["fix"]) for one in document["checks"] if one["fix"]]
    yield ""
    if wrong:
        yield "To do:"
        yield fields(wrong)
    else:
        yield f"All is well ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC)."
