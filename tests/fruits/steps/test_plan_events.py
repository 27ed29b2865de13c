"""Plans of single keys: those of events, and of the param `keys`. On an S3 server that counts, and a real lake."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import md5
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from obstore.store import MemoryStore

from fruits.analysis.gates import Gate
from fruits.analysis.pca import components_asked
from fruits.errors import FruitsError
from fruits.lake.approvals import read_approvals
from fruits.lake.branches import Writer
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, current_base, publish
from fruits.photos.entry import Action
from fruits.photos.listing import listed_batches
from fruits.run import events, sources
from fruits.run.documents import run_store
from fruits.run.events import Burst, keep, kept_files
from fruits.run.lease import release_lease
from fruits.run.manifest import StoredManifest
from fruits.run.pin import set_pin
from fruits.run.request import RunRequest, resolve_request
from fruits.run.state import PlannedRun
from fruits.settings import Settings
from fruits.steps import plan as plan_step
from fruits.steps import publish as publish_step
from fruits.steps.plan import plan_run
from fruits.steps.prepare import prepare
from tests.misbehaving import StandIn, misbehaving_server
from tests.runs import MODEL_ID, card
from tests.sources import Version, write_report

DATA = b"a photo"
ETAG = md5(DATA, usedforsecurity=False).hexdigest()
KIWIS = [f"train/Kiwi/{number:03}.jpg" for number in range(100)]
FIGS = [f"test/Fig/{number}.jpg" for number in range(4)]
LIST = ("GET", "")
NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)  # of the rows


@dataclass
class Place:
    """A bucket whose server counts requests, and its lake with a published row for each photo."""

    settings: Settings
    server: StandIn
    runs: int = 0

    def event(self, *keys: str) -> str:
        """Events name these keys; returns their file."""
        return keep(self.settings, Burst(keys, datetime.now(UTC)))

    def plan(self, run_type: str = "asset_triggered", **params: Any) -> PlannedRun:
        """The plan of the next run, by default of a run that events woke; the requests are counted from its start."""
        self.runs += 1
        self.server.requests.clear()
        request = resolve_request(params, self.settings, run_type=run_type, keys_are_kept=True)
        planned = plan_run(self.settings, request, f"run {self.runs}")
        release_lease(self.settings, planned.key)
        return planned

    def actions(self, planned: PlannedRun) -> dict[str, Action]:
        """The manifest of a run: action by key."""
        manifest = StoredManifest(run_store(self.settings, planned.key), planned.manifest)
        return {row["key"]: Action(row["action"]) for row in manifest.columns("key", "action").to_pylist()}

    def publish(self, **changed: Any) -> Publication:
        """A publication of the same rows."""
        return publish_again(self.settings, **changed)

    @property
    def asked_for(self) -> list[tuple[str, str]]:
        """What the server was asked for."""
        return sorted(self.server.requests)


def a_hundred_photos(settings: Settings, fake_run: Any) -> None:
    """A lake with a hundred photos in the fit split and four others."""
    run = fake_run(settings)
    common = run._common
    run._common = lambda key, model: {**common(key, model), "etag": ETAG}
    run.n_components = components_asked(settings.n_components, settings.max_components)
    generator = np.random.default_rng(7)
    pca_id = run.write({key: generator.random(4, dtype=np.float32) for key in KIWIS + FIGS}, MODEL_ID)
    run.publish(MODEL_ID, pca_id)
    publish_again(settings, counts={"features": 104, "quarantine": 0, "remaining": 0})


def publish_again(settings: Settings, **changed: Any) -> Publication:
    """A publication of the same rows."""
    lake = Lake.open(settings)
    base = current_base(lake)
    sequence = base.publication.sequence + 1
    row = replace(base.publication, sequence=sequence, run_id=f"published {sequence}", **changed)
    return publish(lake, base, Writer(f"counts{sequence}", "publish"), row)


@pytest.fixture
def server() -> Iterator[StandIn]:
    """An S3 server that counts requests."""
    with misbehaving_server() as running:
        yield running


@pytest.fixture
def place(as_made: Any, fake_run: Any, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A hundred photos in the fit split and four others; no TensorFlow builds the backbone."""
    monkeypatch.setattr(plan_step, "staged_card", lambda _: card())
    lake = as_made(a_hundred_photos, fake_run)
    server.objects |= dict.fromkeys(KIWIS + FIGS, DATA)
    return Place(lake.model_copy(update={"s3_endpoint": server.endpoint, "few_deletions": 3}), server)


