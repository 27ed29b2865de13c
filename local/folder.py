"""A person's folder of photos: which files are photos, under which keys, and why every other file is left out."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fruits.errors import FruitsError
from fruits.photos.decode import announced_format
from fruits.photos.ignore import FOLDER_MARKER, MEANINGS, Names, meaning_of
from fruits.photos.keys import FIT_SPLIT, KeyRules, spelled, twin_labels
from fruits.photos.quarantine import Reason
from fruits.settings import Settings
from fruits.text import readable

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".webp"),
        *(".gif", ".bmp", ".dib", ".tif", ".tiff", ".mpo", ".heic", ".heif", ".avif"),
    }
)
"""Files with such a suffix are photos, whatever they hold: a broken photo must show up in quarantine."""

LAYOUT = "[Training|Test]/<label>/<file>"

LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        **MEANINGS,
        "lfs_pointer": "Git LFS keeps the photo elsewhere, and the file only points to it: run `git lfs pull`.",
        "format_not_read": "An image of a format that is not read, such as JPEG XL or RAW: convert it to JPEG or PNG.",
        "archive": "A packed folder: unpack it.",
        "video": "A film: save single pictures of it as photos.",
        "no_photo": "Neither the name nor the first bytes are those of a photo.",
        "name_not_utf8": "The name is no UTF-8, so it can't be an object key: rename the file (`convmv` renames many).",
        "name_not_a_key": "The name has control characters, or the path has more than 1,024 bytes: rename the file.",
        "same_key": "Another file has the same object key, once a backslash is read as a folder: rename one of them.",
        "broken_link": "A symbolic link to a file that is not there: copy the photo, or correct the link.",
        "link_in_a_circle": "A symbolic link to a folder that contains the link, or that another link has led to: its "
        "photos are taken there.",
        "no_file": "Neither a file nor a folder: a pipe, a socket or a device.",
    }
)
"""Why a file of the folder is left out, and what to do about it. Rules of FRUITS_IGNORE are reasons, too."""

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp")
_FORMATS_NOT_READ = (
    *(".jp2", ".j2k", ".jxl", ".svg", ".psd", ".ico", ".eps", ".ai"),
    *(".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of a BMP's second header: `BM` alone begins many texts
_LFS = b"version https://git-lfs"
HEAD = 64  # bytes that tell a photo from other files
_LONGEST_KEY = 1_024
_NO_KEY = re.compile(r"[\x00-\x1f\x7f\ufffe\uffff]")  # XML, in which S3 lists keys, has no way to say some of these
_MOST_LABELS = 6


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        root: The folder.
        photos: The photos, by object key, in the order of the keys.
        left_out: Names of files and folders that are no photos, by reason: a code of ``LEFT_OUT`` or a pattern.
        empty: Keys of photos of 0 bytes.
        refused: Keys of photos that name no label that is accepted, by the reason of their quarantine.
        labels: How many photos each label has.
        splits: How many photos each split has.
    """

    root: Path
    photos: Mapping[str, Path]
    left_out: Mapping[str, Names]
    empty: Names
    refused: Mapping[Reason, Names]
    labels: Mapping[str, int]
    splits: Mapping[str, int]

    def remarks(self) -> Iterator[str]:
        """What a person should know about the folder, a line each."""
        if self.labels:
            first = ", ".join(readable(label) for label in sorted(self.labels)[:_MOST_LABELS])
            more = f" and {len(self.labels) - _MOST_LABELS:,} more" if len(self.labels) > _MOST_LABELS else ""
            splits = ", ".join(
                f"{count:,} {split} ({'fitted' if split == FIT_SPLIT else 'held out'})"
                for split, count in sorted(self.splits.items())
            )
            yield f"labels: {first}{more}; photos: {splits}"
        for labels in twin_labels(self.labels):
            yield f"the labels {spelled(labels)} differ in case, form or spaces only: are they one label?"
        for rejection, keys in self.refused.items():
            yield f"will be quarantined as {rejection} {keys}. {rejection.description} Expected {LAYOUT}"
        if self.empty.count:
            yield (
                f"will be quarantined as empty {self.empty}. Files of 0 bytes are broken copies, or stand for photos "
                "that only the cloud has: copy or download them again"
            )
        for reason, names in self.left_out.items():
            yield f"left out as {reason} {names}. {LEFT_OUT.get(reason) or meaning_of(reason)}"


def read_folder(root: Path, settings: Settings) -> Folder:
    """The photos of a folder and everything else in it. Symbolic links are followed, but never in a circle.

    A backslash in a name is read as a folder: programs that unpack a Windows zip on Linux leave such names.

    Raises:
        FruitsError: when there is no such folder, something can't be read, or there is no photo with a label in it.
    """
    if not root.is_dir():
        found = "a file, no folder" if root.exists() else "no such folder"
        raise FruitsError(f"{root}: {found}; IMAGES expects a folder with photos as <label>/<file>")
    rules = KeyRules.of(settings)
    photos: dict[str, Path] = {}
    others: dict[str, list[str]] = {}
    with_reason = _Walk(root, settings.prefix, rules).files()
    for name, path, known in sorted(with_reason, key=lambda found: os.fsencode(found[0])):
        key = f"{settings.prefix}{_key_of(name)}"
        taken = "same_key" if key in photos else None
        reason = known or _reason_of_name(key, rules) or _reason_of_content(path) or taken
        if reason is None:
            photos[key] = path
        else:
            others.setdefault(reason, []).append(name)
    left_out = {reason: Names.of(names) for reason, names in sorted(others.items())}
    folder = _judged(root, photos, left_out, rules)
    if not folder.labels or folder.empty.count == len(photos):
        raise FruitsError("\n  ".join((_why_useless(folder), *folder.remarks())))
    return folder


