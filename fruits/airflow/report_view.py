"""The run report in Airflow's UI: an overview in the navigation, and a tab on each run. Beside it, `POST /identify`.

Airflow (3.3) shows a plugin's view of destination `dag_run` on the runs of every DAG: its UI selects views by their
destination alone. On runs of other DAGs the tab says that only runs of `fruit_features` have a report.

Airflow does not authenticate the apps of plugins. So every route here demands the same as Airflow's own API: a session
(cookie or bearer token) and the permission to read the DAG's runs. The UI shows the pages in frames. The pages have no
script and request nothing.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fruits.airflow.identify_view import PATH as IDENTIFY
from fruits.airflow.identify_view import add_identify, refusal
from fruits.errors import FruitsError
from fruits.run import DAG_ID
from fruits.run.state import run_key
from fruits.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, Response

    from fruits.serve.report import Overview, RunReport

log = logging.getLogger("fruits")

PREFIX = "/fruits"

_ICON = "data:image/svg+xml," + quote(
    # This green is visible on light, on dark and on selected items.
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#3fae6d" stroke-width="1.8" '
    'stroke-linejoin="round"><path d="M12 8c3-3 8-1.5 8 4 0 5-3.5 9-6 9-1 0-1.3-.5-2-.5s-1 .5-2 .5c-2.5 0-6-4-6-9 '
    '0-5.5 5-7 8-4zm0-1c0-3 2-5 5-5 0 3-2 5-5 5z"/></svg>'
)
EXTERNAL_VIEWS = [
    {
        "name": "Fruits",
        "href": f"{PREFIX[1:]}/overview",
        "destination": "nav",
        "nav_top_level": True,
        "url_route": "fruits",
        "icon": _ICON,
    },
    {
        "name": "Fruits report",
        "href": f"{PREFIX[1:]}/dags/{{DAG_ID}}/runs/{{RUN_ID}}",
        "destination": "dag_run",
        "url_route": "fruits-report",
        "icon": _ICON,
    },
]
"""Frames for the pages in Airflow's UI. The addresses are relative to the UI's base URL, which may have a path."""

_SLOTS = BoundedSemaphore(3)  # pages rendered at the same time, so that the API server stays responsive
_WAIT_SECONDS = 5


def fastapi_app() -> dict[str, Any]:
    """The app as an Airflow plugin declares it."""
    return {"app": make_app(), "url_prefix": PREFIX, "name": "Fruits report"}


def make_app() -> "FastAPI":
    """Make the app; every page demands Airflow's authentication and the permission to read the DAG's runs."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import HTMLResponse
    from starlette.exceptions import HTTPException

    from fruits.serve.report import read_overview, read_run

    app = FastAPI(
        title="Fruits report",
        openapi_url=None,  # which also turns off the interactive documentation: no dependency protects its routes
        dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.RUN, DAG_ID))],
    )

    # Not `async`: FastAPI runs a plain function in a thread, and reading takes a while.
    @app.get("/overview", response_class=HTMLResponse)
    def overview() -> HTMLResponse:
        return _report_page(lambda: read_overview(Settings.load()))

    @app.get("/dags/{dag_id}/runs/{run_id}", response_class=HTMLResponse)
    def run(dag_id: str, run_id: str) -> HTMLResponse:
        if dag_id != DAG_ID:
            return _message(HTTPStatus.NOT_FOUND, "No report", f"Only runs of the DAG {DAG_ID} have a report.")
        return _report_page(lambda: read_run(Settings.load(), run_key(run_id)))

    add_identify(app)

    @app.exception_handler(HTTPException)
    def refuse(request: Request, error: HTTPException) -> "Response":
        status = HTTPStatus(error.status_code)
        if request.url.path.endswith(IDENTIFY):
            return refusal(status, status.name.lower(), str(error.detail))
        reason = "Log in to Airflow to see this page." if status == HTTPStatus.UNAUTHORIZED else str(error.detail)
        return _message(status, status.phrase, reason)

    return app


def _report_page(read: "Callable[[], Overview | RunReport]") -> "HTMLResponse":
    """Render the overview or report that ``read`` returns, or a page that says why there is none."""
    from fruits.serve.report import UnknownRunError, render

    if not _SLOTS.acquire(timeout=_WAIT_SECONDS):
        return _message(HTTPStatus.SERVICE_UNAVAILABLE, "Busy", "Other reports are being rendered; reload in a minute.")
    try:
        return _html(HTTPStatus.OK, render(read()))
    except UnknownRunError as error:
        return _message(HTTPStatus.NOT_FOUND, "No report of this run", str(error))
    except FruitsError as error:
        return _message(HTTPStatus.SERVICE_UNAVAILABLE, "The report cannot be read", str(error))
    except Exception:
        log.exception("report")
        reason = "This is a defect; the API server's log has the details."
        return _message(HTTPStatus.INTERNAL_SERVER_ERROR, "Something went wrong", reason)
    finally:
        _SLOTS.release()


def _message(status: HTTPStatus, title: str, message: str) -> "HTMLResponse":
    from fruits.serve.report import render_message

    return _html(status, render_message(title, message))


def _html(status: HTTPStatus, page: str) -> "HTMLResponse":
    from fastapi.responses import HTMLResponse

    from fruits.serve.report import content_security_policy

    headers = {
        "Content-Security-Policy": f"{content_security_policy()}; frame-ancestors 'self'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(page, status, headers)
