"""Outlines of bodies and their inflated surfaces: a ball-like body, a bent rod, a slice."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from sample_photos.noise import Array, Vector, ramp


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
        return Surface(u, v, z, level, unit(u * steep, v * steep, z))

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
        return Surface(across, along, z, level, unit((x - radius) * outward, y * outward, z))


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
        rim = ramp(0.97, 1, level) * 0.7
        flat = np.ones_like(u)
        return Surface(u, v, flat, level, unit(np.sign(u) * rim, -rim, flat))


def unit(x: Array, y: Array, z: Array) -> Vector:
    """The vector, scaled to length 1."""
    length = np.sqrt(x * x + y * y + z * z) + 1e-6
    return x / length, y / length, z / length
