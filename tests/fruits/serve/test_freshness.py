"""When the tables were last up to date, by the documents of the lake's runs."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fruits.run.documents import RunDocuments, TaskDocument
from fruits.run.request import RunRequest
from fruits.serve.freshness import last_up_to_date, up_to_date_at
from fruits.settings import Settings
from tests.runs import document, featurized, planned, planned_maintenance, published, write_documents

INTERVAL = (datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))


def plan(
    minute: int = 0, *, work: bool = False, remaining: int = 0, pinned: str | None = None, **request: Any
) -> TaskDocument[Any]:
    result = planned(work=work, remaining=remaining, pinned=pinned, request=RunRequest(**{"prefix": "", **request}))
    return document("plan", minute, result)


def featurize(**pending: int) -> TaskDocument[Any]:
    return document("featurize", 5, featurized(pending=pending))


PLAN, WORK = plan(), plan(work=True)
PUBLISH = document("publish", 60, published())


@pytest.mark.parametrize(
    ("documents", "moment"),
    [
        (RunDocuments(plan=PLAN), PLAN.finished_at),
        (RunDocuments(plan=WORK, publish=PUBLISH), PUBLISH.finished_at),
        (RunDocuments(plan=WORK), None),
        (RunDocuments(plan=WORK, publish=document("publish", 60, state="running", finished_at=None)), None),
        (RunDocuments(plan=WORK, publish=document("publish", 60, state="failed")), None),
        (RunDocuments(plan=plan(work=True, remaining=3), publish=PUBLISH), None),
        (RunDocuments(plan=WORK, featurize=featurize(unanswered=1), publish=PUBLISH), None),
        (RunDocuments(plan=WORK, featurize=featurize(vanished=1), publish=PUBLISH), PUBLISH.finished_at),
        (RunDocuments(plan_maintenance=document("plan_maintenance", 0, planned_maintenance())), None),
        (RunDocuments(plan=document("plan", state="running", finished_at=None)), None),
        (RunDocuments(plan=PLAN.model_copy(update={"state": "failed"})), None),
        (RunDocuments(), None),
        (RunDocuments(plan=plan(dry_run=True)), None),
        (RunDocuments(plan=plan(pinned="anna pinned readers")), None),
        (RunDocuments(plan=plan(keys=("a.jpg",))), None),
        (RunDocuments(plan=plan(mode="interval", interval=INTERVAL)), None),
        (RunDocuments(plan=plan(prefix="Training/")), None),
    ],
)
def test_a_run_that_covered_everything_and_ended_well_counts(documents: RunDocuments, moment: datetime | None) -> None:
    assert up_to_date_at(documents, "") == moment


def test_the_newest_of_many_runs_counts(tmp_path: Path) -> None:
    settings = Settings.load(lake=f"file://{tmp_path / 'lake'}", catalog_uri=f"sqlite:///{tmp_path}/c.db")
    assert last_up_to_date(settings) is None
    newest = plan(1)
    for run_id, documents in (
        ("z_old", [plan()]),
        ("a_new", [newest]),
        ("failed", [document("plan", 2, state="failed")]),
        ("maintenance", [document("plan_maintenance", 3, planned_maintenance())]),
        ("planned_again", [plan(61, work=True), PUBLISH]),
    ):
        write_documents(settings, *documents, run_id=run_id)
        time.sleep(0.02)  # the folders' order is by time
    assert newest.finished_at == newest.started_at + timedelta(seconds=10)
    assert last_up_to_date(settings) == newest.finished_at
