"""The notebook way against the jobs `featurize`, `pca` and `validate`, by the clock and as whole programs.

Both start from photos and end with Parquet: the notebook reads a folder of this machine, the jobs an S3 server. Each
job is a process with a JVM of its own, as Airflow starts it.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figure import Figure, median
from benchmarks.jobs import put_all, start_program, temporary_lake
from benchmarks.speed.network import MOBILENET, WEIGHTS
from benchmarks.speed.photos import objects, photos, write_folder
from benchmarks.speed.scale import Scale
from benchmarks.speed.small import JOBS, usages_of_jobs
from benchmarks.speed.usage import Usage, watched
from fruits.run.lease import release_lease
from fruits.run.state import run_key
from fruits.settings import Settings

BEST, USUAL = "best", "usual"
PROGRAM = Path(__file__).with_name("notebook_program.py")


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures for each number of photos."""
    for count, least, forms in scale.notebooks:
        yield from figures_of(count, least, forms, scale.runs)


def figures_of(count: int, least: float, forms: Sequence[str], runs: int) -> Iterator[Figure]:
    """The figures of so many photos; the goal is against the notebook at its best."""
    turns = measured(count, forms, runs)
    ours = [sum(usage.wall for usage in turn[0].values()) for turn in turns]
    what = f"{count:,} photos, {MOBILENET.name}"
    for job in JOBS:
        yield median(f"{what}: {job}", [turn[0][job].wall for turn in turns], "s")
    for form in forms:
        theirs = [turn[1][form].wall for turn in turns]
        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
        yield median(f"{what}: the notebook, {form} form", theirs, "s")
        yield median(
            f"{what}: the notebook's {form} form against the three jobs",
            ratios,
            "x",
            least=least if form == BEST else None,
        )


def measured(count: int, forms: Sequence[str], runs: int) -> list[tuple[dict[str, Usage], dict[str, Usage]]]:
    """What our jobs and the notebook's forms take, one after the other, so many times."""
    some = photos()
    with tempfile.TemporaryDirectory() as folder, temporary_lake(MOBILENET.variables) as settings:
        put_all(settings, objects(some, count))
        write_folder(some, count, Path(folder) / "photos")
        return [
            (jobs(settings, f"{count}-{number}"), {form: notebook(form, Path(folder)) for form in forms})
            for number in range(runs)
        ]


def jobs(settings: Settings, run_id: str) -> dict[str, Usage]:
    """What the three jobs take for all photos of the bucket. Nothing is published, so each run is a first run."""
    usages = usages_of_jobs(settings, run_id)
    release_lease(settings, run_key(run_id))
    return usages


def notebook(form: str, folder: Path) -> Usage:
    """What the notebook takes."""
    weights = str(WEIGHTS) if WEIGHTS.is_file() else ""
    arguments = [form, str(folder / "photos"), str(folder / "out"), weights]
    return watched(start_program(PROGRAM, arguments, memory="2g"), f"the notebook, {form} form")
