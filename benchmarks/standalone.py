"""A Spark standalone cluster on this machine, for tests and benchmarks: a master, workers of one core each."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from local.stack import free_ports

ENVIRONMENT = Path(sys.prefix)
QUICK = "-XX:TieredStopAtLevel=1"  # nothing here runs long enough to repay a better compilation


@dataclass
class Standalone:
    """The cluster: what it runs in ``folder``, and how to submit to it."""

    folder: Path
    port: int
    ui_port: int
    history_port: int
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The master, as spark-submit takes it."""
        return f"spark://127.0.0.1:{self.port}"

    @property
    def history(self) -> str:
        """API of the history server."""
        return f"http://127.0.0.1:{self.history_port}/api/v1"

    @property
    def event_logs(self) -> Path:
        """Folder of the applications' event logs."""
        return self.folder / "events"

    def applications(self) -> set[str]:
        """Ids of the applications that have begun so far, by their event logs."""
        return {log.name.removeprefix("eventlog_v2_") for log in self.event_logs.glob("eventlog_v2_*")}

    def start(self, role: str, *arguments: object) -> "subprocess.Popen[bytes]":
        """A daemon of Spark's, with its output in a file of the folder and its children in a group of their own."""
        name = f"{role.rpartition('.')[2].lower()}-{len(self.processes)}"
        with (self.folder / f"{name}.log").open("wb") as log:
            spark = spark_home()
            command = [str(spark / "bin" / "spark-class"), f"org.apache.spark.deploy.{role}", *map(str, arguments)]
            daemon = {"SPARK_HOME": str(spark), "SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": QUICK}
            environment = {**spark_environment(self.folder), **daemon}
            process = subprocess.Popen(  # noqa: S603 -- Spark's own script
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def start_worker(self) -> None:
        """One more worker of a core and a gigabyte, once the master knows it."""
        before = self.alive()
        work = self.folder / f"work-{len(self.processes)}"
        size = ("--cores", 1, "--memory", "1g", "--work-dir", work)
        where = ("--host", "127.0.0.1", "--webui-port", *free_ports(1))
        self.workers.append(self.start("worker.Worker", *where, *size, self.url))
        wait_for(lambda: self.alive() > before, "a worker is registered")

    def kill_worker(self) -> None:
        """The newest worker, its executors and their Python are gone."""
        kill_group(self.workers.pop())

    def alive(self) -> int:
        """How many workers the master has."""
        return int(get_json(f"http://127.0.0.1:{self.ui_port}/json/")["aliveworkers"])

    def submit(
        self, script: Path, *arguments: str, options: Mapping[str, object] | None = None
    ) -> "subprocess.Popen[str]":
        """spark-submit with options, which start with ``--``, and properties of Spark; its output is one stream."""
        words = [
            word
            for name, value in {"--master": self.url, **(options or {})}.items()
            for word in ((name, str(value)) if name.startswith("--") else ("--conf", f"{name}={value}"))
        ]
        command = [str(ENVIRONMENT / "bin" / "spark-submit"), *words, str(script), *arguments]
        environment = spark_environment(self.folder)
        return subprocess.Popen(  # noqa: S603 -- our own program
            command, env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


@contextmanager
def standalone(folder: Path, *, workers: int) -> Iterator[Standalone]:
    """A running cluster, its daemons ended afterwards; executors have the environment variables of this process."""
    for name in ("conf", "events"):
        (folder / name).mkdir(parents=True)
    port, ui_port, history_port = free_ports(3)
    cluster = Standalone(folder, port, ui_port, history_port)
    defaults = {
        "spark.executor.memory": "512m",
        "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": QUICK,
        "spark.executor.extraJavaOptions": QUICK,
        "spark.ui.enabled": "false",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": cluster.event_logs.as_uri(),
        "spark.history.fs.logDirectory": cluster.event_logs.as_uri(),
        "spark.history.ui.port": cluster.history_port,
    }
    lines = (f"{key} {value}\n" for key, value in defaults.items())
    (folder / "conf" / "spark-defaults.conf").write_text("".join(lines))
    try:
        cluster.start("master.Master", "--host", "127.0.0.1", "--port", cluster.port, "--webui-port", cluster.ui_port)
        wait_for(lambda: cluster.alive() == 0, "the master answers")
        for _ in range(workers):
            cluster.start_worker()
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            kill_group(process)


def spark_home() -> Path:
    """The folder of this environment's Spark."""
    found = find_spec("pyspark")
    assert found is not None  # noqa: S101 -- the jobs environment has it
    assert found.origin is not None  # noqa: S101 -- a package is a file
    return Path(found.origin).parent


def spark_environment(folder: Path) -> dict[str, str]:
    """Environment of the daemons, which executors inherit, and of drivers: this one's but for where Python looks."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYSPARK"))},
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_CONF_DIR": str(folder / "conf"),
    }


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End a daemon and what it started, executors and their Python, as a power cut does."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get_json(url: str) -> Any:
    """What a server of Spark's answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 -- a server of this machine
        return json.load(answer)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true answer of ``condition``; a server that does not answer yet, or not with JSON, is no answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError):
            if answer := condition():
                return answer
        time.sleep(0.05)
    raise TimeoutError(f"waited {seconds:g} s in vain until {what}")
