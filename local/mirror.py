"""Mirror a folder of photos into the bucket: upload new and changed photos, remove those that are gone."""

import hashlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fruits.errors import ExitCode, FruitsError
from fruits.photos.ignore import FOLDER_MARKER, IgnoreRules
from fruits.photos.listing import list_objects
from fruits.settings import Settings
from fruits.stores import photo_store, remove_files, write_bytes
from local.folder import Folder, read_folder, unreadable

_THREADS = 16


@dataclass(frozen=True)
class Mirrored:
    """How many objects were uploaded, removed and left as they were, and what the folder holds."""

    uploaded: int
    removed: int
    unchanged: int
    folder: Folder


def mirror(folder: Path, settings: Settings, report: Callable[[int, int], None], *, remove: bool = True) -> Mirrored:
    """Make the bucket's prefix hold exactly the photos of ``folder``; ``report`` is called with (done, total).

    With ``remove=False`` other objects stay.

    Raises:
        FruitsError: when the folder does not exist or holds no photo at all: an empty folder would empty the bucket;
            when the bucket can't be listed or written. Nothing is removed then.
    """
    found = read_folder(folder, settings)
    photos, ignore = found.photos, IgnoreRules.of(settings)
    objects = {
        item.key: item for item in list_objects(settings, settings.prefix) if ignore.rule_of(item.key) != FOLDER_MARKER
    }
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
    return Mirrored(uploaded, len(gone), len(photos) - uploaded, found)


def _read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise unreadable(photo, error) from error


def main(folder: str) -> int:
    """Upload the photos of ``folder`` into the bucket of the settings, and print how many; returns an exit code."""
    try:
        done = mirror(Path(folder), Settings.load(), lambda *_: None, remove=False)
    except FruitsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"bucket: {done.uploaded} photos uploaded, {done.unchanged} were there")
    for line in done.folder.remarks():
        print(line)
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
