"""Our Spark jobs on EMR Serverless: the amazon provider's operator, with what the chain expects of a job."""

import hashlib
import math
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NoReturn

from airflow.providers.amazon.aws.operators.emr import EmrServerlessStartJobOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger
from botocore.exceptions import ClientError

from fruits.airflow.operators import fail, is_published, non_retryable, reraise_job_error
from fruits.run.documents import TaskName
from fruits.settings import DagSettings, Settings

_POLL_SECONDS = 15
_QUEUE_SECONDS = 3_600  # that a job may wait for room in the application, beside its execution time
_CANCEL_SECONDS = 300  # that a left-over job may take to be gone
_ENDED = frozenset({"SUCCESS", "FAILED", "CANCELLED"})
_BUILDS_BACKBONES = frozenset({"backbone", "weights"})  # no job reads them, and a URI of weights may hold a password


class EmrJobOperator(EmrServerlessStartJobOperator):
    """Runs one of our Spark jobs on EMR Serverless: starts it, waits deferred, and reports the job's own words.

    The job gets our settings in its driver's environment. They are read when the task runs, not when the DAG file is
    parsed: what stands in a DAG is kept in Airflow's database.
    """

    def __init__(self, *, job: TaskName, run: str, **kwargs: Any) -> None:
        settings = DagSettings.load()
        logs = {"monitoringConfiguration": {"s3MonitoringConfiguration": {"logUri": f"{settings.emr_logs}/"}}}
        super().__init__(
            application_id=str(settings.emr_application),
            execution_role_arn=str(settings.emr_role),
            job_driver={
                "sparkSubmit": {
                    "entryPoint": f"{settings.emr_code}/spark_jobs/{job}.py",
                    "entryPointArguments": ["--run", run],
                }
            },
            configuration_overrides=logs if settings.emr_logs else {},
            name=f"fruits-{job}-{run}",
            config={"tags": {"fruits:job": job, "fruits:run": run}},
            deferrable=True,
            waiter_delay=_POLL_SECONDS,
            **kwargs,
        )
        self.job = job

    def execute(self, context: Context, event: dict[str, Any] | None = None) -> None:
        """Start the job and wait for it, deferred, unless the run is published already."""
        with non_retryable():
            settings = Settings.load()
            if is_published(settings, self.job, self.slug):
                return
        self.region_name = settings.s3_region
        seconds = int(self.execution_timeout.total_seconds()) if self.execution_timeout else 0
        self.config = {**self.config, "executionTimeoutMinutes": math.ceil(seconds / 60)}  # the service sees to it
        self.waiter_max_attempts = (seconds + _QUEUE_SECONDS) // self.waiter_delay
        self.configuration_overrides = {
            **(self.configuration_overrides or {}),
            "applicationConfiguration": [
                {"classification": "spark-defaults", "properties": emr_configuration(settings, os.environ)}
            ],
        }
        self.name = f"fruits-{self.job}-{self.slug}-{_lake_digest(settings)}"
        try:
            with non_retryable():
                self._cancel_those_left_over()
                super().execute(context, event)
        except ClientError as error:
            if _is_mendable(error):
                fail(f"EMR Serverless: {error}; check FRUITS_EMR_* and the roles (docs/emr-serverless.md)")
            raise

    def defer(
        self,
        *,
        trigger: BaseTrigger,
        method_name: str,
        kwargs: dict[str, Any] | None = None,
        timeout: timedelta | int | None = None,  # noqa: ARG002 -- Airflow's signature; the trigger itself gives up in time
    ) -> NoReturn:
        """Wait, and know afterwards for which job: the provider's trigger (9.39) does not say it of one that failed."""
        ours = {"job_id": self.job_id} if method_name == "execute_complete" else {}
        super().defer(trigger=trigger, method_name=method_name, kwargs={**(kwargs or {}), **ours})

    def execute_complete(
        self, context: Context, event: dict[str, Any] | None = None, job_id: str | None = None
    ) -> str | None:
        """Return the job's id; of one that failed say why, and cancel one that was only lost sight of."""
        if event and event["status"] == "success":
            return super().execute_complete(context, event)
        with non_retryable():
            settings = Settings.load()
        self.region_name = settings.s3_region
        found = self.hook.conn.get_job_run(applicationId=self.application_id, jobRunId=job_id)["jobRun"]
        if found["state"] not in _ENDED:
            self._cancel(job_id)
        with reraise_job_error(settings, self.job, self.slug, found["createdAt"]):
            details = found.get("stateDetails") or (event or {}).get("message")
            raise AirflowException(f"EMR Serverless job {job_id}: {found['state']}, {details}")

    @property
    def slug(self) -> str:
        """The run's folder in the lake; of use once the task is rendered."""
        return str(self.job_driver["sparkSubmit"]["entryPointArguments"][1])

    def _cancel_those_left_over(self) -> None:
        """Cancel jobs of an earlier try, and see them gone: a worker that dies leaves one that nobody waits for.

        Raises:
            AirflowException: when one takes too long to end: two would write to one branch.
        """
        deadline = time.monotonic() + _CANCEL_SECONDS
        for job in self._left_over():
            self.log.warning("cancelling job %s, which an earlier try of this task has left", job)
            self._cancel(job)
        while left := self._left_over():
            if time.monotonic() >= deadline:
                raise AirflowException(
                    f"EMR Serverless: {', '.join(left)} of an earlier try has not ended within {_CANCEL_SECONDS} s of "
                    "being cancelled; the task is tried again"
                )
            time.sleep(_POLL_SECONDS)

    def _left_over(self) -> list[str]:
        """Ids of the jobs of this task that have not ended; the provider's list of such states (9.39) lacks QUEUED."""
        known = self.hook.conn.meta.service_model.shape_for("JobRunState").enum
        states = sorted(set(known) - _ENDED)
        pages = self.hook.conn.get_paginator("list_job_runs").paginate(applicationId=self.application_id, states=states)
        return [job["id"] for page in pages for job in page["jobRuns"] if job.get("name") == self.name]

    def _cancel(self, job_id: str | None) -> None:
        """Cancel a job; one that ended meanwhile refuses, and that will do."""
        try:
            self.hook.conn.cancel_job_run(applicationId=self.application_id, jobRunId=job_id)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":
                raise
            self.log.info("job %s is not cancelled: %s", job_id, error)


