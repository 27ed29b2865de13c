"""`POST /fruits/identify` in Airflow's API server: a photo goes on to the service, its answer comes back.

The route is part of the report's app, and so demands the same session and permission. The service (`fruits serve`)
itself knows no users. The photo passes through chunk by chunk; the service's limits hold.
"""

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from fruits.errors import FruitsError
from fruits.settings import DagSettings, public_uri

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import Response
    from starlette.requests import Request

log = logging.getLogger("fruits")

PATH = "/identify"
_CONNECT_SECONDS = 3
_SECONDS = 90  # longer than the service gives an upload
_PASSED_ON = ("content-type", "content-length")


def add_identify(app: "FastAPI") -> None:
    """Add the route to an app whose dependencies authenticate."""
    from fastapi.responses import Response
    from starlette.requests import Request

    # `async`, unlike the pages: the route only waits, for the client and for the service.
    @app.post(PATH)
    async def identify(request: Request) -> Response:
        return await forward(request)


async def forward(request: "Request") -> "Response":
    """The service's answer to a request; 503 with a sentence where no service answers."""
    import httpx
    from fastapi.responses import Response
    from starlette.requests import ClientDisconnect

    try:
        url = _service_url()
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        timeout = httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            answer = await client.post(
                f"{url}{PATH}", params=request.query_params, content=request.stream(), headers=headers
            )
    except FruitsError as error:
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "no_service", str(error))
    except ClientDisconnect:
        return refusal(HTTPStatus.BAD_REQUEST, "gone", "the client went away")
    except UnicodeEncodeError:
        return refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content_type", "the content type is not ASCII")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("identify: %r", error)
        return _no_answer(url, str(error) or type(error).__name__)
    if answer.headers.get("content-type") != "application/json":
        return _no_answer(url, f"a page of type {answer.headers.get('content-type')} is no answer of the service")
    kept = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
    return Response(answer.content, answer.status_code, {**_HEADERS, **kept}, "application/json")


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def refusal(status: HTTPStatus, reason: str, detail: str) -> "Response":
    """A refusal in the form of the service's."""
    from fastapi.responses import JSONResponse

    return JSONResponse({"reason": reason, "detail": detail}, status, _HEADERS)


def _no_answer(url: str, problem: str) -> "Response":
    place = f"{public_uri(url)} (FRUITS_SERVICE_URL)"
    detail = f"the service at {place} does not answer: {problem}; start it with `fruits serve`"
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "no_service", detail)


def _service_url() -> str:
    """The service's address.

    Raises:
        FruitsError: when it is not set.
    """
    url = DagSettings.load().service_url
    if url is None:
        raise FruitsError(
            "FRUITS_SERVICE_URL is not set; start the service with `fruits serve`, and set FRUITS_SERVICE_URL to its "
            "address, such as http://127.0.0.1:8100"
        )
    return url.rstrip("/")
