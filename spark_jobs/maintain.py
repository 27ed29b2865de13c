"""Keep the lake small and fast: compact, publish the compacted tables, and drop what nothing needs any more.

Reads the run's plan_maintenance.json; writes the tables on the attempt's own branch, publishes them when their rows
are the same as before, drops branches, tags, snapshots, files and run folders past retention, and writes
the run's maintain.json. Running it again does what is left to do.
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fruits.errors import ConflictError, TransientError
from fruits.lake.branches import Snapshots, drop_run_branches
from fruits.lake.hashes import hashes_are_due
from fruits.lake.publication import Base, Publication, current_base, publication_id, publish
from fruits.lake.schemas import DATA_TABLES, TABLES, TableDefinition, TableName
from fruits.run.documents import Maintained
from fruits.run.upkeep import Upkeep, log_upkeep, survey
from fruits.spark.compaction import (
    check_rows,
    drop_dangling_deletes,
    drop_unneeded,
    expire,
    remove_orphans,
    remove_run_folders,
    rewrite,
)
from fruits.spark.hashes import write_hashes
from fruits.spark.job import MaintenanceJob, run_maintenance_job

log = logging.getLogger("fruits")

DEFINITIONS: Mapping[TableName, TableDefinition] = {definition.name: definition for definition in TABLES}


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_maintenance_job(__doc__ or "", maintain, argv)


def maintain(job: MaintenanceJob) -> None:
    """Compact and publish, then drop what is not needed; a dry run only counts what it would do."""
    compacted = {} if job.planned.request.dry_run else compact_and_publish(job)
    cleaned = clean_up(job)
    job.recorder.record(Maintained(**compacted, **cleaned))


def compact_and_publish(job: MaintenanceJob) -> dict[str, Any]:
    """Publish the same rows in fewer files, without what nobody needs; returns what was published, if anything."""
    base = current_base(job.lake)
    upkeep = survey(job.lake, job.planned.request, datetime.now(UTC))
    unneeded = upkeep.expired_versions or upkeep.retired_backbones
    if not base.publication.sequence or not (upkeep.to_compact or unneeded or upkeep.hashes_due):
        log.info("compaction: every table is in good shape")
        return {}
    after = compact(job, base, upkeep)
    changed = [name for name, snapshot in base.snapshots.items() if after[name] != snapshot]
    if not changed:
        log.info("compaction: Iceberg found no file to rewrite")
        drop_run_branches(job.lake, job.planned.key)
        return {}
    with job.phase("check"):
        for name in changed:
            if name == "photo_hashes":  # other rows than before, of features that are checked
                continue
            check_rows(job.tables, name, base.snapshots[name], after[name], upkeep)
    with job.phase("publish"):
        published = publish_compacted(job, base, after, upkeep)
    return {
        "publication_id": published.publication_id,
        "dropped_versions": upkeep.expired_versions,
        "dropped_backbones": upkeep.retired_backbones,
        "layout_before": {name: asdict(upkeep.layouts[name]) for name in changed},
    }


def compact(job: MaintenanceJob, base: Base, upkeep: Upkeep) -> Snapshots:
    """Drop what nobody needs and rewrite files on the attempt's branches; returns the snapshots at their ends."""
    for name, snapshot in base.snapshots.items():
        job.tables.start_branch(name, snapshot)
    with job.phase("compact"):
        drop_unneeded(job.tables, upkeep)
        for name in upkeep.to_compact:
            rewrite(job.tables, DEFINITIONS[name], rewrite_all=job.planned.request.rewrite_all)
        for name, snapshot in base.snapshots.items():
            if job.lake.head(name, job.tables.writer.branch) != snapshot:  # dropped files leave their deletes behind
                drop_dangling_deletes(job.tables, name)
    compacted = heads(job, base)
    if not hashes_are_due(job.lake, compacted):
        return compacted
    with job.phase("hashes"):
        write_hashes(job.tables, compacted["features"])
    return heads(job, base)


def heads(job: MaintenanceJob, base: Base) -> Snapshots:
    """The snapshots at the ends of the attempt's branches."""
    return {name: job.lake.state(name).refs[job.tables.writer.branch] for name in base.snapshots}


def publish_compacted(job: MaintenanceJob, base: Base, after: Snapshots, upkeep: Upkeep) -> Publication:
    """Publish the snapshots that were checked as the publication that they were, under a new sequence number.

    Raises:
        TransientError: when another run published meanwhile; the next try compacts what that run left.
    """
    snapshots = {name: after[name] for name in DATA_TABLES}
    sequence = base.publication.sequence + 1
    counted = base.publication.counted
    publication = replace(
        base.publication,
        counters=counted.without(upkeep.retired_backbones).counts if counted else None,
        sequence=sequence,
        snapshots=snapshots,
        publication_id=publication_id(sequence, snapshots),
        run_id=job.planned.run_id,
        published_at=datetime.now(UTC),
        approvals=(),
    )
    try:
        return publish(job.lake, base, job.tables.writer, publication, onto=after["publications"])
    except ConflictError as error:
        raise TransientError(
            "another run published while the tables were compacted, so the compacted tables are thrown away and "
            "readers are where that run put them; maintenance is tried again"
        ) from error
    finally:
        drop_run_branches(job.lake, job.planned.key)


def clean_up(job: MaintenanceJob) -> dict[str, Any]:
    """Drop refs, snapshots, files and run folders that nothing within retention needs; returns what was dropped."""
    now, request = datetime.now(UTC), job.planned.request
    with job.phase("survey"):
        upkeep = survey(job.lake, request, now)
    expired: Mapping[TableName, int] = {}
    if not request.dry_run:
        with job.phase("expire"):
            expired = expire(job.tables, upkeep)
        with job.phase("run_folders"):
            remove_run_folders(job.lake.settings, upkeep)
    with job.phase("orphans"):
        oldest = now - timedelta(days=request.orphan_days)
        orphans = {name: remove_orphans(job.tables, name, oldest, dry_run=request.dry_run) for name in upkeep.tables}
    log_upkeep(upkeep, "would" if request.dry_run else "did")
    log.info("%s orphan files: %s", "would remove" if request.dry_run else "removed", orphans)
    return {
        "dry_run": request.dry_run,
        "found": upkeep.to_document(),
        "orphan_files": orphans,
        "expired_files": expired,
    }


if __name__ == "__main__":
    sys.exit(main())
