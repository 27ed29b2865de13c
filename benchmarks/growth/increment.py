"""What an increment of one percent costs against the run that featurized all photos: `plan`, the jobs and `publish`.

Three runs over copies of drawn photos in an S3 server on this machine: all photos, one more photo, one percent more.
The run of one photo is what every run costs, so its seconds are subtracted from both others.
`make bench-growth ARGS=increment` prints the figures in some minutes.
"""

import time

from benchmarks.figure import Figure, figure
from benchmarks.jobs import start_job, temporary_lake, upload
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import plan_run
from fruits.steps.publish import publish_run

PHOTOS, SHARE = 10_000, 0.01
MOST = 0.02


def figures(photos: int = PHOTOS) -> list[Figure]:
    """The figures of a run over so many photos, and of an increment of one percent."""
    with temporary_lake() as settings:
        few = round(photos * SHARE)
        numbers = range(photos), range(photos, photos + 1), range(photos + 1, photos + 1 + few)
        full, one, percent = (seconds_of(settings, f"run-{at}", some) for at, some in enumerate(numbers))
    return [
        figure(f"run of {photos:,} photos", full, "s"),
        figure(f"run of one photo beside {photos:,}", one, "s"),
        figure(f"run of {few:,} photos beside {photos:,}", percent, "s"),
        figure("+1 % against the full run, less the run of one photo", (percent - one) / (full - one), "x", most=MOST),
    ]


def seconds_of(settings: Settings, run_id: str, numbers: range) -> float:
    """Seconds of a whole run over new photos."""
    upload(settings, numbers)
    start = time.perf_counter()
    if not plan_run(settings, resolve_request({}, settings), run_id).work:
        raise RuntimeError("the plan found nothing to do")
    for job in ("featurize", "pca", "validate"):
        if code := start_job(job, run_id).wait():
            raise RuntimeError(f"{job} ended with exit code {code}")
    publish_run(settings, run_key(run_id))
    return time.perf_counter() - start
