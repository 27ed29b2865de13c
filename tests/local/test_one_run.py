"""One run of a DAG without the scheduler: what it spares, and what it does without a conf."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments import ROOT, unconfigured

pytestmark = pytest.mark.airflow

VERSIONS = """
from cadwyn import Version
from local.one_run import import_airflow
import_airflow()
from airflow.sdk.execution_time.supervisor import in_process_api_server
from airflow.sdk.api.datamodels._generated import API_VERSION
app = in_process_api_server().app
apis = [route.app for route in app.routes if hasattr(getattr(route, "app", None), "versions")]
(api,) = apis or [app]
print(*(version.value for version in api.versions.versions if isinstance(version, Version)), API_VERSION)
"""


@pytest.fixture
def python(tmp_path: Path):
    """Runs Python as Airflow's environment, with an empty home."""

    def run(*arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        environment = unconfigured(PYTHONPATH=str(ROOT), AIRFLOW_HOME=str(tmp_path))
        return subprocess.run(
            [sys.executable, *arguments], env=environment, input=given, capture_output=True, text=True, check=False
        )

    return run


def test_the_tasks_find_one_version_of_airflows_execution_api_and_it_is_theirs(python) -> None:
    done = python("-c", VERSIONS)
    assert done.returncode == 0, done.stderr[-2000:]
    served, asked = done.stdout.splitlines()[-1].split()
    assert served == asked


def test_without_a_conf_there_is_no_run(python, tmp_path: Path) -> None:
    assert python("-m", "local.one_run", "fruit_features").returncode == 1
    assert not list(tmp_path.glob("logs/dag_id=*"))
