"""Featurize on the executors chunk by chunk, count what came of each chunk, and write it."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fruits.errors import TransientError
from fruits.lake.appends import append_files, file_target
from fruits.lake.branches import Snapshots
from fruits.lake.files import WrittenFile
from fruits.lake.schemas import FEATURES, QUARANTINE, TableDefinition
from fruits.photos.featurize import STAGES
from fruits.photos.fetch import PHOTOS_ASKED, PUBLISHED_ASKED
from fruits.photos.quarantine import Pending
from fruits.run.chunks import Limits, Piece, are_few, in_tasks, limits_of, piece_to_do
from fruits.run.manifest import DUE_ETAG, Manifest, StoredManifest
from fruits.spark.executors import OTHERS_SCHEMA, RESULT_SCHEMA, TASKS_SCHEMA, featurize, file_in, packed, unpacked
from fruits.spark.job import Job
from fruits.spark.session import map_table
from fruits.spark.tasks import Progress
from fruits.stores import can_read_any, photo_store

log = logging.getLogger("fruits")

_MOST_NAMED = 20

_ASKED_AT_ONCE = 262_144
"""Entries of a manifest that a retry looks for among the run's rows at once. Each time it reads the keys of all these
rows, because the manifest is in the order of the uploads, and the rows are in the order of keys."""


@dataclass(frozen=True)
class OutcomeCounts:
    """Photos, features, quarantined ones by reason, pending ones by cause, bytes read, executor seconds by phase."""

    images: int = 0
    features: int = 0
    quarantine: Mapping[str, int] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    photo_seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def __add__(self, other: "OutcomeCounts") -> "OutcomeCounts":
        """The counts of both."""
        return OutcomeCounts(
            images=self.images + other.images,
            features=self.features + other.features,
            quarantine=_sums(self.quarantine, other.quarantine),
            pending=_sums(self.pending, other.pending),
            bytes=self.bytes + other.bytes,
            photo_seconds={
                name: round(value, 3) for name, value in _sums(self.photo_seconds, other.photo_seconds).items()
            },
        )

    @property
    def nothing_read(self) -> bool:
        """Whether no photo could be read, and none was quarantined."""
        return not self.features and not self.quarantine


def _sums(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of a chunk's photos.

    Attributes:
        counts: Their counts.
        files: The files of the features.
        others: The photos without a feature, with ``OTHERS_SCHEMA``, in key order.
    """

    counts: OutcomeCounts
    files: Sequence[WrittenFile]
    others: pa.Table

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> "Outcomes":
        """The outcomes in the rows of tasks (``RESULT_SCHEMA``)."""
        others = pa.concat_tables([OTHERS_SCHEMA.empty_table(), *(unpacked(bytes(row["others"])) for row in results)])
        read = others.filter(pc.is_null(others["pending"]))
        features = sum(row["features"] for row in results)
        counts = OutcomeCounts(
            images=features + len(others),
            features=features,
            quarantine=dict(Counter(read["reason"].to_pylist())),
            pending=dict(Counter(others["pending"].drop_null().to_pylist())),
            bytes=sum(row["bytes"] for row in results) + (pc.sum(read["size"]).as_py() or 0),
            photo_seconds={phase: sum(row[f"seconds_{phase}"] for row in results) for phase in STAGES},
        )
        files = [file_in(row) for row in results if row["uri"]]
        return cls(counts, files, others.sort_by("key"))

    @property
    def quarantine(self) -> pa.Table:
        """The rows of `quarantine`."""
        rows = self.others.filter(pc.is_null(self.others["pending"])).select(QUARANTINE.schema.names)
        return rows.cast(QUARANTINE.schema)

    @property
    def pending(self) -> Sequence[Mapping[str, Any]]:
        """``key``, ``pending`` and ``detail`` of the photos that could not be read now."""
        rows = self.others.filter(pc.is_valid(self.others["pending"]))
        pending: list[Mapping[str, Any]] = rows.select(["key", "pending", "detail"]).to_pylist()
        return pending


@dataclass(frozen=True)
class Done:
    """What was carried out of a chunk, or of a whole run.

    Attributes:
        counts: The outcomes.
        unread: Keys of photos that could not be read now: pending ones, and those that are gone from the bucket.
        example: A photo that is pending, and why; empty when there is none.
        entries: Entries of the manifest that were carried out.
    """

    counts: OutcomeCounts
    unread: Sequence[str] = ()
    example: str = ""
    entries: int = 0

    def __add__(self, other: "Done") -> "Done":
        """What was carried out of both."""
        return Done(
            self.counts + other.counts,
            (*self.unread, *other.unread),
            self.example or other.example,
            self.entries + other.entries,
        )


def counts_there(job: Job, heads: Snapshots) -> OutcomeCounts:
    """The photos that earlier attempts have carried out, by the rows at ``heads``."""
    features, size = 0, 0
    quarantine: Counter[str] = Counter()
    for rows in _rows_there(job, heads, FEATURES, ("size",)):
        features += rows.num_rows
        size += pc.sum(rows["size"]).as_py() or 0
    for rows in _rows_there(job, heads, QUARANTINE, ("size", "reason")):
        quarantine.update(rows["reason"].to_pylist())
        size += pc.sum(rows["size"]).as_py() or 0
    return OutcomeCounts(features + quarantine.total(), features, dict(quarantine), bytes=size)


