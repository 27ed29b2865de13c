"""### Fruit features: from photos in the bucket to published tables

Featurizes the photos that are new, changed or gone in the bucket, keeps the PCA current, checks the result and
publishes it. Readers see all of a run or nothing of it.

| task | its story | what it does |
|---|---|---|
| `prepare` | `fruits/steps/prepare.py` | resolves what the run covers; checks bucket, catalog and backbone (the first run builds the backbone, half a minute) |
| `wait_for_images` | `fruits/airflow/sensors.py` | waits, deferred, until there is a photo under the prefix; a run by keys goes on |
| `uploads_settled` | `fruits/airflow/sensors.py` | waits, deferred, until no upload came in for `settle_seconds`; a run by events goes on, except before the first publication |
| `wait_for_lease` | `fruits/airflow/lease.py` | waits, deferred, until no other run is between its plan and its publication |
| `plan` | `fruits/steps/plan.py` | compares the bucket, or the keys of events, with the published tables by key and ETag; when there is nothing to do, skips the rest |
| `featurize` | `spark_jobs/featurize.py` | photos to feature vectors; unreadable photos go to `quarantine` with a reason |
| `pca` | `spark_jobs/pca.py` | running statistics, a refit when needed, embeddings |
| `validate` | `spark_jobs/validate.py` | the gates; when a required gate fails, the run turns red and publishes nothing |
| `publish` | `fruits/steps/publish.py` | one atomic commit to `publications`; then `main` of every table follows |

**When it runs.** When photos arrive, if FRUITS_EVENT_QUEUE names the queue of the bucket's notifications. The keys that
these name are kept in the lake, and such a run looks each of them up: it lists nothing, and neither refits the PCA nor
switches backbones, because it does not know what remains in the bucket. More than 5,000 keys, or a message in a form that
Fruits does not know, make it a sweep. Every FRUITS_SWEEP_HOURS a sweep covers the whole prefix, and finds photos that an
event missed. By hand, with the params below: the whole prefix, or only `keys`, which are looked up as well. A backfill
makes one run for each day (UTC), which covers that
day's photos only: by the date in the key, `dt=2026-11-20/`, or else by LastModified.

**Another backbone.** A run or a backfill with the param `backbone` builds the new backbone's rows beside the rows that
readers use. The run that clears the backlog switches readers to the new backbone, once its gates have passed.

**Approvals.** More deletions than FRUITS_MAX_DELETED_SHARE and FRUITS_MAX_DELETIONS allow within 24 hours, and the last
photos of a label, wait for a person's approval; so do a rebuild, a refit and a switch of backbone of more rows than
FRUITS_APPROVAL_ROWS. Created and updated photos go on meanwhile. Failed gates may be approved, too. Approve in the DAG
`fruit_approval`, or by `fruits approve`.

**Overlap.** However many runs are started (by the hour, by events, by hand, by a backfill), one run at a time works
between its plan and its publication. The others wait in `wait_for_lease`, and then plan from the tables that the
finished run left. A sweep or an event's run is skipped while another sweep waits, because the waiting run will find the
same photos; an event's run also while another event's run waits. A run that ended without releasing the lease holds up the others for a minute or two. A run clears itself
and plans again, once, when another run has published since its plan.

**An empty bucket** is no failure: sweeps and events are skipped, and say so. A run by hand waits for photos.

**Rerun, retry, clear.** All harmless: each attempt writes to branches of its own, which start from the tables that the
plan found. `featurize` goes on where its attempt before ended, also after a crash. Publishing twice changes nothing and
announces nothing. Clear from `wait_for_lease` to look at the bucket again.

**When a run is red.** The last line in the failed task's log says what to do. A bad photo never turns a run red: look in
the table `quarantine`.

**Params.** A name that the form lacks (`dryrun`) or a value of another type turns `prepare` red before anything is done.
The message names the nearest param.

**Pin.** After `fruits pin` readers stay on a publication. Each run then ends green after `plan`, and the log of `plan`
says who pinned readers and why. `fruits unpin` lets runs publish again.

**Alerts.** The channels that are set (SNS, Slack, e-mail) get an alert for each failed run, for each new question that
waits for an approval, and for each publication with fewer rows than the publication before. `fruit_watchdog` alerts of
faults that stop runs from starting. A publication is an event of the asset `fruits_embeddings`, which may schedule other
DAGs. The note of an ended run has its publication and its counts, what waits for an approval, or its error.

Every task leaves `runs/<namespace>/<run>/<task>.json` in the lake: counts, seconds by phase, versions, errors.
"""  # noqa: E501 -- rows of a table

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, Param, get_current_context, task

