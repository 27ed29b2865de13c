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
import obstore
from obstore.store import ObjectStore

from fruits.backbones.runtime import Backbone
from fruits.photos.decode import Limits, UnreadablePhotoError, decode, needed_side, perceptual_hash, preprocess
from fruits.photos.entry import Entry
from fruits.photos.quarantine import Reason
from fruits.settings import Settings
from fruits.stores import errors_explained

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
    """The outcome of an entry of the manifest: either ``feature`` or ``reason`` is set.

    ``etag``, ``size`` and ``last_modified`` belong to the bytes that were read; the plan may have seen older ones.
    """

    entry: Entry
    etag: str
    size: int
    last_modified: datetime
    feature: Feature | None = None
    reason: Reason | None = None
    detail: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fetched:
    """An object's bytes, ETag, size and date. ``data`` is None for an object larger than the limit."""

    data: bytes | None
    etag: str
    size: int
    last_modified: datetime


def featurize_entries(
    entries: Iterable[Entry], store: ObjectStore, backbone: Backbone, settings: Settings
) -> Iterator[Outcome]:
    """The outcome of each entry, in order. ``settings.gets_in_flight`` objects are fetched ahead of the inference.

    A photo that can't be decoded is an outcome, not an error.

    Raises:
        FruitsError: when the bucket can't be read at all.
    """
    limits = Limits(settings.max_photo_bytes, settings.max_photo_pixels)
    with ThreadPoolExecutor(settings.gets_in_flight, thread_name_prefix="get") as pool:
        for entry, fetched in _fetch_ahead(entries, store, settings, pool):
            yield _outcome(entry, fetched, backbone, limits)


def _fetch_ahead(
    entries: Iterable[Entry], store: ObjectStore, settings: Settings, pool: ThreadPoolExecutor
) -> Iterator[tuple[Entry, Future[Fetched | None] | None]]:
    """Each entry with the future of its bytes. Up to ``settings.gets_in_flight`` requests run at any time."""

    def submit(entry: Entry) -> tuple[Entry, Future[Fetched | None] | None]:
        return entry, None if entry.rejection else pool.submit(_fetch, entry.key, store, settings)

    remaining = iter(entries)
    window = deque(submit(entry) for entry in islice(remaining, settings.gets_in_flight))
    while window:
        yield window.popleft()
        window.extend(submit(entry) for entry in islice(remaining, 1))


def _fetch(key: str, store: ObjectStore, settings: Settings) -> Fetched | None:
    """The object's bytes; None when the object is gone."""
    try:
        with errors_explained(store, "s3:GetObject", key):
            answer = obstore.get(store, key)
            meta = answer.meta
            too_large = meta["size"] > settings.max_photo_bytes
            data = None if too_large else answer.bytes().to_bytes()
    except FileNotFoundError:
        return None
    return Fetched(data, (meta["e_tag"] or "").strip('"'), meta["size"], meta["last_modified"])


def _outcome(entry: Entry, fetching: Future[Fetched | None] | None, backbone: Backbone, limits: Limits) -> Outcome:
    if entry.rejection:
        return _quarantined(entry, entry.rejection, entry.rejection.description)
    assert fetching is not None  # noqa: S101 -- entries without rejection are always fetched
    clock = _Clock()
    fetched = fetching.result()
    clock.lap("get")
    if fetched is None:
        return _quarantined(entry, Reason.GONE, Reason.GONE.description)
    read = fetched.etag, fetched.size, fetched.last_modified
    try:
        feature = _featurize(fetched, backbone, limits, clock)
    except UnreadablePhotoError as error:
        return Outcome(entry, *read, reason=error.reason, detail=error.detail, seconds=clock.seconds)
    return Outcome(entry, *read, feature=feature, seconds=clock.seconds)


def _quarantined(entry: Entry, reason: Reason, detail: str) -> Outcome:
    return Outcome(entry, entry.etag, entry.size, entry.last_modified, reason=reason, detail=detail)


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
