import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.lake.approvals import Approval
from fruits.lake.publication import Publication
from fruits.run.deletions import DeletionBounds, Leaving, Withheld, recent_deletions, withheld_deletions

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
BOUNDS = DeletionBounds(share=0.2, few=50, most=10_000)


def gone(number: int, label: str | None = "Kiwi") -> list[tuple[str, str, str | None]]:
    """Key, ETag and label of so many rows that leave."""
    return [(f"{label}/{place:06d}.jpg", "e", label) for place in range(number)]


def decided(number: int, rows: int, recent: int = 0, **more: Any) -> Withheld:
    """The decision on so many deletions of photos of a label, of so many rows."""
    return withheld_deletions({"Kiwi": number}, {"Kiwi": rows}, recent, more.pop("bounds", BOUNDS), **more)


ALL = None
NONE: frozenset[str] = frozenset()


def labels_of(withheld: Withheld) -> frozenset[str] | None:
    """The labels whose deletions wait."""
    return withheld.labels if withheld else NONE


def publication(hours_ago: float, delete: int, run_id: str = "run", approved: int = 0) -> Publication:
    """A publication that deleted so many rows, some of them by an approval."""
    approvals = (Approval("deletions", "d", "?", approved, "run", NOW),) if approved else ()
    published_at = NOW - hours_ago * HOUR
    return Publication(1, {}, run_id=run_id, published_at=published_at, counts={"delete": delete}, approvals=approvals)


@pytest.mark.parametrize(
    ("number", "rows", "recent", "withheld"),
    [
        (50, 100, 0, False),  # few, whatever their share
        (51, 100, 0, True),
        (200, 1_000, 0, False),  # the share itself is within
        (201, 1_000, 0, True),
        (10_000, 1_000_000, 0, False),
        (10_001, 1_000_000, 0, True),
        (101, 900, 100, True),  # together 201 of the 1,000 rows of yesterday
        (100, 900, 100, False),
        (1, 990_000, 10_000, True),
    ],
)
def test_deletions_beyond_the_bounds_are_withheld_all_of_them(
    number: int, rows: int, recent: int, withheld: bool
) -> None:
    found = decided(number, rows, recent)
    assert labels_of(found) == (ALL if withheld else NONE)


def test_the_bounds_are_settings() -> None:
    strict = replace(BOUNDS, share=0.0, few=0)
    assert labels_of(decided(1, 1_000, bounds=strict)) is ALL
    lenient = DeletionBounds(share=1.0, few=0, most=10**9)
    assert decided(999, 1_000, bounds=lenient) == Withheld()


def test_an_empty_listing_withholds_even_one_deletion() -> None:
    assert labels_of(decided(1, 2, nothing_listed=True)) is ALL


def test_what_waits_goes_on_waiting_when_time_has_passed() -> None:
    """Yesterday's deletions no longer count, but nobody has decided."""
    assert decided(10, 1_000) == Withheld()
    assert labels_of(decided(10, 1_000, still_waiting=True)) is ALL


class TestLastPhotoOfALabel:
    def test_only_the_deletions_of_that_label_are_withheld(self) -> None:
        found = withheld_deletions({"Fig": 3, "Kiwi": 2}, {"Fig": 3, "Kiwi": 1_000}, 0, BOUNDS)
        assert found.labels == {"Fig"}
        assert "'Fig'" in found.reasons[0]

    def test_a_label_that_keeps_or_gets_a_photo_is_none_of_them(self) -> None:
        assert decided(2, 3) == Withheld()
        assert decided(3, 3, arriving={"Kiwi"}) == Withheld()
        assert decided(3, 3, arriving={"Fig"}) != Withheld()

    def test_quarantined_objects_have_no_label(self) -> None:
        assert withheld_deletions({None: 3}, {None: 3, "Kiwi": 9}, 0, BOUNDS) == Withheld()

    def test_a_setting_turns_it_off(self) -> None:
        assert decided(3, 3, bounds=replace(BOUNDS, keep_labels=False)) == Withheld()


