"""The amazon and apache-spark providers' operators, as the chain needs them: early answers, clear errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor, S3KeysUnchangedSensor
from airflow.providers.amazon.aws.triggers.s3 import S3KeysUnchangedTrigger
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException, TaskDeferralTimeout

from fruits.errors import FruitsError
from fruits.runs import TaskName, read_documents
from fruits.settings import Settings, SubmitSettings


@contextmanager
def mendable_errors() -> Iterator[None]:
    """Fail at once on an error that a person has to mend: trying again would only meet it again."""
    try:
        yield
    except FruitsError as error:
        raise AirflowFailException(str(error)) from error


class PhotosPresentSensor(S3KeySensor):
    """Waits until there is an object under the prefix; the wait is bounded by the run's param ``sensor_timeout``.

    Each poke stops at the first key it finds (amazon provider 9.39), so a large prefix costs one page of the listing.
    """

    def execute(self, context: Context) -> None:
        """Look once; defer when there is nothing yet."""
        self.timeout = context["params"]["sensor_timeout"]
        super().execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Say what was waited for when the wait was in vain."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            seconds = context["params"]["sensor_timeout"]
            _fail(
                f"no object came under s3://{self.bucket_name}/{str(self.bucket_key).rstrip('*')} within {seconds} s; "
                "upload photos as [Training|Test]/<label>/<file>, correct the param `prefix`, or raise `sensor_timeout`"
            )


class UploadsSettledSensor(S3KeysUnchangedSensor):
    """Waits until nothing was uploaded under the prefix for the run's param ``settle_seconds``.

    Photos that have lain there for longer need no wait at all: the newest LastModified tells on the first poke, where
    the provider's sensor always waits a whole period.
    """

    def execute(self, context: Context) -> None:
        """Look once; defer when something came in lately."""
        self.inactivity_period = context["params"]["settle_seconds"]
        self.timeout = context["params"]["sensor_timeout"]
        if not self.poke(context):
            self.defer(
                timeout=timedelta(seconds=self.timeout),
                trigger=UploadsSettledTrigger(
                    bucket_name=self.bucket_name,
                    prefix=self.prefix,
                    inactivity_period=self.inactivity_period,
                    previous_objects=self.previous_objects,
                    last_activity_time=self.last_activity_time,
                    aws_conn_id=self.aws_conn_id,
                    poll_seconds=min(max(self.inactivity_period / 4, 1.0), 30.0),
                ),
                method_name="execute_complete",
            )

    def poke(self, context: Context) -> bool:  # noqa: ARG002 -- the provider's signature
        """Whether the newest object is old enough."""
        objects = {
            item["Key"]: item["LastModified"] for item in self.hook.iter_file_metadata(self.prefix, self.bucket_name)
        }
        newest = max(objects.values(), default=datetime.now(UTC))
        self.previous_objects = set(objects)
        # The provider reckons with naive local times.
        self.last_activity_time = newest.astimezone().replace(tzinfo=None)
        return bool(self.is_keys_unchanged(self.previous_objects))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Say what was waited for when the wait was in vain."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            _fail(
                f"photos kept coming under s3://{self.bucket_name}/{self.prefix} for "
                f"{context['params']['sensor_timeout']} s; lower `settle_seconds` or raise `sensor_timeout`"
            )


class UploadsSettledTrigger(S3KeysUnchangedTrigger):
    """The provider's trigger with a pause between its listings, which it lacks (9.39 polls every 0 s)."""

    def __init__(self, *, poll_seconds: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.polling_period_seconds = poll_seconds  # type: ignore[assignment]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it again."""
        names = ("bucket_name", "prefix", "inactivity_period", "previous_objects", "last_activity_time", "aws_conn_id")
        values = {name: getattr(self, name) for name in names}
        return f"{__name__}.{type(self).__name__}", {**values, "poll_seconds": self.polling_period_seconds}


class SparkJobOperator(SparkSubmitOperator):
    """Submits one of our Spark jobs from the jobs environment, and reports the job's own words when it fails."""

    def __init__(self, *, job: TaskName, run: str, **kwargs: Any) -> None:
        settings = SubmitSettings()
        python = str(settings.jobs_env / "bin" / "python")
        super().__init__(
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
        """Submit and wait; a failure that a person has to mend is not tried again."""
        try:
            super().execute(context)
        except Exception as error:
            with mendable_errors():
                document = read_documents(Settings.load(), self.application_args[1]).get(self.job, {})
            if document.get("state") == "failed" and document.get("mendable"):
                raise AirflowFailException(document["error"]) from error
            raise


def _fail(message: str) -> NoReturn:
    raise AirflowFailException(message) from None
