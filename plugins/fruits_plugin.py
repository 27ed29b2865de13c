"""The plugin that Airflow loads. It only registers the sweeps' timetable, two listeners and the app of the UI.

The code is in `fruits/airflow/`, because a module `fruits` in this folder would shadow the library.
"""

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from fruits.airflow import notes, preload
from fruits.airflow.report_view import EXTERNAL_VIEWS, fastapi_app
from fruits.airflow.timetables import SweepTimetable


class FruitsPlugin(AirflowPlugin):
    """Adds the timetable to the scheduler, and the report's pages to the API server and its UI."""

    name = "fruits"
    timetables = [SweepTimetable]  # noqa: RUF012 -- Airflow's type is a list
    listeners = [notes, preload]  # noqa: RUF012 -- Airflow's type is a list
    external_views = EXTERNAL_VIEWS

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The app, made when the API server asks for it: tasks load plugins as well, and FastAPI is slow to import."""
        return [fastapi_app()]
