"""Bodies in a pose and a light, painted with their shadows into a picture."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from sample_photos.noise import Array, Vector, parse_palette
from sample_photos.recipes import Part
from sample_photos.shapes import Shape, unit


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


def random_turn(tilt: float, rng: Generator) -> Array:
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


def paint_part(
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

    colours = parse_palette(part.palettes[palette % len(part.palettes)])
    albedo, relief = part.texture.paint(surface, colours * rng.uniform(0.9, 1.1, (1, 3)).astype(np.float32), rng)
    c, s = math.cos(pose.angle), math.sin(pose.angle)
    down, across = (g * np.float32(pose.scale) for g in np.gradient(relief))
    slope = (c * across - s * down, -s * across - c * down)
    nx, ny, nz = unit(surface.normal[0] - slope[0], surface.normal[1] - slope[1], surface.normal[2])
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
