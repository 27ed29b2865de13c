"""A full disk, as an error that names the folders and says what to do.

Who meets a full disk seldom says where: Spark, PyArrow and SQLite have no path in their messages. So the error names
each folder that a task writes to on this machine, with the room that is left there.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fruits.errors import FruitsError
from fruits.settings import Settings

_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_IN_TEXT = re.compile(r"No space left on device|Disk quota exceeded|database or disk is full")


@contextmanager
def full_disks_explained(settings: Settings, temporary: Sequence[str] = ()) -> Iterator[None]:
    """Raise errors of a full disk as a ``FruitsError``; all other errors pass unchanged.

    Args:
        settings: The settings, which name lake and catalog.
        temporary: Folders of temporary files; by default those that the environment names.
    """
    try:
        yield
    except FruitsError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise FruitsError(_message(settings, temporary or temporary_folders())) from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, by its number or by the words of the system, SQLite or Java."""
    return getattr(error, "errno", None) in _ERRNOS or bool(_IN_TEXT.search(str(error)))


def advice(error: BaseException) -> str:
    """What to do about an error of a lake on this machine's disk."""
    return "make room on that disk" if is_full(error) else "check FRUITS_LAKE and who may write there"


def temporary_folders(configured: str | None = None) -> tuple[str, ...]:
    """Where Spark puts temporary files: ``SPARK_LOCAL_DIRS``, or else what is ``configured``, or the system's."""
    return tuple((os.environ.get("SPARK_LOCAL_DIRS") or configured or tempfile.gettempdir()).split(","))


def _message(settings: Settings, temporary: Sequence[str]) -> str:
    catalog = settings.catalog_uri.get_secret_value()
    folders = {
        **({urlsplit(settings.lake).path: "the lake"} if settings.lake_kind == "file" else {}),
        **({str(Path(urlsplit(catalog).path[1:]).parent): "the catalog"} if settings.catalog_kind == "sqlite" else {}),
        **dict.fromkeys(temporary, "temporary files"),
    }
    places = sorted((_free(Path(unquote(path))), unquote(path), name) for path, name in folders.items())
    rooms = "; ".join(f"{name} in {path}, {free / 2**20:,.1f} MB free" for free, path, name in places)
    return (
        f"a disk is full. This machine has {rooms}. Make room there, or move the lake (FRUITS_LAKE) or temporary files "
        "(TMPDIR, Spark's by SPARK_LOCAL_DIRS) to a larger disk; on a cluster, look at the disks of its workers too. "
        "Then clear the failed task"
    )


def _free(path: Path) -> int:
    """Bytes that are left on the disk of a folder, or of the nearest folder above it that is there."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
