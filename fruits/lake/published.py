"""What a reader gets: the rows of the current publication, in batches, whatever is being published meanwhile."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, publications
from fruits.lake.schemas import TABLES, TableName

if TYPE_CHECKING:
    from pyiceberg.table import DataScan, FileScanTask

_BATCH_ROWS = 8_192
_GROUP_BYTES = 128 * 1024 * 1024
_SCHEMAS = {definition.name: definition.schema for definition in TABLES}
_BELONG_BY: Mapping[TableName, str] = {
    "features": "model_id",
    "quarantine": "model_id",
    "pca_models": "model_id",
    "embeddings": "pca_id",
}
"""The column that says which rows of a table are the publication's: a table holds other backbones, other versions."""


def current_publication(lake: Lake) -> Publication:
    """The publication that readers see.

    Raises:
        FruitsError: when nothing has been published yet.
    """
    published = publications(lake)
    if not published:
        raise FruitsError(
            f"lake {lake.settings.lake}: nothing has been published there yet; run the DAG once (`make run`), or set "
            "FRUITS_LAKE and FRUITS_CATALOG_URI to the lake that you mean"
        )
    return published[-1]


@dataclass(frozen=True)
class PublishedRows:
    """Rows of one table as a publication has them: those of its backbone or, for embeddings, of its PCA version.

    Attributes:
        lake: The lake.
        publication: The publication; its snapshots are read, not what is current by then.
        name: The table.
        columns: Which columns, in the table's order; none means all.
    """

    lake: Lake
    publication: Publication
    name: TableName
    columns: Sequence[str] = ()

    @property
    def schema(self) -> pa.Schema:
        """Columns and types of the batches."""
        schema = _SCHEMAS[self.name]
        return pa.schema([field for field in schema if not self.columns or field.name in self.columns])

    @cached_property
    def total(self) -> int:
        """How many rows there are; reads rows only where some were deleted."""
        return int(self._scan().count())

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, in the order of the files; at most 8,192 in a batch.

        Memory is bounded by the files that are read at once: 128 MB of them as they are stored, or one larger one.
        """
        from pyiceberg.io.pyarrow import ArrowScan

        scan = self._scan()
        arrow = ArrowScan(scan.table_metadata, scan.io, scan.projection(), scan.row_filter, scan.case_sensitive)
        # PyIceberg's own reader of batches reads all files ahead, however slowly they are asked for.
        for group in _groups(list(scan.plan_files())):
            for batch in arrow.to_record_batches(group):
                table = pa.Table.from_batches([batch]).select(self.schema.names).cast(self.schema)
                yield from table.to_batches(max_chunksize=_BATCH_ROWS)

    def _scan(self) -> "DataScan":
        from pyiceberg.expressions import EqualTo

        column = _BELONG_BY[self.name]
        return self.lake.table(self.name).scan(
            row_filter=EqualTo(column, getattr(self.publication, column)),
            selected_fields=tuple(self.schema.names),
            snapshot_id=self.publication.snapshots[self.name],
        )


def _groups(tasks: "Sequence[FileScanTask]") -> "Iterator[list[FileScanTask]]":
    """``tasks`` in order, as many together as ``_GROUP_BYTES`` allow, at least one."""
    group: list[FileScanTask] = []
    size = 0
    for task in tasks:
        if group and size + task.file.file_size_in_bytes > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(task)
        size += task.file.file_size_in_bytes
    if group:
        yield group