class TestOfEvents:
    def test_a_hundred_keys_are_a_hundred_heads_and_no_listing(self, place: Place) -> None:
        new = [f"train/Kiwi/new {number}.jpg" for number in range(99)]
        place.server.objects |= dict.fromkeys([*new, KIWIS[0]], b"other bytes")
        place.event(*new[:50])
        place.event(*new[50:], KIWIS[0])
        planned = place.plan()
        assert place.asked_for == sorted(("HEAD", key) for key in [*new, KIWIS[0]])
        assert place.actions(planned) == dict.fromkeys(new, Action.CREATE) | {KIWIS[0]: Action.UPDATE}
        assert (planned.known_rows, planned.remaining, planned.building) == (104, None, False)
        assert len(planned.events) == 2

    def test_the_rows_of_the_keys_are_all_that_is_read_of_the_tables(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = []
        batches = Lake.batches

        def noted(self: Lake, *scan: Any, **conditions: Any) -> Any:
            for batch in batches(self, *scan, **conditions):
                read.extend(batch["key"].to_pylist())
                yield batch

        monkeypatch.setattr(Lake, "batches", noted)
        place.event("train/Kiwi/new.jpg", KIWIS[7], FIGS[0])
        place.plan()
        assert sorted(read) == sorted([KIWIS[7], FIGS[0]])

    def test_late_doubled_and_reordered_events_do_no_harm(self, place: Place) -> None:
        """The object counts, whatever the events say, and in which order they come."""
        for keys in (["train/Kiwi/b.jpg", KIWIS[0]], ["train/Kiwi/a.jpg"], ["train/Kiwi/b.jpg"]):
            place.event(*keys)
        place.server.objects |= {"train/Kiwi/a.jpg": DATA, "train/Kiwi/b.jpg": DATA}
        assert place.actions(place.plan()) == {"train/Kiwi/a.jpg": Action.CREATE, "train/Kiwi/b.jpg": Action.CREATE}

    def test_an_event_that_was_lost_is_made_up_for_by_a_sweep(self, place: Place) -> None:
        place.server.objects |= {"train/Kiwi/a.jpg": DATA, "train/Kiwi/lost.jpg": DATA}
        place.event("train/Kiwi/a.jpg")
        assert place.actions(place.plan()).keys() == {"train/Kiwi/a.jpg"}
        assert place.actions(place.plan("scheduled")).keys() == {"train/Kiwi/a.jpg", "train/Kiwi/lost.jpg"}

    def test_events_about_photos_that_are_as_the_tables_have_them_are_forgotten(self, place: Place) -> None:
        place.event(KIWIS[0], FIGS[0])
        planned = place.plan()
        assert (planned.work, planned.counts["unchanged"]) == (False, 2)
        assert kept_files(place.settings) == ()

    def test_a_run_without_a_kept_key_has_nothing_to_do(self, place: Place) -> None:
        """The run before has taken the keys of its event."""
        planned = place.plan()
        assert (planned.work, place.asked_for) == (False, [])

    def test_a_photo_that_came_and_went_is_nothing(self, place: Place) -> None:
        place.event("train/Kiwi/gone.jpg")
        assert not place.plan().work

    def test_a_vanished_photo_leaves_the_tables(self, place: Place) -> None:
        del place.server.objects[KIWIS[3]]
        place.event(KIWIS[3])
        planned = place.plan()
        assert place.actions(planned) == {KIWIS[3]: Action.DELETE}
        assert LIST not in place.server.requests

    def test_an_ignored_object_is_none_of_ours_and_its_row_leaves(self, place: Place) -> None:
        place.server.objects["train/Kiwi/.hidden"] = DATA
        place.event("train/Kiwi/.hidden", KIWIS[0])
        assert not place.plan().work
        place.settings = place.settings.model_copy(update={"ignore": ("default", "000.jpg")})
        place.event(KIWIS[0])
        assert place.actions(place.plan()) == {KIWIS[0]: Action.DELETE}

    def test_the_events_of_a_run_that_is_pinned_or_not_published_stay(self, place: Place) -> None:
        place.event("train/Kiwi/a.jpg")
        place.server.objects["train/Kiwi/a.jpg"] = DATA
        assert place.plan().work
        set_pin(place.settings, current_base(Lake.open(place.settings)).publication, "ada", "a demonstration")
        assert not place.plan().work
        assert len(kept_files(place.settings)) == 1


class TestDeletions:
    def test_many_wait_for_a_person_as_in_a_sweep(self, place: Place) -> None:
        for key in KIWIS[:30]:
            del place.server.objects[key]
        place.event(*KIWIS[:30])
        planned = place.plan()
        assert (planned.work, planned.counts["delete"]) == (False, 0)
        (question,) = read_approvals(place.settings)
        assert question.question.startswith("Remove 30 of 104 rows")

    def test_the_last_photos_of_a_label_wait_for_a_person(self, place: Place) -> None:
        for key in [*FIGS, KIWIS[0]]:
            del place.server.objects[key]
        place.settings = place.settings.model_copy(update={"few_deletions": 50})
        place.event(*FIGS, KIWIS[0])
        planned = place.plan()
        assert place.actions(planned) == {KIWIS[0]: Action.DELETE}
        assert [question.details["by_label"] for question in planned.undecided] == [{"Fig": 4}]

    def test_a_label_with_another_row_goes_on_without_its_photo(self, place: Place) -> None:
        for key in FIGS[1:]:
            del place.server.objects[key]
        place.event(*FIGS[1:])
        assert place.actions(place.plan()) == dict.fromkeys(FIGS[1:], Action.DELETE)


class TestSweepsInstead:
    """Where a run cannot look up each key, it sweeps, and deals with all events that were there before the listing."""

    @pytest.mark.parametrize("why", ["a form that nobody knows", "too many keys", "nothing counted"])
    def test_the_bucket_is_listed_once(self, place: Place, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
        place.server.objects["train/Kiwi/a.jpg"] = DATA
        if why == "too many keys":
            monkeypatch.setattr(events, "MOST_KEYS", 1)
        elif why == "nothing counted":
            place.publish(counts={})
        file = keep(place.settings, Burst((KIWIS[0], KIWIS[1]), unread=int(why == "a form that nobody knows")))
        planned = place.plan()
        assert place.asked_for == [LIST]
        assert place.actions(planned) == {"train/Kiwi/a.jpg": Action.CREATE}
        assert (planned.request.mode, planned.remaining, planned.events) == ("reconcile", 0, (file,))

    @pytest.mark.parametrize("key", ["labels.csv", "train/Kiwi/gone.jpg"])
    def test_an_event_about_no_photo_is_forgotten_while_there_is_no_photo_at_all(
        self, place: Place, tmp_path: Any, key: str
    ) -> None:
        new = {"lake": f"file://{tmp_path}/new", "catalog_uri": f"sqlite:///{tmp_path}/new.db"}
        place.settings = Settings.load(s3_endpoint=place.settings.s3_endpoint, **new)
        place.server.objects.clear()
        place.server.objects["labels.csv"] = DATA
        Lake.open(place.settings)
        place.event(key)
        assert not place.plan().work
        assert kept_files(place.settings) == ()
        with pytest.raises(FruitsError, match="no objects there but 1 that FRUITS_IGNORE leaves out"):
            place.plan("manual")

    def test_a_new_backbone_is_built_by_sweeps(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan_step, "staged_card", lambda _: card("mobile-1"))
        place.event(KIWIS[0])
        planned = place.plan()
        assert LIST in place.asked_for
        assert (planned.counts["create"], planned.building, len(planned.events)) == (104, False, 1)

    @pytest.mark.parametrize("built", [False, True])
    def test_events_stay_while_a_new_backbone_is_built_or_waits_for_an_approval(
        self, place: Place, fake_run: Any, monkeypatch: pytest.MonkeyPatch, built: bool
    ) -> None:
        """Readers keep their backbone, under which no publication has the photos of the events."""
        monkeypatch.setattr(plan_step, "staged_card", lambda _: card("mobile-1"))
        place.settings = place.settings.model_copy(update={"approval_rows": 10})
        if built:
            run = fake_run(place.settings)
            common = run._common
            run._common = lambda key, model: {**common(key, model), "etag": ETAG}
            generator = np.random.default_rng(8)
            run.write({key: generator.random(4, dtype=np.float32) for key in KIWIS + FIGS}, "mobile-1")
            run.publish(MODEL_ID, current_base(Lake.open(place.settings)).publication.pca_id)
        place.event(KIWIS[0])
        planned = place.plan("manual")
        assert (planned.building, planned.work, planned.events) == (True, not built, ())
        assert len(kept_files(place.settings)) == 1

    def test_a_sweep_forgets_the_events_that_were_there_before_it_listed(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.event(KIWIS[0])
        late = []

        def listing(*asked: Any) -> Any:
            late.append(place.event("train/Kiwi/late.jpg"))
            return listed_batches(*asked)

        monkeypatch.setattr(plan_step, "listed_batches", listing)
        assert not place.plan("scheduled").work
        assert kept_files(place.settings) == tuple(late)

    @pytest.mark.parametrize("params", [{"prefix": "test/"}, {"keys": [KIWIS[0]]}, {"limit": 1}, {"dry_run": True}])
    def test_a_run_of_a_part_forgets_none(self, place: Place, params: dict[str, Any]) -> None:
        place.server.objects |= {"train/Kiwi/a.jpg": DATA, "train/Kiwi/b.jpg": DATA}
        place.event("train/Kiwi/a.jpg", "train/Kiwi/b.jpg")
        assert place.plan("manual", **params).events == ()
        assert len(kept_files(place.settings)) == 1


class TestRefits:
    """What remains in the bucket is unknown to a run by events, so it leaves the decision to the next sweep."""

    def test_a_run_by_keys_starts_no_refit(self, place: Place) -> None:
        place.settings = place.settings.model_copy(update={"n_components": 2})
        place.event(KIWIS[0])
        assert not place.plan().work
        assert "components asked" in str(place.plan("scheduled").other_work)

    @pytest.mark.parametrize(
        ("runs", "due"),
        [
            (((60, 0.2),), True),
            (((60, 0.04),), False),
            (((49, 0.2),), False),  # too few
            (((1, 0.9),), False),  # an odd photo
            (((1, 0.9), (60, 0.01)), False),
            (((30, 0.2), (0, None), (30, 0.06)), True),
        ],
    )
    def test_a_sweep_makes_up_for_a_refit_that_drift_of_enough_photos_calls_for(
        self, place: Place, runs: tuple[tuple[int, float | None], ...], due: bool
    ) -> None:
        counts = {"features": 104, "quarantine": 0}
        for photos, drift in runs:
            gate = Gate("drift", "warn", drift is None or drift <= 0.05, drift, 0.05, "")
            place.publish(counts={**counts, "create": photos}, gates=(gate,))
        assert not place.plan().work
        assert bool(place.plan("scheduled").other_work) == due
        place.publish(counts={**counts, "remaining": 0})
        assert not place.plan("scheduled").work


class TestTheParamKeys:
    def test_such_a_run_looks_up_its_keys_and_lists_nothing(self, place: Place) -> None:
        place.server.objects["train/Kiwi/a.jpg"] = DATA
        planned = place.plan("manual", keys=["train/Kiwi/a.jpg", KIWIS[0]])
        assert place.actions(planned) == {"train/Kiwi/a.jpg": Action.CREATE}
        assert place.asked_for == [("HEAD", KIWIS[0]), ("HEAD", "train/Kiwi/a.jpg")]

    def test_the_first_run_of_a_lake_lists(self, place: Place, tmp_path: Any) -> None:
        new = {"lake": f"file://{tmp_path}/new", "catalog_uri": f"sqlite:///{tmp_path}/new.db"}
        place.settings = Settings.load(s3_endpoint=place.settings.s3_endpoint, **new)
        planned = place.plan("manual", keys=KIWIS[:1])
        assert (place.actions(planned), planned.remaining) == ({KIWIS[0]: Action.CREATE}, 103)


def test_prepare_asks_for_a_photo_of_the_keys_and_lists_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fruits.steps.prepare.stage_missing", lambda _: None)
    place.event(KIWIS[5])
    place.server.requests.clear()
    assert prepare(place.settings, RunRequest(prefix="", mode="events")), "there are published rows"
    assert place.asked_for == [("GET", KIWIS[5])]
    place.server.requests.clear()
    prepare(place.settings, RunRequest(prefix="", keys=(KIWIS[6],)))
    assert place.asked_for == [("GET", KIWIS[6])]


class TestByAnInventory:
    """A sweep by a report lists nothing, and the keys of events make up for what the report does not know."""

    DATE = NOW + timedelta(hours=1)

    @pytest.fixture
    def reports(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> Any:
        store = MemoryStore()
        monkeypatch.setattr(sources, "open_store", lambda *_: store)
        changed = {"listing": "inventory", "inventory": "s3://reports/fruits/daily"}
        place.settings = place.settings.model_copy(update=changed)
        objects = [Version(key, ETAG, NOW) for key in KIWIS + FIGS]

        def report(*more: str, date: datetime = self.DATE) -> None:
            write_report(store, "fruits/daily", [*objects, *(Version(key, ETAG, NOW) for key in more)], date)

        report()
        return report

    def test_nothing_is_asked_for_when_nothing_changed(self, place: Place, reports: Any) -> None:
        planned = place.plan("scheduled")
        assert (place.asked_for, planned.work, planned.as_of) == ([], False, self.DATE)
        assert planned.counts["unchanged"] == 104

    def test_the_keys_of_events_are_looked_up_and_no_others(self, place: Place, reports: Any) -> None:
        late, gone = "train/Kiwi/late.jpg", "train/Kiwi/gone.jpg"
        place.server.objects[late] = DATA
        reports(gone, date=self.DATE + timedelta(days=1))
        file = place.event(late)
        planned = place.plan("scheduled")
        assert place.actions(planned) == {late: Action.CREATE}
        assert place.asked_for == [("HEAD", ""), ("HEAD", gone), ("HEAD", late)]
        assert planned.events == (file,)

    def test_too_many_events_have_the_bucket_listed(
        self, place: Place, reports: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "MOST_KEYS", 1)
        place.server.objects["train/Kiwi/late.jpg"] = DATA
        place.event("train/Kiwi/late.jpg", KIWIS[0])
        planned = place.plan("scheduled")
        assert (place.asked_for, planned.as_of) == ([LIST], None)
        assert place.actions(planned) == {"train/Kiwi/late.jpg": Action.CREATE}

    def test_a_new_backbone_has_the_bucket_listed(
        self, place: Place, reports: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plan_step, "staged_card", lambda _: card("mobile-1"))
        planned = place.plan("scheduled")
        assert LIST in place.asked_for
        assert (planned.counts["create"], planned.as_of) == (104, None)

    def test_a_report_without_photos_has_the_bucket_listed(self, place: Place, reports: Any) -> None:
        place.settings = place.settings.model_copy(update={"prefix": "train/Plum/"})
        with pytest.raises(FruitsError, match="no objects there"):
            place.plan("scheduled")
        assert place.asked_for == [LIST]

    def test_an_old_report_is_warned_of(self, place: Place, reports: Any, caplog: pytest.LogCaptureFixture) -> None:
        place.plan("scheduled")
        assert "S3 Inventory as of 2026-11-22 10:30 UTC" in caplog.text
        assert ("days ago: what changed since is found by events only" in caplog.text) == (
            datetime.now(UTC) - self.DATE > timedelta(days=2)
        )

    @pytest.mark.parametrize("pending", [0, 1])
    def test_events_stay_until_their_photos_could_be_read(
        self, place: Place, reports: Any, monkeypatch: pytest.MonkeyPatch, pending: int
    ) -> None:
        """The next sweep by the same report would not find them."""
        place.server.objects["train/Kiwi/late.jpg"] = DATA
        file = place.event("train/Kiwi/late.jpg")
        planned = place.plan("scheduled")
        read = SimpleNamespace(featurized=SimpleNamespace(pending={"unanswered": pending}))
        monkeypatch.setattr(publish_step, "read_documents", lambda *_: read)
        assert publish_step.settled_events(place.settings, planned) == (() if pending else (file,))
