"""### Fruit maintenance: keeps the tables small and fast

Once a week it rewrites small files and files with many deleted rows, publishes the same rows in the new files, and
drops data that no reader needs any more.

| task | its story | what it does |
|---|---|---|
| `prepare` | `fruits/run/request.py` | checks the params, before the run waits |
| `wait_for_lease` | `fruits/airflow/lease.py` | waits, deferred, until no run of `fruit_features` is between its plan and its publication |
| `plan` | `fruits/steps/plan_maintenance.py` | looks at the lake and logs what there is to do |
| `maintain` | `spark_jobs/maintain.py` | compacts on branches, checks that the rows are the same, writes `photo_hashes` of a large lake, publishes; then expires and removes |
| `verify` | `fruits/steps/verify.py` | with FRUITS_VERIFY_WEEKLY: compares all that is published with the bucket and with itself; else skipped |

**What it keeps.** A publication is retained while it is younger than FRUITS_RETENTION_DAYS or among the newest
FRUITS_RETENTION_PUBLICATIONS. Every retained publication stays readable at its snapshots in every table, under the tag
`publication_<sequence>`, and can be rolled back to. The newest PCA version of every backbone stays. So do the snapshots
that a run in progress started from, and everything that the run has written.

**What it drops.** PCA versions that no retained publication uses, with their embeddings; all other snapshots and their
files; branches of runs that have written nothing for `abandoned_days`; files that no table refers to and that are older
than `orphan_days`; documents and manifests of runs older than the retention. Staged backbones stay.

**What readers notice.** Nothing but speed: a compaction is published like a run, with the counts, gates, backbone and
PCA of the publication before, and only if the rows of the rewritten files are the same. An older publication's files go when that publication
leaves retention, so the lake is larger for a while after a compaction.

**Dry run.** With `dry_run` the logs of `plan` and `maintain` say what the run would do, and nothing changes.

**Rerun, retry, clear.** All harmless: finished work is not repeated. A second run right after the first finds nothing
to do.

**When a run is red.** The last line in the log of `maintain` says what to do. If another publication came in between (a
rollback), Airflow retries the task. Rows that differ after a compaction are a defect: nothing is published.

`runs/<namespace>/<run>/plan.json` and `maintain.json` in the lake record what the run found and did, and the seconds by phase;
`<run>` starts with `maintenance_`.
"""  # noqa: E501 -- rows of a table

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from fruits.airflow.alerts import alert_failure
from fruits.airflow.errors import non_retryable
from fruits.airflow.lease import LeaseSensor
from fruits.airflow.operators import spark_job
from fruits.airflow.tasks import TASK_DEFAULTS

RUN_PREFIX = "maintenance__"  # because both DAGs may have a run with the same id

PARAMS = {
    "dry_run": Param(
        False, type="boolean", title="Dry run", description="Log what the run would do, and change nothing."
    ),
    "rewrite_all": Param(
        False,
        type="boolean",
        title="Rewrite all files",
        description="Sort every file again, not only small ones and those with many deleted rows.",
    ),
    "retention_days": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Retention (days)",
        description="Keep publications younger than this. Empty: FRUITS_RETENTION_DAYS.",
    ),
    "retention_publications": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Retention (publications)",
        description="Keep this many publications, however old. Empty: FRUITS_RETENTION_PUBLICATIONS.",
    ),
    "abandoned_days": Param(
        3,
        type="integer",
        minimum=1,
        maximum=365,
        title="Abandoned after (days)",
        description="Drop the branches of an unpublished run that has written nothing for this long.",
    ),
    "orphan_days": Param(
        3,
        type="integer",
        minimum=2,
        maximum=365,
        title="Orphan age (days)",
        description="Remove files that no table refers to, if they are older than this; younger files may be in use.",
    ),
}


@task
def prepare() -> dict[str, Any]:
    """Check the params: see `resolve_maintenance` in fruits/run/request.py. Returns what the run was asked to do."""
    from fruits.run.request import resolve_maintenance
    from fruits.settings import Settings

    with non_retryable():
        return resolve_maintenance(get_current_context()["params"], Settings.load()).model_dump()


@task
def plan(prepared: dict[str, Any]) -> str:
    """Log what there is to do: see fruits/steps/plan_maintenance.py. Returns the run key."""
    from fruits.run.request import MaintenanceRequest
    from fruits.settings import Settings
    from fruits.steps.plan_maintenance import plan_maintenance

    run_id = RUN_PREFIX + str(get_current_context()["run_id"])
    with non_retryable():
        return plan_maintenance(Settings.load(), MaintenanceRequest(**prepared), run_id).key


@task
def verify() -> None:
    """Compare all that is published with the bucket and with itself: see fruits/steps/verify.py."""
    from fruits.lake.reader import open_read_only
    from fruits.settings import Settings
    from fruits.steps.verify import verify_or_fail

    settings = Settings.load()
    if not settings.verify_weekly:
        raise AirflowSkipException("FRUITS_VERIFY_WEEKLY is not set")
    with non_retryable():
        verify_or_fail(settings, open_read_only(settings))


with DAG(
    dag_id="fruit_maintenance",
    description="Compacts the tables and drops data past retention",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("@weekly", timezone="UTC"),
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 -- Airflow takes the timetable's time zone
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    on_failure_callback=alert_failure,
    tags=["fruits", "maintenance"],
    render_template_as_native_obj=False,
    default_args=TASK_DEFAULTS,
) as dag:
    wait_for_lease = LeaseSensor(task_id="wait_for_lease", run_prefix=RUN_PREFIX)
    prepared = prepare()
    planned = plan(prepared)  # type: ignore[arg-type]  # Airflow replaces it by the value
    prepared >> wait_for_lease >> planned >> spark_job("maintain", str(planned)) >> verify()
