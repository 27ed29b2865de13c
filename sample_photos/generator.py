"""Fruit photos drawn by code, for trials, tests and benchmarks: ``python -m sample_photos.generator``.

A table of recipes (``FRUITS``) says what each kind looks like; a small renderer shades inflated outlines and lays them,
in varied pose and light, on varied backgrounds. Every photo is a pure function of seed, label, split and number.
"""

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cached_property, partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from fruits.errors import ExitCode, FruitsError

Array: TypeAlias = NDArray[Any]
Split: TypeAlias = Literal["Training", "Test"]
Layout: TypeAlias = Literal["plain", "dated"]

DEFAULT_SIZE = (100, 640)
DEFAULT_START = date(2026, 11, 20)
_LEAST_PIXELS = 32
_WORTH_A_POOL = 100  # files
BROKEN: Mapping[str, str] = MappingProxyType(
    {
        "Training/Apple Red/broken-empty.jpg": "empty",
        "Training/Apple Red/broken-truncated.jpg": "truncated",
        "Training/Apple Red/broken-error-page.jpg": "not_an_image",
        "Test/Apple Red/broken-damaged.png": "corrupt",
        "stray.jpg": "key_pattern",
    }
)
"""The files that belong in quarantine, by key, with the reason code expected there.

``stray.jpg`` is a sound photo whose key names no label as long as the folder is copied to the root of the bucket.
"""


def _linear(colour: str) -> Array:
    """Linear-light RGB, shape ``(3,)``, of an sRGB colour in hexadecimal."""
    channels = np.frombuffer(bytes.fromhex(colour), np.uint8).astype(np.float32) / 255
    linear: Array = channels ** np.float32(2.2)
    return linear


def _palette(colours: str) -> Array:
    """Linear-light RGB, shape ``(n, 3)``, of colours in hexadecimal, separated by blanks."""
    return np.stack([_linear(colour) for colour in colours.split()])


def _ramp(low: float, high: float, x: Array) -> Array:
    """Smoothstep: 0 at ``low`` and beyond, 1 at ``high`` and beyond; ``low`` may be the larger."""
    t: Array = np.clip((x - low) / (high - low), 0, 1)
    smooth: Array = t * t * (3 - 2 * t)
    return smooth


def _mix(a: Array, b: Array, t: Array) -> Array:
    """Colours from ``a`` (t = 0) to ``b`` (t = 1); ``t`` has shape ``(h, w)``."""
    mixed: Array = a + (b - a) * t[..., None]
    return mixed


def _waves(point: "Vector", rng: Generator, frequency: float, count: int = 6) -> Array:
    """Smooth solid noise, about -1 to 1: a sum of plane waves in random directions."""
    total = np.zeros_like(point[0])
    for _ in range(count):
        x, y, z = rng.normal(0, frequency, 3).astype(np.float32)
        total += np.sin(x * point[0] + y * point[1] + z * point[2] + np.float32(rng.uniform(0, 6.3)))
    return total / math.sqrt(count)


def _chance(rng: Generator, share: float) -> bool:
    return bool(rng.random() < share)


def _clouds(rng: Generator, height: int, width: int, cells: tuple[int, int]) -> Array:
    """Smooth flat noise, 0 to 1, shape ``(height, width)``, with ``cells`` bumps down and across."""
    return _enlarged(rng.random(cells, dtype=np.float32), height, width)


def _enlarged(small: Array, height: int, width: int) -> Array:
    """One channel, shape ``(h, w)``, smoothly enlarged."""
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _spots(u: Array, v: Array, rng: Generator) -> Array:
    """Distance to the dot of each unit cell, somewhere in its middle; a third of the cells have none."""
    table = rng.uniform(0.2, 0.8, (32, 32, 2)).astype(np.float32)
    table[rng.choice([True, False], (32, 32), p=[0.33, 0.67])] = 9  # far away
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    centre = table[row % 32, column % 32]
    distance: Array = np.hypot(u - column - centre[..., 0], v - row - centre[..., 1])
    return distance


