"""The jobs on EMR Serverless, against moto's: it keeps the state of a job that is asked for, and runs nothing."""

import asyncio
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, current_base, publish
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.spark.release import library_release
from local.stack import Stack
from tests.runs import document, planned, write_documents, writer
from tests.triggers import event_of, made_again

pytestmark = pytest.mark.airflow

RUN = run_key("a run")
ACCOUNT = "123456789012"  # moto's
KEY_PATTERN = r"""(?P<label>[^/]+) 'and' "more" $HOME/(?P<file>[^/]+)"""  # nothing that a shell would leave alone


@pytest.fixture(scope="module")
def plugin(airflow_variables: pytest.MonkeyPatch) -> Any:
    """The module."""
    from fruits.airflow import emr

    return emr


class Service:
    """An application of EMR Serverless, and how its jobs end."""

    def __init__(self, url: str, region: str, patch: pytest.MonkeyPatch) -> None:
        import boto3
        from moto.emrserverless import models

        self.backend, self._models, self._patch = models.emrserverless_backends[ACCOUNT][region], models, patch
        client = boto3.client("emr-serverless", endpoint_url=url, region_name=region)
        made = client.create_application(
            name="fruits", releaseLabel="emr-7.8.0", type="SPARK"
        )  # moto knows no later one
        self.application = made["applicationId"]
        self.backend.job_runs[self.application] = []  # moto (5.2) else denies that there is such an application

    def jobs_are(self, state: str) -> None:
        self._patch.setattr(self._models, "JOB_STATUS", state)

    @property
    def jobs(self) -> list[Any]:
        return list(self.backend.job_runs.get(self.application, []))


