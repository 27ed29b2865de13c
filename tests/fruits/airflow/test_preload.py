"""What a process imports before it forks those of tasks and DAG files."""

import subprocess
import sys
from pathlib import Path

import pytest

from fruits.airflow import preload
from tests.environments import ROOT, unconfigured

pytestmark = pytest.mark.airflow

STARTED = """
import sys
from airflow.jobs.job import Job
Job()  # as `airflow scheduler`, `airflow dag-processor` and `airflow triggerer` do first
print(*(name for name in sys.argv[1:] if name not in sys.modules))
"""


def test_a_scheduler_imports_the_libraries_of_its_tasks_before_it_forks(tmp_path: Path) -> None:
    variables = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", STARTED, *preload._LIBRARIES],
        env=unconfigured(PYTHONPATH=str(ROOT), **variables), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == ""


def test_code_of_ours_is_not_kept_from_one_task_to_the_next() -> None:
    assert [name for name in preload._LIBRARIES if name.startswith("fruits")] == []


def test_the_process_of_a_task_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "import_module", pytest.fail)
    preload.on_starting(object())
