"""The bare limit against the job `featurize` in its steady state, in core seconds of a photo.

Bare is LiteRT in a loop over preprocessed pixels, in two processes of one thread. The job does all else as well: S3
GET, decode, hash, resize, write. What the job costs at any size is subtracted: a run over few photos from a run over
many. All its processes count; the S3 server's are apart.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figure import Figure, figure, median
from benchmarks.jobs import put_all, temporary_lake
from benchmarks.speed.loop import bare_loop
from benchmarks.speed.network import EFFICIENTNET, Network, featurized, lake_folder, staged_files
from benchmarks.speed.photos import MEDIUM, SMALL, objects, photos
from benchmarks.speed.scale import Scale
from benchmarks.speed.usage import DRIVER, JVM, WORKERS, Usage, core_seconds_of
from fruits.photos.featurize import STAGES
from fruits.spark.featurizing import usd_per_million
from local.stack import server_pid

LEAST = {SMALL: 0.90, MEDIUM: 0.78}
MOST_MEGABYTES = 600


@dataclass(frozen=True)
class Turn:
    """One measurement: the loop, a run over few photos and a run over many; all but the loop in seconds of a photo."""

    bare: float
    bare_rate: float
    core: dict[str, float]
    wall: float
    stages: dict[str, float]
    server: float
    worker_megabytes: float

    @property
    def job(self) -> float:
        """Core seconds of a photo in the job."""
        return sum(self.core.values())


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of each backbone and size of photos."""
    for network, side in scale.bare:
        yield from figures_of(network, side, scale)


def figures_of(network: Network, side: int, scale: Scale) -> Iterator[Figure]:
    """The figures of a backbone with photos of so many pixels a side."""
    turns = measured(network, side, scale)
    what = f"{network.name}, {side} px"
    least = LEAST[side] if network is EFFICIENTNET else None
    yield median(f"{what}: bare loop, two processes", [turn.bare_rate for turn in turns], "img/s")
    yield median(f"{what}: featurize, steady, by the clock", [1 / turn.wall for turn in turns], "img/s")
    yield median(f"{what}: featurize of the bare loop", [turn.bare / turn.job for turn in turns], "x", least=least)
    yield median(f"{what}: bare loop, of a core", [1e3 * turn.bare for turn in turns], "ms")
    for kind in (WORKERS, JVM, DRIVER):
        yield median(f"{what}: featurize, {kind}, of a core", [1e3 * turn.core[kind] for turn in turns], "ms")
    yield median(f"{what}: S3 server beside it, of a core", [1e3 * turn.server for turn in turns], "ms")
    for stage in STAGES:
        yield median(f"{what}: {stage} in a worker, by the clock", [1e3 * turn.stages[stage] for turn in turns], "ms")
    megabytes = max(turn.worker_megabytes for turn in turns)
    yield figure(f"{what}: largest Python worker, {scale.many:,} photos", megabytes, "MB", most=MOST_MEGABYTES)
    usd = [usd_per_million(turn.job, 1, scale.price) or 0.0 for turn in turns]
    yield median(f"{what}: a million photos at {scale.price:g} USD a core hour", usd, "USD")


def measured(network: Network, side: int, scale: Scale) -> list[Turn]:
    """The turns, one after the other on one lake."""
    some = photos(side)
    with tempfile.TemporaryDirectory() as folder, temporary_lake(network.variables) as settings:
        put_all(settings, objects(some, scale.many))
        flatbuffer, pixels = staged_files(settings, some, Path(folder))
        data = lake_folder(settings).parent
        turns = []
        for number in range(scale.runs):
            bare, bare_rate = bare_loop(flatbuffer, pixels, scale.loop)
            few, done_few = featurized(settings, f"few-{number}", scale.few)
            pid = server_pid(data) or 0
            before = core_seconds_of(pid)
            many, done_many = featurized(settings, f"many-{number}", scale.many)
            photo = scale.many - scale.few
            core, wall = steady(few, many, photo)
            stages = {name: (done_many.photo_seconds[name] - done_few.photo_seconds[name]) / photo for name in STAGES}
            server = (core_seconds_of(pid) - before) / scale.many
            megabytes = max(few.worker_megabytes, many.worker_megabytes)
            turns.append(Turn(bare, bare_rate, core, wall, stages, server, megabytes))
        return turns


def steady(few: Usage, many: Usage, photos: int) -> tuple[dict[str, float], float]:
    """Core seconds by kind of process, and seconds by the clock, of one photo of those that only ``many`` had."""
    core = {kind: (many.core[kind] - few.core[kind]) / photos for kind in many.core}
    return core, (many.wall - few.wall) / photos
