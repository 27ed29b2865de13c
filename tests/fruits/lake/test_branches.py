import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from pyiceberg.exceptions import ValidationException

from fruits.errors import ConflictError, TransientError
from fruits.lake.branches import advance_main, change_refs, commit_rows, drop_run_branches, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.schemas import PCA_STATISTICS

TABLE = "pca_statistics"


def statistics(run_id):
    """One row."""
    values = {"model_id": "m", "n": 1, "mean": [0.5], "scatter": [0.0], "mean_error": 0.0, "scatter_error": 0.0}
    return pa.Table.from_pylist([{**values, "run_id": run_id}], schema=PCA_STATISTICS.schema)


def append(lake, branch, run_id):
    """Commit one row on a branch."""
    rows = statistics(run_id)
    commit_rows(lake, TABLE, lambda transaction: transaction.append(rows, branch=branch))


def runs_on(lake, ref):
    """The run ids of the rows that a branch shows."""
    return lake.read(TABLE, lake.head(TABLE, ref))["run_id"].to_pylist()


class TestChangeRefs:
    def test_tags_are_set_and_moved_and_refs_dropped_in_one_commit(self, lake):
        first = lake.head(TABLE)
        append(lake, "main", "published")
        second = lake.head(TABLE)
        change_refs(lake, TABLE, {"publication_1": first}, {})
        start_branch(lake, TABLE, "run_a", first)
        before = lake.table(TABLE).metadata_location
        change_refs(lake, TABLE, {"publication_1": second, "publication_2": second}, {"run_a": first})
        assert dict(lake.state(TABLE).refs) == {"publication_1": second, "publication_2": second}
        assert lake.table(TABLE).metadata.metadata_log[-1].metadata_file == before

    def test_a_ref_that_moved_since_it_was_looked_at_is_not_dropped(self, lake):
        base = lake.head(TABLE)
        start_branch(lake, TABLE, "run_a", base)
        append(lake, "run_a", "a")
        with pytest.raises(ConflictError):
            change_refs(lake, TABLE, {}, {"run_a": base})
        assert runs_on(lake, "run_a") == ["a"]

    def test_nothing_to_change_commits_nothing(self, lake):
        before = lake.table(TABLE).metadata_location
        change_refs(lake, TABLE, {}, {})
        assert lake.table(TABLE).metadata_location == before


class TestStartBranch:
    def test_the_branch_shows_what_its_base_shows(self, lake):
        append(lake, "main", "published")
        start_branch(lake, TABLE, "run_a", lake.head(TABLE))
        assert runs_on(lake, "run_a") == ["published"]

    def test_rows_on_the_branch_do_not_show_on_main_or_another_branch(self, lake):
        base = lake.head(TABLE)
        for name in ("run_a", "run_b"):
            start_branch(lake, TABLE, name, base)
        append(lake, "run_a", "a")
        assert (runs_on(lake, "run_a"), runs_on(lake, "run_b"), runs_on(lake, "main")) == (["a"], [], [])
        assert lake.head(TABLE) == base

    def test_a_retry_starts_again_from_the_base_whatever_was_there(self, lake):
        base = lake.head(TABLE)
        for _ in range(3):
            start_branch(lake, TABLE, "run_a", base)
            append(lake, "run_a", "a")
        assert runs_on(lake, "run_a") == ["a"]

    def test_a_retry_starts_from_the_base_even_when_main_moved_on(self, lake):
        base = lake.head(TABLE)
        start_branch(lake, TABLE, "run_a", base)
        append(lake, "main", "other")
        start_branch(lake, TABLE, "run_a", base)
        assert runs_on(lake, "run_a") == []


