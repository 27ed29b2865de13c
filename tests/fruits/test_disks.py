"""A full disk: whoever meets it, the error names folders, the room that is left, and what to do."""

import errno
import sqlite3

import pytest

from fruits.disks import full_disks_explained, is_full, temporary_folders
from fruits.errors import FruitsError
from fruits.settings import Settings


@pytest.fixture
def settings(tmp_path, monkeypatch):
    return Settings.load(lake=f"file://{tmp_path}/lake", catalog_uri=f"sqlite:///{tmp_path}/db/catalog.db")


def full_database():
    """SQLite's own error."""
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError) as full:
        database.execute("CREATE TABLE a (b)")
    return full.value


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "over quota"),
        RuntimeError("Job aborted: java.io.IOException: No space left on device\n\tat java.base/java.io"),
        full_database(),
    ],
    ids=["system", "quota", "Java", "SQLite"],
)
def test_it_names_folders_room_and_what_to_do(settings, tmp_path, error):
    spill = tmp_path / "spill"
    with pytest.raises(FruitsError) as told, full_disks_explained(settings, [str(spill)]):
        raise error
    message = str(told.value)
    assert message.startswith("a disk is full")
    for place in (f"the lake in {tmp_path}/lake", f"the catalog in {tmp_path}/db", f"temporary files in {spill}"):
        assert f"{place}, " in message
    assert "MB free" in message
    assert (
        "Make room there, or move the lake (FRUITS_LAKE) or temporary files (TMPDIR, Spark's by SPARK_LOCAL_DIRS)"
        in message
    )
    assert told.value.__cause__ is error


def test_other_errors_pass_unchanged(settings):
    for error in (OSError(errno.EACCES, "Permission denied"), ValueError("x"), FruitsError("No space left on device")):
        with pytest.raises(type(error)) as told, full_disks_explained(settings):
            raise error
        assert told.value is error
    assert not is_full(OSError(errno.EFBIG, "File too large"))


def test_a_lake_in_a_bucket_is_no_disk_of_this_machine():
    settings = Settings.load(lake="s3://bucket/lake", catalog_uri="postgresql://fruits:geheim@db/lake")
    with pytest.raises(FruitsError) as told, full_disks_explained(settings, ["/tmp"]):  # noqa: S108 -- a place to name
        raise OSError(errno.ENOSPC, "full")
    assert "This machine has temporary files in /tmp, " in str(told.value)
    assert "geheim" not in str(told.value)


def test_spark_puts_temporary_files_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert temporary_folders() == (str(tmp_path),)
    assert temporary_folders("/a,/b") == ("/a", "/b")
    monkeypatch.setenv("SPARK_LOCAL_DIRS", "/c")
    assert temporary_folders("/a,/b") == ("/c",)
