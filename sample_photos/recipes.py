"""What each kind of fruit looks like: the table ``FRUITS``."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from numpy.random import Generator

from sample_photos.shapes import Bent, Round, Shape, Wedge
from sample_photos.textures import Blade, CutFace, Scales, Skin, Texture


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


LEAF = Part(
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
_LEAFLET = Sprout(LEAF, count=(0, 1), length=0.7, spread=1.1, at=0.95)

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
        (Sprout(LEAF, count=(0, 2), length=0.75, spread=1.2, at=0.98),),
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
            Sprout(LEAF, count=(6, 9), length=0.55, spread=1.75, at=0.9),
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
        (Sprout(LEAF, count=(0, 2), length=0.9, spread=1.2, at=0.95),),
    ),
)
LABELS: tuple[str, ...] = tuple(fruit.label for fruit in FRUITS)
