"""The pictures that integer backbones are calibrated on: drawn by code from hashes, the same on every machine.

The range of each layer's values decides how its numbers are rounded, so the pictures are a part of a backbone's
identity. They depend on nothing but the network's input size: not on photos of a lake, and not on a random generator.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fruits.backbones.card import Calibration, Preprocessing, sha256

NAME = "colour-grids-1"
"""Name and version of the set. Other pictures need another version: the name stands in cards."""

_IMAGES = 100
_SIDES = (1, 2, 3, 5, 8, 14, 28, 56)


def pictures(size: Preprocessing) -> NDArray[np.uint8]:
    """Black, white and random colour grids, coarse to fine and smoothly enlarged: RGB ``(n, height, width, 3)``."""
    plain = [np.full((size.height, size.width, 3), level, np.uint8) for level in (0, 255)]
    grids = [_colour_grid(number, size) for number in range(_IMAGES - len(plain))]
    return np.stack(plain + grids)


def described(pixels: NDArray[np.uint8]) -> Calibration:
    """What a card says about these pictures."""
    return Calibration(NAME, len(pixels), sha256(pixels.tobytes()))


def _colour_grid(number: int, size: Preprocessing) -> NDArray[np.uint8]:
    side = _SIDES[number % len(_SIDES)]
    values = hashlib.shake_256(f"{NAME} {number}".encode()).digest(side * side * 3)
    grid = Image.frombytes("RGB", (side, side), values)
    return np.asarray(grid.resize((size.width, size.height), Image.Resampling.BILINEAR))
