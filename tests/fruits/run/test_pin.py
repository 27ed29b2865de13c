"""A pin: readers stay on a publication by a person's decision, and runs publish nothing until it is taken away."""

import pytest

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications, readers_base, roll_back
from fruits.run.pin import check_unpinned, current_pin, pinned, remove_pin, set_pin, to_pin
from fruits.stores import lake_store, write_bytes


@pytest.fixture
def lake(folder_lake, fake_run):
    """A lake of two publications."""
    for pca_id in ("pca-1", "pca-2"):
        fake_run(folder_lake).publish("m", pca_id)
    return Lake.open(folder_lake)


def test_a_pin_says_who_pinned_readers_where_and_why_until_it_is_taken_away(lake):
    assert current_pin(lake.settings) is None
    newest = to_pin(lake, readers_base(lake), None)
    set_pin(lake.settings, newest, by="anna", why="a bad\n camera")
    pin = current_pin(lake.settings)
    assert (pin.sequence, pin.publication_id) == (2, newest.publication_id)
    assert str(pin).startswith(f"anna pinned readers to {newest.publication_id} on ")
    assert str(pin).endswith(" UTC: a bad camera")
    with pytest.raises(FruitsError, match="anna pinned readers .* nothing was published. After `fruits unpin`, clear"):
        check_unpinned(lake.settings)
    assert remove_pin(lake.settings)
    assert not remove_pin(lake.settings)
    check_unpinned(lake.settings)


@pytest.mark.parametrize("why", ["", " \n"])
def test_a_pin_needs_a_reason(lake, why):
    with pytest.raises(FruitsError, match="add --why"):
        set_pin(lake.settings, to_pin(lake, readers_base(lake), None), by="anna", why=why)
    assert current_pin(lake.settings) is None


def test_readers_are_pinned_to_what_they_see(lake):
    with pytest.raises(FruitsError, match="readers see pub-000002-.*, not pub-000001-.*`fruits rollback 1 --pin"):
        to_pin(lake, readers_base(lake), "1")
    roll_back(lake, "1")
    assert to_pin(lake, readers_base(lake), "1").sequence == 1
    assert to_pin(lake, readers_base(lake), None).sequence == 3


def test_where_nothing_is_published_there_is_nothing_to_stay_on(folder_lake):
    lake = Lake.open(folder_lake)
    with pytest.raises(FruitsError, match="nothing is published yet"):
        to_pin(lake, readers_base(lake), None)


def test_a_rollback_that_fails_leaves_the_pin_as_it_was(lake):
    first, second = publications(lake)
    for before in (None, "holidays"):
        if before:
            set_pin(lake.settings, second, by="anna", why=before)
        with pytest.raises(ZeroDivisionError), pinned(lake.settings, first, by="bo", why="a bad camera"):
            assert current_pin(lake.settings).by == "bo", "before readers are there, so that no run publishes meanwhile"
            raise ZeroDivisionError
        pin = current_pin(lake.settings)
        assert (pin and pin.why) == before


def test_namespaces_of_a_lake_have_pins_of_their_own(lake):
    set_pin(lake.settings, to_pin(lake, readers_base(lake), None), by="anna", why="holidays")
    assert current_pin(lake.settings.model_copy(update={"namespace": "other"})) is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"sequence": 1}'])
def test_a_document_that_is_no_pin_is_named_and_can_be_removed(lake, content):
    write_bytes(lake_store(lake.settings), "pins/fruits.json", content)
    with pytest.raises(FruitsError, match="pins/fruits.json: not a pin.*`fruits unpin` removes it"):
        current_pin(lake.settings)
    assert remove_pin(lake.settings)
    assert current_pin(lake.settings) is None
