"""The tables of a lake as Spark reads and writes them: at a snapshot, or on the branch of an attempt."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fruits.lake.branches import Writer, commit_rows, start_branch, verified_head
from fruits.lake.catalog import Lake
from fruits.lake.schemas import TableName

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, Row, SparkSession

_MOST_LITERALS = 200  # Iceberg does not prune by longer lists


@dataclass(frozen=True)
class Tables:
    """The tables of ``lake``; what is written carries the properties of ``writer`` and is on its branch."""

    spark: "SparkSession"
    lake: Lake
    writer: Writer

    @property
    def session_properties(self) -> Mapping[str, str]:
        """Spark's configuration that marks every snapshot of the session with its writer."""
        return {
            f"spark.sql.iceberg.snapshot-property.{name}": value
            for name, value in self.writer.snapshot_properties.items()
        }

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

    def read_keys(self, name: TableName, snapshot_id: int, keys: "pa.Table", model_id: str) -> "DataFrame":
        """Rows of ``keys`` (one column, ``key``, at least a row) and a backbone, of a table at a snapshot."""
        rows = self.read(name, snapshot_id).where(f"model_id = '{model_id}'")
        pruned = rows.where(key_filter(keys["key"].to_pylist()))
        return pruned.join(self.spark.createDataFrame(keys).hint("broadcast"), "key", "left_semi")

    def read_branch(self, name: TableName) -> "DataFrame":
        """Rows of a table on the writer's branch."""
        return self.spark.table(self.branch(name))

    def append(self, name: TableName, rows: "DataFrame") -> None:
        """Append rows to the writer's branch of a table."""
        rows.writeTo(self.branch(name)).append()

    def delete_keys(self, name: TableName, keys: "pa.Table", model_id: str) -> None:
        """Delete the rows of ``keys`` (one column, ``key``) and a backbone from the writer's branch of a table."""
        if keys.num_rows:
            self.spark.createDataFrame(keys).createOrReplaceTempView("removed")
            condition = f"model_id = '{model_id}' AND key IN (SELECT key FROM removed)"  # noqa: S608 -- our own names
            self.spark.sql(f"DELETE FROM {self.branch(name)} WHERE {condition}")  # noqa: S608

    def copy_keys(self, name: TableName, snapshot_id: int, keys: "pa.Table", model_id: str, **values: str) -> None:
        """Append rows of a snapshot to the writer's branch of a table, with other ``values`` in some columns.

        The rows are those of ``keys`` (one column, ``key``) and a backbone.
        """
        from pyspark.sql import functions as F  # noqa: N812 -- its usual name

        if keys.num_rows:
            rows = self.read_keys(name, snapshot_id, keys, model_id)
            others = {column: F.lit(value) for column, value in values.items()}
            self.append(name, rows.withColumns(others).sortWithinPartitions("key"))

    def delete_versions(self, name: TableName, versions: Collection[str]) -> None:
        """Delete the rows of PCA versions from the writer's branch of a table.

        Through PyIceberg: Spark would drop whole files of such rows too, in a snapshot without the writer's properties
        (Iceberg 1.12).
        """
        from pyiceberg.expressions import In

        rows = In("pca_id", tuple(versions))
        commit_rows(
            self.lake, name, lambda change: change.delete(rows, **self.writer.commit), branch=self.writer.branch
        )

    def call(self, procedure: str, name: TableName, arguments: str) -> "list[Row]":
        """Call one of Iceberg's procedures on a table."""
        catalog = self.lake.settings.catalog_name
        statement = f"CALL {catalog}.system.{procedure}(table => '{self.identifier(name)}', {arguments})"
        return self.spark.sql(statement).collect()


def key_filter(keys: list[str]) -> "Column":
    """A filter that Iceberg prunes files by: the keys themselves while they are few, else their range."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    column = F.col("key")
    return column.isin(keys) if len(keys) <= _MOST_LITERALS else column.between(min(keys), max(keys))
