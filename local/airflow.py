"""Airflow for the embedded stack: its environment, its database, one run of a DAG."""

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fruits.errors import FruitsError
from local.queue import EventQueue
from local.stack import REGION, Stack

ROOT = Path(__file__).parents[1]

_RUN_ID = re.compile(r"creating dag run .*\brun_id=(\S+)")
_STARTING = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
_OURS = re.compile(
    r"(?:INFO|ERROR) fruits (.*?)(?: \[airflow\.| \[task|$)"  # a line of a Spark job, as its operator logs it
    r"|\] (plan: .*?|lease: .*?|would .*?|\.\.\. and .*?|backbone .*?|published .*?)\s+\[fruits\]"  # a line of a task
)
_LOGGED = re.compile(r"\d{4}-\d{2}-\d{2}T\S+Z \[")
_FAILURE = re.compile(r"\S*\.AirflowFailException: (.*)")


@dataclass(frozen=True)
class DagRun:
    """How a run of a DAG ended; ``errors`` are the messages of its failed tasks."""

    run_id: str | None
    succeeded: bool
    errors: tuple[str, ...]


def airflow_environment(stack: Stack, queue: EventQueue | None = None) -> dict[str, str]:
    """The environment variables with which Airflow's programs find stack, DAGs, plugins and, if any, the queue."""
    home = stack.data / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    aws = {
        "conn_type": "aws",
        "login": stack.access_key,
        "password": stack.secret_key,
        "extra": {
            "region_name": REGION,
            "endpoint_url": stack.endpoint,
            "service_config": {"sqs": {"endpoint_url": queue.endpoint}} if queue else {},
        },
    }
    return {
        **stack.environment,
        "FRUITS_EVENT_QUEUE": queue.url if queue else "",  # never somebody's real queue
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": "",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "local.sqlite.CONNECT_ARGS",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws),
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[*]"}),
        "SPARK_CONF_DIR": os.environ.get("SPARK_CONF_DIR") or str(Path(__file__).with_name("spark")),
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
    """The `airflow` program of this process's environment."""
    return str(Path(sys.prefix) / "bin" / "airflow")


def run_dag(
    stack: Stack,
    dag_id: str,
    conf: Mapping[str, Any],
    log: Path,
    report: Callable[[str], None],
    before: Callable[[], None] = lambda: None,
) -> DagRun:
    """Run a DAG once, to its end, through Airflow; ``report`` gets the progress, the log everything.

    ``before`` is called before the run starts, while Airflow is imported.
    """
    command = [sys.executable, "-m", "local.one_run", dag_id]
    environment = {**airflow_environment(stack), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    reader = LogReader()
    with (
        log.open("w") as file,
        subprocess.Popen(  # noqa: S603 -- our own environment's airflow
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=stack.data,
            close_fds=False,  # it inherits the lock of `in_use`
        ) as process,
    ):
        try:
            before()
        except BaseException:
            process.kill()
            raise
        with suppress(BrokenPipeError), process.stdin:  # type: ignore[union-attr]  # the log says why it ended
            json.dump(conf, process.stdin)  # type: ignore[arg-type]
        for line in process.stdout or ():
            file.write(line)
            if message := reader.read(line):
                report(message)
    return DagRun(reader.run_id, process.returncode == 0, reader.errors)


class LogReader:
    """Selects the lines of Airflow's log that matter to the person who waits.

    Airflow (3.3) has no other way: its listeners see neither the Spark driver's lines nor the lines of the tasks.
    """

    def __init__(self) -> None:
        self.run_id: str | None = None
        self._errors: list[list[str]] = []
        self._in_error = False

    @property
    def errors(self) -> tuple[str, ...]:
        """The messages of failed tasks, each once; they may have several lines."""
        return tuple(dict.fromkeys("\n".join(lines).strip() for lines in self._errors))

    def read(self, line: str) -> str | None:
        """Take the next line; returns the text to show, if any."""
        if not _LOGGED.match(line):  # part of an exception, or another program's output
            self._read_failure(line.rstrip("\n"))
            return None
        self._in_error = False
        if match := _RUN_ID.search(line):
            self.run_id = match[1]
        elif match := _STARTING.search(line):
            return f"> {match[1]}"
        elif match := _OURS.search(line):
            return f"  {match[1] or match[2]}"
        return None

    def _read_failure(self, line: str) -> None:
        if match := _FAILURE.match(line):
            self._in_error = True
            self._errors.append([match[1]])
        elif self._in_error:
            self._errors[-1].append(line)


def new_secret() -> str:
    """A random secret for one installation."""
    return secrets.token_urlsafe(32)
