"""Daft against the job `featurize` in its steady state, by the clock: the same flatbuffer, photos and S3 server.

Daft has an environment of its own under `build/bench`, which this part makes from `benchmarks/speed/daft.txt`. What
either program costs at any size is subtracted: a run over few photos from a run over many.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figure import Figure, median
from benchmarks.jobs import put_all, temporary_lake
from benchmarks.parts import BUILD
from benchmarks.speed.network import EFFICIENTNET, featurized, lake_folder, staged_files
from benchmarks.speed.photos import SMALL, objects, photos
from benchmarks.speed.scale import Scale
from benchmarks.speed.usage import Usage, core_seconds_of, watched
from fruits.settings import Settings
from local.stack import server_pid
from scripts.setup import find_uv

LEAST = 1.3
ENVIRONMENT = BUILD / "daft"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Steady:
    """Photos a second by the clock; core seconds of a photo, of the program's processes and of the S3 server."""

    rate: float
    core: float
    server: float


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of the default backbone."""
    make_environment()
    turns = measured(scale)
    what = f"{EFFICIENTNET.name}, {SMALL} px"
    ours, theirs = zip(*turns, strict=True)
    for name, side in (("Daft", theirs), ("featurize beside Daft", ours)):
        yield median(f"{what}: {name}, steady, by the clock", [one.rate for one in side], "img/s")
        yield median(f"{what}: {name}, of a core", [1e3 * one.core for one in side], "ms")
        yield median(f"{what}: S3 server under {name}, of a core", [1e3 * one.server for one in side], "ms")
    ratios = [our.rate / their.rate for our, their in turns]
    yield median(f"{what}: featurize against Daft", ratios, "x", least=LEAST)


def make_environment() -> None:
    """Make Daft's environment, or bring it up to date."""
    uv, python = find_uv(), ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(ENVIRONMENT)], check=True)  # noqa: S603
    options = ["--quiet", "--require-hashes", "--python", str(python)]
    subprocess.run([uv, "pip", "sync", *options, str(HERE / "daft.txt")], check=True)  # noqa: S603


def measured(scale: Scale) -> list[tuple[Steady, Steady]]:
    """The job and Daft, one after the other, so many times."""
    some = photos()
    with tempfile.TemporaryDirectory() as folder, temporary_lake(EFFICIENTNET.variables) as settings:
        put_all(settings, objects(some, scale.many))
        flatbuffer, _ = staged_files(settings, some, Path(folder))
        server = server_pid(lake_folder(settings).parent)
        assert server is not None  # noqa: S101 -- it has just taken the photos

        def turn(number: int) -> tuple[Steady, Steady]:
            ours = steady(lambda count: featurized(settings, f"{count}-{number}", count)[0], server, scale)
            return ours, steady(lambda count: daft(settings, flatbuffer, Path(folder), count), server, scale)

        return [turn(number) for number in range(scale.runs)]


def steady(program: Callable[[int], Usage], server: int, scale: Scale) -> Steady:
    """What a program takes for each of the photos that its larger run had beyond its smaller one."""
    took = []
    for count in (scale.few, scale.many):
        before = core_seconds_of(server)
        usage = program(count)
        took.append((usage.wall, usage.core_seconds, core_seconds_of(server) - before))
    wall, core, of_server = ((many - few) / (scale.many - scale.few) for few, many in zip(*took, strict=True))
    return Steady(1 / wall, core, of_server)


def daft(settings: Settings, flatbuffer: Path, folder: Path, count: int) -> Usage:
    """What Daft takes for so many photos of the bucket."""
    arguments = [str(flatbuffer), settings.bucket, str(settings.s3_endpoint), str(folder / f"out-{count}"), str(count)]
    process = subprocess.Popen(  # noqa: S603 -- our own program
        [str(ENVIRONMENT / "bin" / "python"), str(HERE / "daft_program.py"), *arguments],
        env={**os.environ, "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    return watched(process, "Daft")
