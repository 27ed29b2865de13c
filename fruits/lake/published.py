"""What a reader gets: the rows of the current publication, in batches, whatever is being published meanwhile."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, publications
from fruits.lake.schemas import TABLES, TableName

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
        scan = self.lake.scan(self.name, self.publication.snapshots[self.name], [*self._belonging], **self._belonging)
        return int(scan.count())

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, as ``Lake.batches`` reads them."""
        snapshot_id, names = self.publication.snapshots[self.name], self.schema.names
        for batch in self.lake.batches(self.name, snapshot_id, names, **self._belonging):
            yield batch.cast(self.schema)

    @property
    def _belonging(self) -> dict[str, Any]:
        column = _BELONG_BY[self.name]
        return {column: getattr(self.publication, column)}
