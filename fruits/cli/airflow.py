"""Airflow, asked by its own program ``airflow``, which is in the environment beside ours."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fruits.cli.place import Place
from fruits.errors import FruitsError
from fruits.serve.watch import Schedule

DAG_ID = "fruit_features"
_SECONDS = 90  # its program takes 5 to start, on an idle machine
_ANSWER_SECONDS = 5


class NoAirflowError(FruitsError):
    """Airflow is not there, or does not run."""


@dataclass(frozen=True)
class Airflow:
    """Airflow's program, and the environment in which it finds its database."""

    program: Path
    environment: Mapping[str, str]

    def ask(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command of ``airflow`` answers as JSON, also when it calls that a failure.

        Raises:
            FruitsError: with the end of what it said, when it fails without such an answer.
        """
        done = self._run(*arguments, "--output", "json")
        for line in done.stdout.splitlines():  # its log may stand before the answer
            if (found := _parsed(line)) is not None:
                return found
        _check(done, arguments)
        return []  # it says that there is nothing

    def check(self, *arguments: str) -> None:
        """Run a command of ``airflow`` that succeeds or not.

        Raises:
            FruitsError: with the end of what it said, when it fails.
        """
        _check(self._run(*arguments), arguments)

    def _run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(  # noqa: S603 -- Airflow's program
                [str(self.program), *arguments],
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise FruitsError(f"airflow {' '.join(arguments[:2])}: no answer within {_SECONDS} s") from None


def _check(done: "subprocess.CompletedProcess[str]", arguments: Sequence[str]) -> None:
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise FruitsError(f"airflow {' '.join(arguments[:2])}: {said[-1] if said else 'failed without a word'}")


def _parsed(line: str) -> list[dict[str, Any]] | None:
    if not line.startswith("["):
        return None
    try:
        found: list[dict[str, Any]] = json.loads(line)
    except ValueError:
        return None
    return found


def find_airflow(place: Place) -> Airflow:
    """Airflow of the place.

    Raises:
        NoAirflowError: when its program is not there, or the embedded one was never started.
    """
    beside = Path(sys.prefix).parent / "airflow" / "bin" / "airflow"
    program = str(beside) if beside.is_file() else shutil.which("airflow")
    if program is None:
        raise NoAirflowError(f"Airflow: no program at {beside}, nor on PATH; run `make setup`")
    if place.stack is None:
        return Airflow(Path(program), dict(os.environ))
    from local.airflow import airflow_environment

    if not (place.stack.data / "airflow" / "airflow.db").is_file():
        raise NoAirflowError(f"Airflow was never started on {place.stack.data}; `make ui` does that")
    return Airflow(Path(program), airflow_environment(place.stack))


def ui_note(data: Path) -> dict[str, Any]:
    """What ``make ui`` noted of what it started on ``data``; empty when it did not."""
    note = data / "ui.json"
    return dict(json.loads(note.read_text())) if note.is_file() else {}


def ui_health(data: Path) -> dict[str, str] | None:
    """The state of each part of the Airflow that ``make ui`` started on ``data``; None when it does not answer."""
    try:
        url = f"{ui_note(data)['url']}/api/v2/monitor/health"
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310 -- our own http URL
            health = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return None
    return {name: str(part["status"]) for name, part in health.items() if isinstance(part, dict)}


def trigger(place: Place, conf: Mapping[str, Any]) -> str:
    """Start a run of the DAG; returns its run id.

    Raises:
        FruitsError: when Airflow is not there, does not run, or the DAG is paused: the run would wait unseen.
    """
    airflow = find_airflow(place)
    if place.stack is not None and ui_health(place.stack.data) is None:
        raise NoAirflowError(f"Airflow does not run on {place.stack.data}; start it with `make ui`, then try again")
    if is_paused(airflow):
        raise FruitsError(
            f"DAG {DAG_ID} is paused, so a run would not start; switch it on in Airflow's UI, then try again"
        )
    (run,) = airflow.ask("dags", "trigger", DAG_ID, "--conf", json.dumps(conf))
    return str(run.get("dag_run_id") or run.get("run_id"))


def is_paused(airflow: Airflow) -> bool:
    """Whether the DAG is paused."""
    (details,) = airflow.ask("dags", "details", DAG_ID)
    return str(details["is_paused"]) == "True"


def schedule_of(airflow: Airflow) -> Schedule:
    """What Airflow makes of the DAG: whether it is on, when its next sweep is due, its runs, import errors."""
    (details,) = airflow.ask("dags", "details", DAG_ID)
    queued = airflow.ask("dags", "list-runs", DAG_ID, "--state", "queued")
    running = airflow.ask("dags", "list-runs", DAG_ID, "--state", "running") if queued else []
    errors = airflow.ask("dags", "list-import-errors")
    return Schedule(
        paused=str(details["is_paused"]) == "True",
        next_sweep=_moment(details.get("next_dagrun_logical_date")),
        queued=len(queued),
        running=len(running),
        import_errors={
            Path(str(error["filepath"])).name: str(error["error"]).strip().splitlines()[-1].strip() for error in errors
        },
    )


def _moment(text: object) -> datetime | None:
    """A moment as Airflow's command line prints it; None where it prints none."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
