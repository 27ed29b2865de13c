"""The bytes of one photo: its key, its encoding, and the broken files."""

import hashlib
from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.random import Generator
from PIL import Image

from fruits.errors import FruitsError
from sample_photos.recipes import FRUITS, LABELS
from sample_photos.scene import draw_scene

Split: TypeAlias = Literal["Training", "Test"]

DEFAULT_SIZE = (100, 640)
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


_ENCODINGS = ("jpeg", "turned", "grey", "cmyk", "png", "webp")
_ENCODING_WEIGHTS = (0.78, 0.09, 0.04, 0.03, 0.03, 0.03)
_STORED = {  # how the pixels lie in a file of this EXIF orientation: a viewer turns them back
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def encoding_of(label: str, split: Split, number: int) -> str:
    """How a photo is stored; without the seed, so that another seed overwrites and leaves nothing behind."""
    return str(random_numbers(label, split, number).choice(_ENCODINGS, p=_ENCODING_WEIGHTS))


def encode(image: Image.Image, encoding: str, rng: Generator) -> bytes:
    """The file of an image in this encoding; ``rng`` chooses quality and orientation."""
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


def random_numbers(*identity: object) -> Generator:
    """Random numbers that depend on nothing but ``identity``."""
    return np.random.default_rng(list(hashlib.sha256(repr(identity).encode()).digest()))


def photo_key(label: str, split: Split, number: int) -> str:
    """``Training/Apple Red/7.jpg``: where the photo belongs in the plain layout."""
    encoding = encoding_of(label, split, number)
    return f"{split}/{label}/{number}.{encoding if encoding in ('png', 'webp') else 'jpg'}"


def draw(label: str, split: Split, number: int, seed: int = 0, *, size: tuple[int, int] = DEFAULT_SIZE) -> bytes:
    """The file of one photo: a pure function of its arguments (on one machine, with one version of Pillow and numpy).

    ``size`` bounds the longer side, in pixels. Raises ``FruitsError`` for a label that has no recipe.
    """
    fruit = next((fruit for fruit in FRUITS if fruit.label == label), None)
    if fruit is None:
        raise FruitsError(f"{label!r}: no recipe draws this kind; expected one of {', '.join(LABELS)}.")
    rng = random_numbers(seed, label, split, number)
    return encode(draw_scene(fruit, size, rng), encoding_of(label, split, number), rng)


def draw_broken(key: str, seed: int = 0) -> bytes:
    """The content of one file of ``BROKEN``."""
    rng = random_numbers(seed, key)
    if BROKEN[key] == "empty":
        return b""
    if BROKEN[key] == "not_an_image":
        return b"<!DOCTYPE html>\n<html><title>503 Service Unavailable</title><body>Try again later.</body></html>\n"
    sound = encode(draw_scene(FRUITS[0], (160, 160), rng), "png" if key.endswith(".png") else "jpeg", rng)
    if BROKEN[key] == "truncated":
        return sound[: len(sound) // 2]
    if BROKEN[key] == "corrupt":
        middle = len(sound) // 2
        return sound[:middle] + bytes(byte ^ 0xFF for byte in sound[middle : middle + 64]) + sound[middle + 64 :]
    return sound
