"""The amazon and apache-spark providers' operators, as the chain needs them: early answers, clear errors."""

import asyncio
import glob
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor, S3KeysUnchangedSensor
from airflow.providers.amazon.aws.triggers.s3 import S3KeysUnchangedTrigger
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseOperator, BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSensorTimeout
from airflow.triggers.base import BaseTrigger, TriggerEvent
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError

from fruits.airflow.alerts import keep_error
from fruits.denials import denials_explained
from fruits.errors import FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.run.documents import TASKS, TaskName, read_documents
from fruits.run.lease import acquire_lease
from fruits.run.state import run_key
from fruits.settings import DagSettings, Settings
from fruits.steps.publish import published_run

_SENSOR_SECONDS = 3_600
_LEASE_PAUSE = 3.0  # seconds between two tries to acquire the lease
_MOST_PERIODS = 10
_LEAST_PAUSE = 1.0  # seconds between two listings; S3 itself knows LastModified to the second

SPARK_JOBS = Path(__file__).parents[2] / "spark_jobs"


TASK_DEFAULTS: dict[str, Any] = {
    "owner": "fruits",
    "retries": 2,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(hours=12),
    "on_failure_callback": keep_error,
}
"""What every task of ours is given: tried again with growing pauses, and its error kept for the alert."""


@contextmanager
def non_retryable() -> Iterator[None]:
    """Fail at once on an error that a person has to mend: trying again would only meet it again."""
    try:
        with denials_explained():
            yield
    except TransientError:
        raise
    except FruitsError as error:
        raise AirflowFailException(str(error)) from error


class PhotosPresentSensor(S3KeySensor):
    """Waits until there is an object under the prefix; the wait is bounded by the run's param ``sensor_timeout``.

    Without that it waits an hour, but not at all for a prefix of the run's own, which is likelier mistyped.
    ``bucket_key`` is the prefix, taken literally. Each poke stops at the first key it finds (amazon provider 9.39), so
    a large prefix costs one page of the listing.
    """

    def execute(self, context: Context) -> None:
        """Look once; defer when there is nothing yet."""
        params, prefix = context["params"], self.bucket_key
        self.timeout = params["sensor_timeout"] or _SENSOR_SECONDS
        self.bucket_key = f"{glob.escape(prefix)}*"
        if params.get("prefix") and not params["sensor_timeout"] and not self.poke(context):
            fail(
                f"no object under s3://{self.bucket_name}/{prefix}; upload photos as [Training|Test]/<label>/<file>, "
                "correct the param `prefix`, or give a `sensor_timeout` to wait for them"
            )
        super().execute(context)

    def poke(self, context: Context) -> bool:
        """Whether there is an object, or a row of one that is gone: removing the last photo is work, too."""
        if super().poke(context):
            return True
        prefix = context["ti"].xcom_pull(task_ids="prepare")["request"]["prefix"]
        with non_retryable():
            return Lake.open(Settings.load()).holds(prefix)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Say what was waited for when the wait was in vain."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            seconds = context["params"]["sensor_timeout"] or _SENSOR_SECONDS
            fail(
                f"no object came under s3://{self.bucket_name}/{self.bucket_key} within {seconds} s; "
                "upload photos as [Training|Test]/<label>/<file>, correct the param `prefix`, or raise `sensor_timeout`"
            )


class UploadsSettledSensor(S3KeysUnchangedSensor):
    """Waits until nothing was uploaded under the prefix for the run's param ``settle_seconds``.

    Goes by the newest LastModified, so photos that have lain there for longer than that need no wait at all, and an
    overwritten photo counts as an upload; the provider's sensor counts keys, and always waits a whole period. Where
    photos never stop coming it goes on after ten such periods: those that came first are not to wait for ever.
    """

    def execute(self, context: Context) -> None:
        """Look once; defer when something came in lately."""
        self.inactivity_period = context["params"]["settle_seconds"]
        if not self.poke(context):
            self.defer(
                trigger=UploadsSettledTrigger(
                    bucket_name=self.bucket_name,
                    prefix=self.prefix,
                    inactivity_period=self.inactivity_period,
                    aws_conn_id=self.aws_conn_id,
                ),
                method_name="execute_complete",
            )

    def poke(self, context: Context) -> bool:  # noqa: ARG002 -- the provider's signature
        """Whether the newest object is old enough."""
        objects = self.hook.iter_file_metadata(self.prefix, self.bucket_name)
        return _age(max((item["LastModified"] for item in objects), default=None)) >= self.inactivity_period