class TestAdvanceMain:
    def test_main_moves_to_the_branch(self, lake):
        base = lake.head(TABLE)
        start_branch(lake, TABLE, "run_a", base)
        append(lake, "run_a", "a")
        advance_main(lake, TABLE, expected=base, target=lake.head(TABLE, "run_a"))
        assert runs_on(lake, "main") == ["a"]

    def test_a_main_that_moved_is_left_where_it_is(self, lake):
        base = lake.head(TABLE)
        start_branch(lake, TABLE, "run_a", base)
        append(lake, "run_a", "a")
        append(lake, "main", "other")
        moved = lake.head(TABLE)
        with pytest.raises(ConflictError, match=TABLE):
            advance_main(lake, TABLE, expected=base, target=lake.head(TABLE, "run_a"))
        assert lake.head(TABLE) == moved
        assert runs_on(lake, "main") == ["other"]

    @pytest.mark.parametrize("attempt", range(3))
    def test_of_many_at_once_exactly_one_wins(self, lake, attempt):
        base, barrier = lake.head(TABLE), threading.Barrier(4)
        targets = {}
        for number in range(4):
            start_branch(lake, TABLE, f"run_{number}", base)
            append(lake, f"run_{number}", str(number))
            targets[number] = lake.head(TABLE, f"run_{number}")

        def advance(number):
            own = Lake.open(lake.settings)
            barrier.wait()
            try:
                advance_main(own, TABLE, expected=base, target=targets[number])
            except ConflictError:
                return None
            return number

        with ThreadPoolExecutor(4) as pool:
            (winner,) = [number for number in pool.map(advance, range(4)) if number is not None]
        assert lake.head(TABLE) == targets[winner]


class TestDropRunBranches:
    def test_the_branches_of_the_run_are_gone_and_their_snapshots_stay_readable(self, lake):
        for branch in ("run_a", "run_b"):
            start_branch(lake, TABLE, branch, lake.head(TABLE))
            append(lake, branch, branch)
        snapshot = lake.head(TABLE, "run_a")
        drop_run_branches(lake, "a")
        assert lake.head(TABLE, "run_a") is None
        assert runs_on(lake, "run_b") == ["run_b"]
        assert lake.read(TABLE, snapshot)["run_id"].to_pylist() == ["run_a"]

    def test_a_run_without_branches_changes_nothing(self, lake):
        before = lake.table(TABLE).metadata
        drop_run_branches(lake, "nobody")
        assert lake.table(TABLE).metadata == before


def test_an_error_in_a_change_is_not_tried_again(lake):
    calls = []

    def change(transaction):
        calls.append(transaction)
        raise ValueError("not of the catalog's making")

    with pytest.raises(ValueError, match="not of the catalog's making"):
        commit_rows(lake, TABLE, change)
    assert len(calls) == 1


def rounds(lake, name):
    """What a run does to a table, three times over: start the branch, write, and at last drop it."""
    base = lake.head(TABLE)
    for _ in range(3):
        start_branch(lake, TABLE, f"run_{name}", base)
        append(lake, f"run_{name}", name)
    start_branch(lake, TABLE, f"run_gone_{name}", base)
    drop_run_branches(lake, f"gone_{name}")


@pytest.mark.heavy
def test_threads_commit_to_branches_of_one_table_at_once(lake):
    barrier = threading.Barrier(6)

    def run(number):
        own = Lake.open(lake.settings)
        barrier.wait()
        rounds(own, f"t{number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    for number in range(6):
        assert runs_on(lake, f"run_t{number}") == [f"t{number}"]
    assert set(lake.table(TABLE).refs()) == {"main", *(f"run_t{number}" for number in range(6))}


PROCESS = """
import importlib.util, sys
from fruits.lake.catalog import Lake
from fruits.settings import Settings
spec = importlib.util.spec_from_file_location("branches_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
lake = Lake.open(Settings.load())
print("ready", flush=True)
sys.stdin.readline()
module.rounds(lake, sys.argv[2])
"""


@pytest.mark.heavy
def test_processes_commit_to_branches_of_one_table_at_once(lake):
    settings = lake.settings
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FRUITS_LAKE": settings.lake,
        "FRUITS_CATALOG_URI": settings.catalog_uri.get_secret_value(),
    }
    names = ("p0", "p1", "p2")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, __file__, name],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {name: runs_on(lake, f"run_{name}") for name in names} == {name: [name] for name in names}


def test_rows_are_not_committed_to_a_branch_that_is_gone(lake):
    """PyIceberg would make one without the rows that were there."""
    with pytest.raises(TransientError, match="branch run_gone is gone"):
        commit_rows(lake, TABLE, lambda transaction: pytest.fail("it committed"), branch="run_gone")


def test_a_commit_that_deletes_and_whose_answer_was_lost_is_tried_again_by_its_task(folder_lake):
    """PyIceberg sends such a commit again, and may then find that its rows are gone: `make chaos` met that."""

    def repeated(_):
        raise ValidationException("Deleted data files were found matching the filter for snapshots set()!")

    lake = Lake.open(folder_lake)
    with pytest.raises(TransientError, match="run it again"):
        commit_rows(lake, TABLE, repeated)
