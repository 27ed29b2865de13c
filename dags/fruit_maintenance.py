"""### Fruit maintenance: keeps the tables small and fast

Once a week it rewrites small files and files with many deleted rows, publishes the same rows in the new files, and
drops what nobody needs any more.

| task | what it does |
|---|---|
| `wait_for_lease` | waits, deferred, until no run of `fruit_features` is between its plan and its publication |
| `plan` | looks at the lake and says in its log what there is to do; checks the params |
| `maintain` | Spark: compacts on branches, checks that the rows are the same, publishes; then expires and removes |

**What it keeps.** A publication is retained while it is younger than FRUITS_RETENTION_DAYS or among the newest
FRUITS_RETENTION_PUBLICATIONS. Every retained publication stays readable at its snapshots in every table, under the tag
`publication_<sequence>`, and can be rolled back to. The newest PCA version of every backbone stays, and so does what a
run in progress started from and has written.

**What it drops.** PCA versions that no retained publication uses, with their embeddings; all other snapshots and their
files; branches of runs that were not heard of for `abandoned_days`; files that no table knows of and that are older
than `orphan_days`; documents and manifests of runs older than the retention. Staged backbones stay.

**What readers notice.** Nothing but speed: compaction is published like a run, with the counts, gates, backbone and PCA
of the publication before, and only if its rows are the same. An older publication's files go when it leaves
retention, so the lake is larger for a while after a compaction.

**Dry run.** With `dry_run` the logs of `plan` and `maintain` say what would be done, and nothing is changed.

**Rerun, retry, clear.** All harmless: what is done is found done. A second run right after finds nothing to do.

**When it is red.** The last line of `maintain` says what to do. If somebody published in between (a rollback), it is
tried again by itself. Rows that differ after compaction are a defect: nothing is published.

`runs/<run>/plan.json` and `maintain.json` in the lake have what was found and done, and the seconds by stage; `<run>`
starts with `maintenance_`.
"""

from datetime import datetime

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, get_current_context, task

from fruits.airflow.alerts import alerts
from fruits.airflow.operators import TASK_DEFAULTS, LeaseSensor, non_retryable, spark_job

RUN_PREFIX = "maintenance__"  # both DAGs may have a run of the same id

PARAMS = {
    "dry_run": Param(False, type="boolean", title="Dry run", description="Say what would be done, and change nothing."),
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
        description="Keep so many publications, however old. Empty: FRUITS_RETENTION_PUBLICATIONS.",
    ),
    "abandoned_days": Param(
        3,
        type="integer",
        minimum=1,
        maximum=365,
        title="Abandoned after (days)",
        description="A run that is not published and was not heard of for this long is dead: its branches are dropped.",
    ),
    "orphan_days": Param(
        3,
        type="integer",
        minimum=2,
        maximum=365,
        title="Orphan age (days)",
        description="Remove files that no table knows of when they are older; younger ones may be work in progress.",
    ),
}


@task
def plan() -> str:
    """Look what there is to do; returns the run's folder in the lake."""
    from fruits.run.upkeep import resolve_maintenance
    from fruits.settings import Settings
    from fruits.steps.plan_maintenance import plan_maintenance

    context = get_current_context()
    with non_retryable():
        settings = Settings.load()
        request = resolve_maintenance(context["params"], settings)
        planned = plan_maintenance(settings, request, RUN_PREFIX + context["run_id"])
    return str(planned["slug"])


with DAG(
    dag_id="fruit_maintenance",
    description="Compacts the tables and drops what is past retention",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("@weekly", timezone="UTC"),
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 -- Airflow takes the timetable's zone
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    on_failure_callback=alerts(),
    tags=["fruits", "maintenance"],
    render_template_as_native_obj=False,
    default_args=TASK_DEFAULTS,
) as dag:
    planned = plan()
    maintain = spark_job("maintain", str(planned))
    LeaseSensor(task_id="wait_for_lease", run_prefix=RUN_PREFIX) >> planned >> maintain
