"""The keys that notifications of S3 named, kept in the lake until a publication has them.

A burst of notifications is one small file, ``events/<namespace>/<time>_<token>.json``, written before the messages are
deleted from their queue. An event is a hint, never the truth: a run looks each key up in the bucket, so that late,
doubled and reordered events do no harm. Sweeps find what was lost.
"""

import json
import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

from obstore.exceptions import BaseError

from fruits.errors import FruitsError
from fruits.settings import Settings
from fruits.stores import lake_store, list_files, read_json, remove_files, write_json

log = logging.getLogger("fruits")

MOST_KEYS = 5_000
"""Keys that a run looks up one by one. Where more are kept, a sweep is the quicker way."""

_MOST_FILES = 500
_MOST_NESTED = 3  # S3 in SNS in EventBridge, at the most
_SILENT = frozenset({"s3:TestEvent"})


@dataclass(frozen=True)
class Named:
    """An object that a notification names: its bucket, its key, and the time of the event where it is given."""

    bucket: str
    key: str
    at: datetime | None = None


@dataclass(frozen=True)
class Burst:
    """What the messages of a burst name.

    Attributes:
        keys: Keys of the photos' bucket that start with the prefix, each once.
        newest: The time of the newest event; None where none has a time.
        unread: Messages in a form that Fruits does not know. They may be about any photo, so the next run sweeps.
    """

    keys: tuple[str, ...] = ()
    newest: datetime | None = None
    unread: int = 0

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.keys or self.unread)

    @classmethod
    def of(cls, bodies: Iterable[str], settings: Settings) -> "Burst":
        """What messages name, by their bodies."""
        named: list[Named] = []
        unread = 0
        for body in bodies:
            objects = objects_in(body)
            unread += objects is None
            named += objects or ()
        ours = [one for one in named if one.bucket == settings.bucket and one.key.startswith(settings.prefix)]
        newest = max((one.at for one in ours if one.at), default=None)
        return cls(tuple(dict.fromkeys(one.key for one in ours)), newest, unread)


@dataclass(frozen=True)
class KeptEvents:
    """The events that are kept.

    Attributes:
        files: Names of their files.
        keys: Their keys, sorted; not all of them when there are more than a run looks up.
        newest: The time of the newest event.
        sweep: Whether a sweep has to look at them: there are too many, or one is in a form that Fruits does not know.
    """

    files: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    newest: datetime | None = None
    sweep: bool = False


def objects_in(body: str) -> list[Named] | None:
    """The objects that a message names; None when the message is in no known form.

    Known are notifications of S3, alone or in an envelope of SNS, and events of EventBridge.
    """
    try:
        return list(_named(json.loads(body), _MOST_NESTED))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _named(message: Any, nested: int) -> Iterator[Named]:
    if nested and isinstance(message.get("Message"), str):  # SNS
        yield from _named(json.loads(message["Message"]), nested - 1)
    elif "detail" in message:  # EventBridge: keys are as they are
        detail = message["detail"]
        yield Named(str(detail["bucket"]["name"]), str(detail["object"]["key"]), _moment(message.get("time")))
    elif message.get("Event") not in _SILENT:
        for record in message["Records"]:
            entity = record["s3"]
            key = unquote_plus(entity["object"]["key"])
            yield Named(str(entity["bucket"]["name"]), key, _moment(record.get("eventTime")))


def _moment(text: Any) -> datetime | None:
    """A time of a message; None where there is none, or one that cannot be read: an event is a hint."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def keep(settings: Settings, burst: Burst) -> str:
    """Write a burst to the lake; returns the file's name.

    Raises:
        FruitsError: when the lake cannot be written to.
    """
    name = f"{datetime.now(UTC):%Y%m%dt%H%M%S%f}_{secrets.token_hex(4)}.json"
    newest = burst.newest.isoformat() if burst.newest else None
    document = {"keys": list(burst.keys), "newest": newest, "unread": burst.unread}
    write_json(lake_store(settings), f"{_folder(settings)}/{name}", document)
    return name


def kept_files(settings: Settings) -> tuple[str, ...]:
    """The names of the files that are kept, oldest first."""
    folder = _folder(settings)  # to open the folder itself would create it
    paths = (item["path"] for item in list_files(lake_store(settings), folder))
    return tuple(sorted(path.rpartition("/")[2] for path in paths))


def kept_events(settings: Settings) -> KeptEvents:
    """All events that are kept. A file that cannot be read makes the next run sweep."""
    files = kept_files(settings)
    if len(files) > _MOST_FILES:
        return KeptEvents(files, sweep=True)
    keys: set[str] = set()
    moments: list[datetime] = []
    sweep = False
    for name in files:
        try:
            document = read_json(lake_store(settings), f"{_folder(settings)}/{name}")
            keys.update(map(str, document["keys"]))
            moments += filter(None, [_moment(document["newest"])])
            sweep = sweep or bool(document["unread"])
        except FileNotFoundError:  # another run has dealt with the file
            continue
        except (KeyError, TypeError, ValueError):
            sweep = True
        if len(keys) > MOST_KEYS:
            sweep = True
            break
    # The prefix may have changed since.
    ours = sorted(key for key in keys if key.startswith(settings.prefix))
    return KeptEvents(files, tuple(ours), max(moments, default=None), sweep)


def forget(settings: Settings, files: Sequence[str]) -> None:
    """Remove files whose keys were dealt with. A file that stays is looked at again, which is harmless."""
    try:
        remove_files(lake_store(settings), *(f"{_folder(settings)}/{name}" for name in files))
    except (BaseError, FruitsError, OSError) as error:
        log.warning("events: %d files can't be removed, so their keys are looked at again: %s", len(files), error)


def _folder(settings: Settings) -> str:
    return f"events/{settings.namespace}"
