"""A lake and a bucket of photos on this machine, and Spark jobs as processes, for benchmarks of whole runs."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from unittest.mock import patch

from fruits.lake.catalog import Lake
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.stores import photo_store, write_bytes
from local.stack import environment_of, temporary_stack, write_secret
from sample_photos import LABELS, draw

ROOT = Path(__file__).resolve().parents[1]
DRAWN = 200
_KEYS = {"access_key": f"fruits{secrets.token_hex(7)}", "secret_key": secrets.token_urlsafe(30)}
"""Of all S3 servers that this process starts: its clients keep the keys that they found first."""


@contextmanager
def temporary_lake(variables: Mapping[str, str] = MappingProxyType({})) -> Iterator[Settings]:
    """An S3 server with an empty bucket, and a lake with its backbone, until the block ends.

    ``variables`` of the environment choose another backbone than the default one.
    """
    with (
        patch.dict(os.environ, variables),
        stack_folder() as folder,
        temporary_stack(folder) as stack,
        environment_of(stack),
    ):
        settings = Settings.load()
        stage_backbone()
        Lake.open(settings)
        yield settings


def stage_backbone() -> None:
    """Stage the backbone that the environment chooses, unless it is. TensorFlow stays out of this process."""
    command = [sys.executable, "-m", "fruits.backbones.stage"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 -- our own program


@contextmanager
def stack_folder() -> Iterator[Path]:
    """A folder for a lake and its S3 server, with the keys of all servers."""
    with tempfile.TemporaryDirectory(prefix="fruits-bench-") as folder:
        write_secret(Path(folder) / "s3.credentials.json", json.dumps(_KEYS))
        yield Path(folder)


def upload(settings: Settings, numbers: Sequence[int]) -> None:
    """Photos of 100 px of these numbers, of which a few hundred are different."""
    drawn = [draw(LABELS[number % len(LABELS)], "Training", number, size=(100, 100)) for number in range(DRAWN)]
    keys = (f"Training/{LABELS[number % len(LABELS)]}/{number:08d}.jpg" for number in numbers)
    put_all(settings, ((key, drawn[number % DRAWN]) for number, key in zip(numbers, keys, strict=True)))


def put_all(settings: Settings, objects: Iterable[tuple[str, bytes]]) -> None:
    """Objects by key."""
    store = photo_store(settings)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda object_: write_bytes(store, *object_), objects))


def start_job(name: str, run_id: str, *, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    """A Spark job of a planned run, started as Airflow starts it, in a session of its own."""
    variables = {"SPARK_CONF_DIR": str(ROOT / "local" / "spark")}  # as `make run` and `make ui` start it
    program = ROOT / "spark_jobs" / f"{name}.py"
    return start_program(program, ["--run", run_key(run_id)], stdout=stdout, variables=variables)


def start_program(
    program: Path,
    arguments: Sequence[str],
    *,
    stdout: int = subprocess.DEVNULL,
    memory: str = "1g",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> "subprocess.Popen[str]":
    """A Spark program on two cores of this machine, by `spark-submit`, in a session of its own."""
    submit = Path(sys.prefix) / "bin" / "spark-submit"
    options = ["--master", "local[2]", "--driver-memory", memory, "--conf", "spark.ui.enabled=false"]
    python = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(  # noqa: S603 -- our own program
        [str(submit), *options, str(program), *arguments],
        env={**os.environ, **python, **variables},
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
