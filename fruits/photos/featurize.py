"""From object to feature: GET, decode, preprocess, infer."""

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

import numpy as np

from fruits.backbones.runtime import Backbone
from fruits.photos.decode import Limits, UnreadablePhotoError, decode, needed_side, perceptual_hash, preprocess
from fruits.photos.entry import Entry
from fruits.photos.fetch import Fetched, PendingPhotoError, PhotoServer
from fruits.photos.quarantine import DECODER, DECODER_REASONS, Pending, Reason
from fruits.settings import Settings

STAGES = ("get", "decode", "preprocess", "infer")
"""The phases of a photo, in which its seconds are counted. ``get`` is the time that inference waits for the bytes."""


@dataclass(frozen=True)
class Feature:
    """The feature of a readable photo. ``vector`` has shape ``(d,)``, float32."""

    sha256: str
    phash: int
    width: int
    height: int
    format: str
    vector: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of an entry of the manifest: one of ``feature``, ``reason`` and ``pending`` is set.

    ``etag``, ``size`` and ``last_modified`` belong to the bytes that were read; the plan may have seen older ones.
    ``limit`` is the limit that a reason names, ``decoder`` what judged the bytes, if that decided.
    """

    entry: Entry
    etag: str
    size: int
    last_modified: datetime
    feature: Feature | None = None
    reason: Reason | None = None
    pending: Pending | None = None
    detail: str = ""
    limit: int | None = None
    decoder: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def featurize_entries(
    entries: Iterable[Entry], server: PhotoServer, backbone: Backbone, settings: Settings
) -> Iterator[Outcome]:
    """The outcome of each entry, in order. ``settings.gets_in_flight`` objects are fetched ahead.

    A photo that can't be read is an outcome, not an error.

    Raises:
        FruitsError: when the bucket can't be read at all.
    """
    limits = Limits(settings.max_photo_bytes, settings.max_photo_pixels)
    with ThreadPoolExecutor(settings.gets_in_flight, thread_name_prefix="get") as pool:
        for entry, fetching in _fetch_ahead(entries, server, settings.gets_in_flight, pool):
            yield _outcome(entry, fetching, backbone, limits)


def _fetch_ahead(
    entries: Iterable[Entry], server: PhotoServer, in_flight: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[Entry, Future[Fetched] | None]]:
    """Each entry with the future of its bytes. Up to ``in_flight`` requests run at any time.

    Requests start in bursts, each when half of ``in_flight`` photos wait. Threads that wake between the inferences cost
    them: a photo takes 4 % less than with a request after each.
    """

    def submit(entry: Entry) -> tuple[Entry, Future[Fetched] | None]:
        return entry, None if entry.rejection else pool.submit(server.fetch, entry.key)

    remaining = iter(entries)
    waiting = deque(submit(entry) for entry in islice(remaining, in_flight))
    while waiting:
        next_one = waiting.popleft()
        if len(waiting) <= in_flight // 2:
            waiting.extend(submit(entry) for entry in islice(remaining, in_flight - len(waiting)))
        yield next_one


def _outcome(entry: Entry, fetching: Future[Fetched] | None, backbone: Backbone, limits: Limits) -> Outcome:
    planned = entry.etag, entry.size, entry.last_modified
    if entry.rejection:
        return Outcome(entry, *planned, reason=entry.rejection, detail=entry.rejection.description)
    assert fetching is not None  # noqa: S101 -- entries without rejection are always fetched
    clock = _Clock()
    read = planned
    try:
        fetched = fetching.result()
        clock.lap("get")
        read = fetched.etag, fetched.size, fetched.last_modified
        feature = _featurize(fetched, backbone, limits, clock)
    except UnreadablePhotoError as error:
        return Outcome(
            entry,
            *read,
            reason=error.reason,
            detail=error.detail,
            limit=limits.of(error.reason),
            decoder=DECODER if error.reason in DECODER_REASONS else None,
            seconds=clock.seconds,
        )
    except PendingPhotoError as error:
        return Outcome(entry, *planned, pending=error.pending, detail=error.detail, seconds=clock.seconds)
    except MemoryError:  # the photo is not to blame: beside fewer workers, or in a larger one, it may fit
        return Outcome(entry, *planned, pending=Pending.MEMORY, detail="out of memory", seconds=clock.seconds)
    return Outcome(entry, *read, feature=feature, seconds=clock.seconds)


def _featurize(fetched: Fetched, backbone: Backbone, limits: Limits, clock: "_Clock") -> Feature:
    if fetched.data is None:
        raise UnreadablePhotoError(
            Reason.TOO_MANY_BYTES, f"{fetched.size:,} bytes; at most {limits.max_bytes:,} (FRUITS_MAX_PHOTO_BYTES)"
        )
    preprocessing = backbone.card.preprocessing
    photo = decode(fetched.data, limits, needed_side(preprocessing))
    clock.lap("decode")
    pixels = preprocess(photo.image, preprocessing)
    digest = hashlib.sha256(fetched.data).hexdigest()
    phash = perceptual_hash(photo.image)
    clock.lap("preprocess")
    vector = backbone.features(pixels)
    clock.lap("infer")
    return Feature(digest, phash, photo.width, photo.height, photo.format, vector)


class _Clock:
    """Seconds of one photo by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now
