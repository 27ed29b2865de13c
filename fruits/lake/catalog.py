"""The Iceberg catalog, as PyIceberg and as Spark open it, and the tables in it."""

import re
import time
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa

import fruits
from fruits.denials import denials_explained
from fruits.disks import advice
from fruits.errors import FruitsError, TransientError
from fruits.lake.schemas import TABLES, TableDefinition, TableName
from fruits.settings import Settings
from fruits.stores import effect, lake_store, list_files

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from pyiceberg.catalog import Catalog
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile as IcebergFile
    from pyiceberg.schema import Schema
    from pyiceberg.table import DataScan, FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot
    from sqlalchemy.exc import SQLAlchemyError

# PyIceberg warns about what it leaves to Spark: deletions as delete files, and the size of row groups.
for _message in ("Merge on read is not yet supported", "Parquet writer option"):
    warnings.filterwarnings("ignore", message=_message)

_BATCH_ROWS = 8_192
_FILES_AHEAD = 4
_SMALL_FILE_BYTES = 32 * 2**20
_TINY_FILE_BYTES = 2**20  # without vectors most of a larger file is not needed
_PROPERTY_TRIES = 20
_FORMAT_PROPERTY = "fruits.lake-format"
_COLUMNS_PROPERTY = "fruits.lake-columns"

RUN_PROPERTY = "fruits.run"
"""What each snapshot of ours carries in its summary: the key of the run that made it."""

LAKE_FORMAT = 5
"""What this software writes: tables, run documents and leases. Format 1 is that of Fruits 0.1, which did not say so."""
_LOCKED = re.compile(r"database (\w+ )?is locked")  # the words of SQLite
_GLUE_TRANSIENT = ("ThrottlingException", "InternalServiceException", "OperationTimeoutException")

ROW_GROUP_BYTES = 8 * 2**20
"""About 1,600 vectors of 1,280 features. What reads some rows by their keys reads the row groups that they are in."""

_ROW_GROUP_PROPERTY = "write.parquet.row-group-size-bytes"
_TABLE_PROPERTIES = {
    "write.delete.mode": "merge-on-read",  # a few rows leave at a time: rewriting their files would cost the table
    "write.update.mode": "merge-on-read",
    "write.merge.mode": "merge-on-read",
    "write.parquet.compression-codec": "zstd",
    _ROW_GROUP_PROPERTY: str(ROW_GROUP_BYTES),
    "write.distribution-mode": "none",  # the jobs bring rows in the order they are to be written
    "write.spark.fanout.enabled": "true",
    # Bounds of whole keys and run ids: their first 16 characters, which are kept otherwise, are the same in all files.
    "write.metadata.metrics.column.key": "full",
    "write.metadata.metrics.column.run_id": "full",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
    "commit.manifest-merge.enabled": "true",  # else each append by PyIceberg leaves a manifest for ever
    "commit.retry.num-retries": "20",  # several runs may commit to branches of one table at once
}


def catalog_properties(settings: Settings) -> dict[str, str]:
    """The properties of the catalog for PyIceberg's ``load_catalog``."""
    glue = {"type": "glue", "glue.region": settings.s3_region, **_glue_properties(settings)}
    properties = {
        **(glue if settings.catalog_kind == "glue" else {"type": "sql", "uri": _database_uri(settings)}),
        "warehouse": settings.warehouse,
    }
    if settings.lake_kind == "s3":
        properties["s3.region"] = settings.s3_region
        if settings.s3_endpoint:
            properties["s3.endpoint"] = settings.s3_endpoint
    return properties


def spark_configuration(settings: Settings) -> dict[str, str]:
    """The same catalog as Spark's configuration; the session needs nothing else to read and write the tables."""
    catalog = f"spark.sql.catalog.{settings.catalog_name}"
    return {
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        catalog: "org.apache.iceberg.spark.SparkCatalog",
        **{f"{catalog}.{key}": value for key, value in _spark_catalog_properties(settings).items()},
    }


