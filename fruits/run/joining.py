"""Objects of the bucket and rows of the tables, joined by key in a database of their own: memory does not grow.

DuckDB keeps listing, rows and entries in a temporary file, whatever their order. The join goes part by part. A part
holds the keys of some hashes, and a sort takes one range of rows after the other: so memory is bounded, whatever the
number of keys and their length.
"""
# ruff: noqa: S608 -- the names of tables and columns are ours; values are parameters

import fcntl
import os
import shutil
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fruits.errors import FruitsError
from fruits.lake.files import in_groups
from fruits.photos.pages import LISTED_SCHEMA, VERSIONS_SCHEMA
from fruits.run.manifest import MANIFEST_SCHEMA

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MEMORY = "32MB"  # of DuckDB's buffers; its other memory and the batches in flight are about 60 MB more
IN_MEMORY = ":memory:"
_FOLDER = "fruits-plan-"
_BATCH_ROWS = 8_192
_INSERTED_BYTES = 2_000_000  # by one statement
_SAMPLED = 100  # keys for each that is to be chosen
_FEW_PARTS = 8
_MOST_SAMPLED = 20_000  # of up to 1,024 bytes each
# DuckDB's sorts and joins fail within its memory when their rows take more than about twice these bytes.
_PART_BYTES = 20_000_000  # of listing and tables together
_SORTED_BYTES = 12_000_000  # at once
_FEW_ROWS = 1_000  # fit into a part, and into a sort, with keys of 1,024 bytes

KNOWN_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("key", "etag")),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
        *(pa.field(name, pa.string()) for name in ("label", "split", "reason")),
        pa.field("limit", pa.int64()),
        pa.field("decoder", pa.string()),
    ]
)
"""A row of the tables under a backbone: of `features` without a reason, of `quarantine` with one."""

ENTRY_SCHEMA = MANIFEST_SCHEMA.append(pa.field("retry", pa.bool_()))
"""An entry, and whether it is a retry of a quarantined object."""

TABLES: Mapping[str, pa.Schema] = {
    "listed": LISTED_SCHEMA,
    "known": KNOWN_SCHEMA,
    "readers": KNOWN_SCHEMA,
    "entries": ENTRY_SCHEMA,
    "differences": pa.schema(
        [
            *(LISTED_SCHEMA.field(name) for name in ("key", "etag", "last_modified")),
            *(pa.field(name, pa.bool_()) for name in ("lacking", "newer")),
        ]
    ),
    "corrected": pa.schema([*LISTED_SCHEMA, pa.field("gone", pa.bool_())]),
    "versions": VERSIONS_SCHEMA,
    "lost": pa.schema([(name, pa.string()) for name in ("key", "etag", "label")]),
}
_TYPES = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.bool_(): "BOOLEAN"}


@dataclass(frozen=True)
class Condition:
    """A condition of SQL, and the values of its question marks."""

    text: str = "true"
    values: tuple[Any, ...] = ()

    def and_(self, text: str, *values: Any) -> "Condition":
        """This and another one."""
        return Condition(f"{self.text} AND {text}", (*self.values, *values))

    def __and__(self, other: "Condition") -> "Condition":
        """Both."""
        return self.and_(other.text, *other.values)


def starts_with(prefix: str) -> Condition:
    """Keys that start with ``prefix``."""
    return Condition("starts_with(key, ?)", (prefix,))


def of_labels(labels: Iterable[str] | None) -> Condition:
    """Rows of these labels; of any label when None."""
    return Condition() if labels is None else Condition("label IN (SELECT unnest(?::VARCHAR[]))", (list(labels),))


