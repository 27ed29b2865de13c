import re
import time
import unicodedata
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.errors import FruitsError
from fruits.photos.keys import (
    FIT_SPLIT,
    HELD_OUT_SPLIT,
    KeyPattern,
    PhotoKey,
    check_prefix,
    nothing_to_fit,
    spelled,
    twin_labels,
)
from fruits.settings import Settings


def key_pattern(**values: object) -> KeyPattern:
    return KeyPattern.of(Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db", **values))


PATTERN = key_pattern()
NO_HOLDOUT = key_pattern(holdout_share=0)
DAY = date(2026, 11, 20)


@pytest.mark.parametrize(
    ("key", "label", "split", "day"),
    [
        ("Training/Apple Braeburn/0_100.jpg", "Apple Braeburn", "train", None),
        ("Test/Apple Braeburn/r_321_100.jpg", "Apple Braeburn", "test", None),
        ("fruits-360_dataset/fruits-360/Training/Kiwi/7_100.jpg", "Kiwi", "train", None),
        ("train/Kiwi/1.jpg", "Kiwi", "train", None),
        ("TEST/Kiwi/1.jpg", "Kiwi", "test", None),
        ("testing/Kiwi/1.jpg", "Kiwi", "test", None),
        ("val/Kiwi/1.jpg", "Kiwi", "validation", None),
        ("Validation/Kiwi/1.jpg", "Kiwi", "validation", None),
        ("Kiwi/1.jpg", "Kiwi", "train", None),
        ("raw/camera 7/Kiwi/1.jpg", "Kiwi", "train", None),
        ("dt=2026-11-20/Kiwi/1.jpg", "Kiwi", "train", DAY),
        ("dt=2026-11-20/Test/Kiwi/1.jpg", "Kiwi", "test", DAY),
        ("raw/dt=2026-11-20/camera 7/Test/Kiwi/1.jpg", "Kiwi", "test", DAY),
        ("Training/Pomme d'amour 🍎/été.jpg", "Pomme d'amour 🍎", "train", None),
        ("Test/100% Kiwi & co+/a b#1?.jpg", "100% Kiwi & co+", "test", None),
        ("Tester/Kiwi/1.jpg", "Kiwi", "train", None),
        ("Training/Test Fruit/1.jpg", "Test Fruit", "train", None),
        ("test/Fruit/Apple/Golden-Delicious/1.jpg", "Golden-Delicious", "test", None),
        ("photos/Test/Kiwi/session 2/0.jpg", "session 2", "test", None),
        ("Test/dt=2026-11-20/Kiwi/1.jpg", "Kiwi", "test", DAY),
        ("Kiwi/train/1.jpg", "Kiwi", "train", None),
        ("Fruit/Kiwi/Test/1.jpg", "Kiwi", "test", None),
        ("Kiwi/train/images/1.jpg", "images", "train", None),
        ("train/test/Kiwi/1.jpg", "Kiwi", "test", None),
        ("dev/Kiwi/1.jpg", "Kiwi", "validation", None),
        ("eval/Kiwi/1.jpg", "Kiwi", "test", None),
        ("evaluation/Kiwi/1.jpg", "Kiwi", "test", None),
        ("test_set/Kiwi/1.jpg", "Kiwi", "test", None),
        ("Training Set/Kiwi/1.jpg", "Kiwi", "train", None),
        ("train-images/Kiwi/1.jpg", "Kiwi", "train", None),
        ("valid_split/Kiwi/1.jpg", "Kiwi", "validation", None),
        ("trainset/Kiwi/1.jpg", "Kiwi", "train", None),
        ("split=test/Kiwi/1.jpg", "Kiwi", "test", None),
        ("testdata/Kiwi/1.jpg", "Kiwi", "train", None),
        ("contest/Kiwi/1.jpg", "Kiwi", "train", None),
        ("Development/Kiwi/1.jpg", "Kiwi", "train", None),
    ],
)
def test_a_layout_is_read(key, label, split, day):
    assert NO_HOLDOUT.parse(key) == PhotoKey(label, split, day)


@pytest.mark.parametrize(
    "key",
    [
        "stray.jpg",
        "Training/stray.jpg",
        "test/stray.jpg",
        "dev/stray.jpg",
        "Test/test_set/stray.jpg",
        "Kiwi/size=3/1.jpg",
        "Training/Kiwi/",
        "Kiwi/",
        "",
        "/1.jpg",
        "dt=2026-11-20/1.jpg",
        "dt=2026-11-20/Training/1.jpg",
        "dt=2026-13-40/Kiwi/1.jpg",
    ],
)
def test_a_key_without_a_label_or_with_an_impossible_date_is_not_taken(key):
    assert PATTERN.parse(key) is None


@pytest.mark.parametrize(
    "key",
    ["/Kiwi/1.jpg", "a//Kiwi/1.jpg", "./Kiwi/1.jpg", "a/../Kiwi/1.jpg", "Kiwi/..", "a\n/Kiwi/1.jpg", "Kiwi/1\x7f.jpg"],
    ids=repr,
)
def test_a_key_that_would_be_fetched_as_another_is_not_taken(key):
    assert key_pattern(key_pattern="(?s).*(?P<label>Kiwi).*").parse(key) is None


def test_another_pattern_reads_another_layout():
    pattern = key_pattern(key_pattern=r"(?P<date>\d{4}-\d\d-\d\d)_(?P<label>[a-z]+)_\d+\.jpg", holdout_share=0)
    assert pattern.parse("2026-11-20_fig_1.jpg") == PhotoKey("fig", FIT_SPLIT, DAY)
    assert pattern.parse("x/2026-11-20_fig_1.jpg") is None, "the pattern is for the whole key"


def test_a_pattern_whose_label_may_be_absent_takes_only_keys_that_have_one():
    pattern = key_pattern(key_pattern=r"(?:(?P<label>[a-z]+)/)?[^/]+", holdout_share=0)
    assert pattern.parse("fig/1.jpg") == PhotoKey("fig", FIT_SPLIT, None)
    assert pattern.parse("1.jpg") is None


RELEASED = re.compile(
    r"(?i)(?:.*?/)??(?:dt=(?P<date>\d{4}-\d{2}-\d{2})/(?:.*?/)??)?"
    r"(?:(?P<split>train|training|test|testing|val|valid|validation)/)?"
    r"(?P<label>(?!(?:train|training|test|testing|val|valid|validation)/)[^/=]+)/(?P<file>[^/]+)"
)
"""The default pattern of releases 0.1 and 0.2."""

FOLDERS = [
    "Training",
    "test",
    "val",
    "dev",
    "eval_set",
    "Kiwi",
    "Apple Red 1",
    "dt=2026-11-20",
    "dt=2026-11-21",
    "a=b",
    "contest",
]
SPLITS = frozenset({"Training", "test", "val", "dev", "eval_set"})


@given(st.lists(st.sampled_from(FOLDERS), max_size=6))
def test_a_key_is_read_as_in_earlier_releases_unless_those_lost_its_split(folders):
    key = "/".join([*folders, "1.jpg"])
    before, now = KeyPattern(RELEASED, 0).parse(key), NO_HOLDOUT.parse(key)
    split_before = before is not None and RELEASED.fullmatch(key)["split"]
    if not SPLITS & set(folders):
        assert now == before
    elif split_before and "dev" not in folders and "eval_set" not in folders:
        assert now == before, "it had its split already"
    elif now is not None:
        assert now.label not in SPLITS
        assert NO_HOLDOUT.names_split(key)
        assert before is None or now.date == before.date


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_the_holdout_has_its_share_of_each_label(share):
    pattern = key_pattern(holdout_share=share)
    for label in ("Kiwi", "Apple Red"):
        splits = [pattern.parse(f"{label}/{number}_100.jpg").split for number in range(5_000)]
        # Four standard deviations of a binomial share of 5,000.
        assert splits.count(HELD_OUT_SPLIT) / 5_000 == pytest.approx(
            share, abs=4 * (share * (1 - share) / 5_000) ** 0.5
        )
        assert set(splits) <= {FIT_SPLIT, HELD_OUT_SPLIT}


def test_the_holdout_is_the_same_in_every_release():
    """Another choice would let photos that the PCA was fitted on into its test: a change here is a breaking change."""
    held_out = [n for n in range(40) if PATTERN.parse(f"Kiwi/{n}.jpg").split == HELD_OUT_SPLIT]
    assert held_out == [5, 6, 8, 10, 13, 26, 28, 34]


@given(st.text(min_size=1).map(lambda name: f"Kiwi/{name.replace('/', '')}x"), st.floats(0, 0.5), st.floats(0, 0.49))
def test_a_larger_holdout_keeps_all_that_a_smaller_one_held_out(key, share, more):
    smaller, larger = key_pattern(holdout_share=share).parse(key), key_pattern(holdout_share=share + more).parse(key)
    assert smaller is None or smaller.split != HELD_OUT_SPLIT or larger.split == HELD_OUT_SPLIT


SHOTS = r"(?:(?P<split>Training|Test)/)?(?P<label>[^/]+)/(?:(?P<group>[^/_]+)_)?[^/]+"


def test_all_shots_of_one_group_have_one_split_and_groups_are_held_out_by_their_share():
    pattern = key_pattern(key_pattern=SHOTS, holdout_share=0.2)
    splits = [
        {pattern.parse(f"{label}/{fruit}_{shot}.jpg").split for shot in range(8)}
        for label in ("Kiwi", "Apple Red")
        for fruit in range(1_000)
    ]
    assert all(len(of_group) == 1 for of_group in splits)
    # Four standard deviations of a binomial share of 2,000.
    assert splits.count({HELD_OUT_SPLIT}) / 2_000 == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 2_000) ** 0.5)


