"""Rows that executors read from their files by themselves, where Spark would hand each vector through the JVM."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from fruits.lake.files import FilePart
from fruits.lake.parts import file_parts, in_tasks
from fruits.lake.schemas import TableName
from fruits.spark.executors import PARTS_SCHEMA, reading
from fruits.spark.release import BatchFunction
from fruits.spark.session import map_each
from fruits.spark.tables import Tables

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class StoredRows:
    """Rows of a table in parts of its files: those where each column in ``where`` has its value."""

    tables: Tables
    parts: Sequence[FilePart]
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def about(self) -> int:
        """About how many rows there are."""
        return sum(part.rows for part in self.parts)

    def only(self, **where: str) -> "StoredRows":
        """Those of the rows where columns have certain values."""
        return StoredRows(self.tables, self.parts, {**self.where, **where})

    def map(self, function: BatchFunction, columns: Sequence[str], schema: pa.Schema) -> tuple["DataFrame", int]:
        """What ``function`` makes of columns of the rows, and by how many tasks; each has its share of the parts."""
        tasks = in_tasks(self.parts, self.tables.cores)
        packed = [json.dumps([asdict(part) for part in task]) for task in tasks]
        work = pa.table({"parts": packed}, PARTS_SCHEMA)
        read = reading(self.tables.lake.settings, function, columns, self.where)
        return map_each(self.tables.spark, work, read, schema), len(tasks)


def stored_rows(
    tables: Tables, name: TableName, snapshot_id: int, *, since: int | None = None, partition: Mapping[str, str]
) -> StoredRows | None:
    """The rows of a partition of a table at a snapshot; None where executors can't read them, see ``file_parts``.

    With ``since`` only those of files that this snapshot has not. Without any file there is nothing to read: None.
    """
    parts = file_parts(tables.lake, name, snapshot_id, since=since, **partition)
    return StoredRows(tables, parts) if parts else None
