"""Ask Airflow by its own program ``airflow``, which is in the airflow environment beside the jobs environment."""

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
from fruits.run import DAG_ID
from fruits.serve.watch import Schedule

_SECONDS = 90  # on an idle machine, the program takes 5 s to start
_ANSWER_SECONDS = 5


class NoAirflowError(FruitsError):
    """Airflow is not installed, or does not run."""


@dataclass(frozen=True)
class Airflow:
    """Airflow's program, and the environment variables by which the program finds its database."""

    program: Path
    environment: Mapping[str, str]

    def ask(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command of ``airflow`` and parse its JSON answer, whatever its exit code.

        Raises:
            FruitsError: if the command fails without a JSON answer; has the last line of its output.
        """
        done = self._run(*arguments, "--output", "json")
        for line in done.stdout.splitlines():  # lines of a log may come first
            if (rows := _parsed(line)) is not None:
                return rows
        _check(done, arguments)
        return []  # without rows, Airflow prints a sentence

    def check(self, *arguments: str) -> None:
        """Run a command of ``airflow`` that has no answer.

        Raises:
            FruitsError: if the command fails; has the last line of its output.
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
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise FruitsError(f"airflow {' '.join(arguments[:2])}: {lines[-1] if lines else 'failed without output'}")


def _parsed(line: str) -> list[dict[str, Any]] | None:
    if not line.startswith("["):
        return None
    try:
        rows: list[dict[str, Any]] = json.loads(line)
    except ValueError:
        return None
    return rows


def find_airflow(place: Place) -> Airflow:
    """Find the Airflow of the place.

    Raises:
        NoAirflowError: if there is no program ``airflow``, or ``make ui`` was never started on the folder.
    """
    beside = Path(sys.prefix).parent / "airflow" / "bin" / "airflow"
    program = str(beside) if beside.is_file() else shutil.which("airflow")
    if program is None:
        raise NoAirflowError(f"Airflow: no program at {beside}, nor on PATH; run `make setup`")
    if place.stack is None:
        return Airflow(Path(program), dict(os.environ))
    from local.airflow import airflow_environment

    if not (place.stack.data / "airflow" / "airflow.db").is_file():
        raise NoAirflowError(f"Airflow was never started on {place.stack.data}; `make ui` starts Airflow")
    return Airflow(Path(program), airflow_environment(place.stack))


def ui_note(data: Path) -> dict[str, Any]:
    """The file in which ``make ui`` records what it started on ``data``; empty if there is none."""
    note = data / "ui.json"
    return dict(json.loads(note.read_text())) if note.is_file() else {}


def ui_health(data: Path) -> dict[str, str] | None:
    """The state of each part of the Airflow that ``make ui`` started on ``data``; None without an answer."""
    try:
        url = f"{ui_note(data)['url']}/api/v2/monitor/health"
        with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:  # noqa: S310 -- our own http URL
            health = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return None
    return {name: str(part["status"]) for name, part in health.items() if isinstance(part, dict)}


def trigger(place: Place, conf: Mapping[str, Any]) -> str:
    """Start a run of the DAG; return its run id.

    Raises:
        FruitsError: if Airflow does not run, or the DAG is paused, so that the run would wait unseen.
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
    """Airflow's state of the DAG: on or paused, the next sweep, runs, import errors."""
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
    """Parse a time that Airflow's command line prints; None if the text is no time."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
