"""The amazon and apache-spark providers' operators, as the chain needs them: early answers, clear errors."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.providers.amazon.aws.sensors.s3 import S3KeySensor, S3KeysUnchangedSensor
from airflow.providers.amazon.aws.triggers.s3 import S3KeysUnchangedTrigger
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout
from airflow.triggers.base import TriggerEvent
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.runs import TaskName, read_documents
from fruits.settings import DagSettings, Settings

_LEAST_PAUSE = 1.0  # seconds between two listings; S3 itself knows LastModified to the second


@contextmanager
def mendable_errors() -> Iterator[None]:
    """Fail at once on an error that a person has to mend: trying again would only meet it again."""
    try:
        yield
    except TransientError:
        raise
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

    def poke(self, context: Context) -> bool:
        """Whether there is an object, or a row of one that is gone: removing the last photo is work, too."""
        if super().poke(context):
            return True
        prefix = context["ti"].xcom_pull(task_ids="prepare")["request"]["prefix"]
        with mendable_errors():
            return Lake.open(Settings.load()).holds(prefix)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Say what was waited for when the wait was in vain."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            seconds = context["params"]["sensor_timeout"]
            _fail(
                f"no object came under s3://{self.bucket_name}/{str(self.bucket_key).rstrip('*')} within {seconds} s; "
                "upload photos as [Training|Test]/<label>/<file>, correct the param `prefix`, or raise `sensor_timeout`"
            )


class UploadsSettledSensor(S3KeysUnchangedSensor):
    """Waits until nothing was uploaded under the prefix for the run's param ``settle_seconds``.

    Goes by the newest LastModified, so photos that have lain there for longer than that need no wait at all, and an
    overwritten photo counts as an upload; the provider's sensor counts keys, and always waits a whole period.
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
                    aws_conn_id=self.aws_conn_id,
                ),
                method_name="execute_complete",
            )

    def poke(self, context: Context) -> bool:  # noqa: ARG002 -- the provider's signature
        """Whether the newest object is old enough."""
        objects = self.hook.iter_file_metadata(self.prefix, self.bucket_name)
        return _age(max((item["LastModified"] for item in objects), default=None)) >= self.inactivity_period

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Say what was waited for when the wait was in vain."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowSensorTimeout:
            _fail(
                f"photos kept coming under s3://{self.bucket_name}/{self.prefix} for "
                f"{context['params']['sensor_timeout']} s; lower `settle_seconds` or raise `sensor_timeout`"
            )


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
        try:
            async with await self.hook.get_async_conn() as client:
                while (left := self.inactivity_period - _age(await self._newest(client))) > 0:
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


class SparkJobOperator(SparkSubmitOperator):
    """Submits one of our Spark jobs from the jobs environment, and reports the job's own words when it fails."""

    def __init__(self, *, job: TaskName, run: str, **kwargs: Any) -> None:
        settings = DagSettings()
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
