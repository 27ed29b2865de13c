"""What a plan leaves to a person: on a real bucket and a real lake, whose rows PyIceberg wrote."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from fruits.analysis.pca import components_asked
from fruits.errors import FruitsError
from fruits.lake.approvals import Approval, approve, ask, read_approvals
from fruits.lake.branches import Writer
from fruits.lake.catalog import Lake
from fruits.lake.publication import current_base, publish
from fruits.photos.entry import Action
from fruits.run.decisions import due_refit_question, refit_question
from fruits.run.documents import RunDocuments, read_documents, run_store
from fruits.run.lease import current_lease, release_lease
from fruits.run.manifest import StoredManifest
from fruits.run.request import resolve_request
from fruits.run.state import PlannedRun, run_key
from fruits.settings import Settings
from fruits.steps import plan as plan_step
from fruits.steps.plan import plan_run
from fruits.steps.publish import publication_of, used_approvals
from fruits.stores import photo_store, remove_files, write_bytes
from tests.runs import MODEL_ID, card, document, projected, validated

DATA = b"a photo"
ETAG = hashlib.md5(DATA).hexdigest()  # noqa: S324 -- what S3 answers
KIWIS = [f"train/Kiwi/{number}.jpg" for number in range(12)]
FIGS = [f"test/Fig/{number}.jpg" for number in range(4)]


@dataclass
class Place:
    """A bucket and its lake, with a published row for each of the photos."""

    settings: Settings
    runs: int = 0

    def put(self, *keys: str) -> None:
        for key in keys:
            write_bytes(photo_store(self.settings), key, DATA)

    def remove(self, *keys: str) -> None:
        remove_files(photo_store(self.settings), *keys)

    def plan(self, run_id: str = "", **params: Any) -> PlannedRun:
        """The plan of the next run, which lets the lease go."""
        self.runs += 1
        run_id = run_id or f"run {self.runs}"
        planned = plan_run(self.settings, resolve_request(params, self.settings), run_id)
        release_lease(self.settings, planned.key)
        return planned

    def actions(self, planned: PlannedRun) -> dict[str, Action]:
        """The manifest of a run: action by key."""
        manifest = StoredManifest(run_store(self.settings, planned.key), planned.manifest)
        return {row["key"]: Action(row["action"]) for row in manifest.columns("key", "action").to_pylist()}

    def approve(self) -> Approval:
        """A person approves the only question."""
        (question,) = read_approvals(self.settings)
        return approve(self.settings, question, by="ada", why="moved to another bucket", via="fruits approve")

    def publish_counts(self, delete: int, ago: timedelta = timedelta(hours=1)) -> None:
        """A run publishes that it deleted so many rows."""
        lake = Lake.open(self.settings)
        base = current_base(lake)
        row = replace(
            base.publication,
            sequence=base.publication.sequence + 1,
            run_id=f"published {base.publication.sequence}",
            published_at=datetime.now(UTC) - ago,
            counts={"delete": delete, "features": 16, "quarantine": 0},
            approvals=(),
        )
        publish(lake, base, Writer(f"counts{row.sequence}", "publish"), row)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The staged backbones by name; no TensorFlow builds them."""
    staged = {"efficientnet-lite0": card(), "MobileNetV2": card("mobile-1")}
    monkeypatch.setattr(plan_step, "staged_card", lambda settings: staged[settings.backbone])
    return staged


@pytest.fixture
def make(make_settings: Callable[..., Settings], fake_run: Any, cards: dict[str, Any]) -> Callable[..., Place]:
    """Makes a place with some photos."""

    def place(keys: list[str], **overrides: Any) -> Place:
        settings = make_settings(**overrides)
        run = fake_run(settings)
        write(run, keys, MODEL_ID)
        made = Place(settings)
        made.put(*keys)
        return made

    return place


def write(run: Any, keys: list[str], model_id: str, *, publish_as: str | None = None) -> None:
    """Rows of photos with the ETag that the bucket has, published."""
    generator = np.random.default_rng(7)
    rows = {key: generator.random(4, dtype=np.float32) for key in keys}
    run.n_components = components_asked(0.95, 160)
    common = run._common
    run._common = lambda key, model: {**common(key, model), "etag": ETAG}
    pca_id = run.write(rows, model_id)
    run.publish(publish_as or model_id, pca_id if publish_as is None else str(run.base.publication.pca_id))


@pytest.fixture
def place(make: Callable[..., Place]) -> Place:
    """Sixteen photos of two labels; more than three deletions are many."""
    return make(KIWIS + FIGS, few_deletions=3)