@dataclass(frozen=True, eq=False)
class Joined:
    """Listing and rows side by side. Use within ``joined()``.

    Attributes:
        connection: The database.
        rows: Rows by table.
    """

    connection: "DuckDBPyConnection"
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))

    def add(self, name: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Add rows to a table; columns that the batches lack are null."""
        with self.connection.cursor() as cursor:
            for rows in _merged(_stored(batch, TABLES[name]) for batch in batches):
                cursor.register("batch", rows)
                cursor.execute(f"INSERT INTO {name} SELECT * FROM batch")
                cursor.unregister("batch")
                self.rows[name] += rows.num_rows

    def clear(self, name: str) -> None:
        """Remove all rows of a table."""
        if not self.rows[name]:
            return
        self.connection.execute(f"DELETE FROM {name}")
        self.rows[name] = 0

    def correct(self, keys: Sequence[str], batches: Iterable[pa.RecordBatch]) -> None:
        """Take the objects of ``batches`` in the place of the listed objects of ``keys``; those of others are gone."""
        found: set[str] = set()

        def noted() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                found.update(batch["key"].to_pylist())
                yield batch

        self.add("corrected", noted())
        gone = [key for key in keys if key not in found]
        self.add("corrected", [pa.record_batch({"key": pa.array(gone, pa.string()), "gone": [True] * len(gone)})])
        self.rows["listed"] = self.count("listed")

    def latest(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Of versions of objects the latest ones that are no delete markers, with ``LISTED_SCHEMA``."""
        self.add("versions", batches)
        columns = ", ".join(LISTED_SCHEMA.names)
        for places, of_part in self._parts("", "versions"):
            newest = "row_number() OVER (PARTITION BY key ORDER BY sequence DESC) = 1"
            sql = f"SELECT {columns} FROM {places['versions']} WHERE true{of_part} QUALIFY {newest} AND NOT gone"
            for batch in self._batches(sql, ()):
                yield batch.cast(LISTED_SCHEMA)
        self.clear("versions")

    def compare(self, prefix: str, date: datetime) -> None:
        """Fill ``differences`` with the pairs of keys that start with ``prefix`` whose ETags differ.

        ``lacking`` is a row without an object. ``newer`` is a row after ``date`` without an object, or with an older
        one. S3 tells the time of an object to the second.
        """
        self.clear("differences")
        older = "listed.last_modified // 1000000 < known.last_modified // 1000000"
        for places, of_part in self._parts(prefix, "listed", "known"):
            self.connection.execute(
                "INSERT INTO differences SELECT key, known.etag, known.last_modified, listed.key IS NULL, "
                f"coalesce(known.last_modified > ? AND (listed.key IS NULL OR {older}), false) "
                f"FROM (SELECT * FROM {places['listed']} WHERE starts_with(key, ?){of_part}) AS listed "
                f"FULL JOIN (SELECT * FROM {places['known']} WHERE starts_with(key, ?){of_part}) AS known USING (key) "
                "WHERE listed.etag IS DISTINCT FROM known.etag",
                (_microseconds(date), prefix, prefix),
            )
        self.rows["differences"] = self.count("differences")

    def keep_newer(self, keys: Sequence[str]) -> None:
        """Take for each difference that is ``newer``, but for ``keys``, the row's object in the place of the listed."""
        self.connection.execute(
            "INSERT INTO corrected SELECT key, etag, 0, last_modified, false FROM differences "
            "WHERE newer AND key NOT IN (SELECT unnest(?::VARCHAR[]))",
            [list(keys)],
        )
        self.rows["corrected"] = self.count("corrected")
        self.rows["listed"] = self.count("listed")

    def lacking(self) -> Iterator[str]:
        """The keys of the rows that lack an object and are not ``newer``."""
        for batch in self._batches("SELECT key FROM differences WHERE lacking AND NOT newer", ()):
            yield from batch["key"].to_pylist()

    def differing(self, most: int) -> Iterator[str]:
        """The keys of objects that differ from their row, or have none; at most so many."""
        sql = f"SELECT key FROM differences WHERE NOT lacking AND NOT newer LIMIT {most}"
        for batch in self._batches(sql, ()):
            yield from batch["key"].to_pylist()

    def pairs(self, prefix: str, *, changed: bool) -> Iterator[pa.RecordBatch]:
        """The pairs of an object and the row of its key, of all keys that start with ``prefix``; either may be missing.

        The columns of a row are named ``known_...``. With ``changed``, pairs of a feature and the object that it was
        made from are left out.
        """
        objects = ", ".join(f"listed.{name} AS {name}" for name in LISTED_SCHEMA.names)
        rows = ", ".join(f'known."{name}" AS known_{name}' for name in KNOWN_SCHEMA.names)
        unchanged = "listed.etag IS NOT DISTINCT FROM known.etag AND known.reason IS NULL"
        for places, of_part in self._parts(prefix, "listed", "known"):
            listed = self._objects(places["listed"], of_part)
            yield from self._batches(
                f"SELECT {objects}, {rows} FROM (SELECT * FROM {listed} WHERE starts_with(key, ?){of_part}) AS listed "
                f"FULL JOIN (SELECT * FROM {places['known']} WHERE starts_with(key, ?){of_part}) AS known USING (key) "
                + (f"WHERE NOT ({unchanged})" if changed else ""),
                (prefix, prefix),
            )

    def drop_repeated(self) -> Counter[str]:
        """Leave one entry of each key; returns how many others there were, by action.

        A key has several entries where the tables have several rows of the key, which no run of ours leaves there.
        """
        dropped: Counter[str] = Counter()
        of_rows = Condition("action <> 'create'")  # a created object has no row
        parts = 1 + self._bytes("entries", of_rows) // _PART_BYTES
        for part in range(parts):
            changed = f"FROM entries WHERE {of_rows.text} AND hash(key) % {parts} = {part}"
            found = self.connection.execute(f"SELECT key {changed} GROUP BY key HAVING count(*) > 1").fetchall()
            if found:
                keys = [[key for (key,) in found]]
                others = (
                    f"FROM entries WHERE key IN (SELECT unnest(?::VARCHAR[])) AND rowid NOT IN "
                    f"(SELECT min(rowid) {changed} GROUP BY key)"
                )
                dropped.update(
                    dict(self.connection.execute(f"SELECT action, count(*) {others} GROUP BY action", keys).fetchall())
                )
                self.connection.execute(f"DELETE {others}", keys)
        self.rows["entries"] -= dropped.total()
        return dropped

    def count(self, name: str, condition: Condition = Condition()) -> int:
        """How many rows of a table meet a condition."""
        sql = f"SELECT count(*) FROM {self._table(name)} WHERE {condition.text}"
        (number,) = self.connection.execute(sql, condition.values).fetchall()[0]
        return int(number)

    def by(self, column: str, name: str, condition: Condition = Condition()) -> dict[Any, int]:
        """How many rows of a table meet a condition, by the value of a column."""
        sql = f"SELECT {column}, count(*) FROM {name} WHERE {condition.text} GROUP BY ALL"
        return dict(self.connection.execute(sql, condition.values).fetchall())

    def by_label(self, name: str, condition: Condition = Condition()) -> dict[str | None, int]:
        """Rows of ``known`` or ``readers`` by label; quarantined objects have the label None."""
        return self.by("CASE WHEN reason IS NULL THEN label END", name, condition)

    def present(self, name: str, keys: Sequence[str]) -> set[str]:
        """Which of ``keys`` a table has."""
        if not keys:
            return set()
        found = self.connection.execute(
            f"SELECT key FROM {self._table(name)} WHERE key IN (SELECT unnest(?::VARCHAR[]))", (list(keys),)
        )
        return {key for (key,) in found.fetchall()}

    def sample(self, name: str, most: int, condition: Condition = Condition()) -> list[str]:
        """At most so many keys of a table, chosen at random among those that meet a condition."""
        chosen = f"SELECT key FROM (SELECT key FROM {name} WHERE {condition.text}) USING SAMPLE reservoir({most} ROWS)"
        return [key for (key,) in self.connection.execute(chosen, condition.values).fetchall()]

    def spread(self, name: str, prefix: str, number: int) -> list[str]:
        """So many keys that start with ``prefix``, at about even distances among those of a table, in order."""
        keys = sorted(self.sample(name, _SAMPLED * number, starts_with(prefix)))
        step = max(1, -(-len(keys) // (number + 1)))
        return keys[step::step]

    def sample_refused(self, prefix: str, reasons: Sequence[str], most: int) -> list[str]:
        """At most so many keys of objects that are quarantined for one of ``reasons``, chosen at random."""
        refused = starts_with(prefix).and_("reason IN (SELECT unnest(?::VARCHAR[]))", list(reasons))
        return self.sample("known", most, refused)

    def place(self, condition: Condition, order: str, place: int) -> tuple[Any, ...]:
        """The columns ``order`` of the entry at a place in that order, counted from 0."""
        for within in self._ranges("entries", condition, order):
            number = self.count("entries", within)
            if place < number:
                sql = f"SELECT {order} FROM entries WHERE {within.text} ORDER BY {order} LIMIT 1 OFFSET {place}"
                (found,) = self.connection.execute(sql, within.values).fetchall()
                return tuple(found)
            place -= number
        raise IndexError(place)

    def entries(self, condition: Condition, order: str, most: int | None = None) -> Iterator[pa.RecordBatch]:
        """The entries that meet a condition, with ``MANIFEST_SCHEMA``."""
        for batch in self._sorted(", ".join(MANIFEST_SCHEMA.names), "entries", condition, order, most):
            yield batch.cast(MANIFEST_SCHEMA)

    def find_lost(self, prefix: str) -> None:
        """Fill ``lost`` with the rows of ``readers`` that start with ``prefix`` and whose object is not listed."""
        for places, of_part in self._parts(prefix, "listed", "readers"):
            listed = self._objects(places["listed"], of_part)
            self.connection.execute(
                "INSERT INTO lost SELECT key, etag, CASE WHEN reason IS NULL THEN label END FROM "
                f"(SELECT * FROM {places['readers']} WHERE starts_with(key, ?){of_part}) AS readers "
                f"ANTI JOIN (SELECT key FROM {listed} WHERE true{of_part}) AS listed USING (key)",
                (prefix,),
            )
        self.rows["lost"] = self.count("lost")

    def leaving(self, name: str, condition: Condition = Condition()) -> Iterator[tuple[str, str, str | None]]:
        """Key, ETag and label of the rows of ``entries`` or ``lost`` that meet a condition, in the order of keys."""
        for batch in self._sorted("key, etag, label", name, condition, "key"):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _table(self, name: str) -> str:
        """What to select from for the rows of a table."""
        return self._objects(name) if name == "listed" else name

    def _objects(self, listed: str, of_part: str = "") -> str:
        """What to select from: the objects of ``listed``, or of ``corrected`` where that has their key."""
        if not self.rows["corrected"]:
            return listed
        corrected = f"SELECT key FROM corrected WHERE true{of_part}"
        return (
            f"(SELECT * FROM {listed} ANTI JOIN ({corrected}) AS corrected USING (key) "
            f"UNION ALL SELECT {', '.join(LISTED_SCHEMA.names)} FROM corrected WHERE gone IS NOT TRUE{of_part})"
        )

    def _parts(self, prefix: str, *names: str) -> Iterator[tuple[Mapping[str, str], str]]:
        """For each part of the keys that start with ``prefix``, bounded in bytes: where to read, and a condition.

        With many parts, groups of them are copied in turn: to read each part costs a pass over the rows of its place.
        """
        parts = 1 + sum(self._bytes(name, starts_with(prefix)) for name in names) // _PART_BYTES
        groups = isqrt(parts) if parts > _FEW_PARTS else 1
        places = {name: name if groups == 1 else f"{name}_of_group" for name in names}
        for group in range(groups):
            of_group = f" AND hash(key) % {groups} = {group}" if groups > 1 else ""
            for name, place in places.items():
                if place != name:
                    self.connection.execute(f"CREATE OR REPLACE TABLE {place} AS FROM {name} WHERE true{of_group}")
            in_group = -(-parts // groups)
            for part in range(in_group):
                yield places, of_group + (f" AND hash(key) // {groups} % {in_group} = {part}" if in_group > 1 else "")
        for name, place in places.items():
            if place != name:
                self.connection.execute(f"DROP TABLE {place}")

    def _bytes(self, name: str, condition: Condition) -> int:
        """About how many bytes the rows of a table take that meet a condition; 0 where they are few at most."""
        if self.rows[name] <= _FEW_ROWS:
            return 0
        sql = f"SELECT coalesce(sum({_width(name)}), 0) FROM {name} WHERE {condition.text}"
        (number,) = self.connection.execute(sql, condition.values).fetchall()[0]
        return int(number)

    def _sorted(
        self, columns: str, name: str, condition: Condition, order: str, most: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Rows of a table that meet a condition, in the order of some columns; at most so many."""
        left = most
        for within in self._ranges(name, condition, order):
            limit = "" if left is None else f" LIMIT {left}"
            sql = f"SELECT {columns} FROM {name} WHERE {within.text} ORDER BY {order}{limit}"
            for batch in self._batches(sql, within.values):
                left = None if left is None else left - batch.num_rows
                yield batch
            if left == 0:
                return

    def _ranges(self, name: str, condition: Condition, order: str) -> Iterator[Condition]:
        """The condition for one range of ``order`` after the other: a sort takes memory for the rows that it sorts."""
        parts = 1 + self._bytes(name, condition) // _SORTED_BYTES
        if parts == 1:
            yield condition
            return
        marks = f"({', '.join('?' * len(order.split(',')))})"
        rows = f"SELECT {order}, {_width(name)} FROM {name} WHERE {condition.text}"
        chosen = f"SELECT * FROM ({rows}) USING SAMPLE reservoir({min(_SAMPLED * parts, _MOST_SAMPLED)} ROWS)"
        sample = sorted(self.connection.execute(chosen, condition.values).fetchall())
        until = list(accumulate(width for *_, width in sample))
        bounds = [sample[bisect_left(until, place * until[-1] // parts)][:-1] for place in range(1, parts)]
        for after, last in pairwise([None, *bounds, None]):
            within = condition if after is None else condition.and_(f"({order}) > {marks}", *after)
            yield within if last is None else within.and_(f"({order}) <= {marks}", *last)

    def _batches(self, sql: str, values: Sequence[Any]) -> Iterator[pa.RecordBatch]:
        """The rows of a query. A cursor of its own lets others be asked meanwhile."""
        with self.connection.cursor() as cursor:
            try:
                yield from cursor.sql(sql, params=list(values)).to_arrow_reader(_BATCH_ROWS)
            except OSError as error:  # Arrow's, for any error of the database
                raise _explained(error) from error


@contextmanager
def joined() -> Iterator[Joined]:
    """A new database in a temporary folder, which goes when the block ends.

    Raises:
        FruitsError: when the folder of temporary files is missing or full, or the database needs too much memory.
    """
    import duckdb

    with _folder() as folder:
        try:
            with connect(folder) as connection:
                yield Joined(connection)
        except duckdb.OperationalError as error:
            raise _explained(error) from error


@contextmanager
def _folder() -> Iterator[str]:
    """A temporary folder, locked until the block ends, when it goes. Those that killed processes left go first."""
    try:
        root = Path(tempfile.gettempdir())
        for left in root.glob(f"{_FOLDER}*"):
            with suppress(OSError), _locked(left):
                shutil.rmtree(left)
        new = Path(tempfile.mkdtemp(prefix="fruits-new-"))
    except OSError as error:
        raise FruitsError(
            f"plan: {error}; the plan needs a folder for temporary files. Set TMPDIR to one that can be written to"
        ) from error
    folder = new.with_name(new.name.replace("fruits-new-", _FOLDER))
    try:
        with _locked(new):  # before it has the name that others look for
            new.rename(folder)
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system frees when the process ends.

    Raises:
        OSError: when another process holds it, or the folder is not ours.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _explained(error: Exception) -> FruitsError:
    """An error of the database, and what to do."""
    what = str(error).splitlines()[0]
    if "memory_limit" in str(error):
        return FruitsError(
            f"plan: {what}; the join of listing and tables was to fit into {_MEMORY}, so this is a defect of Fruits. "
            "Until it is mended, plan a part of the bucket at a time by the run's param `prefix`"
        )
    return FruitsError(
        f"plan: {what}; the plan of a large bucket keeps about 300 bytes a photo in temporary files. Make room in "
        f"{tempfile.gettempdir()}, or set TMPDIR to a larger disk"
    )


def connect(folder: str, database: str = "plan.db") -> "DuckDBPyConnection":
    """A new database in ``folder``, with empty tables."""
    import duckdb

    connection = duckdb.connect(
        f"{folder}/{database}" if database != IN_MEMORY else IN_MEMORY,
        config={
            "memory_limit": _MEMORY,
            "threads": 1,
            "temp_directory": f"{folder}/spilled",
            "preserve_insertion_order": False,
        },
    )
    for name, schema in TABLES.items():
        columns = ", ".join(f'"{one.name}" {_TYPES.get(one.type, "BIGINT")}' for one in schema)
        connection.execute(f"CREATE TABLE {name} ({columns})")
    return connection


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _width(name: str) -> str:
    """About how many bytes a row of a table takes, in SQL."""
    texts = (one.name for one in TABLES[name] if pa.types.is_string(one.type))
    return " + ".join([str(8 * len(TABLES[name])), *(f'coalesce(strlen("{text}"), 0)' for text in texts)])


def _stored(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """A batch with a schema's columns; moments as microseconds, because those of DuckDB have the zone of the host."""
    columns = []
    for one in schema:
        kind = pa.int64() if pa.types.is_timestamp(one.type) else one.type
        column = batch[one.name] if one.name in batch.schema.names else pa.nulls(batch.num_rows, kind)
        columns.append(column.cast(kind) if kind != one.type else column)
    return pa.table(columns, names=schema.names)


def _merged(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows in tables of some megabytes: each insert costs the same."""
    return map(pa.concat_tables, in_groups(filter(len, tables), lambda table: table.nbytes, _INSERTED_BYTES))
