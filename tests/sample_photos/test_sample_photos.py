import io
import os
import re
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from fruits.errors import FruitsError
from fruits.photos.decode import Limits, UnreadablePhotoError, decode
from fruits.photos.quarantine import Reason
from fruits.settings import DEFAULT_KEY_PATTERN
from sample_photos import BROKEN, FRUITS, LABELS, contact_sheet, draw, generate, photo_key
from sample_photos.__main__ import main
from sample_photos.files import encode, encoding_of

SMALL = (64, 112)
TRAIN, TEST = 3, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    generate(path, per_kind_train=TRAIN, per_kind_test=TEST, size=SMALL)
    return path


def keys(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {key: ((folder / key).read_bytes(), (folder / key).stat().st_mtime_ns) for key in keys(folder)}


def encoding_sample(wanted: str) -> tuple[str, int]:
    """The first photo under Training that is stored this way."""
    found = ((label, n) for n in range(60) for label in LABELS if encoding_of(label, "Training", n) == wanted)
    return next(found)


def test_there_are_at_least_twelve_kinds_with_a_name_of_their_own():
    assert len(set(LABELS)) == len(FRUITS) >= 12


def test_a_photo_depends_on_each_of_seed_label_split_and_number_and_on_nothing_else():
    photo = draw("Plum", "Training", 1, 0, size=SMALL)
    np.random.default_rng().random()
    assert draw("Plum", "Training", 1, 0, size=SMALL) == photo
    others = [
        ("Plum", "Training", 1, 1),
        ("Cherry", "Training", 1, 0),
        ("Plum", "Test", 1, 0),
        ("Plum", "Training", 2, 0),
    ]
    assert len({photo, *(draw(*other, size=SMALL) for other in others)}) == 1 + len(others)


@pytest.mark.heavy
def test_a_process_pool_writes_the_same_bytes_as_this_process(tmp_path):
    for workers in (1, 2):
        generate(tmp_path / str(workers), kinds=2, per_kind_train=2, per_kind_test=1, size=SMALL, workers=workers)
    one, two = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert {key: data for key, (data, _) in one.items()} == {key: data for key, (data, _) in two.items()}


def test_generating_again_touches_no_file(tmp_path):
    sizes = {"kinds": 3, "per_kind_train": 2, "per_kind_test": 1, "size": SMALL}
    assert generate(tmp_path, **sizes) == 3 * 3 + len(BROKEN)
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    before = contents(tmp_path)
    assert generate(tmp_path, **sizes) == 0
    assert contents(tmp_path) == before


def test_more_photos_per_kind_and_more_kinds_leave_the_first_ones_as_they_are(tmp_path):
    generate(tmp_path, kinds=2, per_kind_train=2, per_kind_test=1, size=SMALL)
    before = contents(tmp_path)
    assert generate(tmp_path, kinds=3, per_kind_train=3, per_kind_test=2, size=SMALL) == 3 * 5 - 2 * 3
    after = contents(tmp_path)
    assert len(after) == 3 * 5 + len(BROKEN)
    assert {key: after[key] for key in before} == before


def test_a_photo_that_was_changed_is_written_again(tmp_path):
    generate(tmp_path, kinds=1, per_kind_train=2, per_kind_test=0, size=SMALL, broken=False)
    photo = tmp_path / photo_key(LABELS[0], "Training", 1)
    photo.write_bytes(b"something else")
    assert generate(tmp_path, kinds=1, per_kind_train=2, per_kind_test=0, size=SMALL, broken=False) == 1
    assert photo.read_bytes() == draw(LABELS[0], "Training", 1, size=SMALL)


def test_another_seed_draws_other_photos_under_the_same_names(tmp_path):
    sizes = {"kinds": 4, "per_kind_train": 6, "per_kind_test": 0, "size": SMALL, "broken": False}
    generate(tmp_path, **sizes)
    before = keys(tmp_path)
    assert generate(tmp_path, **sizes, seed=1) == len(before)
    assert keys(tmp_path) == before


def test_the_default_key_pattern_reads_label_and_split_from_every_key_but_the_stray_one(folder):
    matches = {key: re.fullmatch(DEFAULT_KEY_PATTERN, key) for key in keys(folder)}
    assert {key for key, match in matches.items() if match is None} == {"stray.jpg"}
    found = {(match["split"], match["label"]) for match in matches.values() if match}
    assert found == {(split, label) for split in ("Training", "Test") for label in LABELS}
    photos = sum(Path(key).stem.isdigit() for key in matches)
    assert photos == len(LABELS) * (TRAIN + TEST)


def test_the_dated_layout_spreads_the_same_photos_over_the_days(tmp_path):
    sizes = {"kinds": 2, "per_kind_train": 5, "per_kind_test": 2, "size": SMALL}
    generate(tmp_path / "plain", **sizes)
    generate(tmp_path / "dated", **sizes, layout="dated", start=date(2026, 2, 27), days=3)
    matches = {key: re.fullmatch(DEFAULT_KEY_PATTERN, key) for key in keys(tmp_path / "dated")}
    dates = {match["date"] for match in matches.values() if match}
    assert dates == {"2026-02-27", "2026-02-28", "2026-03-01"}
    assert [key for key, match in matches.items() if match is None] == ["stray.jpg"]
    undated = {
        key.split("/", 1)[1] if key.startswith("dt=") else key: (tmp_path / "dated" / key).read_bytes()
        for key in matches
    }
    assert undated == {key: data for key, (data, _) in contents(tmp_path / "plain").items()}


def test_every_file_loads_except_the_broken_ones(folder):
    unloadable = set()
    for key in keys(folder):
        try:
            with Image.open(folder / key) as photo:
                photo.load()
        except (OSError, SyntaxError):
            unloadable.add(key)
    assert unloadable == {key for key, reason in BROKEN.items() if reason != Reason.KEY_PATTERN}


@pytest.mark.parametrize(("key", "reason"), BROKEN.items())
def test_a_broken_file_is_refused_for_the_reason_it_is_there_to_show(folder, key, reason):
    data = (folder / key).read_bytes()
    limits = Limits(max_bytes=10_000_000, max_pixels=10_000_000)
    if reason == Reason.KEY_PATTERN:
        assert re.fullmatch(DEFAULT_KEY_PATTERN, key) is None
        assert decode(data, limits, shorter_side=32).format == "JPEG"
    else:
        with pytest.raises(UnreadablePhotoError) as refusal:
            decode(data, limits, shorter_side=32)
        assert refusal.value.reason == reason


def test_without_broken_files_there_is_nothing_to_quarantine(tmp_path):
    generate(tmp_path, kinds=1, per_kind_train=1, per_kind_test=1, size=SMALL, broken=False)
    assert keys(tmp_path) == {photo_key(LABELS[0], split, 0) for split in ("Training", "Test")}


@pytest.mark.parametrize(
    ("encoding", "file_format", "mode"),
    [
        ("jpeg", "JPEG", "RGB"),
        ("turned", "JPEG", "RGB"),
        ("grey", "JPEG", "L"),
        ("cmyk", "JPEG", "CMYK"),
        ("png", "PNG", "RGB"),
        ("webp", "WEBP", "RGB"),
    ],
)
def test_photos_come_in_every_encoding_under_a_fitting_name(encoding, file_format, mode):
    label, number = encoding_sample(encoding)
    photo = Image.open(io.BytesIO(draw(label, "Training", number, size=SMALL)))
    assert (photo.format, photo.mode) == (file_format, mode)
    assert (photo.getexif().get(0x0112, 1) != 1) == (encoding == "turned")
    suffix = Path(photo_key(label, "Training", number)).suffix
    assert Image.registered_extensions()[suffix] == file_format


@pytest.mark.parametrize("seed", range(8))
def test_a_turned_photo_is_upright_once_its_orientation_is_applied(seed):
    scene = Image.fromarray(np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8))
    stored = Image.open(io.BytesIO(encode(scene, "turned", np.random.default_rng(seed))))
    upright = ImageOps.exif_transpose(stored)
    assert upright.size == scene.size
    assert max(ImageStat.Stat(ImageChops.difference(upright, scene)).mean) < 4
    assert max(ImageStat.Stat(ImageChops.difference(stored.resize(scene.size), scene)).mean) > 20


