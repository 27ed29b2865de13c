"""Plans in memory, for tests: from objects and rows as Python has them, and with all entries."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from tempfile import gettempdir
from typing import Any

import pyarrow as pa

from fruits.photos.entry import Action, Entry
from fruits.photos.ignore import Names
from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject, batch_of
from fruits.photos.quarantine import Rereading
from fruits.run.joining import IN_MEMORY, KNOWN_SCHEMA, TABLES, Joined, connect
from fruits.run.reconciliation import Ignored, KnownObject, make_plan
from fruits.run.request import RunRequest


@dataclass(frozen=True)
class PlanInMemory:
    """A plan with its entries."""

    entries: tuple[Entry, ...]
    pending: tuple[Entry, ...]
    counts: Mapping[Action, int]
    remaining: int
    unknown_keys: tuple[str, ...]
    ignored: Mapping[str, Names]
    twins: tuple[tuple[str, ...], ...]


@contextmanager
def joined_again() -> Iterator[Joined]:
    """As ``joined()``, on a database that is emptied: to open one takes longer than to plan a few photos."""
    connection = _connection()
    for name in TABLES:
        connection.execute(f"TRUNCATE {name}")
    yield Joined(connection)


@cache
def _connection() -> Any:
    return connect(gettempdir(), IN_MEMORY)


def rows_of(known: Mapping[str, KnownObject]) -> pa.RecordBatch:
    """The rows of the tables as a batch."""
    rows = [{"key": key, **{name: getattr(row, name) for name in KNOWN_SCHEMA.names[1:]}} for key, row in known.items()]
    return pa.RecordBatch.from_pylist(rows, schema=KNOWN_SCHEMA)


def plan_of(
    listed: Iterable[ListedObject],
    known: Mapping[str, KnownObject],
    rules: KeyRules,
    request: RunRequest,
    listed_prefix: str | None = None,
    rereading: Rereading | None = None,
    *,
    same_rules: bool = False,
) -> PlanInMemory:
    """The plan of a run that finds these objects and rows."""
    with joined_again() as pairs:
        ignored = Ignored.by(rules, request)
        pairs.add("known", [rows_of(known)])
        pairs.add("listed", ignored.others([batch_of(list(listed))]))
        plan = make_plan(pairs, ignored, rules, request, listed_prefix, rereading, same_rules=same_rules)
        return PlanInMemory(
            tuple(plan.entries()),
            tuple(plan.pending_entries()),
            plan.counts,
            plan.remaining,
            plan.unknown_keys,
            plan.ignored,
            plan.twins,
        )
