from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject
from fruits.run import joining
from fruits.run.request import RunRequest
from fruits.settings import Settings
from tests.plans import plan_of

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
