import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.gates import Gate
from fruits.analysis.labels import LabelSum
from fruits.errors import ConflictError, FruitsError
from fruits.lake import publication as module
from fruits.lake.branches import advance_main, commit_rows, drop_run_branches, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.counters import RowCount
from fruits.lake.pca_tables import save_label_sums
from fruits.lake.publication import (
    Base,
    Publication,
    _to_rows,
    check_current,
    current_base,
    in_full,
    publication_id,
    publications,
    publications_of,
    publish,
    readable,
    readers_base,
    refuse_runs_under_way,
    roll_back,
)
from fruits.lake.reader import open_read_only
from fruits.lake.rebuild import check_catalog_is_current, plan_rebuild
from fruits.lake.schemas import DATA_TABLES, EMBEDDINGS, FEATURES, PUBLICATIONS, TABLES
from fruits.run.documents import RunDocuments
from fruits.run.migration import with_every_table, with_snapshots
from fruits.run.request import MaintenanceRequest
from fruits.run.upkeep import survey
from fruits.steps.verify import Verified, check_publications
from tests.runs import document, planned, projected, validated, writer
from tests.runs import heads as written

NOW = datetime(2026, 11, 22, tzinfo=UTC)

GATE = Gate("vectors_usable", "required", passed=True, value=0.0, threshold=None, detail="12 new vectors")


def feature(key, run_id):
    values = {"key": key, "run_id": run_id, "vector": [1.0], "last_modified": 0, "size": 1, "phash": 0}
    return {**dict.fromkeys(FEATURES.schema.names, ""), **values, "width": 1, "height": 1}


def embedding(key, run_id):
    values = {"key": key, "run_id": run_id, "embedding": [1.0], "residual": 0.0}
    return {**dict.fromkeys(EMBEDDINGS.schema.names, ""), **values}


def write(lake, run, base):
    """What a run's jobs leave on its branches: one feature and its embedding."""
    by = writer(run)
    commit = by.commit
    for definition, row in ((FEATURES, feature(f"{run}.jpg", run)), (EMBEDDINGS, embedding(f"{run}.jpg", run))):
        start_branch(lake, definition.name, by.branch, base.snapshots[definition.name])
        rows = pa.Table.from_pylist([row], schema=definition.schema)
        commit_rows(lake, definition.name, lambda change, rows=rows: change.append(rows, **commit), branch=by.branch)


def publication_of(lake, run, base):
    """What a run asks to publish."""
    snapshots = written(lake, run, base)
    sequence = base.publication.sequence + 1
    return Publication(
        sequence=sequence,
        snapshots=snapshots,
        publication_id=publication_id(sequence, snapshots),
        run_id=run,
        published_at=datetime(2026, 11, 22, tzinfo=UTC),
        model_id="m",
        pca_id=None,
        counts={"create": 1, "features": sequence},
        probe_raw=0.9,
        probe_embedded=None,
        gates=(GATE,),
    )


def publish_run(lake, run, base=None):
    """Plan, work and publish."""
    base = base or current_base(lake)
    write(lake, run, base)
    done = publish(lake, base, writer(run), publication_of(lake, run, base))
    drop_run_branches(lake, run)
    return done


def publish_runs(settings, *runs):
    """A lake with publications of runs, one after another."""
    lake = Lake.open(settings)
    for run in runs:
        publish_run(lake, run)


def heads(lake):
    return {table.name: lake.head(table.name) for table in TABLES}


def keys(lake, name, snapshot):
    return sorted(lake.read(name, snapshot)["key"].to_pylist())


def mains_follow(lake, published):
    """Whether ``main`` of every table is where a publication has it."""
    return all(lake.head(name) == at for name, at in published.snapshots.items())