class TestAnEmptiedBucket:
    def test_nothing_is_published_until_a_person_decides(self, place: Place) -> None:
        place.remove(*KIWIS, *FIGS)
        planned = place.plan()
        assert (planned.work, planned.counts["delete"], place.actions(planned)) == (False, 0, {})
        (question,) = planned.undecided
        assert (question.kind, question.number) == ("deletions", 16)
        assert question.details["by_label"] == {"Kiwi": 12, "Fig": 4}
        assert question.details["first_keys"][0] == FIGS[0]
        assert current_lease(place.settings) is None
        assert read_approvals(place.settings) == [question]

    def test_an_approval_is_used_by_the_next_run_and_recorded_by_its_publication(self, place: Place) -> None:
        place.remove(*KIWIS, *FIGS)
        place.plan()
        decision = place.approve()
        planned = place.plan()
        assert (planned.undecided, planned.approvals) == ((), (decision,))
        assert set(place.actions(planned).values()) == {Action.DELETE}
        assert planned.counts["delete"] == 16
        tasks = RunDocuments(pca=document("pca", result=projected()), validate=document("validate", result=validated()))
        row = publication_of(planned, tasks)
        assert row.approvals == (decision,)
        assert used_approvals(place.settings, row) == [decision]

    def test_even_a_bucket_of_one_photo_keeps_its_row(self, make: Callable[..., Place]) -> None:
        place = make(["train/Kiwi/1.jpg", "train/Kiwi/2.jpg"], keep_last_of_label=False)
        place.remove("train/Kiwi/1.jpg", "train/Kiwi/2.jpg")
        assert not place.plan(allow_deletes=True).work
        (question,) = read_approvals(place.settings)
        assert place.plan(allow_deletes=question.short).counts["delete"] == 2


