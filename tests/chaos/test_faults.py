"""Faults that a history of `make chaos` found, or that need two programs at once: each with what is right."""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException

from fruits.analysis.moments import moments_of
from fruits.errors import ConflictError, FruitsError, TransientError
from fruits.lake.branches import Writer, commit_rows, start_branch
from fruits.lake.catalog import LAKE_FORMAT, Lake
from fruits.lake.pca_tables import save_statistics
from fruits.lake.publication import publications
from fruits.lake.schemas import FEATURES, QUARANTINE
from fruits.run import lease as leases
from fruits.run.documents import read_documents, run_store, task_document
from fruits.run.lease import acquire_lease, current_lease
from fruits.run.manifest import DUE_ETAG
from fruits.run.state import run_key
from fruits.run.upkeep import run_folders
from fruits.serve.state import runs
from fruits.spark import job as jobs
from fruits.steps.prepare import prepare
from fruits.stores import effects_watched, list_files, remove_files, write_bytes
from tests.chaos.faults import Fault, Faulty, KilledError
from tests.chaos.jobs import BROKEN, vector_of
from tests.chaos.world import FIRST, met, world

ROW = {"key": "a", "etag": "e", "size": 1, "last_modified": 0, "model_id": "m", "reason": "gone", "detail": "-"}
ROWS = pa.Table.from_pylist([{**ROW, "run_id": "r"}], schema=QUARANTINE.schema)
WRITER = Writer("run", "featurize_1_ab")


@pytest.fixture
def memory():
    with world() as made:
        yield made


@pytest.fixture
def real():
    with world(real=True) as made:
        yield made


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def lose_answers(name, times=1):
    """A watcher that refuses commits to a table after they are in effect, as a server does that was asked twice."""
    left = [times]

    def lost(kind, path, moment):
        if (kind, path, moment) == ("commit", name, "after") and left[0]:
            left[0] -= 1
            raise CommitFailedException("Requirement failed: branch has changed")

    return effects_watched(lost)


class TestACommitWhoseAnswerIsLost:
    @pytest.fixture(params=["memory", "real"])
    def lake(self, request):
        lake = Lake.open(request.getfixturevalue(request.param).settings)
        for name in ("quarantine", "pca_statistics"):
            start_branch(lake, name, WRITER.branch, lake.head(name))
        return lake

    def test_appends_once(self, lake):
        with lose_answers("quarantine", 2):
            commit_rows(lake, "quarantine", lambda change: change.append(ROWS, **WRITER.commit), branch=WRITER.branch)
        assert lake.read("quarantine", lake.head("quarantine", WRITER.branch)).num_rows == 1

    def test_replaces_a_row_once(self, lake):
        moments = moments_of(vector_of(b"1")[None])
        save_statistics(lake, WRITER, "m", moments, "r")
        with lose_answers("pca_statistics"):
            save_statistics(lake, WRITER, "m", moments, "r")
        assert lake.read("pca_statistics", lake.head("pca_statistics", WRITER.branch)).num_rows == 1

    def test_moves_a_branch_once(self, lake):
        with lose_answers("quarantine"):
            start_branch(lake, "quarantine", "run_other__featurize_1_ab", lake.head("quarantine"))
        assert lake.head("quarantine", "run_other__featurize_1_ab") == lake.head("quarantine")


def test_a_publication_whose_process_died_is_completed_by_its_retry(memory):
    """The row is there, and no `main` has moved: publishing again moves them, before any other run comes."""
    memory.runs["run"] = memory.request()
    memory.run_on("run", "prepare", last="validate")
    with pytest.raises(ConnectionError), effects_watched(fail_at_commit_of("features")):
        memory.attempt("publish", "run")
    memory.attempt("publish", "run")
    memory.check_equals_a_full_run()


def test_a_job_whose_starting_snapshots_have_expired_says_what_to_do(memory):
    memory.sweep("first")
    memory.put(FIRST[0], b"other")
    memory.sweep("second")
    memory.keep_house("maintenance", abandoned_days=1)
    with pytest.raises(FruitsError, match=r"snapshot \d+ of table \w+ is gone, .*clear the run from"):
        memory.attempt("featurize", "first")