class TestPublish:
    def test_before_anything_is_published_the_base_is_the_empty_tables(self, lake):
        base = current_base(lake)
        assert (base.publication.sequence, base.publication.publication_id) == (0, None)
        assert base.publication.snapshots == {name: lake.head(name) for name in DATA_TABLES}
        assert base.publications_snapshot == lake.head("publications")

    def test_readers_see_the_run_and_what_was_said_of_it(self, lake):
        base = current_base(lake)
        write(lake, "a", base)
        asked = publication_of(lake, "a", base)
        assert publish(lake, base, writer("a"), asked) == asked
        assert publications(lake) == [asked]
        assert mains_follow(lake, asked)
        assert keys(lake, "features", asked.snapshots["features"]) == ["a.jpg"]
        assert current_base(lake).publication == asked

    def test_a_table_that_the_run_did_not_write_stays_as_it_was(self, lake):
        before = lake.head("quarantine")
        assert publish_run(lake, "a").snapshots["quarantine"] == before == lake.head("quarantine")

    def test_the_branches_of_all_attempts_of_a_run_are_dropped_and_no_others(self, lake):
        base = current_base(lake)
        for branch in ("run_a__featurize_1_ab", "run_a__featurize_2_cd", "run_a", "run_a_b__featurize_1_ab"):
            start_branch(lake, "features", branch, base.snapshots["features"])
        drop_run_branches(lake, "a")
        assert set(lake.table("features").refs()) == {"main", "run_a_b__featurize_1_ab"}
        drop_run_branches(lake, "a_b")
        publish_run(lake, "a")
        assert {name: set(lake.table(name).refs()) for name in heads(lake)} == {name: {"main"} for name in heads(lake)}

    @pytest.mark.heavy
    def test_many_publications_are_read_from_few_files(self, lake, monkeypatch):
        monkeypatch.setattr(module, "_MOST_FILES", 3)
        expected = []
        for number in range(8):
            base = current_base(lake)
            row = replace(
                publication_of(lake, str(number), base), counters=(RowCount("m", "Fig", "train", None, number),)
            )
            expected.append(publish(lake, base, writer(str(number)), row))
        found = publications(lake)
        assert [(one.sequence, one.run_id, one.snapshots) for one in found] == [
            (one.sequence, one.run_id, one.snapshots) for one in expected
        ]
        assert len(lake.files("publications", lake.head("publications"))) <= 3
        full = in_full(lake.table("publications"), found)
        assert [one.gates for one in full] == [one.gates for one in expected]
        assert [one.counted is not None for one in full] == [False] * 3 + [True] * 5, "those of old rows are dropped"
        assert full[3:] == expected[3:]
        assert [one.gates for one in found] == [()] * 7 + [full[-1].gates], "only the newest row's are read"
        assert found[-1] == expected[-1]

    def test_publishing_a_run_twice_is_publishing_it_once(self, lake):
        base = current_base(lake)
        first = publish_run(lake, "a", base)
        before = heads(lake)
        assert publish(lake, base, writer("a"), publication_of(lake, "a", base)) == first
        assert heads(lake) == before
        assert publications(lake) == [first]

    def test_publishing_an_old_run_again_does_not_take_readers_back(self, lake):
        base = current_base(lake)
        first = publish_run(lake, "a", base)
        publish_run(lake, "b")
        before = heads(lake)
        assert publish(lake, base, writer("a"), publication_of(lake, "a", base)) == first
        assert heads(lake) == before
        assert [one.run_id for one in publications(lake)] == ["a", "b"]

    def test_a_crash_before_the_commit_leaves_nothing_and_a_retry_publishes(self, lake, monkeypatch):
        base = current_base(lake)
        write(lake, "a", base)
        before = heads(lake)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "advance_main", crash_at("publications"))
            publish(lake, base, writer("a"), publication_of(lake, "a", base))
        assert heads(lake) == before
        assert publications(lake, lake.head("publications")) == []
        publish(lake, base, writer("a"), publication_of(lake, "a", base))
        assert [one.sequence for one in publications(lake)] == [1]
        assert keys(lake, "features", lake.head("features")) == ["a.jpg"]


def test_an_attempt_that_was_left_behind_and_published_first_is_no_conflict(lake, monkeypatch):
    base = current_base(lake)
    write(lake, "a", base)
    late, advance = publication_of(lake, "a", base), advance_main

    def overtaken(own, name, *, expected, target):
        """The other attempt publishes just before."""
        monkeypatch.setattr(module, "advance_main", advance)
        publish(Lake.open(lake.settings), base, writer("a", "publish"), late)
        advance(own, name, expected=expected, target=target)

    monkeypatch.setattr(module, "advance_main", overtaken)
    assert publish(lake, base, writer("a"), late).run_id == "a"
    assert [one.run_id for one in publications(lake)] == ["a"]


