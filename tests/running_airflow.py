"""The embedded stack's Airflow with DAGs of a test, over HTTP."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from local import ui
from local.airflow import airflow_environment
from local.api import AirflowAPI
from tests.running_ui import wait_for


@dataclass(frozen=True)
class Airflow:
    """A running Airflow."""

    data: Path
    api: AirflowAPI

    def start(self, dag: str) -> str:
        """Start a run; returns its id."""
        return str(self.api.ask(f"dags/{dag}/dagRuns", "POST", {"logical_date": None})["dag_run_id"])

    def ended(self, dag: str, run: str) -> str | None:
        """The state of a run that has ended."""
        state = str(self.api.ask(f"dags/{dag}/dagRuns/{run}")["state"])
        return state if state in ("success", "failed") else None

    def finish(self, dag: str, state: str = "success") -> str:
        """Start a run and wait for its end in a state; returns its id."""
        run = self.start(dag)
        assert wait_for(lambda: self.ended(dag, run)) == state
        return run


@contextmanager
def running_airflow(data: Path, dags: Mapping[str, str], count: int, **environment: str) -> Iterator[Airflow]:
    """Inside, Airflow runs with these DAG files, by name, once it knows ``count`` DAGs; none of them is paused."""
    folder = data.parent / "dags"
    folder.mkdir()
    for name, text in dags.items():
        (folder / name).write_text(text)
    ours = {
        **environment,
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ui, "airflow_environment", lambda *given: airflow_environment(*given) | ours)
        ui.start(data)
        try:
            airflow = Airflow(data, AirflowAPI.of(data))
            wait_for(lambda: airflow.api.ask("dags")["total_entries"] == count)
            yield airflow
        finally:
            ui.stop(data)
