"""A run of one new photo beside a published lake: `featurize`, `pca` and `validate`, each with a JVM of its own.

By the clock, from the start of each process to its end, and in core seconds, which other programs move less.
"""

from collections.abc import Iterator

from benchmarks.figure import Figure, median
from benchmarks.jobs import put_all, start_job, temporary_lake
from benchmarks.speed.photos import objects, photos
from benchmarks.speed.scale import Scale
from benchmarks.speed.usage import Usage, watched
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import plan_run
from fruits.steps.publish import publish_run

JOBS = ("featurize", "pca", "validate")
PUBLISHED = 512
MOST_SECONDS = 14.0


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of each job, and of all three."""
    some = photos()
    with temporary_lake() as settings:
        put_all(settings, objects(some, PUBLISHED))
        run(settings, "first")
        turns = []
        for number in range(scale.runs):
            put_all(settings, [(f"{some[number].folder}/new-{number}.jpg", some[number].data)])
            turns.append(run(settings, f"one-{number}"))
    what = f"one photo beside {PUBLISHED}"
    for job in JOBS:
        yield median(f"{what}: {job}, by the clock", [turn[job].wall for turn in turns], "s")
        yield median(f"{what}: {job}, of a core", [turn[job].core_seconds for turn in turns], "s")
    walls = [sum(usage.wall for usage in turn.values()) for turn in turns]
    yield median(f"{what}: the three jobs, cold sessions, by the clock", walls, "s", most=MOST_SECONDS)


def run(settings: Settings, run_id: str) -> dict[str, Usage]:
    """What the jobs of a run take; the run is published."""
    usages = usages_of_jobs(settings, run_id)
    publish_run(settings, run_key(run_id))
    return usages


def usages_of_jobs(settings: Settings, run_id: str) -> dict[str, Usage]:
    """Plan a run of all that is due; what its three jobs take. The run holds the lease still."""
    if not plan_run(settings, resolve_request({}, settings), run_id).work:
        raise RuntimeError("the plan found nothing to do")
    return {job: watched(start_job(job, run_id), job) for job in JOBS}