def test_the_longer_side_stays_within_the_size_asked_for_and_both_orientations_occur():
    sizes = [Image.open(io.BytesIO(draw("Lime", "Test", n, size=(80, 120)))).size for n in range(12)]
    assert all(80 <= max(size) <= 120 for size in sizes)
    assert len({max(size) for size in sizes}) > 4
    assert {width > height for width, height in sizes if width != height} == {True, False}


@pytest.mark.heavy
def test_mean_colour_says_something_about_the_kind_but_far_from_everything():
    def mean_colour(label: str, split: str, number: int) -> np.ndarray:
        photo = Image.open(io.BytesIO(draw(label, split, number, size=SMALL)))
        upright = ImageOps.fit(ImageOps.exif_transpose(photo).convert("RGB"), (32, 32))
        return np.asarray(upright, np.float64)[8:24, 8:24].mean(axis=(0, 1))

    train = np.array([[mean_colour(label, "Training", n) for n in range(8)] for label in LABELS])
    held_out = np.array([[mean_colour(label, "Test", n) for n in range(6)] for label in LABELS])
    distances = np.linalg.norm(held_out[:, :, None] - train.mean(axis=1), axis=-1)
    accuracy = (distances.argmin(axis=-1) == np.arange(len(LABELS))[:, None]).mean()
    chance = 1 / len(LABELS)
    assert 2 * chance < accuracy < 0.6


