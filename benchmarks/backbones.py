"""What backbones are worth and what they cost: accuracy of a linear probe on their features, images per second.

For EfficientNet-Lite0 and MobileNetV2 with a weights file, each in fp32 and int8, and for both with random weights it
prints: the least cosine between the flatbuffer's features and Keras' own; images per second of one LiteRT thread (CPU
time, both precisions by turns); the accuracy of a linear probe that leaves one photo of each label out; and, fitted on
`Training` and scored on `Test`, its accuracy on features and on their first k principal components, with the explained
variance ratio of those. For int8 besides: the speed as a multiple of fp32's, and the cosines between the features of
both. Needs the jobs environment.
"""

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fruits.analysis.probe import probe_accuracy
from fruits.backbones.build import build, cosines, load_network
from fruits.backbones.card import Preprocessing
from fruits.backbones.efficientnet_lite import NAME as EFFICIENTNET_LITE0
from fruits.backbones.runtime import Backbone
from fruits.backbones.weights import IMAGENET, RANDOM, WeightsFile
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.settings import Precision

SHARED = Path(__file__).resolve().parents[2] / "shared"
LIMITS = Limits(max_bytes=1_000_000_000, max_pixels=1_000_000_000)
COMPONENTS = (20, 50, 100, 160)
COMPARED = 16
"""Photos on which the flatbuffer is compared with Keras."""


@dataclass(frozen=True)
class Labelled:
    """Feature rows, shape ``(n, d)``, and their labels."""

    rows: NDArray[np.float32]
    labels: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one block per backbone."""
    args = parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name, weights in chosen(args):
        precisions: tuple[Precision, ...] = ("fp32",) if weights == RANDOM else ("fp32", "int8")
        backbones = [Backbone(*build(name, weights, precision)) for precision in precisions]
        pixels = [read(path, backbones[0].card.preprocessing) for path in photos(args.photos)]
        speeds = images_per_second(backbones, pixels[0], args.seconds)
        folders = (args.photos, args.fruits / "Training", args.fruits / "Test")
        reference: list[Labelled] = []
        for backbone, speed in zip(backbones, speeds, strict=True):
            card = backbone.card
            print(f"\n{card.model_id} ({card.backbone}, {card.weights}), {card.flatbuffer_bytes / 1e6:.1f} MB")
            cosine = agreement(backbone, pixels[:: max(1, len(pixels) // COMPARED)], name, weights)
            print(f"  flatbuffer against Keras, least cosine  {cosine:.7f}")
            print(f"  images per second of one thread         {speed:.0f}")
            shop, fit, test = found = [features(backbone, folder, args.limit) for folder in folders]
            if reference:
                print(f"  speed as a multiple of fp32's           {speed / speeds[0]:.2f}")
                for folder, one, other in zip(folders, found, reference, strict=True):
                    rows = cosines(one.rows, other.rows)
                    print(f"  cosine to fp32, {folder.name:<10}  mean {rows.mean():.4f}  least {rows.min():.4f}")
            reference = reference or found
            print(f"  probe, {args.photos.name}, one of each label out  {leave_one_of_each_out(shop):.3f}")
            for line in projections(fit, test):
                print(f"  {line}")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    weights = SHARED / "weights/mobilenet_v2_1.0_224_no_top.weights.h5"
    parser.add_argument("--photos", type=Path, metavar="FOLDER", default=SHARED / "photos", help="<label>/*.jpg")
    parser.add_argument(
        "--fruits", type=Path, metavar="FOLDER", default=SHARED / "fruits", help="{Training,Test}/<label>/*.jpg"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", default=weights, help="MobileNetV2's, without its top")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N photos of each label (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to spend on the speed (default %(default)s)")
    return parser.parse_args(argv)


def chosen(args: argparse.Namespace) -> Iterator[tuple[str, str | WeightsFile]]:
    """The backbones to compare."""
    yield EFFICIENTNET_LITE0, IMAGENET
    yield "MobileNetV2", WeightsFile.at(args.weights)
    yield EFFICIENTNET_LITE0, RANDOM
    yield "MobileNetV2", RANDOM


def photos(folder: Path, limit: int | None = None) -> list[Path]:
    """The photos below ``folder``, at most ``limit`` of each label."""
    paths = [path for label in sorted(folder.iterdir()) for path in sorted(label.glob("*.jpg"))[:limit]]
    if not paths:
        sys.exit(f"{folder}: expected photos in it, as <label>/<name>.jpg")
    return paths


def read(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The network's input for one photo."""
    return preprocess(decode(path.read_bytes(), LIMITS, needed_side(preprocessing)).image, preprocessing)


def features(backbone: Backbone, folder: Path, limit: int | None) -> Labelled:
    """The features of the photos below ``folder``, labelled by their folders."""
    paths = photos(folder, limit)
    rows = [backbone.features(read(path, backbone.card.preprocessing)) for path in paths]
    return Labelled(np.stack(rows), [path.parent.name for path in paths])


def agreement(backbone: Backbone, pixels: list[NDArray[np.uint8]], name: str, weights: str | WeightsFile) -> float:
    """Least cosine between LiteRT's features and those of the Keras network."""
    keras_rows = np.asarray(load_network(name, weights).features(np.stack(pixels)), dtype=np.float64)
    return float(cosines(np.stack([backbone.features(photo) for photo in pixels]), keras_rows).min())


def images_per_second(backbones: Sequence[Backbone], pixels: NDArray[np.uint8], seconds: float) -> list[float]:
    """Median of each backbone over rounds of 20 images, by turns and by the thread's CPU time.

    So what else the machine does matters little, and least of all to the ratio of two backbones.
    """
    rounds: list[list[float]] = []
    stop = time.perf_counter() + seconds
    while not rounds or time.perf_counter() < stop:
        rounds.append([])
        for backbone in backbones:
            start = time.thread_time()
            for _ in range(20):
                backbone.features(pixels)
            rounds[-1].append(20 / (time.thread_time() - start))
    return [statistics.median(speeds) for speeds in zip(*rounds, strict=True)]


def leave_one_of_each_out(data: Labelled) -> float:
    """Accuracy of the linear probe on the i-th photo of every label when it is fitted on all others, over all i."""
    counts = Counter[str]()
    turns = []
    for label in data.labels:
        turns.append(counts[label])
        counts[label] += 1
    hits = 0.0
    for turn in range(max(counts.values())):
        held_out = np.array(turns) == turn
        fit, test = (list(compress(data.labels, chosen)) for chosen in (~held_out, held_out))
        hits += (probe_accuracy(data.rows[~held_out], fit, data.rows[held_out], test) or 0.0) * len(test)
    return hits / len(data.labels)


def projections(fit: Labelled, test: Labelled) -> Iterator[str]:
    """One line for the features and one for each number of principal components, fitted on ``fit``."""
    accuracy = probe_accuracy(fit.rows, fit.labels, test.rows, test.labels)
    yield f"Training to Test, {len(fit.labels)} to {len(test.labels)}: features  probe {accuracy:.3f}"
    mean = fit.rows.mean(axis=0, dtype=np.float64)
    _, singular, components = np.linalg.svd(fit.rows - mean, full_matrices=False)
    ratios = np.cumsum(singular**2) / np.sum(singular**2)
    for k in (k for k in COMPONENTS if k <= len(singular)):
        basis = components[:k].T
        accuracy = probe_accuracy((fit.rows - mean) @ basis, fit.labels, (test.rows - mean) @ basis, test.labels)
        yield f"  k = {k:3}  explained variance {ratios[k - 1]:.3f}  probe {accuracy:.3f}"


if __name__ == "__main__":
    sys.exit(main())
