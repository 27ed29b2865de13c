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
from pathlib import Path
from airflow.jobs.job import Job
Job()  # as `airflow scheduler`, `airflow dag-processor` and `airflow triggerer` do first
print(*(name for name in sys.argv[1:] if name not in sys.modules))
print(*sorted({file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")}))
"""


def test_a_scheduler_imports_the_libraries_of_its_tasks_before_it_forks(tmp_path: Path) -> None:
    variables = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", STARTED, *preload._LIBRARIES],
        env=unconfigured(PYTHONPATH=str(ROOT), **variables), capture_output=True, text=True, check=True,
    )  # fmt: skip
    missing, threads = done.stdout.splitlines()[-2:]
    assert missing == ""
    # A thread that is lost in a fork may hold a lock for ever: only those of memory and BLAS, which look after forks.
    assert {name for name in threads.split() if not name.startswith(("python", "jemalloc_bg_thd"))} == set()


def test_only_libraries_are_listed() -> None:
    assert [name for name in preload._LIBRARIES if name.startswith("fruits")] == []


def test_the_process_of_a_task_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "import_module", pytest.fail)
    preload.on_starting(object())
