"""Files and folders that an export writes: complete, or not there at all."""

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fruits.errors import FruitsError

ForeignFile = Callable[[Path], str | None]
"""The name of something in a folder that no export wrote; None without such, so that another export may replace it."""


@contextmanager
def new_file(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path to write a file to. The file gets the name ``target`` at the end; after an error the file is removed.

    Raises:
        FruitsError: when there can be no such file, ``target`` exists and may not be replaced, or the disk refuses.
    """
    _check_file(target, overwrite=overwrite)
    part = _part_of(target)
    with _disk_errors_explained(target):
        try:
            yield part
            _check_file(target, overwrite=overwrite)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, *, overwrite: bool, foreign_file: ForeignFile) -> Iterator[Path]:
    """A new folder to write files to. The folder gets the name ``target`` at the end; after an error it is removed.

    A folder of that name is only replaced if ``foreign_file`` finds nothing in it, so that nobody's own files are lost.

    Raises:
        FruitsError: when there can be no such folder, ``target`` exists and may not be replaced, or the disk refuses.
    """
    target = target.resolve()  # the folder itself is renamed, not a link to it
    _check_folder(target, foreign_file, overwrite=overwrite)
    part = _part_of(target)
    with _disk_errors_explained(target):
        try:
            part.mkdir()
            yield part
            _check_folder(target, foreign_file, overwrite=overwrite)
            _put_folder(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _check_file(target: Path, *, overwrite: bool) -> None:
    if target.is_dir():
        raise FruitsError(f"{target}: is a folder; name the file to write in it")
    _check_parent(target)
    if target.exists() and not overwrite:
        raise FruitsError(f"{target}: exists already; choose another name, or allow to overwrite the file")


def _check_folder(target: Path, foreign_file: ForeignFile, *, overwrite: bool) -> None:
    _check_parent(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise FruitsError(f"{target}: is a file; name a folder that does not exist yet")
    if not overwrite:
        raise FruitsError(f"{target}: exists already; choose another name, or allow to overwrite the folder")
    foreign = foreign_file(target)
    if foreign is not None:
        raise FruitsError(
            f"{target}: holds {foreign!r}, which no export wrote, so the folder is not replaced; name another folder"
        )


def _check_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise FruitsError(f"{target}: there is no folder {target.parent}; make it first")


def _part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")


def _put_folder(part: Path, target: Path) -> None:
    """Rename ``part`` to ``target``; a folder of that name goes aside first, and back again when that fails."""
    aside = part.with_suffix(".old")
    if not target.exists():
        part.rename(target)
        return
    target.rename(aside)
    try:
        part.rename(target)
    except BaseException:
        with suppress(OSError):
            aside.rename(target)
        raise
    shutil.rmtree(aside)


@contextmanager
def _disk_errors_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FruitsError(
            f"{target}: not written: {error}; see who may write there, and how much room there is"
        ) from error