from fruits.airflow.alerts import alert, alert_failure, shrunk_message
from fruits.airflow.announcements import EMBEDDINGS, announce
from fruits.airflow.approvals import questions_announced
from fruits.airflow.errors import non_retryable
from fruits.airflow.events import photos_asset
from fruits.airflow.lease import LeaseSensor
from fruits.airflow.operators import spark_job
from fruits.airflow.replan import replan_on_conflict
from fruits.airflow.sensors import PhotosPresentSensor, UploadsSettledSensor
from fruits.airflow.tasks import TASK_DEFAULTS, requested, skip_when_another_waits
from fruits.airflow.timetables import SweepTimetable
from fruits.settings import DagSettings

SETTINGS = DagSettings.load()
PHOTOS = photos_asset(SETTINGS.event_queue)

PARAMS = {
    "prefix": Param(
        None,
        type=["null", "string"],
        title="Prefix",
        description="Only keys that start with this, such as Training/ or dt=2026-11-20/, within FRUITS_PREFIX. "
        "Empty: all keys within FRUITS_PREFIX.",
    ),
    "keys": Param(
        [],
        # No `type`: Airflow's form then shows lines, as the default is a list, and one text is taken as well.
        anyOf=[{"type": ["null", "array"]}, {"type": "string"}],
        items={"type": "string"},
        title="Keys",
        description="Only these object keys, one per line, such as Training/Kiwi/1.jpg. They are looked up "
        "without a listing. Empty: all under the prefix.",
    ),
    "mode": Param(
        "auto",
        type="string",
        enum=["auto", "reconcile", "interval", "rebuild"],
        title="Mode",
        description="auto: a backfill covers its day, any other run reconciles everything. rebuild: featurizes every "
        "photo again. A photo that cannot be read then keeps its row, and the next run takes the photo.",
    ),
    "backbone": Param(
        None,
        type=["null", "string"],
        title="Backbone",
        examples=["efficientnet-lite0", "MobileNetV2"],
        description="efficientnet-lite0 or a keras.applications model such as MobileNetV2. Empty: the backbone that "
        "readers use, or a new FRUITS_BACKBONE.",
    ),
    "weights": Param(
        None,
        type=["null", "string"],
        title="Weights",
        examples=["default", "imagenet"],
        description="default, imagenet, or a file in a place that FRUITS_WEIGHTS_FROM lists. Empty: FRUITS_WEIGHTS.",
    ),
    "precision": Param(
        None,
        type=["null", "string"],
        enum=[None, "fp32", "int8"],
        title="Precision",
        description="fp32, or int8, which takes about half the time and is another backbone. Empty: FRUITS_PRECISION.",
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
        description="auto: when there is no PCA, when new photos drift, or when the photos have doubled since the last "
        "fit; a backfill refits once at most, in the run that leaves no photo over.",
    ),
    "limit": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        title="Limit",
        description="At most this many photos in this run, the oldest first; the run reports the rest as pending.",
    ),
    "retry_quarantined": Param(
        False, type="boolean", title="Retry quarantined", description="Read the photos in quarantine again."
    ),
    "allow_deletes": Param(
        None,
        type=["null", "string", "boolean"],
        title="Allow deletions",
        description="Approves deletions that wait for an approval: their digest, as `fruits status` shows it, or true "
        "for any (but not when the bucket lists nothing at all). Empty: a person decides.",
    ),
    "dry_run": Param(False, type="boolean", title="Dry run", description="Plan, log what the run would do, and stop."),
    "settle_seconds": Param(
        10,
        type="integer",
        minimum=0,
        maximum=3_600,
        title="Settle time (s)",
        description="Plan when no upload came in for this long, or when uploads kept coming for ten times as long. "
        "Runs by events wait only before the first publication.",
    ),
    "sensor_timeout": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=604_800,
        title="Sensor time-out (s)",
        description="How long a run by hand waits for photos. Empty: an hour, or no wait when you enter a prefix.",
    ),
}


