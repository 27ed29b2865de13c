"""Photos in a bucket, and Spark jobs as processes, for benchmarks of whole runs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fruits.backbones.stage import stage
from fruits.lake.catalog import Lake
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.stores import photo_store, write_bytes
from local.stack import environment_of, temporary_stack
from sample_photos import LABELS, draw

ROOT = Path(__file__).resolve().parents[2]
DRAWN = 200


@contextmanager
def temporary_lake() -> Iterator[Settings]:
    """An S3 server with an empty bucket, and a lake with the default backbone, until the block ends."""
    with (
        tempfile.TemporaryDirectory(prefix="fruits-growth-") as folder,
        temporary_stack(Path(folder)) as stack,
        environment_of(stack),
    ):
        settings = Settings.load()
        stage(settings)
        Lake.open(settings)
        yield settings


def upload(settings: Settings, numbers: Iterable[int]) -> None:
    """Photos of 100 px of these numbers, of which a few hundred are different."""
    drawn = [draw(LABELS[number % len(LABELS)], "Training", number, size=(100, 100)) for number in range(DRAWN)]
    store = photo_store(settings)

    def put(number: int) -> None:
        key = f"Training/{LABELS[number % len(LABELS)]}/{number:08d}.jpg"
        write_bytes(store, key, drawn[number % DRAWN])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, numbers))


def start_job(name: str, run_id: str, *, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    """A Spark job of a planned run, started as Airflow starts it, in a group of processes of its own."""
    submit = Path(sys.prefix) / "bin" / "spark-submit"
    options = ["--master", "local[2]", "--driver-memory", "1g", "--conf", "spark.ui.enabled=false"]
    command = [str(submit), *options, str(ROOT / "spark_jobs" / f"{name}.py"), "--run", run_key(run_id)]
    variables = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(  # noqa: S603 -- our own job
        command,
        env={**os.environ, **variables},
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