class TestLeaving:
    @pytest.mark.parametrize("place", [0, 1], ids=["key", "etag"])
    def test_another_key_or_etag_makes_another_digest(self, place: int) -> None:
        one, other = gone(2), gone(2)
        other[1] = ("Kiwi/000002.jpg", "e", "Kiwi") if place == 0 else (one[1][0], "f", "Kiwi")
        assert Leaving.of(one).digest == Leaving.of(gone(2)).digest
        assert Leaving.of(one).digest != Leaving.of(other).digest
        assert Leaving.of(one).digest != Leaving.of(one[:1]).digest

    def test_it_is_that_of_earlier_releases(self) -> None:
        """An approval names the digest; the same deletions must have the same after an upgrade."""
        parts = "deletions\0Kiwi/000000.jpg\0e\0Kiwi/000001.jpg\0e"
        assert Leaving.of(gone(2)).digest == hashlib.sha256(parts.encode()).hexdigest()

    def test_numbers_by_label_name_the_quarantined_too(self) -> None:
        found = Leaving.of([*gone(3, "Fig"), *gone(2), *gone(1, None)])
        assert list(found.by_label.items()) == [("Fig", 3), ("Kiwi", 2), ("(quarantined)", 1)]
        assert (found.number, found.first_keys[0]) == (6, "Fig/000000.jpg")


class TestRecentDeletions:
    def test_those_of_the_last_day_count(self) -> None:
        assert recent_deletions([publication(25, 7), publication(23, 5), publication(1, 4)], NOW) == 9

    def test_approved_ones_do_not(self) -> None:
        assert recent_deletions([publication(2, 500, approved=490)], NOW) == 10

    @pytest.mark.parametrize("run_id", ["rollback__2026-11-26T12:00:00+00:00", "maintenance__scheduled__2026-11-22"])
    def test_a_publication_that_repeats_counts_counts_once(self, run_id: str) -> None:
        assert recent_deletions([publication(2, 5), publication(1, 5, run_id)], NOW) == 5


@given(
    rows=st.integers(0, 400),
    hourly=st.lists(st.integers(0, 60), max_size=40),
    bounds=st.builds(
        DeletionBounds,
        share=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
        few=st.integers(0, 60),
        most=st.integers(0, 100),
        keep_labels=st.booleans(),
    ),
)
def test_no_trickle_of_a_day_passes_the_bounds(rows: int, hourly: list[int], bounds: DeletionBounds) -> None:
    """However the deletions are spread over hours, no 24 hours see more of them than one run could make."""
    published: list[Publication] = []
    left, at_hour = rows, []
    for hour, number in enumerate(hourly):
        moment = NOW + hour * HOUR
        at_hour.append(left)
        deletions = min(number, left)
        recent = recent_deletions(published, moment)
        withheld = withheld_deletions({"Kiwi": deletions}, {"Kiwi": left}, recent, bounds)
        made = 0 if withheld else deletions
        left -= made
        published.append(replace(publication(0, made), published_at=moment))
    made_at = [(one.counts or {})["delete"] for one in published]
    for end in range(len(made_at)):
        start = max(0, end - 23)
        day = sum(made_at[start : end + 1])
        assert day <= max(bounds.few, bounds.share * at_hour[start])
        assert day <= bounds.most
    assert not (bounds.keep_labels and rows and not left)


LABELLED = st.dictionaries(st.sampled_from(["Kiwi", "Fig", "Lemon", None]), st.integers(1, 80), min_size=1)


@given(known=LABELLED, leaving=st.data(), arriving=st.sets(st.sampled_from(["Kiwi", "Fig", "Lime"])))
def test_no_label_is_left_without_a_row_and_nothing_else_is_withheld_for_labels(
    known: dict[str | None, int], leaving: st.DataObject, arriving: set[str]
) -> None:
    numbers = {label: leaving.draw(st.integers(0, number)) for label, number in known.items()}
    found = labels_of(withheld_deletions(numbers, known, 0, replace(BOUNDS, few=10**6), arriving=arriving))
    kept = {label: number if label in found else 0 for label, number in numbers.items()}
    for label, number in known.items():
        left = number - numbers[label] + kept[label]
        assert left > 0 or label is None or label in arriving
        assert kept[label] in (0, numbers[label])
        assert not kept[label] or numbers[label] == number
