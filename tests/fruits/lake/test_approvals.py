"""A question, a person's approval of it, and what becomes of both."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fruits.errors import FruitsError
from fruits.lake.approvals import (
    LAPSES_AFTER,
    Approval,
    approve,
    ask,
    chosen,
    digest_of,
    outdated,
    read_approvals,
    withdraw,
)
from fruits.settings import Settings
from fruits.stores import lake_store, write_bytes

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def question(number: int = 1, **changed: Any) -> Approval:
    """A question about so many deletions."""
    digest = digest_of("deletions", [str(number)])
    details = {"first_keys": ["Kiwi/\u202f1.jpg", "\x1b[31m"], "by_label": {"Kiwi": 2}}
    return replace(Approval("deletions", digest, f"Remove {number}?", number, "run", NOW, details), **changed)


def test_a_question_is_read_as_it_was_asked(folder_lake: Settings) -> None:
    asked = ask(folder_lake, question())
    assert read_approvals(folder_lake) == [asked]


def test_asking_again_changes_nothing_and_does_not_undo_an_approval(folder_lake: Settings) -> None:
    ask(folder_lake, question())
    decided = approve(folder_lake, question(), by="ada", why=" moved ", via="fruits approve")
    assert ask(folder_lake, question(asked_at=NOW + timedelta(hours=1))) == decided
    assert read_approvals(folder_lake) == [decided]
    assert (decided.approved_by, decided.why, decided.via) == ("ada", "moved", "fruits approve")
    assert decided.approved_at is not None


def test_an_approval_needs_a_reason(folder_lake: Settings) -> None:
    with pytest.raises(FruitsError, match="expected a reason"):
        approve(folder_lake, question(), by="ada", why=" ", via="fruits approve")


def test_the_oldest_question_comes_first_and_one_that_is_withdrawn_is_gone(folder_lake: Settings) -> None:
    newer, older = question(1), question(2, asked_at=NOW - timedelta(days=1))
    for one in (newer, older):
        ask(folder_lake, one)
    assert read_approvals(folder_lake) == [older, newer]
    withdraw(folder_lake, [older, older])
    assert read_approvals(folder_lake) == [newer]


def test_a_file_that_is_no_question_is_named(folder_lake: Settings) -> None:
    write_bytes(lake_store(folder_lake), "approvals/fruits/deletions_1.json", b'{"kind": "else"}')
    with pytest.raises(
        FruitsError, match="approvals/fruits/deletions_1.json in the lake: not a document of an approval"
    ):
        read_approvals(folder_lake)


class TestChosen:
    def test_by_the_start_of_its_digest_or_as_the_only_one(self) -> None:
        one, other = question(1), question(2)
        assert chosen([one, other], other.short) == other
        assert chosen([one, other], other.digest.upper()) == other
        assert chosen([one, question(2).approved("ada", "so", "Airflow")], None) == one

    @pytest.mark.parametrize("digest", [None, "0" * 12, "ab"])
    def test_otherwise_those_that_wait_are_listed(self, digest: str | None) -> None:
        with pytest.raises(FruitsError, match=r"waiting for a decision: .*Remove 1\?.*Remove 2\?"):
            chosen([question(1), question(2)], digest)

    def test_what_is_approved_already_waits_no_more(self) -> None:
        decided = question().approved("ada", "so", "Airflow")
        with pytest.raises(FruitsError, match="waiting for a decision: nothing"):
            chosen([decided], decided.short)


class TestOutdated:
    def test_deletions_of_another_set_are_also_when_they_were_approved(self) -> None:
        asked, other = question(1), question(2).approved("ada", "so", "Airflow")
        assert outdated([asked, other], [asked], NOW) == [other]

    @pytest.mark.parametrize("kind", ["gates", "rebuild", "refit", "backbone"])
    def test_others_lapse(self, kind: Any) -> None:
        one = question(kind=kind)
        assert outdated([one], [], NOW + LAPSES_AFTER) == []
        assert outdated([one], [], NOW + LAPSES_AFTER + timedelta(seconds=1)) == [one]

    def test_one_that_was_approved_lapses_later(self) -> None:
        one = question(kind="rebuild", approved_at=NOW + timedelta(days=2))
        assert outdated([one], [], NOW + LAPSES_AFTER + timedelta(days=1)) == []


def test_a_digest_tells_kinds_and_parts_apart() -> None:
    digests = {digest_of("gates", ["a", "b"]), digest_of("gates", ["ab"]), digest_of("refit", ["a", "b"])}
    assert len(digests) == 3
