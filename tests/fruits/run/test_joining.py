from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.photos.entry import Action
from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject, batch_of
from fruits.run import joining
from fruits.run.reconciliation import Ignored, KnownObject, make_plan
from fruits.run.request import RunRequest
from fruits.settings import Settings
from tests.plans import joined_again, plan_of, rows_of

RULES = KeyRules.of(Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db"))
START = datetime(2026, 11, 20, tzinfo=UTC)


@given(st.lists(st.integers(0, 5), max_size=25), st.none() | st.integers(1, 25))
def test_parts_and_ranges_change_nothing(hours, limit):
    listed = [ListedObject(f"Kiwi/{n}.jpg", "one", 9, START + timedelta(hours=hour)) for n, hour in enumerate(hours)]
    request = RunRequest(prefix="", limit=limit)
    whole = plan_of(listed, {}, RULES, request)
    before = joining._PART_ROWS, joining._SORTED_ROWS
    try:
        joining._PART_ROWS, joining._SORTED_ROWS = 3, 3
        assert plan_of(listed, {}, RULES, request) == whole
    finally:
        joining._PART_ROWS, joining._SORTED_ROWS = before


@pytest.mark.parametrize("same_rules", [True, False])
@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (RunRequest(prefix="", mode="rebuild", keys=("Kiwi/1.jpg",)), {Action.UPDATE: 1}),
        (RunRequest(prefix="", mode="rebuild"), {Action.UPDATE: 2, Action.DELETE: 1}),
        (RunRequest(prefix=""), {Action.UPDATE: 1, Action.UNCHANGED: 1, Action.DELETE: 1}),
    ],
)
def test_a_key_that_has_two_rows_has_one_entry(request_, expected, same_rules):
    listed = [ListedObject("Kiwi/1.jpg", "new", 9, START), ListedObject("Kiwi/2.jpg", "old", 9, START)]
    once = {key: KnownObject("old", START, "Kiwi", "train") for key in ("Kiwi/1.jpg", "Kiwi/2.jpg", "Kiwi/gone.jpg")}
    twice = {key: row for key, row in once.items() if key != "Kiwi/2.jpg"}
    with joined_again() as pairs:
        ignored = Ignored.by(RULES, request_)
        pairs.add("known", [rows_of(once), rows_of(twice)])
        pairs.add("listed", [batch_of(listed)])
        plan = make_plan(pairs, ignored, RULES, request_, same_rules=same_rules)
        keys = [entry.key for entry in plan.entries()]
    assert len(keys) == len(set(keys))
    assert plan.repeated == sum(key in twice for key in keys)
    assert {action: number for action, number in plan.counts.items() if number} == expected
