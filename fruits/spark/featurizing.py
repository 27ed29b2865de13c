"""Featurize on the executors, count what came of it, and write it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fruits.lake.schemas import FEATURES, QUARANTINE
from fruits.photos.featurize import STAGES
from fruits.run.manifest import Manifest
from fruits.spark.executors import OUTCOME_SCHEMA, featurize
from fruits.spark.job import Job
from fruits.spark.session import map_batches

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

ROWS_PER_FILE = 25_000
"""About 128 MB of vectors."""


@dataclass(frozen=True)
class OutcomeCounts:
    """Photos, features, photos in quarantine by reason, bytes read, and executor seconds by phase of a photo."""

    images: int
    features: int
    quarantine: Mapping[str, int]
    bytes: int
    photo_seconds: Mapping[str, float]


NO_OUTCOMES = OutcomeCounts(0, 0, {}, 0, dict.fromkeys(STAGES, 0.0))


def outcomes_of(job: Job, photos: Manifest) -> "DataFrame":
    """The outcome of each photo, lazily, with ``OUTCOME_SCHEMA``. Persist it: each action would featurize again."""
    tasks = math.ceil(len(photos) / job.settings.photos_per_task)
    manifest = job.tables.spark.createDataFrame(photos.table).repartition(tasks)
    return map_batches(manifest, featurize(job.settings, job.run.model_id, job.run.run_id), OUTCOME_SCHEMA)


def count_outcomes(outcomes: "DataFrame") -> OutcomeCounts:
    """Featurize, and count."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    totals = outcomes.groupBy("reason").agg(
        F.count("*").alias("images"),
        F.sum("size").alias("bytes"),
        *(F.coalesce(F.sum(f"seconds_{phase}"), F.lit(0.0)).alias(phase) for phase in STAGES),
    )
    rows = totals.collect()
    return OutcomeCounts(
        images=sum(row.images for row in rows),
        features=sum(row.images for row in rows if row.reason is None),
        quarantine={row.reason: row.images for row in rows if row.reason is not None},
        bytes=sum(row.bytes for row in rows),
        photo_seconds={phase: round(sum(row[phase] for row in rows), 3) for phase in STAGES},
    )


def write_outcomes(job: Job, outcomes: "DataFrame", counts: OutcomeCounts) -> None:
    """Append features and quarantined objects to the attempt's branch, in key order, in files of a good size."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    for definition, condition, rows in (
        (FEATURES, F.col("reason").isNull(), counts.features),
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