class TestConflict:
    def test_the_second_of_two_runs_from_one_base_changes_nothing(self, lake):
        base = current_base(lake)
        for run in ("a", "b"):
            write(lake, run, base)
        publish(lake, base, writer("a"), publication_of(lake, "a", base))
        before = heads(lake)
        with pytest.raises(
            ConflictError, match=r"another run published after run b was planned.*nothing was published"
        ):
            publish(lake, base, writer("b"), publication_of(lake, "b", base))
        assert heads(lake) == before
        assert [one.run_id for one in publications(lake)] == ["a"]
        assert keys(lake, "features", lake.head("features")) == ["a.jpg"]

    def test_a_run_learns_before_it_works_that_another_published(self, lake):
        base = current_base(lake)
        check_current(lake, base, "late")
        publish_run(lake, "quick", base)
        with pytest.raises(ConflictError, match="another run published after run late was planned"):
            check_current(lake, base, "late")
        check_current(lake, base, "quick")

    def test_planned_again_it_publishes_on_top(self, lake):
        base = current_base(lake)
        write(lake, "b", base)
        publish_run(lake, "a", base)
        with pytest.raises(ConflictError):
            publish(lake, base, writer("b"), publication_of(lake, "b", base))
        publish_run(lake, "b")
        assert keys(lake, "features", lake.head("features")) == ["a.jpg", "b.jpg"]
        assert keys(lake, "embeddings", lake.head("embeddings")) == ["a.jpg", "b.jpg"]

    @pytest.mark.heavy
    def test_sequences_have_no_gaps_whatever_failed_in_between(self, lake):
        for run in ("a", "b", "c"):
            stale = current_base(lake)
            publish_run(lake, run)
            with pytest.raises(ConflictError):
                publish_run(lake, f"late-{run}", stale)
        assert [(one.sequence, one.run_id) for one in publications(lake)] == [(1, "a"), (2, "b"), (3, "c")]

    @pytest.mark.parametrize("attempt", range(3))
    def test_of_runs_that_publish_at_once_exactly_one_is_published(self, lake, attempt):
        base, barrier = current_base(lake), threading.Barrier(3)
        for run in ("a", "b", "c"):
            write(lake, run, base)

        def race(run):
            own = Lake.open(lake.settings)
            barrier.wait()
            try:
                publish(own, base, writer(run), publication_of(own, run, base))
            except ConflictError:
                return None
            return run

        with ThreadPoolExecutor(3) as pool:
            (winner,) = [run for run in pool.map(race, ("a", "b", "c")) if run]
        (published,) = publications(lake)
        assert published.run_id == winner
        assert mains_follow(lake, published)
        assert keys(lake, "features", lake.head("features")) == [f"{winner}.jpg"]


def crash_at(table):
    """``advance_main`` that dies when it comes to a table."""
    advance = advance_main

    def advance_or_die(lake, name, *, expected, target):
        if name == table:
            raise KeyboardInterrupt
        advance(lake, name, expected=expected, target=target)

    return advance_or_die


def crash_after_the_commit(settings, table):
    """Publish run a, and run b up to a table, whose `main` it does not advance."""
    publish_runs(settings, "a")
    lake = Lake.open(settings)
    base = current_base(lake)
    write(lake, "b", base)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "advance_main", crash_at(table))
        publish(lake, base, writer("b"), publication_of(lake, "b", base))


@pytest.mark.parametrize("table", ["features", "embeddings"])
class TestCrashAfterTheCommit:
    @pytest.fixture
    def lake(self, as_made, table):
        """A lake in which run b died after its row was committed, with run a published before."""
        return Lake.open(as_made(crash_after_the_commit, table))

    @pytest.fixture
    def crashed(self, lake, table):
        """The base of run b."""
        assert keys(lake, table, lake.head(table)) == ["a.jpg"]
        before = lake.table("publications").current_snapshot().parent_snapshot_id
        return Base(publications(lake, before)[-1], before)

    def test_readers_of_the_publication_see_all_of_it_at_once(self, lake, crashed):
        current = publications(lake)[-1]
        assert current.run_id == "b"
        for name in ("features", "embeddings"):
            assert keys(lake, name, current.snapshots[name]) == ["a.jpg", "b.jpg"]

    def test_the_next_plan_completes_it(self, lake, crashed):
        base = current_base(lake)
        assert base.publication.run_id == "b"
        assert mains_follow(lake, base.publication)
        publish_run(lake, "c")
        assert keys(lake, "features", lake.head("features")) == ["a.jpg", "b.jpg", "c.jpg"]

    def test_its_own_retry_completes_it(self, lake, crashed):
        done = publish(lake, crashed, writer("b"), publication_of(lake, "b", crashed))
        assert mains_follow(lake, done)
        assert [one.sequence for one in publications(lake)] == [1, 2]

    def test_whoever_completes_it_late_does_not_undo_a_newer_publication(self, lake, crashed, monkeypatch):
        read = module.publications
        overtaken: list[Publication] = []

        def overtaken_while_reading(own, snapshot_id=None):
            found = read(own, snapshot_id)
            if not overtaken:
                overtaken.append(True)
                publish_run(Lake.open(lake.settings), "c")
            return found

        monkeypatch.setattr(module, "publications", overtaken_while_reading)
        assert current_base(lake).publication.run_id == "c"
        assert mains_follow(lake, read(lake)[-1])
        assert keys(lake, "features", lake.head("features")) == ["a.jpg", "b.jpg", "c.jpg"]


