"""The lake for readers: nothing is created, and the rows are those of the current publication."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from fruits.denials import denials_explained
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake, database_problem, glue_problem, open_catalog, outages_explained
from fruits.lake.publication import Publication, publications
from fruits.lake.schemas import TABLES, TableName
from fruits.settings import Settings

_SCHEMAS = {definition.name: definition.schema for definition in TABLES}
_BELONG_BY: Mapping[TableName, str] = {
    "features": "model_id",
    "quarantine": "model_id",
    "pca_models": "model_id",
    "embeddings": "pca_id",
}
"""The column that says which rows of a table are the publication's: a table holds other backbones, other versions."""


class NoLakeError(FruitsError):
    """There is no lake at that place; nothing was made there."""


def open_read_only(settings: Settings) -> Lake:
    """Open the lake of the settings for reading. Unlike ``Lake.open``, this creates nothing, whatever is missing.

    Raises:
        NoLakeError: when there is no lake; names the missing part.
        FruitsError: when the catalog's database does not answer, or when catalog and lake do not belong together.
    """
    for file in missing_parts(settings):
        raise NoLakeError(
            f"no lake there: {file} does not exist; check FRUITS_LAKE and FRUITS_CATALOG_URI. If the catalog is lost: "
            "`fruits catalog rebuild`"
        )
    tables = _tables(settings)
    missing = [table.name for table in TABLES if table.name not in tables and table.since == 1]
    if missing:
        raise NoLakeError(
            f"no lake there: catalog {settings.catalog_name!r} has no tables {', '.join(missing)} in namespace "
            f"{settings.namespace!r}; a first run of the DAG makes them. Or check FRUITS_CATALOG_URI, "
            "FRUITS_CATALOG_NAME and FRUITS_NAMESPACE. If the catalog is lost: `fruits catalog rebuild`"
        )
    lake = Lake(settings)
    lake.check_location()
    lake.check_format()
    return lake


@contextmanager
def explain_lake_errors(settings: Settings) -> Iterator[None]:
    """Turn errors of catalog, stores and servers into a message that says what to check.

    Raises:
        TransientError: when the catalog's database does not answer, or is locked by another program.
        FruitsError: for the other errors.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.exceptions import BaseError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with denials_explained(), outages_explained(settings):
            yield
    except (BotoCoreError, ClientError, BaseError, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).partition("\n")[0].split()) or type(error).__name__
        raise FruitsError(
            f"lake {settings.lake}: {reason}; check FRUITS_LAKE, FRUITS_CATALOG_URI and the network, or ask "
            "`fruits doctor`"
        ) from error


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
        publication: The publication; its snapshots are read, whatever is current by then.
        name: The table.
        columns: The columns to read, in the table's order; none means all.
        split: The split whose rows to read; None means all.
    """

    lake: Lake
    publication: Publication
    name: TableName
    columns: Sequence[str] = ()
    split: str | None = None

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
            missing = [field for field in self.schema if field.name not in batch.schema.names]
            for field in missing:  # columns that are newer than the snapshot
                batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))  # noqa: PLW2901
            yield batch.select(names).cast(self.schema)

    @property
    def _belonging(self) -> dict[str, Any]:
        column = _BELONG_BY[self.name]
        return {column: getattr(self.publication, column)} | ({"split": self.split} if self.split else {})


def missing_parts(settings: Settings) -> list[Path]:
    """Files of this machine that do not exist: the catalog's SQLite file, the lake's folder."""
    catalog, lake = urlsplit(settings.catalog_uri.get_secret_value()), urlsplit(settings.lake)
    files = [Path(unquote(catalog.path)[1:])] if catalog.scheme == "sqlite" else []
    files += [Path(unquote(lake.path))] if lake.scheme == "file" else []
    return [file for file in files if not file.exists()]


def catalog_is_absent(error: Exception) -> bool:
    """Whether an error of the database says that there is no catalog in it."""
    from sqlalchemy.exc import OperationalError, ProgrammingError

    reason = str(error).splitlines()[0]
    absent = "no such table" in reason or ("does not exist" in reason and "iceberg_" in reason)
    return isinstance(error, OperationalError | ProgrammingError) and absent


def _tables(settings: Settings) -> set[str]:
    """The names of the tables in the catalog; empty when there is no catalog in the database."""
    from botocore.exceptions import BotoCoreError, ClientError
    from pyiceberg.exceptions import NoSuchNamespaceError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        catalog = open_catalog(settings, init_catalog_tables="false")
        with denials_explained():
            return {name for _, name in catalog.list_tables(settings.namespace)}
    except NoSuchNamespaceError:
        return set()
    except (BotoCoreError, ClientError) as error:
        raise glue_problem(settings, error) from error
    except SQLAlchemyError as error:
        if catalog_is_absent(error):
            return set()
        raise database_problem(settings, error) from error
