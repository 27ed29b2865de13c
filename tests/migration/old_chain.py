"""Run by `old_lake.py` with the library of an old commit. Written for that library: never bring it up to date.

python old_chain.py FOLDER [S3 ENDPOINT]
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import obstore
import pyarrow.parquet as pq
from fruits.chain import plan_run, publish_run, with_backbone
from fruits.embedded.stack import Stack, environment_of, make_bucket, running_stack
from fruits.generator import BROKEN, draw, draw_broken
from fruits.planning import resolve_request, run_slug
from pyspark import cloudpickle

import fruits
from fruits.backbones.stage import stage, staged_card
from fruits.lake.branches import branch_name
from fruits.lake.catalog import Lake
from fruits.settings import Settings
from fruits.stores import photo_store, write_bytes

TREE = Path.cwd()
JOBS = ("featurize", "pca", "validate")
TASKS = ("plan", *JOBS)
LABELS = ("Apple Red", "Banana", "Kiwi")
FIRST, SECOND = "manual__2026-11-20T08:00:00+00:00", "scheduled__2026-11-21T08:00:00+00:00"
LAKES = {"published": (), "planned": TASKS[:1], "projected": TASKS[:3], "validated": TASKS}
"""The tasks of the second run that each lake has behind it."""

EXPECTED = ("features", "quarantine", "embeddings", "pca_models")


def main(folder: Path, endpoint: str | None) -> None:
    """Make all lakes and the list of them."""
    assert Path(fruits.__file__).is_relative_to(TREE), f"{fruits.__file__} is not of {TREE}"
    with stack_of(folder, endpoint) as stack:
        os.environ |= {
            "PYSPARK_SUBMIT_ARGS": "--master local[2] --driver-memory 1g --conf spark.ui.enabled=false "
            f"--conf spark.sql.warehouse.dir={folder / 'spark'} "
            "--driver-java-options -XX:TieredStopAtLevel=1 pyspark-shell",
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
        }
        jobs = {job: job_module(job) for job in JOBS}
        models = folder / "models"
        stage(settings_of(folder, stack, "staged"))
        shutil.move(folder / "staged" / "lake" / "models", models)
        lakes = {}
        for name, done in LAKES.items():
            shutil.copytree(models, folder / name / "lake" / "models")
            settings = settings_of(folder, stack, name)
            make_bucket(stack, settings.bucket)
            put_first(settings)
            plan(settings, FIRST)
            for job in JOBS:
                submit(jobs[job], settings, FIRST)
            publish_run(settings, run_slug(FIRST))
            if done:
                put_second(settings)
                plan(settings, SECOND)
                for job in done[1:]:
                    submit(jobs[job], settings, SECOND)
            lakes[name] = {
                "lake": settings.lake,
                "catalog_uri": settings.catalog_uri.get_secret_value(),
                "bucket": settings.bucket,
                "published": FIRST,
                "in_flight": SECOND if done else None,
                "done": done,
            }
        expected = save_expected(folder, settings)
        document = {"endpoint": stack.endpoint, "lakes": lakes, "expected": expected}
        (folder / "lakes.json").write_text(json.dumps(document, indent=2))


@contextmanager
def stack_of(folder: Path, endpoint: str | None) -> Iterator[Stack]:
    """The S3 server at an endpoint, with the keys of the environment; else an embedded one."""
    if endpoint:
        yield Stack(folder, endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        return
    with running_stack(folder / "stack") as stack, environment_of(stack):
        yield stack


def settings_of(folder: Path, stack: Stack, name: str) -> Settings:
    """Settings of a lake of its own with a bucket of its own."""
    (folder / name).mkdir(exist_ok=True)
    return Settings.load(
        lake=f"file://{folder / name / 'lake'}",
        catalog_uri=f"sqlite:///{folder / name / 'catalog.db'}",
        bucket=f"old-{name}",
        s3_endpoint=stack.endpoint,
    )


def put_first(settings: Settings) -> None:
    """The photos of the first run, every fourth of them held out, and broken ones."""
    for number in range(28):
        write_bytes(photo_store(settings), key_of(number), photo_of(number))
    for key in BROKEN:
        write_bytes(photo_store(settings), key, draw_broken(key))


def put_second(settings: Settings) -> None:
    """Before the second run, photos are added, overwritten and deleted."""
    for number in range(28, 34):
        write_bytes(photo_store(settings), key_of(number), photo_of(number))
    for number in (0, 3):
        write_bytes(photo_store(settings), key_of(number), photo_of(number + 100))
    for number in (1, 7):
        obstore.delete(photo_store(settings), key_of(number))


def key_of(number: int) -> str:
    """The key of a photo."""
    return f"{'Test' if number % 4 == 3 else 'Training'}/{LABELS[number % len(LABELS)]}/{number}.img"


def photo_of(number: int) -> bytes:
    """A small photo."""
    return draw(LABELS[number % len(LABELS)], "Training", number, size=(100, 160))


def plan(settings: Settings, run_id: str) -> None:
    """The task `plan`."""
    request = resolve_request({}, settings)
    card = staged_card(with_backbone(settings, request))
    assert plan_run(settings, request, card, run_id)["work"]


def submit(job: Any, settings: Settings, run_id: str) -> None:
    """A Spark job, in this process; its settings come from the environment."""
    for name in [name for name in os.environ if name.startswith("FRUITS_")]:
        del os.environ[name]
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    values["catalog_uri"] = settings.catalog_uri.get_secret_value()
    os.environ.update({f"FRUITS_{name.upper()}": str(value) for name, value in values.items()})
    code = job.main(["--run", run_slug(run_id)])
    assert code == 0, f"{job.__name__} of {run_id}: exit code {code}"


def job_module(job: str) -> Any:
    """A job script as a module whose functions travel to the executors by value, as those of a script do."""
    spec = importlib.util.spec_from_file_location(f"spark_job_{job}", TREE / "spark_jobs" / f"{job}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module


def save_expected(folder: Path, settings: Settings) -> dict[str, str]:
    """The rows on the branches of a validated run, which publishing it would show to readers."""
    lake, paths = Lake.open(settings), {}
    for name in EXPECTED:
        paths[name] = str(folder / f"expected-{name}.parquet")
        pq.write_table(lake.read(name, lake.head(name, branch_name(run_slug(SECOND)))), paths[name])
    return paths


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
