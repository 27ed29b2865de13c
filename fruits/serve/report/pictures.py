"""Pictures of quarantined objects: small, made anew from their pixels, and never at the cost of the page."""

import io
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from fruits.photos.decode import Limits, UnreadablePhotoError, decode
from fruits.serve.report.content import Picture, QuarantinedObject
from fruits.settings import Settings
from fruits.stores import photo_store

SIDE = 160
"""Most pixels of a picture's longer side."""

_LIMITS = Limits(max_bytes=16_000_000, max_pixels=24_000_000)  # tighter than a job's: a web server decodes these
_OPENING = 48  # bytes shown of what is no picture
_SECONDS = 10.0
_GETS_IN_FLIGHT = 8


def add_pictures(examples: Sequence[QuarantinedObject], settings: Settings) -> tuple[QuarantinedObject, ...]:
    """The examples with a picture each; a note replaces a picture that the bucket does not send in ten seconds."""
    if not examples:
        return ()
    store = photo_store(settings)
    pool = ThreadPoolExecutor(_GETS_IN_FLIGHT)
    fetching = [pool.submit(_fetch, store, example) for example in examples]
    wait(fetching, _SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    return tuple(replace(example, picture=_picture(future)) for example, future in zip(examples, fetching, strict=True))


def picture_of(data: bytes) -> Picture:
    """``data`` as a picture, or a note with its first bytes."""
    if not data:
        return Picture(None, "no bytes")
    try:
        photo = decode(data, _LIMITS, SIDE)
    except UnreadablePhotoError:
        return Picture(None, f"begins with {data[:_OPENING]!r}")
    thumbnail = io.BytesIO()
    photo.image.thumbnail((SIDE, SIDE))
    photo.image.info.clear()  # comments and the like would be saved with it
    photo.image.save(thumbnail, "JPEG", quality=80)
    return Picture(thumbnail.getvalue(), f"{photo.format}, {photo.width:,} x {photo.height:,} pixels")


def _picture(fetching: "Future[bytes | str]") -> Picture:
    if not fetching.done() or fetching.cancelled():
        return Picture(None, f"the bucket did not answer within {_SECONDS:.0f} s")
    found = fetching.result()
    return Picture(None, found) if isinstance(found, str) else picture_of(found)


def _fetch(store: ObjectStore, example: QuarantinedObject) -> bytes | str:
    """The bytes of a quarantined object (of a large one only the first few), or why there are none."""
    options: Any = {"if_match": f'"{example.etag}"'}
    if example.size > _LIMITS.max_bytes:
        options["range"] = (0, _OPENING)
    try:
        return obstore.get(store, example.key, options=options).bytes().to_bytes() if example.size else b""
    except FileNotFoundError:
        return "no longer in the bucket"
    except (BaseError, ValueError) as error:  # the latter for a key that obstore takes for a wrong path
        changed = "PreconditionError" in type(error).__name__
        return "overwritten in the bucket since" if changed else "the bucket does not give its bytes"
