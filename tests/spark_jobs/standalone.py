"""A Spark standalone cluster on this machine: a master, workers of one core each, a history server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyspark

ROOT = Path(__file__).parents[2]
SPARK = Path(pyspark.__file__).parent
ENVIRONMENT = Path(sys.prefix)


@dataclass
class Standalone:
    """The cluster: what it runs in ``folder``, and how to submit to it."""

    folder: Path
    environment: Mapping[str, str]
    port: int
    ui_port: int
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The master, as spark-submit takes it."""
        return f"spark://127.0.0.1:{self.port}"

    @property
    def event_logs(self) -> Path:
        """Folder of the applications' event logs."""
        return self.folder / "events"

    def start(self, role: str, *arguments: object) -> "subprocess.Popen[bytes]":
        """A daemon of Spark's, with its output in a file of the folder and its children in a group of their own."""
        name = f"{role.rpartition('.')[2].lower()}-{len(self.processes)}"
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [SPARK / "bin" / "spark-class", f"org.apache.spark.deploy.{role}", *map(str, arguments)]
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def start_worker(self) -> "subprocess.Popen[bytes]":
        """One more worker of a core and a gigabyte, once the master knows it."""
        before = self.alive()
        work = self.folder / f"work-{len(self.processes)}"
        size = ("--cores", 1, "--memory", "1g", "--work-dir", work)
        worker = self.start("worker.Worker", "--host", "127.0.0.1", "--webui-port", free_port(), *size, self.url)
        wait_for(lambda: self.alive() > before, "a worker is registered")
        return worker

    def alive(self) -> int:
        """How many workers the master has."""
        return int(get_json(f"http://127.0.0.1:{self.ui_port}/json/")["aliveworkers"])

    def submit(self, script: Path, *arguments: str, options: Mapping[str, object] | None = None) -> "subprocess.Popen[str]":
        """spark-submit, as Airflow calls it; its output comes on one stream."""
        settings = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": self.event_logs.as_uri(), **(options or {})}
        master = str(settings.pop("spark.master", self.url))
        conf = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
        command = [ENVIRONMENT / "bin" / "spark-submit", "--master", master, *conf, script, *arguments]
        environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_CONF_DIR": str(self.folder / "conf")}
        return subprocess.Popen(
            command, env=environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


@contextmanager
def standalone(folder: Path, *, workers: int) -> Iterator[Standalone]:
    """A running cluster whose executors have this process' environment variables, and its last processes ended."""
    for name in ("conf", "events"):
        (folder / name).mkdir(parents=True)
    (folder / "conf" / "spark-defaults.conf").write_text(
        "spark.executor.memory 512m\nspark.driver.memory 1g\nspark.ui.enabled false\n"
    )
    environment = {
        **os.environ,
        "SPARK_HOME": str(SPARK),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_CONF_DIR": str(folder / "conf"),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1",
    }
    cluster = Standalone(folder, environment, free_port(), free_port())
    try:
        cluster.start("master.Master", "--host", "127.0.0.1", "--port", cluster.port, "--webui-port", cluster.ui_port)
        wait_for(lambda: cluster.alive() == 0, "the master answers")
        for _ in range(workers):
            cluster.start_worker()
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            kill_group(process)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End a daemon and what it started, executors and their Python, as a power cut does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def get_json(url: str) -> Any:
    """What a server of Spark's answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true answer of ``condition``; a server that does not answer yet is no answer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if answer := condition():
                return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:g} s in vain until {what}")
