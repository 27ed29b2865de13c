"""Folders as people really have them: each file becomes a photo, or is left out with its name and a reason."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fruits.errors import FruitsError
from fruits.photos.entry import Action
from fruits.photos.keys import FIT_SPLIT, KeyRules, nothing_to_fit
from fruits.photos.listing import ListedObject
from fruits.run.request import RunRequest
from fruits.settings import Settings
from local.folder import LEFT_OUT, SUFFIXES, Folder, read_folder
from tests.conftest import SHARED
from tests.files import write_files as write
from tests.plans import PlanInMemory, plan_of

SETTINGS = Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db")
JPEG, PNG, HEIC = b"\xff\xd8\xff\xe0photo", b"\x89PNG\r\n\x1a\nphoto", b"\0\0\0\x18ftypheic"
JXL = b"\xff\x0aphoto"
BMP = b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PHOTO = "Training/Kiwi/1.jpg"


def read(root: Path, **values: object) -> Folder:
    return read_folder(root, SETTINGS.model_copy(update=values))


def left_out(folder: Folder) -> dict[str, tuple[str, ...]]:
    return {reason: names.examples for reason, names in folder.left_out.items()}


@pytest.mark.parametrize(
    ("name", "data", "key"),
    [
        ("Training/Kiwi/Screenshot at 3.15.10\u202fPM.png", PNG, None),
        ("Training/Kiwi/Snímek v\u00a013.05.png", PNG, None),
        ("Training/Kiwi/\ufeffbom\u00ad\u200e\u3000.png", PNG, None),
        ("Training/Pomme d'amour 🍎/été.jpg", JPEG, None),
        ("Training/Kiwi/1.jfif", JPEG, None),
        ("Training/Kiwi/1.JPG", JPEG, None),
        ("Training/Kiwi/IMG_0001", JPEG, None),
        ("Training/Kiwi/IMG_0001.HEIC", HEIC, None),
        ("Training/Kiwi/IMG_0002", HEIC, None),
        ("Training/Kiwi/1.jpg_large", JPEG, None),
        ("Training/Kiwi/1.bitmap", BMP, None),
        ("Training/Kiwi/broken.jpg", b"<!DOCTYPE html>", None),
        ("Training/Kiwi/empty.jpg", b"", None),
        ("Training\\Kiwi\\1.jpg", JPEG, "Training/Kiwi/1.jpg"),
        ("Training/Kiwi/#1 100%.jpg", JPEG, None),
        ("Kiwi/train/1.jpg", JPEG, None),
        ("test/Fruit/Apple/Golden/1.jpg", JPEG, None),
    ],
    ids=ascii,
)
def test_a_photo_is_taken_under_its_name(tmp_path, name, data, key):
    folder = read(write(tmp_path, {"Training/Fig/0.jpg": JPEG, name: data}))
    assert set(folder.photos) == {"Training/Fig/0.jpg", key or name}
    assert folder.left_out == {}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("__MACOSX/Training/Kiwi/._1.jpg", b"\0\5\x16\7", "system"),
        ("Training/Kiwi/._1.jpg", b"\0\5\x16\7", "hidden"),
        ("Training/Icon\r", b"", "system"),
        ("Training/Kiwi/Thumbs.db", b"x", "system"),
        ("Training/.ipynb_checkpoints/1-checkpoint.jpg", JPEG, "hidden"),
        ("Training/Kiwi/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", JPEG, "system"),
        (".Trash-1000/files/1.jpg", JPEG, "hidden"),
        ("Training\\Kiwi\\.DS_Store", b"x", "hidden"),
        ("Training/Kiwi/1.xml", b"<annotation>", "sidecar"),
        ("Training/Kiwi/.1.jpg.icloud", b"bplist00", "cloud_placeholder"),
        ("Training/Kiwi/2.jpg", LFS, "lfs_pointer"),
        ("Training/Kiwi/1.jxl", JXL, "format_not_read"),
        ("Training/Kiwi/IMG_0002", JXL, "format_not_read"),
        ("Training/Kiwi/1.cr2", b"II*\0", "format_not_read"),
        ("photos.zip", b"PK", "archive"),
        ("Training/Kiwi/1.mov", b"\0\0\0\x14ftypqt", "video"),
        ("Training/Kiwi/notes", b"BMI of a kiwi, and other facts", "no_photo"),
        ("Training/Kiwi/Makefile", b"", "no_photo"),
        ("Training/Kiwi/caf\udce9.jpg", JPEG, "name_not_utf8"),
        ("Training/Kiwi/new\nline.jpg", JPEG, "name_not_a_key"),
        ("Training/Kiwi/\uffff.jpg", JPEG, "name_not_a_key"),
        ("Training\\Kiwi\\", b"", "name_not_a_key"),
        (f"{'a' * 200}/" * 5 + "é" * 100 + ".jpg", JPEG, "name_not_a_key"),
        ("Training\\Kiwi\\1.jpg", JPEG, "same_key"),
    ],
    ids=ascii,
)
def test_anything_else_is_left_out_with_its_name_and_a_reason(tmp_path, name, data, reason):
    folder = read(write(tmp_path, {PHOTO: JPEG, name: data}))
    assert list(folder.photos) == [PHOTO]
    ((found, names),) = folder.left_out.items()
    assert (found, names.count) == (reason, 1)
    assert name.startswith(names.examples[0].rstrip("/")), "an ignored folder is named as a whole"
    (remark,) = [line for line in folder.remarks() if line.startswith("left out")]
    assert remark.startswith(f"left out as {reason} 1: ")
    assert LEFT_OUT[reason] in remark
    assert remark.isprintable()


def test_what_is_left_out_is_grouped_by_reason_and_counted(tmp_path):
    files = {f"Training/Kiwi/{n}.txt": b"x" for n in range(9)} | {"Training/Kiwi/.x": b"x", PHOTO: JPEG}
    folder = read(write(tmp_path, files))
    lines = [line for line in folder.remarks() if line.startswith("left out")]
    assert lines[1].startswith(
        "left out as sidecar 9: Training/Kiwi/0.txt, Training/Kiwi/1.txt, Training/Kiwi/2.txt and 6 more. "
    )
    assert [line.split()[3] for line in lines] == ["hidden", "sidecar"]


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    root = write(tmp_path / "photos", {PHOTO: JPEG})
    pool = write(tmp_path / "pool", {"Fig/1.jpg": JPEG, "single.jpg": JPEG})
    (root / "Test").mkdir()
    (root / "Test" / "Fig").symlink_to(pool / "Fig")
    (root / "Test" / "Kiwi").mkdir()
    (root / "Test" / "Kiwi" / "2.jpg").symlink_to(pool / "single.jpg")
    (root / "Test" / "Kiwi" / "gone.jpg").symlink_to(pool / "gone.jpg")
    (root / "Test" / "again").symlink_to(pool / "Fig")
    (root / "Training" / "circle").symlink_to(root)
    (pool / "Fig" / "up").symlink_to(tmp_path)
    folder = read(root)
    assert set(folder.photos) == {PHOTO, "Test/Fig/1.jpg", "Test/Kiwi/2.jpg"}
    assert left_out(folder) == {
        "broken_link": ("Test/Kiwi/gone.jpg",),
        "link_in_a_circle": ("Test/Fig/up", "Test/again", "Training/circle"),
    }


def test_a_pipe_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(write(tmp_path, {PHOTO: JPEG}) / "Training" / "Kiwi" / "2.jpg")
    assert left_out(read(tmp_path)) == {"no_file": ("Training/Kiwi/2.jpg",)}


def test_an_ignored_folder_is_not_entered(tmp_path):
    write(tmp_path, {PHOTO: JPEG, ".git/objects/1": b"x"})
    (tmp_path / ".git" / "objects").chmod(0)
    assert left_out(read(tmp_path)) == {"hidden": (".git/",)}
    (tmp_path / ".git" / "objects").chmod(0o700)


def test_the_setting_decides_what_is_ignored_here_as_in_the_bucket(tmp_path):
    write(tmp_path, {PHOTO: JPEG, "Training/Kiwi/.2.jpg": JPEG, "Training/old/1.jpg": JPEG})
    folder = read(tmp_path, ignore=("old/",))
    assert list(folder.photos) == ["Training/Kiwi/.2.jpg", PHOTO]
    assert left_out(folder) == {"old/": ("Training/old/",)}
    assert "FRUITS_IGNORE" in "\n".join(folder.remarks())


def test_photos_that_quarantine_will_refuse_are_named_before(tmp_path):
    write(tmp_path, {PHOTO: JPEG, "stray.jpg": JPEG, "Test/2.jpg": JPEG, "Training/Kiwi/0.jpg": b""})
    folder = read(tmp_path)
    assert {"stray.jpg", "Test/2.jpg", "Training/Kiwi/0.jpg"} < set(folder.photos), "nothing is lost"
    lines = list(folder.remarks())
    assert any(
        line.startswith("will be quarantined as key_pattern 2: Test/2.jpg, stray.jpg. The object") for line in lines
    )
    assert any(line.startswith("will be quarantined as empty 1: Training/Kiwi/0.jpg.") for line in lines)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "no photos in it (0 other files)"),
        ({"a.txt": b"x", "b/c.csv": b"x"}, "no photos in it (2 other files)"),
        (
            {"1.jpg": JPEG, "2.jpg": JPEG},
            "none of 2 photos is in the folder of a label; expected [Training|Test]/<label>",
        ),
        ({"Test/1.jpg": JPEG, "dev/2.jpg": JPEG}, "none of 2 photos is in the folder of a label"),
        ({"Kiwi/1.jpg": b"", "Kiwi/2.jpg": b""}, "all 2 photos have 0 bytes; copy or download them again"),
        ({"Kiwi/1.jpg": LFS}, "run `git lfs pull`"),
        ({"Kiwi/1.jxl": JXL}, "convert it to JPEG or PNG"),
        ({"Kiwi/.1.jpg.icloud": b"x"}, "download the photos"),
        ({"fruits.zip": b"PK"}, "unpack it"),
    ],
    ids=["empty", "others", "flat", "splits only", "placeholders", "LFS", "JPEG XL", "iCloud", "packed"],
)
def test_a_folder_without_a_photo_to_use_is_refused_and_says_why(tmp_path, files, expected):
    with pytest.raises(FruitsError) as caught:
        read(write(tmp_path, files))
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_labels_that_are_probably_one_are_named(tmp_path):
    forms = [unicodedata.normalize(form, "Pêche") for form in ("NFC", "NFD")]
    write(tmp_path, {f"Training/{label}/1.jpg": JPEG for label in (*forms, "Apple 6", "apple  6", "Fig")})
    lines = [line for line in read(tmp_path).remarks() if "one label?" in line]
    assert [line.partition(" differ")[0] for line in lines] == [
        "the labels 'Apple 6' and 'apple  6'",
        r"the labels 'Pe\u0302che' and 'P\xeache'",
    ]


def test_labels_and_splits_are_told(tmp_path):
    write(tmp_path, {f"{split}/{n}/1.jpg": JPEG for split in ("Training", "Test") for n in range(8)})
    assert (
        next(read(tmp_path).remarks())
        == "labels: 0, 1, 2, 3, 4, 5 and 2 more; photos: 8 test (held out), 8 train (fitted)"
    )


def test_every_suffix_that_is_a_photo_s_is_lower_case_and_no_rule_takes_it():
    ignore = KeyRules.of(SETTINGS).ignore
    assert {suffix for suffix in SUFFIXES if suffix != suffix.lower() or ignore.rule_of(f"Kiwi/1{suffix}")} == set()


def planned(folder: Folder) -> PlanInMemory:
    """The plan of the first run on a bucket that mirrors the folder."""
    listed = [ListedObject(key, "etag", 9, datetime(2026, 11, 20, tzinfo=UTC)) for key in folder.photos]
    return plan_of(listed, {}, KeyRules.of(SETTINGS), RunRequest(prefix=""))


def pairs(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, JPEG)


STAND_INS = {
    "01_mac_zip": {
        **pairs(
            *(
                f"{split}/{label}/{n}.jpg"
                for split in ("Training", "Test")
                for label in ("Apple 6", "Kiwi")
                for n in range(4)
            )
        ),
        **pairs("Training/Kiwi/4.jpg", "Training/Kiwi/5.jpg"),
        **{f"__MACOSX/Training/Kiwi/._{n}.jpg": b"\0\5\x16\7" for n in range(6)},
        "Training/Kiwi/._0.jpg": b"\0\5\x16\7",
        "Training/Icon\r": b"",
        ".DS_Store": b"x",
    },
    "02_hidden_dirs": pairs(
        *(f"Training/{label}/{n}.jpg" for label in ("Apple 6", "Kiwi") for n in range(9)),
        *("$RECYCLE.BIN/S-1/$R1.jpg", "#recycle/Kiwi/1.jpg", ".AppleDouble/0.jpg", ".Trash-1000/files/1.jpg"),
        *("System Volume Information/x.jpg", "lost+found/#1.jpg", "Training/.ipynb_checkpoints/1.jpg"),
        *("Training/Kiwi/@eaDir/1.jpg/SYNO.jpg", "Training/Apple 6/.thumbnails/1.jpg"),
    ),
    "09_screenshot_names": pairs(
        "Training/Kiwi/at 3.15.10\u202fPM.png", "Training/Kiwi/v\u00a013.05.png", "Training/Kiwi/soft\u00adhyphen.png"
    ),
    "20_holdout_trap": pairs(*(f"Kiwi/{n}.jpg" for n in (5, 6, 8, 10, 13))),
    "23_tiny_one_broken": {**pairs(*(f"Training/Kiwi/{n}.jpg" for n in range(3))), "Training/Kiwi/9.jpg": JPEG[:4]},
    "32_nested_layout": pairs(
        *(f"{split}/Fruit/Apple/Golden-Delicious/{n}.jpg" for split in ("train", "test", "val") for n in range(3))
    ),
}
"""Folders like those of ../shared/field, for a clone without them."""


@pytest.fixture(params=["field", "stand-in"])
def field(request, tmp_path) -> Callable[[str], Folder]:
    """One of six folders of the field, by its name; and a stand-in for it."""

    def open_folder(name: str) -> Folder:
        if request.param == "stand-in":
            return read(write(tmp_path / name, STAND_INS[name]))
        root = SHARED / "field" / name
        if not root.is_dir():
            pytest.skip(f"ABSENT: {root}; the stand-in alone shows here what this folder shows")
        return read(root)

    return open_folder


@pytest.mark.parametrize("name", ["01_mac_zip", "02_hidden_dirs"])
def test_litter_is_left_out_by_name_and_makes_no_label(field, name):
    folder = field(name)
    assert len(folder.photos) == 18
    assert set(folder.labels) == {"Apple 6", "Kiwi"}
    assert set(folder.left_out) == {"hidden", "system"}
    plan = planned(folder)
    assert plan.counts[Action.CREATE] == 18
    assert {entry.rejection for entry in plan.entries} == {None}


def test_names_of_screenshots_are_keys(field):
    folder = field("09_screenshot_names")
    assert folder.left_out == {}
    assert any("\u202f" in key for key in folder.photos)
    assert any("\u00a0" in key for key in folder.photos)
    assert {entry.rejection for entry in planned(folder).entries} == {None}


def test_photos_that_a_hash_holds_out_all_are_explained(field):
    folder = field("20_holdout_trap")
    assert FIT_SPLIT not in folder.splits
    said = nothing_to_fit(KeyRules.of(SETTINGS).pattern, folder.photos)
    assert "all 5 photos are held out" in said
    assert "FRUITS_HOLDOUT_SHARE" in said


def test_a_broken_photo_is_planned_with_the_others(field):
    plan = planned(field("23_tiny_one_broken"))
    assert Counter((entry.action, entry.split, entry.rejection) for entry in plan.entries) == {
        (Action.CREATE, FIT_SPLIT, None): 4
    }


def test_a_split_holds_wherever_it_stands_in_the_path(field):
    folder = field("32_nested_layout")
    splits = {"train": "train", "training": "train", "test": "test", "val": "validation"}
    for entry in planned(folder).entries:
        assert entry.split == splits[entry.key.split("/")[0].lower()], entry.key
        assert entry.label == entry.key.split("/")[-2]
    assert folder.labels["Golden-Delicious"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.touch()
    with pytest.raises(FruitsError, match=f"{file}: a file, no folder; IMAGES expects a folder"):
        read(file)
