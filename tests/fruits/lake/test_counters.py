"""Counters follow the rows, survive a publication, and are held against Iceberg's own counts."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fruits.lake.branches import is_append
from fruits.lake.counters import COUNTED, Counters, Kind, agree, live_rows
from fruits.lake.publication import in_full, publications, roll_back
from fruits.settings import Settings

KINDS = [
    *(Kind(model, label, split) for model in ("a", "b") for label in ("Fig", "Kiwi") for split in ("train", "test")),
    *(Kind(model, reason=reason) for model in ("a", "b") for reason in ("empty", "corrupt")),
]
ROWS = st.lists(st.sampled_from(KINDS))


@given(ROWS, ROWS, st.data())
def test_counters_after_changes_are_those_of_the_rows_that_are_left(before, added, data):
    removed = data.draw(st.lists(st.sampled_from(before), unique=True)) if before else []
    rows = Counter([*before, *added])
    rows.subtract(removed)
    changes = Counter(added)
    changes.subtract(removed)
    counted = Counters(Counter(before)).changed(changes)
    assert counted == Counters({kind: number for kind, number in rows.items() if number})
    assert Counters.of(counted.counts) == counted
    assert counted.total("features") + counted.total("quarantine") == sum(rows.values())
    assert counted.without(["a"]) == counted.of_backbone("b")


def test_a_label_without_a_row_in_the_fit_split_is_unfitted():
    counted = Counters({Kind("a", "Fig", "train"): 1, Kind("a", "Fig", "test"): 2, Kind("a", "Kiwi", "validation"): 3})
    assert (counted.unfitted_labels, counted.held_out) == (["Kiwi"], 5)


def test_a_publication_and_a_rollback_to_it_keep_its_counters_and_an_empty_list_is_unknown(
    folder_lake: Settings, fake_run: Any
):
    counters = Counters({Kind("a", "Fig", "train"): 2, Kind("a", reason="empty"): 1}).counts
    for model_id, counts in (("a", counters), ("b", None)):
        run = fake_run(folder_lake)
        row = replace(run.base.publication, sequence=run.base.publication.sequence + 1, run_id=run.key)
        run.publish_row(replace(row, publication_id=f"p{row.sequence}", model_id=model_id, counts={}, counters=counts))
    roll_back(run.lake, "1")
    published = publications(run.lake)
    assert [row.counters for row in published] == [None, None, counters], "only the newest row's are read"
    assert [row.counters for row in in_full(run.lake.table("publications"), published)] == [counters, None, counters]


def test_icebergs_own_count_notices_rows_that_no_run_wrote(folder_lake: Settings, fake_run: Any):
    run = fake_run(folder_lake)
    vectors = np.random.default_rng(1).random((3, 4), dtype=np.float32)
    run.write(dict(zip(("train/Fig/1", "train/Fig/2", "train/Kiwi/1"), vectors, strict=True)), "a")
    tables = {name: run.lake.table(name) for name in COUNTED}
    heads = {name: run.lake.head(name, run.branch) for name in COUNTED}
    assert (live_rows(tables["features"], heads["features"]), live_rows(tables["quarantine"], 1)) == (3, None)
    two, three = (Counters({Kind("a", "Fig", "train"): rows}) for rows in (2, 3))
    assert (agree(two, tables, heads), agree(three, tables, heads)) == (False, True)
    base = run.base.snapshots["features"]
    assert is_append(tables["features"], base, heads["features"])
    assert not is_append(tables["features"], heads["features"], base), "not an ancestor"
