"""Objects looked up one by one, on a server that counts requests."""

from collections import Counter

import pytest

from fruits.errors import DeniedError, FruitsError, TransientError
from fruits.photos.listing import list_objects
from fruits.photos.lookup import looked_up_batches
from tests.misbehaving import always, misbehaving_server, refuse, status

KEYS = tuple(f"Training/Kiwi/{number:03}.jpg" for number in range(100))


@pytest.fixture
def server():
    with misbehaving_server() as running:
        running.objects |= {key: key.encode() for key in KEYS}
        yield running


@pytest.fixture
def settings(server, folder_lake):
    return folder_lake.model_copy(update={"s3_endpoint": server.endpoint})


def found(settings, keys):
    """The objects by key."""
    rows = [row for batch in looked_up_batches(settings, keys) for row in batch.to_pylist()]
    return {row.pop("key"): row for row in rows}


def test_each_key_is_one_head_and_nothing_else_and_tells_what_a_listing_tells(server, settings):
    looked_up = found(settings, KEYS)
    assert Counter(server.requests) == Counter(("HEAD", key) for key in KEYS)
    listed = {item.key: item for item in list_objects(settings, "")}
    for key in KEYS:
        assert looked_up[key] == {name: getattr(listed[key], name) for name in ("etag", "size", "last_modified")}


def test_a_key_that_is_gone_is_left_out(settings):
    assert found(settings, ("Training/Kiwi/000.jpg", "Training/Kiwi/gone.jpg")).keys() == {"Training/Kiwi/000.jpg"}


def test_a_missing_bucket_is_no_bucket_of_photos_that_are_gone(server, settings):
    server.fault = always(status(404))
    with pytest.raises(FruitsError, match="bucket 'fruits' does not exist there; create it, or correct FRUITS_BUCKET"):
        found(settings, KEYS[:2])


@pytest.mark.parametrize("code", [400, 403], ids=["a customer's key", "denied"])
def test_an_object_that_is_refused_is_there_as_a_listing_says(server, settings, code):
    server.faults[KEYS[0]] = always(status(code))
    assert found(settings, KEYS[:2]).keys() == set(KEYS[:2])


def test_a_role_that_may_neither_read_nor_list_is_named(server, settings):
    server.fault = always(refuse("AccessDenied", 403, "Access Denied"))
    with pytest.raises(DeniedError, match="denies s3:ListBucket"):
        found(settings, KEYS[:2])


def test_a_server_that_does_not_answer_takes_no_photo_for_gone(server, settings, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server.faults[KEYS[0]] = always(status(503))
    with pytest.raises(TransientError, match="it does not answer"):
        found(settings, KEYS[:2])