def _spark_catalog_properties(settings: Settings) -> dict[str, str]:
    glue = {"type": "glue", "client.region": settings.s3_region, **_glue_properties(settings)}
    properties = {
        **(glue if settings.catalog_kind == "glue" else _jdbc_properties(settings)),
        "warehouse": settings.warehouse,
        "cache-enabled": "false",  # branches move under us: always read the current metadata
    }
    if settings.lake_kind == "s3":
        properties["io-impl"] = "org.apache.iceberg.aws.s3.S3FileIO"
        properties["client.region"] = settings.s3_region
        if settings.s3_endpoint:
            properties["s3.endpoint"] = settings.s3_endpoint
            properties["s3.path-style-access"] = "true"
    return properties


def _glue_properties(settings: Settings) -> dict[str, str]:
    """Properties of Glue that have the same names in PyIceberg and Spark."""
    account = {"glue.id": settings.glue_account} if settings.glue_account else {}
    return {"glue.skip-archive": "true", **account}  # Glue keeps few old versions, and each commit adds one


def _jdbc_properties(settings: Settings) -> dict[str, str]:
    parts = urlsplit(settings.catalog_uri.get_secret_value())
    properties = {"type": "jdbc", "jdbc.schema-version": "V1"}
    if parts.scheme == "sqlite":
        return {**properties, "uri": f"jdbc:sqlite:{unquote(parts.path)[1:]}?busy_timeout=30000"}
    return {
        **properties,
        "uri": f"jdbc:postgresql://{parts.hostname}:{parts.port or 5432}{parts.path}",
        "jdbc.user": unquote(parts.username or ""),
        "jdbc.password": unquote(parts.password or ""),
    }


def _database_uri(settings: Settings) -> str:
    """The URI of the catalog's database for SQLAlchemy."""
    return settings.catalog_uri.get_secret_value().replace("postgresql://", "postgresql+psycopg2://", 1)


def open_catalog(settings: Settings, **properties: str) -> "Catalog":
    """The catalog through PyIceberg; each commit to it, also PyIceberg's own second try, is an ``effect``.

    A database that does not answer a commit, or a question for a table, is a ``TransientError``; so is a locked file.
    """
    from pyiceberg.catalog import load_catalog

    catalog = load_catalog(settings.catalog_name, **catalog_properties(settings), **properties)
    commit_table, load_table = catalog.commit_table, catalog.load_table

    def commit(table: "Table", *changes: Any) -> Any:
        with effect("commit", table.name()[-1]), outages_explained(settings):
            return commit_table(table, *changes)

    def load(identifier: Any) -> "Table":
        with outages_explained(settings):
            return load_table(identifier)

    catalog.commit_table, catalog.load_table = commit, load
    return catalog


@contextmanager
def outages_explained(settings: Settings) -> Iterator[None]:
    """Raise errors of the catalog's database inside that may pass as ``TransientError``; the other errors pass."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        problem = database_problem(settings, error)
        if not isinstance(problem, TransientError):
            raise
        raise problem from error


def database_problem(settings: Settings, error: "SQLAlchemyError") -> FruitsError:
    """An error of the catalog's database as a message.

    A ``TransientError`` when PostgreSQL does not answer, ends a connection, or refuses a transaction beside another one
    (a serialization failure, a deadlock), and when another program holds the lock of SQLite's file.
    """
    from sqlalchemy.exc import InterfaceError, OperationalError
    from sqlalchemy.exc import TimeoutError as NoConnectionError

    shown = settings.catalog_uri.get_secret_value().rpartition("@")[2]
    reason = str(error).splitlines()[0]
    if isinstance(error, OperationalError) and _LOCKED.search(reason):
        return TransientError(f"catalog database {shown}: {reason}; another program writes to the file, try again")
    cut = isinstance(error, OperationalError | InterfaceError) or getattr(error, "connection_invalidated", False)
    passing = isinstance(error, NoConnectionError) or (cut and settings.catalog_kind == "postgresql")
    kind = TransientError if passing else FruitsError
    return kind(f"catalog database {shown}: {reason}; check FRUITS_CATALOG_URI")


def glue_problem(settings: Settings, error: Exception) -> FruitsError:
    """Turn an error of boto3 in front of Glue into a message that says what to check."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    place = f"Glue ({settings.s3_region}), database {settings.namespace!r}"
    if code in _GLUE_TRANSIENT or isinstance(error, NoConnection | HTTPClientError):
        return TransientError(f"{place}: {error}; check the network and FRUITS_S3_REGION")
    return FruitsError(
        f"{place}: {error}; check FRUITS_CATALOG_URI, FRUITS_S3_REGION, FRUITS_NAMESPACE and the AWS credentials"
    )


