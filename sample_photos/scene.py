"""One photo as a camera sees it: background, fruits, lens and sensor."""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from sample_photos.backgrounds import BACKGROUNDS
from sample_photos.noise import Array, chance
from sample_photos.recipes import Fruit, Part, Sprout
from sample_photos.shading import Light, Pose, paint_part, random_turn
from sample_photos.shapes import Round


def _places(fruit: Fruit, height: int, width: int, rng: Generator) -> list[tuple[float, float, float]]:
    """Centre and half-length in pixels of each fruit in the photo, farthest first."""
    short = min(height, width)
    if fruit.many == 1 or chance(rng, 0.5):
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
        turn = random_turn(fruit.body.tilt, rng)
        body = Pose(px, py, pose.scale * scale, pose.angle + angle, turn)
        sprouts = [(sprout, _sprouting(sprout, fruit.body, body, rng)) for sprout in fruit.sprouts]
        leaves = int(rng.integers(2))
        for sprout, poses in sprouts:
            for where in poses if sprout.behind else ():
                paint_part(canvas, sprout.part, where, light, leaves, rng, lift=0.1)
        paint_part(canvas, fruit.body, body, light, palette, rng)
        for sprout, poses in sprouts:
            for where in () if sprout.behind else poses:
                paint_part(canvas, sprout.part, where, light, leaves, rng, lift=0.1)


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


def draw_scene(fruit: Fruit, size: tuple[int, int], rng: Generator) -> Image.Image:
    """A photo as a camera would hand it over: RGB, upright."""
    long = round(math.exp(rng.uniform(math.log(size[0]), math.log(size[1]))))
    short = max(round(long / rng.choice([1, 1, 1.25, 1.33, 1.5])), 16)
    height, width = (long, short) if chance(rng, 0.5) else (short, long)
    light = Light.sample(rng)
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    canvas = np.array(background(height, width, rng) * (light.key * light.direction[2] + light.ambient), np.float32)
    palette = int(rng.integers(len(fruit.body.palettes)))
    tumble = 0.3 if fruit.upright and chance(rng, 0.8) else 3.1
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
    if chance(rng, 0.3):
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.004) * max(height, width)))
    return image
