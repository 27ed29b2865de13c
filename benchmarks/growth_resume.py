"""What a killed `featurize` costs: `kill -9` of the job's processes at nine tenths of the photos, then the retry.

Uploads copies of drawn photos to an S3 server of its own, plans a run over all of them, and starts the job as Airflow
does. The job's log says how many photos are done. Needs the jobs environment; 20,000 photos take some minutes.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fruits.backbones.stage import stage
from fruits.lake.catalog import Lake
from fruits.run.documents import Featurized, read_documents
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import plan_run
from fruits.stores import photo_store, write_bytes
from local.stack import environment_of, temporary_stack
from sample_photos import LABELS, draw

ROOT = Path(__file__).resolve().parents[1]
RUN = "resumed"
KILL_AT = 0.9
MOST_AGAIN = 0.15
DRAWN = 200

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when too many photos are featurized again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000, help="how many photos (default %(default)s)")
    rows = resume_rows(parser.parse_args(argv).photos)
    for row in rows:
        print(f"  {row['name']:<72} {row['value']:>9} {row['unit']:<9} {row['goal'] or ''}")
    return int(not all(row["pass"] for row in rows))


def resume_rows(photos: int = 20_000) -> list[Row]:
    """The figures of a run over so many photos that is killed at nine tenths: name, value, unit, goal and pass."""
    with (
        tempfile.TemporaryDirectory(prefix="fruits-resume-") as folder,
        temporary_stack(Path(folder)) as stack,
        environment_of(stack),
    ):
        settings = Settings.load()
        upload(settings, photos)
        stage(settings)
        Lake.open(settings)
        plan_run(settings, resolve_request({}, settings), RUN)
        seen = killed_at(round(photos * KILL_AT))
        retried = time.perf_counter()
        job(stdout=subprocess.DEVNULL).wait()
        seconds = time.perf_counter() - retried
        document = read_documents(settings, run_key(RUN)).featurize
    if document is None or document.done is None:
        raise SystemExit(f"the retry failed: {document.error if document else 'no document'}")
    return rows_of(document.done, seen, seconds)


def rows_of(result: Featurized, seen: int, seconds: float) -> list[Row]:
    """The figures: photos that were featurized by both attempts, and all that the retry featurized."""
    what = f"kill -9 at {seen:,} of {result.images:,} photos, then the retry"
    again = max(0, seen - result.resumed) / result.images
    return [
        row(f"{what}: featurized again", round(again, 4), "of all", f"<= {MOST_AGAIN}", passed=again <= MOST_AGAIN),
        row(f"{what}: featurized in all", round(1 - result.resumed / result.images, 4), "of all"),
        row(f"{what}: wall", round(seconds, 1), "s"),
        row(
            f"{what}: photos of the run",
            result.features,
            "rows",
            f"= {result.images}",
            passed=result.features == result.images,
        ),
    ]


def row(name: str, value: float, unit: str, goal: str | None = None, *, passed: bool = True) -> Row:
    """One figure."""
    return {"name": name, "value": value, "unit": unit, "goal": goal, "pass": passed}


def upload(settings: Settings, photos: int) -> None:
    """So many photos of 100 px, of which a few hundred are different."""
    drawn = [draw(LABELS[number % len(LABELS)], "Training", number, size=(100, 100)) for number in range(DRAWN)]
    store = photo_store(settings)

    def put(number: int) -> None:
        key = f"Training/{LABELS[number % len(LABELS)]}/{number:08d}.jpg"
        write_bytes(store, key, drawn[number % DRAWN])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(photos)))


def job(stdout: int) -> "subprocess.Popen[str]":
    """The job as a process, as Airflow starts it."""
    submit = Path(sys.prefix) / "bin" / "spark-submit"
    options = ["--master", "local[2]", "--driver-memory", "1g", "--conf", "spark.ui.enabled=false"]
    command = [str(submit), *options, str(ROOT / "spark_jobs" / "featurize.py"), "--run", run_key(RUN)]
    variables = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(  # noqa: S603 -- our own job
        command,
        env={**os.environ, **variables},
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def killed_at(photos: int) -> int:
    """Start the job and kill all its processes when its log counts so many photos; returns what the log counted."""
    process, done = job(subprocess.PIPE), 0
    for line in process.stdout or ():
        if counted := re.search(r"progress featurize (\d+)/", line):
            done = int(counted[1])
        if done >= photos:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return done


if __name__ == "__main__":
    sys.exit(main())
