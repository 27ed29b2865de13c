"""What lies behind the fruits: boards, cloth, foliage, a market."""

import math
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from sample_photos.noise import Array, chance, clouds, enlarged, linear, mix, parse_palette, ramp
from sample_photos.recipes import LEAF
from sample_photos.shading import Light, Pose, paint_part

_TONES = "f4f1ea d9d4c7 8fa3ad 3f4a52 b7c4a1 c9a07a 7a8f6a e3c9c0 20242a ece6dc 8a4a42 b8a060 5a7090"
_WOODS = "a87b4f 7a5230 c8a273 5a4634 8f8274"


def _tone(rng: Generator, tones: str = _TONES) -> Array:
    palette = parse_palette(tones)
    tone: Array = palette[rng.integers(len(palette))] * rng.uniform(0.8, 1.2, 3).astype(np.float32)
    return tone


def _plain(height: int, width: int, rng: Generator) -> Array:
    return _tone(rng) * (0.94 + 0.12 * clouds(rng, height, width, (4, 4)))[..., None]


def _gradient(height: int, width: int, rng: Generator) -> Array:
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    angle = rng.uniform(0, 6.3)
    return mix(_tone(rng), _tone(rng), ramp(-1, 1, (x * math.cos(angle) + y * math.sin(angle)).astype(np.float32)))


def _planks(height: int, width: int, rng: Generator) -> Array:
    count = int(rng.integers(3, 8))
    across = np.linspace(0, count, height, dtype=np.float32, endpoint=False)
    plank = across.astype(int)
    grain = clouds(rng, height, width, (60, 4)) * 0.35 + clouds(rng, height, width, (14, 3)) * 0.35
    tint = rng.uniform(0.75, 1.1, count)[plank].astype(np.float32)[:, None] * (0.6 + grain)
    gap = 1 - 0.75 * ramp(0.46, 0.5, np.abs(across - plank - 0.5))
    board = _tone(rng, _WOODS) * (tint * gap[:, None])[..., None]
    return np.ascontiguousarray(board)


def _cloth(height: int, width: int, rng: Generator) -> Array:
    thread = max(height, width) / rng.uniform(40, 110)
    x, y = np.arange(width) / thread * np.pi, np.arange(height)[:, None] / thread * np.pi
    weave = 0.85 + 0.15 * np.where(np.sin(x) * np.sin(y) > 0, np.abs(np.sin(x)), np.abs(np.sin(y)))
    folds = 0.75 + 0.5 * clouds(rng, height, width, (3, 5))
    cloth = np.broadcast_to(_tone(rng), (height, width, 3))
    if chance(rng, 0.5):
        check = (np.floor(x / np.pi / 9) % 2 + np.floor(y / np.pi / 9) % 2) / 2
        cloth = mix(cloth, _tone(rng), check)
    return cloth * (weave * folds)[..., None]


def _foliage(height: int, width: int, rng: Generator) -> Array:
    """Leaves a little behind the plane of focus: half the pixels do, at a quarter of the cost."""
    down, across = height // 2, width // 2
    canvas = np.asarray(linear("1c2a14") * (0.5 + clouds(rng, down, across, (6, 6)))[..., None], np.float32)
    light = replace(Light.sample(rng), hardness=0.6)
    for _ in range(26):
        half = min(down, across) * rng.uniform(0.1, 0.22)
        pose = Pose(rng.uniform(0, across), rng.uniform(0, down), half, rng.uniform(0, 6.3))
        paint_part(canvas, LEAF, pose, light, int(rng.integers(2)), rng)
    return _out_of_focus(canvas, height, width)


def _shelf(height: int, width: int, rng: Generator) -> Array:
    edge = int(height * rng.uniform(0.45, 0.75))
    wall, board = _plain(height, width, rng), _planks(height, width, rng)
    depth = np.arange(height)[:, None] - edge
    lip = 1 - 0.45 * np.exp(-np.abs(depth) / (0.05 * height))
    return np.where((depth > 0)[..., None], board, wall) * lip[..., None]


def _market(height: int, width: int, rng: Generator) -> Array:
    """Other produce, far out of focus."""
    colours = parse_palette("8f3a2e c08a4a c9b566 76905a 4a5f3c 4f3a4a cfc6b0 7a5f48")
    crates = colours[rng.integers(len(colours), size=(int(rng.integers(3, 7)), int(rng.integers(3, 7))))]
    blurred: Array = _out_of_focus(crates, height, width) * rng.uniform(0.4, 1)
    return blurred


def _out_of_focus(canvas: Array, height: int, width: int) -> Array:
    """A coarse picture, shape ``(h, w, 3)``, enlarged to a full one."""
    layers = [enlarged(np.ascontiguousarray(canvas[..., channel]), height, width) for channel in range(3)]
    full: Array = np.clip(np.stack(layers, axis=-1), 0.01, 1)
    return full


BACKGROUNDS = (_plain, _gradient, _planks, _cloth, _foliage, _shelf, _market)
