"""The event of a publication, with fakes of Airflow's context."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from fruits.airflow import announcements
from fruits.lake.publication import Publication
from fruits.settings import Settings

pytestmark = pytest.mark.airflow


class Events(list[Any]):
    """The events of an asset, as a task may ask for them."""

    def ascending(self, ascending: bool) -> "Events":
        assert not ascending
        return self

    def limit(self, _: int) -> "Events":
        return self


def publication(sequence: int, run_id: str = "manual__1", **changed: Any) -> Publication:
    return Publication(sequence, {}, f"pub-{sequence}", run_id=run_id, **changed)


def context_of(*announced: str) -> Any:
    """The context of `publish` when publications of these ids were announced."""
    events = Events(SimpleNamespace(extra={"publication_id": one}) for one in announced)
    return {
        "inlet_events": {announcements.EMBEDDINGS: events},
        "outlet_events": {announcements.EMBEDDINGS: SimpleNamespace()},
    }


def test_a_new_publication_is_announced_also_by_the_retry_of_a_crashed_attempt() -> None:
    context = context_of("pub-6")
    extra = announcements.announce(context, publication(7), publication(7))
    assert context["outlet_events"][announcements.EMBEDDINGS].extra == extra
    assert (extra["publication_id"], extra["kind"]) == ("pub-7", "run")


@pytest.mark.parametrize(("current", "announced"), [(7, ["pub-7"]), (8, []), (8, ["pub-8", "pub-7"])])
def test_clearing_publish_alone_announces_nothing(current: int, announced: list[str]) -> None:
    context = context_of(*announced)
    with pytest.raises(AirflowSkipException, match=f"pub-7 was published .* readers see pub-{current}"):
        announcements.announce(context, publication(7), publication(current))
    assert not hasattr(context["outlet_events"][announcements.EMBEDDINGS], "extra")


@pytest.mark.parametrize(
    ("run_id", "kind"), [("rollback__2026", "rollback"), ("maintenance__x", "compaction"), ("scheduled__1", "run")]
)
def test_an_event_says_what_made_the_publication(run_id: str, kind: str) -> None:
    assert announcements.event_extra(publication(7, run_id))["kind"] == kind


@pytest.mark.parametrize(("minutes", "news"), [(1, False), (10, True), (60 * 25, False)])
def test_the_watchdog_announces_what_no_run_did(monkeypatch: pytest.MonkeyPatch, minutes: int, news: bool) -> None:
    made = publication(7, "rollback__2026", published_at=datetime.now(UTC) - timedelta(minutes=minutes))
    monkeypatch.setattr("fruits.lake.reader.open_read_only", lambda _: None)
    monkeypatch.setattr("fruits.lake.publication.publications", lambda _: [publication(6), made])
    monkeypatch.setattr(Settings, "load", lambda: None)
    if news:
        assert announcements.announce_current(context_of("pub-6"))["kind"] == "rollback"
    with pytest.raises(AirflowSkipException):
        announcements.announce_current(context_of("pub-6", "pub-7"))
    if not news:
        with pytest.raises(AirflowSkipException):
            announcements.announce_current(context_of("pub-6"))