Vector: TypeAlias = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Surface:
    """A body seen from the front, in its own frame (y up, half its length is 1); arrays of shape ``(h, w)``.

    ``level`` is below 1 inside the outline; ``x``, ``y`` and ``z`` are coordinates within the outline, z towards the
    viewer, as is the ``normal``. ``turn`` is a 3 x 3 rotation: it lets a texture show another side in every photo.
    """

    x: Array
    y: Array
    z: Array
    level: Array
    normal: Vector
    turn: Array = field(default_factory=lambda: np.eye(3, dtype=np.float32))

    @cached_property
    def point(self) -> Vector:
        """The surface in the frame of the turned body, whose axis is y."""
        (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = self.turn
        x, y, z = self.x, self.y, self.z
        return xx * x + xy * y + xz * z, yx * x + yy * y + yz * z, zx * x + zy * y + zz * z

    @cached_property
    def longitude(self) -> Array:
        """Around the body's axis, in turns."""
        turns: Array = np.arctan2(self.point[0], self.point[2]) / np.float32(2 * np.pi)
        return turns


class Shape(Protocol):
    """An outline, inflated."""

    def reach(self) -> float:
        """Radius of a circle around the origin that holds the body."""

    def locate(self, x: Array, y: Array) -> Surface:
        """The surface at the points ``(x, y)`` of the body's frame."""


@dataclass(frozen=True)
class Round:
    """A body of revolution seen from the side: its radii from the top to the bottom in equal angles."""

    radii: tuple[float, ...]
    flat: float = 2  # 2 is a ball; a large number is a cut face with a rounded rim

    def reach(self) -> float:
        """See ``Shape``."""
        return max(self.radii) * 1.05

    def locate(self, x: Array, y: Array) -> Surface:
        """See ``Shape``."""
        radius = np.interp(np.arctan2(np.abs(x), y), *self._profile).astype(np.float32)
        u, v = x / radius, y / radius
        level = np.hypot(u, v)
        steep = np.minimum(level, 1) ** (self.flat - 2)
        z = np.sqrt(np.maximum(1 - np.minimum(level, 1) ** self.flat, 0))
        return Surface(u, v, z, level, _unit(u * steep, v * steep, z))

    @cached_property
    def _profile(self) -> tuple[Array, Array]:
        """Angles from the top and the radii there: the cosine series through ``radii``."""
        order = np.arange(len(self.radii))
        knots, angles = np.linspace(0, np.pi, len(self.radii)), np.linspace(0, np.pi, 128)
        series = np.linalg.solve(np.cos(np.outer(knots, order)), np.array(self.radii))
        return angles, np.cos(np.outer(angles, order)) @ series


@dataclass(frozen=True)
class Bent:
    """A rod of half-length 1 along an arc of radius 1 / ``bend``; half its ``width`` at equal steps from below."""

    width: tuple[float, ...]
    bend: float

    def reach(self) -> float:
        """See ``Shape``."""
        return 1.05 + max(self.width)

    def locate(self, x: Array, y: Array) -> Surface:
        """See ``Shape``."""
        radius = 1 / self.bend
        distance = np.hypot(x - radius, y)
        along = np.arctan2(y, radius - x) * radius
        steps = np.linspace(-1, 1, len(self.width))
        across = (distance - radius) / np.interp(along, steps, self.width).astype(np.float32)
        level = np.sqrt(across**2 + along**16)
        z = np.sqrt(np.maximum(1 - np.minimum(across**2, 1), 0))
        outward = across / np.maximum(distance, 1e-3)
        return Surface(across, along, z, level, _unit((x - radius) * outward, y * outward, z))


@dataclass(frozen=True)
class Wedge:
    """A slice of a disc, the rind below: apex at the top, half its opening in radians; height 2."""

    opening: float

    def reach(self) -> float:
        """See ``Shape``."""
        return 2.1

    def locate(self, x: Array, y: Array) -> Surface:
        """See ``Shape``."""
        u, v = x / 2, (1 - y) / 2
        radius = np.hypot(u, v)
        side = np.abs(u) * math.cos(self.opening) - v * math.sin(self.opening)
        level = np.maximum(radius, 1 + side)
        rim = _ramp(0.97, 1, level) * 0.7
        flat = np.ones_like(u)
        return Surface(u, v, flat, level, _unit(np.sign(u) * rim, -rim, flat))


def _unit(x: Array, y: Array, z: Array) -> Vector:
    length = np.sqrt(x * x + y * y + z * z) + 1e-6
    return x / length, y / length, z / length


class Texture(Protocol):
    """What covers a body."""

    def paint(self, surface: Surface, colours: Array, rng: Generator) -> tuple[Array, Array]:
        """Linear colour ``(h, w, 3)`` and relief ``(h, w)`` in units of the body; ``colours`` has shape ``(n, 3)``."""


@dataclass(frozen=True)
class Skin:
    """A peel: patches of the second colour, and whatever else is not zero here."""

    blush: float = 0.5  # how much of the body the second colour may take
    mottle: float = 0.25
    streaks: float = 0  # lines from pole to pole
    dots: float = 0  # pale lenticels, or dark spots where negative
    density: float = 9  # dots in a quarter turn
    pits: float = 0  # depth of the pores
    bloom: float = 0  # whitish wax
    hollow: float = 0  # depth of the dent around the stem
    ribs: float = 0
    tips: float = 0  # how dark the ends are
    crown: float = 0  # the dark star of a blueberry at the pole

    def paint(self, surface: Surface, colours: Array, rng: Generator) -> tuple[Array, Array]:
        """See ``Texture``."""
        x, y, _ = point = surface.point
        patch = 0.5 * x * rng.uniform(-1, 1) + 0.5 * y * rng.uniform(-1, 1) + self.mottle * _waves(point, rng, 2.5)
        share = self.blush * rng.uniform(0.3, 1)
        second = _ramp(0.7 - 1.1 * share, 1.3 - 1.1 * share, patch + 0.35)
        if self.streaks:
            lines = _waves((np.cos(surface.longitude * 44), np.sin(surface.longitude * 44), y), rng, 2.5)
            second = np.clip(second + self.streaks * lines * (0.25 + second), 0, 1)
        colour = _mix(colours[0], colours[1], second) * (1 + 0.06 * _waves(point, rng, 6, 8))[..., None]
        return self._marked(colour, surface, rng), self._relief(surface, rng)

    def _marked(self, colour: Array, surface: Surface, rng: Generator) -> Array:
        y = surface.point[1]
        if self.dots:
            near = _spots(surface.longitude * 4 * self.density + 40, y * self.density + 40, rng)
            mark = _ramp(0.2, 0.05, near) * abs(self.dots)
            colour = _mix(colour, _linear("f3e6b8" if self.dots > 0 else "4a2c12"), mark)
        if self.bloom:
            wax = _waves(surface.point, rng, 1.6) + 0.2 * _waves(surface.point, rng, 5, 8)
            colour = _mix(colour, _linear("b9bccb"), self.bloom * _ramp(-0.8, 1.3, wax))
        if self.hollow:
            colour = _mix(colour, _linear("6b5a2a"), 0.7 * np.exp((y - 1) * 26))
        if self.tips:
            colour = _mix(colour, _linear("33240f"), self.tips * _ramp(0.86, 0.98, np.abs(y)))
        if self.crown:
            colour = _mix(colour, _linear("10121f"), self.crown * _ramp(1, 0.5, self._star(surface)))
        return colour

    def _relief(self, surface: Surface, rng: Generator) -> Array:
        x, y, _ = surface.point
        relief = np.zeros_like(x)
        if self.pits:
            pores = _ramp(0.45, 0.05, _spots(surface.longitude * 96 + 80, y * 24 + 80, rng))
            relief -= self.pits * pores * _ramp(0, 0.35, 1 - np.abs(y))
        if self.ribs:
            relief += self.ribs * np.abs(np.cos((x + 0.3 * rng.uniform(-1, 1)) * 3.4))
        if self.hollow:
            relief -= self.hollow * np.exp((y - 1) * 9)
        if self.crown:
            star = self._star(surface)
            relief += 0.05 * _ramp(2.2, 1, star) - 0.1 * _ramp(1, 0.5, star)
        return relief

    def _star(self, surface: Surface) -> Array:
        """Below 1 inside a five-pointed star around the pole."""
        inside: Array = (1 - surface.point[1]) / (0.09 + 0.05 * np.cos(surface.longitude * 10 * np.pi))
        return inside


@dataclass(frozen=True)
class Scales:
    """A staggered lattice over the body: a strawberry's seeds or a pineapple's eyes."""

    columns: int
    rows: float
    dome: float  # height of each scale; negative is a dimple
    dot: float  # radius of the dot in its middle, in cells
    edge: float  # how much the third colour fills the gaps

    def paint(self, surface: Surface, colours: Array, rng: Generator) -> tuple[Array, Array]:
        """See ``Texture``."""
        around, up = surface.longitude * self.columns, np.arcsin(np.clip(surface.point[1], -1, 1)) / np.pi * self.rows
        u, v = around + up, around - up
        u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
        gap, centre = np.maximum(np.abs(u), np.abs(v)) * 2, np.hypot(u, v)
        second = _ramp(-0.4, 1.1, _waves(surface.point, rng, 1.6) + surface.y * rng.uniform(-0.8, 0.8))
        colour = _mix(colours[0], colours[1], second) * (1 + 0.05 * _waves(surface.point, rng, 7, 4))[..., None]
        colour = _mix(colour, colours[2], self.edge * _ramp(0.6, 1.0, gap))
        mark = _ramp(self.dot, self.dot * 0.6, np.hypot(u + v, (u - v) * 0.55) if self.dome < 0 else centre)
        colour = _mix(colour, colours[3], mark)
        bowl = np.exp(-((centre / 0.3) ** 2)) if self.dome < 0 else np.sqrt(np.maximum(1 - gap**2, 0))
        return colour, self.dome * bowl + 0.02 * mark


@dataclass(frozen=True)
class CutFace:
    """Flesh in rings around the middle (``stops``, one per colour), with rays and seeds."""

    stops: tuple[float, ...]
    rays: float
    seeds: tuple[float, float]  # the ring of radii that holds them
    cells: tuple[float, float]  # seeds around and across
    seed_size: float = 0.3

    def paint(self, surface: Surface, colours: Array, rng: Generator) -> tuple[Array, Array]:
        """See ``Texture``."""
        radius, angle = np.hypot(surface.x, surface.y), np.arctan2(surface.x, surface.y) / (2 * np.pi)
        spoke = _waves((np.cos(angle * 6.28) * 9, np.sin(angle * 6.28) * 9, radius), rng, 1.4)
        wobble = radius + 0.012 * spoke
        colour = np.stack([np.interp(wobble, self.stops, colours[: len(self.stops), c]) for c in range(3)], axis=-1)
        within = _ramp(self.seeds[0] * 0.8, self.seeds[0], radius) * _ramp(self.seeds[1] * 1.15, self.seeds[1], radius)
        colour = colour * (1 + self.rays * spoke * _ramp(0.1, 0.4, radius) * (radius < self.stops[-2]))[..., None]
        across = (radius - self.seeds[0]) / (self.seeds[1] - self.seeds[0]) * self.cells[1]
        mark = _ramp(self.seed_size, self.seed_size * 0.6, _spots(angle * self.cells[0] + 40, across, rng)) * within
        grain = 1 + 0.05 * _waves((surface.x, surface.y, radius), rng, 14, 5)
        colour = _mix(colour * grain[..., None], colours[-1], mark)
        return colour.astype(np.float32), 0.03 * mark.astype(np.float32)


@dataclass(frozen=True)
class Blade:
    """A leaf: a midrib and side veins."""

    def paint(self, surface: Surface, colours: Array, rng: Generator) -> tuple[Array, Array]:
        """See ``Texture``."""
        x, y = surface.x, surface.y
        rib = np.exp(-((x / 0.07) ** 2))
        veins = np.cos((y * 1.6 - np.abs(x) * 0.9) * 14) ** 8 * 0.35
        colour = _mix(colours[0], colours[1], np.clip(0.5 + 0.5 * _waves(surface.point, rng, 2), 0, 1))
        return _mix(colour, colours[1] * 1.5, np.clip(rib + veins, 0, 1) * 0.6), 0.06 * np.abs(x) - 0.03 * rib


@dataclass(frozen=True)
class Part:
    """Something drawn in one piece. Each photo takes one of the ``palettes``."""

    shape: Shape
    texture: Texture
    palettes: tuple[str, ...]  # colours, dark to light or from the middle outwards
    gloss: float = 0.2
    tilt: float = 0.35  # how far the pole leans towards the viewer or away, in radians


@dataclass(frozen=True)
class Sprout:
    """Parts that grow from the top of a body: a stem, leaves, a crown."""

    part: Part
    count: tuple[int, int] = (1, 1)
    length: float = 0.5
    spread: float = 0.3  # half the fan, in radians
    at: float = 0.9  # where along the axis, as a share of the way to the top
    behind: bool = False


Arrangement: TypeAlias = list[tuple[float, float, float, float]]
"""The bodies of one fruit: x, y, scale and angle of each, relative to the fruit."""


def _single(rng: Generator) -> Arrangement:  # noqa: ARG001
    return [(0, 0, 1, 0)]


def _pair(rng: Generator) -> Arrangement:
    lean = rng.uniform(0.25, 0.4)
    return [(-0.52, -0.45, 0.5, -lean), (0.5, -0.45 + rng.uniform(-0.2, 0.2), 0.5, lean)]


def _bunch(rng: Generator) -> Arrangement:
    rows = [3, 4, 4, 3, 3, 2, 1]
    berries = [
        (0.36 * (column - (count - 1) / 2) + rng.normal(0, 0.05), 0.8 - 0.29 * row + rng.normal(0, 0.04), 0.23, 0.0)
        for row, count in enumerate(rows)
        for column in range(count)
    ]
    return [berries[i] for i in rng.permutation(len(berries))]


def _handful(rng: Generator) -> Arrangement:
    count, golden = int(rng.integers(5, 13)), math.pi * (3 - math.sqrt(5))
    spiral = [(0.28 * math.sqrt(i), i * golden, rng.uniform(0.25, 0.33)) for i in reversed(range(count))]
    return [(r * math.cos(a) + rng.normal(0, 0.04), r * math.sin(a), scale, a) for r, a, scale in spiral]


@dataclass(frozen=True)
class Fruit:
    """A kind of fruit: its body, what grows on it, and how it lies."""

    label: str
    body: Part
    sprouts: tuple[Sprout, ...] = ()
    arrangement: Callable[[Generator], Arrangement] = _single
    many: int = 4  # most that one photo shows
    size: float = 1  # half its length, where a ball's is 1
    upright: bool = False  # whether it is mostly seen the right way up


_LEAF = Part(
    Round((1.08, 0.83, 0.62, 0.48, 0.42, 0.4, 0.42, 0.49, 0.62, 0.8, 0.98)),
    Blade(),
    ("2f6b1f 6a9a3a", "47702a 93a84a"),
    gloss=0.12,
)
_NARROW = Part(
    Round((1.1, 0.68, 0.36, 0.24, 0.19, 0.18, 0.2, 0.25, 0.38, 0.6, 0.9)),
    Blade(),
    ("3f6f35 8fae6a", "5a7a3f 9ab07a"),
    gloss=0.1,
)
_STEM = Part(Bent((0.09, 0.07, 0.08, 0.12), 0.5), Skin(), ("4a3218 6f5a2a", "3a2a14 5a6a2a"), gloss=0.05)
_STALK = Part(Bent((0.05, 0.028, 0.028, 0.07), 0.35), Skin(), ("5f7a2a 7a5a2a", "6f8a3a 93893a"), gloss=0.1)
_LEAFLET = Sprout(_LEAF, count=(0, 1), length=0.7, spread=1.1, at=0.95)

FRUITS: tuple[Fruit, ...] = (
    Fruit(
        "Apple Red",
        Part(
            Round((0.84, 0.99, 1.04, 1.0, 0.96, 0.93, 0.84)),
            Skin(blush=0.6, streaks=0.35, dots=0.3, hollow=0.3),
            ("b3122a e0a63f", "860e1c bf3a2a", "c93524 b9b848", "a51c26 d97a3a"),
            gloss=0.35,
            tilt=0.7,
        ),
        (Sprout(_STEM, length=0.42, at=0.78), _LEAFLET),
    ),
    Fruit(
        "Apple Green",
        Part(
            Round((0.84, 0.99, 1.04, 1.0, 0.96, 0.93, 0.86)),
            Skin(blush=0.5, streaks=0.12, dots=0.35, hollow=0.3),
            ("86ad36 b9c95c", "a3bb45 cf9a55", "6f9c34 a3c052", "b5c04a d3c060"),
            gloss=0.35,
            tilt=0.7,
        ),
        (Sprout(_STEM, length=0.42, at=0.78), _LEAFLET),
    ),
    Fruit(
        "Banana",
        Part(
            Bent((0.07, 0.19, 0.25, 0.27, 0.27, 0.25, 0.2, 0.09, 0.07), 0.85),
            Skin(blush=0.45, dots=-0.6, density=5, ribs=0.1, tips=0.85),
            ("efc122 d9cc3f", "e3c836 86ad3c", "dcae20 96682a", "f0cf45 efc122"),
            gloss=0.15,
        ),
        size=1.35,
    ),
    Fruit(
        "Orange",
        Part(
            Round((0.97, 1.0, 1.01, 1.0, 1.0, 0.99, 0.97)),
            Skin(pits=0.012, hollow=0.08),
            ("ea780f f29a24", "e2650d ee8a1c", "e8901c d9b030"),
            gloss=0.35,
            tilt=1.0,
        ),
        (Sprout(_LEAF, count=(0, 2), length=0.75, spread=1.2, at=0.98),),
    ),
    Fruit(
        "Lemon",
        Part(
            Round((1.3, 1.13, 0.95, 0.87, 0.83, 0.82, 0.83, 0.87, 0.95, 1.12, 1.25)),
            Skin(pits=0.012, blush=0.45),
            ("efcd1e f3de60", "dccb2c a6bd3c", "f0d840 e8b820"),
            gloss=0.35,
        ),
        (_LEAFLET,),
    ),
    Fruit(
        "Lime",
        Part(
            Round((1.12, 1.02, 0.96, 0.92, 0.9, 0.89, 0.9, 0.92, 0.96, 1.02, 1.09)),
            Skin(pits=0.01, blush=0.6),
            ("568f28 93b83a", "3d7a24 74a338", "8fae36 c3c045"),
            gloss=0.4,
        ),
        (_LEAFLET,),
    ),
    Fruit(
        "Pear",
        Part(
            Round((1.3, 1.05, 0.74, 0.74, 0.9, 1.02, 1.0)),
            Skin(blush=0.6, dots=0.35, density=13),
            ("a3ad3a cdb848", "cfae3e a5662a", "8aa43e b8603a", "b9a850 8a6a3a"),
            gloss=0.2,
        ),
        (Sprout(_STEM, length=0.55, at=0.95), _LEAFLET),
        upright=True,
    ),
    Fruit(
        "Strawberry",
        Part(
            Round((0.82, 0.96, 0.98, 0.9, 0.92, 1.06, 1.24)),
            Scales(10, 10, -0.06, 0.17, 0),
            ("c3141c dc3f2a a01018 e6c860", "a80f1c c92a24 8a0c14 d9b050", "d0301f dc6a52 b02018 efd98a"),
            gloss=0.4,
        ),
        (
            Sprout(_LEAF, count=(6, 9), length=0.55, spread=1.75, at=0.9),
            Sprout(_STALK, count=(0, 1), length=0.6, spread=0.3, at=0.95),
        ),
        many=6,
    ),
    Fruit(
        "Grape",
        Part(
            Round((1.08, 1.03, 0.99, 0.97, 0.99, 1.03, 1.08)),
            Skin(bloom=0.35, blush=0.6),
            ("3a1a44 6a2a50", "93b045 bcc965", "75202f 9c3a45", "22204a 4a3060"),
            gloss=0.45,
            tilt=1.2,
        ),
        arrangement=_bunch,
        many=2,
        upright=True,
    ),
    Fruit(
        "Kiwi",
        Part(
            Round((1.02, 1.0, 0.95, 0.92, 0.95, 1.0, 1.02), flat=14),
            CutFace((0.0, 0.2, 0.3, 0.6, 0.88, 0.94, 1.0), 0.13, (0.27, 0.5), (40, 2)),
            (
                "eee7b0 e6e2a0 a5c048 7fa52c 97b53c 6a4a22 54381a 16120c",
                "efe6b8 eadfa0 d6c24a c9ae30 d0b840 7a5528 5c3f1e 16120c",
                "e9e6b8 d9dc98 86ad3a 618e24 7ca034 64451f 4c3218 16120c",
            ),
            gloss=0.25,
        ),
    ),
    Fruit(
        "Watermelon",
        Part(
            Wedge(0.75),
            CutFace((0.0, 0.55, 0.8, 0.85, 0.9, 0.94, 1.0), 0.05, (0.3, 0.72), (32, 3), 0.22),
            (
                "d9303a dd3c40 e26a5c efe6c0 cfdf9a 3f7a2c 1f4a1c 1c120c",
                "c4202f cf2c38 dd6058 f0e8c8 b9d08a 2f6426 173c17 1c120c",
                "e2584f e56458 e88a74 f2ead0 c9d896 5f9040 2f5f26 2c1c10",
            ),
            gloss=0.2,
        ),
        many=3,
        upright=True,
    ),
    Fruit(
        "Pineapple",
        Part(
            Round((1.02, 0.98, 0.82, 0.72, 0.82, 0.98, 1.02)),
            Scales(9, 12, 0.16, 0.1, 0.8),
            ("c98a26 a8862c 5a4a1c 6a3f18", "b8742a 7f7a2e 3f3f1c 5a3214", "dca036 c9802a 6f6024 7a4a1c"),
            gloss=0.15,
            tilt=0.2,
        ),
        (
            Sprout(_NARROW, count=(9, 11), length=1.25, spread=0.75, at=0.8, behind=True),
            Sprout(_NARROW, count=(7, 9), length=0.95, spread=0.55, at=0.8, behind=True),
        ),
        many=2,
        size=0.8,
        upright=True,
    ),
    Fruit(
        "Cherry",
        Part(
            Round((0.88, 0.98, 1.03, 1.02, 1.0, 0.97, 0.95)),
            Skin(hollow=0.2, blush=0.5, mottle=0.15),
            ("860e1c b81f28", "520a16 7a1420", "cf452c e6ad4c", "6a0c1c a01a28"),
            gloss=0.6,
            tilt=0.5,
        ),
        (Sprout(_STALK, count=(1, 1), length=2.9, spread=0.08, at=0.8),),
        arrangement=_pair,
        many=3,
        upright=True,
    ),
    Fruit(
        "Plum",
        Part(
            Round((1.0, 1.02, 0.95, 0.91, 0.94, 1.0, 1.04)),
            Skin(bloom=0.4, hollow=0.15, blush=0.6, dots=0.2, density=14),
            ("38204c 74294a", "561d38 9a363c", "7a2030 b8503a", "28204a 4a2a58"),
            gloss=0.3,
            tilt=0.5,
        ),
        (Sprout(_STEM, count=(0, 1), length=0.35, spread=0.3, at=0.85), _LEAFLET),
    ),
    Fruit(
        "Blueberry",
        Part(
            Round((0.94, 0.97, 1.0, 1.01, 1.0, 0.98, 0.96)),
            Skin(bloom=0.55, crown=1, blush=0.5),
            ("232b52 3f4a78", "1c2040 3a3060", "34406a 59658c"),
            gloss=0.15,
            tilt=1.3,
        ),
        arrangement=_handful,
        many=2,
    ),
    Fruit(
        "Peach",
        Part(
            Round((0.9, 1.0, 1.03, 1.0, 0.98, 0.97, 0.99)),
            Skin(blush=0.9, mottle=0.35, hollow=0.22, dots=0.2, density=22),
            ("e39a4a b8362c", "ecb45c d05a3a", "d9803c 94242a", "efc878 dc8a5a"),
            gloss=0.06,
            tilt=0.6,
        ),
        (Sprout(_LEAF, count=(0, 2), length=0.9, spread=1.2, at=0.95),),
    ),
)
LABELS: tuple[str, ...] = tuple(fruit.label for fruit in FRUITS)


@dataclass(frozen=True)
class Light:
    """One lamp and the sky: direction of the lamp (y up, z to the viewer), strengths, hardness of the shadows."""

    direction: tuple[float, float, float]
    key: float
    ambient: float
    hardness: float  # 0 to 1

    @classmethod
    def sample(cls, rng: Generator) -> "Light":
        """A light as a kitchen, a market or a garden may have it."""
        azimuth, height = rng.uniform(0.1, 3.04), rng.uniform(0.45, 1.15)
        flat = math.cos(height)
        direction = (flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(height))
        return cls(direction, rng.uniform(0.75, 1.15), rng.uniform(0.25, 0.5), rng.uniform(0.2, 1))


@dataclass(frozen=True)
class Pose:
    """Where a body is in the photo: centre and half-length in pixels, angle in radians, rotation in depth (3 x 3)."""

    x: float
    y: float
    scale: float
    angle: float
    turn: Array = field(default_factory=lambda: np.eye(3, dtype=np.float32))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of the point ``(x, y)`` of the body's frame."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.x + self.scale * (c * x - s * y), self.y - self.scale * (s * x + c * y)


def _in_depth(tilt: float, rng: Generator) -> Array:
    """A rotation about the body's axis by any angle, after leaning it by up to ``tilt``."""
    yaw, lean = rng.uniform(0, 2 * np.pi), rng.uniform(-0.4 * tilt, tilt)
    cy, sy, cl, sl = math.cos(yaw), math.sin(yaw), math.cos(lean), math.sin(lean)
    spin = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.asarray(spin @ np.array([[1, 0, 0], [0, cl, sl], [0, -sl, cl]]), np.float32)


def _window(canvas: Array, pose: Pose, reach: float) -> tuple[slice, slice]:
    height, width = canvas.shape[:2]
    pixels = reach * pose.scale + 2
    top, left = max(int(pose.y - pixels), 0), max(int(pose.x - pixels), 0)
    bottom, right = min(int(pose.y + pixels) + 1, height), min(int(pose.x + pixels) + 1, width)
    return slice(top, max(bottom, top)), slice(left, max(right, left))


def _frame(rows: Array, columns: Array, pose: Pose) -> tuple[Array, Array]:
    """Coordinates in the body's frame of the pixels in these rows and columns, each of shape ``(h, w)``."""
    x = ((columns - pose.x) / pose.scale).astype(np.float32)[None, :]
    y = ((pose.y - rows) / pose.scale).astype(np.float32)[:, None]
    c, s = np.float32(math.cos(pose.angle)), np.float32(math.sin(pose.angle))
    return c * x + s * y, c * y - s * x


def _cast_shadow(canvas: Array, shape: Shape, pose: Pose, light: Light, lift: float) -> None:
    """Darken ``canvas`` in place where the body keeps the lamp away; drawn coarsely, then blurred."""
    away = pose.scale * lift
    ground = replace(pose, x=pose.x - light.direction[0] * away, y=pose.y + light.direction[1] * away + 0.3 * away)
    step = max(1, int(pose.scale / 14))
    rows, columns = _window(canvas, ground, shape.reach() + 0.5)
    down, across = np.arange(rows.start, rows.stop, step), np.arange(columns.start, columns.stop, step)
    if min(len(down), len(across)) <= 1:
        return
    inside = shape.locate(*_frame(down, across, ground)).level < 1
    blur = (0.28 - 0.2 * light.hardness) * pose.scale / step
    mask = Image.fromarray((inside * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(max(blur, 0.6)))
    size = (columns.stop - columns.start, rows.stop - rows.start)
    soft = np.asarray(mask.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    canvas[rows, columns] *= (1 - (0.35 + 0.35 * light.hardness) * soft)[..., None]


def _paint(
    canvas: Array, part: Part, pose: Pose, light: Light, palette: int, rng: Generator, lift: float = 0.22
) -> None:
    """Draw one body and its shadow on ``canvas``, shape ``(h, w, 3)``, linear light, in place."""
    rows, columns = _window(canvas, pose, part.shape.reach())
    if min(rows.stop - rows.start, columns.stop - columns.start) <= 1:
        return
    _cast_shadow(canvas, part.shape, pose, light, lift)
    pixels = np.arange(rows.start, rows.stop), np.arange(columns.start, columns.stop)
    surface = replace(part.shape.locate(*_frame(*pixels, pose)), turn=pose.turn)
    down, across = np.gradient(surface.level)
    cover = np.clip((1 - surface.level) / np.maximum(np.hypot(down, across), 1e-6) + 0.5, 0, 1)

    colours = _palette(part.palettes[palette % len(part.palettes)])
    albedo, relief = part.texture.paint(surface, colours * rng.uniform(0.9, 1.1, (1, 3)).astype(np.float32), rng)
    c, s = math.cos(pose.angle), math.sin(pose.angle)
    down, across = (g * np.float32(pose.scale) for g in np.gradient(relief))
    slope = (c * across - s * down, -s * across - c * down)
    nx, ny, nz = _unit(surface.normal[0] - slope[0], surface.normal[1] - slope[1], surface.normal[2])
    shade = _shade(albedo, (nx, ny, nz), pose.angle, light, part.gloss)
    canvas[rows, columns] += (shade - canvas[rows, columns]) * cover[..., None]


def _shade(albedo: Array, normal: Vector, angle: float, light: Light, gloss: float) -> Array:
    """Lambert's cosine law, a sky that is brighter above, and a highlight. Blinn (1977)."""
    c, s = math.cos(angle), math.sin(angle)
    lx, ly, lz = light.direction
    lx, ly, up = c * lx + s * ly, c * ly - s * lx, (s, c)
    facing = np.maximum(normal[0] * lx + normal[1] * ly + normal[2] * lz, 0)
    sky = 0.75 + 0.25 * (normal[0] * up[0] + normal[1] * up[1])
    hx, hy, hz = (part / math.sqrt(lx * lx + ly * ly + (lz + 1) ** 2) for part in (lx, ly, lz + 1))
    half = np.maximum(normal[0] * hx + normal[1] * hy + normal[2] * hz, 0)
    glow = np.square(np.square(np.square(half)))
    glint = glow * np.square(np.square(glow))
    shine = gloss * (light.key * (glint + 0.12 * glow) + 0.12 * np.square(1 - normal[2]))
    lit: Array = albedo * (light.key * facing + light.ambient * sky)[..., None] + shine[..., None]
    return lit


_TONES = "f4f1ea d9d4c7 8fa3ad 3f4a52 b7c4a1 c9a07a 7a8f6a e3c9c0 20242a ece6dc 8a4a42 b8a060 5a7090"
_WOODS = "a87b4f 7a5230 c8a273 5a4634 8f8274"


def _tone(rng: Generator, tones: str = _TONES) -> Array:
    palette = _palette(tones)
    tone: Array = palette[rng.integers(len(palette))] * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    return tone


def _plain(height: int, width: int, rng: Generator) -> Array:
    return _tone(rng) * (0.94 + 0.12 * _clouds(rng, height, width, (4, 4)))[..., None]


def _gradient(height: int, width: int, rng: Generator) -> Array:
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    angle = rng.uniform(0, 6.3)
    return _mix(_tone(rng), _tone(rng), _ramp(-1, 1, (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32)))


def _planks(height: int, width: int, rng: Generator) -> Array:
    count = int(rng.integers(3, 8))
    across = np.linspace(0, count, height, dtype=np.float32, endpoint=False)
    plank = across.astype(int)
    grain = _clouds(rng, height, width, (60, 4)) * 0.35 + _clouds(rng, height, width, (14, 3)) * 0.35
    tint = rng.uniform(0.75, 1.1, count)[plank].astype(np.float32)[:, None] * (0.6 + grain)
    gap = 1 - 0.75 * _ramp(0.46, 0.5, np.abs(across - plank - 0.5))
    board = _tone(rng, _WOODS) * (tint * gap[:, None])[..., None]
    return np.ascontiguousarray(board)


def _cloth(height: int, width: int, rng: Generator) -> Array:
    thread = max(height, width) / rng.uniform(40, 110)
    x, y = np.arange(width) / thread * np.pi, np.arange(height)[:, None] / thread * np.pi
    weave = 0.85 + 0.15 * np.where(np.sin(x) * np.sin(y) > 0, np.abs(np.sin(x)), np.abs(np.sin(y)))
    folds = 0.75 + 0.5 * _clouds(rng, height, width, (3, 5))
    cloth = np.broadcast_to(_tone(rng), (height, width, 3))
    if _chance(rng, 0.5):
        check = (np.floor(x / np.pi / 9) % 2 + np.floor(y / np.pi / 9) % 2) / 2
        cloth = _mix(cloth, _tone(rng), check)
    return cloth * (weave * folds)[..., None]


def _foliage(height: int, width: int, rng: Generator) -> Array:
    """Leaves a little behind the plane of focus: half the pixels do, at a quarter of the cost."""
    down, across = height // 2, width // 2
    canvas = np.asarray(_linear("1c2a14") * (0.5 + _clouds(rng, down, across, (6, 6)))[..., None], np.float32)
    light = replace(Light.sample(rng), hardness=0.6)
    for _ in range(26):
        half = min(down, across) * rng.uniform(0.1, 0.22)
        pose = Pose(rng.uniform(0, across), rng.uniform(0, down), half, rng.uniform(0, 6.3))
        _paint(canvas, _LEAF, pose, light, int(rng.integers(2)), rng)
    return _out_of_focus(canvas, height, width)


def _shelf(height: int, width: int, rng: Generator) -> Array:
    edge = int(height * rng.uniform(0.45, 0.75))
    wall, board = _plain(height, width, rng), _planks(height, width, rng)
    depth = np.arange(height)[:, None] - edge
    lip = 1 - 0.45 * np.exp(-np.abs(depth) / (0.05 * height))
    return np.where((depth > 0)[..., None], board, wall) * lip[..., None]


def _market(height: int, width: int, rng: Generator) -> Array:
    """Other produce, far out of focus."""
    colours = _palette("8f3a2e c08a4a c9b566 76905a 4a5f3c 4f3a4a cfc6b0 7a5f48")
    crates = colours[rng.integers(len(colours), size=(int(rng.integers(3, 7)), int(rng.integers(3, 7))))]
    blurred: Array = _out_of_focus(crates, height, width) * rng.uniform(0.4, 1)
    return blurred


def _out_of_focus(canvas: Array, height: int, width: int) -> Array:
    """A coarse picture, shape ``(h, w, 3)``, enlarged to a full one."""
    layers = [_enlarged(np.ascontiguousarray(canvas[..., channel]), height, width) for channel in range(3)]
    full: Array = np.clip(np.stack(layers, axis=-1), 0.01, 1)
    return full


_BACKGROUNDS = (_plain, _gradient, _planks, _cloth, _foliage, _shelf, _market)


def _places(fruit: Fruit, height: int, width: int, rng: Generator) -> list[tuple[float, float, float]]:
    """Centre and half-length in pixels of each fruit in the photo, farthest first."""
    short = min(height, width)
    if fruit.many == 1 or _chance(rng, 0.5):
        scale = short * rng.uniform(0.28, 0.44)
        return [(width / 2 + (width / 2 - 0.7 * scale) * rng.uniform(-0.7, 0.7), height * rng.uniform(0.4, 0.6), scale)]
    size = short * rng.uniform(0.17, 0.26)
    places: list[tuple[float, float, float]] = []
    for _ in range(40):
        x, y = rng.uniform(0.12, 0.88) * width, rng.uniform(0.15, 0.85) * height
        if len(places) < fruit.many and all(math.hypot(x - px, y - py) > 1.6 * size for px, py, _ in places):
            places.append((x, y, size * rng.uniform(0.85, 1.15)))
    return sorted(places, key=lambda place: place[1])[: int(rng.integers(2, fruit.many + 1))]


def _draw_fruit(canvas: Array, fruit: Fruit, pose: Pose, light: Light, palette: int, rng: Generator) -> None:
    """One fruit with its sprouts; a bunch is many bodies under one palette."""
    for x, y, scale, angle in fruit.arrangement(rng):
        px, py = pose.at(x, y)
        turn = _in_depth(fruit.body.tilt, rng)
        body = Pose(px, py, pose.scale * scale, pose.angle + angle, turn)
        sprouts = [(sprout, _sprouting(sprout, fruit.body, body, rng)) for sprout in fruit.sprouts]
        leaves = int(rng.integers(2))
        for sprout, poses in sprouts:
            for where in poses if sprout.behind else ():
                _paint(canvas, sprout.part, where, light, leaves, rng, lift=0.1)
        _paint(canvas, fruit.body, body, light, palette, rng)
        for sprout, poses in sprouts:
            for where in () if sprout.behind else poses:
                _paint(canvas, sprout.part, where, light, leaves, rng, lift=0.1)


def _sprouting(sprout: Sprout, body: Part, pose: Pose, rng: Generator) -> list[Pose]:
    """Poses of what grows from the body's top, fanned out."""
    top = body.shape.radii[0] if isinstance(body.shape, Round) else 1.0
    lean = math.atan2(float(pose.turn[1, 2]), float(pose.turn[1, 1]))
    x, y = pose.at(0, sprout.at * top * math.cos(lean) if lean > 0 else sprout.at * top)
    count = int(rng.integers(sprout.count[0], sprout.count[1] + 1))
    fan = np.linspace(-1, 1, count) if count > 1 else rng.uniform(-1, 1, count)
    poses = []
    for share in sorted(fan, key=abs, reverse=True):
        angle = pose.angle + sprout.spread * float(share) + rng.normal(0, 0.06)
        half = pose.scale * sprout.length / 2 * rng.uniform(0.85, 1.15)
        poses.append(Pose(x - math.sin(angle) * half, y - math.cos(angle) * half, half, angle))
    return poses


def _scene(fruit: Fruit, size: tuple[int, int], rng: Generator) -> Image.Image:
    """A photo as a camera would hand it over: RGB, upright."""
    long = round(math.exp(rng.uniform(math.log(size[0]), math.log(size[1]))))
    short = max(round(long / rng.choice([1, 1, 1.25, 1.33, 1.5])), 16)
    height, width = (long, short) if _chance(rng, 0.5) else (short, long)
    light = Light.sample(rng)
    background = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    canvas = np.array(background(height, width, rng) * (light.key * light.direction[2] + light.ambient), np.float32)
    palette = int(rng.integers(len(fruit.body.palettes)))
    tumble = 0.3 if fruit.upright and _chance(rng, 0.8) else 3.1
    for x, y, scale in _places(fruit, height, width, rng):
        _draw_fruit(canvas, fruit, Pose(x, y, scale * fruit.size, rng.uniform(-tumble, tumble)), light, palette, rng)
    return _develop(canvas, rng)


def _develop(canvas: Array, rng: Generator) -> Image.Image:
    """Lens and sensor: vignette, exposure, colour temperature, tone curve, noise, at times a little blur."""
    height, width = canvas.shape[:2]
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    falloff = 1 - rng.uniform(0, 0.3) * (x * x + y * y) / 2 + rng.uniform(-0.15, 0.15) * x
    warmth = rng.normal(0, 0.1)
    gains = 2 ** np.array([warmth, rng.normal(0, 0.02), -warmth]) * 2 ** rng.normal(0, 0.22)
    lit = canvas * gains.astype(np.float32) * falloff[..., None]
    tone = (1 - np.exp(-1.55 * np.maximum(lit, 0))) ** np.float32(1 / 2.2) * np.float32(1.08)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(0, 0.015))
    image = Image.fromarray((np.clip(tone + grain, 0, 1) * 255).astype(np.uint8))
    if _chance(rng, 0.3):
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.004) * max(height, width)))
    return image


