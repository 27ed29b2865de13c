"""What covers a body: colour and relief of peel, scales, cut flesh and leaves."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator

from sample_photos.noise import Array, linear, mix, ramp, spots, waves
from sample_photos.shapes import Surface


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
        patch = 0.5 * x * rng.uniform(-1, 1) + 0.5 * y * rng.uniform(-1, 1) + self.mottle * waves(point, rng, 2.5)
        share = self.blush * rng.uniform(0.3, 1)
        second = ramp(0.7 - 1.1 * share, 1.3 - 1.1 * share, patch + 0.35)
        if self.streaks:
            lines = waves((np.cos(surface.longitude * 44), np.sin(surface.longitude * 44), y), rng, 2.5)
            second = np.clip(second + self.streaks * lines * (0.25 + second), 0, 1)
        colour = mix(colours[0], colours[1], second) * (1 + 0.06 * waves(point, rng, 6, 8))[..., None]
        return self._marked(colour, surface, rng), self._relief(surface, rng)

    def _marked(self, colour: Array, surface: Surface, rng: Generator) -> Array:
        y = surface.point[1]
        if self.dots:
            near = spots(surface.longitude * 4 * self.density + 40, y * self.density + 40, rng)
            mark = ramp(0.2, 0.05, near) * abs(self.dots)
            colour = mix(colour, linear("f3e6b8" if self.dots > 0 else "4a2c12"), mark)
        if self.bloom:
            wax = waves(surface.point, rng, 1.6) + 0.2 * waves(surface.point, rng, 5, 8)
            colour = mix(colour, linear("b9bccb"), self.bloom * ramp(-0.8, 1.3, wax))
        if self.hollow:
            colour = mix(colour, linear("6b5a2a"), 0.7 * np.exp((y - 1) * 26))
        if self.tips:
            colour = mix(colour, linear("33240f"), self.tips * ramp(0.86, 0.98, np.abs(y)))
        if self.crown:
            colour = mix(colour, linear("10121f"), self.crown * ramp(1, 0.5, self._star(surface)))
        return colour

    def _relief(self, surface: Surface, rng: Generator) -> Array:
        x, y, _ = surface.point
        relief = np.zeros_like(x)
        if self.pits:
            pores = ramp(0.45, 0.05, spots(surface.longitude * 96 + 80, y * 24 + 80, rng))
            relief -= self.pits * pores * ramp(0, 0.35, 1 - np.abs(y))
        if self.ribs:
            relief += self.ribs * np.abs(np.cos((x + 0.3 * rng.uniform(-1, 1)) * 3.4))
        if self.hollow:
            relief -= self.hollow * np.exp((y - 1) * 9)
        if self.crown:
            star = self._star(surface)
            relief += 0.05 * ramp(2.2, 1, star) - 0.1 * ramp(1, 0.5, star)
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
        second = ramp(-0.4, 1.1, waves(surface.point, rng, 1.6) + surface.y * rng.uniform(-0.8, 0.8))
        colour = mix(colours[0], colours[1], second) * (1 + 0.05 * waves(surface.point, rng, 7, 4))[..., None]
        colour = mix(colour, colours[2], self.edge * ramp(0.6, 1.0, gap))
        mark = ramp(self.dot, self.dot * 0.6, np.hypot(u + v, (u - v) * 0.55) if self.dome < 0 else centre)
        colour = mix(colour, colours[3], mark)
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
        spoke = waves((np.cos(angle * 6.28) * 9, np.sin(angle * 6.28) * 9, radius), rng, 1.4)
        wobble = radius + 0.012 * spoke
        colour = np.stack([np.interp(wobble, self.stops, colours[: len(self.stops), c]) for c in range(3)], axis=-1)
        within = ramp(self.seeds[0] * 0.8, self.seeds[0], radius) * ramp(self.seeds[1] * 1.15, self.seeds[1], radius)
        colour = colour * (1 + self.rays * spoke * ramp(0.1, 0.4, radius) * (radius < self.stops[-2]))[..., None]
        across = (radius - self.seeds[0]) / (self.seeds[1] - self.seeds[0]) * self.cells[1]
        mark = ramp(self.seed_size, self.seed_size * 0.6, spots(angle * self.cells[0] + 40, across, rng)) * within
        grain = 1 + 0.05 * waves((surface.x, surface.y, radius), rng, 14, 5)
        colour = mix(colour * grain[..., None], colours[-1], mark)
        return colour.astype(np.float32), 0.03 * mark.astype(np.float32)


@dataclass(frozen=True)
class Blade:
    """A leaf: a midrib and side veins."""

    def paint(self, surface: Surface, colours: Array, rng: Generator) -> tuple[Array, Array]:
        """See ``Texture``."""
        x, y = surface.x, surface.y
        rib = np.exp(-((x / 0.07) ** 2))
        veins = np.cos((y * 1.6 - np.abs(x) * 0.9) * 14) ** 8 * 0.35
        colour = mix(colours[0], colours[1], np.clip(0.5 + 0.5 * waves(surface.point, rng, 2), 0, 1))
        return mix(colour, colours[1] * 1.5, np.clip(rib + veins, 0, 1) * 0.6), 0.06 * np.abs(x) - 0.03 * rib