@dataclass(frozen=True)
class TableState:
    """A table's snapshots with their parents, and where ``main`` and the other branches and tags (``refs``) are."""

    main: int
    snapshots: frozenset[int]
    refs: Mapping[str, int]
    parents: Mapping[int, int | None] = field(default_factory=dict)

    def line(self, snapshot_id: int) -> Iterator[int]:
        """A snapshot and its ancestors, the newest first."""
        at: int | None = snapshot_id
        while at is not None:
            yield at
            at = self.parents.get(at)


@dataclass(frozen=True)
class DataFile:
    """A data file of a table: its partition, size and rows, and the merge-on-read deletes that apply to it."""

    partition: str
    bytes: int
    rows: int
    delete_files: int = 0
    deleted_rows: int = 0


class Lake:
    """The tables of one lake, through PyIceberg. Cheap to open; reads the catalog at each call."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.catalog = open_catalog(settings)

    @classmethod
    def open(cls, settings: Settings) -> "Lake":
        """Open the lake; its tables are made where they are missing, each with an empty first snapshot.

        The tables get the columns that they lack, which the property ``fruits.lake-columns`` tells by their number. A
        lake that lacks none costs one read of metadata.
        """
        return cls._open(settings, tries=5)

    @classmethod
    def _open(cls, settings: Settings, tries: int) -> "Lake":
        from botocore.exceptions import BotoCoreError, ClientError
        from sqlalchemy.exc import IntegrityError, SQLAlchemyError

        try:
            lake = cls(settings)
            with denials_explained():
                lake._create_missing_tables()
        except SQLAlchemyError as error:
            # The first programs to open a new lake all make the same tables: a program that was outrun looks again.
            outrun = isinstance(error, IntegrityError) or "already exists" in str(error)
            if outrun and tries > 1:
                return cls._open(settings, tries - 1)
            raise database_problem(settings, error) from error
        except (BotoCoreError, ClientError) as error:
            raise glue_problem(settings, error) from error
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise FruitsError(f"lake {settings.lake}: {reason}; {advice(error)}") from error
        return lake

    def table(self, name: TableName) -> "Table":
        """The table, with its metadata as of now.

        Raises:
            FruitsError: when the catalog names a metadata file that is gone.
        """
        try:
            return self.catalog.load_table((self.settings.namespace, name))
        except FileNotFoundError as error:
            raise FruitsError(
                f"table {name}: the catalog names a metadata file that is not in the lake ({error}), as after the "
                "restoration of an old backup; `fruits catalog rebuild` brings the catalog up to date"
            ) from error

    def names(self) -> set[str]:
        """The tables that there are; a lake of an older format lacks those that came later."""
        return {name for _, name in self.catalog.list_tables(self.settings.namespace)}

    def head(self, name: TableName, ref: str = "main") -> int | None:
        """Snapshot id that ``ref`` points to; None when there is no such branch or tag."""
        snapshot = self.table(name).snapshot_by_name(ref)
        return snapshot.snapshot_id if snapshot else None

    def scan(
        self,
        name: TableName,
        snapshot_id: int | None,
        columns: Sequence[str] = ("*",),
        **equal: str,
    ) -> "DataScan":
        """A scan of a table at a snapshot (None: now), of the rows where each column in ``equal`` has that value.

        A snapshot of an earlier release lacks columns that were added since; the scan leaves those out.

        Raises:
            FruitsError: when the snapshot has expired.
        """
        from pyiceberg.expressions import AlwaysTrue, And, EqualTo

        condition: Any = AlwaysTrue()
        for column, value in equal.items():
            condition = And(condition, EqualTo(column, value))
        table = self.table(name)
        snapshot = check_snapshot(table, snapshot_id) if snapshot_id is not None else None
        if snapshot is not None and snapshot.schema_id is not None:
            schema = table.schemas()[snapshot.schema_id]
            columns = [column for column in columns if column == "*" or column in schema.column_names]
        return table.scan(row_filter=condition, selected_fields=tuple(columns), snapshot_id=snapshot_id)

    def read(
        self,
        name: TableName,
        snapshot_id: int | None,
        columns: Sequence[str] = ("*",),
        **equal: str,
    ) -> pa.Table:
        """The rows of a ``scan``, all of them in memory."""
        return self.scan(name, snapshot_id, columns, **equal).to_arrow()

    def batches(
        self,
        name: TableName,
        snapshot_id: int | None,
        columns: Sequence[str] = ("*",),
        *,
        keys: Sequence[str] | None = None,
        by: str = "key",
        since: int | None = None,
        **equal: str,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a ``scan``, in the order of the files; at most 8,192 in a batch.

        With ``keys`` (sorted) only the rows of these keys, or of these values of another column ``by``; ``columns``
        have it as well. Files and row groups whose bounds hold none of them are not read. With ``since`` only the rows
        of files that this snapshot has not.

        Memory is bounded by a row group as it is stored, 8 MB (128 MB in files of older releases), and four files of up
        to 32 MB, which are read ahead; without vectors, by some megabytes. PyIceberg (0.12) gives batches of whole
        files in memory, decoded, several at once.
        """
        scan = self.scan(name, snapshot_id, columns, **equal)
        yield from scanned_batches(scan, self.scan_tasks(name, scan, since), keys=keys, by=by, **equal)

    def state(self, name: TableName) -> TableState:
        """A table's refs and snapshots."""
        table = self.table(name)
        refs = {ref: at.snapshot_id for ref, at in table.refs().items()}
        parents = {snapshot.snapshot_id: snapshot.parent_snapshot_id for snapshot in table.snapshots()}
        return TableState(refs.pop("main"), frozenset(parents), refs, parents)

    def scan_tasks(self, name: TableName, scan: "DataScan", since: int | None) -> "Iterator[FileScanTask]":
        """The files of a scan, without those of a snapshot ``since``."""
        before = self.table(name).scan(snapshot_id=since).plan_files() if since is not None else ()
        known = {task.file.file_path for task in before}
        return (task for task in scan.plan_files() if task.file.file_path not in known)

    def files(self, name: TableName, snapshot_id: int, *, since: int | None = None) -> list[DataFile]:
        """The data files of a table at a snapshot; with ``since``, without those of that snapshot."""
        return [
            DataFile(
                partition=str(task.file.partition),
                bytes=task.file.file_size_in_bytes,
                rows=task.file.record_count,
                delete_files=len(task.delete_files),
                deleted_rows=sum(deletes.record_count for deletes in task.delete_files),
            )
            for task in self.scan_tasks(name, self.table(name).scan(snapshot_id=snapshot_id), since)
        ]

    def format(self) -> int:
        """The lake's format version."""
        return _format(self.table("publications"))

    def check_format(self) -> int:
        """See that this software knows the lake's format, and return the format.

        Raises:
            FruitsError: when a newer release wrote the lake; names both formats.
        """
        return check_known_format(self.settings, self.table("publications"))

    def set_format(self) -> None:
        """Record that the lake has the format of this software."""
        self.set_properties({_FORMAT_PROPERTY: str(LAKE_FORMAT)})

    def properties(self) -> Mapping[str, str]:
        """The lake's own properties, which its table ``publications`` holds."""
        return dict(self.table("publications").properties)

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Set some of the lake's own properties; again when another commit was quicker."""
        self._set_properties_of("publications", properties)

    def _set_properties_of(self, name: TableName, properties: Mapping[str, str]) -> None:
        from pyiceberg.exceptions import CommitFailedException

        for tries_left in reversed(range(_PROPERTY_TRIES)):
            try:
                with self.table(name).transaction() as transaction:
                    transaction.set_properties(dict(properties))
            except CommitFailedException:  # PyIceberg repeats only commits of rows
                if not tries_left:
                    raise
                time.sleep(0.05)
            else:
                return

    def check_location(self) -> None:
        """See that the catalog's tables are the lake's: in Glue, for example, another lake may use the same database.

        Raises:
            FruitsError: when the tables are in another lake.
        """
        location = self.table("publications").location()
        if not location.startswith(f"{self.settings.warehouse}/"):
            raise FruitsError(
                f"FRUITS_LAKE is {self.settings.lake}, but the catalog's tables are in "
                f"{location.rpartition('/tables/')[0]}; set FRUITS_LAKE and FRUITS_CATALOG_URI to the same lake, or "
                "FRUITS_NAMESPACE to this lake's"
            )

    def holds(self, prefix: str) -> bool:
        """Whether any published row, a feature or a quarantined object, has a key that starts with ``prefix``."""
        from pyiceberg.expressions import AlwaysTrue, StartsWith

        condition = StartsWith("key", prefix) if prefix else AlwaysTrue()
        scans = (
            self.table(name).scan(row_filter=condition, selected_fields=("key",), limit=1)
            for name in ("features", "quarantine")
        )
        return any(scan.to_arrow().num_rows for scan in scans)

    def some_keys(self, snapshot_id: int | None, most: int) -> list[str]:
        """Keys of at most ``most`` photos that were read once, from ``features`` at a snapshot (None: now)."""
        scan = self.table("features").scan(selected_fields=("key",), limit=most, snapshot_id=snapshot_id)
        keys: list[str] = scan.to_arrow()["key"].to_pylist()
        return keys

    def _create_missing_tables(self) -> None:
        from pyiceberg.exceptions import NoSuchNamespaceError

        try:
            existing = self.names()
        except NoSuchNamespaceError:  # only then: many roles may work in a database and not create one
            self.catalog.create_namespace_if_not_exists(self.settings.namespace)
            existing = set()
        if "publications" in existing:
            publications = self.table("publications")
            check_known_format(self.settings, publications)  # before anything is made in a lake of a newer format
            older = _is_older(publications.properties)
        else:
            self._check_nothing_is_published()
            older = True  # maybe: an earlier release may have made some of the tables
        for definition in TABLES:  # `publications` comes last, so that an interrupted program leaves the lake older
            if definition.name not in existing:
                self._create(definition)
            elif older:
                self._add_missing_columns(definition)
                self._set_missing_properties(definition)

    def _add_missing_columns(self, definition: TableDefinition) -> None:
        """Add the nullable columns that a table of earlier software lacks; its rows have null there.

        Software of that release goes on reading the table, and published snapshots are read as they were.
        """
        from pyiceberg.exceptions import CommitFailedException

        for last in (False, True):
            table = self.table(definition.name)
            if set(definition.schema.names) <= set(table.schema().column_names):
                return
            try:
                with table.update_schema() as change:
                    change.union_by_name(definition.schema)
            except CommitFailedException:  # another process was quicker, maybe with the same columns
                if last:
                    raise

    def _set_missing_properties(self, definition: TableDefinition) -> None:
        """Set the properties that a table of earlier software lacks; files that are there stay as they are."""
        properties = self.table(definition.name).properties
        missing = {name: value for name, value in _TABLE_PROPERTIES.items() if name not in properties}
        if definition.name == "publications" and _columns_noted(properties) < _number_of_columns():
            missing[_COLUMNS_PROPERTY] = str(_number_of_columns())
        if missing:
            self._set_properties_of(definition.name, missing)

    def _check_nothing_is_published(self) -> None:
        """See that no new tables are made over published ones, whose files maintenance would remove.

        Raises:
            FruitsError: when the lake has rows of ``publications``, which this catalog does not know.
        """
        rows = list_files(lake_store(self.settings), f"tables/{self.settings.namespace}/publications/data")
        if next(rows, None) is not None:
            raise FruitsError(
                f"lake {self.settings.lake} has published tables, of which the catalog knows nothing; correct "
                "FRUITS_CATALOG_URI, FRUITS_CATALOG_NAME and FRUITS_NAMESPACE, or set FRUITS_LAKE to a new place. If "
                "the catalog's database is lost: `fruits catalog rebuild` makes the catalog again from the lake"
            )

    def _create(self, definition: TableDefinition) -> None:
        from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError

        try:
            with self.catalog.create_table_transaction(
                (self.settings.namespace, definition.name), definition.schema, properties=_properties(definition)
            ) as transaction:
                if definition.partition_by:
                    with transaction.update_spec() as spec:
                        spec.add_identity(definition.partition_by)
                # Branches start from a snapshot. With an empty first snapshot, no table is a special case.
                with transaction.update_snapshot({RUN_PROPERTY: "none: made with the table"}).fast_append():
                    pass
        except (CommitFailedException, TableAlreadyExistsError):
            if not self.catalog.table_exists((self.settings.namespace, definition.name)):
                raise
            # Otherwise another process was quicker.


