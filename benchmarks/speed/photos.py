"""The photos that are measured: real ones where they are beside the checkout, else drawn ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal
from zlib import crc32

from sample_photos import LABELS, draw

REAL = Path(__file__).resolve().parents[3] / "shared" / "fruits"
"""`{Training,Test}/<label>/*.jpg`, 100 px."""

DRAWN = 198
SPLITS: Sequence[Literal["Training", "Test"]] = ("Training", "Training", "Training", "Test")
SMALL, MEDIUM = 100, 348


@dataclass(frozen=True)
class Photo:
    """The bytes of a JPEG photo, and its folder: split and label."""

    folder: str
    data: bytes


def photos(side: int = SMALL) -> list[Photo]:
    """Photos of so many pixels a side, of all labels and both splits, well mixed."""
    if side == SMALL and REAL.is_dir():
        paths = sorted(REAL.rglob("*.jpg"), key=lambda path: crc32(str(path.relative_to(REAL)).encode()))
        return [Photo(str(path.parent.relative_to(REAL)), path.read_bytes()) for path in paths]
    return [drawn(number, side) for number in range(DRAWN)]


def drawn(number: int, side: int) -> Photo:
    """A drawn photo; the number decides label and split."""
    label, split = LABELS[number % len(LABELS)], SPLITS[number // len(LABELS) % len(SPLITS)]
    return Photo(f"{split}/{label}", draw(label, split, number, size=(side, side)))


def objects(some: Sequence[Photo], count: int) -> Iterator[tuple[str, bytes]]:
    """So many objects by key: the photos over and over."""
    for number in range(count):
        photo = some[number % len(some)]
        yield f"{photo.folder}/{number:08d}.jpg", photo.data


def write_folder(some: Sequence[Photo], count: int, folder: Path) -> None:
    """The same objects as files of a folder."""
    for key, data in islice(objects(some, count), count):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
