"""A publication is what the gates measured, by construction: the two stories of a task that runs twice, without Spark.

A `job` below leaves what a Spark job does: rows on the branch of its attempt, and its document.
"""

import re
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Literal

import pyarrow as pa
import pytest

from fruits.analysis.moments import Moments
from fruits.backbones.card import Card, Preprocessing
from fruits.errors import FruitsError, TransientError
from fruits.lake.branches import Writer, commit_rows, start_branch, verified_head
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import save_statistics
from fruits.lake.publication import Publication, current_base, publications
from fruits.lake.schemas import DATA_TABLES, QUARANTINE
from fruits.run.documents import (
    Featurized,
    Probe,
    Projected,
    Validated,
    check_tasks_before,
    read_documents,
    read_plan,
    task_document,
)
from fruits.run.lease import acquire_lease, current_lease
from fruits.run.pin import remove_pin, set_pin
from fruits.run.request import RunRequest
from fruits.run.state import WRITTEN, PlannedRun, run_key
from fruits.spark.job import starting_snapshots
from fruits.steps.publish import publish_run

RUN_ID = "manual 1"
KEY = run_key(RUN_ID)
CARD = Card("m", "lite", "none", None, Preprocessing(8, 8), 2, "0" * 64, 1, "none", {})
MARKED: Literal["quarantine"] = "quarantine"
"""The table in which a job marks its attempt: a row whose key is the attempt's name."""


@pytest.fixture
def settings(as_made):
    return as_made(Lake.open)


@pytest.fixture
def lake(settings):
    return Lake.open(settings)


@pytest.fixture
def planned(lake):
    """A planned run over an empty lake."""
    with task_document(lake.settings, "plan", KEY, RUN_ID) as recorder:
        planned = PlannedRun(
            key=KEY,
            run_id=RUN_ID,
            planned_at=recorder.document.started_at,
            request=RunRequest(prefix=""),
            base=current_base(lake),
            backbone=CARD,
            counts={"create": 1},
            known_rows=0,
            remaining=0,
            building=False,
            work=True,
        )
        recorder.record(planned)
    return planned


def mark(lake, writer, key):
    """Commit a row on a writer's branch."""
    row = {"key": key, "etag": "e", "size": 1, "last_modified": datetime.now(UTC), "model_id": "m"}
    rows = pa.Table.from_pylist([{**row, "reason": "gone", "detail": "-", "run_id": RUN_ID}], schema=QUARANTINE.schema)
    commit = {"branch": writer.branch, "snapshot_properties": writer.snapshot_properties}
    commit_rows(lake, MARKED, lambda change: change.append(rows, **commit), branch=writer.branch)


@contextmanager
def attempt(lake, task):
    """An attempt of a task as a job makes it: its recorder, and the snapshots that it starts from."""
    planned = read_plan(lake.settings, KEY)
    with task_document(lake.settings, task, KEY, RUN_ID, planned.planned_at) as recorder:
        documents = read_documents(lake.settings, KEY)
        check_tasks_before(task, planned, documents)
        yield recorder, starting_snapshots(task, planned, documents)


def job(lake, task):
    """An attempt that succeeds; returns it as a writer."""
    with attempt(lake, task) as (recorder, start):
        writer = recorder.document.writer(KEY)
        for name in WRITTEN.get(task, ()):
            start_branch(lake, name, writer.branch, start[name])
        if task == "featurize":
            mark(lake, writer, writer.attempt)
        if task == "pca":
            save_statistics(lake, writer, "m", Moments.empty(2), RUN_ID)
        recorder.record(result_of(lake, task, writer, start))
    return writer


def result_of(lake, task, writer, start):
    """What a job records."""
    wrote = {name: verified_head(lake, name, writer, start[name]) for name in WRITTEN.get(task, ())}
    if task == "featurize":
        counts = {"images": 1, "features": 0, "quarantine": {"gone": 1}, "bytes": 1, "removed": 0}
        return Featurized(**counts, photo_seconds={}, images_per_second=1.0, wrote=wrote)
    if task == "pca":
        read = {name: start[name] for name in WRITTEN["featurize"]}
        known = {"action": "none", "reason": None, "pca_id": None, "drift": None, "projected": 0, "recomputed": False}
        return Projected(**known, n_statistics=0, read=read, wrote=wrote)
    measured = {name: start[name] for name in DATA_TABLES}
    return Validated(features=0, quarantine={"gone": 1}, probe=Probe(), gates=(), snapshots=measured)


