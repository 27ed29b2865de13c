"""Keep the lake small and fast: compact, publish the compacted tables, and drop what nobody needs any more.

Reads runs/<run>/plan.json of a maintenance run; writes the tables on the run's branch, publishes them when their rows
are the same as before, drops branches, tags, snapshots, files and run folders past retention, and writes
runs/<run>/maintain.json. Running it again does what is left to do.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from fruits.errors import ConflictError, FruitsError, TransientError
from fruits.lake.branches import change_refs, commit_rows, drop_branch, start_branch
from fruits.lake.publication import Base, Publication, current_base, publication_id, publish
from fruits.lake.schemas import DATA_TABLES, PUBLICATIONS, TABLES, TableDefinition, TableName
from fruits.run.upkeep import (
    FEWEST_SMALL_FILES,
    LARGEST_DELETED_SHARE,
    SMALL_FILE_BYTES,
    TARGET_FILE_BYTES,
    MaintenanceRequest,
    Upkeep,
    log_upkeep,
    survey,
)
from fruits.spark.session import Job, log, run_job
from fruits.stores import lake_store, list_files, remove_files

if TYPE_CHECKING:
    from py4j.java_gateway import JavaObject
    from pyspark.sql import DataFrame

BEFORE_ALL = "TIMESTAMP '1970-01-01 00:00:00'"
DEFINITIONS: Mapping[TableName, TableDefinition] = {definition.name: definition for definition in TABLES}


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("maintain", __doc__ or "", maintain, argv, last=True)


def maintain(job: Job) -> None:
    """Compact and publish, then drop what is not needed; a dry run only counts what it would do."""
    request = MaintenanceRequest(**job.plan["request"])
    if not request.dry_run:
        compact_and_publish(job, request)
    clean_up(job, request)


def compact_and_publish(job: Job, request: MaintenanceRequest) -> None:
    """Publish the same rows in fewer files, without expired PCA versions; nothing to do publishes nothing."""
    base = current_base(job.lake)
    upkeep = survey(job.lake, request, datetime.now(UTC))
    if not base.publication.sequence or not (upkeep.to_compact or upkeep.expired_versions):
        log.info("compaction: every table is in good shape")
        return
    versions = upkeep.expired_versions
    before: dict[TableName, int] = {**base.publication.snapshots, PUBLICATIONS.name: base.publications_snapshot}
    for name, snapshot in before.items():
        start_branch(job.lake, name, job.branch, snapshot)
    with job.document.stage("compact"):
        drop_versions(job, versions)
        for name in upkeep.to_compact:
            rewrite(job, DEFINITIONS[name], rewrite_all=request.rewrite_all)
            drop_dangling_deletes(job, name)
    after = {name: job.lake.state(name).refs[job.branch] for name in before}
    changed = [name for name in before if after[name] != before[name]]
    if not changed:
        log.info("compaction: Iceberg found no file to rewrite")
        drop_branches(job)
        return
    with job.document.stage("check"):
        for name in changed:
            check_rows(job, name, before[name], after[name], versions)
    with job.document.stage("publish"):
        published = publish_compacted(job, base, after)
    job.document.record(
        publication_id=published.publication_id,
        dropped_versions=list(versions),
        layout_before={name: asdict(upkeep.layouts[name]) for name in changed},
    )


def drop_versions(job: Job, versions: tuple[str, ...]) -> None:
    """Delete PCA versions and their embeddings from the run's branch: whole files, for they are partitioned by it."""
    from pyiceberg.expressions import In

    if versions:
        listed = ", ".join(f"'{version}'" for version in versions)
        job.spark.sql(f"DELETE FROM {job.branch_identifier('embeddings')} WHERE pca_id IN ({listed})")  # noqa: S608
        expired = In("pca_id", versions)
        commit_rows(
            job.lake,
            "pca_models",
            lambda transaction: transaction.delete(expired, branch=job.branch),
            branch=job.branch,
        )


def rewrite(job: Job, definition: TableDefinition, *, rewrite_all: bool) -> None:
    """Rewrite a table's small and much deleted files on the run's branch, in order; others are left alone."""
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
    result = job.call(
        "rewrite_data_files",
        definition.name,
        f"branch => '{job.branch}', strategy => 'sort', sort_order => '{definition.sort_by}', options => map({listed})",
    )
    log.info(
        "compacted %s: %d files into %d",
        definition.name,
        result[0]["rewritten_data_files_count"],
        result[0]["added_data_files_count"],
    )


def drop_dangling_deletes(job: Job, name: TableName) -> None:
    """Remove delete files of data files that are gone from the run's branch.

    Iceberg's own way to do so (1.12) knows the branch `main` only.
    """
    gateway = job.spark._jvm.org.apache.iceberg  # noqa: SLF001 -- no Python API
    table = gateway.spark.Spark3Util.loadIcebergTable(job.spark._jsparkSession, job.identifier(name))  # noqa: SLF001
    manifests = list(table.snapshot(job.branch).deleteManifests(table.io()))
    if not manifests:
        return
    used = {
        deletes.location()
        for task in closing(table.newScan().useRef(job.branch).planFiles())
        for deletes in task.deletes()
    }
    unused = [
        deletes.copy()
        for manifest in manifests
        for deletes in closing(gateway.ManifestFiles.readDeleteManifest(manifest, table.io(), table.specs()))
        if deletes.location() not in used
    ]
    if unused:
        change = table.newRewrite().toBranch(job.branch)
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


