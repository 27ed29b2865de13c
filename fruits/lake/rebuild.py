"""Rebuild the catalog's database from the lake: each table at its newest metadata file.

The catalog only names the current metadata file of each table. A restored backup names older files, and many of these
files are gone. A run on such a catalog would write a second line of versions into the lake. The lake itself suffices
for a rebuild: the number in a metadata file's name grows by one with each commit, and the rows of ``publications`` name
the snapshots that readers see.

A lost commit also leaves a metadata file. Its number is at most one above the number of the current version.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake, catalog_properties, check_known_format, open_catalog
from fruits.lake.publication import Publication, current_base, publications_of
from fruits.lake.reader import NoLakeError, catalog_is_absent, missing_parts
from fruits.lake.schemas import DATA_TABLES, TableName
from fruits.settings import Settings
from fruits.stores import effect, lake_store, list_files

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

Action = Literal["register", "move", "keep", "create"]

_NAMES: tuple[TableName, ...] = (*DATA_TABLES, "publications")
_METADATA_NAME = re.compile(r"(\d+)-[0-9a-f-]{36}(\.gz)?\.metadata\.json")


@dataclass(frozen=True)
class TableFinding:
    """A table in the catalog and in the lake.

    Attributes:
        name: The table.
        registered: Metadata file that the catalog names; None if the catalog does not know the table.
        registered_exists: Whether the registered file is in the lake.
        newest: The newest metadata file in the lake; None without a file.
        action: What a rebuild does: ``register`` the table, ``move`` the catalog's entry to ``newest``, or ``keep`` the
            entry. ``create``: neither catalog nor lake has the table, and the next run creates it.
    """

    name: TableName
    registered: str | None
    registered_exists: bool
    newest: str | None
    action: Action


@dataclass(frozen=True)
class Rebuild:
    """The plan of a rebuild: the tables, ``publications`` last, and the publication that readers will see."""

    tables: tuple[TableFinding, ...]
    publication: Publication | None

    @property
    def changes(self) -> tuple[TableFinding, ...]:
        """The tables whose entry in the catalog changes."""
        return tuple(table for table in self.tables if table.action in ("register", "move"))


def plan_rebuild(settings: Settings) -> Rebuild:
    """Compare catalog and lake; change nothing.

    Raises:
        FruitsError: if the lake has no tables, or lacks files that readers need; if the catalog is newer than the
            lake's files, or belongs to another line of versions; if the catalog is Glue.
    """
    if settings.lake_kind == "file" and not Path(unquote(urlsplit(settings.lake).path)).is_dir():
        raise NoLakeError(f"no lake there: {settings.lake} does not exist; check FRUITS_LAKE")
    registered = _registered(settings)
    tables = {name: _find(settings, name, registered.get(name)) for name in _NAMES}
    newest = tables["publications"].newest
    if newest is None:
        raise FruitsError(
            f"lake {settings.lake}: no metadata file of the table publications in namespace {settings.namespace!r}, "
            "so there is nothing to make a catalog from; check FRUITS_LAKE and FRUITS_NAMESPACE, or bring back the "
            "lake's files"
        )
    table = _open(settings, newest)
    check_known_format(settings, table)
    published = publications_of(table)
    for publication in published[-1:]:
        _check_readable(settings, publication, tables)
    return Rebuild(tuple(tables.values()), published[-1] if published else None)


def rebuild(settings: Settings, planned: Rebuild) -> Publication | None:
    """Change the catalog as planned; return the publication that readers see, None if nothing was ever published.

    One transaction changes all tables or none. If a publication was interrupted, ``main`` of the other tables then
    follows its row, as after any crash.

    Raises:
        FruitsError: if the catalog has changed since the plan.
    """
    from pyiceberg.exceptions import NamespaceAlreadyExistsError
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.orm import Session

    catalog = open_catalog(settings)
    with suppress(NamespaceAlreadyExistsError):
        catalog.create_namespace(settings.namespace)
    try:
        with effect("commit", "catalog"), Session(_engine(catalog)) as session, session.begin():
            for table in planned.changes:
                _change(session, catalog, settings, table)
    except IntegrityError as error:
        raise _changed(settings) from error
    lake = Lake(settings)
    missing = any(table.action == "create" for table in planned.tables)
    return planned.publication if missing or planned.publication is None else current_base(lake).publication


def check_catalog_is_current(lake: Lake) -> None:
    """Check that the catalog is not older than the lake; a run would otherwise write a second line of versions.

    The check mostly costs two requests for each table. A file with the next number proves nothing, because a lost
    commit may have left it.

    Raises:
        FruitsError: if the lake has newer metadata files; names the command that rebuilds the catalog.
    """
    for name in _NAMES:
        newest = _newer_version(lake, name)
        if newest is not None:
            raise FruitsError(
                f"lake {lake.settings.lake}: the catalog is older than the lake, as after the restoration of a backup: "
                f"the newest version of the table {name} is {newest}; `fruits catalog rebuild` brings the catalog up "
                "to date"
            )


def _newer_version(lake: Lake, name: TableName) -> str | None:
    """A metadata file that is at least two versions newer than the catalog's; None without such a file."""
    files = _metadata_files(lake.settings, name, least=_number(lake.table(name).metadata_location) + 2)
    if not files:
        return None
    current = lake.table(name).metadata_location  # read after the listing, because other runs may commit meanwhile
    newer = _number(files[-1]) > _number(current) + 1 and _descends(_open(lake.settings, files[-1]), current)
    return files[-1] if newer else None