class TestARowOfAnotherProgramInPublications:
    """Somebody writes to `main` of `publications`: never adopted, never lost, named; and no run is stopped."""

    @pytest.fixture(params=[(), ("first",)], ids=["before the first publication", "later"])
    def lake(self, as_made, request):
        """A lake before and after its first publication."""
        return Lake.open(as_made(publish_runs, *request.param))

    @pytest.fixture
    def before(self, lake):
        """What readers see before it."""
        return readers_base(lake)

    @staticmethod
    def append(lake, base, sequence=99):
        """The other program's row, which looks like ours; returns the snapshot."""
        row = replace(publication_of(lake, "nobody", base), sequence=sequence)
        lake.table("publications").append(_to_rows(row))
        return lake.head("publications")

    def test_readers_go_on_with_the_publication_that_there_was(self, lake, before):
        for sequence in (1, 99):
            self.append(lake, before, sequence)
        assert readers_base(lake) == before
        expected = [before.publication] if before.publication.sequence else []
        assert publications(lake) == publications_of(lake.table("publications")) == expected

    def test_the_next_plan_names_it_keeps_it_by_a_tag_and_puts_main_back(self, lake, before, caplog):
        foreign = self.append(lake, before)
        with caplog.at_level(logging.WARNING, "fruits"):
            assert current_base(lake) == before
        assert f"table publications: main is at snapshot {foreign}, which no run published" in caplog.text
        assert lake.head("publications") == before.publications_snapshot
        assert lake.state("publications").refs[f"foreign_{foreign}"] == foreign
        assert publish_run(lake, "next").sequence == before.publication.sequence + 1

    def test_a_run_that_it_overtakes_publishes_all_the_same(self, lake, before, caplog):
        write(lake, "run", before)
        foreign = self.append(lake, before)
        with caplog.at_level(logging.WARNING, "fruits"):
            check_current(lake, before, "run")
            done = publish(lake, before, writer("run"), publication_of(lake, "run", before))
        assert f"snapshot {foreign}, which no run published" in caplog.text
        assert publications(lake)[-1] == done
        assert lake.read("publications", lake.head("publications")).num_rows == before.publication.sequence + 1

    def test_its_deletion_of_rows_is_not_adopted_either(self, lake, before):
        publish_run(lake, "run")
        lake.table("publications").delete("sequence > 0")
        assert lake.read("publications", lake.head("publications")).num_rows == 0
        assert publications(lake)[-1].run_id == current_base(lake).publication.run_id == "run"

    def test_files_that_somebody_rewrote_hold_our_rows(self, lake, before, monkeypatch):
        """PyIceberg has no rewriting, so an append of no rows is called one."""
        lake.table("publications").append(PUBLICATIONS.schema.empty_table())
        rewritten = lake.head("publications")
        assert module.own_head(lake.table("publications")) == before.publications_snapshot
        monkeypatch.setattr(module, "_REWRITE", "append")
        assert module.own_head(lake.table("publications")) == rewritten


def test_snapshots_of_a_lake_of_fruits_0_1_name_no_run_and_are_ours(lake, monkeypatch):
    monkeypatch.setattr(module, "RUN_PROPERTY", "fruits.unheard-of")
    publish_run(lake, "first")
    assert publications(lake)[-1].run_id == "first"


