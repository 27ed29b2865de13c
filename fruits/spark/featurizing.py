"""Featurize on the executors, count what came of it, and write it."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fruits.errors import TransientError
from fruits.lake.schemas import FEATURES, QUARANTINE
from fruits.photos.featurize import STAGES
from fruits.photos.fetch import PHOTOS_ASKED, PUBLISHED_ASKED
from fruits.photos.quarantine import Pending
from fruits.run.manifest import Manifest, spread
from fruits.spark.executors import OUTCOME_SCHEMA, featurize
from fruits.spark.job import Job
from fruits.spark.session import map_batches
from fruits.stores import can_read_any, photo_store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger("fruits")

_MOST_NAMED = 20

ROWS_PER_FILE = 25_000
"""About 128 MB of vectors."""


@dataclass(frozen=True)
class OutcomeCounts:
    """Photos, features, quarantined ones by reason, pending ones by cause, bytes read, executor seconds by phase."""

    images: int
    features: int
    quarantine: Mapping[str, int]
    pending: Mapping[str, int]
    bytes: int
    photo_seconds: Mapping[str, float]


NO_OUTCOMES = OutcomeCounts(0, 0, {}, {}, 0, dict.fromkeys(STAGES, 0.0))


def outcomes_of(job: Job, photos: Manifest) -> "DataFrame":
    """The outcome of each photo, lazily, with ``OUTCOME_SCHEMA``. Persist it: each action would featurize again."""
    tasks = math.ceil(len(photos) / job.settings.photos_per_task)
    manifest = job.tables.spark.createDataFrame(photos.table).repartition(tasks)
    function = featurize(job.settings, job.run.model_id, job.run.run_id, witnesses(job, photos))
    return map_batches(manifest, function, OUTCOME_SCHEMA)


def witnesses(job: Job, photos: Manifest) -> tuple[str, ...]:
    """Keys that show whether the bucket can be read at all; see ``PhotoServer``."""
    published = job.lake.some_keys(job.start["features"], PUBLISHED_ASKED)
    return (*published, *spread(photos.readable_keys, PHOTOS_ASKED))


def count_outcomes(outcomes: "DataFrame") -> OutcomeCounts:
    """Featurize, and count."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    totals = outcomes.groupBy("reason", "pending").agg(
        F.count("*").alias("images"),
        F.sum(F.when(F.col("pending").isNull(), F.col("size")).otherwise(0)).alias("bytes"),
        *(F.coalesce(F.sum(f"seconds_{phase}"), F.lit(0.0)).alias(phase) for phase in STAGES),
    )
    rows = totals.collect()
    return OutcomeCounts(
        images=sum(row.images for row in rows),
        features=sum(row.images for row in rows if row.reason is None and row.pending is None),
        quarantine={row.reason: row.images for row in rows if row.reason is not None},
        pending={row.pending: row.images for row in rows if row.pending is not None},
        bytes=sum(row.bytes for row in rows),
        photo_seconds={phase: round(sum(row[phase] for row in rows), 3) for phase in STAGES},
    )


def carried_out(job: Job, manifest: Manifest, outcomes: "DataFrame", counts: OutcomeCounts) -> Manifest:
    """The manifest without photos that could not be read now, as ``Manifest.without`` leaves them out.

    ``manifest`` itself when all photos could be read.

    Raises:
        TransientError: when the S3 server answers nothing, or nothing at all would be carried out: a retry may.
    """
    if not counts.pending:
        return manifest
    rows = outcomes.where("pending IS NOT NULL").select("key", "pending", "detail").collect()
    left = [row for row in rows if row.pending != Pending.VANISHED]
    for row in left[:_MOST_NAMED]:
        log.warning("%s is pending, %s: %s; the next run takes it", row.key, row.pending, row.detail)
    done = manifest.without([row.key for row in rows], rebuilt=job.run.request.mode == "rebuild")
    nothing_read = counts.features == 0 and not counts.quarantine
    if left and nothing_read and (len(done) == len(done.kept_keys) or not server_answers(job, manifest)):
        raise TransientError(
            f"featurize: none of {counts.images:,} photos could be read now ({dict(counts.pending)}); the first, "
            f"{left[0].key}: {left[0].detail}. The run is tried again; check the S3 server and the network"
        )
    return done


def server_answers(job: Job, manifest: Manifest) -> bool:
    """Whether the S3 server gives a photo to the driver, who asks for some."""
    try:
        return can_read_any(photo_store(job.settings), witnesses(job, manifest))
    except TransientError:
        return False


def write_outcomes(job: Job, outcomes: "DataFrame", counts: OutcomeCounts) -> None:
    """Append features and quarantined objects to the attempt's branch, in key order, in files of a good size."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    for definition, condition, rows in (
        (FEATURES, F.col("reason").isNull() & F.col("pending").isNull(), counts.features),
        (QUARANTINE, F.col("reason").isNotNull(), sum(counts.quarantine.values())),
    ):
        if rows:
            selected = outcomes.where(condition).select(*definition.schema.names)
            ordered = selected.repartitionByRange(math.ceil(rows / ROWS_PER_FILE), "key").sortWithinPartitions("key")
            job.tables.append(definition.name, ordered)


def disk_only() -> Any:
    """Where outcomes wait between counting and writing: vectors of millions of photos do not fit in memory."""
    from pyspark import StorageLevel

    return StorageLevel.DISK_ONLY
