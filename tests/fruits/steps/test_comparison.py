"""What a plan does with a server that can't be listed in ranges of keys."""

from contextlib import nullcontext
from datetime import UTC, datetime

import pytest

from fruits.photos.entry import Action
from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject, batch_of
from fruits.photos.pages import UnorderedError
from fruits.run.reconciliation import KnownObject
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps import plan as planning
from fruits.steps.plan import Comparison
from tests.plans import joined_again, rows_of

START = datetime(2026, 11, 20, tzinfo=UTC)
KEYS = [f"Training/Kiwi/{number}.jpg" for number in range(8)]
SETTINGS = Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db")


@pytest.fixture
def compared(monkeypatch):
    """The counts of a plan on a server whose ranges list ``in_ranges``, and the bounds that it was asked for."""

    def compare(in_ranges, *, there=True, ordered=True):
        asked = []

        def listed(_, __, bounds=()):
            asked.append(list(bounds))
            objects = in_ranges if bounds else KEYS
            yield batch_of([ListedObject(key, "one", 9, START) for key in objects])
            if bounds and not ordered:
                raise UnorderedError("out of order")

        monkeypatch.setattr(planning, "listed_batches", listed)
        monkeypatch.setattr(planning, "_FEWEST_OF_RANGE", 2)
        monkeypatch.setattr(planning, "can_read_any", lambda _, keys: there(keys) if callable(there) else there)
        monkeypatch.setattr(planning, "photo_store", lambda settings: None)
        with joined_again() as pairs:
            pairs.add("known", [rows_of({key: KnownObject("one", START, "Kiwi", "train") for key in KEYS})])
            rules, request = KeyRules.of(SETTINGS), RunRequest(prefix="")
            plan = Comparison(SETTINGS, request, pairs, rules, rules.fingerprint, "", lambda _: nullcontext()).plan()
            return plan.counts[Action.UNCHANGED], plan.counts[Action.DELETE], asked

    return compare


def test_keys_of_the_tables_bound_the_ranges(compared):
    unchanged, deleted, (bounds,) = compared(list(KEYS))
    assert (unchanged, deleted, len(bounds)) == (8, 0, 3)
    assert set(bounds) < set(KEYS)


def test_ranges_out_of_order_are_listed_again_in_one_pass(compared):
    unchanged, deleted, asked = compared(KEYS[:1], ordered=False)
    assert (unchanged, deleted, [bool(bounds) for bounds in asked]) == (8, 0, [True, False])


def test_nothing_is_deleted_that_ranges_left_out_and_that_is_there(compared):
    unchanged, deleted, asked = compared(KEYS[:5])
    assert (unchanged, deleted, [bool(bounds) for bounds in asked]) == (8, 0, [True, False])


def test_objects_all_over_the_bucket_are_looked_for(compared, monkeypatch):
    """Many that are gone indeed come before those that the server left out."""
    asked = set()
    monkeypatch.setattr(planning, "_MOST_LOOKED_FOR", 2)
    for _ in range(20):
        compared(KEYS[:2], there=lambda keys: bool(asked.update(keys)))
    assert asked > {*KEYS[2:4]}


def test_what_is_gone_is_planned_to_leave(compared):
    assert compared(KEYS[:5], there=False)[:2] == (5, 3)
