"""What Airflow loads of ours: the sweeps' timetable, and the run report in the UI. It registers, and nothing else.

A module `fruits` in this folder would shadow the library, so all of it is in `fruits/airflow/`.
"""

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from fruits.airflow.report_view import EXTERNAL_VIEWS, fastapi_app
from fruits.airflow.timetables import SweepTimetable


class FruitsPlugin(AirflowPlugin):
    """Adds the timetable to the scheduler, and the report's pages to the API server and its UI."""

    name = "fruits"
    timetables = (SweepTimetable,)
    external_views = EXTERNAL_VIEWS

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The app, made when the API server asks for it: tasks load plugins as well, and FastAPI is large."""
        return [fastapi_app()]
