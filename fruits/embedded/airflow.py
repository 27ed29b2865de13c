"""Airflow for the embedded stack: its environment, its database, one run of a DAG."""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruits.embedded.stack import REGION, Stack
from fruits.errors import FruitsError

ROOT = Path(__file__).parents[2]

_RUN_ID = re.compile(r"creating dag run .*\brun_id=(\S+)")
_STARTING = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
_OURS = re.compile(
    r"(?:INFO|ERROR) fruits (.*?)(?: \[airflow\.| \[task|$)|\] (plan: .*?|would .*?|\.\.\. and .*?|backbone .*?|published .*?)\s+\[fruits\]"
)
_FAILURE = re.compile(r"AirflowFailException: (.*)")


@dataclass(frozen=True)
class DagRun:
    """How a run of a DAG ended; ``errors`` are the messages of its failed tasks."""

    run_id: str | None
    succeeded: bool
    errors: tuple[str, ...]


def airflow_environment(stack: Stack) -> dict[str, str]:
    """The environment in which Airflow's programs find stack, DAGs and plugins."""
    home = stack.data / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    aws = {
        "conn_type": "aws",
        "login": stack.access_key,
        "password": stack.secret_key,
        "extra": {"region_name": REGION, "endpoint_url": stack.endpoint},
    }
    return {
        **stack.environment,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[*]"}),
    }


def migrate(stack: Stack) -> None:
    """Make Airflow's database, or bring it up to date after an upgrade."""
    from importlib.metadata import version

    done = stack.data / "airflow" / f"migrated-{version('apache-airflow')}"
    if done.exists():
        return
    environment = airflow_environment(stack)
    log = stack.data / "airflow" / "migrate.log"
    with log.open("wb") as file:
        code = subprocess.run(  # noqa: S603 -- our own environment's airflow
            [airflow(), "db", "migrate"], env=environment, stdout=file, stderr=file, check=False
        ).returncode
    if code:
        raise FruitsError(f"Airflow's database can't be made; its log is {log}")
    done.touch()


def airflow() -> str:
    """The `airflow` program of the environment we run in."""
    return str(Path(sys.prefix) / "bin" / "airflow")


def run_dag(stack: Stack, dag_id: str, conf: Mapping[str, Any], log: Path, report: Callable[[str], None]) -> DagRun:
    """Run a DAG once, to its end, through Airflow; ``report`` is told what happens, the log has everything."""
    command = [airflow(), "dags", "test", dag_id, "--conf", json.dumps(conf)]
    environment = {**airflow_environment(stack), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    run_id: str | None = None
    errors: list[str] = []
    with (
        log.open("w") as file,
        subprocess.Popen(  # noqa: S603 -- our own environment's airflow
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=stack.data
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            if found := _RUN_ID.search(line):
                run_id = found[1]
            elif found := _FAILURE.search(line):
                errors.append(found[1].strip())
            elif found := _STARTING.search(line):
                report(f"> {found[1]}")
            elif found := _OURS.search(line):
                report(f"  {found[1] or found[2]}")
    return DagRun(run_id, process.returncode == 0, tuple(dict.fromkeys(errors)))


def new_secret() -> str:
    """A random secret for one installation."""
    return secrets.token_urlsafe(32)
