"""The functions that run on the executors: from batches of rows to batches of rows.

A function travels to the executors with its arguments; the module is imported there. So this module imports no more
than it needs, and an executor never imports TensorFlow.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from fruits.analysis.labels import LabelSums, merge_sums, sum_from_bytes, sum_to_bytes, sums_of
from fruits.analysis.moments import Moments, from_bytes, merge_all, moments_of, to_bytes
from fruits.analysis.pca import PCA, transform
from fruits.backbones.stage import load_backbone_once
from fruits.errors import FruitsError
from fruits.lake.schemas import EMBEDDINGS, FEATURES, QUARANTINE
from fruits.photos.featurize import STAGES, Outcome, featurize_entries
from fruits.photos.fetch import PhotoServer
from fruits.run.manifest import entries_of
from fruits.settings import Settings
from fruits.spark.release import BatchFunction

OUTCOME_SCHEMA = pa.schema(
    [
        *(field.with_nullable(True) for field in FEATURES.schema),
        pa.field("pending", pa.string()),
        *(QUARANTINE.schema.field(name).with_nullable(True) for name in ("reason", "detail", "limit", "decoder")),
        *(pa.field(f"seconds_{phase}", pa.float64()) for phase in STAGES),
    ]
)
"""A photo's outcome: a row of `features`, or one of `quarantine`, or why it is pending; and the seconds by phase."""

STATISTICS_SCHEMA = pa.schema([("label", pa.string()), ("sums", pa.binary())])
"""Partial statistics: moments in a row without a label, and a row with the sum of each label."""

SQUARES_SCHEMA = pa.schema([("explained", pa.float64()), ("unexplained", pa.float64())])

_PHOTO_COLUMNS = ("sha256", "phash", "width", "height", "format", "vector")


def featurize(
    settings: Settings, model_id: str, run_id: str, witnesses: Sequence[str] = (), rows_per_batch: int = 64
) -> BatchFunction:
    """From entries of the manifest to outcomes, with ``OUTCOME_SCHEMA``; for ``witnesses`` see ``PhotoServer``.

    The catalog's password does not travel.
    """
    settings = settings.for_executors()

    def outcomes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        entries = (entry for batch in batches for entry in entries_of(batch))
        backbone = load_backbone_once(settings, model_id)
        server = _server_once(settings, run_id, tuple(witnesses))
        _freeze_once()
        rows = []
        for outcome in featurize_entries(entries, server, backbone, settings):
            rows.append(_outcome_row(outcome, model_id, run_id))
            if len(rows) == rows_per_batch:
                yield pa.RecordBatch.from_pylist(rows, OUTCOME_SCHEMA)
                rows = []
        yield pa.RecordBatch.from_pylist(rows, OUTCOME_SCHEMA)

    return outcomes


@lru_cache(maxsize=1)
def _server_once(settings: Settings, run_id: str, witnesses: tuple[str, ...]) -> PhotoServer:  # noqa: ARG001
    """The server of a run's photos, one for each worker and run: what one task learns of it, the next task knows."""
    return PhotoServer(settings, witnesses)


@lru_cache(maxsize=1)
def _freeze_once() -> None:
    """Keep what a worker has loaded out of the garbage collection that PySpark starts after each task."""
    gc.collect()
    gc.freeze()


def _outcome_row(outcome: Outcome, model_id: str, run_id: str) -> dict[str, object]:
    entry, feature = outcome.entry, outcome.feature
    row: dict[str, object] = {
        "key": entry.key,
        "etag": outcome.etag,
        "size": outcome.size,
        "last_modified": outcome.last_modified,
        "model_id": model_id,
        "run_id": run_id,
        "pending": outcome.pending,
        **{name: getattr(outcome, name) for name in ("reason", "detail", "limit", "decoder")},
        **{f"seconds_{phase}": seconds for phase, seconds in outcome.seconds.items()},
    }
    if feature is None:
        return row
    photo = {name: getattr(feature, name) for name in _PHOTO_COLUMNS}
    return {**row, **photo, "label": entry.label, "split": entry.split}


@dataclass(frozen=True)
class Statistics:
    """Moments of some rows, and their sums by label."""

    moments: Moments
    labels: LabelSums


