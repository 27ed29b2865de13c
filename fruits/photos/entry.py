"""An entry of the manifest: one object, and what a run does with it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fruits.photos.quarantine import Reason


class Action(StrEnum):
    """What a run does with an object. Every object in its scope has exactly one."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"
    QUARANTINED = "quarantined"  # unreadable before, and not changed since


WORK = frozenset({Action.CREATE, Action.UPDATE, Action.DELETE})


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the manifest: an object and what to do with it.

    ``rejection`` is the reason for which the object is quarantined without being read; label and split are then None.
    For a DELETE the object's fields are those that the tables knew.
    """

    key: str
    etag: str
    size: int
    last_modified: datetime
    action: Action
    label: str | None = None
    split: str | None = None
    rejection: Reason | None = None