def _registered(settings: Settings) -> Mapping[str, str]:
    """The metadata files that the catalog names, by table; empty if the database has no catalog.

    Raises:
        FruitsError: if the catalog is Glue, or the database has the tables under another catalog's name.
    """
    from pyiceberg.catalog.sql import IcebergTables
    from sqlalchemy import select
    from sqlalchemy.exc import OperationalError, ProgrammingError
    from sqlalchemy.orm import Session

    if settings.catalog_kind == "glue":
        raise FruitsError(
            f"catalog rebuild: Glue keeps the tables of database {settings.namespace!r} itself and is restored from "
            "no backup. If the database was deleted, register each table's newest metadata file in Spark: "
            f"`CALL {settings.catalog_name}.system.register_table('{settings.namespace}.features', '<file>')`; the "
            f"files are in {settings.warehouse}/{settings.namespace}/<table>/metadata, and the newest has the highest "
            "number"
        )
    if missing_parts(settings):  # opening the catalog would make SQLite's file
        return {}
    columns = (IcebergTables.catalog_name, IcebergTables.table_name, IcebergTables.metadata_location)
    try:
        with Session(_engine(open_catalog(settings, init_catalog_tables="false"))) as session:
            rows = session.execute(select(*columns).where(IcebergTables.table_namespace == settings.namespace)).all()
    except (OperationalError, ProgrammingError) as error:
        if catalog_is_absent(error):
            return {}
        raise
    for catalog_name, table, location in rows:
        if catalog_name != settings.catalog_name and location.startswith(_folder(settings, table)):
            raise FruitsError(
                f"catalog rebuild: the database has the lake's tables under the catalog's name {catalog_name!r}, not "
                f"{settings.catalog_name!r}; set FRUITS_CATALOG_NAME={catalog_name}"
            )
    return {table: location for catalog_name, table, location in rows if catalog_name == settings.catalog_name}


def _find(settings: Settings, name: TableName, registered: str | None) -> TableFinding:
    files = _metadata_files(settings, name)
    finding = TableFinding(name, registered, registered in files, files[-1] if files else None, "register")
    if registered is None:
        return finding if files else replace(finding, action="create")
    if not registered.startswith(_folder(settings, name)):
        raise FruitsError(
            f"table {name}: the catalog names {registered}, which is not in {_folder(settings, name)}; set "
            "FRUITS_LAKE, FRUITS_CATALOG_URI and FRUITS_NAMESPACE to the same lake"
        )
    if finding.newest is None or (not finding.registered_exists and _number(registered) > _number(finding.newest)):
        newest = f"version {_number(finding.newest):,}" if finding.newest else "none"
        raise FruitsError(
            f"table {name}: the catalog is newer than the lake's files: it names version {_number(registered):,}, "
            f"which is gone, and the newest file is {newest}; bring back the lake's files (versions of the bucket, a "
            f"copy), above all {registered}"
        )
    # If two files have one number, the registered file is the current one.
    if finding.registered_exists and _number(registered) >= _number(finding.newest):
        return replace(finding, newest=registered, action="keep")
    if finding.registered_exists and not _descends(_open(settings, finding.newest), registered):
        raise FruitsError(
            f"table {name}: runs went on with an old catalog, so the lake has two lines of versions: the catalog's "
            f"line is newer, at {registered}, and the other line goes up to {finding.newest}. The catalog stays as it "
            "is, because a rebuild would take back what these runs published; runs on this catalog go on. To go back "
            "to the other line, remove the lake's tables from the catalog's database (iceberg_tables), and rebuild"
        )
    return replace(finding, action="move")


