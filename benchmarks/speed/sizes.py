"""Photos of 0.1 to 12 megapixels: what decoding at a reduced scale spares, and how far it moves the features.

A large JPEG is decoded at the smallest scale of its DCT that is no smaller than the network's input. Compared with the
same decoder at full scale, by core seconds of one thread.
"""

import statistics
import time
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, figure, median
from benchmarks.jobs import temporary_lake
from benchmarks.speed.photos import drawn
from benchmarks.speed.scale import Scale
from fruits.backbones.build import cosines
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone, staged_card
from fruits.photos.decode import Limits, announced_format, decode, needed_side, preprocess

LONG_SIDES = {"0.1": 366, "0.35": 684, "2": 1_632, "12": 4_000}
"""Pixels of the longer side by megapixels; drawn photos have 4 to 3 or so."""

LARGEST = "12"
LEAST_FASTER, LEAST_COSINE = 3.0, 0.995
PHOTOS = 4
_LIMITS = Limits(max_bytes=1_000_000_000, max_pixels=1_000_000_000)
_EVERY_PIXEL = 1_000_000  # a shorter side that no photo has


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of each size."""
    with temporary_lake() as settings:
        card = staged_card(settings)
        assert card is not None  # noqa: S101 -- the lake was made with it
        backbone = load_backbone(settings, card.model_id)
    for name, side in LONG_SIDES.items():
        photos = list(islice(filter(is_jpeg, (drawn(number, side).data for number in count())), PHOTOS))
        yield from figures_of(name, photos, backbone, scale.runs)


def is_jpeg(photo: bytes) -> bool:
    """Whether the photo is stored as a JPEG; other formats have no reduced scale."""
    return announced_format(photo) == ("JPEG", True)


def figures_of(name: str, photos: list[bytes], backbone: Backbone, runs: int) -> Iterator[Figure]:
    """The figures of photos of one size; only the largest have goals."""
    side = needed_side(backbone.card.preprocessing)
    turns = [[seconds(photos, scale) for scale in (side, _EVERY_PIXEL)] for _ in range(runs)]
    reduced, full = (np.stack([features(photo, backbone, scale) for photo in photos]) for scale in (side, _EVERY_PIXEL))
    cosine = float(cosines(reduced, full).min())
    what, has_goal = f"{name} megapixels", name == LARGEST
    yield median(f"{what}: decode at the scale that is needed, of a core", [1e3 * turn[0] for turn in turns], "ms")
    ratios = [full / reduced for reduced, full in turns]
    yield median(f"{what}: against a decode in full", ratios, "x", least=LEAST_FASTER if has_goal else None)
    yield figure(f"{what}: least cosine of the features", cosine, least=LEAST_COSINE if has_goal else None)


def seconds(photos: list[bytes], side: int) -> float:
    """Median core seconds of decoding a photo at least so large."""

    def once(photo: bytes) -> float:
        start = time.thread_time()
        decode(photo, _LIMITS, side)
        return time.thread_time() - start

    return statistics.median(once(photo) for photo in photos)


def features(photo: bytes, backbone: Backbone, side: int) -> NDArray[np.float32]:
    """The feature vector of a photo that is decoded at least so large."""
    preprocessing = backbone.card.preprocessing
    return backbone.features(preprocess(decode(photo, _LIMITS, side).image, preprocessing))
