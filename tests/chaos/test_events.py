"""Events under faults: what is kept stays until a publication has its keys, wherever a process dies."""

from datetime import UTC, datetime

import pytest

from fruits.run.events import Burst, keep, kept_events
from fruits.stores import effects_watched
from tests.chaos.faults import KilledError
from tests.chaos.world import FIRST, World, world


@pytest.fixture
def place():
    """A lake with a publication of the first photos."""
    with world() as made:
        made.sweep("first")
        yield made


def dies_at(kind: str, part: str, moment: str = "before"):
    """A watcher under which the process dies at an effect on a path that has a part."""

    def watcher(effect: str, path: str, when: str) -> None:
        if (effect, when) == (kind, moment) and part in path:
            raise KilledError

    return effects_watched(watcher)


def start(made: World, run_id: str, last: str = "publish") -> None:
    """A run that an event woke, to a task."""
    made.runs[run_id] = made.request(woken=True)
    made.run_on(run_id, "prepare", last=last)


def test_a_photo_of_an_event_is_published_and_its_event_forgotten(place):
    place.put("Training/Kiwi/a.jpg", b"1")
    place.put("Training/Kiwi/unheard.jpg", b"2")
    place.notify("event", ["Training/Kiwi/a.jpg"])
    place.check_readers()
    assert "Training/Kiwi/a.jpg" in place.rows[1]
    assert "Training/Kiwi/unheard.jpg" not in place.rows[1]
    assert kept_events(place.settings).files == ()
    place.sweep("sweep")
    place.check_equals_a_full_run()


def test_a_crash_between_publication_and_deletion_leaves_files_that_the_next_run_forgets(place):
    place.put("Training/Kiwi/a.jpg", b"1")
    keep(place.settings, Burst(("Training/Kiwi/a.jpg",), datetime.now(UTC)))
    start(place, "event", "validate")
    with pytest.raises(KilledError), dies_at("delete", "events/"):
        place.attempt("publish", "event")
    place.check_readers()
    assert "Training/Kiwi/a.jpg" in place.rows[1]
    assert len(kept_events(place.settings).files) == 1
    start(place, "next", "plan")
    assert kept_events(place.settings).files == ()
    place.check_equals_a_full_run()


def test_a_crash_before_the_publication_keeps_the_events(place):
    place.put("Training/Kiwi/a.jpg", b"1")
    keep(place.settings, Burst(("Training/Kiwi/a.jpg",), datetime.now(UTC)))
    start(place, "event", "validate")
    with pytest.raises(KilledError), dies_at("commit", "publications"):
        place.attempt("publish", "event")
    assert len(kept_events(place.settings).files) == 1
    start(place, "next")
    assert kept_events(place.settings).files == ()
    place.check_equals_a_full_run()


def test_an_event_that_comes_while_a_run_works_is_the_next_runs(place):
    place.put("Training/Kiwi/a.jpg", b"1")
    keep(place.settings, Burst(("Training/Kiwi/a.jpg",), datetime.now(UTC)))
    start(place, "event", "featurize")
    place.put("Training/Kiwi/a.jpg", b"2")
    later = keep(place.settings, Burst(("Training/Kiwi/a.jpg",), datetime.now(UTC)))
    place.run_on("event", "pca")
    assert kept_events(place.settings).files == (later,)
    start(place, "next")
    place.check_equals_a_full_run()


def test_a_photo_that_could_not_be_read_keeps_its_event_until_a_sweep_has_looked(place):
    place.put("Training/Kiwi/a.jpg", b"1", silent=True)
    place.put("Training/Kiwi/b.jpg", b"2")
    place.notify("event", ["Training/Kiwi/a.jpg", "Training/Kiwi/b.jpg"])
    assert kept_events(place.settings).keys == ("Training/Kiwi/a.jpg", "Training/Kiwi/b.jpg")
    place.answer()
    place.notify("next", [FIRST[0]])
    assert kept_events(place.settings).files == ()
    place.check_equals_a_full_run()


def test_a_sweep_that_plans_beside_a_run_by_events_makes_one_of_them_plan_again(place):
    """Both may hold no lease when a person interferes; the compare-and-swap lets only one publish."""
    place.put("Training/Kiwi/a.jpg", b"1")
    keep(place.settings, Burst(("Training/Kiwi/a.jpg",), datetime.now(UTC)))
    start(place, "event", "validate")
    place.sweep("sweep")
    place.run_on("event", "publish")
    assert kept_events(place.settings).files == ()
    place.check_equals_a_full_run()


def test_runs_by_events_fit_no_pca_and_the_next_sweep_makes_up_for_the_growth(place):
    fitted = place.last[-1].pca_id
    keys = [f"Training/Kiwi/new {number}.jpg" for number in range(4)]
    for number, key in enumerate(keys):
        place.put(key, f"{number}".encode())
    place.notify("event", keys)
    place.check_readers()
    assert (place.last[-1].pca_id, place.last[-1].remaining) == (fitted, None)
    place.sweep("sweep")
    place.check_equals_a_full_run()
    assert place.last[-1].pca_id != fitted
    assert place.last[-1].remaining == 0
