"""What can be wrong with a cluster, told early and in words that say what to do."""

import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fruits.errors import DeniedError, FruitsError, TransientError

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

_CONNECT_SECONDS = 10.0
_SAME_PYTHON = (
    "executors need the jobs environment of this release: an image that has it (make up), or an archive of it (make "
    "package) with spark.pyspark.python=./environment/bin/python"
)
_CAUSES = {
    r"\[PYTHON_VERSION_MISMATCH\].*?version: ([\d.]+) than that in driver: ([\d.]+)": (
        f"its Python is {{0}}, the driver's is {{1}}; {_SAME_PYTHON}"
    ),
    r"Cannot run program \"([^\"]+)\"[^\n]*No such file": (
        f"there is no Python at {{0}}; {_SAME_PYTHON}, and the archive needs Python where `make package` said"
    ),
    r"ModuleNotFoundError: (No module named '[^']+')": f"{{0}}; {_SAME_PYTHON}",
    r"\[(?:PACKAGE_NOT_INSTALLED|UNSUPPORTED_PACKAGE_VERSION)\] ([^\n]+)": f"{{0}} {_SAME_PYTHON}",
    r"InvalidClassException: ([^\n]*serialVersionUID[^\n]*)": (
        "its Spark is of another version than the driver's ({0}); it must be that of requirements/jobs.txt"
    ),
}
"""What Spark says of an executor that it could not use, and what that means."""

_RAISED = re.compile(rf"{re.escape(FruitsError.__module__)}\.(?P<kind>\w*Error): (?P<message>[^\n]*)")
"""A ``FruitsError`` that was raised on an executor."""

_NO_DATABASE = re.compile(
    r"(?:PSQLException: (?=Connection to|The connection|This connection|An I/O error|FATAL: (?:terminating|the "
    r"database system|sorry, too many clients|remaining connection slots)|ERROR: (?:could not serialize|deadlock "
    r"detected))|SQLiteException: (?=\[SQLITE_(?:BUSY|LOCKED)))([^\n]*)"
)
"""What the drivers say of a database that does not answer, refuses a transaction beside another one, or is locked."""

_PASSING = {
    r"(Cannot run program [^\n]*)": "{0}",  # no memory, no rights, another kind of CPU: in its own words
    r"Cannot call methods on a stopped SparkContext": (
        "the master did not take the application, or ended it. If what listens there is a Spark master, and of the "
        "driver's version, its log has the reason; otherwise correct the connection spark_default"
    ),
    r"Master removed our application: KILLED": "the application was killed, maybe on the master's page",
    r"Master removed our application: (\w+)": (
        "executors could not be started, or ended again and again ({0}); the reason is in a worker's folder "
        "work/<application>/<number>/stderr"
    ),
}
"""The same of what may be over when the job is tried again."""


def submitted_configuration() -> "SparkConf":
    """What spark-submit was told, by options and by Spark's defaults; starts the JVM."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # noqa: SLF001 -- only the JVM knows what spark-submit was told
    return SparkConf()


def use_executors_python(configuration: "SparkConf") -> None:
    """Have executors start the Python of ``spark.pyspark.python``, where that is set.

    Spark's own spark-submit puts it into the driver's environment, where PySpark looks for it, before the driver's
    Python starts. Ours starts the driver's Python first.
    """
    if python := configuration.get("spark.pyspark.python"):
        os.environ["PYSPARK_PYTHON"] = python


def check_master(configuration: "SparkConf") -> None:
    """See that the master of a standalone cluster answers, before Spark tries for a minute and ends in a stack trace.

    Raises:
        FruitsError: naming the master and the connection that it comes from.
    """
    master = configuration.get("spark.master") or ""
    if master.startswith("spark://"):
        _check_reachable(master, master.removeprefix("spark://").split(","))


def _check_reachable(master: str, addresses: Sequence[str]) -> None:
    problems = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()):
            raise FruitsError(
                f"Spark master {master}: expected spark://host:port; correct the connection spark_default"
            )
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
                return
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
    raise TransientError(
        f"Spark master {master} does not answer ({'; '.join(problems)}); start it, or correct host and port of the "
        "connection spark_default"
    )


def await_executor(spark: "SparkSession", seconds: float) -> None:
    """Run one empty task on the cluster: Spark itself waits for an executor for ever.

    Raises:
        TransientError: when no worker has given the session an executor in time.
    """
    context = spark.sparkContext
    if str(context.master).startswith("local"):
        return
    late, done = threading.Event(), threading.Event()

    def give_up() -> None:
        wait = seconds
        while not done.wait(wait):
            late.set()
            context.cancelAllJobs()
            wait = 1.0  # and again: on a busy host, the task may not have been submitted yet

    watch = threading.Thread(target=give_up, daemon=True)
    watch.start()
    try:
        spark.range(0, 1, 1, 1).count()
    except Exception as error:
        if not late.is_set():
            raise
        cores = context.getConf().get("spark.executor.cores", "all cores of a worker")
        memory = context.getConf().get("spark.executor.memory", "1g")
        raise TransientError(
            f"Spark master {context.master}: no executor within {seconds:g} s (FRUITS_EXECUTOR_SECONDS). Asked for: "
            f"spark.executor.cores {cores}, spark.executor.memory {memory}. {_where_to_look(str(context.master))}"
        ) from error
    finally:
        done.set()
        watch.join()


def _where_to_look(master: str) -> str:
    if not master.startswith("spark://"):
        return "See the cluster manager: it has no room for that, or executors end as soon as they begin"
    return (
        "See the master's page: no worker is that large, others are at work on them (add workers, or ask for less in "
        "spark-defaults.conf), or executors end as soon as they begin (work/<application>/<number>/stderr on a worker; "
        "Spark and Java must be the driver's)"
    )


@contextmanager
def executor_errors() -> Iterator[None]:
    """Raise what is no defect as a ``FruitsError``, out of Spark's account of the failed stage."""
    try:
        yield
    except FruitsError:
        raise
    except Exception as error:
        if (explained := explain_failure(str(error))) is None:
            raise
        raise explained from error


def explain_failure(account: str) -> FruitsError | None:
    """What a person is told of a failed stage; None when that is a defect."""
    if raised := _RAISED.search(account):
        kinds: dict[str, type[FruitsError]] = {"TransientError": TransientError, "DeniedError": DeniedError}
        return kinds.get(raised["kind"], FruitsError)(raised["message"])
    if silent := _NO_DATABASE.search(account):
        return TransientError(f"catalog database: {silent[1]} Check FRUITS_CATALOG_URI, the server and the network")
    host = re.search(r"\(TID \d+\) \((\S+) executor", account)
    where = f"worker {host[1]}" if host else "cluster"
    for error, causes in ((FruitsError, _CAUSES), (TransientError, _PASSING)):
        for sign, meaning in causes.items():
            if found := re.search(sign, account):
                return error(f"{where}: {meaning.format(*found.groups())}")
    return None
