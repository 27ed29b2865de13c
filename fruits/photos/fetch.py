"""GET one object: its bytes, or why there are none. One object's refusal is told from that of the whole bucket."""

import math
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from fruits.denials import Refusal, refusal, server_words
from fruits.errors import FruitsError
from fruits.photos.decode import UnreadablePhotoError, announced_format
from fruits.photos.quarantine import Pending, Reason
from fruits.settings import Settings
from fruits.stores import can_read_any, errors_explained, photo_store

_REASONS: dict[Refusal, Reason] = {
    "archived": Reason.ARCHIVED,
    "customer_key": Reason.CUSTOMER_KEY,
    "kms_key": Reason.KMS_KEY,
    "denied": Reason.DENIED,
    "incomplete": Reason.INCOMPLETE,
    "refused": Reason.REFUSED,
}
_TRIES = 3
"""Attempts at what obstore does not try again by itself: an answer that ended early, a `RequestTimeout` of 400."""
_PAUSE_SECONDS = 1.0
_COOLING_SECONDS = 30.0
_PLAIN = re.compile(r"|identity|aws-chunked", re.IGNORECASE)

PHOTOS_ASKED, PUBLISHED_ASKED = 32, 8
"""Photos of a run, and photos that were read before: so many may be denied before the whole bucket counts as denied."""


class PendingPhotoError(Exception):
    """A photo that could not be read now."""

    def __init__(self, pending: Pending, detail: str) -> None:
        super().__init__(pending, detail)
        self.pending = pending
        self.detail = detail


@dataclass(frozen=True)
class Fetched:
    """An object's bytes, ETag, size and date. ``data`` is None for an object larger than the limit."""

    data: bytes | None
    etag: str
    size: int
    last_modified: datetime


class Patience:
    """For how long GETs may go unanswered, shared by the threads of a process.

    Each GET is tried again by itself. When no GET at all was answered for ``seconds``, the server is down, and asking
    for every other photo as patiently would take days: ``exhausted`` then, but for one GET every half a minute.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._lock = seconds, clock, threading.Lock()
        self._silent_since: float | None = None  # since when GETs that were not answered have been under way
        self._answered_at = self._failed_at = -math.inf

    def answered(self) -> None:
        """A GET was answered."""
        with self._lock:
            self._silent_since = None
            self._answered_at = self._clock()

    def failed(self, began: float) -> None:
        """A GET that began at a time of the clock was not answered."""
        with self._lock:
            silent_since = max(began, self._answered_at)  # others may have been answered meanwhile
            if self._silent_since is None or silent_since < self._silent_since:
                self._silent_since = silent_since
            self._failed_at = self._clock()

    def now(self) -> float:
        """The clock's time."""
        return self._clock()

    @property
    def exhausted(self) -> bool:
        """Whether to ask no more for now."""
        with self._lock:
            if self._silent_since is None or self._failed_at - self._silent_since < self._seconds:
                return False
            if self._clock() - self._failed_at < _COOLING_SECONDS:
                return True
            self._failed_at = self._clock()  # this caller asks, and the others go on waiting
            return False


class PhotoServer:
    """The bucket of photos as the GETs of one process know it: does it answer, and does it let us read at all?

    Args:
        settings: The settings.
        witnesses: Keys that the role can read unless the whole bucket is denied: photos that were read before, and a
            sample of the run's own. They are asked for when an object is refused before any other was given.
    """

    def __init__(self, settings: Settings, witnesses: Sequence[str] = ()) -> None:
        self.store: ObjectStore = photo_store(settings)
        self.patience = Patience(settings.s3_retry_seconds)
        self._max_bytes = settings.max_photo_bytes
        self._witnesses = witnesses
        self._readable = False
        self._lock = threading.Lock()

    def fetch(self, key: str) -> Fetched:
        """The object's bytes.

        Raises:
            UnreadablePhotoError: when this object is refused and others are not.
            PendingPhotoError: when the object is gone, or the server does not answer.
            FruitsError: when every object is refused: credentials, permissions or bucket are wrong.
        """
        for tries_left in reversed(range(_TRIES)):
            if self.patience.exhausted:
                raise PendingPhotoError(Pending.UNANSWERED, "not asked for: the S3 server has answered no request")
            began = self.patience.now()
            try:
                fetched = self._get(key)
            except ValueError as error:  # a key that obstore takes for no path
                raise UnreadablePhotoError(Reason.REFUSED, f"the S3 client takes no such key: {error}") from error
            except (BaseError, FileNotFoundError) as error:
                problem = refusal(error)
                if problem == "transient":
                    self.patience.failed(began)
                else:
                    self.patience.answered()
                if (
                    tries_left
                    and problem in ("transient", "incomplete")
                    and self.patience.now() - began < _PAUSE_SECONDS
                ):
                    time.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311 -- jitter
                    continue
                raise self._explained(key, error, problem) from error
            self.patience.answered()
            self._readable = True
            return fetched
        raise AssertionError("unreachable: the last try returns or raises")

    def _get(self, key: str) -> Fetched:
        answer = obstore.get(self.store, key)
        meta = answer.meta
        data = None if meta["size"] > self._max_bytes else answer.bytes().to_bytes()
        encoding = str(answer.attributes.get("Content-Encoding", ""))
        if data and not _PLAIN.fullmatch(encoding) and announced_format(data) is None:
            raise UnreadablePhotoError(
                Reason.CONTENT_ENCODING, f"Content-Encoding {encoding!r}: expected the bytes of a photo as they are"
            )
        return Fetched(data, (meta["e_tag"] or "").strip('"'), meta["size"], meta["last_modified"])

    def _explained(self, key: str, error: Exception, problem: Refusal) -> Exception:
        """What a refusal of one object means; raises a ``FruitsError`` when it means every object."""
        words = server_words(error)
        if problem == "vanished":
            return PendingPhotoError(Pending.VANISHED, "the object is not there any more")
        if problem == "transient":
            return PendingPhotoError(Pending.UNANSWERED, words)
        if problem == "caller" or not (problem == "archived" or self._can_read()):
            with errors_explained(self.store, "s3:GetObject", key):
                raise error
        return UnreadablePhotoError(_REASONS[problem], f"the S3 server's answer: {words}")

    def _can_read(self) -> bool:
        with self._lock:  # one thread asks the witnesses, the others wait for what they say
            self._readable = self._readable or can_read_any(self.store, self._witnesses)
            return self._readable


def readable_again(settings: Settings, keys: Sequence[str]) -> frozenset[str]:
    """Which of ``keys``, refused so far, are readable now: a byte of each is asked for.

    A server that does not answer changes nothing.
    """
    store = photo_store(settings)

    def answers(key: str) -> bool:
        try:
            return can_read_any(store, (key,), archived=False)
        except FruitsError:
            return False

    with ThreadPoolExecutor(settings.gets_in_flight, thread_name_prefix="ask") as pool:
        return frozenset(key for key, answer in zip(keys, pool.map(answers, keys), strict=True) if answer)
