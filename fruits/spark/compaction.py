"""Keep the lake small and fast: rewrite files, check that the rows are the same, and drop what nothing needs."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from fruits.errors import ConflictError, FruitsError, TransientError
from fruits.lake.branches import change_refs
from fruits.lake.schemas import DATA_TABLES, TableDefinition, TableName
from fruits.run.documents import run_store
from fruits.run.upkeep import (
    FEWEST_SMALL_FILES,
    LARGEST_DELETED_SHARE,
    SMALL_FILE_BYTES,
    TARGET_FILE_BYTES,
    Upkeep,
)
from fruits.settings import Settings
from fruits.spark.tables import Tables
from fruits.stores import list_files, remove_files

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject  # type: ignore[import-untyped]
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("fruits")

_OF_VERSIONS: tuple[TableName, ...] = ("embeddings", "pca_models")
Fingerprint = tuple[int, int | None]
ScanTasks = dict[tuple[str, frozenset[str]], "list[JavaObject]"]

_BEFORE_ALL = "TIMESTAMP '1970-01-01 00:00:00'"


def drop_unneeded(tables: Tables, upkeep: Upkeep) -> None:
    """Delete PCA versions with their embeddings, and retired backbones, from the branch.

    That drops whole files of vectors and embeddings, because these are partitioned by backbone and by version.
    """
    if upkeep.expired_versions:
        for name in _OF_VERSIONS:
            tables.delete_versions(name, upkeep.expired_versions)
    if upkeep.retired_backbones:
        for name in DATA_TABLES:
            tables.delete_backbones(name, upkeep.retired_backbones)


def rewrite(tables: Tables, definition: TableDefinition, *, rewrite_all: bool) -> None:
    """Rewrite a table's small and much deleted files on the branch, in order; others are left alone."""
    options = {
        "target-file-size-bytes": TARGET_FILE_BYTES,
        "min-file-size-bytes": SMALL_FILE_BYTES,
        "max-file-size-bytes": 2**62,  # large files are as good as they are
        "min-input-files": FEWEST_SMALL_FILES,
        "delete-ratio-threshold": LARGEST_DELETED_SHARE,
        "max-file-group-size-bytes": 64 * TARGET_FILE_BYTES,  # what one sort takes on at a time
        "use-starting-sequence-number": "false",  # so that Iceberg drops the deletes that the rewritten files had
        "rewrite-all": str(rewrite_all).lower(),
    }
    listed = ", ".join(f"'{name}', '{value}'" for name, value in options.items())
    result = tables.call(
        "rewrite_data_files",
        definition.name,
        f"branch => '{tables.writer.branch}', strategy => 'sort', sort_order => '{definition.sort_by}', "
        f"options => map({listed})",
    )
    log.info(
        "compacted %s: %d files into %d",
        definition.name,
        result[0]["rewritten_data_files_count"],
        result[0]["added_data_files_count"],
    )


def drop_dangling_deletes(tables: Tables, name: TableName) -> None:
    """Remove delete files of data files that are gone from the branch.

    Iceberg's own way to do so (1.12) knows the branch `main` only.
    """
    gateway = tables.spark._jvm.org.apache.iceberg  # type: ignore[union-attr]  # noqa: SLF001 -- no Python API
    table = iceberg_table(tables, name)
    manifests = list(table.snapshot(tables.writer.branch).deleteManifests(table.io()))
    if not manifests:
        return
    used = {
        deletes.location()
        for task in closing(table.newScan().useRef(tables.writer.branch).planFiles())
        for deletes in task.deletes()
    }
    unused = [
        deletes.copy()
        for manifest in manifests
        for deletes in closing(gateway.ManifestFiles.readDeleteManifest(manifest, table.io(), table.specs()))
        if deletes.location() not in used
    ]
    if unused:
        change = table.newRewrite().toBranch(tables.writer.branch)
        for deletes in unused:
            change.deleteFile(deletes)
        change.commit()


def closing(iterable: "JavaObject") -> Iterator["JavaObject"]:
    """The items of one of Iceberg's iterables that hold a file open."""
    try:
        iterator = iterable.iterator()
        while iterator.hasNext():
            yield iterator.next()
    finally:
        iterable.close()


def check_rows(tables: Tables, name: TableName, before: int, after: int, upkeep: Upkeep) -> None:
    """See that a table has the rows that it had, but for dropped PCA versions and backbones.

    Reads the files that differ between the snapshots, and those whose delete files do: the rows of others are the same.

    Raises:
        FruitsError: when it has not: nothing is published then.
    """
    replaced, written = changed_files(tables, name, before, after)
    dropped = {"pca_id": upkeep.expired_versions if name in _OF_VERSIONS else ()}
    dropped["model_id"] = upkeep.retired_backbones if name in DATA_TABLES else ()
    expected = fingerprint_of_files(tables, name, replaced, dropped)
    found = fingerprint_of_files(tables, name, written, {})
    if expected != found:
        raise FruitsError(
            f"table {name}: {found[0]:,} rows in the compacted files where {expected[0]:,} were expected, or other "
            "values; nothing is published and readers stay where they were. This is a defect: please report it with "
            "this log."
        )


def changed_files(
    tables: Tables, name: TableName, before: int, after: int
) -> "tuple[list[JavaObject], list[JavaObject]]":
    """The scan tasks of a table's files that a snapshot alone has, or has with other delete files: before and after."""
    was, now = scan_tasks(tables, name, before), scan_tasks(tables, name, after)
    return only_in(was, now), only_in(now, was)