def test_groups_of_one_name_under_two_labels_are_two_groups():
    pattern = key_pattern(key_pattern=SHOTS, holdout_share=0.5)
    splits = [{pattern.parse(f"{label}/{fruit}_1.jpg").split for label in ("Kiwi", "Fig")} for fruit in range(40)]
    assert {FIT_SPLIT, HELD_OUT_SPLIT} in splits


def test_the_group_of_a_photo_is_that_of_its_label_or_the_key_itself():
    pattern = key_pattern(key_pattern=SHOTS)
    groups = [pattern.group(key) for key in ("Kiwi/7_1.jpg", "Training/Kiwi/7_2.jpg", "Fig/7_1.jpg", "Kiwi/7.jpg", "x")]
    assert groups == ["Kiwi\x007", "Kiwi\x007", "Fig\x007", "Kiwi/7.jpg", "x"]
    assert key_pattern().group("Kiwi/7_1.jpg") == "Kiwi/7_1.jpg"


def test_a_photo_without_a_group_is_split_by_its_key_and_a_split_in_the_key_wins():
    grouped, plain = key_pattern(key_pattern=SHOTS), key_pattern()
    keys = [f"Kiwi/{number}.jpg" for number in range(100)]
    assert [grouped.parse(key).split for key in keys] == [plain.parse(key).split for key in keys]
    assert {grouped.parse(f"Training/Kiwi/{number}_1.jpg").split for number in range(100)} == {FIT_SPLIT}


