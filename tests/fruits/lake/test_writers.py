"""A branch belongs to one attempt of one run, and says who wrote on it."""

import pyarrow as pa
import pytest

from fruits.analysis.moments import Moments
from fruits.errors import FruitsError
from fruits.lake.branches import (
    Writer,
    change_refs,
    check_lineage,
    commit_rows,
    drop_run_branches,
    resumable_heads,
    run_of_branch,
    start_branch,
    verified_head,
)
from fruits.lake.pca_tables import save_statistics
from fruits.lake.schemas import PCA_STATISTICS, TableName

TABLE: TableName = "pca_statistics"
FIRST, SECOND = Writer("manual_1", "pca_1_aaaaaa"), Writer("manual_1", "pca_2_bbbbbb")


def append(lake, branch, properties):
    """Commit one row on a branch; returns the snapshot."""
    values = {"model_id": "m", "n": 1, "mean": [0.5], "scatter": [0.0], "mean_error": 0.0, "scatter_error": 0.0}
    rows = pa.Table.from_pylist([{**values, "run_id": "manual 1"}], schema=PCA_STATISTICS.schema)
    commit_rows(
        lake, TABLE, lambda change: change.append(rows, branch=branch, snapshot_properties=properties), branch=branch
    )
    return lake.head(TABLE, branch)


@pytest.fixture
def base(lake):
    """The snapshot that both attempts start from; each has its branch."""
    base = lake.head(TABLE)
    for writer in (FIRST, SECOND):
        start_branch(lake, TABLE, writer.branch, base)
    return base


def test_a_branch_tells_its_run_those_of_lakes_of_format_1_too():
    assert run_of_branch(FIRST.branch) == run_of_branch(SECOND.branch) == FIRST.run
    assert FIRST.branch != SECOND.branch
    assert run_of_branch("run_manual_1") == "manual_1"
    assert run_of_branch("main") is run_of_branch("publication_3") is None


def test_the_head_of_a_branch_that_its_attempt_alone_wrote_is_verified(lake, base):
    assert verified_head(lake, TABLE, FIRST, base) == base
    for _ in range(2):
        head = append(lake, FIRST.branch, FIRST.snapshot_properties)
    assert verified_head(lake, TABLE, FIRST, base) == head


def test_what_the_jobs_write_through_pyiceberg_is_verified_too(lake, base):
    for n in (1, 2):
        save_statistics(lake, FIRST, "m", Moments.empty(n), "manual 1")
    assert verified_head(lake, TABLE, FIRST, base) != base


def test_an_attempt_that_writes_on_does_not_reach_the_next_ones_branch(lake, base):
    head = append(lake, SECOND.branch, SECOND.snapshot_properties)
    append(lake, FIRST.branch, FIRST.snapshot_properties)
    assert verified_head(lake, TABLE, SECOND, base) == head
    assert lake.read(TABLE, head).num_rows == 1


@pytest.mark.parametrize(
    ("properties", "who"),
    [
        (FIRST.snapshot_properties, "run manual_1, attempt pca_1_aaaaaa"),
        (Writer("backfill_7", SECOND.attempt).snapshot_properties, "run backfill_7, attempt pca_2_bbbbbb"),
        ({}, "run None, attempt None"),
    ],
    ids=["another attempt", "another run", "nobody"],
)
@pytest.mark.parametrize("last", [True, False], ids=["last", "in between"])
def test_a_snapshot_of_another_process_is_refused_by_name(lake, base, properties, who, last):
    foreign = append(lake, SECOND.branch, properties)
    if not last:
        append(lake, SECOND.branch, SECOND.snapshot_properties)
    with pytest.raises(FruitsError) as refusal:
        verified_head(lake, TABLE, SECOND, base)
    expected = (
        f"run manual_1: snapshot {foreign} of table {TABLE} was written by {who}, and not by attempt pca_2_bbbbbb"
    )
    assert str(refusal.value).startswith(expected)
    assert "Clear the run from `wait_for_lease`" in str(refusal.value)


def test_a_snapshot_that_does_not_descend_from_the_base_is_refused(lake, base):
    elsewhere = append(lake, FIRST.branch, FIRST.snapshot_properties)
    head = append(lake, SECOND.branch, SECOND.snapshot_properties)
    with pytest.raises(FruitsError, match=f"run manual_1: snapshot .* of table {TABLE} "):
        check_lineage(lake, TABLE, head, elsewhere, SECOND)


def test_a_branch_that_is_gone_is_named(lake, base):
    drop_run_branches(lake, FIRST.run)
    with pytest.raises(FruitsError, match=f"branch {SECOND.branch} of table {TABLE} is gone"):
        verified_head(lake, TABLE, SECOND, base)


def test_the_branches_of_a_run_are_dropped_and_no_others(lake, base):
    other = Writer("manual_12", "pca_1_cccccc")
    start_branch(lake, TABLE, other.branch, base)
    drop_run_branches(lake, FIRST.run)
    assert set(lake.state(TABLE).refs) == {other.branch}


class TestAnAttemptThatResumes:
    THIRD = Writer("manual_1", "pca_3_cccccc", (FIRST.attempt, SECOND.attempt))

    def resumed(self, lake, base):
        return resumable_heads(lake, self.THIRD, {TABLE: base})[TABLE]

    def test_goes_on_where_the_newest_attempt_ended_and_is_verified_as_its_own(self, lake, base):
        start_branch(lake, TABLE, SECOND.branch, append(lake, FIRST.branch, FIRST.snapshot_properties))
        head = append(lake, SECOND.branch, SECOND.snapshot_properties)
        assert self.resumed(lake, base) == head
        start_branch(lake, TABLE, self.THIRD.branch, head)
        assert verified_head(lake, TABLE, self.THIRD, base) == head
        head = append(lake, self.THIRD.branch, self.THIRD.snapshot_properties)
        assert verified_head(lake, TABLE, self.THIRD, base) == head

    def test_goes_on_where_the_attempt_before_ended_when_the_newest_was_killed_without_a_branch(self, lake, base):
        head = append(lake, FIRST.branch, FIRST.snapshot_properties)
        drop_ref(lake, SECOND.branch)
        assert self.resumed(lake, base) == head

    def test_starts_anew_where_another_process_wrote_to_the_branches(self, lake, base):
        append(lake, FIRST.branch, {})
        append(lake, SECOND.branch, Writer("other", SECOND.attempt).snapshot_properties)
        assert self.resumed(lake, base) == base

    def test_is_refused_when_an_earlier_attempt_wrote_after_a_later_one(self, lake, base):
        start_branch(lake, TABLE, self.THIRD.branch, base)
        append(lake, self.THIRD.branch, SECOND.snapshot_properties)
        append(lake, self.THIRD.branch, FIRST.snapshot_properties)
        with pytest.raises(FruitsError, match="was written by run manual_1, attempt pca_2_bbbbbb"):
            verified_head(lake, TABLE, self.THIRD, base)

    def test_without_attempts_before_starts_from_the_base(self, lake, base):
        append(lake, SECOND.branch, SECOND.snapshot_properties)
        assert resumable_heads(lake, Writer("manual_1", "pca_3_cccccc"), {TABLE: base}) == {TABLE: base}


def drop_ref(lake, branch):
    change_refs(lake, TABLE, {}, {branch: lake.head(TABLE, branch)})