def pieces_to_do(job: Job, manifest: StoredManifest, heads: Snapshots) -> Iterator[Piece]:
    """What the run has still to carry out, in the order of the manifest: what has no rows of the run at ``heads``.

    The key and the run of a row count, and not its ETag: an object may have changed after the plan.
    """
    for entries in manifest.slices(most=_ASKED_AT_ONCE):
        keys = sorted(entries.table["key"].to_pylist())
        there = [
            rows["key"] for table in (FEATURES, QUARANTINE) for rows in _rows_there(job, heads, table, ("key",), keys)
        ]
        yield piece_to_do(entries, pa.chunked_array(there, pa.string()))


def _rows_there(
    job: Job, heads: Snapshots, table: TableDefinition, columns: Sequence[str], keys: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Columns of the run's own rows at ``heads``, of sorted ``keys`` (None: all); none at the plan's base.

    Rows that an attempt kept because it could not read their photos are not among them: this attempt tries again.
    """
    if heads[table.name] == job.start[table.name]:
        return
    run, at, read = job.run, heads[table.name], (*columns, "etag")
    for rows in job.lake.batches(table.name, at, read, keys=keys, model_id=run.model_id, run_id=run.run_id):
        yield rows.filter(pc.not_equal(rows["etag"], DUE_ETAG))


def chunk_limits(job: Job, photos: int) -> Limits:
    """The limits of the chunks of a run of so many photos; few photos need no Spark, and so no look at its cores."""
    return limits_of(job.settings, photos, job.tables.cores if photos > job.settings.few_photos else 1)


def outcomes_of(job: Job, photos: Manifest, witnesses: Sequence[str], *, before: int, total: int) -> Outcomes:
    """Featurize some photos: the features are in files then, which no snapshot has yet.

    Few photos are the driver's own work: Spark and a worker would take longer to start. ``before`` of the run's
    ``total`` photos are done.
    """
    target = file_target(job.lake, FEATURES, job.run.model_id)
    function = featurize(job.settings, job.run.model_id, job.run.run_id, target, witnesses)
    if total <= job.settings.few_photos and are_few(photos, job.settings):
        work = tasks_table(in_tasks(photos, job.settings, cores=1))
        return Outcomes.of(map_table(work, function, RESULT_SCHEMA).to_pylist())
    work = tasks_table(in_tasks(photos, job.settings, job.tables.cores))
    progress = Progress("featurize", total, before=before, inside=len(photos))
    rows = job.tables.executors.run(work, function, RESULT_SCHEMA, progress)
    return Outcomes.of([row for batch in rows for row in batch.to_pylist()])


def tasks_table(tasks: Sequence[Manifest]) -> pa.Table:
    """The work of tasks, with ``TASKS_SCHEMA``."""
    return pa.table({"entries": [packed(task.table) for task in tasks]}, TASKS_SCHEMA)


def usd_per_million(core_seconds: float, photos: int, core_hour_usd: float) -> float | None:
    """What a million photos cost in USD when some took so many core seconds; None without photos."""
    return round(core_seconds / photos * 1e6 / 3_600 * core_hour_usd, 3) if photos else None


def witnesses_of(job: Job, manifest: StoredManifest) -> tuple[str, ...]:
    """Keys that show whether the bucket can be read at all; see ``PhotoServer``."""
    published = job.lake.some_keys(job.start["features"], PUBLISHED_ASKED)
    return (*published, *manifest.sample_of_readable(PHOTOS_ASKED))


def unread_of(job: Job, outcomes: Outcomes, witnesses: Sequence[str]) -> tuple[Sequence[str], str]:
    """Keys of the photos of a chunk that could not be read now, and an example in words; see ``Done``.

    Raises:
        TransientError: when no photo could be read, and the S3 server answers nothing: a retry may read some.
    """
    rows = outcomes.pending
    left = [row for row in rows if row["pending"] != Pending.VANISHED]
    for row in left[:_MOST_NAMED]:
        log.warning("%s is pending, %s: %s; the next run takes it", row["key"], row["pending"], row["detail"])
    example = f"{left[0]['key']}: {left[0]['detail']}" if left else ""
    if left and outcomes.counts.nothing_read and not server_answers(job, witnesses):
        raise nothing_read(outcomes.counts, example)
    return [row["key"] for row in rows], example


def check_something_done(done: Done) -> None:
    """See that a run with pending photos has carried out anything.

    Raises:
        TransientError: otherwise. A retry may read the photos.
    """
    if done.example and done.counts.nothing_read and not done.entries:
        raise nothing_read(done.counts, done.example)


def nothing_read(counts: OutcomeCounts, example: str) -> TransientError:
    """The error of a run, or a chunk, of which no photo could be read."""
    return TransientError(
        f"featurize: none of {counts.images:,} photos could be read now ({dict(counts.pending)}); the first, "
        f"{example}. The run is tried again; check the S3 server and the network"
    )


def server_answers(job: Job, witnesses: Sequence[str]) -> bool:
    """Whether the S3 server gives a photo to the driver, who asks for some."""
    try:
        return can_read_any(photo_store(job.settings), witnesses)
    except TransientError:
        return False


def write_outcomes(job: Job, outcomes: Outcomes) -> None:
    """Append features and quarantined objects to the attempt's branch, each in one snapshot; both are in key order."""
    if outcomes.files:
        append_files(job.lake, FEATURES, job.run.model_id, outcomes.files, job.tables.writer)
    if outcomes.quarantine.num_rows:
        job.tables.append("quarantine", outcomes.quarantine)
