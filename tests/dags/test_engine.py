"""What runs the Spark jobs of both DAGs is one setting."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fruits.errors import FruitsError

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
JOBS = [
    ("fruit_features", "featurize"),
    ("fruit_features", "pca"),
    ("fruit_features", "validate"),
    ("fruit_maintenance", "maintain"),
]
EMR = {
    "FRUITS_ENGINE": "emr-serverless",
    "FRUITS_EMR_APPLICATION": "00f1application",
    "FRUITS_EMR_ROLE": "arn:aws:iam::123456789012:role/fruits-jobs",
    "FRUITS_EMR_CODE": "s3://code/fruits/",
    "FRUITS_EMR_LOGS": "s3://logs/fruits",
}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EMR:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("dag", "job"), JOBS)
def test_by_itself_it_is_spark_submit(load: Callable[[str], ModuleType], dag: str, job: str) -> None:
    task = load(dag).dag.get_task(job)
    assert type(task).__name__ == "SparkJobOperator"
    assert task.application == str(ROOT / "spark_jobs" / f"{job}.py")


@pytest.mark.parametrize(("dag", "job"), JOBS)
def test_with_the_setting_it_is_emr_serverless(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, dag: str, job: str
) -> None:
    for name, value in EMR.items():
        monkeypatch.setenv(name, value)
    task = load(dag).dag.get_task(job)
    assert type(task).__name__ == "EmrJobOperator"
    asked: dict[str, Any] = {}

    def xcom_pull(**wanted: Any) -> str:
        asked.update(wanted)
        return "the_run"

    task.render_template_fields({"task_instance": SimpleNamespace(xcom_pull=xcom_pull)})
    assert (asked["task_ids"], asked["dag_id"]) == ("plan", dag)
    assert task.job_driver == {
        "sparkSubmit": {
            "entryPoint": f"s3://code/fruits/spark_jobs/{job}.py",
            "entryPointArguments": ["--run", "the_run"],
        }
    }
    assert task.application_id == "00f1application"
    assert task.execution_role_arn == EMR["FRUITS_EMR_ROLE"]
    assert task.name == f"fruits-{job}-the_run"
    assert task.config["tags"] == {"fruits:job": job, "fruits:run": "the_run"}
    logs = task.configuration_overrides["monitoringConfiguration"]["s3MonitoringConfiguration"]
    assert logs == {"logUri": "s3://logs/fruits/"}
    assert (task.deferrable, task.cancel_on_kill) == (True, True)
    assert task.execution_timeout == timedelta(hours=12)
    assert task.retries == 2


def test_half_of_the_settings_are_named_when_the_file_is_parsed(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRUITS_ENGINE", "emr-serverless")
    monkeypatch.setenv("FRUITS_EMR_CODE", "s3://code")
    with pytest.raises(FruitsError, match="FRUITS_EMR_APPLICATION, FRUITS_EMR_ROLE: not set, and FRUITS_ENGINE=emr"):
        load("fruit_features")