def partial_statistics(width: int) -> BatchFunction:
    """From features (``key``, ``label``, ``vector``) to statistics, with ``STATISTICS_SCHEMA``.

    A task without features gives none: the moments, 7 MB at 1,280 features, would be all zeros.
    """

    def statistics(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _rows_of(_merged(map(_of_features, filter(len, batches)), width))

    return statistics


def merged_statistics(width: int) -> BatchFunction:
    """From partial statistics to those of all of them together; both have ``STATISTICS_SCHEMA``."""

    def statistics(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _rows_of(merge_partials(batches, width))

    return statistics


def merge_partials(batches: Iterable[pa.RecordBatch], width: int) -> Statistics:
    """The statistics in rows with ``STATISTICS_SCHEMA``, merged."""
    return _merged(map(_of_partials, batches), width)


_Parts = tuple[Iterable[Moments], Iterable[LabelSums]]


def _of_features(batch: pa.RecordBatch) -> _Parts:
    vectors = matrix(batch["vector"])
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        key = batch["key"][int(np.argmin(finite))].as_py()
        raise FruitsError(
            f"features: the vector of {key} has NaN or infinity; check the backbone's weights. Nothing is published."
        )
    return [moments_of(vectors)], [sums_of(vectors, batch["label"].to_pylist())]


def _of_partials(batch: pa.RecordBatch) -> _Parts:
    rows = list(zip(batch["label"].to_pylist(), batch["sums"], strict=True))
    return (
        (from_bytes(data.as_py()) for label, data in rows if label is None),
        ({label: sum_from_bytes(data.as_py())} for label, data in rows if label is not None),
    )


def _merged(parts: Iterable[_Parts], width: int) -> Statistics:
    labels: LabelSums = {}

    def moments() -> Iterator[Moments]:
        nonlocal labels
        yield Moments.empty(width)
        for some, sums in parts:
            labels = merge_sums([labels, *sums])
            yield from some

    return Statistics(merge_all(moments()), labels)


def _rows_of(found: Statistics) -> Iterator[pa.RecordBatch]:
    """A row for the moments, without a label, and one for each label; none without features."""
    if found.moments.n:
        yield pa.RecordBatch.from_pylist([{"label": None, "sums": to_bytes(found.moments)}], STATISTICS_SCHEMA)
        rows = [{"label": label, "sums": sum_to_bytes(one)} for label, one in found.labels.items()]
        yield pa.RecordBatch.from_pylist(rows, STATISTICS_SCHEMA)


def squared_norms(pca: PCA) -> BatchFunction:
    """From features (``vector``) to squared lengths of embedding and residual, with ``SQUARES_SCHEMA``."""

    def squares(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in filter(len, batches):
            embedding, residual = transform(pca, matrix(batch["vector"]))
            explained, unexplained = np.square(embedding).sum(1, dtype=float), np.square(residual.astype(float))
            yield pa.RecordBatch.from_pydict({"explained": explained, "unexplained": unexplained})

    return squares


def project(pca: PCA, model_id: str, pca_id: str, run_id: str) -> BatchFunction:
    """From features (``key``, ``etag``, ``label``, ``split``, ``vector``) to rows of `embeddings`."""
    constants = {"model_id": model_id, "pca_id": pca_id, "run_id": run_id}

    def embeddings(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in filter(len, batches):
            yield _embeddings(batch, pca, constants)

    return embeddings


def _embeddings(batch: pa.RecordBatch, pca: PCA, constants: dict[str, str]) -> pa.RecordBatch:
    embedding, residual = transform(pca, matrix(batch["vector"]))
    values = {name: batch[name] for name in ("key", "etag", "label", "split")}
    values |= {name: pa.repeat(value, batch.num_rows) for name, value in constants.items()}
    offsets = pa.array(range(0, embedding.size + 1, pca.n_components), pa.int32())
    values |= {"embedding": pa.ListArray.from_arrays(offsets, embedding.ravel()), "residual": residual}
    schema = EMBEDDINGS.schema
    return pa.RecordBatch.from_arrays(
        [pa.array(values[name]).cast(schema.field(name).type) for name in schema.names], schema=schema
    )


def matrix(vectors: pa.ListArray) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """A list column as a matrix, shape ``(rows, d)``."""
    return np.asarray(vectors.flatten(), dtype=np.float32).reshape(len(vectors), -1)
