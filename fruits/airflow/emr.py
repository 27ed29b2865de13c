"""Our Spark jobs on EMR Serverless: the amazon provider's operator, with the DAG's demands on a job added."""

import hashlib
import math
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NoReturn

from airflow.providers.amazon.aws.operators.emr import EmrServerlessStartJobOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.triggers.base import BaseTrigger
from botocore.exceptions import ClientError

from fruits.airflow.approvals import questions_announced
from fruits.airflow.errors import non_retryable
from fruits.airflow.jobs import is_published, reraise_job_error, send_metrics
from fruits.airflow.links import ReportLink
from fruits.airflow.replan import replan_on_conflict
from fruits.run.documents import TaskName
from fruits.settings import DagSettings, Settings

_POLL_SECONDS = 15
_QUEUE_SECONDS = 3_600  # that a job may wait for capacity in the application, beside its execution time
_CANCEL_SECONDS = 300  # that a left-over job may take to end
_ENDED = frozenset({"SUCCESS", "FAILED", "CANCELLED"})
_BACKBONE_SETTINGS = frozenset({"backbone", "weights", "precision", "weights_from"})  # no job reads them


class EmrJobOperator(EmrServerlessStartJobOperator):
    """Starts one of our Spark jobs on EMR Serverless, waits deferred, and fails with the job's own error.

    The job gets our settings in its driver's environment. The task reads them when it runs, not when the DAG file is
    parsed, because Airflow keeps the DAG's fields in its database. The provider's links lead to the job's logs.
    """

    operator_extra_links = (  # type: ignore[assignment]  # the provider's type is a tuple of four
        *EmrServerlessStartJobOperator.operator_extra_links,
        ReportLink(),
    )

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
        """Start the job and wait for it, deferred; do nothing when the run is published already."""
        with non_retryable():
            settings = Settings.load()
            if is_published(settings, self.job, self.run_key):
                return
        self.region_name = settings.s3_region
        seconds = int(self.execution_timeout.total_seconds()) if self.execution_timeout else 0
        self.config = {**self.config, "executionTimeoutMinutes": math.ceil(seconds / 60)}  # the service enforces it
        self.waiter_max_attempts = (seconds + _QUEUE_SECONDS) // self.waiter_delay
        self.configuration_overrides = {
            **(self.configuration_overrides or {}),
            "applicationConfiguration": [
                {"classification": "spark-defaults", "properties": emr_configuration(settings, os.environ)}
            ],
        }
        self.name = f"fruits-{self.job}-{self.run_key}-{_lake_digest(settings)}"
        try:
            with non_retryable():
                self._cancel_left_over_jobs()
                super().execute(context, event)
        except ClientError as error:
            if _is_non_retryable(error):
                raise AirflowFailException(
                    f"EMR Serverless: {error}; check FRUITS_EMR_* and the roles (docs/emr-serverless.md)"
                ) from error
            raise

    def defer(
        self,
        *,
        trigger: BaseTrigger,
        method_name: str,
        kwargs: dict[str, Any] | None = None,
        timeout: timedelta | float | None = None,  # noqa: ARG002 -- Airflow's signature; the trigger itself gives up in time
    ) -> NoReturn:
        """Pass the job's id on to ``execute_complete``: the provider's event (9.39) of a failed job lacks the id."""
        job_id = {"job_id": self.job_id} if method_name == "execute_complete" else {}
        super().defer(trigger=trigger, method_name=method_name, kwargs={**(kwargs or {}), **job_id})

    def execute_complete(  # type: ignore[override]  # the provider declares None, and returns the id
        self, context: Context, event: dict[str, Any] | None = None, job_id: str | None = None
    ) -> str | None:
        """Return the id of a job that succeeded; raise a failed job's own error; cancel a job that still runs.

        A job still runs when the trigger lost the connection to the service.
        """
        with non_retryable():
            settings = Settings.load()
        send_metrics(settings, self.job, self.run_key)
        with questions_announced(settings, self.job, self.run_key, context):
            return self._outcome(settings, context, event, job_id)

    def _outcome(
        self, settings: Settings, context: Context, event: dict[str, Any] | None, job_id: str | None
    ) -> str | None:
        """The id of a job that succeeded."""
        if event and event["status"] == "success":
            return super().execute_complete(context, event)
        self.region_name = settings.s3_region
        job_run = self.hook.conn.get_job_run(applicationId=self.application_id, jobRunId=job_id)["jobRun"]
        if job_run["state"] not in _ENDED:
            self._cancel(job_id)
        with (
            non_retryable(),
            replan_on_conflict(context),
            reraise_job_error(settings, self.job, self.run_key, job_run["createdAt"]),
        ):
            details = job_run.get("stateDetails") or (event or {}).get("message")
            raise AirflowException(f"EMR Serverless job {job_id}: {job_run['state']}, {details}")

    @property
    def run_key(self) -> str:
        """The run key, once Airflow has rendered the task's templates."""
        return str(self.job_driver["sparkSubmit"]["entryPointArguments"][1])

    def _cancel_left_over_jobs(self) -> None:
        """Cancel the jobs of an earlier attempt, and wait until they have ended. A worker that dies leaves its job.

        Raises:
            AirflowException: when a job takes too long to end: two jobs would write to one branch.
        """
        deadline = time.monotonic() + _CANCEL_SECONDS
        for job in self._left_over():
            self.log.warning("cancelling job %s, left over from an earlier attempt of this task", job)
            self._cancel(job)
        while left := self._left_over():
            if time.monotonic() >= deadline:
                raise AirflowException(
                    f"EMR Serverless: {', '.join(left)} of an earlier attempt has not ended within {_CANCEL_SECONDS} s "
                    "of being cancelled; Airflow retries the task"
                )
            time.sleep(_POLL_SECONDS)

    def _left_over(self) -> list[str]:
        """Ids of this task's jobs that have not ended. The provider's list of such states (9.39) lacks QUEUED."""
        all_states = self.hook.conn.meta.service_model.shape_for("JobRunState").enum
        states = sorted(set(all_states) - _ENDED)
        pages = self.hook.conn.get_paginator("list_job_runs").paginate(applicationId=self.application_id, states=states)
        return [job["id"] for page in pages for job in page["jobRuns"] if job.get("name") == self.name]

    def _cancel(self, job_id: str | None) -> None:
        """Cancel a job. The service refuses when the job has ended meanwhile, which is fine."""
        try:
            self.hook.conn.cancel_job_run(applicationId=self.application_id, jobRunId=job_id)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":
                raise
            self.log.info("job %s is not cancelled: %s", job_id, error)


def _is_non_retryable(error: ClientError) -> bool:
    """Whether a person must fix the error. An application that is stopping refuses to start, but not for long."""
    code = error.response["Error"]["Code"]
    return code == "ResourceNotFoundException" or (code, error.operation_name) == ("ValidationException", "StartJobRun")


def _lake_digest(settings: Settings) -> str:
    """A short digest that distinguishes the lakes whose jobs share an application."""
    return hashlib.sha256(f"{settings.lake} {settings.namespace}".encode()).hexdigest()[:8]


def emr_configuration(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """A job's Spark configuration on EMR Serverless: Iceberg, the packed environment, our settings for the driver.

    Executors get their settings with their tasks, as on every engine. The driver gets our release, to compare with its
    own.
    """
    from fruits.spark.release import EXPECTED_RELEASE, library_release  # numpy and pyarrow: not when the DAG is parsed

    names = Settings.model_fields.keys() - DagSettings.model_fields.keys() - _BACKBONE_SETTINGS
    variables = {f"FRUITS_{name.upper()}" for name in names}
    given = {name: value for name, value in environment.items() if name in variables and value}
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
