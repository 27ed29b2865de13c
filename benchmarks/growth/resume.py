"""What a killed `featurize` costs: `kill -9` of the job's processes at nine tenths of the photos, then the retry.

Uploads copies of drawn photos to an S3 server of its own, plans a run over all of them, and starts the job as Airflow
does. The job's log says how many photos are done. `make bench-growth ARGS=resume` prints the figures in some minutes.
"""

import os
import re
import signal
import subprocess
import time

from benchmarks.figure import Figure, figure
from benchmarks.jobs import start_job, temporary_lake, upload
from fruits.run.documents import Featurized, read_documents
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.steps.plan import plan_run

RUN = "resumed"
KILL_AT = 0.9
MOST_AGAIN = 0.15
PHOTOS = 20_000


def figures(photos: int = PHOTOS) -> list[Figure]:
    """The figures of a run over so many photos that is killed at nine tenths."""
    with temporary_lake() as settings:
        upload(settings, range(photos))
        plan_run(settings, resolve_request({}, settings), RUN)
        seen = killed_at(round(photos * KILL_AT))
        retried = time.perf_counter()
        start_job("featurize", RUN).wait()
        seconds = time.perf_counter() - retried
        document = read_documents(settings, run_key(RUN)).featurize
    if document is None or document.done is None:
        raise SystemExit(f"the retry failed: {document.error if document else 'no document'}")
    return figures_of(document.done, seen, seconds)


def figures_of(result: Featurized, seen: int, seconds: float) -> list[Figure]:
    """The figures: photos that were featurized by both attempts, and all that the retry featurized."""
    what = f"kill -9 at {seen:,} of {result.images:,} photos, then the retry"
    again = max(0, seen - result.resumed) / result.images
    return [
        figure(f"{what}: featurized again", again, "of all", most=MOST_AGAIN),
        figure(f"{what}: featurized in all", 1 - result.resumed / result.images, "of all"),
        figure(f"{what}: wall", seconds, "s"),
        figure(f"{what}: photos of the run", result.features, "rows", least=result.images),
    ]


def killed_at(photos: int) -> int:
    """Start the job and kill all its processes when its log counts so many photos; returns what the log counted."""
    process, done = start_job("featurize", RUN, stdout=subprocess.PIPE), 0
    for line in process.stdout or ():
        if counted := re.search(r"progress featurize (\d+)/", line):
            done = int(counted[1])
        if done >= photos:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return done