def jobs(lake, *tasks):
    """Attempts that succeed, by task."""
    return {task: job(lake, task) for task in tasks}


def published_marks(lake):
    """The attempts whose rows readers find."""
    return lake.read(MARKED, lake.head(MARKED))["key"].to_pylist()


def refusal(lake):
    """What `publish` says when it refuses; readers stay where they are."""
    before = {name: lake.head(name) for name in (*DATA_TABLES, "publications")}
    with pytest.raises(FruitsError) as error:
        publish_run(lake.settings, KEY)
    assert {name: lake.head(name) for name in before} == before
    assert publications(lake) == []
    document = read_documents(lake.settings, KEY).publish
    assert (document.state, document.error, document.retryable) == ("failed", str(error.value), False)
    return str(error.value)


def test_a_run_publishes_exactly_the_snapshots_that_were_measured(lake, planned):
    writers = jobs(lake, "featurize", "pca", "validate")
    publication = publish_run(lake.settings, KEY).publication
    assert publication.snapshots == read_documents(lake.settings, KEY).validate.result.snapshots
    assert published_marks(lake) == [writers["featurize"].attempt]


def test_a_run_that_was_planned_before_a_pin_does_not_publish(lake, planned):
    jobs(lake, "featurize", "pca", "validate")
    stay = Publication(3, current_base(lake).publication.snapshots, "pub-000003-abcdef")
    set_pin(lake.settings, stay, by="anna", why="a bad camera")
    assert re.match(
        r"anna pinned readers to pub-000003-abcdef on .*: a bad camera; nothing was published", refusal(lake)
    )
    remove_pin(lake.settings)
    assert publish_run(lake.settings, KEY).publication.sequence == 1


def test_each_attempt_has_a_branch_of_its_own_and_starts_from_the_plan_again(lake, planned):
    first, second = job(lake, "featurize"), job(lake, "featurize")
    assert first.branch != second.branch
    wrote = read_documents(lake.settings, KEY).featurize.result.wrote
    assert lake.read(MARKED, wrote[MARKED])["key"].to_pylist() == [second.attempt]


class TestATaskThatIsClearedAlone:
    @pytest.mark.parametrize(("cleared", "to_clear"), [("featurize", "pca"), ("pca", "validate")])
    def test_publish_refuses_and_names_the_task_to_clear(self, lake, planned, cleared, to_clear):
        jobs(lake, "featurize", "pca", "validate", cleared)
        assert refusal(lake) == (
            f"run {KEY}: its {cleared} job ran again after its {to_clear} job; clear the run from `{to_clear}`, so "
            "that every task works on the same rows"
        )

    def test_validate_refuses_too(self, lake, planned):
        jobs(lake, "featurize", "pca", "featurize")
        with pytest.raises(FruitsError, match="its featurize job ran again after its pca job; clear .* from `pca`"):
            job(lake, "validate")

    @pytest.mark.parametrize(("cleared", "again"), [("featurize", ("pca", "validate")), ("pca", ("validate",))])
    def test_when_the_tasks_after_it_ran_again_the_new_rows_are_published(self, lake, planned, cleared, again):
        jobs(lake, "featurize", "pca", "validate", cleared)
        refusal(lake)
        jobs(lake, *again)
        documents = read_documents(lake.settings, KEY)
        publication = publish_run(lake.settings, KEY).publication
        assert publication.snapshots == documents.validate.result.snapshots
        assert published_marks(lake) == [documents.featurize.writer(KEY).attempt]


