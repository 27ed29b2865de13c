"""An entry of the manifest: an object, and the run's action on the object."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fruits.photos.quarantine import Reason


class Action(StrEnum):
    """A run's action on an object. Every object in the run's scope has exactly one action."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"
    QUARANTINED = "quarantined"  # unreadable before, and not changed since


WORK = frozenset({Action.CREATE, Action.UPDATE, Action.DELETE})


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the manifest: an object and the action on it.

    With a ``rejection`` the object is quarantined for that reason and not read; label and split are then None. The
    fields of a DELETE come from the tables.
    """

    key: str
    etag: str
    size: int
    last_modified: datetime
    action: Action
    label: str | None = None
    split: str | None = None
    rejection: Reason | None = None