@pytest.fixture
def lake(glue_settings: Settings, plugin: Any, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A lake with a run that is planned, as tasks find it in their environment."""
    for name in ("bucket", "lake", "namespace", "s3_endpoint"):
        monkeypatch.setenv(f"FRUITS_{name.upper()}", str(getattr(glue_settings, name)))
    monkeypatch.setenv("FRUITS_CATALOG_URI", "glue://")
    plan = document("plan", result=planned("a run", base=current_base(Lake.open(glue_settings))))
    assert write_documents(glue_settings, plan, run_id="a run") == RUN
    return glue_settings


@pytest.fixture
def service(lake: Settings, moto: str, monkeypatch: pytest.MonkeyPatch) -> Service:
    """With the settings and the connection that lead there."""
    service = Service(moto, lake.s3_region, monkeypatch)
    settings = {
        "ENGINE": "emr-serverless",
        "EMR_APPLICATION": service.application,
        "EMR_ROLE": f"arn:aws:iam::{ACCOUNT}:role/fruits-jobs",
        "EMR_CODE": "s3://code/fruits",
        "EMR_LOGS": "s3://logs/fruits",
        "KEY_PATTERN": KEY_PATTERN,
        "SPARK_DRIVER_MEMORY": "4g",
        "ALERT_EMAIL": "somebody@fruits.example",
        "EVENT_QUEUE": "",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"FRUITS_{name}", value)
    extra = {"region_name": "eu-west-3", "service_config": {"emr-serverless": {"endpoint_url": moto}}}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "extra": extra}))
    return service


def emr_job(plugin: Any, **values: Any) -> Any:
    return plugin.EmrJobOperator(
        task_id="featurize", job="featurize", run=RUN, execution_timeout=timedelta(hours=2), **values
    )


def context() -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="fruit_features", run_id="a run", task_id="featurize", xcom_push=lambda **_: None)
    return {"ti": ti, "task_instance": ti}


def deferral(job: Any) -> Any:
    from airflow.sdk.exceptions import TaskDeferred

    with pytest.raises(TaskDeferred) as raised:
        job.execute(context())
    return raised.value


def ended(plugin: Any, deferred: Any) -> Any:
    """Wait as the triggerer does, and resume the task in another process' operator."""
    event = asyncio.run(event_of(made_again(deferred.trigger)))
    return emr_job(plugin).resume_execution(deferred.method_name, {**deferred.kwargs, "event": event}, context())


def leave_error(lake: Settings, started_at: datetime, *, retryable: bool) -> None:
    """The run document of a job that failed."""
    error = document("featurize", state="failed", started_at=started_at, error="fix this", retryable=retryable)
    write_documents(lake, error, run_id="a run")


class TestStart:
    def test_the_job_is_what_the_settings_say(
        self, plugin: Any, service: Service, lake: Settings, stack: Stack
    ) -> None:
        deferral(emr_job(plugin))
        (job,) = service.jobs
        assert job.job_driver == {
            "sparkSubmit": {
                "entryPoint": "s3://code/fruits/spark_jobs/featurize.py",
                "entryPointArguments": ["--run", RUN],
            }
        }
        assert re.fullmatch(f"fruits-featurize-{RUN}-[0-9a-f]{{8}}", job.name)
        assert job.execution_role_arn == f"arn:aws:iam::{ACCOUNT}:role/fruits-jobs"
        assert job.tags == {"fruits:job": "featurize", "fruits:run": RUN}
        assert job.execution_timeout_minutes == 120
        overrides = job.configuration_overrides
        assert overrides["monitoringConfiguration"] == {"s3MonitoringConfiguration": {"logUri": "s3://logs/fruits/"}}
        (defaults,) = overrides["applicationConfiguration"]
        assert defaults["classification"] == "spark-defaults"
        properties = defaults["properties"]
        assert properties["spark.archives"] == "s3://code/fruits/jobs-env.tar.gz#environment"
        assert properties["spark.jars"] == "/usr/share/aws/iceberg/lib/iceberg-spark3-runtime.jar"
        assert properties["spark.driver.memory"] == "4g"
        python = "./environment/bin/python"
        assert properties["spark.executorEnv.PYSPARK_PYTHON"] == python
        driver = {
            name.removeprefix("spark.emr-serverless.driverEnv."): value
            for name, value in properties.items()
            if name.startswith("spark.emr-serverless.driverEnv.")
        }
        assert driver == {
            "PYSPARK_PYTHON": python,
            "PYSPARK_DRIVER_PYTHON": python,
            "FRUITS_RELEASE": library_release(),
            "FRUITS_BUCKET": lake.bucket,
            "FRUITS_LAKE": lake.lake,
            "FRUITS_CATALOG_URI": "glue://",
            "FRUITS_NAMESPACE": lake.namespace,
            "FRUITS_S3_ENDPOINT": lake.s3_endpoint,
            "FRUITS_KEY_PATTERN": KEY_PATTERN,
        }, "the job's settings, and nothing of Airflow's"
        assert stack.secret_key not in json.dumps([job.job_driver, overrides])

    def test_the_driver_reads_the_same_settings(
        self, plugin: Any, service: Service, lake: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        properties = plugin.emr_configuration(Settings.load(), os.environ)
        here = Settings.load()
        for name in [name for name in os.environ if name.startswith("FRUITS_")]:
            monkeypatch.delenv(name)
        for name, value in properties.items():
            monkeypatch.setenv(name.removeprefix("spark.emr-serverless.driverEnv."), value)
        there = Settings.load()
        common: Any = type(here).__mro__[1]
        jobs_own = Settings.model_fields.keys() - common.model_fields.keys()
        assert {name: getattr(there, name) for name in jobs_own} == {name: getattr(here, name) for name in jobs_own}

    def test_memory_of_the_driver_is_the_applications_own_unless_it_is_set(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FRUITS_SPARK_DRIVER_MEMORY")
        assert "spark.driver.memory" not in plugin.emr_configuration(Settings.load(), os.environ)

    def test_where_the_weights_come_from_is_not_in_the_jobs_description(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FRUITS_WEIGHTS", "https://somebody:geheim@weights.example/w.h5")
        monkeypatch.setenv("FRUITS_BACKBONE", "MobileNetV2")
        deferral(emr_job(plugin))
        described = json.dumps(service.jobs[0].configuration_overrides)
        assert "FRUITS_LAKE" in described
        assert not [word for word in ("geheim", "FRUITS_WEIGHTS", "FRUITS_BACKBONE") if word in described]

    def test_each_start_is_a_request_of_its_own(self, plugin: Any, service: Service) -> None:
        for _ in range(2):
            deferral(emr_job(plugin))
        first, second = (job.client_token for job in service.jobs)
        assert first != second

    def test_a_run_that_is_published_is_not_worked_on_again(
        self, plugin: Any, service: Service, lake: Settings
    ) -> None:
        opened = Lake.open(lake)
        base = current_base(opened)
        row = Publication(1, base.publication.snapshots, "pub-1", run_id="a run", model_id="m", counts={})
        publish(opened, base, writer(RUN, "publish"), row)
        emr_job(plugin).execute(context())
        assert service.jobs == []

    @pytest.mark.parametrize("state", ["RUNNING", "QUEUED"])
    def test_a_job_that_an_earlier_try_left_is_cancelled_and_no_other(
        self, plugin: Any, service: Service, state: str
    ) -> None:
        service.jobs_are(state)
        deferral(emr_job(plugin))
        deferral(plugin.EmrJobOperator(task_id="pca", job="pca", run=RUN))
        deferral(emr_job(plugin))
        assert [job.state for job in service.jobs] == ["CANCELLED", state, state]

    def test_a_job_of_another_lake_on_the_same_application_is_left_alone(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service.jobs_are("RUNNING")
        monkeypatch.setattr(plugin, "is_published", lambda *_: False)
        deferral(emr_job(plugin))
        monkeypatch.setenv("FRUITS_NAMESPACE", "another")
        deferral(emr_job(plugin))
        assert [job.state for job in service.jobs] == ["RUNNING", "RUNNING"]

    def test_no_job_starts_before_a_left_over_one_is_gone(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        service.jobs_are("RUNNING")
        deferral(emr_job(plugin))
        (left,) = service.jobs
        monkeypatch.setattr(
            service.backend, "cancel_job_run", lambda *_, **__: setattr(left, "state", "CANCELLING") or (0, 0)
        )
        looked: list[str] = []

        def gone_at_the_third_look(_: float) -> None:
            looked.append(left.state)
            if len(looked) == 3:
                left.state = "CANCELLED"

        monkeypatch.setattr(plugin, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=gone_at_the_third_look))
        deferral(emr_job(plugin))
        assert looked == ["CANCELLING"] * 3
        assert len(service.jobs) == 2

        left.state, service.jobs[1].state = "RUNNING", "SUCCESS"
        monkeypatch.setattr(plugin, "_CANCEL_SECONDS", 0)
        with pytest.raises(AirflowException, match=f"{left.id} of an earlier attempt has not ended") as raised:
            emr_job(plugin).execute(context())
        assert not isinstance(raised.value, AirflowFailException)
        assert len(service.jobs) == 2

    def test_a_left_over_job_that_ends_before_it_is_cancelled_is_no_failure(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from moto.emrserverless.exceptions import ValidationException

        service.jobs_are("RUNNING")
        deferral(emr_job(plugin))

        def refused(*_: Any, **__: Any) -> None:
            service.jobs[0].state = "SUCCESS"
            raise ValidationException("Job run is in state SUCCESS")

        monkeypatch.setattr(service.backend, "cancel_job_run", refused)
        deferral(emr_job(plugin))
        assert [job.state for job in service.jobs] == ["SUCCESS", "RUNNING"]

    @pytest.mark.parametrize(("operation", "retryable"), [("start_application", True), ("start_job_run", False)])
    def test_a_refusal_is_retried_unless_it_refuses_the_job(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch, operation: str, retryable: bool
    ) -> None:
        """An application that is stopping can't be started, and can a minute later."""
        from airflow.sdk.exceptions import AirflowFailException
        from botocore.exceptions import ClientError
        from moto.emrserverless.exceptions import ValidationException

        def refused(*_: Any, **__: Any) -> None:
            raise ValidationException("the application is STOPPING")

        if retryable:
            service.backend.applications[service.application].state = "STOPPING"
        monkeypatch.setattr(service.backend, operation, refused)
        with pytest.raises(ClientError if retryable else AirflowFailException, match="is STOPPING"):
            emr_job(plugin).execute(context())

    def test_a_denial_names_the_permission(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow.sdk.exceptions import AirflowFailException
        from moto.emrserverless.exceptions import AccessDeniedException

        said = "User: arn:aws:iam::1:user/a is not authorized to perform: emr-serverless:StartJobRun on resource: arn:x"

        def denied(*_: Any, **__: Any) -> None:
            raise AccessDeniedException(said)

        monkeypatch.setattr(service.backend, "start_job_run", denied)
        with pytest.raises(AirflowFailException, match="AWS denies emr-serverless:StartJobRun on arn:x; the role"):
            emr_job(plugin).execute(context())

    def test_an_application_that_is_not_there_is_for_a_person_to_mend(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from airflow.sdk.exceptions import AirflowFailException

        monkeypatch.setenv("FRUITS_EMR_APPLICATION", "00nowhere")
        with pytest.raises(AirflowFailException, match=r"EMR Serverless: .*ResourceNotFound.*check FRUITS_EMR_"):
            emr_job(plugin).execute(context())

    @pytest.mark.parametrize(
        ("name", "value"), [("FRUITS_LAKE", "file:///lake"), ("FRUITS_CATALOG_URI", "postgresql://a:geheim@db/lake")]
    )
    def test_a_lake_that_it_cannot_reach_is_refused(
        self, plugin: Any, service: Service, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        from airflow.sdk.exceptions import AirflowFailException

        monkeypatch.setenv(name, value)
        with pytest.raises(AirflowFailException, match=f"{name}: expected ") as raised:
            emr_job(plugin).execute(context())
        assert "geheim" not in str(raised.value)
        assert service.jobs == []


class TestEnd:
    def test_a_job_that_succeeds(self, plugin: Any, service: Service) -> None:
        assert ended(plugin, deferral(emr_job(plugin))) == service.jobs[0].id

    @pytest.mark.parametrize(("retryable", "name"), [(False, "AirflowFailException"), (True, "AirflowException")])
    def test_a_failure_raises_the_jobs_own_error(
        self, plugin: Any, service: Service, lake: Settings, retryable: bool, name: str
    ) -> None:
        from airflow.sdk import exceptions

        service.jobs_are("FAILED")
        deferred = deferral(emr_job(plugin))
        leave_error(lake, datetime.now(UTC) + timedelta(minutes=1), retryable=retryable)
        with pytest.raises(exceptions.AirflowException, match="^fix this$") as raised:
            ended(plugin, deferred)
        assert type(raised.value).__name__ == name

    @pytest.mark.parametrize("before", [True, False], ids=["only an attempt before", "nothing"])
    def test_a_job_that_left_no_word_is_tried_again(
        self, plugin: Any, service: Service, lake: Settings, before: bool
    ) -> None:
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        service.jobs_are("FAILED")
        deferred = deferral(emr_job(plugin))
        service.jobs[0].state_details = "could not fetch the archive"
        if before:
            leave_error(lake, datetime.now(UTC) - timedelta(days=2), retryable=False)
        with pytest.raises(AirflowException, match="FAILED, could not fetch the archive") as raised:
            ended(plugin, deferred)
        assert not isinstance(raised.value, AirflowFailException)

    def test_a_task_that_is_killed_while_it_waits_cancels_its_job(self, plugin: Any, service: Service) -> None:
        service.jobs_are("RUNNING")
        deferred = deferral(emr_job(plugin))
        asyncio.run(made_again(deferred.trigger).on_kill())
        assert [job.state for job in service.jobs] == ["CANCELLED"]

    def test_it_takes_no_more_than_the_policy_allows(
        self, plugin: Any, service: Service, operations: set[str], allowed: Callable[[str], set[str]]
    ) -> None:
        service.jobs_are("RUNNING")
        service.backend.applications[service.application].state = "STOPPED"
        starting = deferral(emr_job(plugin))
        assert starting.method_name == "execute"
        service.backend.applications[service.application].state = "STARTED"
        for _ in range(2):
            deferral(emr_job(plugin))
        with pytest.raises(Exception, match="RUNNING"):
            emr_job(plugin).resume_execution(
                "execute_complete",
                {"event": {"status": "failure", "message": ""}, "job_id": service.jobs[-1].id},
                context(),
            )
        emr = {one for one in allowed("Airflow") if one.startswith("emr-serverless:")} - {"emr-serverless:TagResource"}
        assert {one for one in operations if one.startswith("emr-serverless:")} == emr

    def test_a_job_that_was_lost_sight_of_is_cancelled_and_tried_again(self, plugin: Any, service: Service) -> None:
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        service.jobs_are("RUNNING")
        deferred = deferral(emr_job(plugin))
        event = {"status": "failure", "message": "no network"}
        with pytest.raises(AirflowException, match="RUNNING, no network") as raised:
            emr_job(plugin).resume_execution(deferred.method_name, {**deferred.kwargs, "event": event}, context())
        assert not isinstance(raised.value, AirflowFailException)
        assert [job.state for job in service.jobs] == ["CANCELLED"]