class UploadsSettledTrigger(S3KeysUnchangedTrigger):
    """Fires when the newest object under the prefix is old enough; lists again when that can be so at the earliest.

    The provider's (9.39) lists without a pause, and takes all keys through Airflow's database.
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again."""
        names = ("bucket_name", "prefix", "inactivity_period", "aws_conn_id")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, then say so; an S3 server that refuses fails the task, which is tried again."""
        deadline = time.monotonic() + _MOST_PERIODS * self.inactivity_period
        try:
            async with await self.hook.get_async_conn() as client:
                while (left := self.inactivity_period - _age(await self._newest(client))) > 0:
                    if time.monotonic() > deadline:
                        self.log.warning("s3://%s/%s: photos keep coming; going on", self.bucket_name, self.prefix)
                        break
                    await asyncio.sleep(max(left, _LEAST_PAUSE))
            yield TriggerEvent({"status": "success"})
        except (BotoCoreError, ClientError) as error:
            yield TriggerEvent({"status": "error", "message": str(error)})

    async def _newest(self, client: Any) -> datetime | None:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket_name, Prefix=self.prefix)
        return max([item["LastModified"] async for page in pages for item in page.get("Contents", ())], default=None)


def _age(newest: datetime | None) -> float:
    """Seconds since the newest upload; where nothing is, nothing can be unfinished."""
    return (datetime.now(UTC) - newest).total_seconds() if newest else math.inf


class LeaseSensor(BaseSensorOperator):
    """Waits, deferred, until the run holds the lease: no other run is between its plan and its publication.

    A dry run changes nothing and waits for nobody. ``run_prefix`` is what the run's id in the lake starts with, before
    Airflow's.
    """

    def __init__(self, *, run_prefix: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run_prefix = run_prefix

    def execute(self, context: Context) -> None:
        """Acquire the lease; defer while another run holds it."""
        if context["params"].get("dry_run"):
            return
        run = run_key(self.run_prefix + context["run_id"])
        with non_retryable():
            other = acquire_lease(Settings.load(), run)
        if other is not None:
            logging.getLogger("fruits").info("lease: waiting for run %s, which holds it", other.run)
            self.defer(
                trigger=LeaseTrigger(run), method_name="execute_complete", timeout=timedelta(seconds=self.timeout)
            )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:  # noqa: ARG002 -- Airflow's signature
        """Renew the lease that the trigger acquired; where that came too late, wait again."""
        self.execute(context)


class LeaseTrigger(BaseTrigger):
    """Acquires the lease for ``run`` when it is free, and fires: so only the run that holds it wakes up."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run_key = run

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again."""
        return f"{__name__}.{type(self).__name__}", {"run": self.run_key}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look every few seconds, also when the lake does not answer; wrong settings are for the task to meet."""
        try:
            settings = Settings.load()
        except FruitsError:
            yield TriggerEvent({})
            return
        while await self._must_wait(settings):
            await asyncio.sleep(_LEASE_PAUSE)
        yield TriggerEvent({})

    async def _must_wait(self, settings: Settings) -> bool:
        """Try to acquire the lease; whether another run holds it, or nobody can tell."""
        try:
            other = await asyncio.to_thread(acquire_lease, settings, self.run_key)
        except (BaseError, FruitsError, OSError) as error:
            self.log.warning("lease: can't be read, trying again in %g s: %s", _LEASE_PAUSE, error)
            return True
        return other is not None


def spark_job(job: TaskName, run: str) -> BaseOperator:
    """The task that runs a Spark job of ours by the engine that is set; ``run`` is the run's folder in the lake."""
    if DagSettings.load().engine == "emr-serverless":
        from fruits.airflow.emr import EmrJobOperator  # only then: it takes a second to import

        return EmrJobOperator(task_id=job, job=job, run=run)
    return SparkJobOperator(task_id=job, job=job, run=run)


def is_published(settings: Settings, job: TaskName, run: str) -> bool:
    """Whether a run is published already: what it wrote is what readers see, so there is nothing to do."""
    done = published_run(settings, run) if job in TASKS else None
    if done is not None:
        logging.getLogger("fruits").info("%s: the run is published already, as %s", job, done.publication_id)
    return done is not None


@contextmanager
def reraise_job_error(settings: Settings, job: TaskName, run: str, began: datetime) -> Iterator[None]:
    """Say of a job that failed what its document says since it ``began``; what is to be mended is not tried again."""
    try:
        yield
    except Exception as error:
        with non_retryable():
            document = read_documents(settings, run).get(job, {})
        if document.get("state") != "failed" or datetime.fromisoformat(document["started_at"]) < began:
            raise  # the job did not get as far as a document, or left one only the last time
        said = AirflowFailException if document.get("mendable") else AirflowException
        raise said(document["error"]) from error


class SparkJobOperator(SparkSubmitOperator):
    """Submits one of our Spark jobs from the jobs environment, and reports the job's own words when it fails."""

    def __init__(self, *, job: TaskName, run: str, **kwargs: Any) -> None:
        settings = DagSettings()
        python = str(settings.jobs_env / "bin" / "python")
        super().__init__(
            application=str(SPARK_JOBS / f"{job}.py"),
            application_args=["--run", run],
            name=f"fruits-{job}",
            spark_binary=str(settings.jobs_env / "bin" / "spark-submit"),
            env_vars={"PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": python},
            driver_memory=settings.spark_driver_memory,
            conf={"spark.ui.enabled": "false"},
            **kwargs,
        )
        self.job = job

    def execute(self, context: Context) -> None:
        """Submit and wait, unless the run is published already."""
        run, began = self.application_args[1], datetime.now(UTC)
        with non_retryable():
            settings = Settings.load()
            if is_published(settings, self.job, run):
                return
        with reraise_job_error(settings, self.job, run, began):
            super().execute(context)


def fail(message: str) -> NoReturn:
    """End the task with a message for whoever is to mend it; it is not tried again."""
    raise AirflowFailException(message) from None
