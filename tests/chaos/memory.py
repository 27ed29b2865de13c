"""A catalog of tables in memory: what the library asks of PyIceberg's catalogs and tables, a hundred times as quick.

A commit of PyIceberg to a SQLite file writes metadata, manifests and Parquet files, some 20 ms together. Here a commit
takes microseconds, so a minute has room for many histories. Requirements, refs, lines of snapshots, a second try that
finds the first in effect: as in PyIceberg 0.12. The same histories run on a real catalog too, so a difference shows.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError
from pyiceberg.expressions import (
    AlwaysFalse,
    AlwaysTrue,
    And,
    EqualTo,
    GreaterThanOrEqual,
    In,
    LessThanOrEqual,
    Or,
    StartsWith,
)
from pyiceberg.table.update import RemoveSnapshotRefUpdate, RemoveSnapshotsUpdate, SetSnapshotRefUpdate

from fruits.stores import effect

_TRIES = 3


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of a table, with all its rows."""

    snapshot_id: int
    parent_snapshot_id: int | None
    rows: pa.Table
    files: int = 0
    properties: Mapping[str, str] = field(default_factory=dict)
    timestamp_ms: int = 0
    schema_id: int | None = None

    @property
    def summary(self) -> Mapping[str, Any]:
        """As PyIceberg has it: a property that is not there is None."""
        return defaultdict(lambda: None, self.properties, **{"total-data-files": str(self.files)})


@dataclass(frozen=True)
class Metadata:
    """A table at a moment; a commit replaces it."""

    properties: Mapping[str, str]
    snapshots: Mapping[int, Snapshot]
    heads: Mapping[str, int]

    @property
    def refs(self) -> dict[str, Any]:
        """Branches and tags."""
        return {name: SimpleNamespace(snapshot_id=at) for name, at in self.heads.items()}

    def snapshot_by_id(self, snapshot_id: int) -> Snapshot | None:
        """A snapshot, if it has not expired."""
        return self.snapshots.get(snapshot_id)


class MemoryCatalog:
    """The tables by name."""

    def __init__(self, warehouse: str) -> None:
        self.warehouse = warehouse
        self.tables: dict[str, Metadata] = {}
        self.ids = itertools.count(1)
        self.commits = 0

    def list_tables(self, namespace: str) -> list[tuple[str, str]]:
        """All tables, as identifiers."""
        return [(namespace, name) for name in self.tables]

    def table_exists(self, identifier: tuple[str, str]) -> bool:
        """Whether there is such a table."""
        return identifier[1] in self.tables

    def load_table(self, identifier: tuple[str, str]) -> "MemoryTable":
        """The table as of now."""
        return MemoryTable(self, identifier, self.tables[identifier[1]])

    @contextmanager
    def create_table_transaction(
        self, identifier: tuple[str, str], schema: pa.Schema, properties: Mapping[str, str]
    ) -> Iterator[Any]:
        """Make a table with an empty first snapshot when the block ends."""

        @contextmanager
        def ignored() -> Iterator[Any]:
            yield SimpleNamespace(add_identity=lambda column: None)

        summary: dict[str, str] = {}

        def update_snapshot(snapshot_properties: Mapping[str, str]) -> Any:
            summary.update(snapshot_properties)
            return SimpleNamespace(fast_append=ignored)

        yield SimpleNamespace(update_spec=ignored, update_snapshot=update_snapshot)
        with effect("commit", identifier[1]):
            if identifier[1] in self.tables:
                raise TableAlreadyExistsError(identifier[1])
            self.commits += 1
            first = Snapshot(next(self.ids), None, schema.empty_table(), properties=summary)
            self.tables[identifier[1]] = Metadata(
                dict(properties), {first.snapshot_id: first}, {"main": first.snapshot_id}
            )

    def commit_table(self, table: "MemoryTable", requirements: tuple[Any, ...], updates: tuple[Any, ...]) -> None:
        """Commit updates, if the refs are where the requirements have them."""
        name = table.name()[-1]
        with effect("commit", name):
            now = self.tables[name]
            for requirement in requirements:
                at = now.heads.get(requirement.ref)
                if at != requirement.snapshot_id:
                    raise CommitFailedException(f"Requirement failed: {requirement.ref} is at {at}")
            for update in updates:
                now = updated(now, update)
            self.tables[name] = now
            self.commits += 1