_ENCODINGS = ("jpeg", "turned", "grey", "cmyk", "png", "webp")
_ENCODING_WEIGHTS = (0.78, 0.09, 0.04, 0.03, 0.03, 0.03)
_STORED = {  # how the pixels lie in a file of this EXIF orientation: a viewer turns them back
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def _encoding(label: str, split: Split, number: int) -> str:
    """How a photo is stored; without the seed, so that another seed overwrites and leaves nothing behind."""
    return str(_rng(label, split, number).choice(_ENCODINGS, p=_ENCODING_WEIGHTS))


def _encode(image: Image.Image, encoding: str, rng: Generator) -> bytes:
    buffer = BytesIO()
    quality = int(rng.integers(60, 96))
    match encoding:
        case "png":
            image.save(buffer, "PNG")
        case "webp":
            image.save(buffer, "WEBP", quality=quality)
        case "turned":
            orientation = int(rng.choice(list(_STORED)))
            exif = Image.Exif()
            exif[0x0112] = orientation
            image.transpose(_STORED[orientation]).save(buffer, "JPEG", quality=quality, exif=exif)
        case _:
            mode = {"grey": "L", "cmyk": "CMYK"}.get(encoding, "RGB")
            image.convert(mode).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _rng(*identity: object) -> Generator:
    """Random numbers that depend on nothing but ``identity``."""
    return np.random.default_rng(list(hashlib.sha256(repr(identity).encode()).digest()))


def photo_key(label: str, split: Split, number: int) -> str:
    """``Training/Apple Red/7.jpg``: where the photo belongs in the plain layout."""
    encoding = _encoding(label, split, number)
    return f"{split}/{label}/{number}.{encoding if encoding in ('png', 'webp') else 'jpg'}"


def draw(label: str, split: Split, number: int, seed: int = 0, *, size: tuple[int, int] = DEFAULT_SIZE) -> bytes:
    """The file of one photo: a pure function of its arguments (on one machine, with one version of Pillow and numpy).

    ``size`` bounds the longer side, in pixels. Raises ``FruitsError`` for a label that has no recipe.
    """
    fruit = next((fruit for fruit in FRUITS if fruit.label == label), None)
    if fruit is None:
        raise FruitsError(f"{label!r}: no recipe draws this kind; expected one of {', '.join(LABELS)}.")
    rng = _rng(seed, label, split, number)
    return _encode(_scene(fruit, size, rng), _encoding(label, split, number), rng)


def draw_broken(key: str, seed: int = 0) -> bytes:
    """The content of one file of ``BROKEN``."""
    rng = _rng(seed, key)
    if BROKEN[key] == "empty":
        return b""
    if BROKEN[key] == "not_an_image":
        return b"<!DOCTYPE html>\n<html><title>503 Service Unavailable</title><body>Try again later.</body></html>\n"
    sound = _encode(_scene(FRUITS[0], (160, 160), rng), "png" if key.endswith(".png") else "jpeg", rng)
    if BROKEN[key] == "truncated":
        return sound[: len(sound) // 2]
    if BROKEN[key] == "corrupt":
        middle = len(sound) // 2
        return sound[:middle] + bytes(byte ^ 0xFF for byte in sound[middle : middle + 64]) + sound[middle + 64 :]
    return sound


@dataclass(frozen=True)
class _File:
    """A file to write; ``content`` is a partial of a module's function, so that a process pool can take it."""

    key: str
    content: Callable[[], bytes]


def _write(folder: Path, file: _File) -> bool:
    """Whether the file was written: one that holds the same bytes is left alone, with its time of modification."""
    path, content = folder / file.key, file.content()
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


def _write_all(folder: Path, files: Sequence[_File], workers: int) -> Iterator[bool]:
    if workers == 1:
        yield from map(partial(_write, folder), files)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_write, folder), files, chunksize=4)


