"""Milliseconds per photo that decoding, preprocessing and hashing cost, on one core.

Made-up JPEG photos of some sizes, or the photos of a folder. The last columns compare decoding at a reduced scale with
decoding in full: how many times as fast it is; the mean difference of the network's input, in grey levels of 255; and
with `--features` the least cosine of the default backbone's features, whose preprocessing is measured then.
"""

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fruits.backbones.card import Preprocessing
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone, stage
from fruits.photos.decode import Limits, decode, needed_side, perceptual_hash, preprocess
from fruits.settings import Settings

SIZES = {
    "100 px": (100, 100),
    "0.1 MP": (365, 274),
    "348 px": (348, 464),
    "0.35 MP": (683, 512),
    "2 MP": (1600, 1200),
    "12 MP": (4000, 3000),
}
LIMITS = Limits(max_bytes=1_000_000_000, max_pixels=1_000_000_000)
EVERY_PIXEL = 1_000_000  # a shorter side that no photo has: nothing is decoded at a reduced scale


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line per size of photo."""
    args = parse_args(argv)
    backbone = default_backbone() if args.features else None
    asked = Preprocessing(args.size, args.size, args.resample, args.crop_share)
    preprocessing = backbone.card.preprocessing if backbone else asked
    groups = read_photos(args.photos) if args.photos else made_up_photos(args.quality)
    print(
        f"{'':16}{'photos':>8}{'KB':>8}{'decode':>10}{'preprocess':>12}{'hash':>8}{'total ms':>10}"
        f"{'times full':>12}{'difference':>12}{'cosine':>10}"
    )
    for name, photos in groups:
        decoding, preprocessing_, hashing, in_full = measure(photos, preprocessing, args.seconds)
        print(
            f"{name:16}{len(photos):8}{statistics.mean(map(len, photos)) / 1000:8.0f}{decoding:10.2f}"
            f"{preprocessing_:12.2f}{hashing:8.2f}{decoding + preprocessing_ + hashing:10.2f}"
            f"{in_full / decoding:12.2f}"
            f"{statistics.mean(difference(photo, preprocessing) for photo in photos[:50]):12.2f}"
            + (f"{min(cosine(photo, backbone) for photo in photos[:50]):10.5f}" if backbone else "")
        )
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="measure the *.jpg below this folder instead")
    parser.add_argument("--seconds", type=float, default=2.0, help="time to spend on each figure (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the network's input (default %(default)s)")
    parser.add_argument("--resample", choices=["bilinear", "bicubic"], default="bilinear")
    parser.add_argument("--crop-share", type=float, help="cut this share out of the centre (default: squash the photo)")
    parser.add_argument("--features", action="store_true", help="compare features as well; builds the backbone (20 s)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality of made-up photos (default %(default)s)")
    return parser.parse_args(argv)


def read_photos(folder: Path) -> Iterator[tuple[str, list[bytes]]]:
    """The photos of ``folder``, as one group."""
    photos = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    if not photos:
        sys.exit(f"{folder}: expected at least one *.jpg in it")
    yield folder.name, photos


def made_up_photos(quality: int) -> Iterator[tuple[str, list[bytes]]]:
    """One photo of each size, with as much detail at every scale as nature has (amplitude falls with frequency)."""
    for name, (width, height) in SIZES.items():
        generator = np.random.default_rng(1)
        pixels = np.zeros((height, width, 3), np.float32)
        cells = 4
        while cells <= min(width, height):
            noise = generator.integers(0, 256, (cells, cells, 3), np.uint8)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            pixels += (np.asarray(layer, np.float32) - 128) * (4 / cells) ** 0.25
            cells *= 2
        stream = io.BytesIO()
        Image.fromarray((pixels / 4 + 128).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
        yield name, [stream.getvalue()]


def measure(photos: list[bytes], preprocessing: Preprocessing, seconds: float) -> tuple[float, float, float, float]:
    """Milliseconds per photo to decode, preprocess and hash, and to decode in full."""
    side = needed_side(preprocessing)
    images = [decode(photo, LIMITS, side).image for photo in photos[:200]]
    return (
        milliseconds(lambda i: decode(photos[i % len(photos)], LIMITS, side), len(photos), seconds),
        milliseconds(lambda i: preprocess(images[i % len(images)], preprocessing), len(images), seconds),
        milliseconds(lambda i: perceptual_hash(images[i % len(images)]), len(images), seconds),
        milliseconds(lambda i: decode(photos[i % len(photos)], LIMITS, EVERY_PIXEL), len(photos), seconds),
    )


def milliseconds(work: Callable[[int], object], count: int, seconds: float) -> float:
    """Median over rounds of the CPU time of ``work``; a round works on ``count`` photos, or on enough to be timed."""
    rounds: list[float] = []
    stop = time.perf_counter() + seconds
    repeats = max(count, 5)
    while not rounds or time.perf_counter() < stop:
        start = time.thread_time()
        for i in range(repeats):
            work(i)
        rounds.append((time.thread_time() - start) / repeats * 1000)
    return statistics.median(rounds)


def difference(photo: bytes, preprocessing: Preprocessing) -> float:
    """Mean absolute difference of the input from that of a decode at full scale, in grey levels of 255."""
    reduced, full = inputs(photo, preprocessing)
    return float(np.abs(reduced.astype(np.int16) - full).mean())


def cosine(photo: bytes, backbone: Backbone) -> float:
    """Cosine of the features of a decode at a reduced scale and of a decode at full scale."""
    reduced, full = map(backbone.features, inputs(photo, backbone.card.preprocessing))
    return float(reduced @ full / np.linalg.norm(reduced) / np.linalg.norm(full))


def inputs(photo: bytes, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The network's input from a decode at a reduced scale, and from a decode at full scale."""
    reduced, full = (decode(photo, LIMITS, side).image for side in (needed_side(preprocessing), EVERY_PIXEL))
    return preprocess(reduced, preprocessing), preprocess(full, preprocessing)


def default_backbone() -> Backbone:
    """The backbone of the settings, built into a temporary lake."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.load(lake=f"file://{folder}", catalog_uri=f"sqlite:///{folder}/catalog.db")
        return load_backbone(settings, stage(settings).model_id)


if __name__ == "__main__":
    sys.exit(main())
