"""The engine as a service: a photo by HTTP, the answer as JSON. The command `fruits serve` runs it.

A request's photo is read up to the limit of bytes, in memory, is answered by one engine, and is forgotten. At most so
many photos are in the service at once; further ones are refused at once. Nothing here authenticates: the service
listens on 127.0.0.1, or behind what does (``fruits.airflow.identify_view``).
"""

import asyncio
import base64
import hashlib
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

import fruits
from fruits.errors import FruitsError
from fruits.photos.decode import UnreadablePhotoError
from fruits.photos.quarantine import Reason
from fruits.serve.current import CurrentEngine
from fruits.serve.identify import Engine

_UPLOAD_SECONDS = 60
_FORM_BYTES = 65_536  # a form's own lines around the photo
_FIELD = "photo"
_MOST_NEIGHBOURS = 50

_STATUS = {
    Reason.NOT_AN_IMAGE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Reason.UNSUPPORTED_FORMAT: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Reason.TOO_MANY_BYTES: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Reason.TOO_MANY_PIXELS: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Reason.TOO_COSTLY: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
"""The status of a photo that is refused for a reason; 422 for the other reasons."""


class Label(BaseModel):
    """A label with its probability."""

    label: str
    confidence: float = Field(description="Probability of the label, given that the photo shows one of the labels.")


class NearPhoto(BaseModel):
    """A published photo near the photo."""

    key: str = Field(description="The object key.")
    label: str
    similarity: float = Field(description="Cosine of the whitened embeddings, -1 to 1; 1 is the same direction.")


class Answer(BaseModel):
    """What a photo shows. All of an answer is of one publication."""

    label: str | None = Field(description="The likeliest label; null without a classifier.")
    confidence: float | None = Field(description="Probability of `label`, given that the photo shows a known kind.")
    familiarity: float = Field(
        description="Share of the published photos that lie no nearer to their own nearest photo; below 0.1 the photo "
        "is unknown."
    )
    known: bool = Field(description="Whether the photo is like the published photos; if not, labels mean little.")
    candidates: list[str] = Field(
        description="The labels among which the right one is, for 19 of 20 known photos; empty for an unknown photo."
    )
    labels: list[Label] = Field(description="The likeliest labels, the best first, at most 5.")
    nearest: list[NearPhoto] = Field(description="The nearest published photos, the nearest first.")
    publication_id: str
    model_id: str = Field(description="The backbone.")
    pca_id: str
    classifier_id: str | None = Field(description="Null in a publication without a classifier.")
    lacks: str | None = Field(description="What the answer lacks, and what to do about it; null if nothing.")


class Refusal(BaseModel):
    """Why there is no answer."""

    reason: str = Field(description="A code: `busy`, `not_ready`, `wrong_content_type`, or a code of the quarantine.")
    detail: str = Field(description="A sentence for a person.")


class Readiness(BaseModel):
    """Which publication answers, and what keeps a newer one from it."""

    ready: bool
    publication_id: str | None
    published_at: datetime | None
    loaded_at: datetime | None
    lacks: str | None = Field(description="What the answers lack, and what to do about it.")
    problem: str | None = Field(description="Why the current publication was not loaded; null if all is well.")
    since: datetime | None = Field(description="When the problem was first met.")


class Health(BaseModel):
    """The process answers."""

    status: str = "alive"
    version: str = fruits.__version__


class Refused(Exception):  # noqa: N818 -- not an error of ours
    """A request that gets no answer."""

    def __init__(self, status: HTTPStatus, reason: str, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.response = refusal(status, reason, detail, retry_after=retry_after)


def refusal(status: int, reason: str, detail: str, *, retry_after: float | None = None) -> JSONResponse:
    """The response to a request that gets no answer; ``retry_after`` in seconds."""
    headers = {"Retry-After": str(math.ceil(retry_after))} if retry_after else {}
    return JSONResponse(Refusal(reason=reason, detail=detail).model_dump(), status, {**_HEADERS, **headers})


class Places:
    """Counts the places for photos that are ``free``; used on one event loop."""

    def __init__(self, most: int) -> None:
        self.free = most

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place for a photo, from before its first byte is read until it is answered.

        Raises:
            Refused: if there is none.
        """
        if not self.free:
            detail = "too many photos at once; send this one again in a second"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "busy", detail, retry_after=1)
        self.free -= 1
        try:
            yield
        finally:
            self.free += 1


_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "A form that cannot be read."},
    408: {"model": Refusal, "description": f"The photo did not arrive within {_UPLOAD_SECONDS} seconds."},
    413: {"model": Refusal, "description": "Too many bytes or pixels."},
    415: {"model": Refusal, "description": "No photo of a format that is read."},
    422: {"model": Refusal, "description": "A damaged or empty photo, or a wrong parameter."},
    503: {"model": Refusal, "description": "Nothing is published yet, or too many photos at once; see Retry-After."},
}
_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": [_FIELD], "properties": {_FIELD: _BINARY}}
_REQUEST_BODY = {
    "required": True,
    "description": "A photo as the body, or as the file of a form's field `photo`.",
    "content": {"image/*": {"schema": _BINARY}, "multipart/form-data": {"schema": _FORM}},
}


def make_app(current: CurrentEngine, *, threads: int, waiting: int) -> FastAPI:
    """Make the app.

    Args:
        current: Gives the engine; the app starts and stops it.
        threads: How many photos are computed at once.
        waiting: How many more photos may be in the service: uploading, or waiting for a thread.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="photo")
    places = Places(threads + waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        current.start()
        yield
        current.stop()
        pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Fruits",
        version=fruits.__version__,
        description="What is this photo? Answers from the current publication of a lake of fruit photos.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.places = places
    _handle_errors(app)

    @app.post("/identify", responses=_REFUSALS, openapi_extra={"requestBody": _REQUEST_BODY})
    async def identify(
        request: Request,
        response: Response,
        nearest: Annotated[int, Query(ge=0, le=_MOST_NEIGHBOURS, description="How many neighbours to name.")] = 5,
    ) -> Answer:
        """Tell what a photo shows: labels, the nearest published photos, and whether it is like these at all."""
        response.headers.update(_HEADERS)
        engine = _engine(current)
        with places.one():
            photo = await _photo(request, engine.limits.max_bytes)
            compute = partial(engine.identify, photo, nearest=nearest)
            answer = await asyncio.get_running_loop().run_in_executor(pool, compute)
        return Answer(**answer.to_document(), lacks=engine.lacks)

    @app.get("/health")
    async def health() -> Health:
        """Tell whether the process answers."""
        return Health()

    @app.get("/ready", responses={503: {"model": Readiness, "description": "Nothing answers yet."}})
    async def ready(response: Response) -> Readiness:
        """Tell which publication answers."""
        loaded = current.loaded
        publication = loaded.engine.publication if loaded.engine else None
        if publication is None:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return Readiness(
            ready=publication is not None,
            publication_id=publication.publication_id if publication else None,
            published_at=publication.published_at if publication else None,
            loaded_at=loaded.loaded_at,
            lacks=loaded.engine.lacks if loaded.engine else None,
            problem=loaded.problem,
            since=loaded.since,
        )

    page = (files("fruits.serve") / "service.html").read_text()
    policy = _content_security_policy(page)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def drop_a_photo() -> HTMLResponse:
        return HTMLResponse(page, headers={**_HEADERS, "Content-Security-Policy": policy})

    return app


def _engine(current: CurrentEngine) -> Engine:
    loaded = current.loaded
    if loaded.engine is None:
        raise Refused(
            HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", str(loaded.problem), retry_after=current.refresh_seconds
        )
    return loaded.engine


async def _photo(request: Request, most: int) -> bytes:
    """The photo of a request, in memory; reads no byte beyond ``most`` and those of a form.

    Raises:
        Refused: for another content type, too many bytes, a damaged form, or an upload that takes too long.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "multipart/form-data"
    if not is_form and not kind.startswith("image/"):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "wrong_content_type",
            f"content type {kind or 'missing'!r}: expected image/jpeg or another image/..., with the photo as the "
            f"body, or multipart/form-data with the photo in the field `{_FIELD}`",
        )
    stream = _bounded(request, most + _FORM_BYTES if is_form else most)
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            return await _file_of_form(request, stream) if is_form else b"".join([chunk async for chunk in stream])
    except TimeoutError:
        detail = f"the photo did not arrive within {_UPLOAD_SECONDS} seconds"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "too_slow", detail) from None


async def _bounded(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body, chunk by chunk, until it is too large. The server discards what is not read."""
    too_large = Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        Reason.TOO_MANY_BYTES,
        f"the body has more than the {most:,} bytes expected at most (FRUITS_MAX_PHOTO_BYTES)",
    )
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            raise too_large
        yield chunk


class _InMemory(MultiPartParser):
    spool_max_size = 0  # no limit: a photo is never written to a disk, not even for a moment


async def _file_of_form(request: Request, stream: AsyncGenerator[bytes, None]) -> bytes:
    try:
        form = await _InMemory(request.headers, stream, max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "bad_form", f"the form cannot be read: {error.message}") from None
    photo = form.get(_FIELD)
    if not isinstance(photo, UploadFile):
        detail = f"the form has no file in the field `{_FIELD}`"
        raise Refused(HTTPStatus.BAD_REQUEST, "bad_form", detail)
    return await photo.read()


def _handle_errors(app: FastAPI) -> None:
    """Have every error answered by a ``Refusal``."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error.response

    @app.exception_handler(UnreadablePhotoError)
    async def unreadable(_: Request, error: UnreadablePhotoError) -> Response:
        status = _STATUS.get(error.reason, HTTPStatus.UNPROCESSABLE_ENTITY)
        return refusal(status, error.reason, error.detail)

    @app.exception_handler(FruitsError)
    async def no_lake(_: Request, error: FruitsError) -> Response:
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "lake", str(error), retry_after=10)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first: Mapping[str, Any] = error.errors()[0]
        detail = f"{' '.join(map(str, first['loc']))}: {first['msg']}"
        return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", detail)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        response = refusal(error.status_code, HTTPStatus(error.status_code).name.lower(), str(error.detail))
        response.headers.update(error.headers or {})
        return response

    def answered(*told: Any) -> Callable[[Request, Exception], Response]:
        return lambda _, __: refusal(*told)

    for kind, told in _TOLD.items():
        app.add_exception_handler(kind, answered(*told))


_TOLD: dict[type[Exception], tuple[HTTPStatus, str, str]] = {
    ClientDisconnect: (HTTPStatus.BAD_REQUEST, "gone", "the client went away"),
    MemoryError: (HTTPStatus.SERVICE_UNAVAILABLE, "memory", "no memory for this photo; send a smaller one"),
    Exception: (HTTPStatus.INTERNAL_SERVER_ERROR, "defect", "this is a defect; the service's log has the details"),
}


def _content_security_policy(page: str) -> str:
    """The policy of the page: its own style and script, the picture of the photo, and requests to the service."""

    def digest(element: str) -> str:
        (text,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {digest('style')}; script-src {digest('script')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