def updated(now: Metadata, update: Any) -> Metadata:
    """A table after an update: of PyIceberg's, a snapshot to add, or properties to set."""
    if isinstance(update, Snapshot):
        return replace(now, snapshots={**now.snapshots, update.snapshot_id: update})
    if isinstance(update, SetSnapshotRefUpdate):
        if update.snapshot_id not in now.snapshots:
            raise ValueError(f"Cannot set {update.ref_name} to unknown snapshot {update.snapshot_id}")
        return replace(now, heads={**now.heads, update.ref_name: update.snapshot_id})
    if isinstance(update, RemoveSnapshotRefUpdate):
        return replace(now, heads={name: at for name, at in now.heads.items() if name != update.ref_name})
    if isinstance(update, RemoveSnapshotsUpdate):
        gone = set(update.snapshot_ids)
        assert not gone & set(now.heads.values()), "a ref needs a snapshot that is to expire"
        return replace(now, snapshots={name: one for name, one in now.snapshots.items() if name not in gone})
    return replace(now, properties={**now.properties, **update})


@dataclass
class MemoryTable:
    """A table as it was when it was loaded."""

    catalog: MemoryCatalog
    identifier: tuple[str, str]
    metadata: Metadata

    @property
    def properties(self) -> Mapping[str, str]:
        """The table's properties."""
        return self.metadata.properties

    def name(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.identifier

    def location(self) -> str:
        """Where the table's files would be."""
        return f"{self.catalog.warehouse}/{'/'.join(self.identifier)}"

    def schema(self) -> Any:
        """The names of the columns."""
        return _columns(next(iter(self.metadata.snapshots.values())).rows.schema)

    def refresh(self) -> "MemoryTable":
        """The table as of now."""
        self.metadata = self.catalog.tables[self.identifier[1]]
        return self

    def refs(self) -> dict[str, Any]:
        """Branches and tags."""
        return self.metadata.refs

    def snapshots(self) -> list[Snapshot]:
        """All snapshots."""
        return list(self.metadata.snapshots.values())

    def snapshot_by_id(self, snapshot_id: int) -> Snapshot | None:
        """A snapshot, if it has not expired."""
        return self.metadata.snapshot_by_id(snapshot_id)

    def snapshot_by_name(self, ref: str) -> Snapshot | None:
        """The snapshot at a ref."""
        at = self.metadata.heads.get(ref)
        return None if at is None else self.metadata.snapshots[at]

    def scan(
        self,
        row_filter: Any = AlwaysTrue(),  # noqa: B008 -- it has no state
        selected_fields: tuple[str, ...] = ("*",),
        snapshot_id: int | None = None,
        limit: int | None = None,
    ) -> "Scan":
        """Rows at a snapshot."""
        at = self.metadata.heads["main"] if snapshot_id is None else snapshot_id
        if at not in self.metadata.snapshots:
            raise ValueError(f"Snapshot not found: {at}")
        return Scan(self.metadata.snapshots[at], row_filter, selected_fields, limit)

    @contextmanager
    def transaction(self) -> Iterator["Transaction"]:
        """Changes that are committed together when the block ends."""
        transaction = Transaction()
        yield transaction
        transaction.commit(self)


@dataclass(frozen=True)
class Scan:
    """Rows of a snapshot."""

    snapshot: Snapshot
    row_filter: Any
    columns: tuple[str, ...]
    limit: int | None

    def to_arrow(self) -> pa.Table:
        """The rows."""
        rows = filtered(self.snapshot.rows, self.row_filter)
        chosen = (
            rows
            if self.columns == ("*",)
            else rows.select([name for name in rows.column_names if name in self.columns])
        )
        return chosen.slice(0, self.limit)

    def filter(self, condition: Any) -> "Scan":
        """The same scan, of fewer rows."""
        return replace(self, row_filter=And(self.row_filter, condition))

    def count(self) -> int:
        """How many rows."""
        return int(self.to_arrow().num_rows)

    def plan_files(self) -> list[Any]:
        """The files: small ones, one for each append since the rows were last rewritten."""
        one = {"partition": "", "file_size_in_bytes": 1, "record_count": 1}
        files = (SimpleNamespace(file_path=f"{number}.parquet", **one) for number in range(self.snapshot.files))
        return [SimpleNamespace(file=file, delete_files=()) for file in files]


class Transaction:
    """Changes of rows, each from the rows before and the number of files before; one snapshot each."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, Mapping[str, str], Callable[[Snapshot], tuple[pa.Table, int]]]] = []
        self.properties: dict[str, str] = {}

    def append(self, rows: pa.Table, branch: str = "main", snapshot_properties: Mapping[str, str] = {}) -> None:
        """Add rows."""
        self.changes.append(
            (
                branch,
                snapshot_properties,
                lambda at: (pa.concat_tables([at.rows, rows.cast(at.rows.schema)]), at.files + bool(rows.num_rows)),
            )
        )

    def overwrite(self, rows: pa.Table, branch: str = "main", snapshot_properties: Mapping[str, str] = {}) -> None:
        """Replace all rows."""
        self.changes.append((branch, snapshot_properties, lambda at: (rows.cast(at.rows.schema), 1)))

    def delete(self, row_filter: Any, branch: str = "main", snapshot_properties: Mapping[str, str] = {}) -> None:
        """Remove rows."""
        self.changes.append(
            (branch, snapshot_properties, lambda at: (filtered(at.rows, row_filter, keep=False), at.files))
        )

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Set properties of the table."""
        self.properties |= properties

    def commit(self, table: MemoryTable) -> None:
        """Commit; after a refusal see whether the changes are in effect, else do them anew, as PyIceberg does."""
        ids = [next(table.catalog.ids) for _ in self.changes]
        for tried in range(_TRIES):
            try:
                table.catalog.commit_table(table, *self.built(table.metadata, ids))
            except CommitFailedException:
                table.refresh()
                if ids and all(one in table.metadata.snapshots for one in ids):
                    return
                if tried + 1 == _TRIES or not ids:
                    raise
            else:
                return

    def built(self, metadata: Metadata, ids: list[int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Requirements and updates on top of a table as it was loaded."""
        heads, updates = dict(metadata.heads), [self.properties] if self.properties else []
        snapshots = dict(metadata.snapshots)
        for snapshot_id, (branch, properties, change) in zip(ids, self.changes, strict=True):
            parent = snapshots[heads[branch]] if branch in heads else None  # a branch that is gone is an empty table
            rows, files = change(parent or Snapshot(0, None, next(iter(snapshots.values())).rows.slice(0, 0)))
            before = parent.snapshot_id if parent else None
            snapshots[snapshot_id] = Snapshot(snapshot_id, before, rows, files, properties)
            heads[branch] = snapshot_id
            updates.append(snapshots[snapshot_id])
        moved = [name for name, at in heads.items() if metadata.heads.get(name) != at]
        updates += [SetSnapshotRefUpdate(ref_name=name, type="branch", snapshot_id=heads[name]) for name in moved]
        return tuple(SimpleNamespace(ref=name, snapshot_id=metadata.heads.get(name)) for name in moved), tuple(updates)


@cache
def _columns(schema: pa.Schema) -> Any:
    return SimpleNamespace(column_names=schema.names, fields=[SimpleNamespace(name=name) for name in schema.names])


def filtered(rows: pa.Table, condition: Any, *, keep: bool = True) -> pa.Table:
    """The rows where one of PyIceberg's conditions holds, or those where it does not."""
    if isinstance(condition, AlwaysTrue):
        return rows if keep else rows.slice(0, 0)
    mask = _mask(rows, condition)
    return rows.filter(mask if keep else pc.invert(mask))


def _mask(rows: pa.Table, condition: Any) -> Any:
    if isinstance(condition, AlwaysTrue):
        return pa.array([True] * rows.num_rows)
    if isinstance(condition, And):
        return pc.and_(_mask(rows, condition.left), _mask(rows, condition.right))
    if isinstance(condition, Or):
        return pc.or_(_mask(rows, condition.left), _mask(rows, condition.right))
    if isinstance(condition, AlwaysFalse):  # In() of nothing
        return pa.array([False] * rows.num_rows)
    column = rows[condition.term.name]
    if isinstance(condition, In):
        return pc.is_in(column, pa.array([one.value for one in condition.literals], column.type))
    return _COMPARED[type(condition)](column, condition.literal.value)


_COMPARED: Mapping[type, Callable[[Any, Any], Any]] = {
    EqualTo: pc.equal,
    GreaterThanOrEqual: pc.greater_equal,
    LessThanOrEqual: pc.less_equal,
    StartsWith: pc.starts_with,
}