def scan_tasks(tables: Tables, name: TableName, snapshot: int) -> ScanTasks:
    """The scan tasks of a table at a snapshot, by the data file and its delete files."""
    tasks: ScanTasks = defaultdict(list)
    for task in closing(iceberg_table(tables, name).newScan().useSnapshot(snapshot).planFiles()):
        deletes = frozenset(deletes.location() for deletes in task.deletes())
        tasks[task.file().location(), deletes].append(task)
    return tasks


def only_in(some: ScanTasks, others: ScanTasks) -> "list[JavaObject]":
    """The tasks of files that ``others`` has not, or not as often."""
    return [task for file, tasks in some.items() if len(tasks) != len(others.get(file, ())) for task in tasks]


def fingerprint_of_files(
    tables: Tables, name: TableName, tasks: "list[JavaObject]", dropped: Mapping[str, Collection[str]]
) -> Fingerprint:
    """Fingerprint of the rows of some files that are not deleted and have none of the ``dropped`` values in a column.

    Reads the files that it is given in the way in which Iceberg's own rewriting does.
    """
    if not tasks:
        return 0, None
    spark, table, group = tables.spark, iceberg_table(tables, name), str(uuid4())
    jvm: Any = spark._jvm  # noqa: SLF001 -- no Python API
    gateway, staged = jvm.org.apache.iceberg.spark, jvm.java.util.ArrayList()
    for task in tasks:
        staged.add(task)
    cache = table_cache(spark)
    cache.add(group, table)
    gateway.ScanTaskSetManager.get().stageTasks(table, group, staged)
    try:
        spark.conf.set("spark.sql.catalog.staged", "org.apache.iceberg.spark.SparkRewriteTableCatalog")
        rows = spark.table(f"staged.`{group}`")
        for column, values in dropped.items():
            rows = rows.where(~rows[column].isin(*values)) if values else rows
        return fingerprint(rows)
    finally:
        gateway.ScanTaskSetManager.get().removeTasks(table, group)
        cache.remove(group)


def table_cache(spark: "SparkSession") -> "JavaObject":
    """Iceberg's ``SparkTableCache``.

    By reflection: of its two methods ``get`` Py4J takes the first, and which of them is first is up to the JVM. With an
    archive of classes it is the one that is not static, and Py4J says that there is none.
    """
    jvm: Any = spark._jvm  # noqa: SLF001 -- no Python API
    gateway: Any = spark.sparkContext._gateway  # noqa: SLF001
    new_array = gateway.new_array
    kind = jvm.java.lang.Class.forName("org.apache.iceberg.spark.SparkTableCache")
    return kind.getMethod("get", new_array(jvm.java.lang.Class, 0)).invoke(None, new_array(jvm.java.lang.Object, 0))


def iceberg_table(tables: Tables, name: TableName) -> "JavaObject":
    """A table as Iceberg's own classes know it."""
    spark = tables.spark
    gateway = spark._jvm.org.apache.iceberg.spark  # type: ignore[union-attr]  # noqa: SLF001 -- no Python API
    return gateway.Spark3Util.loadIcebergTable(spark._jsparkSession, tables.identifier(name))  # noqa: SLF001


def fingerprint(rows: "DataFrame") -> Fingerprint:
    """Number of rows, and a sum of their hashes over all columns: the same whatever their order."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name
    from pyspark.sql.types import MapType

    columns = [
        F.to_json(field.name) if isinstance(field.dataType, MapType) else F.col(field.name) for field in rows.schema
    ]
    total = rows.select(F.xxhash64(*columns).cast("decimal(38,0)").alias("hash"))
    (found,) = total.agg(F.count("*").alias("rows"), F.sum("hash").alias("hashes")).collect()
    return int(found.rows), None if found.hashes is None else int(found.hashes)


def expire(tables: Tables, upkeep: Upkeep) -> dict[TableName, int]:
    """Set and drop refs, then expire the snapshots that none of them needs, and remove their files.

    Returns how many files were removed, by table.

    Raises:
        TransientError: when somebody works on a branch that was to be dropped.
    """
    removed: dict[TableName, int] = {}
    for name, refs in upkeep.tables.items():
        try:
            change_refs(tables.lake, name, refs.tags, {**refs.dropped_tags, **refs.dropped_branches})
        except ConflictError as error:
            raise TransientError(
                f"table {name}: a run that was taken for dead works on its branch again, which is kept; maintenance is "
                "tried again"
            ) from error
        if refs.expired:
            listed = ", ".join(f"{snapshot}L" for snapshot in refs.expired)
            # By id alone: `older_than`, five days by default, would take others as well.
            files = tables.call(
                "expire_snapshots", name, f"older_than => {_BEFORE_ALL}, snapshot_ids => array({listed})"
            )
            removed[name] = sum(count or 0 for count in files[0].asDict().values())
    return removed


def remove_orphans(tables: Tables, name: TableName, older_than: datetime, *, dry_run: bool) -> int:
    """Remove files that no snapshot of a table refers to, if they are too old for a run's unfinished work."""
    listing = "true" if tables.lake.settings.lake_kind == "s3" else "false"
    found = tables.call(
        "remove_orphan_files",
        name,
        f"older_than => TIMESTAMP '{older_than:%Y-%m-%d %H:%M:%S}', dry_run => {str(dry_run).lower()}, "
        f"prefix_listing => {listing}",
    )
    return len(found)


def remove_run_folders(settings: Settings, upkeep: Upkeep) -> None:
    """Delete the documents and manifests of old runs."""
    for key in upkeep.old_folders:
        store = run_store(settings, key)
        remove_files(store, *[item["path"] for item in list_files(store)])