class TestAnOrphanOfAnEarlierAttempt:
    def test_its_rows_are_never_published(self, lake, planned):
        orphan, writer = job(lake, "featurize"), job(lake, "featurize")
        mark(lake, orphan, "after the next attempt began")
        jobs(lake, "pca", "validate")
        mark(lake, orphan, "after validate")
        publish_run(lake.settings, KEY)
        assert published_marks(lake) == [writer.attempt]

    def test_nor_are_those_of_the_attempt_that_counts_once_it_has_ended(self, lake, planned):
        writers = jobs(lake, "featurize", "pca", "validate")
        mark(lake, writers["featurize"], "after validate")
        publish_run(lake.settings, KEY)
        assert published_marks(lake) == [writers["featurize"].attempt]

    def test_its_document_does_not_replace_the_later_attempts(self, lake, planned):
        with (
            pytest.raises(TransientError, match="a later attempt of featurize has begun"),
            attempt(lake, "featurize") as (orphan, start),
        ):
            later = job(lake, "featurize")
            orphan.record(
                Featurized(
                    images=9,
                    features=9,
                    quarantine={},
                    bytes=9,
                    photo_seconds={},
                    images_per_second=9.0,
                    removed=0,
                    wrote=start,
                )
            )
        document = read_documents(lake.settings, KEY).featurize
        assert document.writer(KEY) == later
        assert (document.state, document.attempt, document.result.images) == ("succeeded", 2, 1)

    def test_nor_does_its_failure(self, lake, planned):
        with pytest.raises(ZeroDivisionError), attempt(lake, "featurize"):
            later = job(lake, "featurize")
            _ = 1 / 0
        document = read_documents(lake.settings, KEY).featurize
        assert (document.writer(KEY), document.state, document.error) == (later, "succeeded", None)


STRANGER = Writer("another_run", "featurize_7_abcdef")


@pytest.mark.parametrize("stranger", [STRANGER, Writer(KEY, "featurize_7_abcdef")], ids=["run", "attempt"])
def test_a_snapshot_of_another_process_on_an_attempts_branch_ends_the_job_by_name(lake, planned, stranger):
    with (
        pytest.raises(FruitsError, match=f"written by run {stranger.run}, attempt {stranger.attempt}, and not by"),
        attempt(lake, "featurize") as (recorder, start),
    ):
        writer = recorder.document.writer(KEY)
        for name in WRITTEN["featurize"]:
            start_branch(lake, name, writer.branch, start[name])
        mark_as(lake, stranger, writer.branch)
        result_of(lake, "featurize", writer, start)
    with pytest.raises(FruitsError, match="its featurize job has not succeeded"):
        job(lake, "pca")


def test_publish_refuses_what_a_defective_job_recorded_of_another_process(lake, planned):
    """Each document names the snapshot, and all of them agree; yet no attempt of the run wrote it."""
    with attempt(lake, "featurize") as (recorder, start):
        writer = recorder.document.writer(KEY)
        for name in WRITTEN["featurize"]:
            start_branch(lake, name, writer.branch, start[name])
        sound = result_of(lake, "featurize", writer, start)
        mark_as(lake, STRANGER, writer.branch)
        foreign = lake.head(MARKED, writer.branch)
        recorder.record(sound.model_copy(update={"wrote": {**sound.wrote, MARKED: foreign}}))
    jobs(lake, "pca", "validate")
    message = refusal(lake)
    assert f"snapshot {foreign} of table {MARKED} was written by run another_run" in message
    assert "nothing is published" in message


def mark_as(lake, writer, branch):
    """Commit a row on a branch with the properties of a writer that it does not belong to."""

    mark(lake, SimpleNamespace(snapshot_properties=writer.snapshot_properties, branch=branch), "ghost")


@pytest.mark.usefixtures("planned")
def test_a_late_task_of_a_run_that_is_planned_anew_leaves_the_lease_to_the_plan(settings):
    acquire_lease(settings, KEY)
    with task_document(settings, "plan", KEY, RUN_ID):
        with pytest.raises(FruitsError, match="no finished plan"):
            publish_run(settings, KEY)
        lease = current_lease(settings)
        assert lease is not None
        assert lease.run == KEY
