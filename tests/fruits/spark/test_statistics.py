"""What a run leaves in the statistics' tables, without Spark."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fruits.analysis.labels import sums_of
from fruits.analysis.moments import moments_of
from fruits.lake.branches import start_branch
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import save_label_sums
from fruits.settings import Settings
from fruits.spark import statistics
from fruits.spark.executors import Statistics
from tests.runs import MODEL_ID, writer

pytestmark = pytest.mark.jobs

WRITER = writer("a", "pca")


def of_photos(*labels: str) -> Statistics:
    """Statistics of a photo of each label."""
    rows = np.random.default_rng(1).random((len(labels), 4), dtype=np.float32)
    return Statistics(moments_of(rows), sums_of(rows, labels))


def test_statistics_taken_from_the_rows_again_replace_a_label_that_the_same_run_brought(
    folder_lake: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run brings the first mango and refits as asked: first the label is added, then all are taken from the rows."""
    lake = Lake.open(folder_lake)
    for name in ("pca_statistics", "label_statistics"):
        start_branch(lake, name, WRITER.branch, lake.head(name))
    save_label_sums(lake, WRITER, MODEL_ID, of_photos("Kiwi").labels, "before")
    start = {name: lake.head(name, WRITER.branch) for name in ("pca_statistics", "label_statistics")}
    job: Any = SimpleNamespace(
        lake=lake,
        start=start,
        run=SimpleNamespace(model_id=MODEL_ID, run_id="a", backbone=SimpleNamespace(feature_width=4)),
        tables=SimpleNamespace(writer=WRITER),
        all_rows=lambda: None,
    )
    statistics.update_labels(job, {}, of_photos("Mango").labels)
    monkeypatch.setattr(statistics, "statistics_of_rows", lambda *_: of_photos("Kiwi", "Mango", "Mango"))
    assert statistics.recompute(job).n == 3
    rows = lake.read("label_statistics", lake.head("label_statistics", WRITER.branch), ("label", "n")).to_pylist()
    assert sorted((row["label"], row["n"]) for row in rows) == [("Kiwi", 1), ("Mango", 2)]
