"""What a run changed in the tables since its base: the rows that it appended, and those of the keys that it replaced.

The gates look at these rows only. So their cost is that of the run's photos, and not of all photos. Where these rows do
not tell all, the gates look at all rows, as if these had come since an empty base.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.gates import failed
from fruits.lake.branches import attempts_since, is_append
from fruits.lake.counters import COUNTED, Counters, Kind, agree, live_rows
from fruits.lake.schemas import TableName
from fruits.spark.job import Job
from fruits.spark.queries import Relation, answer
from fruits.spark.tables import key_condition

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyspark.sql import DataFrame

log = logging.getLogger("fruits")

CHANGED: tuple[TableName, ...] = ("features", "quarantine", "embeddings")
"""The tables that have rows by key."""

_LOOKED_AT: Mapping[TableName, tuple[str, ...]] = {
    "features": ("key", "etag", "label", "split", "sha256", "model_id", "run_id"),
    "quarantine": ("key", "reason", "model_id", "run_id"),
    "embeddings": ("key", "etag", "pca_id", "model_id", "run_id"),
}
"""What the gates look at of rows by key, beside the vectors."""

_KINDS = """
    SELECT model_id, label, split, reason, CAST(sum(sign) AS BIGINT) AS n
    FROM (
        SELECT model_id, label, split, NULL AS reason, sign FROM features
        UNION ALL SELECT model_id, NULL AS label, NULL AS split, reason, sign FROM quarantine
    ) AS counted
    GROUP BY model_id, label, split, reason
