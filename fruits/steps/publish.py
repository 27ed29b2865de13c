"""The task `publish`: make the snapshots that the gates measured the current publication. Needs no JVM."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fruits.errors import FruitsError
from fruits.lake.approvals import Approval, read_approvals, withdraw
from fruits.lake.branches import check_lineage, drop_run_branches
from fruits.lake.catalog import Lake
from fruits.lake.publication import (
    Publication,
    current_base,
    publication_id,
    publications,
    publish,
    published_from,
)
from fruits.run.documents import (
    Published,
    RunDocuments,
    Validated,
    approvals_of,
    check_tasks_before,
    read_documents,
    read_plan,
    task_document,
)
from fruits.run.events import forget
from fruits.run.lease import hold_lease, release_lease
from fruits.run.migration import migrate, with_every_table, with_snapshots
from fruits.run.pin import check_unpinned
from fruits.run.state import WRITTEN, PlannedRun
from fruits.settings import Settings

log = logging.getLogger("fruits")


@dataclass(frozen=True)
class Announcement:
    """What the task `publish` has to announce.

    Attributes:
        publication: The run's publication.
        current: The publication that readers see: a newer one, when the run had published before.
        rows_before: Rows of the publication that the run started from.
    """

    publication: Publication
    current: Publication
    rows_before: int


def publish_run(settings: Settings, run: str) -> Announcement:
    """Publish exactly the snapshots that the run's gates measured; publishing them again changes nothing.

    While a new backbone is being built, readers keep backbone, PCA version and probe of the publication before.

    Args:
        settings: The settings.
        run: The run's key.

    Raises:
        ConflictError: when another run published since this one was planned.
        TransientError: when another run holds the lease.
        FruitsError: when an earlier task has not succeeded, or ran again after a later task, or readers are pinned.
    """
    planned = read_plan(settings, run)  # without the lease: see fruits/run/lease.py
    with hold_lease(settings, run):
        lake = Lake.open(settings)
        migrate(lake)
        publication = _publish(lake, with_every_table(lake, planned))
        withdraw(settings, used_approvals(settings, publication))
        current = publications(lake)[-1]
    release_lease(settings, run)
    forget(settings, settled_events(settings, planned))
    log.info("published %s: %s", publication.publication_id, dict(publication.counts or {}))
    return Announcement(publication, current, planned.base.publication.rows)


def settled_events(settings: Settings, planned: PlannedRun) -> tuple[str, ...]:
    """Files of events whose keys the publication has.

    None of them when a photo that they may name could not be read. After a sweep that listed the bucket all of them:
    the next sweep finds such a photo.
    """
    featurized = read_documents(settings, planned.key).featurized if planned.events else None
    pending = sum(featurized.pending.values()) if featurized else 0
    listed = planned.request.lists and planned.as_of is None
    return planned.events if listed or not pending else ()


def used_approvals(settings: Settings, publication: Publication) -> list[Approval]:
    """The approvals to remove after a publication: those that it records, and all about gates of earlier runs.

    A run that was planned before the publication can't publish any more, so its findings need no approval.
    """
    used = {(approval.kind, approval.digest) for approval in publication.approvals}
    return [
        approval
        for approval in read_approvals(settings)
        if publication.published_at
        and approval.asked_at < publication.published_at
        and (approval.kind == "gates" or (approval.kind, approval.digest) in used)
    ]


def published_run(settings: Settings, run: str) -> Publication | None:
    """The publication of a run, if it published since it was planned.

    Raises:
        FruitsError: when the run has not been planned.
    """
    planned = read_plan(settings, run)
    return published_from(Lake.open(settings), planned.base, planned.run_id)


def _publish(lake: Lake, planned: PlannedRun) -> Publication:
    run = planned.key
    with task_document(lake.settings, "publish", run, planned.run_id, planned.planned_at) as document:
        published = published_from(lake, planned.base, planned.run_id)
        if published is None:
            check_unpinned(lake.settings)
            documents = with_snapshots(lake, planned, read_documents(lake.settings, run))
            check_tasks_before("publish", planned, documents)
            check_written_by_run(lake, planned, documents)
            published = publish(lake, planned.base, document.document.writer(run), publication_of(planned, documents))
        else:
            current_base(lake)  # moves each `main` that an attempt which died after its publication left behind
        drop_run_branches(lake, run)
        document.record(
            Published(
                publication_id=str(published.publication_id),
                sequence=published.sequence,
                snapshots=dict(published.snapshots),
            )
        )
    return published


def check_written_by_run(lake: Lake, planned: PlannedRun, documents: RunDocuments) -> None:
    """See that the recorded attempts wrote every snapshot between the run's base and the snapshots to publish.

    Raises:
        FruitsError: naming a snapshot that another process wrote.
    """
    for task, document in (("featurize", documents.featurize), ("pca", documents.pca)):
        wrote = document.result.wrote if document and document.result else None
        if document is None or wrote is None or not document.token:  # format 1 did not mark its snapshots
            continue
        writer = document.writer(planned.key)
        for name in WRITTEN[task]:
            check_lineage(lake, name, wrote[name], planned.base.snapshots[name], writer)


def publication_of(planned: PlannedRun, documents: RunDocuments) -> Publication:
    """The publication of a run: the snapshots that the gates measured, with counts, findings and approvals."""
    validated = documents.validate.done if documents.validate else None
    if validated is None or validated.snapshots is None:
        raise FruitsError(f"run {planned.key}: its validate job has not succeeded; run that first")
    sequence = planned.base.publication.sequence + 1
    return Publication(
        sequence=sequence,
        snapshots=validated.snapshots,
        publication_id=publication_id(sequence, validated.snapshots),
        run_id=planned.run_id,
        published_at=datetime.now(UTC),
        gates=validated.gates,
        counters=validated.counters,
        approvals=approvals_of(planned, documents.projected, validated),
        **_for_readers(planned, documents, validated),
    )


def _for_readers(planned: PlannedRun, documents: RunDocuments, validated: Validated) -> dict[str, Any]:
    """Backbone, PCA version, probe and counts."""
    featurized = documents.featurize.done if documents.featurize else None
    counts = {**planned.counts, **({} if planned.remaining is None else {"remaining": planned.remaining})}
    if featurized and featurized.carried_out is not None:
        counts |= featurized.carried_out
        for name in {"pending", "remaining"} & set(counts):
            counts[name] += featurized.due
    as_planned = featurized is None or featurized.carried_out is None
    base = planned.base.publication
    if planned.building:
        kept = {name: (base.counts or {})[name] for name in ("features", "quarantine")}
        return {
            "model_id": base.model_id,
            "pca_id": base.pca_id,
            "probe_raw": base.probe_raw,
            "probe_embedded": base.probe_embedded,
            "probe_rows": base.probe_rows,
            "building": planned.model_id,
            "classifier_id": base.classifier_id,
            "counts": {**counts, **kept},
            "rules": base.rules,
        }
    projected = documents.pca.done if documents.pca else None
    return {
        "model_id": planned.model_id,
        "pca_id": validated.pca_id or (projected.pca_id if projected else None),
        "probe_raw": validated.probe.raw,
        "probe_embedded": validated.probe.embedded,
        "probe_rows": validated.probe.rows,
        "building": None if base.building == planned.model_id else base.building,
        "classifier_id": projected.classified.classifier_id if projected and projected.classified else None,
        "counts": {
            **counts,
            "features": validated.features,
            "quarantine": sum(validated.quarantine.values()),
        },
        "rules": planned.rules if as_planned or _follow_rules(planned) else None,
    }


def _follow_rules(planned: PlannedRun) -> bool:
    """Whether the rows before the run followed the rules of today already, so that rows left as they were do too."""
    base = planned.base.publication
    return (base.model_id, base.rules) == (planned.model_id, planned.rules)
