"""When the gates read the changes of a run alone, and what they hold the changes against; without Spark."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fruits.analysis.gates import Gate
from fruits.analysis.moments import moments_of
from fruits.analysis.pca import fit
from fruits.lake.branches import Writer, commit_rows, start_branch
from fruits.lake.counters import Counters, Kind
from fruits.lake.publication import current_base
from fruits.lake.schemas import FEATURES
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.spark.changes import CHANGED, changes_of

MODEL = "a"
FITTED = Counters({Kind(MODEL, "Fig", "train"): 2})
REBUILD = RunRequest(prefix="", mode="rebuild")
APPROVED = Gate("drift", "required", passed=False, value=1.0, threshold=0.0, detail="-")


@pytest.fixture
def job(folder_lake: Settings, fake_run: Any) -> Any:
    """A job of a run that has added a row to two published ones."""
    vectors = np.random.default_rng(1).random((3, 4), dtype=np.float32)
    first = fake_run(folder_lake)
    pca = fit(moments_of(vectors), 2, 2)
    pca_id = first.write(dict(zip(("train/Fig/1", "train/Fig/2"), vectors, strict=False)), MODEL, pca=pca)
    first.publish(MODEL, pca_id)
    run = fake_run(folder_lake)
    run.write({"train/Fig/3": vectors[2]}, MODEL, pca=pca)
    base = current_base(run.lake)
    published = replace(base.publication, counters=FITTED.counts)
    return SimpleNamespace(
        lake=run.lake,
        writer=run.writer,
        run=SimpleNamespace(base=replace(base, publication=published), building=False, model_id=MODEL, request=REBUILD),
        start={name: run.lake.head(name, run.branch) for name in CHANGED},
        documents=SimpleNamespace(projected=SimpleNamespace(action="project", recomputed=False)),
    )


def with_publication(job: Any, **changed: Any) -> None:
    job.run.base = replace(job.run.base, publication=replace(job.run.base.publication, **changed))


def go_on(job: Any) -> None:
    """A second attempt of `featurize` goes on from the first one's branches, and writes."""
    second = Writer(job.writer.run, "featurize_2_cd", (job.writer.attempt,))
    start_branch(job.lake, "features", second.branch, job.start["features"])
    rows = FEATURES.schema.empty_table()
    commit_rows(job.lake, "features", lambda change: change.append(rows, **second.commit), branch=second.branch)
    job.start["features"] = job.lake.head("features", second.branch)


def test_rows_that_the_runs_own_do_not_explain_are_counted(job: Any) -> None:
    changes = changes_of(job, job.run.base.publication.pca_id)
    assert [changes.unexplained("features", rows) for rows in (0, 1, 2)] == [1, 0, 1]
    assert changes.unexplained("quarantine", 0) == 0


READS_ALL: dict[str, Any] = {
    "no counters": lambda job: with_publication(job, counters=None),
    "counters that Iceberg does not agree with": lambda job: with_publication(
        job, counters=FITTED.changed({Kind(MODEL, reason="empty"): 1}).counts
    ),
    "an approved publication": lambda job: with_publication(job, gates=(APPROVED,)),
    "another PCA version": lambda job: with_publication(job, pca_id="pca-9"),
    "a fit": lambda job: setattr(job.documents.projected, "action", "fit"),
    "statistics from all rows": lambda job: setattr(job.documents.projected, "recomputed", True),
    "a rebuild that went on": go_on,
    "rewritten files": lambda job: job.start.update(features=job.lake.table("features").snapshots()[0].snapshot_id),
}


@pytest.mark.parametrize("case", READS_ALL)
def test_where_changes_do_not_tell_all_the_gates_read_all_rows(
    case: str, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pca_id = job.run.base.publication.pca_id
    READS_ALL[case](job)
    with caplog.at_level("INFO", "fruits"):
        changes = changes_of(job, pca_id)
    assert changes.of_all
    assert changes.unexplained("features", 0) == 0, "all rows explain themselves"
    assert "all rows are read: " in caplog.text


def test_the_changes_of_an_increment_that_went_on_tell_all(job: Any) -> None:
    job.run.request = RunRequest(prefix="")
    go_on(job)
    assert not changes_of(job, job.run.base.publication.pca_id).of_all
