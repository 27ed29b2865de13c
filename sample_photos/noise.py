"""Colours and random patterns: what textures and backgrounds are made of."""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Array: TypeAlias = NDArray[Any]
Vector: TypeAlias = tuple[Array, Array, Array]


def linear(colour: str) -> Array:
    """Linear-light RGB, shape ``(3,)``, of an sRGB colour in hexadecimal."""
    channels = np.frombuffer(bytes.fromhex(colour), np.uint8).astype(np.float32) / 255
    linear: Array = channels ** np.float32(2.2)
    return linear


def parse_palette(colours: str) -> Array:
    """Linear-light RGB, shape ``(n, 3)``, of colours in hexadecimal, separated by blanks."""
    return np.stack([linear(colour) for colour in colours.split()])


def ramp(low: float, high: float, x: Array) -> Array:
    """Smoothstep: 0 at ``low`` and beyond, 1 at ``high`` and beyond; ``low`` may be the larger."""
    t: Array = np.clip((x - low) / (high - low), 0, 1)
    smooth: Array = t * t * (3 - 2 * t)
    return smooth


def mix(a: Array, b: Array, t: Array) -> Array:
    """Colours from ``a`` (t = 0) to ``b`` (t = 1); ``t`` has shape ``(h, w)``."""
    mixed: Array = a + (b - a) * t[..., None]
    return mixed


def waves(point: "Vector", rng: Generator, frequency: float, count: int = 6) -> Array:
    """Smooth solid noise, about -1 to 1: a sum of plane waves in random directions."""
    total = np.zeros_like(point[0])
    for _ in range(count):
        x, y, z = rng.normal(0, frequency, 3).astype(np.float32)
        total += np.sin(x * point[0] + y * point[1] + z * point[2] + np.float32(rng.uniform(0, 6.3)))
    return total / math.sqrt(count)


def chance(rng: Generator, share: float) -> bool:
    """True in this share of the draws."""
    return bool(rng.random() < share)


def clouds(rng: Generator, height: int, width: int, cells: tuple[int, int]) -> Array:
    """Smooth flat noise, 0 to 1, shape ``(height, width)``, with ``cells`` bumps down and across."""
    return enlarged(rng.random(cells, dtype=np.float32), height, width)


def enlarged(small: Array, height: int, width: int) -> Array:
    """One channel, shape ``(h, w)``, smoothly enlarged."""
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def spots(u: Array, v: Array, rng: Generator) -> Array:
    """Distance to the dot of each unit cell, somewhere in its middle; a third of the cells have none."""
    table = rng.uniform(0.2, 0.8, (32, 32, 2)).astype(np.float32)
    table[rng.choice([True, False], (32, 32), p=[0.33, 0.67])] = 9  # far away
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    centre = table[row % 32, column % 32]
    distance: Array = np.hypot(u - column - centre[..., 0], v - row - centre[..., 1])
    return distance
