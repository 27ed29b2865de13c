"""The task `look` of `fruit_watchdog`: ask Airflow and the lake, and alert of what changed since the last look."""

import json
import logging
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from fruits.airflow import metrics
from fruits.airflow.alerts import send, watch_message
from fruits.errors import FruitsError
from fruits.run import DAG_ID
from fruits.serve.watch import Observation, Schedule, news, observe, stale
from fruits.settings import DagSettings, Settings

log = logging.getLogger("fruits")

_ALERTED = "fruits_watchdog"
_DAGS = Path(__file__).parents[2] / "dags"
_SECOND_LOOK_SECONDS = 30.0  # a run that was just created is queued for a moment


def watch() -> dict[str, str]:
    """Look, alert of what is new or over, and remember it; returns all findings by check.

    The alert is sent before it is remembered: an alert that fails is sent again by the task's retry, and a finding that
    no channel could take is sent once a channel is set.
    """
    observation = _observe()
    metrics.send(metrics.of_observation(observation))
    findings = stale(observation)
    for finding in findings:
        log.warning("%s: %s; %s", finding.check, finding.found, finding.fix)
    changes = news(json.loads(Variable.get(_ALERTED, default="{}")), findings)
    if changes and (channels := send(watch_message(changes))):
        log.info("alert sent by %s", ", ".join(channels))
        Variable.set(_ALERTED, json.dumps(changes.alerted))
    return {finding.check: finding.found for finding in findings}


def _observe() -> Observation:
    """What is known now. Wrong settings are a finding; they leave out the lake."""
    errors: dict[str, str] = {}
    try:
        schedule = look_at_schedule()
    except AirflowRuntimeError as error:  # most likely the file was never imported
        schedule = Schedule(import_errors=import_errors())
        if not schedule.import_errors:
            errors["DAG"] = f"Airflow does not tell of {DAG_ID}: {error}"
    try:
        settings = Settings.load()
    except FruitsError as error:
        hours = DagSettings.of_alerts().stale_hours
        errors["settings"] = str(error)
        return Observation(datetime.now(UTC), timedelta(hours=hours), None, schedule, errors)
    return observe(settings, schedule, errors)


def look_at_schedule() -> Schedule:
    """What Airflow makes of `fruit_features`, from inside a task."""
    dag = RuntimeTaskInstance.get_dag(DAG_ID)
    queued, running = _runs()
    if queued and not running and not dag.is_paused:
        time.sleep(_SECOND_LOOK_SECONDS)
        queued, running = _runs()
    return Schedule(dag.is_paused, dag.next_dagrun, queued, running, import_errors())


def _runs() -> tuple[int, int]:
    """How many runs are queued, and how many are running."""
    queued, running = (RuntimeTaskInstance.get_dr_count(DAG_ID, states=[state]) for state in ("queued", "running"))
    return queued, running


def import_errors() -> dict[str, str]:
    """The last line of the error of each DAG file that cannot be imported, by the file's name."""
    from airflow.dag_processing.dagbag import DagBag

    errors = DagBag(str(_DAGS)).import_errors
    return {Path(file).name: str(error).strip().splitlines()[-1].strip() for file, error in errors.items()}