def generate(
    folder: Path,
    *,
    kinds: int = len(FRUITS),
    per_kind_train: int = 24,
    per_kind_test: int = 8,
    broken: bool = True,
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    layout: Layout = "plain",
    start: date = DEFAULT_START,
    days: int = 7,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write photos of the first ``kinds`` fruits as ``Training/<label>/<n>.jpg`` and ``Test/<label>/<n>.jpg``.

    With ``layout="dated"`` a key begins with ``dt=<date>/``: photo n lies in the folder of day n modulo ``days``, and
    the broken files in the first day's, the stray one at the root. Writing again changes nothing, and a
    larger count adds photos and leaves those that are there as they are; nothing is ever deleted.

    Args:
        folder: Made where it is missing.
        kinds: How many of ``LABELS``.
        per_kind_train: Photos of each kind under ``Training``.
        per_kind_test: Photos of each kind under ``Test``.
        broken: Whether to add the files of ``BROKEN``.
        seed: Another seed, other photos under the same names.
        size: Bounds of the longer side, in pixels.
        layout: ``plain`` or ``dated``.
        start: First date of the dated layout.
        days: Dates of the dated layout.
        workers: Processes; None means one per CPU, or none beside this one where there is little to draw.
        progress: Called with the files done and the files in all.

    Returns:
        How many files were written, that is: were missing or different.

    Raises:
        FruitsError: for a count or a size out of range, or where a file cannot be written.
    """
    _check(kinds=kinds, per_kind_train=per_kind_train, per_kind_test=per_kind_test, size=size, days=days)

    def placed(key: str, day: int = 0) -> str:
        return f"dt={start + timedelta(days=day % days)}/{key}" if layout == "dated" and "/" in key else key

    counts: dict[Split, int] = {"Training": per_kind_train, "Test": per_kind_test}
    files = [
        _File(placed(photo_key(label, split, n), n), partial(draw, label, split, n, seed, size=size))
        for split, count in counts.items()
        for label in LABELS[:kinds]
        for n in range(count)
    ]
    if broken:
        files += [_File(placed(key), partial(draw_broken, key, seed)) for key in BROKEN]
    written = 0
    try:
        for done, changed in enumerate(_write_all(folder, files, workers or _workers(len(files))), start=1):
            written += changed
            if progress:
                progress(done, len(files))
    except OSError as error:
        message = f"{error.filename or folder}: cannot be written ({error.strerror}); choose another folder."
        raise FruitsError(message) from error
    return written


def _workers(files: int) -> int:
    """A second process pays only where there is more to draw than it takes to start."""
    return 1 if files < _WORTH_A_POOL else os.cpu_count() or 1


def _check(*, kinds: int, per_kind_train: int, per_kind_test: int, size: tuple[int, int], days: int) -> None:
    if not 1 <= kinds <= len(FRUITS):
        raise FruitsError(f"kinds is {kinds}: expected 1 to {len(FRUITS)}, as many as there are recipes.")
    if per_kind_train < 0 or per_kind_test < 0:
        raise FruitsError(f"photos per kind are {per_kind_train} and {per_kind_test}: expected 0 or more.")
    if not _LEAST_PIXELS <= size[0] <= size[1]:
        raise FruitsError(f"size is {size}: expected least and most pixels of the longer side, from {_LEAST_PIXELS}.")
    if days < 1:
        raise FruitsError(f"days is {days}: expected 1 or more.")


def contact_sheet(photos: Path | Iterable[Path], columns: int = 8, cell: int = 160) -> Image.Image:
    """Thumbnails in rows of ``columns``, each fitted into a square of ``cell`` pixels, the name of its folder below.

    ``photos`` are files, or a folder: then the first sound photos of each of its kinds, one row of them per kind.
    """
    chosen = list(_samples(photos, columns)) if isinstance(photos, Path) else list(photos)
    caption, font = max(14, cell // 9), ImageFont.load_default(max(10, cell // 12))
    rows = math.ceil(len(chosen) / columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + caption)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, path in enumerate(chosen):
        left, top = i % columns * cell, i // columns * (cell + caption)
        with Image.open(path) as photo:
            upright = ImageOps.exif_transpose(photo).convert("RGB")
        sheet.paste(ImageOps.fit(upright, (cell - 4, cell - 4)), (left + 2, top + 2))
        pen.text((left + cell / 2, top + cell), path.parent.name, fill="black", font=font, anchor="ma")
    return sheet


def _samples(folder: Path, count: int) -> Iterator[Path]:
    """The first ``count`` photos of each kind, in the order of the kinds' names."""
    by_label: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.*"), key=lambda path: (len(path.name), path)):
        if path.stem.isdigit():
            by_label.setdefault(path.parent.name, []).append(path)
    for label in sorted(by_label):
        yield from by_label[label][:count]


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a folder of photos from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_photos.generator", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where to write; made when missing")
    parser.add_argument("--train", type=int, default=24, help="photos of each kind under Training (%(default)s)")
    parser.add_argument("--test", type=int, default=8, help="photos of each kind under Test (%(default)s)")
    parser.add_argument("--kinds", type=int, default=len(FRUITS), help="kinds of fruit (%(default)s, all)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other photos (%(default)s)")
    parser.add_argument("--no-broken", action="store_true", help="leave out the files that belong in quarantine")
    parser.add_argument("--dated", action="store_true", help="put the photos under dt=<date>/ folders")
    parser.add_argument("--start", type=date.fromisoformat, default=DEFAULT_START, help="first date (%(default)s)")
    parser.add_argument("--days", type=int, default=7, help="number of dates (%(default)s)")
    args = parser.parse_args(argv)
    try:
        written = generate(
            args.folder,
            kinds=args.kinds,
            per_kind_train=args.train,
            per_kind_test=args.test,
            broken=not args.no_broken,
            seed=args.seed,
            layout="dated" if args.dated else "plain",
            start=args.start,
            days=args.days,
            progress=_show,
        )
    except FruitsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"\n{args.folder}: {written} written, the others were there already.\n")
    return ExitCode.OK


def _show(done: int, total: int) -> None:
    if done % 16 == 0 or done == total:
        sys.stderr.write(f"\r{done} of {total} files")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