def test_the_order_of_publications_is_that_of_their_commits_whatever_the_clocks_say(lake):
    first, second = datetime(2036, 1, 1, tzinfo=UTC), datetime(2016, 1, 1, tzinfo=UTC)  # two hosts, clocks years off
    for run, moment in (("first", first), ("second", second)):
        base = current_base(lake)
        write(lake, run, base)
        publish(lake, base, writer(run), replace(publication_of(lake, run, base), published_at=moment))
    assert [one.run_id for one in publications(lake)] == ["first", "second"]
    assert mains_follow(lake, readers_base(lake).publication)
    assert roll_back(lake, "1", now=datetime(1996, 1, 1, tzinfo=UTC)).sequence == 3
    assert keys(lake, "features", lake.head("features")) == ["first.jpg"]


def test_a_rollback_while_a_publication_is_completed_leaves_no_mix(as_made, monkeypatch):
    """A table's `main` is then back where the publisher saw it, and its compare-and-swap would take it forward."""
    lake = Lake.open(as_made(publish_runs, "a"))
    base = current_base(lake)
    write(lake, "b", base)
    advance = advance_main

    def roll_back_at_embeddings(lake, name, *, expected, target):
        if name == "embeddings":
            monkeypatch.setattr(module, "advance_main", advance)
            roll_back(lake, "1")
        advance(lake, name, expected=expected, target=target)

    monkeypatch.setattr(module, "advance_main", roll_back_at_embeddings)
    publish(lake, base, writer("b"), publication_of(lake, "b", base))
    current = publications(lake)[-1]
    assert current.sequence == 3
    assert mains_follow(lake, current)


@pytest.mark.heavy
def test_readers_see_a_consistent_set_while_runs_publish(lake):
    done, seen = threading.Event(), []

    def watch():
        own = Lake.open(lake.settings)
        while not done.is_set():
            if published := publications(own):
                features, embeddings = (
                    keys(own, name, published[-1].snapshots[name]) for name in ("features", "embeddings")
                )
                seen.append((published[-1].sequence, features, embeddings))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            for number in range(1, 7):
                publish_run(lake, f"r{number}")
        finally:
            done.set()
        watching.result()
    assert len({sequence for sequence, _, _ in seen}) > 1, "the reader was too slow to see anything move"
    for sequence, features, embeddings in seen:
        assert features == embeddings == [f"r{number}.jpg" for number in range(1, sequence + 1)]


