"""`kill -9` of a job's driver or Python worker at stages of each job: a retry makes what an unfaulted run makes.

The histories of tests/chaos do this to every effect, with stand-ins for Spark. Here the processes are real.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.schemas import DATA_TABLES
from fruits.run.state import run_key
from tests.spark_jobs.conftest import JOBS, ROOT, environment
from tests.spark_jobs.equality import assert_equal_tables

pytestmark = [pytest.mark.slow, pytest.mark.jobs]

KILLED = Path(__file__).with_name("killed.py")


@pytest.fixture(scope="module")
def unfaulted(chain, new_settings):
    """A lake of two runs that nothing happened to."""
    settings = new_settings()
    two_buckets(chain, settings)
    return settings


def two_buckets(chain, settings):
    """A first run over 12 photos; then three that are new, two overwritten and one deleted, and a second run."""
    chain.put(settings, chain.photos(12))
    chain.run(settings, "first")
    change(chain, settings)
    chain.run(settings, "second")


def change(chain, settings):
    keys = sorted(chain.photos(12))
    chain.put(settings, chain.photos(3, start=12))
    chain.put(settings, {keys[0]: chain.photo(99), keys[-1]: chain.photo(98)})
    chain.delete(settings, keys[1])


def die(chain, settings, spark_submit, task: str, number: int, moment: str) -> None:
    """A process of a job that dies."""
    script = ROOT / "spark_jobs" / f"{task}.py"
    with environment(settings):
        done = spark_submit("--master", "local[2]", KILLED, number, moment, script, "--run", run_key("second"))
    assert done.returncode != ExitCode.OK
    assert chain.documents(settings, "second").of(task).state == "running", done.stdout[-2000:]


@pytest.mark.parametrize(
    ("task", "number", "moment", "resumed"),
    [
        ("featurize", 4, "after", 0),  # its branches are there, and no row
        ("featurize", 1, "written", 2),  # the rows of the first of three chunks are written
        ("featurize", 2, "written", 4),
        ("featurize", 3, "written", 5),  # all rows are written, and the document does not say so
        ("pca", 6, "after", 0),  # statistics without embeddings
        ("validate", 3, "before", 0),  # all gates have passed, and the document does not say so
    ],
)
def test_a_retry_after_kill_9_makes_the_tables_of_an_unfaulted_run(
    chain, new_settings, unfaulted, spark_submit, task, number, moment, resumed
):
    settings = new_settings()
    chain.put(settings, chain.photos(12))
    chain.run(settings, "first")
    change(chain, settings)
    assert chain.plan(settings, "second").work
    tasks = (*JOBS, "publish")
    for before in tasks[: tasks.index(task)]:
        assert chain.submit(before, settings, "second") == ExitCode.OK
    published = chain.published(settings)
    die(chain, settings, spark_submit, task, number, moment)
    assert chain.published(settings) == published
    for again in tasks[tasks.index(task) : -1]:
        assert chain.submit(again, settings, "second") == ExitCode.OK
    chain.publish(settings, "second")
    assert {name: chain.heads(settings)[name] for name in DATA_TABLES} == dict(chain.published(settings).snapshots)
    assert chain.documents(settings, "second").featurize.result.resumed == resumed
    assert_equal_tables(chain, settings, unfaulted)


def test_a_python_worker_that_is_killed_costs_a_try_of_spark_and_no_row(chain, new_settings, unfaulted):
    settings = new_settings(few_photos=0)
    chain.put(settings, chain.photos(12))
    chain.run(settings, "first")
    change(chain, settings)
    assert chain.plan(settings, "second").work
    script = ROOT / "spark_jobs" / "featurize.py"
    command = [Path(sys.prefix) / "bin" / "spark-submit", "--master", "local[2,4]", "--conf", "spark.ui.enabled=false"]
    python = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    with environment(settings):
        variables = {name: value for name, value in os.environ.items() if name != "PYSPARK_SUBMIT_ARGS"}
        job = subprocess.Popen(
            [*map(str, command), str(script), "--run", run_key("second")],
            env={**variables, **python},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        killed = kill_first_worker(job)
        assert job.wait(timeout=300) == ExitCode.OK
    assert killed
    for again in ("pca", "validate"):
        assert chain.submit(again, settings, "second") == ExitCode.OK
    chain.publish(settings, "second")
    assert_equal_tables(chain, settings, unfaulted)


def kill_first_worker(job: "subprocess.Popen[bytes]") -> int | None:
    """Kill the first Python worker of a job; its process, or None when the job ended before."""
    while job.poll() is None:
        workers = [
            pid for pid in descendants(job.pid) if "pyspark.daemon" in command_of(pid) and descendants(pid) == []
        ]
        daemons = [pid for pid in descendants(job.pid) if "pyspark.daemon" in command_of(pid)]
        if len(daemons) > 1 and workers:
            os.kill(workers[0], signal.SIGKILL)
            return workers[0]
        time.sleep(0.02)
    return None


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def children(pid: int) -> Iterator[int]:
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            yield from map(int, tasks.read_text().split())
        except OSError:  # it ended meanwhile
            continue


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_the_lakes_that_are_compared_are_not_empty(chain, unfaulted):
    assert Lake.open(unfaulted).read("features", chain.published(unfaulted).snapshots["features"]).num_rows == 14