def test_a_job_whose_manifest_is_gone_says_what_to_do(memory):
    memory.runs["run"] = memory.request()
    memory.run_on("run", "prepare", last="plan")
    store = run_store(memory.settings, run_key("run"))
    remove_files(store, *(item["path"] for item in list_files(store) if item["path"].startswith("manifest")))
    with pytest.raises(FruitsError, match="its manifest .* is gone from .*; clear the run from `wait_for_lease`"):
        memory.attempt("featurize", "run")


def test_photos_that_vanish_under_a_run_leave_by_the_decision_of_the_next_plan(memory):
    """The bucket is emptied of photos that a run was about to read again: it must not take their rows away."""
    for number in range(4):
        memory.put(f"Training/Kiwi/{number}.png", b"1")
    memory.sweep("first")
    for number in range(4):
        memory.put(f"Training/Kiwi/{number}.png", b"2")
    memory.runs["late"] = memory.request()
    memory.run_on("late", "prepare", last="plan")
    for number in range(4):
        del memory.bucket[f"Training/Kiwi/{number}.png"]
    memory.run_on("late", "featurize")
    published = publications(Lake(memory.settings))[-1]
    assert (published.run_id, published.counts["features"]) == ("late", 7)
    memory.sweep("next")
    assert [question.number for question in memory.questions()] == [4]
    memory.check_equals_a_full_run()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_featurize_that_is_killed_at_any_moment_goes_on_and_ends_as_if_nothing_had_happened(memory, moment):
    """Each run creates, updates and deletes photos and meets an unreadable one, in chunks of two photos."""
    keys = [f"Training/Kiwi/{number}.png" for number in range(8)]
    for key in keys:
        memory.put(key, b"first")
    memory.sweep("first")
    resumed = set()
    for number in range(1, 60):
        run = f"run {number}"
        for key in keys[:3]:
            memory.put(key, f"{moment} {number}".encode())
        memory.put(keys[3], BROKEN)
        memory.bucket.pop(keys[4 + number % 2], None)
        memory.put(keys[5 - number % 2], b"back")
        memory.runs[run] = memory.request(allow_deletes=True)
        memory.run_on(run, "prepare", last="plan")
        memory.run_on(run, "featurize", [Fault(number, moment, "killed")])
        memory.check_after_a_sweep()
        result = read_documents(memory.settings, run_key(run)).featurize.result
        assert (result.images, result.features, result.quarantine, result.removed) == (5, 4, {"corrupt": 1}, 1)
        resumed.add(result.resumed)
        if memory.table.total() < number:  # the run has fewer effects
            break
    assert number > 20
    assert resumed == {0, 2, 3, 4, 5}


@pytest.mark.heavy
def test_photos_that_a_retry_cannot_read_any_more_keep_a_row_wherever_featurize_was_killed(memory):
    """The attempt before may have read them, and written a part of what the chunk was to write."""
    memory.sweep("first")
    for number in range(1, 60):
        run = f"run {number}"
        for key in FIRST:
            memory.put(key, f"{key} {number}".encode())
        memory.put("Training/Kiwi/3.jpg", f"{number}".encode())
        memory.runs[run] = memory.request()
        memory.run_on(run, "prepare", last="plan")
        faulty = Faulty(memory, run, [Fault(number, "after", "killed")])
        with met(faulty), suppress(KilledError):
            memory.attempt("featurize", run)
        for choice in range(2):
            memory.silence(choice)
        memory.run_on(run, "featurize")
        memory.check_readers()
        assert memory.last[-1].run_id == run
        assert memory.rows[1].keys() == memory.bucket.keys()
        memory.answer()
        memory.sweep(f"after {run}")
        memory.check_after_a_sweep()
        if not faulty.dead:  # the task has fewer effects
            break
    assert number > 10