@task
def prepare() -> dict[str, Any]:
    """Resolve what the run covers, and check that everything it needs is there: see fruits/steps/prepare.py."""
    from fruits.settings import Settings
    from fruits.steps.prepare import prepare as prepare_run

    with non_retryable():
        settings = Settings.load()
        context = get_current_context()
        request = requested(context, settings)
        skip_when_another_waits(context, settings)
        published = prepare_run(settings, request)
    return {"bucket": settings.bucket, "request": request.model_dump(mode="json"), "published": published}


@task.short_circuit(inlets=[PHOTOS])
def plan(prepared: dict[str, Any]) -> str:
    """Write the manifest: see fruits/steps/plan.py. Returns the run key; an empty one skips the rest of the run."""
    from fruits.run.request import RunRequest
    from fruits.run.state import run_key
    from fruits.settings import Settings
    from fruits.steps.plan import plan_run

    context = get_current_context()
    request, run_id = RunRequest.model_validate(prepared["request"]), str(context["run_id"])
    with non_retryable():
        settings = Settings.load()
    with questions_announced(settings, "plan", run_key(run_id), context), non_retryable():
        planned = plan_run(settings, request, run_id)
    context["ti"].xcom_push("counts", dict(planned.counts))
    if planned.pinned:
        context["ti"].xcom_push("pinned", planned.pinned)
    return planned.key if planned.work and not request.dry_run else ""


@task(inlets=[EMBEDDINGS], outlets=[EMBEDDINGS])
def publish(run: str) -> dict[str, Any]:
    """Make the run the current publication, and announce it to other DAGs: see fruits/steps/publish.py."""
    from fruits.airflow import metrics
    from fruits.settings import Settings
    from fruits.steps.publish import publish_run

    context = get_current_context()
    with non_retryable(), replan_on_conflict(context):
        published = publish_run(Settings.load(), run)
    publication, before = published.publication, published.rows_before
    extra = announce(context, publication, published.current)
    metrics.send(metrics.of_publication(publication))
    if publication.rows < before:
        alert(shrunk_message(before, publication.rows, publication.publication_id))
    return extra


with DAG(
    dag_id="fruit_features",
    description="Photos in S3 to published image features and embeddings",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=SweepTimetable(SETTINGS.sweep_hours),  # type: ignore[arg-type]  # Airflow takes timetables of plugins as well
        assets=[PHOTOS],
    ),
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 -- Airflow takes the timetable's time zone
    catchup=False,
    max_active_runs=1_000,  # more than a backfill has days: docs/decisions/12-many-active-runs.md
    params=PARAMS,
    on_failure_callback=alert_failure,
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
        deferrable=True,
        poke_interval=15,
    )
    uploads_settled = UploadsSettledSensor(
        task_id="uploads_settled", bucket_name=BUCKET, prefix=PREFIX, deferrable=True
    )
    wait_for_lease = LeaseSensor(task_id="wait_for_lease")
    planned = plan(prepared)  # type: ignore[arg-type]  # Airflow replaces it by the value
    featurize, pca, validate = (spark_job(job, str(planned)) for job in ("featurize", "pca", "validate"))
    prepared >> wait_for_images >> uploads_settled >> wait_for_lease >> planned
    planned >> featurize >> pca >> validate >> publish(planned)  # type: ignore[arg-type]
