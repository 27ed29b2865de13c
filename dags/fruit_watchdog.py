"""### Fruit watchdog: alerts of faults that no failed run would show

A paused DAG, a DAG file that cannot be imported or a typo in a setting starts no run of `fruit_features`, and hence no
alert of a failed run. This DAG looks every quarter of an hour.

| task | its story | what it does |
|---|---|---|
| `look` | `fruits/serve/watch.py` | compares the age of the tables and Airflow's schedule with what they should be |
| `announce` | `fruits/airflow/announcements.py` | sends the event of `fruits_embeddings` for a publication that no run announced: a rollback, a compaction |

**What it finds.** Tables that no run has brought up to date for FRUITS_ALERT_AFTER_HOURS (with the number of pending
photos); `fruit_features` paused; a DAG file that cannot be imported; a wrong setting; no sweep for three hours; runs
that stay queued; a lake that does not answer.

**Alerts.** The channels of the other alerts (SNS, Slack, e-mail) get each finding once, and once more when it is over.
The Airflow variable `fruits_watchdog` holds the findings that alerts have named. Delete the variable to get the alerts again.

**Rerun, retry, clear.** All harmless. A run is green whatever it finds. A run is red when Airflow did not answer or when
no channel took its alert. A red run sends no alert, and the next run tries again.

This DAG is on from the start and reads no setting when its file is parsed, so a wrong setting does not stop it. To watch
Airflow itself from outside, run `fruits doctor --stale` from cron.
"""  # noqa: E501 -- rows of a table

from datetime import datetime, timedelta

from airflow.sdk import DAG, CronTriggerTimetable, get_current_context, task

from fruits.airflow.announcements import EMBEDDINGS
from fruits.airflow.tasks import TASK_DEFAULTS


@task
def look() -> dict[str, str]:
    """Look, alert of what is new, and return all findings by check."""
    from fruits.airflow.watchdog import watch

    return watch()


@task(inlets=[EMBEDDINGS], outlets=[EMBEDDINGS])
def announce() -> dict[str, object]:
    """Announce the current publication, unless it was announced; returns the event's extra."""
    from fruits.airflow.announcements import announce_current

    return announce_current(get_current_context())


with DAG(
    dag_id="fruit_watchdog",
    description="Alerts when the tables get old or nothing runs",
    doc_md=__doc__,
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 -- Airflow takes the timetable's time zone
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    is_paused_upon_creation=False,
    tags=["fruits", "watchdog"],
    default_args={**TASK_DEFAULTS, "execution_timeout": timedelta(minutes=10)},
) as dag:
    look()
    announce()