"""


def changes_of(job: Job, pca_id: str | None) -> "Changes":
    """The changes of a run, or all rows where its gates have to read these; the log then says why."""
    tables = {name: job.lake.table(name) for name in CHANGED}
    reason = reason_to_read_all(job, pca_id, tables)
    if reason:
        log.info("all rows are read: %s", reason)
    return Changes(job, tables, pca_id, of_all=reason is not None)


def reason_to_read_all(job: Job, pca_id: str | None, tables: "Mapping[TableName, Table]") -> str | None:
    """Why the gates of a run have to read all rows; None when its changes tell all."""
    base, projected = job.run.base, job.documents.projected
    counters = base.publication.counted
    counted = counters is not None and agree(counters, tables, base.snapshots)
    written = [(tables[name], base.snapshots[name], job.start[name]) for name in CHANGED]
    rewritten = not all(is_append(*snapshots) for snapshots in written)
    # Such a rebuild deletes rows that the attempts before appended: those of photos that they could not read.
    resumed = job.run.request.mode == "rebuild" and any(len(attempts_since(*snapshots)) > 1 for snapshots in written)
    reasons = {
        "the publication before has no counters that Iceberg's own agree with": not counted,
        "a person approved the publication before, although required gates failed": failed(base.publication.gates),
        "the statistics are taken from all rows": projected and projected.recomputed,
        "all rows are projected": projected and projected.action == "fit",
        "readers get another PCA version": pca_id != base.publication.pca_id and not job.run.building,
        "the run rewrote files": rewritten,
        "a rebuild went on after another attempt of it": resumed,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@dataclass(frozen=True)
class Changes:
    """The rows that came and left from a run's base to the snapshots that a job starts from, by table.

    Attributes:
        job: The job.
        tables: The tables; they know both snapshots.
        pca_id: The PCA version that the gates look at; None while a backbone is built.
        of_all: Whether the base counts as empty: then all rows have come, those of other backbones as well; of the
            embeddings only those under the PCA version.
    """

    job: Job
    tables: "Mapping[TableName, Table]"
    pca_id: str | None
    of_all: bool = False

    @cached_property
    def at_hand(self) -> bool:
        """Whether the driver reads the rows itself, because they are few; else Spark reads them."""
        if not self.new_at_hand:
            return False
        return self.is_small_lake or (not self.of_all and (self.job.is_small or not len(self.replaced)))

    @cached_property
    def new_at_hand(self) -> bool:
        """Whether the driver may read the rows of the run's own photos itself."""
        return len(self.job.manifest()) <= self.job.most_at_hand

    @cached_property
    def is_small_lake(self) -> bool:
        """Whether the driver may read the rows of all photos itself, by Iceberg's own count of them."""
        rows = [live_rows(self.tables[name], self.job.start[name]) for name in COUNTED]
        return all(some is not None for some in rows) and sum(filter(None, rows)) <= self.job.most_at_hand

    @cached_property
    def replaced(self) -> pa.Table:
        """Keys of updated and deleted objects; one column, ``key``."""
        return self.job.manifest().replaced_keys

    @cached_property
    def rows(self) -> Mapping[TableName, Relation]:
        """The rows, with a ``sign``: 1 of rows that are there, -1 of those that the base has of replaced keys.

        A row of a replaced key that the run left where it was, has both. Only the columns that the gates look at.
        """
        read = self._read_here if self.at_hand else self._read_by_spark
        return {name: read(name, columns) for name, columns in _LOOKED_AT.items()}

    def _read_here(self, name: TableName, columns: Sequence[str]) -> pa.Table:
        job = self.job
        if self.of_all:
            equal = {"pca_id": str(self.pca_id)} if name == "embeddings" else {}
            return _signed([(1, job.read_all(name, *columns, **equal))])
        left = job.read_keys(name, job.start[name], self.replaced, *columns)
        return _signed(
            [
                (1, job.read_appended(name, *columns)),
                (-1, job.read_keys(name, job.run.base.snapshots[name], self.replaced, *columns)),
                (1, left.filter(pc.not_equal(left["run_id"], job.run.run_id))),
            ]
        )

    def _read_by_spark(self, name: TableName, columns: Sequence[str]) -> "DataFrame":
        job = self.job
        if self.of_all:
            rows = job.rows(name).where(f"pca_id = '{self.pca_id}'") if name == "embeddings" else job.rows(name)
            return rows.selectExpr(*columns, "1 AS sign")
        appended = job.tables.appended(name, job.run.base.snapshots[name], job.start[name])
        came = appended.where(f"model_id = '{job.run.model_id}'").selectExpr(*columns, "1 AS sign")
        if not len(self.replaced):
            return came
        left = self._of_replaced(name, job.start[name])
        was = self._of_replaced(name, job.run.base.snapshots[name]).selectExpr(*columns, "-1 AS sign")
        return came.union(was).union(left.where(left.run_id != job.run.run_id).selectExpr(*columns, "1 AS sign"))

    def _of_replaced(self, name: TableName, snapshot_id: int) -> "DataFrame":
        tables = self.job.tables
        rows = tables.read(name, snapshot_id).where(f"model_id = '{self.job.run.model_id}'")
        pruned = rows.where(key_condition(self.replaced))
        return pruned.join(tables.spark.createDataFrame(self.replaced), "key", "left_semi")

    def by_kind(self) -> Counter[Kind]:
        """How many rows of each kind came, less those that left."""
        rows = {name: self.rows[name] for name in COUNTED}
        kinds = answer(self.job.tables, _KINDS, **rows)
        return Counter({Kind(one["model_id"], one["label"], one["split"], one["reason"]): one["n"] for one in kinds})

    def unexplained(self, name: TableName, change: int) -> int:
        """Rows of a table that came or left beyond a ``change`` that the run's rows explain, by Iceberg's own count."""
        if self.of_all:
            return 0
        snapshots = self.job.run.base.snapshots[name], self.job.start[name]
        before, after = (live_rows(self.tables[name], snapshot_id) for snapshot_id in snapshots)
        return abs((after or 0) - (before or 0) - change)

    def counted_after(self) -> tuple[Counters, int]:
        """The counters of all backbones after the run, and the rows that Iceberg counts beyond these."""
        base, by_kind = self.job.run.base.publication.counted, self.by_kind()
        if self.of_all or base is None:
            return Counters({}).changed(by_kind), 0
        return base.changed(by_kind), sum(self.unexplained(name, Counters(by_kind).total(name)) for name in COUNTED)


def _signed(parts: Iterable[tuple[int, pa.Table]]) -> pa.Table:
    """Rows with the column ``sign``."""
    return pa.concat_tables(rows.append_column("sign", pa.repeat(sign, len(rows))) for sign, rows in parts)
