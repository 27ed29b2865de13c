"""Spark jobs as tasks. The setting FRUITS_ENGINE chooses the engine: spark-submit here, or EMR Serverless (emr.py)."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseOperator, Context

from fruits.airflow.approvals import questions_announced
from fruits.airflow.errors import non_retryable
from fruits.airflow.jobs import is_published, reraise_job_error, send_metrics
from fruits.airflow.links import ReportLink, SparkHistoryLink
from fruits.airflow.replan import replan_on_conflict
from fruits.settings import DagSettings, Settings

if TYPE_CHECKING:
    from fruits.run.documents import TaskName

SPARK_JOBS = Path(__file__).parents[2] / "spark_jobs"


def spark_job(job: "TaskName", run: str) -> BaseOperator:
    """The task that runs ``spark_jobs/<job>.py`` by the engine that is set; ``run`` is the run key, or its template."""
    if DagSettings.load().engine == "emr-serverless":
        from fruits.airflow.emr import EmrJobOperator  # takes a second to import

        return EmrJobOperator(task_id=job, job=job, run=run)
    return SparkJobOperator(task_id=job, job=job, run=run)


class SparkJobOperator(SparkSubmitOperator):
    """Submits one of our Spark jobs from the jobs environment, and fails with the job's own error."""

    operator_extra_links = (ReportLink(), SparkHistoryLink())

    def __init__(self, *, job: "TaskName", run: str, **kwargs: Any) -> None:
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

    @property
    def run_key(self) -> str:
        """The run key, once Airflow has rendered the task's templates."""
        return str((self.application_args or [])[1])

    def execute(self, context: Context) -> None:
        """Submit the job and wait for it; do nothing when the run is published already."""
        started = datetime.now(UTC)
        with non_retryable():
            settings = Settings.load()
            if is_published(settings, self.job, self.run_key):
                return
        try:
            with (
                questions_announced(settings, self.job, self.run_key, context),
                non_retryable(),
                replan_on_conflict(context),
                reraise_job_error(settings, self.job, self.run_key, started),
            ):
                super().execute(context)
        finally:
            send_metrics(settings, self.job, self.run_key)
