import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from fruits import stores
from fruits.errors import FruitsError, TransientError
from fruits.photos.listing import ListedObject, first_photos, list_objects
from fruits.stores import photo_store, read_bytes
from local.stack import free_ports

KEYS = [
    "Test/Apple Red/a b.jpg",
    "Test/Pomme d'été/1.jpg",
    "Test/100% & co+/a%20b#1?=x.jpg",
    "Training/Kiwi/1.jpg",
    "Training/Kiwi 2/1.jpg",
    "Training2/Kiwi/1.jpg",
    "stray.jpg",
    "日本/リンゴ🍎.jpg",
]
MANY = 1_100


def keys(settings, prefix="") -> list[str]:
    return [item.key for item in list_objects(settings, prefix)]


def test_keys_are_listed_as_they_are_and_can_be_read(settings, put):
    put(*KEYS)
    assert sorted(keys(settings)) == sorted(KEYS)
    store = photo_store(settings)
    assert [read_bytes(store, key).decode() for key in keys(settings)] == keys(settings)


def test_an_object_is_listed_with_what_the_server_knows(settings, put):
    before = datetime.now(UTC) - timedelta(seconds=2)
    put("Kiwi/1.jpg")
    (found,) = list_objects(settings, "")
    etag = hashlib.md5(b"Kiwi/1.jpg").hexdigest()  # noqa: S324 -- S3's
    assert found == ListedObject("Kiwi/1.jpg", etag, 10, found.last_modified)
    assert before <= found.last_modified <= datetime.now(UTC) + timedelta(seconds=2)


def test_a_prefix_is_the_start_of_a_key_not_only_a_folder(settings, put):
    put(*KEYS)
    prefixes = [
        *("", "Training", "Training/", "Training/Kiwi", "Training/Kiwi/1.jpg", "stray", "日本/リ"),
        *("Test/100% & co+/a%20", "Test/Pomme d'é", "Training/Kiwi/1.jpg/", "//", "raining"),
    ]
    listed = {prefix: sorted(keys(settings, prefix)) for prefix in prefixes}
    assert listed == {prefix: sorted(key for key in KEYS if key.startswith(prefix)) for prefix in prefixes}


def test_the_first_photo_is_no_litter_where_there_is_another_object(settings, put):
    assert first_photos(settings, "") == []
    put("Training/", "Training/.DS_Store")
    assert first_photos(settings, "")[0].key in ("Training/", "Training/.DS_Store"), "better than none"
    put("Training/Kiwi/1.jpg")
    assert first_photos(settings, "")[0].key == "Training/Kiwi/1.jpg"


def test_a_strange_key_does_not_hide_the_others(settings, put):
    put("Kiwi/1.jpg", "Kiwi/new\nline.jpg", "Kiwi/2.jpg")
    assert sorted(keys(settings)) == ["Kiwi/1.jpg", "Kiwi/2.jpg", "Kiwi/new\nline.jpg"]


def test_more_keys_than_a_page_holds_are_all_listed_once(settings, stack, bucket):
    client = stack.client()
    wanted = [f"Training/Kiwi/{number}.jpg" for number in range(MANY)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=b"x"), wanted))
    assert sorted(keys(settings)) == sorted(wanted)
    assert sorted(keys(settings, "Training/Kiwi/1")) == sorted(key for key in wanted if "/1" in key)


def test_an_empty_bucket_lists_nothing(settings):
    assert keys(settings) == []


@pytest.mark.parametrize(
    ("wrong", "variables", "expected"),
    [
        ({"bucket": "no-such-bucket"}, {}, "bucket 'no-such-bucket' does not exist there; create it"),
        ({"bucket": "not a name"}, {}, "Invalid bucket name"),
        ({}, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "check AWS_SECRET_ACCESS_KEY"),
        ({}, {"AWS_ACCESS_KEY_ID": "nobody"}, "check AWS_ACCESS_KEY_ID"),
        ({}, {"AWS_PROFILE": "orchard"}, "profile (orchard) could not be found"),
        ({"s3_endpoint": "http://127.0.0.1:{port}"}, {}, "it does not answer; check FRUITS_S3_ENDPOINT"),
    ],
    ids=["bucket", "bucket name", "secret", "access key", "profile", "server"],
)
def test_what_is_wrong_is_said_within_seconds(make_settings, monkeypatch, wrong, variables, expected):
    wrong = {name: value.format(port=free_ports(1)[0]) for name, value in wrong.items()}
    settings = make_settings(**wrong)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stores._credentials.cache_clear()
    start = time.perf_counter()
    with pytest.raises(FruitsError) as caught:
        keys(settings)
    took = time.perf_counter() - start
    stores._credentials.cache_clear()
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"S3 server {settings.s3_endpoint}: ")
    assert isinstance(caught.value, TransientError) == ("s3_endpoint" in wrong), "only a server may answer later"
    assert took < 30, "one silent attempt takes 10"