class TestRollBack:
    @pytest.fixture
    def lake(self, as_made):
        """A lake with publications of the runs a and b."""
        return Lake.open(as_made(publish_runs, "a", "b"))

    @pytest.fixture
    def two(self, lake):
        """The two publications, in full."""
        return in_full(lake.table("publications"), publications(lake))

    @pytest.mark.parametrize("by", ["publication_id", "sequence"])
    def test_readers_see_the_older_rows_in_every_table(self, lake, two, by):
        done = roll_back(lake, str(getattr(two[0], by)))
        assert mains_follow(lake, done)
        for name in ("features", "embeddings"):
            assert keys(lake, name, done.snapshots[name]) == keys(lake, name, lake.head(name)) == ["a.jpg"]

    def test_it_is_a_row_on_top_that_says_what_the_older_one_said(self, lake, two):
        done = roll_back(lake, "1")
        assert in_full(lake.table("publications"), publications(lake)) == [*two, done]
        assert done.sequence == 3
        assert done.publication_id not in {one.publication_id for one in two}
        assert str(done.run_id).startswith("rollback__")
        same = ("snapshots", "model_id", "pca_id", "counts", "probe_raw", "probe_embedded", "gates")
        assert all(getattr(done, name) == getattr(two[0], name) for name in same)
        assert set(lake.table("publications").refs()) == {"main"}

    def test_a_run_planned_before_it_conflicts(self, lake, two):
        base = current_base(lake)
        write(lake, "c", base)
        done = roll_back(lake, "1")
        with pytest.raises(ConflictError):
            publish(lake, base, writer("c"), publication_of(lake, "c", base))
        assert publications(lake)[-1] == done
        assert mains_follow(lake, done)

    def test_a_later_run_publishes_on_top_of_it(self, lake, two):
        roll_back(lake, "1")
        publish_run(lake, "c")
        for name in ("features", "embeddings"):
            assert keys(lake, name, lake.head(name)) == ["a.jpg", "c.jpg"]
        assert [one.sequence for one in publications(lake)] == [1, 2, 3, 4]

    def test_publishing_the_run_that_was_rolled_back_again_does_not_bring_it_back(self, lake, two):
        base = current_base(lake)
        base = replace(base, publication=replace(base.publication, sequence=1))
        done = roll_back(lake, "1")
        publish(lake, base, writer("b"), two[1])
        assert mains_follow(lake, done)

    def test_its_snapshots_cannot_expire_before_the_row_is_there(self, lake, two, monkeypatch):
        """Maintenance beside it that did not see the row yet: a tag holds them."""
        tagged = []

        def seen(own, by, start, publication):
            refs = {name: own.state(name).refs for name in DATA_TABLES}
            tagged.append({name: publication.snapshots[name] in refs[name].values() for name in DATA_TABLES})
            raise FruitsError("enough seen")

        monkeypatch.setattr(module, "_add_row", seen)
        with pytest.raises(FruitsError, match="enough seen"):
            roll_back(lake, "1")
        assert tagged == [dict.fromkeys(DATA_TABLES, True)]

    def test_it_can_be_rolled_forward_again(self, lake, two):
        roll_back(lake, "1")
        done = roll_back(lake, "2")
        assert mains_follow(lake, two[1])
        assert done.snapshots == two[1].snapshots
        assert [one.sequence for one in publications(lake)] == [1, 2, 3, 4]

    def test_to_the_current_publication_there_is_nothing_to_do(self, lake, two):
        before = heads(lake)
        assert roll_back(lake, "2") == two[1]
        done = roll_back(lake, "1")
        assert roll_back(lake, "1") == roll_back(lake, "3") == done
        assert heads(lake)["features"] != before["features"]
        assert len(publications(lake)) == 3

    @pytest.mark.parametrize("table", ["features", "embeddings"])
    def test_a_crash_after_its_commit_is_healed_by_the_next_plan(self, lake, two, monkeypatch, table):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "advance_main", crash_at(table))
            roll_back(lake, "1")
        assert keys(lake, table, lake.head(table)) == ["a.jpg", "b.jpg"]
        base = current_base(lake)
        assert base.publication.snapshots == two[0].snapshots
        assert mains_follow(lake, two[0])

    def test_a_crash_before_its_commit_changes_nothing(self, lake, two, monkeypatch):
        before = heads(lake)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "advance_main", crash_at("publications"))
            roll_back(lake, "1")
        assert heads(lake) == before
        assert current_base(lake).publication == two[1]

    def test_it_gives_way_to_a_run_that_publishes_at_that_moment(self, lake, two, monkeypatch):
        choose = module.choose

        def overtaken(own, published, name):
            publish_run(Lake.open(lake.settings), "c")
            return choose(own, published, name)

        monkeypatch.setattr(module, "choose", overtaken)
        with pytest.raises(ConflictError, match="another run published while pub-000001-.* nothing was changed"):
            roll_back(lake, "1")
        assert publications(lake)[-1].run_id == "c"
        assert keys(lake, "features", lake.head("features")) == ["a.jpg", "b.jpg", "c.jpg"]

    def test_an_unknown_publication_is_refused_and_the_known_ones_named(self, lake, two):
        with pytest.raises(FruitsError, match=rf"'pub-9'.*{two[1].publication_id}, {two[0].publication_id}"):
            roll_back(lake, "pub-9")
        assert len(publications(lake)) == 2

    def test_an_expired_publication_is_refused_and_those_left_named(self, lake, two):
        publish_run(lake, "c")
        with lake.table("embeddings").maintenance.expire_snapshots() as expiry:
            expiry.by_id(two[0].snapshots["embeddings"])
        assert [one.sequence for one in readable(lake, publications(lake))] == [2, 3]
        before = heads(lake)
        with pytest.raises(FruitsError, match=rf"{two[0].publication_id}: its snapshots have expired") as refused:
            roll_back(lake, "1")
        assert str(refused.value).count("pub-") == 3  # itself, and the two that are left
        assert heads(lake) == before

    def test_before_anything_is_published_there_is_nothing_to_roll_back_to(self, as_made):
        with pytest.raises(FruitsError, match="newest first: none"):
            roll_back(Lake.open(as_made(Lake.open)), "1")


def publish_in_format_3(settings):
    """A lake with two publications of format 3."""
    publish_runs(settings, "a", "b")
    lake = Lake(settings)
    rows = lake.read("publications", None).to_pylist()
    for row in rows:
        row["snapshots"] = [(name, at) for name, at in row["snapshots"] if name != "label_statistics"]
    earlier = pa.Table.from_pylist(rows, schema=PUBLICATIONS.schema)
    lake.table("publications").overwrite(earlier, snapshot_properties=writer("b").snapshot_properties)
    lake.catalog.drop_table((settings.namespace, "label_statistics"))
    lake.set_properties({"fruits.lake-format": "3"})