def _format(publications: "Table") -> int:
    return int(publications.properties.get(_FORMAT_PROPERTY, 1))


def check_known_format(settings: Settings, publications: "Table") -> int:
    """See that this software knows the format of a lake by its table ``publications``, and return the format.

    Raises:
        FruitsError: when a newer release wrote the lake; names both formats.
    """
    found = _format(publications)
    if found > LAKE_FORMAT:
        raise FruitsError(
            f"lake {settings.lake} has format {found}; Fruits {fruits.__version__} knows formats up to "
            f"{LAKE_FORMAT}. Install the release that wrote the lake, or a newer one"
        )
    return found


def check_snapshot(table: "Table", snapshot_id: int) -> "Snapshot":
    """The snapshot of a table.

    Raises:
        FruitsError: when it has expired; names table and snapshot.
    """
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        raise FruitsError(
            f"table {table.name()[-1]}: snapshot {snapshot_id} has expired, and its rows are gone; clear a run that "
            "needs them from `wait_for_lease`, or choose a newer publication (`fruits status --publications`)"
        )
    return snapshot


def scanned_batches(
    scan: "DataScan",
    tasks: "Iterable[FileScanTask]",
    *,
    keys: Sequence[str] | None = None,
    by: str = "key",
    **equal: str,
) -> Iterator[pa.RecordBatch]:
    """The rows of files of a scan whose column ``by`` is among sorted ``keys``, and of values ``equal`` only.

    Columns that came after a file are null. ``Lake.batches`` says how much memory that takes.
    """
    import pyarrow.compute as pc
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import _combine_positional_deletes, _read_all_delete_files, schema_to_pyarrow

    fields = scan.projection().fields
    names = [field.name for field in fields]
    types = {field.name: _as_in_files(field.type) for field in schema_to_pyarrow(scan.projection())}
    small = _SMALL_FILE_BYTES if any(not field.field_type.is_primitive for field in fields) else _TINY_FILE_BYTES
    holding = _holding(list(tasks), scan.projection(), keys, by)
    deletes = _read_all_delete_files(scan.io, holding)
    for task, file in _opened(scan.io, holding, small):
        deleted = deletes.get(task.file.file_path)
        left = {} if task.residual == AlwaysTrue() else equal  # what the file's partition leaves to be compared
        for start, rows in _rows(file, [*{*names, *left}], keys, by):
            end = start + rows.num_rows
            live = rows.take(_combine_positional_deletes(deleted, start, end)) if deleted else rows
            for column, value in left.items():
                live = live.filter(pc.equal(live[column], value))
            if keys is not None:
                live = live.filter(pc.is_in(live[by], pa.array(keys, pa.string())))
            for column in types.keys() - {*live.schema.names}:
                live = live.append_column(column, pa.nulls(live.num_rows, types[column]))
            if live.num_rows:
                yield live.select(names)


