"""Reports of S3 Inventory, as S3 writes them."""

from datetime import UTC, datetime, timedelta

import pytest
from obstore.store import LocalStore

from fruits.errors import FruitsError
from fruits.photos.inventory import newest_report, reported_batches
from fruits.photos.pages import LISTED_SCHEMA
from fruits.stores import remove_files, write_bytes
from tests.sources import PARQUET_SCHEMA, Version, write_report

DATE = datetime(2026, 11, 26, 1, 0, tzinfo=UTC)
BEFORE = DATE - timedelta(days=3)
FOLDER = "reports/fruits/daily"
KEYS = ["Training/Apple 6/1.jpg", "Training/Kiwi/a+b%20c.jpg", "Training/Kiwi/é,ü.jpg", 'Test/Kiwi/"q".jpg']
FORMS = ["Parquet", "CSV"]


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def listed(store, prefix=""):
    report = newest_report(store, FOLDER, "fruits")
    batches = list(reported_batches(store, report, prefix))
    assert all(batch.schema == LISTED_SCHEMA for batch in batches)
    return {row.pop("key"): row for batch in batches for row in batch.to_pylist()}


@pytest.mark.parametrize("form", FORMS)
def test_a_report_shows_what_a_listing_shows(store, form):
    objects = [
        Version(key, f'"etag {key}"' if number % 2 else f"etag {key}", BEFORE) for number, key in enumerate(KEYS)
    ]
    write_report(store, FOLDER, objects, DATE, form=form, files=2)
    assert listed(store) == {key: {"etag": f"etag {key}", "size": 9, "last_modified": BEFORE} for key in KEYS}
    assert listed(store, "Training/Kiwi/").keys() == set(KEYS[1:3])


@pytest.mark.parametrize("form", FORMS)
def test_only_the_latest_version_counts_and_a_delete_marker_is_no_object(store, form):
    objects = [
        Version("kept", "old", BEFORE, latest=False),
        Version("kept", "new", BEFORE),
        Version("gone", "old", BEFORE, latest=False),
        Version("gone", None, BEFORE, size=None, gone=True),
    ]
    write_report(store, FOLDER, objects, DATE, form=form, all_versions=True)
    assert {key: row["etag"] for key, row in listed(store).items()} == {"kept": "new"}


def test_the_newest_complete_report_counts(store):
    for days in (2, 1, 0):
        write_report(store, FOLDER, [Version(str(days), "one", BEFORE)], DATE - timedelta(days=days))
    remove_files(store, f"{FOLDER}/2026-11-26T01-00Z/manifest.checksum")
    write_bytes(store, f"{FOLDER}/hive/dt=2026-11-27-01-00/symlink.txt", b"")
    assert newest_report(store, FOLDER, "fruits").date == DATE - timedelta(days=1)
    write_bytes(store, f"{FOLDER}/2026-11-25T01-00Z/manifest.json", b"half")
    assert listed(store).keys() == {"2"}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"sourceBucket": "other"}, "is about bucket 'other', and the photos are in 'fruits'"),
        ({"fileFormat": "ORC"}, "is in the format ORC, expected Parquet or CSV"),
        ({"fileFormat": "CSV", "fileSchema": "Bucket, Key, Size"}, "lacks ETag, LastModifiedDate; add these fields"),
        ({"fileSchema": PARQUET_SCHEMA.replace("e_tag", "x")}, "lacks ETag; add these fields"),
    ],
)
def test_a_report_that_is_no_use_says_what_to_do(store, manifest, message):
    write_report(store, FOLDER, [], DATE, **manifest)
    with pytest.raises(FruitsError, match=message):
        newest_report(store, FOLDER, "fruits")


def test_without_a_report_the_error_says_when_one_comes(store):
    with pytest.raises(FruitsError, match="has no complete report; S3 delivers the first one within 48 hours"):
        newest_report(store, FOLDER, "fruits")


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_gone_or_damaged_is_named(store, form):
    write_report(store, FOLDER, [Version("one", "one", BEFORE)], DATE, form=form)
    report = newest_report(store, FOLDER, "fruits")
    write_bytes(store, report.files[0], b"\x1f\x8bdamaged")
    with pytest.raises(FruitsError, match="can't be read"):
        list(reported_batches(store, report, ""))
    remove_files(store, report.files[0])
    with pytest.raises(FruitsError, match="a file of the report of 2026-11-26 01:00 UTC, is gone"):
        list(reported_batches(store, report, ""))
