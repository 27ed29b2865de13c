"""Tasks in worker processes of the driver, and when they are there."""

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from joblib import cpu_count

from fruits.errors import TransientError
from fruits.photos.decode import UnreadablePhotoError
from fruits.photos.quarantine import Reason
from fruits.settings import Settings
from fruits.spark.tasks import LocalExecutors, Progress, executors_of, local_cores, tasks_of

pytestmark = [pytest.mark.jobs]

SCHEMA = pa.schema([("number", pa.int64()), ("process", pa.int64())])
WORK = pa.table({"number": pa.array(range(7), pa.int64())})


@pytest.fixture
def settings(tmp_path):
    return Settings.load(lake=f"file://{tmp_path}", catalog_uri=f"sqlite:///{tmp_path}/catalog.db")


@pytest.fixture
def run(settings):
    """Runs a function of numbers in tasks of some processes; returns the rows."""

    def results(function, cores=2, **how):
        made = LocalExecutors(settings, cores).run(WORK, function, SCHEMA, Progress("tests", len(WORK)), **how)
        return pa.Table.from_batches(made, SCHEMA)

    return results


def squares(batches):
    for batch in batches:
        numbers = [number * number for number in batch["number"].to_pylist()]
        yield pa.RecordBatch.from_pydict({"number": numbers, "process": [os.getpid()] * len(numbers)}, SCHEMA)


@pytest.mark.parametrize(("cores", "in_threads"), [(1, False), (1, True), (2, False), (2, True)])
def test_each_row_of_work_is_a_task_and_rows_come_in_the_order_of_the_work(run, cores, in_threads):
    rows = run(squares, cores, in_threads=in_threads)
    assert rows["number"].to_pylist() == [number * number for number in range(7)]
    assert (os.getpid() in rows["process"].to_pylist()) == (cores == 1 or in_threads)


def test_a_task_is_sent_with_its_own_work_alone():
    work = pa.table({"entries": pa.array([b"x" * 10_000] * 50)})
    assert [len(pickle.dumps(task)) < 20_000 for task in tasks_of(work)] == [True] * 50


def test_tasks_that_nobody_waits_for_are_not_begun(run):
    begun = []

    def fails_once(batches):
        begun.append(1)
        time.sleep(0.2)
        raise ValueError("the first one fails")

    with pytest.raises(ValueError, match="the first one"):
        run(fails_once, in_threads=True)
    assert len(begun) < len(WORK)


def test_an_error_of_a_task_comes_to_the_driver_as_it_is(run):
    def fails(batches):
        raise UnreadablePhotoError(Reason.TOO_SMALL, "1 x 1 pixels")

    with pytest.raises(UnreadablePhotoError, match="1 x 1 pixels") as caught:
        run(fails)
    assert caught.value.reason == Reason.TOO_SMALL
    assert len(run(squares)) == 7


def test_a_process_that_is_killed_ends_the_job_in_words_and_the_next_job_has_new_ones(run):
    def killed(batches):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TransientError, match="killed or out of memory"):
        run(killed)
    assert len(run(squares)) == 7


def test_processes_end_soon_after_their_driver_was_killed(tmp_path):
    """A driver that is killed leaves no process behind that goes on with its task."""
    program = tmp_path / "driver.py"
    program.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, program, tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT)})
    workers = await_workers(tmp_path)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, workers))


ROOT = Path(__file__).parents[3]
DRIVER = """
import os, sys, time
from pathlib import Path
import pyarrow as pa
from fruits.settings import Settings
from fruits.spark.tasks import Progress, LocalExecutors

def sleeps(batches):
    (Path(sys.argv[1]) / f"{os.getpid()}.pid").touch()
    time.sleep(600)

folder = sys.argv[1]
settings = Settings.load(lake=f"file://{folder}", catalog_uri=f"sqlite:///{folder}/catalog.db")
work = pa.table({"number": [1, 2]})
list(LocalExecutors(settings, 2).run(work, sleeps, work.schema, Progress("sleep", 2)))
"""


def await_workers(folder: Path) -> list[int]:
    """The two processes of the driver, when both are at work."""
    deadline = time.monotonic() + 60
    while len(found := list(folder.glob("*.pid"))) < 2:
        assert time.monotonic() < deadline, "no worker processes"
        time.sleep(0.1)
    return [int(file.stem) for file in found]


def runs(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class TestWhereTasksRun:
    @pytest.mark.parametrize(
        ("options", "cores"),
        [
            ("--master local[2] pyspark-shell", 2),
            ("'--master' 'local[3]' '--name' 'a job' pyspark-shell", 3),
            ("--conf spark.ui.enabled=false --master=local pyspark-shell", 1),
            ("--master local[*] pyspark-shell", cpu_count()),
            ("--master local[2,4] pyspark-shell", None),  # tasks are tried again: Spark does that
            ("--master local-cluster[2,1,1024] pyspark-shell", None),
            ("--master spark://host:7077 pyspark-shell", None),
            ("--master yarn pyspark-shell", None),
            ("--properties-file spark-defaults.conf pyspark-shell", None),  # only the JVM knows
            ("", None),
        ],
    )
    def test_worker_processes_have_the_cores_of_a_local_master(self, options, cores):
        assert local_cores({"PYSPARK_SUBMIT_ARGS": options}) == cores

    def test_where_sparks_own_spark_submit_started_python_the_jvm_is_there_already(self):
        there = {"PYSPARK_SUBMIT_ARGS": "--master local[2] pyspark-shell", "PYSPARK_GATEWAY_PORT": "1"}
        assert local_cores(there) is None

    def test_a_local_master_needs_no_spark(self, settings, monkeypatch):
        def start():
            raise AssertionError("Spark was started")

        monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master local[2] pyspark-shell")
        monkeypatch.setattr("fruits.spark.tasks.running_session", lambda: None)
        assert executors_of(settings, start) == LocalExecutors(settings, 2)
