"""Mirror a folder of photos into the bucket: upload new and changed photos, remove those that are gone."""

import hashlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fruits.errors import ExitCode, FruitsError
from fruits.photos.listing import list_objects
from fruits.settings import Settings
from fruits.stores import photo_store, remove_files, write_bytes

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mpo"})
_THREADS = 16
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Mirrored:
    """How many objects were uploaded, removed and left as they were, and which files are no photos."""

    uploaded: int
    removed: int
    unchanged: int
    skipped: tuple[str, ...]


def mirror(folder: Path, settings: Settings, report: Callable[[int, int], None], *, remove: bool = True) -> Mirrored:
    """Make the bucket's prefix hold exactly the photos of ``folder``; ``report`` is called with (done, total).

    With ``remove=False`` other objects stay.

    Raises:
        FruitsError: when the folder does not exist or holds no photo at all: an empty folder would empty the bucket;
            when the bucket can't be listed or written. Nothing is removed then.
    """
    files = _files(folder)
    photos = {f"{settings.prefix}{name}": path for name, path in files.items() if _is_photo(name)}
    skipped = tuple(name for name in files if not _is_photo(name))
    if not photos:
        raise FruitsError(
            f"{folder}: no photos in it ({len(files)} other files); expected files such as <label>/<file>.jpg, "
            f"of {', '.join(sorted(SUFFIXES))}"
        )
    objects = {item.key: item for item in list_objects(settings, settings.prefix)}
    store = photo_store(settings)

    def upload(key: str) -> bool:
        data = _read(photos[key])
        known = objects.get(key)
        if known and known.size == len(data) and known.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return False
        write_bytes(store, key, data, one_part=True)  # so that the ETag is the content's MD5
        return True

    uploaded = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, was_uploaded in enumerate(pool.map(upload, photos), start=1):
            uploaded += was_uploaded
            report(done, len(photos))
    gone = [key for key in objects if key not in photos] if remove else []
    remove_files(store, *gone)
    return Mirrored(uploaded, len(gone), len(photos) - uploaded, skipped)


def _files(folder: Path) -> dict[str, Path]:
    """All files of a folder, by their path in it, in order."""

    def unreadable(error: OSError) -> NoReturn:
        raise FruitsError(f"{error.filename}: {error.strerror}; make it readable, or move it away") from error

    if not folder.is_dir():
        raise FruitsError(f"{folder}: no such folder; IMAGES expects a folder with photos as <label>/<file>")
    paths = (Path(place) / name for place, _, names in os.walk(folder, onerror=unreadable) for name in names)
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}


def _read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise FruitsError(f"{photo}: {error.strerror}; make it readable, or move it away") from error


def _is_photo(name: str) -> bool:
    """Whether a file name has a photo's suffix, and can be an object key."""
    return Path(name).suffix.lower() in SUFFIXES and name.isprintable()


def main(folder: str) -> int:
    """Upload the photos of ``folder`` into the bucket of the settings, and print how many; returns an exit code."""
    try:
        done = mirror(Path(folder), Settings.load(), lambda *_: None, remove=False)
    except FruitsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"bucket: {done.uploaded} photos uploaded, {done.unchanged} were there")
    if done.skipped:
        more = f" and {len(done.skipped) - _MOST_SHOWN} more" if len(done.skipped) > _MOST_SHOWN else ""
        print(f"no photos, left out: {', '.join(done.skipped[:_MOST_SHOWN])}{more}")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
