"""Milliseconds per photo that decoding, preprocessing and hashing cost, on one core.

Made-up JPEG photos of four sizes, or the photos of a folder. The last column says what decoding at a reduced scale
costs: the mean difference of the network's input, in grey levels of 255, from what a decode at full scale gives.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fruits.backbones.card import Preprocessing
from fruits.photos.decode import Limits, decode, needed_side, perceptual_hash, preprocess

SIZES = {"100 px": (100, 100), "348 px": (348, 464), "2 MP": (1600, 1200), "12 MP": (4000, 3000)}
LIMITS = Limits(max_bytes=1_000_000_000, max_pixels=1_000_000_000)
EVERY_PIXEL = 1_000_000  # a shorter side that no photo has: nothing is decoded at a reduced scale


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line per size of photo."""
    args = parse_args(argv)
    preprocessing = Preprocessing(args.size, args.size, args.resample, args.crop_share)
    groups = read_photos(args.photos) if args.photos else made_up_photos(args.quality)
    print(f"{'':16}{'photos':>8}{'KB':>8}{'decode':>10}{'preprocess':>12}{'hash':>8}{'total ms':>10}{'difference':>12}")
    for name, photos in groups:
        decoding, preprocessing_, hashing = measure(photos, preprocessing, args.seconds)
        print(
            f"{name:16}{len(photos):8}{statistics.mean(map(len, photos)) / 1000:8.0f}{decoding:10.2f}"
            f"{preprocessing_:12.2f}{hashing:8.2f}{decoding + preprocessing_ + hashing:10.2f}"
            f"{statistics.mean(difference(photo, preprocessing) for photo in photos[:50]):12.2f}"
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


def measure(photos: list[bytes], preprocessing: Preprocessing, seconds: float) -> tuple[float, float, float]:
    """Milliseconds per photo to decode, preprocess and hash."""
    side = needed_side(preprocessing)
    images = [decode(photo, LIMITS, side).image for photo in photos[:200]]
    return (
        milliseconds(lambda i: decode(photos[i % len(photos)], LIMITS, side), len(photos), seconds),
        milliseconds(lambda i: preprocess(images[i % len(images)], preprocessing), len(images), seconds),
        milliseconds(lambda i: perceptual_hash(images[i % len(images)]), len(images), seconds),
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
    reduced = preprocess(decode(photo, LIMITS, needed_side(preprocessing)).image, preprocessing)
    full = preprocess(decode(photo, LIMITS, EVERY_PIXEL).image, preprocessing)
    return float(np.abs(reduced.astype(np.int16) - full).mean())


if __name__ == "__main__":
    sys.exit(main())
