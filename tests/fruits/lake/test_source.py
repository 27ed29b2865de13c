"""A lake holds the photos of one place: other servers, buckets and prefixes are refused until a person moves them."""

import json

import pytest

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.source import PhotoSource, bind_source, check_source, move_source, recorded_source

BOUND = {"bucket": "fruits", "prefix": "photos/", "s3_endpoint": "https://s3.example:9000"}


@pytest.fixture
def bound(lake_settings):
    lake = Lake.open(lake_settings(**BOUND))
    bind_source(lake)
    return lake


def test_a_new_lake_records_where_its_photos_are_and_takes_them_again(bound, lake_settings):
    assert recorded_source(bound) == PhotoSource("fruits", "s3.example:9000", "photos/")
    bind_source(Lake.open(lake_settings(**BOUND)))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"bucket": "other"}, "not of s3://other/photos/ on s3.example:9000"),
        ({"prefix": ""}, "not of s3://fruits/ on s3.example:9000"),
        ({"prefix": "photos/2026/"}, "not of s3://fruits/photos/2026/ on"),
        ({"prefix": "pictures/"}, "not of s3://fruits/pictures/ on"),
        ({"s3_endpoint": None}, "not of s3://fruits/photos/ on AWS"),
        ({"s3_endpoint": "https://s3.example:9001"}, "on s3.example:9001"),
        ({"s3_endpoint": "http://127.0.0.1:9000"}, "on this machine"),
    ],
    ids=str,
)
def test_another_place_is_refused_by_name_and_nothing_is_recorded(bound, lake_settings, changed, named):
    lake = Lake.open(lake_settings(**{**BOUND, **changed}))
    for look in (check_source, bind_source):
        with pytest.raises(FruitsError) as refused:
            look(lake)
        assert f"holds the photos of s3://fruits/photos/ on s3.example:9000, {named}"[:40] in str(refused.value)
        assert named in str(refused.value)
        assert "`fruits move-photos`" in str(refused.value)
    assert recorded_source(lake) == PhotoSource("fruits", "s3.example:9000", "photos/")


def test_a_look_records_nothing(lake):
    check_source(lake)
    assert recorded_source(lake) is None


def test_a_lake_of_an_earlier_release_knows_its_bucket_and_learns_the_rest(lake_settings):
    lake = Lake.open(lake_settings(**BOUND))
    lake.set_properties({"fruits.bucket": "fruits"})
    with pytest.raises(FruitsError, match="the photos of s3://fruits/, not of s3://other/"):
        bind_source(Lake.open(lake_settings(**{**BOUND, "bucket": "other"})))
    check_source(lake)
    bind_source(lake)
    assert recorded_source(lake) == PhotoSource("fruits", "s3.example:9000", "photos/")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("http://127.0.0.1:8333", "http://localhost:41067"),  # an embedded server has another port each time
        (None, "https://s3.eu-west-3.amazonaws.com"),
        ("https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", None),
        ("https://S3.Example", "http://s3.example"),
    ],
)
def test_a_server_is_known_by_each_of_its_addresses(lake_settings, first, second):
    bind_source(Lake.open(lake_settings(s3_endpoint=first)))
    check_source(Lake.open(lake_settings(s3_endpoint=second)))


def test_photos_move_by_a_persons_recorded_decision(bound, lake_settings):
    moved = Lake.open(lake_settings(bucket="fruits", prefix="photos/2026/"))
    move_source(moved, by="anna", why="the old years are archived")
    check_source(moved)
    assert recorded_source(moved) == PhotoSource("fruits", "AWS", "photos/2026/")
    with pytest.raises(FruitsError, match="not of s3://fruits/photos/ on s3.example"):
        check_source(bound)
    decision = json.loads(moved.properties()["fruits.photos-moved"])
    assert (decision["by"], decision["why"]) == ("anna", "the old years are archived")
    assert decision["from"] == "s3://fruits/photos/ on s3.example:9000"