def _as_in_files(kind: pa.DataType) -> pa.DataType:
    """The type of a column in Parquet files; PyIceberg names texts by their larger form."""
    return pa.string() if pa.types.is_large_string(kind) else kind


def _is_older(properties: Mapping[str, str]) -> bool:
    """Whether tables of the lake may lack columns or properties, by the properties of its table ``publications``."""
    return _columns_noted(properties) < _number_of_columns() or not _TABLE_PROPERTIES.keys() <= properties.keys()


def _columns_noted(properties: Mapping[str, str]) -> int:
    return int(properties.get(_COLUMNS_PROPERTY, 0))


def _number_of_columns() -> int:
    return sum(len(definition.schema) for definition in TABLES)


def _properties(definition: TableDefinition) -> dict[str, str]:
    """The properties of a new table; those of ``publications`` say the lake's format and the number of columns."""
    of_lake = {_FORMAT_PROPERTY: str(LAKE_FORMAT), _COLUMNS_PROPERTY: str(_number_of_columns())}
    of_publications = of_lake if definition.name == "publications" else {}
    row_groups = {_ROW_GROUP_PROPERTY: str(definition.row_group_bytes or ROW_GROUP_BYTES)}
    # The version is not kept as a property.
    return {"format-version": "2", **_TABLE_PROPERTIES, **row_groups, **of_publications}


