"""What the watchdog and `fruits doctor --stale` find, and that each finding is told once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fruits.lake.publication import Publication
from fruits.run.pin import set_pin
from fruits.run.request import RunRequest
from fruits.serve import watch
from fruits.serve.watch import Freshness, Observation, Schedule, news, observe, observe_tables, stale
from fruits.settings import Settings
from tests.runs import NO_OBJECTS, START, document, planned, write_documents

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
FRESH = Freshness(NOW - timedelta(minutes=50))
IDLE = Schedule(next_sweep=NOW - timedelta(minutes=50))


def observed(freshness: Freshness | None = FRESH, schedule: Schedule | None = IDLE, **errors: str) -> Observation:
    return Observation(NOW, timedelta(hours=6), freshness, schedule, errors)


def hours_ago(hours: float) -> datetime:
    return NOW - timedelta(hours=hours)


@pytest.mark.parametrize(
    ("observation", "checks"),
    [
        (observed(), []),
        (observed(Freshness(hours_ago(5.9))), []),
        (observed(Freshness(hours_ago(6.1))), ["tables"]),
        (observed(Freshness(None, since=hours_ago(7))), ["tables"]),
        (observed(Freshness(None, since=hours_ago(1))), []),  # the first run is still at work
        (observed(Freshness()), []),
        (observed(Freshness(hours_ago(99), empty=True)), []),  # an empty bucket has nothing to bring up to date
        (observed(schedule=Schedule(paused=True, next_sweep=hours_ago(99), queued=3)), ["DAG"]),
        (observed(schedule=Schedule(next_sweep=hours_ago(2.9))), []),
        (observed(schedule=Schedule(next_sweep=hours_ago(3.1))), ["sweeps"]),
        (observed(schedule=Schedule(queued=2)), ["queue"]),
        (observed(schedule=Schedule(queued=2, running=1)), []),
        (observed(schedule=Schedule(import_errors={"a.py": "x", "b.py": "y"})), ["import of a.py", "import of b.py"]),
        (observed(None, None, lake="no answer", settings="a typo"), ["lake", "settings"]),
        (observed(None, None), []),
    ],
)
def test_each_thing_that_is_wrong_is_a_finding_with_its_fix(observation: Observation, checks: list[str]) -> None:
    findings = stale(observation)
    assert [finding.check for finding in findings] == checks
    assert all(finding.state == "fail" and finding.fix for finding in findings)


def test_old_tables_tell_their_age_and_what_is_pending() -> None:
    (finding,) = stale(observed(Freshness(hours_ago(9), pending=1_200)))
    assert "for 9 h" in finding.found
    assert "2026-11-22 03:00 UTC; 1,200 photos are pending" in finding.found


def test_a_finding_is_told_once_and_once_more_when_it_is_over() -> None:
    old, older, fine = (stale(observed(Freshness(hours_ago(hours)))) for hours in (7, 8, 1))
    first = news({}, old)
    assert [one.check for one in first.begun] == ["tables"]
    second = news(first.alerted, older)
    assert not second, "only the age has changed"
    over = news(second.alerted, fine)
    assert (over.begun, list(over.over), over.alerted) == ([], ["tables"], {})
    assert not news(over.alerted, fine)
    assert news(over.alerted, old), "a new time is told again"


def test_one_finding_does_not_hide_the_next() -> None:
    first = news({}, stale(observed(Freshness(hours_ago(7)))))
    both = news(first.alerted, stale(observed(Freshness(hours_ago(8)), Schedule(paused=True))))
    assert [one.check for one in both.begun] == ["DAG"]
    assert both.over == {}
    assert set(both.alerted) == {"tables", "DAG"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(lake=f"file://{tmp_path / 'lake'}", catalog_uri=f"sqlite:///{tmp_path}/c.db")


def leave(settings: Settings, run_id: str, minute: int, **changed: Any) -> None:
    """The plan of a run."""
    plan = planned(run_id, planned_at=START + timedelta(minutes=minute), **changed)
    write_documents(settings, document("plan", minute, plan), run_id=run_id)


def test_the_lake_tells_when_it_was_up_to_date_and_what_is_pending(settings: Settings) -> None:
    assert observe_tables(settings) == Freshness()
    leave(settings, "all", 0, work=False)
    assert observe_tables(settings).last == START + timedelta(seconds=10)
    leave(settings, "part", 60, remaining=3, counts={**NO_OBJECTS, "pending": 3}, request=RunRequest(prefix=""))
    seen = observe_tables(settings)
    assert (seen.last, seen.pending) == (START + timedelta(seconds=10), 3)


def test_a_lake_that_does_not_answer_is_a_finding(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Settings) -> Freshness:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(watch, "observe_tables", broken)
    (finding,) = stale(observe(settings, None, {}))
    assert finding.check == "lake"
    assert finding.found.endswith("cannot be read: no route to host")


@pytest.mark.parametrize(("empty", "checks"), [(True, []), (False, ["tables"])])
def test_old_tables_of_an_empty_bucket_are_no_finding(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, empty: bool, checks: list[str]
) -> None:
    leave(settings, "all", 0, work=False)  # long ago
    monkeypatch.setattr(watch, "is_empty", lambda _: empty)
    assert [finding.check for finding in stale(observe(settings, None, {}))] == checks


def test_old_tables_that_a_person_pinned_are_no_finding(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(settings, "all", 0, work=False)  # long ago
    monkeypatch.setattr(watch, "is_empty", lambda _: False)
    set_pin(settings, Publication(3, {}, "pub-000003-abcdef"), "ada", "a bad backbone")
    assert stale(observe(settings, None, {})) == []
