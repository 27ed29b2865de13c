"""The tables of a lake as Spark reads and writes them: at a snapshot, or on the branch of an attempt."""

import heapq
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING

import pyarrow as pa

from fruits.lake.branches import Writer, commit_rows, start_branch, verified_head
from fruits.lake.catalog import Lake
from fruits.lake.schemas import TableName
from fruits.run.manifest import DUE_ETAG
from fruits.spark.tasks import Executors, LocalExecutors, executors_of, local_cores

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, Row, SparkSession

_MOST_LITERALS = 200  # Iceberg does not prune by longer lists
_MOST_LISTS = 50
_MOST_RANGES = 100


@dataclass(frozen=True)
class Tables:
    """The tables of ``lake``; what is written carries the properties of ``writer`` and is on its branch.

    ``start`` starts Spark, at its first use: a job whose rows are few may need no session.
    """

    start: Callable[[], "SparkSession"]
    lake: Lake
    writer: Writer

    @cached_property
    def spark(self) -> "SparkSession":
        """The session."""
        return self.start()

    @property
    def session_properties(self) -> Mapping[str, str]:
        """Spark's configuration that marks every snapshot of the session with its writer."""
        return {
            f"spark.sql.iceberg.snapshot-property.{name}": value
            for name, value in self.writer.snapshot_properties.items()
        }

    @cached_property
    def executors(self) -> Executors:
        """What runs the job's tasks."""
        return executors_of(self.lake.settings, lambda: self.spark)

    @cached_property
    def driver(self) -> Executors:
        """The driver itself, for tasks that should start no executor."""
        return LocalExecutors(self.lake.settings, local_cores(os.environ) or 1)

    @property
    def cores(self) -> int:
        """The cores at work."""
        return self.executors.cores

    def identifier(self, name: TableName) -> str:
        """A table, as SQL takes it."""
        return f"{self.lake.settings.catalog_name}.{self.lake.settings.namespace}.{name}"

    def branch(self, name: TableName) -> str:
        """The writer's branch of a table, as SQL and ``writeTo`` take it."""
        return f"{self.identifier(name)}.branch_{self.writer.branch}"

    def start_branch(self, name: TableName, snapshot_id: int) -> None:
        """Fork the writer's branch of a table from a snapshot."""
        start_branch(self.lake, name, self.writer.branch, snapshot_id)

    def head(self, name: TableName, base: int) -> int:
        """Snapshot at the end of the writer's branch, which forked from ``base``; see ``verified_head``."""
        return verified_head(self.lake, name, self.writer, base)

    def read(self, name: TableName, snapshot_id: int) -> "DataFrame":
        """Rows of a table at a snapshot."""
        return self.spark.read.option("versionAsOf", snapshot_id).table(self.identifier(name))

    def appended(self, name: TableName, after: int, snapshot_id: int) -> "DataFrame":
        """The rows that the snapshots after one up to another appended; reads the files of these rows only."""
        if after == snapshot_id:
            return self.read(name, snapshot_id).limit(0)
        options = {"start-snapshot-id": after, "end-snapshot-id": snapshot_id}
        return self.spark.read.options(**options).table(self.identifier(name))

    def read_branch(self, name: TableName) -> "DataFrame":
        """Rows of a table on the writer's branch."""
        return self.spark.table(self.branch(name))

    def append(self, name: TableName, rows: "DataFrame | pa.Table") -> None:
        """Append rows to the writer's branch of a table."""
        if isinstance(rows, pa.Table):
            commit_rows(
                self.lake, name, lambda change: change.append(rows, **self.writer.commit), branch=self.writer.branch
            )
        else:
            rows.writeTo(self.branch(name)).append()

    def delete_keys(self, name: TableName, keys: pa.Table, model_id: str, *, but_of_run: str | None = None) -> None:
        """Delete the rows of ``keys`` (one column, ``key``) and a backbone from the writer's branch of a table.

        The rows that a run ``but_of_run`` has written itself stay, unless their photos are due again.
        """
        if not keys.num_rows:
            return
        self.spark.createDataFrame(keys).createOrReplaceTempView("removed")
        conditions = [
            f"model_id = {sql_string(model_id)}",
            key_condition(keys),  # Iceberg prunes files by it, and not by the keys of a view
            "key IN (SELECT key FROM removed)",
        ]
        if but_of_run is not None:
            conditions.append(f"(run_id != {sql_string(but_of_run)} OR etag = {sql_string(DUE_ETAG)})")
        self.spark.sql(f"DELETE FROM {self.branch(name)} WHERE {' AND '.join(conditions)}")  # noqa: S608 -- quoted

    def read_keys(self, name: TableName, snapshot_id: int, keys: pa.Table, model_id: str) -> "DataFrame":
        """Rows of ``keys`` (one column, ``key``, at least a row) and a backbone, of a table at a snapshot."""
        rows = self.read(name, snapshot_id).where(f"model_id = {sql_string(model_id)} AND {key_condition(keys)}")
        return rows.join(self.spark.createDataFrame(keys).hint("broadcast"), "key", "left_semi")

    def copy_keys(self, name: TableName, snapshot_id: int, keys: pa.Table, model_id: str, **values: str) -> None:
        """Append rows of a snapshot to the writer's branch of a table, with other ``values`` in some columns.

        The rows are those of ``keys`` (one column, ``key``) and a backbone.
        """
        from pyspark.sql import functions as F  # noqa: N812 -- its usual name

        if keys.num_rows:
            rows = self.read_keys(name, snapshot_id, keys, model_id)
            others = {column: F.lit(value) for column, value in values.items()}
            self.append(name, rows.withColumns(others).sortWithinPartitions("key"))

    def delete_versions(self, name: TableName, versions: Collection[str]) -> None:
        """Delete the rows of PCA versions from the writer's branch of a table."""
        self._delete(name, "pca_id", versions)

    def delete_backbones(self, name: TableName, model_ids: Collection[str]) -> None:
        """Delete the rows of backbones from the writer's branch of a table."""
        self._delete(name, "model_id", model_ids)

    def _delete(self, name: TableName, column: str, values: Collection[str]) -> None:
        """Delete the rows that have one of some values; without any, no snapshot is made.

        Through PyIceberg: Spark would drop whole files of such rows too, in a snapshot without the writer's properties
        (Iceberg 1.12).
        """
        from pyiceberg.expressions import In

        rows = In(column, tuple(values))
        there = self.lake.scan(name, self.lake.head(name, self.writer.branch)).filter(rows)
        if next(iter(there.plan_files()), None) is None:
            return
        commit_rows(
            self.lake, name, lambda change: change.delete(rows, **self.writer.commit), branch=self.writer.branch
        )

    def call(self, procedure: str, name: TableName, arguments: str) -> "list[Row]":
        """Call one of Iceberg's procedures on a table."""
        catalog = self.lake.settings.catalog_name
        statement = f"CALL {catalog}.system.{procedure}(table => '{self.identifier(name)}', {arguments})"
        return self.spark.sql(statement).collect()


