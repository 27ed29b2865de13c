import os
from pathlib import Path

import pytest
from obstore.exceptions import PermissionDeniedError

from fruits.errors import FruitsError
from fruits.photos.listing import list_objects
from fruits.stores import effects_watched, photo_store, read_bytes
from local import mirror as module
from local.mirror import Mirrored, mirror
from local.run import _every_second, _replace, _upload
from tests.files import write_files as write


@pytest.fixture
def folder(tmp_path):
    return write(
        tmp_path / "photos",
        {"Test/Kiwi/1.jpg": b"one", "Training/Apple Red/2.PNG": b"two", "Training/Pomme d'été/a%20b.webp": b"three"},
    )


def silent(done: int, total: int) -> None:
    pass


def counts(done: Mirrored) -> tuple[int, int, int]:
    """How many objects were uploaded, removed and left as they were."""
    return done.uploaded, done.removed, done.unchanged


def contents(settings, prefix: str = "") -> dict[str, bytes]:
    store = photo_store(settings)
    return {item.key: read_bytes(store, item.key) for item in list_objects(settings, prefix)}


def photos(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_new_changed_removed_and_unchanged_photos_are_counted_and_the_bucket_ends_as_the_folder(settings, folder):
    assert counts(mirror(folder, settings, silent)) == (3, 0, 0)
    assert contents(settings) == photos(folder)
    write(folder, {"Test/Kiwi/1.jpg": b"eno", "Test/Fig/new.jpg": b"new"})
    (folder / "Training/Apple Red/2.PNG").unlink()
    assert counts(mirror(folder, settings, silent)) == (2, 1, 1)
    assert contents(settings) == photos(folder)


def test_the_person_reads_how_many_rows_leave_with_the_photos_that_are_gone(settings, folder, capsys):
    _upload(folder, settings)
    assert "3 uploaded, 0 removed, 0 as they were\n" in capsys.readouterr().out
    (folder / "Training/Apple Red/2.PNG").unlink()
    _upload(folder, settings)
    said = capsys.readouterr().out
    assert "0 uploaded, 1 removed, 2 as they were\n" in said
    assert f"photos that are not in {folder}, so their rows leave the tables: 1\n" in said


def test_an_upload_removes_nothing(settings, folder, capsys, monkeypatch):
    mirror(write(folder.parent / "others", {"Test/Fig/other.jpg": b"other"}), settings, silent)
    for name, value in settings.model_dump(include={"bucket", "lake", "s3_endpoint"}).items():
        monkeypatch.setenv(f"FRUITS_{name.upper()}", value)
    monkeypatch.setenv("FRUITS_CATALOG_URI", settings.catalog_uri.get_secret_value())
    assert module.main(str(folder)) == 0
    assert capsys.readouterr().out.splitlines()[0] == "bucket: 3 photos uploaded, 0 were there"
    assert contents(settings) == {**photos(folder), "Test/Fig/other.jpg": b"other"}
    assert module.main(str(folder / "none")) == 2
    assert "none: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["read_bytes", "scandir"])
def test_what_can_not_be_read_is_named_and_nothing_is_removed(settings, folder, monkeypatch, broken):
    mirror(folder, settings, silent)
    before = contents(settings)
    (folder / "Test/Kiwi/1.jpg").unlink()

    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os if broken == "scandir" else Path, broken, denied)
    with pytest.raises(FruitsError, match="photos.*: Permission denied; make it readable"):
        mirror(folder, settings, silent)
    monkeypatch.undo()
    assert contents(settings) == before


def test_what_is_as_it_was_keeps_its_object(settings, folder):
    mirror(folder, settings, silent)
    before = list(list_objects(settings, ""))
    for path in folder.rglob("*.*"):
        os.utime(path, (1, 1))
    assert counts(mirror(folder, settings, silent)) == (0, 0, 3)
    assert list(list_objects(settings, "")) == before


def test_a_large_photo_is_uploaded_once(settings, tmp_path):
    """S3 clients begin to upload in parts at 5 or 10 MB, and the ETag is then not the content's MD5."""
    folder = write(tmp_path / "large", {"Kiwi/1.jpg": os.urandom(12_000_001)})
    assert mirror(folder, settings, silent).uploaded == 1
    assert contents(settings) == photos(folder)
    assert counts(mirror(folder, settings, silent)) == (0, 0, 1)