class TestManyDeletions:
    def test_created_and_updated_photos_go_on(self, place: Place) -> None:
        place.remove(*KIWIS[:5])
        place.put("train/Kiwi/new.jpg")
        write_bytes(photo_store(place.settings), FIGS[0], b"other bytes")
        planned = place.plan()
        assert place.actions(planned) == {"train/Kiwi/new.jpg": Action.CREATE, FIGS[0]: Action.UPDATE}
        assert planned.known_rows == 16
        assert [question.number for question in planned.undecided] == [5]

    def test_a_few_need_no_decision(self, place: Place) -> None:
        place.remove(*KIWIS[:3])
        planned = place.plan()
        assert planned.counts["delete"] == 3
        assert read_approvals(place.settings) == []

    def test_the_same_question_is_asked_once(self, place: Place) -> None:
        place.remove(*KIWIS[:5])
        first, second = place.plan(), place.plan()
        assert first.undecided == second.undecided
        assert [question.run for question in second.undecided] == [first.key], "what starts fruit_approval once"

    def test_a_question_that_grows_is_announced_again_when_it_has_doubled(self, place: Place) -> None:
        announced = []
        for number in (4, 5, 7, 8, 9):
            place.remove(*KIWIS[:number])
            planned = place.plan()
            announced += [question.number for question in planned.undecided if question.run == planned.key]
        assert announced == [4, 8]
        assert [question.number for question in read_approvals(place.settings)] == [9]

    def test_an_approval_is_of_one_set(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        """One more photo is gone, so the approval no longer fits, and the next run asks again."""
        place.remove(*KIWIS[:5])
        place.plan()
        approved = place.approve()
        place.remove(KIWIS[5])
        planned = place.plan()
        assert (planned.approvals, planned.counts["delete"]) == ((), 0)
        assert [question.number for question in read_approvals(place.settings)] == [6]
        assert f"approval {approved.short} no longer fits" in caplog.text

    def test_photos_that_come_back_need_no_decision_any_more(self, place: Place) -> None:
        place.remove(*KIWIS[:5])
        place.plan()
        place.put(*KIWIS[:5])
        assert place.plan().undecided == ()
        assert read_approvals(place.settings) == []

    def test_the_trigger_form_decides_for_automation(self, place: Place) -> None:
        place.remove(*KIWIS[:5])
        planned = place.plan(allow_deletes=True)
        assert planned.counts["delete"] == 5
        (approval,) = planned.approvals
        assert (approval.via, approval.number, approval.decided) == ("allow_deletes", 5, True)

    def test_the_digest_of_another_set_decides_nothing(self, place: Place) -> None:
        place.remove(*KIWIS[:5])
        assert place.plan(allow_deletes="0123456789ab").counts["delete"] == 0

    def test_an_hourly_trickle_counts_as_one(self, place: Place) -> None:
        place.publish_counts(delete=3)
        place.remove(KIWIS[0])
        planned = place.plan()
        assert planned.counts["delete"] == 0
        assert "3 of them in the last 24 hours" in planned.undecided[0].details["reasons"][0]

    def test_a_dry_run_asks_nobody(self, place: Place) -> None:
        place.remove(*KIWIS[:5])
        planned = place.plan(dry_run=True)
        assert [question.number for question in planned.undecided] == [5]
        assert read_approvals(place.settings) == []

    def test_a_run_of_a_part_of_the_bucket_leaves_the_question_of_the_whole(self, place: Place) -> None:
        place.remove(*KIWIS[:5])
        question = place.plan().undecided
        place.plan(prefix="test/")
        assert tuple(read_approvals(place.settings)) == question

    def test_the_log_says_what_waits_and_what_to_type(self, place: Place, caplog: pytest.LogCaptureFixture) -> None:
        place.remove(*KIWIS[:5])
        (question,) = place.plan().undecided
        assert "Remove 5 of 16 rows" in caplog.text
        assert "Kiwi 5" in caplog.text
        assert f"fruits approve {question.short}" in caplog.text


class TestLargeWork:
    @pytest.mark.parametrize(("params", "kind"), [({"mode": "rebuild"}, "rebuild"), ({"refit": "always"}, "refit")])
    def test_what_a_run_was_started_for_is_refused_until_it_is_approved(
        self, make: Callable[..., Place], params: dict[str, str], kind: str
    ) -> None:
        place = make(KIWIS, approval_rows=11)
        with pytest.raises(FruitsError, match=f"a {kind} of 12 rows.*fruits approve"):
            place.plan("asked", **params)
        assert current_lease(place.settings) is None
        assert place.plan().undecided == ()  # a sweep goes on, and leaves the question
        place.approve()
        planned = place.plan("asked", **params)
        assert [approval.kind for approval in planned.approvals] == [kind]
        assert planned.work

    def test_below_the_size_nobody_is_asked(self, make: Callable[..., Place]) -> None:
        place = make(KIWIS, approval_rows=12)
        assert place.plan(mode="rebuild").counts["update"] == 12
        assert place.plan(refit="always").other_work

    def test_other_components_wait_and_photos_go_on(self, make: Callable[..., Place]) -> None:
        place = make(KIWIS, approval_rows=11, n_components=2)
        place.put("train/Kiwi/new.jpg")
        planned = place.plan()
        assert (planned.counts["create"], planned.request.refit, planned.other_work) == (1, "never", None)
        place.approve()
        planned = place.plan()
        assert (planned.request.refit, [one.kind for one in planned.approvals]) == ("auto", ["refit"])
        assert planned.other_work is not None

    def test_a_refit_that_pca_asked_for_is_done_by_the_next_run_also_without_photos(
        self, make: Callable[..., Place]
    ) -> None:
        place = make(KIWIS, approval_rows=11)
        request = resolve_request({}, place.settings)
        ask(place.settings, refit_question(request, MODEL_ID, 12, place.settings, "pca's run", "the photos drift"))
        assert (place.plan().work, len(read_approvals(place.settings))) == (False, 1)
        decision = place.approve()
        assert place.plan(refit="never").approvals == ()
        planned = place.plan()
        assert (planned.approvals, planned.other_work) == ((decision,), "the PCA is fitted again, as approved")
        place.put("train/Kiwi/new 1.jpg", "train/Kiwi/new 2.jpg")
        assert place.plan(limit=1).approvals == (), "a run that leaves photos over fits nothing"

    def test_the_publication_records_a_refit_that_was_approved_after_the_plan(self, make: Callable[..., Place]) -> None:
        place = make(KIWIS, approval_rows=11)
        planned = place.plan()
        question = due_refit_question(planned, "the photos drift", place.settings)
        assert question is not None
        ask(place.settings, question)
        decision = place.approve()
        tasks = RunDocuments(
            pca=document("pca", result=projected(approvals=(decision,))),
            validate=document("validate", result=validated()),
        )
        row = publication_of(planned, tasks)
        assert used_approvals(place.settings, row) == [decision]


class TestSwitchOfBackbone:
    @pytest.fixture
    def grown(self, make: Callable[..., Place], fake_run: Any) -> Place:
        """Readers use one backbone, and every photo has its row under another one as well."""
        place = make(KIWIS, approval_rows=11, few_deletions=3)
        write(fake_run(place.settings), KIWIS, "mobile-1", publish_as=MODEL_ID)
        return place

    def test_readers_keep_theirs_until_a_person_approves(self, grown: Place) -> None:
        planned = grown.plan(backbone="MobileNetV2")
        assert (planned.building, planned.work) == (True, False)
        assert [question.kind for question in planned.undecided] == ["backbone"]
        grown.approve()
        planned = grown.plan(backbone="MobileNetV2")
        assert (planned.building, planned.work) == (False, True)
        assert [approval.kind for approval in planned.approvals] == ["backbone"]

    def test_a_switch_that_loses_many_photos_asks_whatever_its_size(self, grown: Place, fake_run: Any) -> None:
        """The photos are gone from the bucket, and were never featurized under the new backbone."""
        settings = grown.settings.model_copy(update={"approval_rows": 1_000})
        place = Place(settings)
        write(fake_run(settings), [f"train/Kiwi/old-{number}.jpg" for number in range(6)], MODEL_ID)
        planned = place.plan(backbone="MobileNetV2")
        assert planned.building
        (question,) = planned.undecided
        assert "6 rows of photos that are gone leave" in question.question
        assert not place.plan(backbone="MobileNetV2", allow_deletes=True).building


def test_the_plan_of_a_run_keeps_what_it_asked_and_used(place: Place) -> None:
    place.remove(*KIWIS[:5])
    planned = place.plan("a run")
    documents = read_documents(place.settings, run_key("a run"))
    assert documents.planned == planned