def sql_string(text: str) -> str:
    """A text as a literal of Spark SQL. A dollar is escaped too: Spark replaces variables before it parses a query."""
    return "'" + re.sub(r"[\\'$]", lambda special: f"\\u{ord(special[0]):04x}", text) + "'"


def key_condition(keys: pa.Table) -> str:
    """A condition of Spark SQL on ``key`` that all ``keys`` (one column, at least a row) meet.

    Iceberg skips the files and row groups of other keys. Of many keys, ranges are compared, and rows of other keys may
    meet the condition as well.
    """
    ordered = sorted(set(keys["key"].to_pylist()))
    if len(ordered) > _MOST_LISTS * _MOST_LITERALS:
        return _any_of(f"key BETWEEN {sql_string(low)} AND {sql_string(high)}" for low, high in ranges(ordered))
    lists = (ordered[at : at + _MOST_LITERALS] for at in range(0, len(ordered), _MOST_LITERALS))
    return _any_of(f"key IN ({', '.join(map(sql_string, some))})" for some in lists)


def ranges(ordered: Sequence[str], most: int = _MOST_RANGES) -> list[tuple[str, str]]:
    """Up to ``most`` ranges that hold all of some sorted keys, cut where neighbours share the least of their names."""
    shared = [len(commonprefix(pair)) for pair in pairwise(ordered)]  # noqa: RUF071 -- of texts, not of paths
    cuts = sorted(heapq.nsmallest(most - 1, range(len(shared)), key=shared.__getitem__))
    firsts, lasts = [0, *(cut + 1 for cut in cuts)], [*cuts, len(ordered) - 1]
    return [(ordered[first], ordered[last]) for first, last in zip(firsts, lasts, strict=True)]


def _any_of(conditions: Iterable[str]) -> str:
    return f"({' OR '.join(conditions)})"