class TestARebuildThatCannotReadAPhoto:
    """The row stays, and the photo is due again, also under the same ETag. No row leaves without an approval."""

    def rows(self, world):
        world.check_readers()
        return world.rows[1]

    def test_of_any_photo_changes_nothing(self, memory):
        memory.sweep("first")
        before = self.rows(memory)
        for choice in range(len(memory.bucket)):
            memory.silence(choice)
        memory.sweep("rebuild", mode="rebuild")
        assert self.rows(memory) == before
        assert len(publications(Lake(memory.settings))) == 1
        memory.answer()
        memory.sweep("again", mode="rebuild")
        memory.check_equals_a_full_run()

    def test_of_some_photos_keeps_their_rows_and_the_next_run_reads_them(self, memory):
        memory.put("Training/Kiwi/broken.jpg", BROKEN)
        memory.sweep("first")
        before = self.rows(memory)
        memory.silence(0)
        memory.silence(3)
        memory.sweep("rebuild", mode="rebuild")
        silent = {key for key, photo in memory.bucket.items() if photo.silent}
        assert silent == {FIRST[1], "Training/Kiwi/broken.jpg"}
        after = self.rows(memory)
        assert {key: row[1:] for key, row in after.items()} == {key: row[1:] for key, row in before.items()}
        assert {key for key, row in after.items() if row[0] == DUE_ETAG} == silent
        assert publications(Lake(memory.settings))[-1].counts["pending"] == len(silent)
        memory.answer()
        memory.sweep("next")
        assert read_documents(memory.settings, run_key("next")).planned.counts["update"] == len(silent)
        memory.check_equals_a_full_run()

    def test_and_is_tried_again_reads_it_then_and_keeps_no_row_twice(self, memory):
        """Each attempt takes out the rows that the attempt before kept, of photos that it can read or not."""
        for number in range(4):
            memory.put(f"Training/Kiwi/{number}.png", b"1")
        memory.sweep("first")
        before = self.rows(memory)
        memory.runs["rebuild"] = memory.request(mode="rebuild")
        memory.run_on("rebuild", "prepare", last="plan")
        for choice in (1, 4):
            memory.silence(choice)
        again = sorted(memory.bucket)[1]
        memory.attempt("featurize", "rebuild")
        memory.bucket[again] = replace(memory.bucket[again], silent=False)
        memory.run_on("rebuild", "featurize")
        result = read_documents(memory.settings, run_key("rebuild")).featurize.result
        assert (result.images, result.features, result.pending, result.resumed) == (7, 6, {"unanswered": 1}, 5)
        after = self.rows(memory)
        assert {key: row[1:] for key, row in after.items()} == {key: row[1:] for key, row in before.items()}
        assert [key for key, row in after.items() if row[0] == DUE_ETAG] == [sorted(memory.bucket)[4]]

    @pytest.mark.parametrize("returns", [True, False])
    def test_because_it_vanished_reads_it_when_it_returns_under_the_same_etag(self, memory, returns):
        key = "Training/Kiwi/8.jpg"
        memory.put(key, b"8")
        memory.sweep("first")
        memory.runs["rebuild"] = memory.request(mode="rebuild")
        memory.run_on("rebuild", "prepare", last="plan")
        photo = memory.bucket.pop(key)
        memory.run_on("rebuild", "featurize")
        assert self.rows(memory)[key][0] == DUE_ETAG
        if returns:
            memory.bucket[key] = photo
        memory.sweep("next")
        counts = read_documents(memory.settings, run_key("next")).planned.counts
        assert (counts["update"], counts["delete"]) == ((1, 0) if returns else (0, 1))
        memory.check_equals_a_full_run()


@pytest.mark.slow
def test_a_pin_at_any_moment_of_a_run_holds(memory):
    memory.sweep("first")
    for number in range(1, 60):
        memory.put(FIRST[0], f"other {number}".encode())
        memory.sweep(f"run {number}", [Fault(number, "before", "pinned")])
        if memory.pinned is None:  # the run has fewer effects
            break
        memory.check_after_a_sweep()
        memory.unpin()
    assert number > 30


