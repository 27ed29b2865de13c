"""A folder of photos, and a sheet that shows them."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from fruits.errors import FruitsError
from sample_photos.files import BROKEN, DEFAULT_SIZE, Split, draw, draw_broken, photo_key
from sample_photos.recipes import FRUITS, LABELS

Layout: TypeAlias = Literal["plain", "dated"]

DEFAULT_START = date(2026, 11, 20)
_LEAST_PIXELS = 32
_WORTH_A_POOL = 100  # files


@dataclass(frozen=True)
class _File:
    """A file to write; ``content`` is a partial of a module's function, so that a process pool can take it."""

    key: str
    content: Callable[[], bytes]


def _write(folder: Path, file: _File) -> bool:
    """Whether the file was written: one that holds the same bytes is left alone, with its time of modification."""
    path, content = folder / file.key, file.content()
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return True


def _write_all(folder: Path, files: Sequence[_File], workers: int) -> Iterator[bool]:
    if workers == 1:
        yield from map(partial(_write, folder), files)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_write, folder), files, chunksize=4)


def generate(
    folder: Path,
    *,
    kinds: int = len(FRUITS),
    per_kind_train: int = 24,
    per_kind_test: int = 8,
    broken: bool = True,
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    layout: Layout = "plain",
    start: date = DEFAULT_START,
    days: int = 7,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write photos of the first ``kinds`` fruits as ``Training/<label>/<n>.jpg`` and ``Test/<label>/<n>.jpg``.

    With ``layout="dated"`` a key begins with ``dt=<date>/``: photo n lies in the folder of day n modulo ``days``, and
    the broken files in the first day's, the stray one at the root. Writing again changes nothing, and a
    larger count adds photos and leaves those that are there as they are; nothing is ever deleted.

    Args:
        folder: Made where it is missing.
        kinds: How many of ``LABELS``.
        per_kind_train: Photos of each kind under ``Training``.
        per_kind_test: Photos of each kind under ``Test``.
        broken: Whether to add the files of ``BROKEN``.
        seed: Another seed, other photos under the same names.
        size: Bounds of the longer side, in pixels.
        layout: ``plain`` or ``dated``.
        start: First date of the dated layout.
        days: Dates of the dated layout.
        workers: Processes; None means one per CPU, or none beside this one where there is little to draw.
        progress: Called with the files done and the files in all.

    Returns:
        How many files were written, that is: were missing or different.

    Raises:
        FruitsError: for a count or a size out of range, or where a file cannot be written.
    """
    _check(kinds=kinds, per_kind_train=per_kind_train, per_kind_test=per_kind_test, size=size, days=days)

    def placed(key: str, day: int = 0) -> str:
        return f"dt={start + timedelta(days=day % days)}/{key}" if layout == "dated" and "/" in key else key

    counts: dict[Split, int] = {"Training": per_kind_train, "Test": per_kind_test}
    files = [
        _File(placed(photo_key(label, split, n), n), partial(draw, label, split, n, seed, size=size))
        for split, count in counts.items()
        for label in LABELS[:kinds]
        for n in range(count)
    ]
    if broken:
        files += [_File(placed(key), partial(draw_broken, key, seed)) for key in BROKEN]
    written = 0
    try:
        for done, changed in enumerate(_write_all(folder, files, workers or _workers(len(files))), start=1):
            written += changed
            if progress:
                progress(done, len(files))
    except OSError as error:
        message = f"{error.filename or folder}: cannot be written ({error.strerror}); choose another folder."
        raise FruitsError(message) from error
    return written


def _workers(files: int) -> int:
    """A second process pays only where there is more to draw than it takes to start."""
    return 1 if files < _WORTH_A_POOL else os.cpu_count() or 1


def _check(*, kinds: int, per_kind_train: int, per_kind_test: int, size: tuple[int, int], days: int) -> None:
    if not 1 <= kinds <= len(FRUITS):
        raise FruitsError(f"kinds is {kinds}: expected 1 to {len(FRUITS)}, as many as there are recipes.")
    if per_kind_train < 0 or per_kind_test < 0:
        raise FruitsError(f"photos per kind are {per_kind_train} and {per_kind_test}: expected 0 or more.")
    if not _LEAST_PIXELS <= size[0] <= size[1]:
        raise FruitsError(f"size is {size}: expected least and most pixels of the longer side, from {_LEAST_PIXELS}.")
    if days < 1:
        raise FruitsError(f"days is {days}: expected 1 or more.")


def contact_sheet(photos: Path | Iterable[Path], columns: int = 8, cell: int = 160) -> Image.Image:
    """Thumbnails in rows of ``columns``, each fitted into a square of ``cell`` pixels, the name of its folder below.

    ``photos`` are files, or a folder: then the first sound photos of each of its kinds, one row of them per kind.
    """
    chosen = list(_samples(photos, columns)) if isinstance(photos, Path) else list(photos)
    caption, font = max(14, cell // 9), ImageFont.load_default(max(10, cell // 12))
    rows = math.ceil(len(chosen) / columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + caption)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, path in enumerate(chosen):
        left, top = i % columns * cell, i // columns * (cell + caption)
        with Image.open(path) as photo:
            upright = ImageOps.exif_transpose(photo).convert("RGB")
        sheet.paste(ImageOps.fit(upright, (cell - 4, cell - 4)), (left + 2, top + 2))
        pen.text((left + cell / 2, top + cell), path.parent.name, fill="black", font=font, anchor="ma")
    return sheet


def _samples(folder: Path, count: int) -> Iterator[Path]:
    """The first ``count`` photos of each kind, in the order of the kinds' names."""
    by_label: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.*"), key=lambda path: (len(path.name), path)):
        if path.stem.isdigit():
            by_label.setdefault(path.parent.name, []).append(path)
    for label in sorted(by_label):
        yield from by_label[label][:count]