def _folder(settings: Settings, name: str) -> str:
    return f"{settings.warehouse}/{settings.namespace}/{name}/"


def _metadata_files(settings: Settings, name: TableName, least: int = 0) -> list[str]:
    """URIs of a table's metadata files from number ``least`` on, by number and then by time, the newest last.

    The folder has many other files, with random hexadecimal names. S3 lists by name from ``least`` on, so the listing
    has only those other files whose name begins with the same digit. (The listing misses a number with more digits than
    ``least``, because its name comes earlier.)
    """
    folder = f"tables/{settings.namespace}/{name}/metadata"
    start = f"{least:05d}-"
    numbered = []
    for item in list_files(lake_store(settings), folder, offset=f"{folder}/{start}" if least else None):
        file = item["path"].rpartition("/")[2]
        match = _METADATA_NAME.fullmatch(file)
        if match and int(match[1]) >= least:
            numbered.append((int(match[1]), item["last_modified"], file))
        elif least and settings.lake_kind == "s3" and file[0] != start[0]:
            break
    return [f"{settings.lake}/{folder}/{file}" for _, _, file in sorted(numbered)]


def _number(location: str) -> int:
    match = _METADATA_NAME.fullmatch(location.rpartition("/")[2])
    if match is None:
        raise FruitsError(f"{location}: expected the name of a metadata file, <number>-<uuid>.metadata.json")
    return int(match[1])


def _open(settings: Settings, location: str) -> "Table":
    from pyiceberg.table import StaticTable

    return StaticTable.from_metadata(location, catalog_properties(settings))


def _descends(table: "Table", older: str) -> bool:
    """Whether the version ``older`` comes before a table's version, as far back as the table's log goes."""
    log = [entry.metadata_file for entry in table.metadata.metadata_log]
    return older in log or not log or _number(older) < _number(log[0])


def _check_readable(settings: Settings, publication: Publication, tables: Mapping[TableName, TableFinding]) -> None:
    """Check that each table's newest metadata has the published snapshot, and that the lake has its manifest list."""
    for name, snapshot_id in publication.snapshots.items():
        newest = tables[name].newest
        table = _open(settings, newest) if newest else None
        snapshot = table.snapshot_by_id(snapshot_id) if table else None
        if table is None or snapshot is None or not table.io.new_input(snapshot.manifest_list).exists():
            raise FruitsError(
                f"table {name}: publication {publication.publication_id} needs snapshot {snapshot_id}, which "
                f"{newest or 'the lake'} does not have: files of the lake are lost. Bring back what was in "
                f"{_folder(settings, name)}metadata/ (versions of the bucket, a copy)"
            )


def _engine(catalog: "Catalog") -> Any:
    return vars(catalog)["engine"]


def _changed(settings: Settings) -> FruitsError:
    return FruitsError(
        f"catalog {settings.catalog_name!r}: another process changed the catalog after the comparison with the lake, "
        "so the rebuild changed nothing. Stop all runs, and start the command again"
    )


def _change(session: Any, catalog: "Catalog", settings: Settings, table: TableFinding) -> None:
    from pyiceberg.catalog.sql import IcebergTables
    from sqlalchemy import insert, update

    row: dict[str, Any] = vars(type(catalog))["_create_table_row"](
        catalog, settings.namespace, table.name, table.newest
    )
    if table.action == "register":
        session.execute(insert(IcebergTables).values(**row))
        return
    here = (
        IcebergTables.catalog_name == settings.catalog_name,
        IcebergTables.table_namespace == settings.namespace,
        IcebergTables.table_name == table.name,
        IcebergTables.metadata_location == table.registered,
    )
    moved = {"metadata_location": table.newest, "previous_metadata_location": table.registered}
    if not session.execute(update(IcebergTables).where(*here).values(**moved)).rowcount:
        raise _changed(settings)
