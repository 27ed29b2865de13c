"""The notebook way against the jobs `featurize`, `pca` and `validate`, by the clock and as whole programs.

Both start from photos and end with Parquet: the notebook reads a folder of this machine, the jobs an S3 server. Each
job is a process with a JVM of its own, as Airflow starts it.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

from benchmarks.figure import Figure, median
from benchmarks.jobs import put_all, stage_backbone, start_program, temporary_lake
from benchmarks.speed.network import MOBILENET, WEIGHTS
from benchmarks.speed.photos import objects, photos, write_folder
from benchmarks.speed.scale import Scale
from benchmarks.speed.small import usages_of_jobs
from benchmarks.speed.usage import Usage, watched
from fruits.run.lease import release_lease
from fruits.run.state import run_key
from fruits.settings import Settings

BEST, USUAL = "best", "usual"
PROGRAM = Path(__file__).with_name("notebook_program.py")


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures for each number of photos."""
    for count, goals, forms in scale.notebooks:
        yield from figures_of(count, goals, forms, scale.runs)


def figures_of(count: int, goals: Mapping[str, float], forms: Sequence[str], runs: int) -> Iterator[Figure]:
    """The figures of so many photos; the goals, by precision, are against the notebook at its best."""
    what = f"{count:,} photos, {MOBILENET.name}"
    seconds: dict[str, list[float]] = {name: [] for name in (*goals, *forms)}
    ratios: dict[tuple[str, str], list[float]] = {(form, precision): [] for form in forms for precision in goals}
    for jobs_took, notebooks_took in turns(count, tuple(goals), forms, runs):
        for precision, took in jobs_took.items():
            seconds[precision].append(took)
        for form, took in notebooks_took.items():
            seconds[form].append(took)
            for precision in goals:
                ratios[form, precision].append(took / jobs_took[precision])
    for precision in goals:
        yield median(f"{what}: the three jobs in {precision}", seconds[precision], "s")
    for form in forms:
        yield median(f"{what}: the notebook, {form} form", seconds[form], "s")
        for precision, goal in goals.items():
            name = f"{what}: the notebook's {form} form against the three jobs in {precision}"
            yield median(name, ratios[form, precision], "x", least=goal if form == BEST else None)


def turns(
    count: int, precisions: Sequence[str], forms: Sequence[str], runs: int
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Seconds of our jobs by precision and of the notebook's forms, one after the other, so many times.

    The usual form, which has no goal and takes minutes, is measured once.
    """
    some = photos()
    with tempfile.TemporaryDirectory() as folder, temporary_lake(MOBILENET.variables) as settings:
        put_all(settings, objects(some, count))
        write_folder(some, count, Path(folder) / "photos")
        for number in range(runs):
            ours = {precision: jobs(precision, f"{count}-{number}") for precision in precisions}
            measured = [form for form in forms if form == BEST or number == 0]
            yield ours, {form: notebook(form, Path(folder)).wall for form in measured}


def jobs(precision: str, run_id: str) -> float:
    """Seconds of the three jobs for all photos of the bucket. Nothing is published, so each run is a first run."""
    with patch.dict(os.environ, {"FRUITS_PRECISION": precision}):
        stage_backbone()
        settings, run = Settings.load(), f"{precision}-{run_id}"
        usages = usages_of_jobs(settings, run)
        release_lease(settings, run_key(run))
    return sum(usage.wall for usage in usages.values())


def notebook(form: str, folder: Path) -> Usage:
    """What the notebook takes."""
    weights = str(WEIGHTS) if WEIGHTS.is_file() else ""
    arguments = [form, str(folder / "photos"), str(folder / "out"), weights]
    return watched(start_program(PROGRAM, arguments, memory="2g"), f"the notebook, {form} form")
