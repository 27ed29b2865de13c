"""When `fruit_features` runs by the clock, and which days the runs of a backfill cover."""

from typing import Any

from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable

_DAYS = CronDataIntervalTimetable("0 0 * * *", timezone="UTC")


class SweepTimetable(CronDataIntervalTimetable):
    """Sweeps every few hours; a backfill makes one run for each day (UTC), because object keys carry days.

    ``hours`` divides a day (``FRUITS_SWEEP_HOURS``). Sweeps run at five past the hour, so no sweep has the logical date
    of a day. Otherwise Airflow would take the sweep for the backfill's run and leave that day out.
    """

    def __init__(self, hours: int = 1) -> None:
        super().__init__(f"5 {','.join(map(str, range(0, 24, hours)))} * * *", timezone="UTC")
        self.hours = hours
        self.description = f"Every {_hours(hours)} at five past; backfills by day"

    @property
    def summary(self) -> str:
        """The schedule as the UI shows it."""
        return f"every {_hours(self.hours)}, backfills daily"

    def serialize(self) -> dict[str, Any]:
        """The arguments from which the scheduler makes the timetable."""
        return {"hours": self.hours}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> "SweepTimetable":
        """Make the timetable from the result of ``serialize``; that of an earlier release is empty."""
        return cls(**data)

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next sweep; for a backfill, the next day. Only a backfill catches up, because the DAG itself does not."""
        next_info = _DAYS.next_dagrun_info if restriction.catchup else super().next_dagrun_info
        return next_info(last_automated_data_interval=last_automated_data_interval, restriction=restriction)


def _hours(hours: int) -> str:
    return "hour" if hours == 1 else f"{hours} hours"
