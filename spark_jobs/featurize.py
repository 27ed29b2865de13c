"""Featurize the photos of a run's manifest: GET, decode, preprocess and infer on the executors.

Reads the run's plan.json and manifest.parquet from the lake; writes the tables `features` and `quarantine` on the
attempt's own branch, and the run's featurize.json. Running it again starts from the plan again: nothing doubles.
"""

import logging
import sys
from dataclasses import asdict

from fruits.run.documents import Featurized
from fruits.run.manifest import Manifest
from fruits.run.state import WRITTEN
from fruits.spark.featurizing import NO_OUTCOMES, OutcomeCounts, count_outcomes, disk_only, outcomes_of, write_outcomes
from fruits.spark.job import Job, run_job
from fruits.spark.session import progress

log = logging.getLogger("fruits")


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("featurize", __doc__ or "", featurize, argv)


def featurize(job: Job) -> None:
    """Bring the attempt's branches of `features` and `quarantine` to what the manifest asks for."""
    manifest = job.manifest()
    job.start_branches(*WRITTEN["featurize"])
    with job.phase("remove"):
        for name in WRITTEN["featurize"]:
            job.tables.delete_keys(name, manifest.replaced_keys, job.run.model_id)
    photos = manifest.photos
    counts = featurize_photos(job, photos) if len(photos) else NO_OUTCOMES
    seconds = job.recorder.document.seconds.get("featurize", 0.0)
    result = Featurized(
        **asdict(counts),
        images_per_second=round(counts.images / seconds, 1) if seconds else 0.0,
        removed=len(manifest) - len(photos),
        wrote=job.wrote(*WRITTEN["featurize"]),
    )
    job.recorder.record(result)
    log.info(
        "%d photos: %d features, quarantined %s, %.1f img/s",
        result.images,
        result.features,
        dict(result.quarantine),
        result.images_per_second,
    )


def featurize_photos(job: Job, photos: Manifest) -> OutcomeCounts:
    """Featurize once, count, then write: a photo that can't be read is quarantined, and never stops the rest."""
    outcomes = outcomes_of(job, photos).persist(disk_only())
    with job.phase("featurize"), progress(job.tables.spark, "featurize", len(photos)):
        counts = count_outcomes(outcomes)
    with job.phase("write"):
        write_outcomes(job, outcomes, counts)
    outcomes.unpersist()
    return counts


if __name__ == "__main__":
    sys.exit(main())
