"""How evenly the workers of a Spark standalone cluster share the job `featurize`: the slowest against their mean.

A cluster of two workers and one of four, each of one core, on this machine. Photos of one size, and photos of which
some have 12 megapixels and stand together in the order of keys, so that tasks of as many photos would not be even. A
worker's work is the seconds of its tasks. All workers wait for the slowest at the end of each chunk, so that one's
seconds are added up over the chunks.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.figure import Figure, median
from benchmarks.jobs import ROOT, put_all, temporary_lake
from benchmarks.speed.photos import objects, photos
from benchmarks.speed.scale import Scale
from benchmarks.standalone import Standalone, standalone
from fruits.lake.catalog import Lake
from fruits.run.documents import read_documents
from fruits.run.lease import release_lease
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import plan_run
from sample_photos import LABELS, draw

WORKERS = (2, 4)
MOST = 1.3
PHOTOS, LARGE = 3_000, 150
LARGE_SIDES = (4_000, 4_000)  # of the longer side; drawn photos have 4 to 3 or so
_DRAWN = 4
_SECONDS = 600
_ALL_WORKERS = {  # no task starts before all of them are there
    "spark.scheduler.minRegisteredResourcesRatio": 1,
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "100s",
}


@dataclass(frozen=True)
class Task:
    """A task of a chunk: the worker that did it, its seconds by the clock, and the photos it made features of."""

    worker: str
    seconds: float
    photos: int


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of each cluster, with photos of one size and of two sizes."""
    kinds = {f"{PHOTOS:,} photos of 100 px": "even", f"and {LARGE} of 12 megapixels": "mixed"}
    with temporary_lake() as settings:
        put_all(settings, ((f"{prefix}/{key}", data) for prefix in kinds.values() for key, data in small_photos()))
        put_all(settings, ((f"mixed/{key}", data) for key, data in large_photos()))
        for workers in WORKERS:
            with cluster(workers) as running:
                for what, prefix in kinds.items():
                    runs = [featurized(settings, running, prefix, number) for number in range(scale.runs)]
                    yield from figures_of(f"{workers} workers, {what}", workers, runs)


def figures_of(what: str, workers: int, runs: Sequence[Sequence[Sequence[Task]]]) -> Iterator[Figure]:
    """The figures of some runs, which are tasks by chunk; the goal is for the seconds."""
    seconds = [unevenness([shares(chunk, "seconds", workers) for chunk in run]) for run in runs]
    yield median(f"{what}: seconds of the slowest of the mean", seconds, "x", most=MOST)
    done = [unevenness([shares([task for chunk in run for task in chunk], "photos", workers)]) for run in runs]
    yield median(f"{what}: photos of the busiest of the mean", done, "x")


def shares(tasks: Sequence[Task], what: str, workers: int) -> list[float]:
    """The ``seconds`` or the ``photos`` of each worker; one without a task has none."""
    by_worker: Counter[str] = Counter()
    for task in tasks:
        by_worker[task.worker] += getattr(task, what)
    if len(by_worker) > workers:
        raise RuntimeError(f"expected {workers} workers, found tasks of {sorted(by_worker)}")
    return [*by_worker.values(), *[0.0] * (workers - len(by_worker))]


def unevenness(chunks: Sequence[Sequence[float]]) -> float:
    """What the largest share of each chunk comes to, of what the mean shares come to: 1 when all shares are even."""
    return sum(map(max, chunks)) / sum(map(mean, chunks))


def small_photos() -> Iterator[tuple[str, bytes]]:
    """Photos of 100 px by key."""
    return objects(photos(), PHOTOS)


def large_photos() -> Iterator[tuple[str, bytes]]:
    """Photos of 12 megapixels, a few different ones, by key: one after the other in the order of keys."""
    drawn = [draw(LABELS[0], "Training", number, size=LARGE_SIDES) for number in range(_DRAWN)]
    for number in range(LARGE):
        yield f"Training/{LABELS[0]}/large-{number:08d}.jpg", drawn[number % _DRAWN]


@contextmanager
def cluster(workers: int) -> Iterator[Standalone]:
    """A cluster of so many workers; its executors have the lake's environment variables."""
    with tempfile.TemporaryDirectory() as folder, standalone(Path(folder), workers=workers) as running:
        yield running


def featurized(settings: Settings, cluster: Standalone, prefix: str, number: int) -> list[list[Task]]:
    """The tasks of each chunk of a run of `featurize` over a prefix, on the cluster. Nothing is published."""
    run_id = f"{prefix}-{len(cluster.workers)}-{number}"
    plan_run(settings, resolve_request({"prefix": f"{prefix}/"}, settings), run_id)
    before = cluster.applications()
    process = cluster.submit(ROOT / "spark_jobs" / "featurize.py", "--run", run_key(run_id), options=_ALL_WORKERS)
    try:
        output, _ = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
    release_lease(settings, run_key(run_id))
    if process.returncode:
        raise RuntimeError(f"featurize on {len(cluster.workers)} workers ended with {process.returncode}:\n{output}")
    (application,) = cluster.applications() - before
    stages = stages_of(events(cluster.event_logs / f"eventlog_v2_{application}"))
    files = rows_of_files(settings, run_id)
    if [len(stage) for stage in stages] != [len(chunk) for chunk in files]:
        raise RuntimeError(f"featurize: a task of its {len(stages)} chunks left no file of features")
    return [
        [Task(worker, seconds, photos) for (worker, seconds), photos in zip(stage, chunk, strict=True)]
        for stage, chunk in zip(stages, files, strict=True)
    ]


def events(folder: Path) -> Iterator[Mapping[str, Any]]:
    """What Spark wrote of an application, in order."""
    for path in sorted(folder.glob("events_*"), key=lambda path: int(path.name.split("_")[1])):
        with path.open() as lines:
            yield from map(json.loads, lines)


def stages_of(log: Iterator[Mapping[str, Any]]) -> list[list[tuple[str, float]]]:
    """Worker and seconds of each task, in the order of its work, of each stage that ran our Python on batches."""
    tasks: dict[int, dict[int, tuple[str, float]]] = {}
    ours: list[int] = []
    for event in log:
        if event["Event"] == "SparkListenerTaskEnd" and event["Task End Reason"]["Reason"] == "Success":
            done = event["Task Info"]
            seconds = (done["Finish Time"] - done["Launch Time"]) / 1e3
            tasks.setdefault(event["Stage ID"], {})[done["Index"]] = (done["Executor ID"], seconds)
        if event["Event"] == "SparkListenerStageCompleted":
            stage = event["Stage Info"]
            if any("MapInArrow" in one.get("Scope", "") for one in stage["RDD Info"]):
                ours.append(stage["Stage ID"])
    return [[tasks[stage][index] for index in sorted(tasks[stage])] for stage in sorted(ours)]


def rows_of_files(settings: Settings, run_id: str) -> list[list[int]]:
    """The rows of each file of features of a run, by chunk: a task writes a file, and the files are in their order."""
    lake, document = Lake.open(settings), read_documents(settings, run_key(run_id)).featurize
    assert document is not None  # noqa: S101 -- the job has ended
    table = lake.table("features")
    head = lake.head("features", document.writer(run_key(run_id)).branch)
    chunks: list[list[int]] = []
    while head is not None and (snapshot := table.snapshot_by_id(head)) is not None:
        added = [
            entry.data_file.record_count
            for manifest in snapshot.manifests(table.io)
            if manifest.added_snapshot_id == head
            for entry in manifest.fetch_manifest_entry(table.io)
        ]
        if added:
            chunks.insert(0, added)
        head = snapshot.parent_snapshot_id
    return chunks
