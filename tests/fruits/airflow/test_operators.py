"""Spark jobs as tasks, where only spark-submit is a stand-in."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, current_base, publish
from fruits.run.documents import TaskName, run_store
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.stores import write_json
from local.stack import Stack
from tests.runs import document, planned, write_documents, writer

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[3]
RUN = run_key("a run")


@pytest.fixture(scope="module")
def operators(airflow_variables: pytest.MonkeyPatch) -> Any:
    """The module."""
    from fruits.airflow import operators

    return operators


class Submitted:
    """A jobs environment whose spark-submit records its call, then does what the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "bin" / "spark-submit"
        script.parent.mkdir(parents=True)
        script.write_text(
            f'#!/bin/sh\ncd "{folder}"\nprintf "%s\\n" "$@" > arguments\nenv > environment\nsh job\nexit $(cat code)\n'
        )
        script.chmod(0o755)
        self.job_does("", code=0)

    def job_does(self, script: str, code: int) -> None:
        (self.folder / "job").write_text(script)
        (self.folder / "code").write_text(str(code))

    @property
    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text().splitlines()

    @property
    def environment(self) -> dict[str, str]:
        lines = (self.folder / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def submitted(lake: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submitted:
    """With a planned run."""
    plan = document("plan", result=planned("a run", base=current_base(Lake.open(lake))))
    assert write_documents(lake, plan, run_id="a run") == RUN
    stand_in = Submitted(tmp_path / "jobs env")
    monkeypatch.setenv("FRUITS_JOBS_ENV", str(stand_in.folder))
    monkeypatch.setenv("FRUITS_SPARK_DRIVER_MEMORY", "3g")
    return stand_in


def spark_job(operators: Any) -> Any:
    return operators.SparkJobOperator(task_id="featurize", job="featurize", run=RUN)


class TestSparkJob:
    def test_is_submitted_from_the_jobs_environment(self, operators: Any, stack: Stack, submitted: Submitted) -> None:
        spark_job(operators).execute({})
        arguments = submitted.arguments
        assert arguments[-3:] == [str(ROOT / "spark_jobs" / "featurize.py"), "--run", RUN]
        assert arguments[arguments.index("--master") + 1] == "local[*]"
        assert arguments[arguments.index("--driver-memory") + 1] == "3g"
        assert arguments[arguments.index("--name") + 1] == "fruits-featurize"
        python = str(submitted.folder / "bin" / "python")
        assert submitted.environment["PYSPARK_PYTHON"] == python
        assert submitted.environment["PYSPARK_DRIVER_PYTHON"] == python

    def test_credentials_go_by_environment_only(
        self, operators: Any, stack: Stack, submitted: Submitted, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FRUITS_WEIGHTS", "https://host/a.h5?X-Amz-Signature=marker")
        job = spark_job(operators)
        job.execute({})
        assert submitted.environment["AWS_SECRET_ACCESS_KEY"] == stack.secret_key
        kept = {name: getattr(job, name) for name in job.template_fields}  # Airflow keeps and shows these
        for seen in (" ".join(submitted.arguments), repr(kept)):
            assert stack.secret_key not in seen
            assert "marker" not in seen

    def test_the_run_is_a_template(self, operators: Any) -> None:
        assert "application_args" in operators.SparkJobOperator.template_fields

    def test_a_run_that_is_published_is_not_worked_on_again(
        self, operators: Any, settings: Settings, submitted: Submitted
    ) -> None:
        lake = Lake.open(settings)
        base = current_base(lake)
        row = Publication(1, base.publication.snapshots, "pub-1", run_id="a run", model_id="m", counts={})
        publish(lake, base, writer(RUN, "publish"), row)
        spark_job(operators).execute({})
        assert not (submitted.folder / "arguments").exists()

    def test_a_failure_that_a_person_must_fix_raises_the_jobs_own_error(
        self, operators: Any, settings: Settings, submitted: Submitted
    ) -> None:
        from airflow.sdk.exceptions import AirflowFailException

        leave_document(settings, submitted, state="failed", retryable=False, error="bucket 'x':\n  fix this", code=2)
        with pytest.raises(AirflowFailException) as raised:
            spark_job(operators).execute({})
        assert str(raised.value) == "bucket 'x':\n  fix this"

    @pytest.mark.parametrize(
        "content",
        [
            {"state": "failed", "retryable": True, "error": "ZeroDivisionError()", "code": ExitCode.UNEXPECTED},
            {"state": "failed", "retryable": True, "error": "no answer", "code": ExitCode.TRANSIENT},
            {"state": "running", "code": 137},
            None,
        ],
        ids=["defect", "transient", "killed", "never started"],
    )
    def test_any_other_failure_is_retried(
        self, operators: Any, settings: Settings, submitted: Submitted, content: dict[str, Any] | None
    ) -> None:
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        if content:
            leave_document(settings, submitted, **content)
        else:
            submitted.job_does("", code=ExitCode.TRANSIENT)
        with pytest.raises(AirflowException) as raised:
            spark_job(operators).execute({})
        assert not isinstance(raised.value, AirflowFailException)

    def test_an_error_of_an_earlier_attempt_is_not_raised_again(
        self, operators: Any, settings: Settings, submitted: Submitted
    ) -> None:
        """spark-submit may die before the job writes anything; that may pass by itself."""
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        before = datetime.now(UTC) - timedelta(minutes=1)
        leave_document(settings, submitted, state="failed", retryable=False, error="fix this", code=137, started=before)
        with pytest.raises(AirflowException, match="137") as raised:
            spark_job(operators).execute({})
        assert not isinstance(raised.value, AirflowFailException)

    def test_another_jobs_failure_is_not_taken_for_its_own(
        self, operators: Any, settings: Settings, submitted: Submitted
    ) -> None:
        from airflow.sdk.exceptions import AirflowException, AirflowFailException

        leave_document(settings, submitted, task="pca", state="failed", retryable=False, error="fix this", code=1)
        with pytest.raises(AirflowException) as raised:
            spark_job(operators).execute({})
        assert not isinstance(raised.value, AirflowFailException)

    def test_a_jobs_environment_that_is_not_there_is_named(
        self, operators: Any, settings: Settings, submitted: Submitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FRUITS_JOBS_ENV", str(tmp_path / "nowhere"))
        with pytest.raises(Exception, match="nowhere"):
            spark_job(operators).execute({})


def leave_document(
    settings: Settings,
    submitted: Submitted,
    *,
    code: int,
    task: TaskName = "featurize",
    started: datetime | None = None,
    **content: Any,
) -> None:
    """Have the job leave a run document, by default of a start a minute from now, and end with an exit code."""
    left = document(task, started_at=started or datetime.now(UTC) + timedelta(minutes=1), **content)
    write_json(run_store(settings, "prepared"), f"{task}.json", left.model_dump(mode="json"))
    runs = Path(settings.lake.removeprefix("file://")) / "runs" / settings.namespace
    submitted.job_does(f"mkdir -p {runs}/{RUN} && mv {runs}/prepared/{task}.json {runs}/{RUN}/{task}.json", code)
