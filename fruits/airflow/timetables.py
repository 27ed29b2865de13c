"""When `fruit_features` runs by the clock, and which days the runs of a backfill cover."""

from typing import Any

from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable

_DAYS = CronDataIntervalTimetable("0 0 * * *", timezone="UTC")


class SweepTimetable(CronDataIntervalTimetable):
    """Sweeps every hour; a backfill makes one run for each day (UTC), because object keys carry days.

    Sweeps run at five past the hour, so no sweep has the logical date of a day. Otherwise Airflow would take the sweep
    for the backfill's run and leave that day out.
    """

    def __init__(self) -> None:
        super().__init__("5 * * * *", timezone="UTC")
        self.description = "Every hour at five past; backfills by day"

    @property
    def summary(self) -> str:
        """The schedule as the UI shows it."""
        return "hourly, backfills daily"

    def serialize(self) -> dict[str, Any]:
        """Return no arguments: the timetable has none."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> "SweepTimetable":  # noqa: ARG003 -- Airflow's signature
        """Make the timetable from the result of ``serialize``."""
        return cls()

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next sweep; for a backfill, the next day. Only a backfill catches up, because the DAG itself does not."""
        next_info = _DAYS.next_dagrun_info if restriction.catchup else super().next_dagrun_info
        return next_info(last_automated_data_interval=last_automated_data_interval, restriction=restriction)