def _holding(
    tasks: "list[FileScanTask]", schema: "Schema", keys: Sequence[str] | None, by: str
) -> "list[FileScanTask]":
    """The files that may hold one of the sorted ``keys`` (None: all files) of a column, by the bounds in the catalog.

    Bounds of long keys may be cut off, the upper one to a larger text.
    """
    if keys is None:
        return tasks
    key = schema.find_field(by).field_id

    def bounds(file: "IcebergFile") -> Iterator[str | None]:
        for known in (file.lower_bounds, file.upper_bounds):
            bound = (known or {}).get(key)
            yield None if bound is None else bound.decode()

    return [task for task in tasks if _any_within(keys, *bounds(task.file))]


def _rows(
    file: "pq.ParquetFile", columns: Sequence[str], keys: Sequence[str] | None, by: str
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of a file with their place in it, without row groups that hold none of the sorted ``keys``."""
    start = 0
    # One by one, because groups that are asked for together are read together.
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        place = start
        start += group.num_rows
        if keys is not None and not _any_within(keys, *_group_bounds(group, by)):
            continue
        for rows in file.iter_batches(_BATCH_ROWS, row_groups=[number], columns=columns):
            yield place, rows
            place += rows.num_rows


def _group_bounds(group: "pq.RowGroupMetaData", by: str) -> tuple[str | None, str | None]:
    """The bounds of a column of text in a row group."""
    columns = (group.column(place) for place in range(group.num_columns))
    statistics = next(column.statistics for column in columns if column.path_in_schema == by)
    return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else (None, None)


def _any_within(keys: Sequence[str], lowest: str | None, highest: str | None) -> bool:
    """Whether any of the sorted ``keys`` is between two bounds; a bound that is not known is None."""
    at = 0 if lowest is None else bisect_left(keys, lowest)
    return at < len(keys) and (highest is None or keys[at] <= highest)


def _opened(
    io: "FileIO", tasks: "Sequence[FileScanTask]", small: int
) -> "Iterator[tuple[FileScanTask, pq.ParquetFile]]":
    """The data files of ``tasks``, a few opened ahead: with S3, each request takes a while.

    Files of at most ``small`` bytes are read ahead, as a whole.
    """
    import pyarrow.parquet as pq

    def opened(task: "FileScanTask") -> pq.ParquetFile:
        source = io.new_input(task.file.file_path).open()
        if task.file.file_size_in_bytes <= small:
            return pq.ParquetFile(pa.BufferReader(source.read()))
        return pq.ParquetFile(source, pre_buffer=small == _TINY_FILE_BYTES)  # the few columns of a group by one request

    with ThreadPoolExecutor(_FILES_AHEAD) as pool:
        for first in range(0, len(tasks), _FILES_AHEAD):
            few = tasks[first : first + _FILES_AHEAD]
            yield from zip(few, pool.map(opened, few), strict=True)
