"""When the chain runs by itself, and what a backfill's runs cover."""

from typing import Any

from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable

_DAYS = CronDataIntervalTimetable("0 0 * * *", timezone="UTC")


class SweepTimetable(CronDataIntervalTimetable):
    """Sweeps every hour; a backfill makes one run for each day, UTC, which is what keys are dated by.

    Sweeps are at five past the hour, so no sweep has the logical date of a day: Airflow would take the one for the
    other, and leave out days of a backfill.
    """

    def __init__(self) -> None:
        super().__init__("5 * * * *", timezone="UTC")
        self.description = "Every hour at five past; backfills by day"

    @property
    def summary(self) -> str:
        """What the UI shows as schedule."""
        return "hourly, backfills daily"

    def serialize(self) -> dict[str, Any]:
        """Nothing: it has no parameters."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> "SweepTimetable":  # noqa: ARG003 -- Airflow's signature
        """The inverse of ``serialize``."""
        return cls()

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next sweep; the next day where runs are to catch up, which only a backfill's are: see the DAG."""
        asked = {"last_automated_data_interval": last_automated_data_interval, "restriction": restriction}
        return _DAYS.next_dagrun_info(**asked) if restriction.catchup else super().next_dagrun_info(**asked)