def _why_useless(folder: Folder) -> str:
    if folder.photos and folder.empty.count == len(folder.photos):
        return f"{folder.root}: all {len(folder.photos):,} photos have 0 bytes; copy or download them again"
    if folder.photos:
        return (
            f"{folder.root}: none of {len(folder.photos):,} photos is in the folder of a label; expected {LAYOUT}: "
            "sort the photos into a folder for each label, or set FRUITS_KEY_PATTERN to a pattern that reads the label"
        )
    others = sum(names.count for names in folder.left_out.values())
    files = "file" if others == 1 else "files"
    return (
        f"{folder.root}: no photos in it ({others:,} other {files}); expected files such as <label>/<file>.jpg, of "
        f"{', '.join(sorted(SUFFIXES))}"
    )


def _judged(root: Path, photos: Mapping[str, Path], left_out: Mapping[str, Names], rules: KeyRules) -> Folder:
    labels: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    refused: dict[Reason, list[str]] = {}
    for key in photos:
        label, split, rejection = rules.judge(key)
        if rejection is not None:
            refused.setdefault(rejection, []).append(key)
        elif label and split:
            labels[label] += 1
            splits[split] += 1
    return Folder(
        root=root,
        photos=dict(sorted(photos.items())),
        left_out=left_out,
        empty=Names.of(key for key, path in photos.items() if not _size(path)),
        refused={reason: Names.of(keys) for reason, keys in refused.items()},
        labels=labels,
        splits=splits,
    )


@dataclass
class _Walk:
    """Goes through a folder and all below it, except for folders that a rule ignores: those are named, not entered."""

    root: Path
    prefix: str
    rules: KeyRules

    def files(self) -> Iterator[tuple[str, Path, str | None]]:
        """Name in the folder, path, and the reason to leave it out, if known already. Ignored folders end in ``/``."""
        self._linked: set[tuple[int, int]] = set()
        yield from self._below(self.root, "", _real_folders(self.root))

    def _below(
        self, folder: Path, place: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[str, Path, str | None]]:
        for entry in _entries(folder):
            name, path = f"{place}{entry.name}", folder / entry.name
            try:
                kind = path.stat()
            except OSError as error:
                if not entry.is_symlink():
                    raise unreadable(path, error) from error
                yield name, path, "broken_link"
                continue
            if not stat.S_ISDIR(kind.st_mode):
                yield name, path, None if stat.S_ISREG(kind.st_mode) else "no_file"
                continue
            rule = self.rules.ignore.rule_of(f"{self.prefix}{_key_of(name)}/-")
            identity = (kind.st_dev, kind.st_ino)
            if rule is not None:
                yield f"{name}/", path, rule
            elif identity in above or (entry.is_symlink() and identity in self._linked):
                yield name, path, "link_in_a_circle"
            else:
                below = above | (_real_folders(path) if entry.is_symlink() else {identity})
                if entry.is_symlink():
                    self._linked.add(identity)
                yield from self._below(path, f"{name}/", below)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise unreadable(folder, error) from error


def _real_folders(path: Path) -> frozenset[tuple[int, int]]:
    """The folder and those that contain it, where it really is."""
    real = path.resolve()
    return frozenset((found.st_dev, found.st_ino) for found in (folder.stat() for folder in (real, *real.parents)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error


def _key_of(name: str) -> str:
    return name.replace("\\", "/")


def _reason_of_name(key: str, rules: KeyRules) -> str | None:
    """Why a file of this key is left out, whatever it holds; None when the name tells nothing."""
    try:
        too_long = len(key.encode()) > _LONGEST_KEY
    except UnicodeEncodeError:
        return "name_not_utf8"
    rule = rules.ignore.rule_of(key)
    if too_long or rule == FOLDER_MARKER or (rule is None and _NO_KEY.search(key)):
        return "name_not_a_key"
    if rule is not None:
        return rule
    suffix = os.path.splitext(key)[1].lower()  # noqa: PTH122 -- a key is no path
    known = {"archive": _ARCHIVES, "video": _VIDEOS, "format_not_read": _FORMATS_NOT_READ}
    return next((reason for reason, suffixes in known.items() if suffix in suffixes), None)


def _reason_of_content(path: Path) -> str | None:
    """Why a file is no photo by its first bytes; a photo's suffix makes it a photo, unless Git LFS keeps the photo."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise unreadable(path, error) from error
    if head.startswith(_LFS):
        return "lfs_pointer"
    if path.suffix.lower() in SUFFIXES:
        return None
    name, read = announced_format(head) or (None, False)
    if name is None or (name == "BMP" and int.from_bytes(head[14:18], "little") not in _BMP_HEADERS):
        return "no_photo"
    return None if read else "format_not_read"


def unreadable(path: Path, error: OSError) -> FruitsError:
    """The error of a file or folder that can't be read."""
    return FruitsError(f"{path}: {error.strerror}; make it readable, or move it away")
