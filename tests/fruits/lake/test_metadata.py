"""The live inventory table of S3 Metadata, as a table of the same columns."""

from datetime import UTC, datetime, timedelta

import pytest

from fruits.errors import FruitsError
from fruits.lake.metadata import (
    DELAY,
    catalog_properties,
    date_of,
    has_versions,
    table_name,
    version_batches,
)
from tests.plans import joined_again
from tests.sources import Version, fill, metadata_table

BEFORE = datetime(2026, 11, 20, tzinfo=UTC)
BUCKET = "fruits-photos.eu"


@pytest.fixture
def table(tmp_path):
    return metadata_table(tmp_path, BUCKET)


def listed(table, prefix=""):
    with joined_again() as pairs:
        batches = pairs.latest(version_batches(table, BUCKET, prefix))
        return {row.pop("key"): row for batch in batches for row in batch.to_pylist()}


def test_the_table_shows_what_a_listing_shows(table):
    keys = ["Training/Kiwi/é.jpg", "Training/Plum/1.jpg", "Test/Kiwi/1.jpg"]
    fill(table, [Version(key, f"etag {key}", BEFORE) for key in keys], BUCKET)
    assert listed(table) == {key: {"etag": f"etag {key}", "size": 9, "last_modified": BEFORE} for key in keys}
    assert listed(table, "Training/").keys() == set(keys[:2])
    assert not has_versions(table, BUCKET)


def test_of_versions_the_latest_counts_and_a_delete_marker_is_no_object(table):
    versions = [Version(key, etag, BEFORE) for etag in ("one", "two") for key in ("kept", "gone", "back")]
    versions += [Version(key, None, BEFORE, size=None, gone=True) for key in ("gone", "back")]
    fill(table, [*versions, Version("back", "three", BEFORE)], BUCKET, versioned=True)
    assert has_versions(table, BUCKET)
    assert {key: row["etag"] for key, row in listed(table).items()} == {"kept": "two", "back": "three"}


def test_rows_that_are_deleted_and_those_of_another_bucket_are_no_objects(table):
    fill(table, [Version("other", "one", BEFORE)], "another", versioned=True)
    assert (listed(table), has_versions(table, BUCKET)) == ({}, False)


def test_the_table_is_sure_of_what_is_an_hour_older_than_its_last_change(table):
    with pytest.raises(FruitsError, match="b_fruits_photos_eu.inventory is empty; wait until its status is ACTIVE"):
        date_of(table)
    fill(table, [Version("one", "one", BEFORE)], BUCKET)
    assert timedelta() <= datetime.now(UTC) - date_of(table) - DELAY < timedelta(minutes=5)


def test_a_table_of_another_kind_is_refused(table):
    with table.update_schema() as update:
        update.delete_column("is_delete_marker")
    with pytest.raises(FruitsError, match="lacks is_delete_marker: expected the live inventory table"):
        date_of(table)


def test_the_table_bucket_names_the_catalog():
    properties = catalog_properties("arn:aws:s3tables:eu-west-1:123456789012:bucket/aws-s3")
    assert properties["uri"] == "https://s3tables.eu-west-1.amazonaws.com/iceberg"
    assert properties["rest.signing-region"] == properties["s3.region"] == "eu-west-1"
    china = catalog_properties("arn:aws-cn:s3tables:cn-north-1:123456789012:bucket/aws-s3")
    assert china["uri"] == "https://s3tables.cn-north-1.amazonaws.com.cn/iceberg"
    assert table_name("fruits-photos.eu") == ("b_fruits_photos_eu", "inventory")
