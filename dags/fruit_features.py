"""### Fruit features: from photos in the bucket to published tables

Featurizes what is new, changed or gone in the bucket, keeps the PCA current, checks the result and publishes it.
Readers see all of a run or nothing of it.

| task | what it does |
|---|---|
| `prepare` | resolves what the run covers; checks bucket, catalog and backbone (built the first time, half a minute) |
| `wait_for_images` | waits, deferred, until there is an object under the prefix |
| `uploads_settled` | waits, deferred, until no upload came in for `settle_seconds` |
| `wait_for_lease` | waits, deferred, until no other run is between its plan and its publication |
| `plan` | compares the bucket with the published tables by key and ETag; nothing to do skips the rest |
| `featurize` | Spark: photos to feature vectors; unreadable photos go to `quarantine` with a reason |
| `pca` | Spark: running statistics, refit when needed, embeddings |
| `validate` | Spark: the gates; a required gate that fails makes the run red and nothing is published |
| `publish` | one atomic commit to `publications`, then `main` of every table follows |

**When it runs.** When photos arrive, if FRUITS_EVENT_QUEUE names the queue of the bucket's notifications; an event only
wakes it, what is done comes from comparing bucket and tables. Every hour, to find what an event missed. By hand, with
the params below. Each of these looks at the whole prefix. A backfill has one run for each day (UTC), which covers that
day's photos only: by the date in the key, `dt=2026-11-20/`, else by LastModified.

**Another backbone.** A run or a backfill with the param `backbone` builds it beside the one that readers use. They are
switched to it by the run that leaves no photo over, once that has passed its gates.

**Overlap.** However many runs are started (sweep, event, by hand, a backfill's), one at a time works between its plan
and its publication; the others wait in `wait_for_lease`, and plan on what it left. A run whose process died loses its
lease after five minutes.

**Rerun, retry, clear.** All harmless: a task starts its run's branch again from where the plan found the tables, and
publishing twice changes nothing. Clear from `wait_for_lease` to look at the bucket again.

**When it is red.** The failed task's last log line says what to do. A bad photo never makes a run red: look in the
table `quarantine`.

**Who is told.** A failed run, and FRUITS_ALERT_AFTER_HOURS without one that brought the tables up to date, go to the
channels that are set (SNS, Slack, e-mail). A publication is an event of the asset `fruits_embeddings`, on which other
DAGs may be scheduled.

Every task leaves `runs/<run>/<task>.json` in the lake: counts, seconds by stage, versions, errors.
"""

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, Param, get_current_context, task

from fruits.airflow.alerts import alerts, deadline
from fruits.airflow.events import photos_asset
from fruits.airflow.operators import (
    TASK_DEFAULTS,
    LeaseSensor,
    PhotosPresentSensor,
    UploadsSettledSensor,
    non_retryable,
    spark_job,
)
from fruits.airflow.timetables import SweepTimetable
from fruits.settings import DagSettings

EMBEDDINGS = Asset(name="fruits_embeddings", uri="fruits://lake/embeddings")

PARAMS = {
    "prefix": Param(
        None,
        type=["null", "string"],
        title="Prefix",
        description="Only keys that start with this, such as Training/ or dt=2026-11-20/, within FRUITS_PREFIX. "
        "Empty: all of that.",
    ),
    "keys": Param(
        [],
        type=["null", "array"],
        items={"type": "string"},
        title="Keys",
        description="Only these object keys, one a line, such as Training/Kiwi/1.jpg. Empty: all under the prefix.",
    ),
    "mode": Param(
        "auto",
        type="string",
        enum=["auto", "reconcile", "interval", "rebuild"],
        title="Mode",
        description="auto: a backfill covers its day, any other run reconciles everything. rebuild: featurize every "
        "photo again.",
    ),
    "backbone": Param(
        None,
        type=["null", "string"],
        title="Backbone",
        examples=["efficientnet-lite0", "MobileNetV2"],
        description="efficientnet-lite0 or a keras.applications model such as MobileNetV2. Empty: the one readers use, "
        "or a new FRUITS_BACKBONE.",
    ),
    "weights": Param(
        None,
        type=["null", "string"],
        title="Weights",
        examples=["default", "imagenet"],
        description="default, imagenet, a path or a URI (https, s3, file). Empty: FRUITS_WEIGHTS.",
    ),
    "n_components": Param(
        None,
        type=["null", "number"],
        exclusiveMinimum=0,
        title="PCA components",
        description="A count such as 128, or a share of variance such as 0.95. Empty: FRUITS_N_COMPONENTS.",
    ),
    "refit": Param(
        "auto",
        type="string",
        enum=["auto", "always", "never"],
        title="Refit the PCA",
        description="auto: when there is none, new photos drift, or the photos have doubled since the last fit; in a "
        "backfill once at most, by the run that leaves no photo over.",
    ),
    "limit": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Limit",
        description="At most this many photos in this run, the oldest first; the rest is reported as pending.",
    ),
    "retry_quarantined": Param(
        False, type="boolean", title="Retry quarantined", description="Read photos in quarantine again."
    ),
    "dry_run": Param(False, type="boolean", title="Dry run", description="Plan, log what would be done, and stop."),
    "settle_seconds": Param(
        10,
        type="integer",
        minimum=0,
        maximum=3_600,
        title="Settle time (s)",
        description="Photos are planned when no upload came in for this long, or for ten times as long kept coming.",
    ),
    "sensor_timeout": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=604_800,
        title="Sensor time-out (s)",
        description="How long to wait for photos to come. Empty: an hour, but not at all for a prefix of your own.",
    ),
}