class TestTheLease:
    def test_an_overtaken_attempt_does_not_release_it_under_the_attempt_at_work(self, memory):
        memory.runs["run"] = memory.request()
        memory.run_on("run", "prepare", last="plan")
        key, settings = run_key("run"), memory.settings

        def overtaken(job):
            with suppress(FruitsError), task_document(settings, "featurize", key, "run"):
                raise FruitsError("a later attempt, which has begun")
            raise FruitsError("fix it")

        with pytest.raises(TransientError, match="a later attempt of featurize has begun"):
            jobs._run("featurize", settings, key, overtaken)
        assert current_lease(settings).run == key

    def test_an_attempt_at_work_that_fails_for_good_releases_it(self, memory):
        memory.runs["run"] = memory.request()
        memory.run_on("run", "prepare", last="plan")

        def fail(job):
            raise FruitsError("fix it")

        with pytest.raises(FruitsError, match="fix it"):
            jobs._run("featurize", memory.settings, run_key("run"), fail)
        assert current_lease(memory.settings) is None

    @pytest.mark.parametrize("task", ["featurize", "publish"])
    def test_an_error_while_the_lake_is_opened_releases_it(self, memory, monkeypatch, task):
        memory.runs["run"] = memory.request()
        memory.run_on("run", "prepare", last="plan")

        def broken(*_):
            raise FruitsError("the catalog is another's")

        monkeypatch.setattr(Lake, "open", broken)
        with pytest.raises(FruitsError, match="another's"):
            memory.attempt(task, "run")
        assert current_lease(memory.settings) is None

    @pytest.mark.parametrize("minutes", [-4, 4])
    def test_clocks_that_differ_by_minutes_give_it_to_one_run(self, memory, minutes):
        assert acquire_lease(memory.settings, "first") is None
        memory.offset = timedelta(minutes=minutes)  # the other machine's clock
        assert acquire_lease(memory.settings, "second").run == "first"

    def test_a_clock_that_is_far_ahead_costs_the_work_of_a_run_and_no_rows(self, memory):
        memory.runs["slow"] = memory.request()
        memory.run_on("slow", "prepare", last="validate")
        memory.offset = leases.DURATION * 2
        memory.put(FIRST[0], b"other")
        memory.sweep("ahead")
        memory.offset = timedelta()
        with pytest.raises(ConflictError, match="another run published"):
            memory.attempt("publish", "slow")
        memory.check_equals_a_full_run()


class TestADryRun:
    def test_of_a_lake_that_is_not_there_makes_nothing(self, real):
        with pytest.raises(FruitsError, match="dry run: no lake there.*`fruits plan` shows what the first"):
            prepare(real.settings, real.request(dry_run=True))
        assert files_of(real.folder) == {}

    def test_leaves_its_own_document_and_changes_nothing_else(self, real):
        real.sweep("first")
        real.put(FIRST[0], b"other")
        before = files_of(real.folder)
        real.runs["dry"] = real.request(dry_run=True)
        real.attempt("prepare", "dry")
        real.attempt("plan", "dry")
        changed = dict(files_of(real.folder).items() ^ before.items())
        folder = f"lake/runs/fruits/{run_key('dry')}/"
        assert {name.removeprefix(folder).partition("_")[0] for name in changed} == {"plan.json", "manifest"}
        assert read_documents(real.settings, run_key("dry")).planned.counts["update"] == 1

    def test_does_not_complete_a_publication_that_was_interrupted(self, memory):
        memory.runs["run"] = memory.request()
        memory.run_on("run", "prepare", last="validate")
        with pytest.raises(ConnectionError), effects_watched(fail_at_commit_of("features")):
            memory.attempt("publish", "run")
        before = dict(memory.memory.tables)
        memory.runs["dry"] = memory.request(dry_run=True)
        assert not memory.attempt("plan", "dry"), "the publication is seen as it is"
        assert memory.memory.tables == before


def fail_at_commit_of(table):
    def fail(kind, path, moment):
        if (kind, path) == ("commit", table):
            raise ConnectionError("no answer")

    return fail


class TestAnUnreadableDocument:
    @pytest.fixture(params=[b"", b'{"token": 1}', b"[]", b"\xff"])
    def damaged(self, request, memory):
        memory.sweep("good")
        memory.runs["damaged"] = memory.request(refit="always")
        memory.run_on("damaged", "prepare", last="featurize")
        write_bytes(run_store(memory.settings, run_key("damaged")), "plan.json", request.param)
        return memory

    def test_is_named_and_passed_over_by_the_status(self, damaged, caplog):
        with caplog.at_level(logging.WARNING, "fruits"):
            assert [key for key, _ in runs(damaged.settings)] == [run_key("good")]
        assert f"run document runs/fruits/{run_key('damaged')}/plan.json" in caplog.text

    def test_does_not_stop_maintenance_which_keeps_what_the_run_wrote(self, damaged):
        branches = set(Lake(damaged.settings).state("features").refs)
        damaged.keep_house("maintenance")
        assert {one for one in branches if "damaged" in one} <= set(Lake(damaged.settings).state("features").refs)
        folders = {one.key: one for one in run_folders(damaged.settings, datetime(2000, 1, 1, tzinfo=UTC))}
        assert not folders[run_key("damaged")].readable

    def test_does_not_stop_a_retry_of_its_task(self, damaged):
        damaged.sweep("damaged")
        damaged.check_equals_a_full_run()


