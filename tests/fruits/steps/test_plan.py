from datetime import UTC, datetime

import pytest

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import current_base
from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject, batch_of
from fruits.run.decisions import Decisions
from fruits.run.reconciliation import Ignored, make_plan
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps.plan import Reconciliation, check_fit
from tests.plans import joined_again
from tests.runs import card

START = datetime(2026, 11, 20, tzinfo=UTC)
HELD_OUT = [f"Kiwi/{n}.jpg" for n in (5, 6, 8, 10, 13)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    folder = tmp_path_factory.mktemp("lake")
    return Settings.load(lake=f"file://{folder}", catalog_uri=f"sqlite:///{folder}/catalog.db")


@pytest.fixture(scope="module")
def check(settings):
    """Checks the plan of the first run on a bucket with these keys."""
    lake = Lake.open(settings)
    base = current_base(lake)

    def check_keys(keys, *, limit=None, known_rows=0):
        listed = [ListedObject(key, "one", 9, START) for key in keys]
        request = RunRequest(prefix="", limit=limit)
        rules = KeyRules.of(settings)
        with joined_again() as pairs:
            ignored = Ignored.by(rules, request)
            pairs.add("listed", ignored.others([batch_of(listed)]))
            plan = make_plan(pairs, ignored, rules, request)
            found = Reconciliation(plan, known_rows, None, False, None, request, Decisions())
            check_fit(settings, lake, base, card(), found)

    return check_keys


@pytest.mark.parametrize(
    ("keys", "limit", "expected"),
    [
        (
            HELD_OUT,
            None,
            "all 5 photos are held out: where keys name no split, a hash of the key holds out",
        ),
        (["Test/Kiwi/1.jpg", "Test/Kiwi/2.jpg"], None, "all 2 photos are held out, because their keys name a split"),
        (
            ["1.jpg", "2.jpg"],
            None,
            "'1.jpg' is refused as key_pattern. Expected photos as [Training|Test]/<label>",
        ),
        (["Test/Kiwi/1.jpg", "Training/Kiwi/1.jpg"], 1, "1 more photos are pending: raise `limit`"),
    ],
    ids=["all held out by hash", "Test only", "flat", "a limit of one"],
)
def test_a_first_run_that_has_nothing_to_fit_is_refused_before_a_jvm_and_says_why(check, keys, limit, expected):
    with pytest.raises(FruitsError) as caught:
        check(keys, limit=limit)
    assert expected in str(caught.value)
    assert ("FRUITS_HOLDOUT_SHARE" in str(caught.value)) == (keys == HELD_OUT)


@pytest.mark.parametrize(
    ("keys", "known_rows"),
    [
        (["Training/Kiwi/1.jpg", "Training/Kiwi/2.jpg"], 0),
        (["Kiwi/1.jpg", "Kiwi/2.jpg", "stray.jpg"], 0),
        (["Training/Kiwi/1.jpg"], 0),
        (HELD_OUT, 12),
        ([], 0),
        (["Kiwi/._1.jpg"], 0),
    ],
    ids=["two photos", "by hash", "one photo", "a later run", "nothing", "litter"],
)
def test_a_run_that_can_fit_or_has_nothing_to_do_goes_on(check, keys, known_rows):
    check(keys, known_rows=known_rows)
