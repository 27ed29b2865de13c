"""When the tables were last up to date, by the documents of the lake's runs."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fruits.run.freshness import last_up_to_date, up_to_date_at
from fruits.settings import Settings
from fruits.stores import lake_store, write_json

PLAN = {
    "state": "succeeded",
    "work": False,
    "counts": {"create": 0, "pending": 0},
    "remaining": 0,
    "started_at": "2026-11-22T09:59:00+00:00",
    "finished_at": "2026-11-22T10:00:00+00:00",
    "request": {"dry_run": False, "keys": [], "mode": "reconcile", "prefix": ""},
}
AT = datetime(2026, 11, 22, 10, tzinfo=UTC)
PUBLISHED = {
    "state": "succeeded",
    "started_at": "2026-11-22T10:59:00+00:00",
    "finished_at": "2026-11-22T11:00:00+00:00",
}
MAINTENANCE = {**PLAN, "request": {"dry_run": False, "retention_days": 30}, "found": {}}
del MAINTENANCE["counts"], MAINTENANCE["remaining"], MAINTENANCE["work"]


class TestUpToDate:
    @pytest.mark.parametrize(
        ("documents", "moment"),
        [
            ({"plan": PLAN}, AT),
            ({"plan": {**PLAN, "work": True}, "publish": PUBLISHED}, AT + timedelta(hours=1)),
            ({"plan": {**PLAN, "work": True}}, None),
            ({"plan": {**PLAN, "work": True}, "publish": {"state": "running"}}, None),
            ({"plan": {**PLAN, "work": True}, "publish": {**PUBLISHED, "state": "failed"}}, None),
            ({"plan": {**PLAN, "work": True, "remaining": 3}, "publish": PUBLISHED}, None),
            ({"plan": MAINTENANCE}, None),
            ({"plan": {"state": "running"}}, None),
            ({"plan": {**PLAN, "state": "failed"}}, None),
            ({}, None),
            *(
                ({"plan": {**PLAN, "request": {**PLAN["request"], **asked}}}, None)
                for asked in ({"dry_run": True}, {"keys": ["a.jpg"]}, {"mode": "interval"}, {"prefix": "Training/"})
            ),
        ],
    )
    def test_by_a_run_that_looked_at_everything_and_ended_well(
        self, documents: dict[str, Any], moment: datetime | None
    ) -> None:
        assert up_to_date_at(documents, "") == moment

    def test_the_newest_of_many_runs_counts(self, tmp_path: Path) -> None:
        settings = Settings.load(lake=f"file://{tmp_path / 'lake'}", catalog_uri=f"sqlite:///{tmp_path}/c.db")
        assert last_up_to_date(settings) is None
        for hour, run in ((9, "z_old"), (10, "a_new")):
            leave_plan(settings, run, AT.replace(hour=hour))
            time.sleep(0.02)
        left = {
            "failed": {"plan": {"state": "failed", "started_at": PLAN["started_at"]}},
            "maintenance": {"plan": MAINTENANCE},
            "planned_again": {
                "plan": {**PLAN, "work": True, "started_at": PUBLISHED["finished_at"]},
                "publish": PUBLISHED,
            },
        }
        for run, documents in left.items():
            for task, document in documents.items():
                write_json(lake_store(settings, f"runs/{run}"), f"{task}.json", document)
        assert last_up_to_date(settings) == AT


def leave_plan(settings: Settings, run: str, ended: datetime) -> None:
    """The document of a run that found nothing to do."""
    write_json(lake_store(settings, f"runs/{run}"), "plan.json", {**PLAN, "finished_at": ended.isoformat()})
