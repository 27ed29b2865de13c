"""Daft against the job `featurize` in its steady state, by the clock: the same flatbuffer, photos and S3 server.

Daft has an environment of its own under `build/bench`, which this part makes from `benchmarks/speed/daft.txt`. What
either program costs at any size is subtracted: a run over few photos from a run over many.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure, median
from benchmarks.jobs import put_all, temporary_lake
from benchmarks.parts import BUILD
from benchmarks.speed.network import EFFICIENTNET, MOBILENET, Network, featurized, staged_files
from benchmarks.speed.photos import SMALL, objects, photos
from benchmarks.speed.scale import Scale
from benchmarks.speed.usage import Usage, watched
from fruits.settings import Settings
from scripts.setup import find_uv

LEAST = 1.3
ENVIRONMENT = BUILD / "daft"
HERE = Path(__file__).parent


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of both backbones."""
    make_environment()
    for network in (EFFICIENTNET, MOBILENET):
        yield from figures_of(network, scale)


def figures_of(network: Network, scale: Scale) -> Iterator[Figure]:
    """The figures of a backbone."""
    rates = measured(network, scale)
    what = f"{network.name}, {SMALL} px"
    yield median(f"{what}: Daft, steady, by the clock", [theirs for _, theirs in rates], "img/s")
    yield median(f"{what}: featurize, steady, beside Daft", [ours for ours, _ in rates], "img/s")
    least = LEAST if network is EFFICIENTNET else None
    yield median(f"{what}: featurize against Daft", [ours / theirs for ours, theirs in rates], "x", least=least)


def make_environment() -> None:
    """Make Daft's environment, or bring it up to date."""
    uv, python = find_uv(), ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(ENVIRONMENT)], check=True)  # noqa: S603
    options = ["--quiet", "--require-hashes", "--python", str(python)]
    subprocess.run([uv, "pip", "sync", *options, str(HERE / "daft.txt")], check=True)  # noqa: S603


def measured(network: Network, scale: Scale) -> list[tuple[float, float]]:
    """Photos a second of the job and of Daft, one after the other, so many times."""
    some, photo = photos(), scale.many - scale.few
    with tempfile.TemporaryDirectory() as folder, temporary_lake(network.variables) as settings:
        put_all(settings, objects(some, scale.many))
        flatbuffer, _ = staged_files(settings, some, Path(folder))
        rates = []
        for number in range(scale.runs):
            ours = [featurized(settings, f"{n}-{number}", n)[0].wall for n in (scale.few, scale.many)]
            theirs = [daft(settings, flatbuffer, Path(folder), n).wall for n in (scale.few, scale.many)]
            rates.append((photo / (ours[1] - ours[0]), photo / (theirs[1] - theirs[0])))
        return rates


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
