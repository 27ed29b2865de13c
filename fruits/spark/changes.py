"""What a run changed in the tables since its base: the rows that it appended, and those of the keys that it replaced.

The gates look at these rows only. So their cost is that of the run's photos, and not of all photos.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.gates import failed
from fruits.lake.branches import Snapshots, attempts_since, is_append
from fruits.lake.counters import COUNTED, Counters, Kind, agree, live_rows
from fruits.lake.schemas import TableName
from fruits.spark.job import Job
from fruits.spark.tables import key_condition

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyspark.sql import DataFrame

log = logging.getLogger("fruits")

CHANGED: tuple[TableName, ...] = ("features", "quarantine", "embeddings")
"""The tables that have rows by key."""


_AT_HAND: Mapping[TableName, tuple[str, ...]] = {
    "features": ("key", "etag", "label", "split", "sha256", "run_id"),
    "quarantine": ("key", "reason", "run_id"),
    "embeddings": ("key", "etag", "pca_id", "run_id"),
}
"""What the gates look at of rows by key, beside the vectors."""


def changes_of(job: Job, pca_id: str | None) -> "Changes | None":
    """The changes of a run; None when its gates have to read all rows, and the log says why."""
    tables = {name: job.lake.table(name) for name in CHANGED}
    reason = reason_to_read_all(job, pca_id, tables)
    if reason:
        log.info("all rows are read: %s", reason)
        return None
    return ChangesAtHand(job, tables) if job.is_small else Changes(job, tables)


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
    """The changes of a run from its base to the snapshots that a job starts from; ``tables`` know these snapshots."""

    job: Job
    tables: "Mapping[TableName, Table]"

    @cached_property
    def replaced(self) -> pa.Table:
        """Keys of updated and deleted objects; one column, ``key``."""
        return self.job.manifest().replaced_keys

    def appended(self, name: TableName) -> "DataFrame":
        """The rows of the run's backbone that the run appended to a table."""
        job = self.job
        rows = job.tables.appended(name, job.run.base.snapshots[name], job.start[name])
        return rows.where(f"model_id = '{job.run.model_id}'")

    def before(self, name: TableName) -> "DataFrame":
        """The rows of the replaced keys in a table, as the base has them."""
        return self._of_replaced(name, self.job.run.base.snapshots[name])

    def left(self, name: TableName) -> "DataFrame":
        """Those rows of the replaced keys that the run left in a table."""
        rows = self._of_replaced(name, self.job.start[name])
        return rows.where(rows.run_id != self.job.run.run_id)

    def _of_replaced(self, name: TableName, snapshot_id: int) -> "DataFrame":
        tables = self.job.tables
        rows = tables.read(name, snapshot_id).where(f"model_id = '{self.job.run.model_id}'")
        pruned = rows.where(key_condition(self.replaced))
        return pruned.join(tables.spark.createDataFrame(self.replaced), "key", "left_semi")

    def signed(self, name: TableName, *columns: str) -> "DataFrame":
        """Columns of the rows that came, with the ``sign`` 1, and of those that left, with -1."""
        from pyspark.sql import functions as F  # noqa: N812 -- its usual name

        came = self.appended(name).select(*columns, F.lit(1).alias("sign"))
        if not self.replaced.num_rows:
            return came
        was = self.before(name).select(*columns, F.lit(-1).alias("sign"))
        is_left = self.left(name).select(*columns, F.lit(1).alias("sign"))
        return came.unionByName(was).unionByName(is_left)

    def by_kind(self) -> Counter[Kind]:
        """How many rows of each kind came or left."""
        from pyspark.sql import functions as F  # noqa: N812 -- its usual name

        nothing = F.lit(None).cast("string")
        features = self.signed("features", "label", "split").withColumn("reason", nothing)
        quarantine = self.signed("quarantine", "reason").withColumn("label", nothing).withColumn("split", nothing)
        kinds = features.unionByName(quarantine).groupBy("label", "split", "reason").agg(F.sum("sign").alias("rows"))
        model_id = self.job.run.model_id
        return Counter({Kind(model_id, row.label, row.split, row.reason): int(row.rows) for row in kinds.collect()})

    def unexplained(self, name: TableName, change: int) -> int:
        """Rows of a table that came or left beyond a ``change`` that the run's rows explain, by Iceberg's own count."""
        snapshots = self.job.run.base.snapshots[name], self.job.start[name]
        before, after = (live_rows(self.tables[name], snapshot_id) for snapshot_id in snapshots)
        return abs((after or 0) - (before or 0) - change)


@dataclass(frozen=True)
class ChangesAtHand(Changes):
    """The changes of a small run, whose rows the driver reads itself: the same answers, without Spark."""

    @cached_property
    def came(self) -> Mapping[TableName, pa.Table]:
        """The rows of the run's backbone that the run appended."""
        return {name: self.job.read_appended(name, *columns) for name, columns in _AT_HAND.items()}

    @cached_property
    def was(self) -> Mapping[TableName, pa.Table]:
        """The rows of the replaced keys, as the base has them."""
        return self._of_keys(self.job.run.base.snapshots)

    @cached_property
    def stayed(self) -> Mapping[TableName, pa.Table]:
        """Those rows of the replaced keys that the run left."""
        run_id = self.job.run.run_id
        return {
            name: rows.filter(pc.not_equal(rows["run_id"], run_id))
            for name, rows in self._of_keys(self.job.start).items()
        }

    def _of_keys(self, snapshots: Snapshots) -> Mapping[TableName, pa.Table]:
        return {
            name: self.job.read_keys(name, snapshots[name], self.replaced, *columns)
            for name, columns in _AT_HAND.items()
        }

    def by_kind(self) -> Counter[Kind]:
        """How many rows of each kind came or left."""
        kinds: Counter[Kind] = Counter()
        for name in COUNTED:
            columns = [column for column in ("label", "split", "reason") if column in _AT_HAND[name]]
            for sign, rows in ((1, self.came), (-1, self.was), (1, self.stayed)):
                for row in rows[name].select(columns).to_pylist():
                    kinds[Kind(self.job.run.model_id, **row)] += sign
        return kinds

    def change(self, name: TableName) -> int:
        """By how many rows of the run's backbone a table has grown."""
        return len(self.came[name]) - len(self.was[name]) + len(self.stayed[name])


def counted_after(job: Job, changes: Changes | None) -> tuple[Counters, int]:
    """The counters of all backbones after a run, and the rows that Iceberg counts beyond these.

    Without ``changes`` all rows are counted.
    """
    base = job.run.base.publication.counted
    if changes is None or base is None:
        return count_all(job), 0
    by_kind = changes.by_kind()
    counters = base.changed(by_kind)
    return counters, sum(changes.unexplained(name, Counters(by_kind).total(name)) for name in COUNTED)


def count_all(job: Job) -> Counters:
    """The counters of all rows, counted one by one."""
    counts: dict[Kind, int] = {}
    for row in job.rows("features").groupBy("model_id", "label", "split").count().collect():
        counts[Kind(row["model_id"], row["label"], row["split"])] = row["count"]
    for row in job.rows("quarantine").groupBy("model_id", "reason").count().collect():
        counts[Kind(row["model_id"], reason=row["reason"])] = row["count"]
    return Counters(counts)
