"""`make ui` as a person starts it, with users who may see less: one for all tests of a session."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import psutil

from local.api import AirflowAPI, password_of
from local.stack import Stack, running_server
from tests.environments import ROOT, unconfigured
from tests.planted import PLANTED

Value = TypeVar("Value")

DAG = "dags/fruit_features"
VARIABLES = {
    **PLANTED,
    "AIRFLOW__API_AUTH__JWT_CLI_EXPIRATION_TIME": "1",  # a token that expires before a test's eyes
    "AIRFLOW__API_AUTH__JWT_LEEWAY": "0",
    "AIRFLOW__CORE__AUTH_MANAGER": "tests.one_dag_is_secret.OneDagIsSecret",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer,stranger:viewer,nosy:viewer",
}


def command(data: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`python -m local` in an environment where only ``variables`` are configured."""
    return subprocess.run(
        [sys.executable, "-m", "local", "--data", str(data), *arguments],
        env=unconfigured(**variables),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class UI:
    """A running stack with Airflow's UI, and what was printed when it was started."""

    data: Path
    out: str

    @property
    def url(self) -> str:
        return self.shown("Airflow UI")

    def shown(self, name: str) -> str:
        """What the person was told, by name."""
        line = next(line for line in self.out.splitlines() if line.strip().startswith(name))
        return line.strip().removeprefix(name).strip()

    @cached_property
    def api(self) -> AirflowAPI:
        """Airflow's API for the user and password that were printed."""
        return AirflowAPI(self.url, self.shown("user"), self.shown("password"))

    def api_of(self, user: str) -> AirflowAPI:
        """Airflow's API for another user."""
        return AirflowAPI(self.url, user, password_of(self.data, user))

    @property
    def stack(self) -> Stack:
        stack = running_server(self.data)
        assert stack is not None
        return stack

    def family(self) -> list[psutil.Process]:
        """All processes that were started, as far as they run."""
        family = []
        for identity in json.loads((self.data / "ui.json").read_text())["processes"].values():
            with suppress(psutil.NoSuchProcess):  # its leader runs, but a child may end while it is looked for
                root = psutil.Process(int(identity["pid"]))
                family += [root, *root.children(recursive=True)]
        return family


def started_ui(data: Path) -> UI:
    """The UI on a data folder; started unless it runs."""
    done = command(data, "ui", **VARIABLES)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs(data)}"
    return UI(data, done.stdout)


def alive(process: psutil.Process) -> bool:
    """Whether it runs: one that has ended may stay in the table of processes until somebody asks how."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def logs(data: Path) -> str:
    """The ends of Airflow's logs, for a failing test's report."""
    return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted((data / "logs").glob("*.log")))


def wait_for(look: Callable[[], Value], seconds: float = 180) -> Value:
    """The first value of ``look`` that is not empty."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.2)
    return found