def test_a_contact_sheet_has_a_row_for_each_kind_and_shows_no_broken_file(folder):
    sheet = contact_sheet(folder, columns=4, cell=40)
    cell_height = 40 + 14
    assert sheet.size == (4 * 40, len(LABELS) * cell_height)
    blank = [
        (row, column)
        for row in range(len(LABELS))
        for column in range(4)
        if len(sheet.crop((column * 40, row * cell_height, column * 40 + 40, row * cell_height + 40)).getcolors(9999))
        < 50
    ]
    assert blank == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": 0}, "kinds is 0: expected 1 to"),
        ({"kinds": len(FRUITS) + 1}, "kinds is"),
        ({"per_kind_train": -1}, "photos per kind are -1"),
        ({"size": (300, 200)}, r"size is \(300, 200\)"),
        ({"size": (8, 200)}, "size is"),
        ({"days": 0}, "days is 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(FruitsError, match=message):
        generate(tmp_path / "photos", **{"per_kind_train": 1, "per_kind_test": 0, **wrong})
    assert not (tmp_path / "photos").exists()


def test_an_unknown_kind_is_named_with_the_kinds_there_are():
    with pytest.raises(FruitsError, match=r"'Durian'.*Apple Red"):
        draw("Durian", "Training", 0)


def test_the_command_draws_a_folder_and_reports(tmp_path, capsys):
    arguments = [
        str(tmp_path / "photos"),
        "--train",
        "1",
        "--test",
        "1",
        "--kinds",
        "2",
        "--no-broken",
        "--dated",
        "--days",
        "1",
    ]
    assert main(arguments) == 0
    assert len(keys(tmp_path / "photos")) == 4
    report = capsys.readouterr().err
    assert "4 of 4 files" in report
    assert "4 written" in report
    assert main(arguments) == 0
    assert "0 written" in capsys.readouterr().err


def test_the_command_says_what_is_wrong_without_a_stack_trace(tmp_path, capsys):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert main([str(in_the_way), "--train", "1", "--test", "0", "--kinds", "1"]) == FruitsError.exit_code
    assert "choose another folder" in capsys.readouterr().err
