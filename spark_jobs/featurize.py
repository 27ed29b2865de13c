"""Featurize the photos of a run's manifest: GET, decode, preprocess and infer on the executors.

Reads the run's plan.json and manifest.parquet from the lake; writes the tables `features` and `quarantine` on the
attempt's own branch, and the run's featurize.json. Running it again starts from the plan again: nothing doubles.
"""

import logging
import sys
from dataclasses import asdict
from typing import Any

from fruits.photos.entry import WORK, Action
from fruits.run.documents import Featurized, run_store
from fruits.run.manifest import DUE_ETAG, Manifest
from fruits.run.state import WRITTEN
from fruits.spark.featurizing import (
    NO_OUTCOMES,
    OutcomeCounts,
    carried_out,
    count_outcomes,
    disk_only,
    outcomes_of,
    write_outcomes,
)
from fruits.spark.job import Job, run_job
from fruits.spark.session import progress

log = logging.getLogger("fruits")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("featurize", __doc__ or "", featurize, argv)


def featurize(job: Job) -> None:
    """Bring the attempt's branches of `features` and `quarantine` to what the manifest asks for."""
    planned = job.manifest()
    job.start_branches(*WRITTEN["featurize"])
    photos = planned.photos
    if len(photos):
        counts, manifest = featurize_photos(job, planned, photos)
    else:
        counts, manifest = NO_OUTCOMES, planned
        remove_replaced(job, planned)
    seconds = job.recorder.document.seconds.get("featurize", 0.0)
    result = Featurized(
        **asdict(counts),
        images_per_second=round(counts.images / seconds, 1) if seconds else 0.0,
        removed=manifest.count(Action.DELETE),
        wrote=job.wrote(*WRITTEN["featurize"]),
        **save_carried_out(job, planned, manifest),
    )
    job.recorder.record(result)
    log.info(
        "%d photos: %d features, quarantined %s, pending %s, %.1f img/s",
        result.images,
        result.features,
        dict(result.quarantine),
        dict(result.pending),
        result.images_per_second,
    )


def featurize_photos(job: Job, planned: Manifest, photos: Manifest) -> tuple[OutcomeCounts, Manifest]:
    """Featurize once, count, then write: a photo that can't be read is quarantined or pending, and stops nothing.

    Rows are removed last: those of a photo that is pending stay.
    """
    outcomes = outcomes_of(job, photos).persist(disk_only())
    try:
        with job.phase("featurize"), progress(job.tables.spark, "featurize", len(photos)):
            counts = count_outcomes(outcomes)
        manifest = carried_out(job, planned, outcomes, counts)
        remove_replaced(job, manifest)
        with job.phase("write"):
            write_outcomes(job, outcomes, counts)
            keep_unread(job, manifest)
    finally:
        outcomes.unpersist()
    return counts, manifest


def remove_replaced(job: Job, manifest: Manifest) -> None:
    """Take the rows of updated and deleted objects out of the tables."""
    with job.phase("remove"):
        for name in WRITTEN["featurize"]:
            job.tables.delete_keys(name, manifest.replaced_keys, job.run.model_id)


def keep_unread(job: Job, manifest: Manifest) -> None:
    """Write the rows of photos that a rebuild could not read once more, as rows of this run that are due again."""
    for name in WRITTEN["featurize"]:
        job.tables.copy_keys(
            name, job.start[name], manifest.kept_keys, job.run.model_id, etag=DUE_ETAG, run_id=job.run.run_id
        )


def save_carried_out(job: Job, planned: Manifest, manifest: Manifest) -> dict[str, Any]:
    """Write the manifest that was carried out for the jobs after this one; returns what the document says of it."""
    if manifest is planned:
        return {}
    name = f"carried_out_{job.recorder.document.token}.parquet"
    manifest.write(run_store(job.settings, job.run.key), name)
    return {"manifest": name, "carried_out": {action.value: manifest.count(action) for action in WORK}}


if __name__ == "__main__":
    sys.exit(main())