def test_nothing_is_made_in_a_lake_of_a_newer_format(memory):
    memory.sweep("first")
    tables = memory.memory.tables
    with Lake(memory.settings).table("publications").transaction() as change:
        change.set_properties({"fruits.lake-format": str(LAKE_FORMAT + 1)})
    del tables["embeddings"]
    with pytest.raises(FruitsError, match=f"has format {LAKE_FORMAT + 1}"):
        Lake.open(memory.settings)
    assert "embeddings" not in tables


class TestARowOfAnotherProgram:
    """Somebody appends to `main` of a table: never adopted, never lost, named."""

    @pytest.fixture(params=["before the first publication", "later"])
    def foreign(self, request, memory):
        Lake.open(memory.settings)
        if request.param == "later":
            memory.sweep("first")
            memory.put(FIRST[0], b"other")
        lake = Lake(memory.settings)
        commit_rows(lake, "quarantine", lambda change: change.append(ROWS))
        memory.foreign = {lake.head("quarantine")}
        return lake.head("quarantine")

    def test_is_named_kept_by_a_tag_and_not_published(self, memory, foreign, caplog):
        with caplog.at_level(logging.WARNING, "fruits"):
            memory.sweep("next")
        memory.check_equals_a_full_run()
        assert f"table quarantine: main is at snapshot {foreign}, which no run published" in caplog.text
        lake = Lake(memory.settings)
        assert lake.state("quarantine").refs[f"foreign_{foreign}"] == foreign
        memory.keep_house("maintenance")
        assert lake.read("quarantine", foreign).num_rows == 1

    def test_is_named_too_when_it_comes_while_a_run_publishes(self, memory, caplog):
        memory.runs["run"] = memory.request()
        memory.run_on("run", "prepare", last="validate")
        lake = Lake(memory.settings)
        commit_rows(lake, "features", lambda change: change.append(FEATURES.schema.empty_table()))
        with caplog.at_level(logging.WARNING, "fruits"):
            memory.attempt("publish", "run")
        memory.check_equals_a_full_run()
        assert "table features: main is at snapshot" in caplog.text


def test_two_first_runs_in_the_same_second_on_an_empty_lake(real):
    """Both prepare at once; one works first, and the tables are those of one run."""
    barrier = Barrier(2)

    def first_task(run_id):
        real.runs[run_id] = real.request()
        barrier.wait()
        real.attempt("prepare", run_id)
        return acquire_lease(real.settings, run_key(run_id))

    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(first_task, ("one", "two")))
    assert [other is None for other in others].count(True) == 1
    winner = ("one", "two")[others.index(None)]
    real.sweep(winner)
    real.sweep("one" if winner == "two" else "two")
    real.check_equals_a_full_run()
    assert len(publications(Lake(real.settings))) == 1


@pytest.mark.parametrize("moment", range(1, 40, 3))
def test_maintenance_beside_a_run_that_updates_and_deletes_makes_neither_a_no_op(memory, moment):
    """Iceberg's merge-on-read deletes are lost where a rewrite of the same files commits beside them (apache/iceberg
    10720). Here each works on branches of its own from snapshots of one publication, so one of them begins anew."""
    memory.put("Training/Kiwi/a.jpg", b"1")
    memory.put("Test/Kiwi/b.jpg", b"2")
    for number in range(6):  # so many small files are worth a rewrite
        memory.put(FIRST[0], f"other {number}".encode())
        memory.sweep(f"run {number}")
    memory.put("Training/Kiwi/a.jpg", b"3")
    del memory.bucket["Test/Kiwi/b.jpg"]
    memory.sweep("last", [Fault(moment, "before", "maintained")])
    memory.check_equals_a_full_run()