def check_rows(job: Job, name: TableName, before: int, after: int, dropped_versions: tuple[str, ...]) -> None:
    """See that a table has the rows that it had, but for dropped PCA versions.

    Raises:
        FruitsError: when it has not: nothing is published then.
    """
    was = job.read(name, before)
    if dropped_versions and "pca_id" in was.columns and name != PUBLICATIONS.name:
        was = was.where(~was.pca_id.isin(*dropped_versions))
    expected, found = fingerprint(was), fingerprint(job.read(name, after))
    if expected != found:
        raise FruitsError(
            f"table {name}: {found[0]:,} rows after compaction where {expected[0]:,} were expected, or other values; "
            "nothing is published and readers stay where they were. This is a defect: please report it with this log."
        )


def fingerprint(rows: "DataFrame") -> tuple[int, int | None]:
    """Number of rows, and a sum of their hashes over all columns: the same whatever their order."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name
    from pyspark.sql.types import MapType

    columns = [
        F.to_json(field.name) if isinstance(field.dataType, MapType) else F.col(field.name) for field in rows.schema
    ]
    total = rows.select(F.xxhash64(*columns).cast("decimal(38,0)").alias("hash"))
    found = total.agg(F.count("*").alias("rows"), F.sum("hash").alias("hashes")).first()
    return int(found.rows), None if found.hashes is None else int(found.hashes)


def publish_compacted(job: Job, base: Base, after: Mapping[TableName, int]) -> Publication:
    """Publish what is on the branches as the publication that it was, under a new sequence number.

    Raises:
        TransientError: when another run published meanwhile; the next try compacts what that one left.
    """
    snapshots = {name: after[name] for name in DATA_TABLES}
    sequence = base.publication.sequence + 1
    wanted = replace(
        base.publication,
        sequence=sequence,
        snapshots=snapshots,
        publication_id=publication_id(sequence, snapshots),
        run_id=job.run_id,
        published_at=datetime.now(UTC),
    )
    try:
        return publish(job.lake, base.to_document(), job.slug, wanted, onto=after[PUBLICATIONS.name])
    except ConflictError as error:
        drop_branches(job)
        raise TransientError(
            "another run published while the tables were compacted, so the compacted ones are thrown away and readers "
            "are where that run put them; maintenance is tried again"
        ) from error


def drop_branches(job: Job) -> None:
    """Remove the run's branches from all tables."""
    for definition in TABLES:
        drop_branch(job.lake, definition.name, job.branch)


def clean_up(job: Job, request: MaintenanceRequest) -> None:
    """Drop refs, snapshots, files and run folders that nothing within retention needs."""
    now = datetime.now(UTC)
    with job.document.stage("survey"):
        upkeep = survey(job.lake, request, now)
    if not request.dry_run:
        with job.document.stage("expire"):
            expire(job, upkeep)
        with job.document.stage("run_folders"):
            remove_run_folders(job, upkeep)
    with job.document.stage("orphans"):
        orphans = {
            definition.name: remove_orphans(job, definition.name, now - timedelta(days=request.orphan_days), request)
            for definition in TABLES
        }
    log_upkeep(upkeep, "would" if request.dry_run else "did")
    log.info("%s orphan files: %s", "would remove" if request.dry_run else "removed", orphans)
    job.document.record(found=upkeep.to_document(), orphan_files=orphans, dry_run=request.dry_run)


def expire(job: Job, upkeep: Upkeep) -> None:
    """Set and drop refs, then expire the snapshots that none of them needs, and remove their files.

    Raises:
        TransientError: when somebody works on a branch that was to be dropped.
    """
    removed: dict[str, int] = {}
    for name, table in upkeep.tables.items():
        try:
            change_refs(job.lake, name, table.tags, {**table.dropped_tags, **table.dropped_branches})
        except ConflictError as error:
            raise TransientError(
                f"table {name}: a run that was taken for dead works on its branch again, which is kept; maintenance is "
                "tried again"
            ) from error
        if table.expired:
            listed = ", ".join(f"{snapshot}L" for snapshot in table.expired)
            # By id alone: `older_than`, five days by default, would take others as well.
            files = job.call("expire_snapshots", name, f"older_than => {BEFORE_ALL}, snapshot_ids => array({listed})")
            removed[name] = sum(count or 0 for count in files[0].asDict().values())
    job.document.record(expired_files=removed)


def remove_orphans(job: Job, name: TableName, older_than: datetime, request: MaintenanceRequest) -> int:
    """Remove files that no snapshot of a table refers to, if they are too old for a run's unfinished work."""
    listing = "true" if job.settings.lake_kind == "s3" else "false"
    found = job.call(
        "remove_orphan_files",
        name,
        f"older_than => TIMESTAMP '{older_than:%Y-%m-%d %H:%M:%S}', dry_run => {str(request.dry_run).lower()}, "
        f"prefix_listing => {listing}",
    )
    return len(found)


def remove_run_folders(job: Job, upkeep: Upkeep) -> None:
    """Delete the documents and manifests of old runs."""
    for slug in upkeep.old_folders:
        store = lake_store(job.settings, f"runs/{slug}")
        remove_files(store, *[item["path"] for item in list_files(store)])


if __name__ == "__main__":
    sys.exit(main())