def _is_mendable(error: ClientError) -> bool:
    """Whether a person has to mend it. An application that is just stopping refuses to be started, but not for long."""
    code = error.response["Error"]["Code"]
    return code == "ResourceNotFoundException" or (code, error.operation_name) == ("ValidationException", "StartJobRun")


def _lake_digest(settings: Settings) -> str:
    """Tells the jobs of one lake from those of another that share an application."""
    return hashlib.sha256(f"{settings.lake} {settings.namespace}".encode()).hexdigest()[:8]


def emr_configuration(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """A job's Spark configuration on EMR Serverless: Iceberg, the packed environment, our settings for the driver.

    Executors get their settings with their work, as everywhere. The driver is told our release, and compares it.
    """
    from fruits.spark.release import EXPECTED_RELEASE, library_release  # numpy and pyarrow: not when the DAG is parsed

    names = Settings.model_fields.keys() - DagSettings.model_fields.keys() - _BUILDS_BACKBONES
    mine = {f"FRUITS_{name.upper()}" for name in names}
    given = {name: value for name, value in environment.items() if name in mine and value}
    python = "./environment/bin/python"
    driver = {**given, EXPECTED_RELEASE: library_release(), "PYSPARK_DRIVER_PYTHON": python, "PYSPARK_PYTHON": python}
    memory = settings.spark_driver_memory if "spark_driver_memory" in settings.model_fields_set else None
    return {
        "spark.jars": settings.emr_jars,
        "spark.archives": f"{settings.emr_code}/jobs-env.tar.gz#environment",
        **({"spark.driver.memory": memory} if memory else {}),
        **{f"spark.emr-serverless.driverEnv.{name}": value for name, value in driver.items()},
        "spark.executorEnv.PYSPARK_PYTHON": python,
    }