@task
def prepare() -> dict[str, Any]:
    """Resolve what the run covers, and check that everything it needs is there."""
    from fruits.run.request import resolve_request
    from fruits.settings import Settings
    from fruits.steps.prepare import prepare as prepare_run

    context = get_current_context()
    run = context["dag_run"]
    interval = (run.data_interval_start, run.data_interval_end)
    with non_retryable():
        settings = Settings.load()
        request = resolve_request(
            context["params"],
            settings,
            run_type=run.run_type.value,
            data_interval=interval if all(interval) else None,  # type: ignore[arg-type]
        )
        card = prepare_run(settings, request)
    return {"bucket": settings.bucket, "request": request.to_document(), "card": card.to_document()}


@task.short_circuit
def plan(prepared: dict[str, Any]) -> str:
    """Write the manifest; returns the run's folder in the lake, or nothing when there is nothing to do."""
    from fruits.backbones.card import Card
    from fruits.run.request import RunRequest
    from fruits.settings import Settings
    from fruits.steps.plan import plan_run

    context = get_current_context()
    with non_retryable():
        request = RunRequest.from_document(prepared["request"])
        planned = plan_run(Settings.load(), request, Card.from_document(prepared["card"]), context["run_id"])
    context["ti"].xcom_push("counts", planned["counts"])
    return planned["slug"] if planned["work"] and not request.dry_run else ""


@task(outlets=[EMBEDDINGS])
def publish(run: str) -> dict[str, Any]:
    """Make the run the current publication."""
    from fruits.settings import Settings
    from fruits.steps.publish import publish_run

    with non_retryable():
        published = publish_run(Settings.load(), run)
    told = {
        "publication_id": published.publication_id,
        "sequence": published.sequence,
        "model_id": published.model_id,
        "pca_id": published.pca_id,
        "counts": dict(published.counts or {}),
    }
    get_current_context()["outlet_events"][EMBEDDINGS].extra = told
    return told


with DAG(
    dag_id="fruit_features",
    description="Photos in S3 to published image features and embeddings",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=SweepTimetable(),
        assets=[photos_asset(DagSettings.load().event_queue)],
    ),
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 -- Airflow takes the timetable's zone
    catchup=False,
    max_active_runs=2,  # one that works or waits for photos, and one that waits for the lease: a third finds nothing
    params=PARAMS,
    on_failure_callback=alerts(),
    deadline=deadline(),
    tags=["fruits", "features"],
    render_template_as_native_obj=False,
    default_args=TASK_DEFAULTS,
) as dag:
    PREFIX = "{{ ti.xcom_pull(task_ids='prepare')['request']['prefix'] }}"
    BUCKET = "{{ ti.xcom_pull(task_ids='prepare')['bucket'] }}"

    prepared = prepare()
    wait_for_images = PhotosPresentSensor(
        task_id="wait_for_images",
        bucket_name=BUCKET,
        bucket_key=PREFIX,
        wildcard_match=True,
        deferrable=True,
        poke_interval=15,
    )
    uploads_settled = UploadsSettledSensor(
        task_id="uploads_settled", bucket_name=BUCKET, prefix=PREFIX, deferrable=True
    )
    wait_for_lease = LeaseSensor(task_id="wait_for_lease")
    planned = plan(prepared)
    featurize, pca, validate = (spark_job(job, str(planned)) for job in ("featurize", "pca", "validate"))
    prepared >> wait_for_images >> uploads_settled >> wait_for_lease >> planned
    planned >> featurize >> pca >> validate >> publish(planned)