def test_a_split_in_the_key_is_not_overruled_by_the_holdout():
    pattern = key_pattern(holdout_share=0.99)
    assert {pattern.parse(f"Training/Kiwi/{number}.jpg").split for number in range(100)} == {FIT_SPLIT}


@given(st.text())
def test_no_key_is_too_strange_to_be_judged(key):
    parsed = PATTERN.parse(key)
    assert parsed is None or (parsed.label in key and "/" not in parsed.label)


def test_a_long_key_is_judged_at_once():
    start = time.process_time()
    PATTERN.parse("dt=2026-11-20/" * 36 + "a/" * 250)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("key", ["test/" * 200 + "a=1/1.jpg", "a=1/" * 250 + "1.jpg", "split=" * 150 + "/1.jpg"])
def test_a_long_key_that_is_not_taken_is_judged_at_once(key):
    start = time.process_time()
    assert PATTERN.parse(key) is None
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("labels", "twins"),
    [
        (["Kiwi", "kiwi", "Fig"], [("Kiwi", "kiwi")]),
        (["Apple 6", "Apple  6", "apple\u00a06", "Apple 7"], [("Apple  6", "Apple 6", "apple\u00a06")]),
        (["Kiwi", "Kiwi ", "Kiwi\u200e"], [("Kiwi", "Kiwi ", "Kiwi\u200e")]),
        ([unicodedata.normalize(form, "Pêche") for form in ("NFC", "NFD")], [("Pe\u0302che", "P\xeache")]),
        (["Apple Red 1", "Apple Red 11", "Apple Red"], []),
        (["Straße", "STRASSE"], [("STRASSE", "Straße")]),
    ],
    ids=["case", "spaces", "invisible", "Unicode form", "different", "sharp s"],
)
def test_a_label_that_is_there_twice_but_for_case_form_or_spaces_is_noticed(labels, twins):
    assert twin_labels(labels) == twin_labels(labels[::-1]) == tuple(twins)


def test_two_forms_of_a_label_are_told_apart_in_a_message():
    assert spelled(("Pe\u0302che", "P\xeache")) == r"'Pe\u0302che' and 'P\xeache'"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([f"Kiwi/{n}.jpg" for n in (5, 6, 8, 10, 13)], ["all 5 photos are held out", "FRUITS_HOLDOUT_SHARE), here 5."]),
        (["Kiwi/5.jpg"], ["the only photo is held out", "0.2 (FRUITS_HOLDOUT_SHARE)"]),
        (["Kiwi/5.jpg", "Test/Kiwi/1.jpg"], ["all 2 photos are held out", "here 1, and keys name the split of 1."]),
        (["Test/Kiwi/1.jpg", "val/Kiwi/1.jpg"], ["their keys name a split such as `Test`", "Training/<label>/<file>"]),
    ],
    ids=["by hash", "one", "both", "by name"],
)
def test_photos_that_are_all_held_out_are_told_why(keys, expected):
    said = nothing_to_fit(PATTERN, keys)
    assert [part for part in expected if part not in said] == []
    assert ("FRUITS_HOLDOUT_SHARE" in said) == any(key.startswith("Kiwi") for key in keys)


@pytest.mark.parametrize("prefix", ["", "Training/", "Train", "a/b c/ü"])
def test_a_prefix_is_the_start_of_a_key(prefix):
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["/Training/", "s3://fruits/Training/", "https://host/x"])
def test_a_prefix_that_no_key_starts_with_is_refused(prefix):
    with pytest.raises(FruitsError, match="without a leading slash") as caught:
        check_prefix(prefix)
    assert repr(prefix) in str(caught.value)