def test_only_the_prefix_is_touched(make_settings, settings, folder, stack, bucket):
    stack.client().put_object(Bucket=bucket, Key="elsewhere/Kiwi/1.jpg", Body=b"kept")
    stack.client().put_object(Bucket=bucket, Key="photos/Kiwi/old.jpg", Body=b"goes")
    done = mirror(folder, make_settings(prefix="photos/"), silent)
    assert counts(done) == (3, 1, 0)
    expected = {f"photos/{name}": data for name, data in photos(folder).items()}
    assert contents(settings) == {"elsewhere/Kiwi/1.jpg": b"kept", **expected}


def test_files_that_are_no_photos_are_left_out_and_named(settings, folder):
    write(folder, {"Test/Kiwi/Thumbs.db": b"x", "README.md": b"x"})
    assert [str(names) for names in mirror(folder, settings, silent).folder.left_out.values()] == [
        "1: README.md",
        "1: Test/Kiwi/Thumbs.db",
    ]
    assert len(contents(settings)) == 3


def test_names_with_spaces_and_signs_of_any_kind_come_back_from_the_bucket_as_they_were(settings, tmp_path):
    names = [
        "at 3.15.10\u202fPM",
        "v\u00a013.05.05",
        "d\u2019écran",
        "soft\u00adhyphen",
        "wide\u3000space",
        "\ufeffbom",
        "\u200ewhats",
    ]
    names += ["100% & co+", "#1", "e\u0301 and \u00e9", "a\\b"]
    folder = write(tmp_path / "odd", {f"Training/Kiwi/{name}.png": name.encode() for name in names})
    assert mirror(folder, settings, silent).uploaded == len(names)
    expected = {f"Training/Kiwi/{name}.png".replace("\\", "/"): name.encode() for name in names}
    assert contents(settings) == expected
    assert mirror(folder, settings, silent).unchanged == len(names)


def test_a_folder_s_marker_in_the_bucket_stays(settings, folder, stack, bucket):
    stack.client().put_object(Bucket=bucket, Key="Test/Kiwi/", Body=b"")
    stack.client().put_object(Bucket=bucket, Key="Test/Kiwi/.DS_Store", Body=b"x")
    assert mirror(folder, settings, silent).removed == 1
    assert {item.key for item in list_objects(settings, "")} == {*photos(folder), "Test/Kiwi/"}


def test_progress_counts_every_photo(settings, folder):
    told = []
    mirror(folder, settings, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_progress_starts_with_the_first_photo_and_ends_with_all(monkeypatch, capsys):
    moments = iter([10.0, 10.5, 11.5, 11.6, 20.0, 20.1])
    monkeypatch.setattr("local.run.time.monotonic", lambda: next(moments))
    report = _every_second("photos")
    for done in (1, 2, 3, 4):
        report(done, 4)
    assert capsys.readouterr().out == "  3/4 photos\n  4/4 photos\n"
    quick = _every_second("photos")
    quick(1, 2)
    quick(2, 2)
    assert capsys.readouterr().out == ""


def test_a_summary_is_replaced_whole_and_stays_until_then(tmp_path):
    path = tmp_path / "build" / "summary.json"
    _replace(path, "old")
    with path.open() as reader:
        _replace(path, "new")
        assert reader.read() == "old"
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("summary.json", "new")]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (None, "no such folder; IMAGES expects"),
        ({}, r"no photos in it \(0 other files\)"),
        ({"notes.txt": b"x"}, r"no photos in it \(1 other file\); expected files such as <label>/<file>.jpg"),
    ],
    ids=["missing", "empty", "other files"],
)
def test_a_folder_without_photos_is_refused_and_nothing_is_removed(settings, folder, tmp_path, files, expected):
    mirror(folder, settings, silent)
    before = contents(settings)
    other = tmp_path / "other"
    if files is not None:
        other.mkdir()
        write(other, files)
    with pytest.raises(FruitsError, match=expected) as caught:
        mirror(other, settings, silent)
    assert str(other) in str(caught.value)
    assert contents(settings) == before


def test_nothing_is_removed_when_an_upload_fails(settings, folder):
    mirror(folder, settings, silent)
    (folder / "Test/Kiwi/1.jpg").unlink()
    write(folder, {"Test/Fig/1.jpg": b"new"})
    before = contents(settings)

    def denied(*_):
        raise PermissionDeniedError("403 Forbidden: <Code>AccessDenied</Code>")

    expected = rf"denies s3:PutObject on arn:aws:s3:::{settings.bucket}/Test/Fig/1.jpg"
    with pytest.raises(FruitsError, match=expected), effects_watched(denied):
        mirror(folder, settings, silent)
    assert contents(settings) == before


def test_a_missing_bucket_is_named(make_settings, folder):
    with pytest.raises(FruitsError, match="bucket 'no-such-bucket' does not exist"):
        mirror(folder, make_settings(bucket="no-such-bucket"), silent)
