"""The task `publish`: make what the gates measured the current publication. Needs no JVM."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fruits.analysis.gates import Gate
from fruits.lake.catalog import Lake
from fruits.lake.publication import (
    Publication,
    publication_id,
    publish,
    published_from,
    written_head,
)
from fruits.lake.schemas import DATA_TABLES
from fruits.run.documents import (
    TaskName,
    check_tasks_before,
    read_plan,
    task_document,
)
from fruits.run.lease import hold_lease, release_lease
from fruits.settings import Settings

log = logging.getLogger("fruits")


def publish_run(settings: Settings, slug: str) -> Publication:
    """Publish what the run left on its branches; publishing it again changes nothing.

    While a new backbone is being built, readers keep backbone, PCA version and probe of the publication before.

    Raises:
        ConflictError: when another run published since this one was planned.
        TransientError: when another run holds the lease.
    """
    with hold_lease(settings, slug):
        published = _publish(settings, slug)
    release_lease(settings, slug)
    log.info("published %s: %s", published.publication_id, dict(published.counts or {}))
    return published


def published_run(settings: Settings, slug: str) -> Publication | None:
    """What a run published, if it did so since it was planned.

    Raises:
        FruitsError: when the run has not been planned.
    """
    return published_from(Lake.open(settings), read_plan(settings, slug))


def _publish(settings: Settings, slug: str) -> Publication:
    plan = read_plan(settings, slug)
    with task_document(settings, "publish", plan) as document:
        documents = check_tasks_before(settings, "publish", plan)
        lake = Lake.open(settings)
        snapshots = {name: written_head(lake, name, plan) for name in DATA_TABLES}
        sequence = int(plan["base"]["sequence"]) + 1
        wanted = Publication(
            sequence=sequence,
            snapshots=snapshots,
            publication_id=publication_id(sequence, snapshots),
            run_id=plan["run_id"],
            published_at=datetime.now(UTC),
            gates=tuple(Gate(**gate) for gate in documents["validate"]["gates"]),
            **_for_readers(plan, documents),
        )
        published = publish(lake, plan["base"], slug, wanted)
        document.record(
            publication_id=published.publication_id, sequence=published.sequence, snapshots=dict(published.snapshots)
        )
    return published


def _for_readers(plan: Mapping[str, Any], documents: Mapping[TaskName, Mapping[str, Any]]) -> dict[str, Any]:
    """What the publication tells readers: backbone, PCA version, probe and counts."""
    validated = documents["validate"]
    counts = {**plan["counts"], "remaining": plan["remaining"]}
    if plan["building"]:
        base = plan["base"]
        kept = {name: base["counts"][name] for name in ("features", "quarantine")}
        return {
            "model_id": base["model_id"],
            "pca_id": base["pca_id"],
            "probe_raw": base["probe"]["raw"],
            "probe_embedded": base["probe"]["embedded"],
            "counts": {**counts, **kept},
        }
    return {
        "model_id": plan["model_id"],
        "pca_id": documents["pca"]["pca_id"],
        "probe_raw": validated["probe"]["raw"],
        "probe_embedded": validated["probe"]["embedded"],
        "counts": {
            **counts,
            "features": validated["features"],
            "quarantine": sum(validated["quarantine"].values()),
        },
    }
