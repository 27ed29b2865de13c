from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.photos.listing import ListedObject, batch_of, list_objects, listed_batches
from fruits.photos.pages import Pages, UnorderedError, _page, in_ranges

START = datetime(2026, 11, 20, tzinfo=UTC)
NAMES = ["Apple", "Apple 6", "Apple-", "Apple.", "Apple/1", "Apple 6/1", "Peach", "Peach Flat", "Pêche", "リ", "🍎"]
KEYS = st.lists(
    st.builds("{}/{}/{}.jpg".format, st.sampled_from(["Test", "Training"]), st.sampled_from(NAMES), st.integers(0, 9)),
    unique=True,
    max_size=30,
)


def by_folders(key: str) -> list[bytes]:
    """The order of a server that walks through folders, as SeaweedFS does."""
    return [part.encode() for part in key.split("/")]


def server(keys: list[str], order: Callable[[str], Any], page: int = 3) -> Pages:
    """A server that keeps an order of its own, and lists what comes after a key in that order."""

    def pages(after: str) -> Iterator:
        listed = [key for key in sorted(keys, key=order) if not after or order(key) > order(after)]
        for start in range(0, max(1, len(listed)), page):
            yield batch_of([ListedObject(key, "etag", 1, START) for key in listed[start : start + page]])

    return pages


def listed_in_ranges(pages: Pages, bounds: list[str]) -> list[str]:
    return [key for batch in in_ranges(pages, bounds) for key in batch["key"].to_pylist()]


@given(KEYS, KEYS)
def test_ranges_list_each_object_once(keys, bounds):
    assert sorted(listed_in_ranges(server(keys, str.encode), bounds)) == sorted(keys)


@given(KEYS, KEYS)
def test_a_server_of_another_order_is_refused_or_has_left_nothing_out(keys, bounds):
    try:
        listed = listed_in_ranges(server(keys, by_folders), bounds)
    except UnorderedError:
        return
    assert sorted(listed) == sorted(keys)


def test_a_folder_that_another_one_s_name_starts_with_is_not_left_out():
    """The second range begins after `Apple/2`, which the first one reaches before `Apple 6/1`."""
    keys = ["Apple/1", "Apple/2", "Apple 6/1", "Apple 6/2"]
    for bound in ("Apple 6/1", "Apple-"):
        with pytest.raises(UnorderedError):
            listed_in_ranges(server(keys, by_folders), [bound])


def test_an_error_of_one_range_ends_the_listing():
    def pages(after: str) -> Iterator:
        if after:
            raise ConnectionError(after)
        yield from server(["a", "b"], str.encode)(after)

    with pytest.raises(ConnectionError, match="a"):
        listed_in_ranges(pages, ["a"])


def test_who_stops_listening_ends_all_ranges():
    batches: Any = in_ranges(server([f"{n:04}" for n in range(1_000)], str.encode), ["0100", "0500"])
    assert next(batches).num_rows > 0
    batches.close()


@pytest.mark.parametrize("fraction", [".000", "", ".000000000"])
@pytest.mark.parametrize("namespace", [' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', ""])
def test_a_page_is_read_as_any_server_writes_it(fraction, namespace):
    text = (
        f"<ListBucketResult{namespace}><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        "<NextContinuationToken>more</NextContinuationToken><Contents><ETag>&quot;e&quot;</ETag><Size>7</Size><Key>"
        f"a+b%2Bc%26%01</Key><LastModified>2026-11-20T00:00:00{fraction}Z</LastModified></Contents></ListBucketResult>"
    )
    page = _page(ET.fromstring(text))  # noqa: S314 -- our own
    assert page.objects.to_pylist() == [{"key": "a b+c&\x01", "etag": "e", "size": 7, "last_modified": START}]
    assert page.token == "more"


@pytest.mark.parametrize("bound", ["Training/Peach-", "Training/Peach Flat/1.jpg", "Training/Peach/1.jpg", "A", "z"])
def test_the_real_server_leaves_nothing_out(settings, put, bound):
    """SeaweedFS lists `Peach/1` before `Peach Flat/1`, and leaves `Peach/*` out after `Peach-`."""
    keys = [f"Training/{label}/{n}.jpg" for label in ("Peach", "Peach Flat", "Kiwi") for n in range(3)]
    put(*keys)
    assert sorted(item.key for item in list_objects(settings, "")) == sorted(keys)
    try:
        listed = [key for batch in listed_batches(settings, "", [bound]) for key in batch["key"].to_pylist()]
    except UnorderedError:
        return
    assert sorted(listed) == sorted(keys)