class TestALakeThatLacksATable:
    """Format 3 had no `label_statistics`: its publications name no snapshot of that table."""

    @pytest.fixture
    def old(self, as_made):
        """Two publications of format 3."""
        return Lake(as_made(publish_in_format_3))

    def test_readers_find_its_publications_and_make_nothing(self, old):
        reading = open_read_only(old.settings)
        published = publications(reading)
        assert readable(reading, published) == published
        assert readers_base(reading).publication == published[-1]
        assert "label_statistics" not in reading.names()
        survey(reading, MaintenanceRequest(retention_days=30, retention_publications=2, dry_run=True), NOW)
        check_catalog_is_current(reading)

    def test_it_is_verified_rolled_back_and_kept_from_runs_before_a_run_of_this_release(self, old):
        reading = open_read_only(old.settings)
        current = publications(reading)[-1]
        assert check_publications(Verified(reading.settings, reading, current)).state == "ok"
        done = roll_back(reading, "1")
        refuse_runs_under_way(reading, current_base(reading))
        assert publications(reading)[-1] == done
        assert mains_follow(reading, done)
        assert "label_statistics" not in reading.names()

    def test_the_next_run_finds_the_table_empty_and_publishes_it(self, old):
        lake = Lake.open(old.settings)
        empty = lake.head("label_statistics")
        base = current_base(lake)
        assert base.publication.snapshots["label_statistics"] == empty
        done = publish_run(lake, "c", base)
        assert mains_follow(lake, done)
        assert [row.snapshots["label_statistics"] for row in publications(lake)] == [empty] * 3

    def test_a_rollback_to_its_publications_takes_the_table_back_to_where_it_was_empty(self, old):
        lake = Lake.open(old.settings)
        empty = lake.head("label_statistics")
        base, by = current_base(lake), writer("c")
        start_branch(lake, "label_statistics", by.branch, empty)
        save_label_sums(lake, by, "m", {"kiwi": LabelSum(1, np.ones(2), np.zeros(2))}, "c")
        done = publish_run(lake, "c", base)
        assert lake.read("label_statistics", done.snapshots["label_statistics"]).num_rows == 1
        back = roll_back(lake, "1")
        assert mains_follow(lake, back)
        assert lake.read("label_statistics", None).num_rows == 0

    def test_maintenance_keeps_the_empty_snapshot_while_a_publication_needs_it(self, old):
        lake = Lake.open(old.settings)
        publish_run(lake, "c")
        request = MaintenanceRequest(retention_days=30, retention_publications=3)
        upkeep = survey(lake, request, NOW).tables["label_statistics"]
        assert upkeep.tags == dict.fromkeys(
            ("publication_1", "publication_2", "publication_3"), lake.head("label_statistics")
        )

    def test_its_catalog_can_be_made_again_without_the_table(self, old):
        folder = old.settings.warehouse.removeprefix("file://")
        shutil.rmtree(f"{folder}/{old.settings.namespace}/label_statistics")
        rebuild = plan_rebuild(old.settings)
        assert {table.name for table in rebuild.tables if table.action == "create"} == {"label_statistics"}
        assert rebuild.publication.sequence == 2

    def test_a_run_that_the_earlier_release_planned_goes_on(self, old):
        base = readers_base(open_read_only(old.settings))
        lake = Lake.open(old.settings)
        run = planned(base=base)
        assert "label_statistics" not in run.base.snapshots
        run = with_every_table(lake, run)
        assert run.base.snapshots["label_statistics"] == lake.head("label_statistics")
        wrote = dict.fromkeys(("pca_statistics", "pca_models", "embeddings"), 1)
        snapshots = {**wrote, "features": 1, "quarantine": 1}
        documents = RunDocuments(
            pca=document("pca", 1, projected(wrote=wrote)),
            validate=document("validate", 2, validated(snapshots=snapshots)),
        )
        filled = with_snapshots(lake, run, documents)
        newer = {table.name: lake.head(table.name) for table in TABLES if table.since > 1}
        assert filled.pca.result.wrote == {**wrote, **newer}
        assert filled.validate.result.snapshots == {**snapshots, **newer}
