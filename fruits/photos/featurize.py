"""From object to feature: GET, decode, preprocess, infer."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fruits.backbones.card import Preprocessing
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
    vector: NDArray[np.float32]


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
    with ThreadPoolExecutor(settings.gets_in_flight, thread_name_prefix="get") as pool:
        for some in _prepared_ahead(entries, server, backbone.card.preprocessing, settings, pool):
            yield from [one if isinstance(one, Outcome) else _infer(one, backbone) for one in some]


def _prepared_ahead(
    entries: Iterable[Entry],
    server: PhotoServer,
    preprocessing: Preprocessing,
    settings: Settings,
    pool: ThreadPoolExecutor,
) -> Iterator[list["_Prepared | Outcome"]]:
    """The photos that are ready for inference, and the outcomes of the others, half of those in flight at a time.

    So photos are decoded many at a time, and GETs start in bursts. A decode between two inferences costs both of them,
    because each finds the processor's caches full of the other, and threads that wake between them cost as much. At
    most ``settings.gets_in_flight`` photos are under way or in memory, and half as many inputs.
    """
    limits = Limits(settings.max_photo_bytes, settings.max_photo_pixels)
    half = (settings.gets_in_flight + 1) // 2

    def get(entry: Entry) -> tuple[Entry, Future[Fetched] | None]:
        return entry, None if entry.rejection else pool.submit(server.fetch, entry.key)

    remaining = iter(entries)
    waiting = [get(entry) for entry in islice(remaining, settings.gets_in_flight)]
    while waiting:
        prepared = [_prepare(entry, fetching, preprocessing, limits) for entry, fetching in waiting[:half]]
        del waiting[:half]
        waiting += [get(entry) for entry in islice(remaining, half)]
        yield prepared


@dataclass(frozen=True)
class _Prepared:
    """A photo before its inference: what was read, the backbone's input, and the feature that a vector makes."""

    entry: Entry
    read: tuple[str, int, datetime]
    pixels: NDArray[np.uint8]
    feature_of: Callable[[NDArray[np.float32]], Feature]
    seconds: dict[str, float]


def _prepare(
    entry: Entry, fetching: Future[Fetched] | None, preprocessing: Preprocessing, limits: Limits
) -> _Prepared | Outcome:
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
        pixels, feature_of = _input_of(fetched, preprocessing, limits, clock)
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
    except MemoryError:
        return _out_of_memory(entry, clock.seconds)
    return _Prepared(entry, read, pixels, feature_of, clock.seconds)


def _infer(photo: _Prepared, backbone: Backbone) -> Outcome:
    clock = _Clock(photo.seconds)
    try:
        vector = backbone.features(photo.pixels)
    except MemoryError:
        return _out_of_memory(photo.entry, photo.seconds)
    clock.lap("infer")
    return Outcome(photo.entry, *photo.read, feature=photo.feature_of(vector), seconds=photo.seconds)


def _out_of_memory(entry: Entry, seconds: dict[str, float]) -> Outcome:
    """The photo is not to blame: beside fewer workers, or in a larger one, it may fit."""
    planned = entry.etag, entry.size, entry.last_modified
    return Outcome(entry, *planned, pending=Pending.MEMORY, detail="out of memory", seconds=seconds)


def _input_of(
    fetched: Fetched, preprocessing: Preprocessing, limits: Limits, clock: "_Clock"
) -> tuple[NDArray[np.uint8], Callable[[NDArray[np.float32]], Feature]]:
    """The backbone's input of a photo, and the feature that a vector makes."""
    if fetched.data is None:
        raise UnreadablePhotoError(
            Reason.TOO_MANY_BYTES, f"{fetched.size:,} bytes; at most {limits.max_bytes:,} (FRUITS_MAX_PHOTO_BYTES)"
        )
    photo = decode(fetched.data, limits, needed_side(preprocessing))
    clock.lap("decode")
    pixels = preprocess(photo.image, preprocessing)
    digest = hashlib.sha256(fetched.data).hexdigest()
    phash = perceptual_hash(photo.image)
    clock.lap("preprocess")
    return pixels, partial(Feature, digest, phash, photo.width, photo.height, photo.format)


class _Clock:
    """Seconds of one photo by phase."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = {} if seconds is None else seconds
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now
