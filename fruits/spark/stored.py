"""Rows of a table, wherever they are: at hand, in files that tasks read by themselves, or behind Spark's reader.

A job asks all of them alike: apply a function of `fruits/spark/executors.py` to columns of the rows. So a job does not
know where its rows are, and the same function makes the same of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from fruits.lake.branches import is_append
from fruits.lake.files import FilePart
from fruits.lake.parts import file_parts, in_tasks
from fruits.lake.schemas import TableName
from fruits.spark.executors import PARTS_SCHEMA, reading
from fruits.spark.release import BatchFunction
from fruits.spark.session import map_batches, map_table
from fruits.spark.tables import Tables
from fruits.spark.tasks import Merge, Progress

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


class Rows(Protocol):
    """Rows of a table."""

    def only(self, **where: str) -> "Rows":
        """Those of the rows where columns have certain values."""

    def apply(
        self,
        what: str,
        function: BatchFunction,
        columns: Sequence[str],
        schema: pa.Schema,
        merge: Merge | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """What ``function`` makes, with ``schema``, of columns of the rows, in as many tasks as suit them.

        Args:
            what: The work, in the words of the log.
            function: Tasks may share a process: numpy and Arrow leave Python's lock while they work on arrays.
            columns: The columns that the function gets.
            schema: The columns that the function makes.
            merge: See ``Executors.run``.
        """


@dataclass(frozen=True)
class RowsAtHand:
    """Few rows, which the driver has read: no task is started for them."""

    rows: pa.Table

    def only(self, **where: str) -> "RowsAtHand":
        """See ``Rows``."""
        rows = self.rows
        for name, value in where.items():
            rows = rows.filter(pc.equal(rows[name], value))
        return RowsAtHand(rows)

    def apply(
        self,
        what: str,  # noqa: ARG002 -- few rows are done before anybody looks
        function: BatchFunction,
        columns: Sequence[str],
        schema: pa.Schema,
        merge: Merge | None = None,  # noqa: ARG002 -- there is one task
    ) -> Iterator[pa.RecordBatch]:
        """See ``Rows``."""
        yield from map_table(self.rows.select(columns), function, schema).to_batches()


@dataclass(frozen=True)
class StoredRows:
    """Rows in parts of a table's files, which tasks read: Spark would hand each vector through the JVM.

    Attributes:
        tables: The tables.
        parts: The parts of files.
        here: Whether these tasks are the driver's own, so that no executor has to start for them.
        where: The rows are those where each of these columns has its value.
    """

    tables: Tables
    parts: Sequence[FilePart]
    here: bool = False
    where: Mapping[str, str] = field(default_factory=dict)

    def only(self, **where: str) -> "StoredRows":
        """See ``Rows``."""
        return replace(self, where={**self.where, **where})

    def apply(
        self,
        what: str,
        function: BatchFunction,
        columns: Sequence[str],
        schema: pa.Schema,
        merge: Merge | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """See ``Rows``; each task has its share of the parts."""
        if not self.parts:
            return
        executors = self.tables.driver if self.here else self.tables.executors
        tasks = [json.dumps([asdict(part) for part in task]) for task in in_tasks(self.parts, executors.cores)]
        work = pa.table({"parts": tasks}, PARTS_SCHEMA)
        read = reading(self.tables.lake.settings, function, columns, self.where)
        progress = Progress(what, sum(part.rows for part in self.parts))
        yield from executors.run(work, read, schema, progress, in_threads=True, merge=merge)


@dataclass(frozen=True)
class SparkRows:
    """Rows that Spark alone can read: a query's, or those of files that name their deleted rows by values."""

    frame: "DataFrame"

    def only(self, **where: str) -> "SparkRows":
        """See ``Rows``."""
        frame = self.frame
        for name, value in where.items():
            frame = frame.where(frame[name] == value)
        return SparkRows(frame)

    def apply(
        self,
        what: str,  # noqa: ARG002 -- Spark plans the tasks
        function: BatchFunction,
        columns: Sequence[str],
        schema: pa.Schema,
        merge: Merge | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """See ``Rows``; the tasks are Spark's partitions, and where their rows are merged, no more than cores."""
        rows = self.frame.select(*columns)
        if merge:
            rows = rows.coalesce(rows.sparkSession.sparkContext.defaultParallelism)
        found = map_batches(rows, function, schema)
        if merge:
            found = merge(found, rows.rdd.getNumPartitions())
        yield from found.toArrow().cast(schema).to_batches()


def rows_at(
    tables: Tables,
    name: TableName,
    snapshot_id: int,
    *,
    since: int | None = None,
    here: bool = False,
    **partition: str,
) -> Rows:
    """The rows of a partition of a table at a snapshot; the driver reads them if ``here``, and executors otherwise.

    With ``since``, files that this snapshot has too may be left out.
    """
    parts = file_parts(tables.lake, name, snapshot_id, since=since, **partition)
    if parts is None:
        if since is not None and is_append(tables.lake.table(name), since, snapshot_id):
            return SparkRows(tables.appended(name, since, snapshot_id)).only(**partition)
        return SparkRows(tables.read(name, snapshot_id)).only(**partition)
    return StoredRows(tables, parts, here)
