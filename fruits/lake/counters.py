"""Counters: how many rows the tables of a publication hold, by backbone, label and split, or by reason.

A run counts the rows that it added and removed, and brings the counters of the publication before up to date. So no
gate has to count the rows of a whole table. ``live_rows`` is what Iceberg itself counts, to hold the counters against.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fruits.lake.schemas import TableName
from fruits.photos.keys import FIT_SPLIT

if TYPE_CHECKING:
    from pyiceberg.table import Table


@dataclass(frozen=True, slots=True)
class Kind:
    """What is counted together: features of a label and split, or objects in quarantine for a reason."""

    model_id: str
    label: str | None = None
    split: str | None = None
    reason: str | None = None

    @property
    def table(self) -> TableName:
        """The table of such rows."""
        return "features" if self.reason is None else "quarantine"


@dataclass(frozen=True, slots=True)
class RowCount:
    """The rows of a kind, at least 1."""

    model_id: str
    label: str | None
    split: str | None
    reason: str | None
    rows: int

    @property
    def kind(self) -> Kind:
        """What is counted."""
        return Kind(self.model_id, self.label, self.split, self.reason)


@dataclass(frozen=True)
class Counters:
    """Rows by kind, of all backbones; kinds without rows are left out."""

    rows: Mapping[Kind, int]

    @classmethod
    def of(cls, counts: Iterable[RowCount]) -> "Counters":
        """The counters of a publication's row."""
        return cls({count.kind: count.rows for count in counts})

    @property
    def counts(self) -> tuple[RowCount, ...]:
        """As a publication's row has them, in an order that does not depend on how they came about."""
        counts = (RowCount(kind.model_id, kind.label, kind.split, kind.reason, n) for kind, n in self.rows.items())
        return tuple(sorted(counts, key=lambda one: (one.model_id, one.reason or "", one.label or "", one.split or "")))

    def changed(self, changes: Mapping[Kind, int]) -> "Counters":
        """The counters after rows came (a positive number of a kind) and left (a negative one)."""
        after = Counter(self.rows)
        after.update(changes)
        return Counters({kind: rows for kind, rows in after.items() if rows})

    def of_backbone(self, model_id: str) -> "Counters":
        """Those of one backbone."""
        return Counters({kind: rows for kind, rows in self.rows.items() if kind.model_id == model_id})

    def without(self, model_ids: Iterable[str]) -> "Counters":
        """Those of the other backbones."""
        gone = set(model_ids)
        return Counters({kind: rows for kind, rows in self.rows.items() if kind.model_id not in gone})

    def total(self, table: TableName) -> int:
        """Rows of a table."""
        return sum(rows for kind, rows in self.rows.items() if kind.table == table)

    @property
    def reasons(self) -> dict[str, int]:
        """Objects in quarantine by reason."""
        found: Counter[str] = Counter()
        for kind, rows in self.rows.items():
            if kind.reason is not None:
                found[kind.reason] += rows
        return dict(found)

    @property
    def held_out(self) -> int:
        """Features of the held-out splits."""
        return sum(rows for kind, rows in self.rows.items() if kind.reason is None and kind.split != FIT_SPLIT)

    @property
    def unfitted_labels(self) -> list[str]:
        """Labels that occur in a held-out split only."""
        features = [kind for kind in self.rows if kind.reason is None]
        fitted = {kind.label for kind in features if kind.split == FIT_SPLIT}
        return sorted({str(kind.label) for kind in features if kind.label not in fitted})


COUNTED: tuple[TableName, ...] = ("features", "quarantine")
"""The tables whose rows are counted."""


def live_rows(table: "Table", snapshot_id: int) -> int | None:
    """Rows of a table at a snapshot as Iceberg counts them in the snapshot's summary; None where it does not."""
    snapshot = table.snapshot_by_id(snapshot_id)
    summary = snapshot.summary if snapshot else None
    if summary is None or summary["total-records"] is None or int(summary["total-equality-deletes"] or 0):
        return None
    return int(summary["total-records"]) - int(summary["total-position-deletes"] or 0)


def agree(counters: Counters, tables: "Mapping[TableName, Table]", snapshots: Mapping[TableName, int]) -> bool:
    """Whether counters have as many rows of each table as Iceberg counts at ``snapshots``."""
    return all(live_rows(tables[name], snapshots[name]) == counters.total(name) for name in COUNTED)
