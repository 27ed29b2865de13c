"""Featurize the photos of a run's manifest: GET, decode, preprocess and infer on the executors.

Reads runs/<run>/plan.json and manifest.parquet from the lake; writes the tables `features` and `quarantine` on the
run's branch, and runs/<run>/featurize.json. Running it again starts the branch again: nothing doubles.
"""

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from fruits.backbones.stage import load_backbone_once
from fruits.lake.branches import start_branch
from fruits.lake.schemas import FEATURES, QUARANTINE, TableName
from fruits.photos.entry import Action, Entry
from fruits.photos.featurize import STAGES, Outcome, featurize_entries
from fruits.photos.quarantine import Reason
from fruits.run.manifest import read_manifest
from fruits.spark.session import Job, log, map_batches, progress, run_job
from fruits.stores import photo_store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

WRITTEN: tuple[TableName, ...] = ("features", "quarantine")
ROWS_PER_FILE = 25_000  # about 128 MB of vectors
BATCH = 64

OUTCOME_SCHEMA = pa.schema(
    [
        *(field.with_nullable(True) for field in FEATURES.schema),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        *(pa.field(f"seconds_{stage}", pa.float64()) for stage in STAGES),
    ]
)


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("featurize", __doc__ or "", featurize, argv)


def featurize(job: Job) -> None:
    """Bring the run's branch of `features` and `quarantine` to what the manifest asks for."""
    manifest = read_manifest(job.store)
    for name in WRITTEN:
        start_branch(job.lake, name, job.branch, job.base(name))
    with job.document.stage("remove"):
        replaced = job.replaced_keys()
        for name in WRITTEN:
            job.remove_keys(name, replaced)
    photos = manifest.filter(pc.not_equal(manifest["action"], Action.DELETE.value))
    if photos.num_rows:
        outcomes = outcomes_of(job, photos).persist(disk_only())
        with job.document.stage("featurize"), progress(job.spark, "featurize", photos.num_rows):
            counts = summarise(outcomes)
        with job.document.stage("write"):
            write(job, outcomes, counts)
        outcomes.unpersist()
    else:
        counts = {"images": 0, "features": 0, "quarantine": {}, "bytes": 0, "stages": dict.fromkeys(STAGES, 0.0)}
    seconds = job.document.content["seconds"].get("featurize", 0.0)
    rate = round(counts["images"] / seconds, 1) if seconds else 0.0
    job.document.record(**counts, images_per_second=rate, removed=manifest.num_rows - photos.num_rows)
    log.info(
        "%d photos: %d features, quarantined %s, %.1f img/s",
        counts["images"],
        counts["features"],
        counts["quarantine"],
        rate,
    )


def outcomes_of(job: Job, photos: pa.Table) -> "DataFrame":
    """What becomes of each photo, lazily, with ``OUTCOME_SCHEMA``. Persist it: each action would featurize again."""
    settings, model_id, run_id = job.settings, job.model_id, job.run_id

    def featurize_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        entries = (_entry(row) for batch in batches for row in batch.to_pylist())
        rows: list[dict[str, Any]] = []
        for outcome in featurize_entries(
            entries, photo_store(settings), load_backbone_once(settings, model_id), settings
        ):
            rows.append(_row(outcome, model_id, run_id))
            if len(rows) == BATCH:
                yield pa.RecordBatch.from_pylist(rows, OUTCOME_SCHEMA)
                rows = []
        yield pa.RecordBatch.from_pylist(rows, OUTCOME_SCHEMA)

    tasks = math.ceil(photos.num_rows / settings.photos_per_task)
    manifest = job.spark.createDataFrame(photos).repartition(tasks)
    return map_batches(manifest, featurize_batches, OUTCOME_SCHEMA)


def summarise(outcomes: "DataFrame") -> dict[str, Any]:
    """Featurize, and count: images, features, quarantined by reason, bytes, executor seconds by stage."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    totals = outcomes.groupBy("reason").agg(
        F.count("*").alias("images"),
        F.sum("size").alias("bytes"),
        *(F.coalesce(F.sum(f"seconds_{stage}"), F.lit(0.0)).alias(stage) for stage in STAGES),
    )
    rows = totals.collect()
    return {
        "images": sum(row.images for row in rows),
        "features": sum(row.images for row in rows if row.reason is None),
        "quarantine": {row.reason: row.images for row in rows if row.reason is not None},
        "bytes": sum(row.bytes for row in rows),
        "stages": {stage: round(sum(row[stage] for row in rows), 3) for stage in STAGES},
    }


def write(job: Job, outcomes: "DataFrame", counts: dict[str, Any]) -> None:
    """Append features and quarantined objects to the run's branch, in key order, in files of a good size."""
    from pyspark.sql import functions as F  # noqa: N812

    quarantined = sum(counts["quarantine"].values())
    for definition, condition, rows in (
        (FEATURES, F.col("reason").isNull(), counts["features"]),
        (QUARANTINE, F.col("reason").isNotNull(), quarantined),
    ):
        if rows:
            selected = outcomes.where(condition).select(*definition.schema.names)
            ordered = selected.repartitionByRange(math.ceil(rows / ROWS_PER_FILE), "key").sortWithinPartitions("key")
            ordered.writeTo(job.branch_identifier(definition.name)).append()


def disk_only() -> Any:
    """Where outcomes wait between counting and writing: vectors of millions of photos do not fit in memory."""
    from pyspark import StorageLevel

    return StorageLevel.DISK_ONLY


def _entry(row: dict[str, Any]) -> Entry:
    rejection = Reason(row["rejection"]) if row["rejection"] else None
    return Entry(**{**row, "action": Action(row["action"]), "rejection": rejection})


def _row(outcome: Outcome, model_id: str, run_id: str) -> dict[str, Any]:
    entry, feature = outcome.entry, outcome.feature
    row = {
        "key": entry.key,
        "etag": outcome.etag,
        "size": outcome.size,
        "last_modified": outcome.last_modified,
        "model_id": model_id,
        "run_id": run_id,
        "reason": outcome.reason,
        "detail": outcome.detail,
        **{f"seconds_{stage}": seconds for stage, seconds in outcome.seconds.items()},
    }
    if feature is None:
        return row
    photo = {name: getattr(feature, name) for name in ("sha256", "phash", "width", "height", "format", "vector")}
    return {**row, **photo, "label": entry.label, "split": entry.split}


if __name__ == "__main__":
    sys.exit(main())
