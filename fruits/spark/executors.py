"""The functions that run on the executors: from batches of rows to batches of rows.

A function travels to the executors with its arguments; the module is imported there. So this module imports no more
than it needs, and an executor never imports TensorFlow.
"""

import gc
import hashlib
import heapq
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.labels import LabelSums, merge_sums, sum_from_bytes, sum_to_bytes, sums_of
from fruits.analysis.moments import Moments, from_bytes, merge_all, moments_of, to_bytes
from fruits.analysis.pca import PCA, transform
from fruits.backbones.stage import load_backbone_once
from fruits.errors import FruitsError
from fruits.lake.files import FilePart, FileTarget, WrittenFile, read_part, write_rows
from fruits.lake.places import places
from fruits.lake.schemas import EMBEDDINGS, QUARANTINE, matrix
from fruits.photos.featurize import STAGES, Outcome, featurize_entries
from fruits.photos.fetch import PhotoServer
from fruits.run.manifest import entries_of
from fruits.settings import Settings
from fruits.spark.release import BatchFunction

TASKS_SCHEMA = pa.schema([("entries", pa.binary())])
"""The work of a task: entries of the manifest, packed."""

OTHERS_SCHEMA = pa.schema(
    [*(field.with_nullable(True) for field in QUARANTINE.schema), pa.field("pending", pa.string())]
)
"""A photo without a feature: a row of `quarantine`, or why it is pending."""

_FILE_COLUMNS = (("uri", pa.string()), ("file_size", pa.int64()), ("footer", pa.binary()))

RESULT_SCHEMA = pa.schema(
    [
        *_FILE_COLUMNS,
        *(("features", pa.int64()), ("bytes", pa.int64()), ("others", pa.binary())),
        *((f"seconds_{phase}", pa.float64()) for phase in STAGES),
    ]
)
"""What a task made: the file of its features, if there are any, their number, and the bytes of their photos; the
photos without a feature, packed, with ``OTHERS_SCHEMA``; and the seconds by phase."""

PARTS_SCHEMA = pa.schema([("parts", pa.string())])
"""The work of a task: parts of files to read, as JSON."""

FILE_SCHEMA = pa.schema([*_FILE_COLUMNS, ("rows", pa.int64())])
"""A file that a task wrote, and its rows."""

STATISTICS_SCHEMA = pa.schema([("label", pa.string()), ("sums", pa.binary())])
"""Partial statistics: moments in a row without a label, and a row with the sum of each label."""

SQUARES_SCHEMA = pa.schema([("rows", pa.int64()), ("explained", pa.float64()), ("unexplained", pa.float64())])
"""The number of some rows; the squared lengths of their embeddings and of their residuals, summed."""

PLACED_SCHEMA = pa.schema([("key", pa.string()), ("split", pa.string())])
"""What decides where a photo stands among all."""

TOTALS_SCHEMA = pa.schema(
    [*((name, pa.int64()) for name in ("rows", "unusable", "wrong_width")), ("square", pa.float64())]
)
"""Vectors: how many, those that are no finite numbers or all zeros, those of another width, and the sum of squares."""

_ROWS_AT_ONCE = 4_096  # of a batch that goes into a file
_SQUARED_AT_ONCE = 1_024  # 20 MB of numbers
_READ_COLUMNS = ("etag", "size", "last_modified")
_OTHER_COLUMNS = ("reason", "detail", "limit", "decoder", "pending")
_PHOTO_COLUMNS = ("sha256", "phash", "width", "height", "format")


def featurize(
    settings: Settings,
    model_id: str,
    run_id: str,
    target: FileTarget,
    witnesses: Sequence[str] = (),
    rows_per_batch: int = 64,
) -> BatchFunction:
    """From entries of the manifest (``TASKS_SCHEMA``) to a file of features and the rest (``RESULT_SCHEMA``).

    For ``witnesses`` see ``PhotoServer``. The catalog's password does not travel. What a task made is what its row
    says: of a task that ran twice, one row reaches the driver.
    """
    settings = settings.for_executors()

    def results(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        entries = (
            entry
            for batch in batches
            for packed in batch["entries"]
            for some in unpacked(packed.as_py()).to_batches()
            for entry in entries_of(some)
        )
        backbone = load_backbone_once(settings, model_id)
        server = _server_once(settings, run_id, tuple(witnesses))
        _freeze_once()
        made = _Made(model_id, run_id, target.schema)
        outcomes = featurize_entries(entries, server, backbone, settings)
        file = write_rows(settings, target, made.features_of(outcomes, rows_per_batch))
        if made.images:
            yield pa.RecordBatch.from_pylist([made.result(file)], RESULT_SCHEMA)

    return results


def run_task(driver: int, function: BatchFunction, work: pa.RecordBatch, schema: pa.Schema) -> list[pa.RecordBatch]:
    """What ``function`` makes of the work of a task, with ``schema``; in the ``driver`` or in a process of its own."""
    if os.getppid() == driver:
        _end_with_driver(driver)
    return [made.cast(schema) for made in function(iter((work,)))]


@lru_cache(maxsize=1)
def _end_with_driver(driver: int) -> None:
    """End this process soon after the driver's, however that ends."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with the driver").start()


def _file_columns(file: WrittenFile) -> dict[str, object]:
    return {"uri": file.uri, "file_size": file.size, "footer": file.footer}


def file_in(row: Mapping[str, Any]) -> WrittenFile:
    """The file in the row of a task that wrote one (``RESULT_SCHEMA``, ``FILE_SCHEMA``)."""
    return WrittenFile(row["uri"], row["file_size"], bytes(row["footer"]))


class _Made:
    """What a task makes of its photos: rows of features, and counts and rows of the rest."""

    def __init__(self, model_id: str, run_id: str, schema: pa.Schema) -> None:
        self._constants = {"model_id": model_id, "run_id": run_id}
        self._schema = schema
        self._others: list[dict[str, object]] = []
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._features = self._bytes = 0

    @property
    def images(self) -> int:
        """The photos so far."""
        return self._features + len(self._others)

    def features_of(self, outcomes: Iterable[Outcome], rows_per_batch: int) -> Iterator[pa.RecordBatch]:
        """The features among outcomes, as rows; the rest is kept."""
        features = filter(self._is_feature, outcomes)
        while some := list(islice(features, rows_per_batch)):
            yield self._feature_rows(some)

    def result(self, file: WrittenFile | None) -> dict[str, object]:
        """The row of the task, with ``RESULT_SCHEMA``."""
        return {
            **(_file_columns(file) if file else {}),
            "features": self._features,
            "bytes": self._bytes,
            "others": packed(pa.Table.from_pylist(self._others, OTHERS_SCHEMA)),
            **{f"seconds_{phase}": seconds for phase, seconds in self._seconds.items()},
        }

    def _is_feature(self, outcome: Outcome) -> bool:
        for phase, seconds in outcome.seconds.items():
            self._seconds[phase] += seconds
        if outcome.feature is None:
            known = {name: getattr(outcome, name) for name in _READ_COLUMNS + _OTHER_COLUMNS}
            self._others.append({"key": outcome.entry.key, **known, **self._constants})
            return False
        self._features += 1
        self._bytes += outcome.size
        return True

    def _feature_rows(self, outcomes: Sequence[Outcome]) -> pa.RecordBatch:
        """Rows of `features`; the vectors are one buffer."""
        features = [outcome.feature for outcome in outcomes if outcome.feature]
        vectors = np.stack([feature.vector for feature in features])
        columns: dict[str, Sequence[object] | pa.Array] = {
            **{name: [getattr(outcome.entry, name) for outcome in outcomes] for name in ("key", "label", "split")},
            **{name: [getattr(outcome, name) for outcome in outcomes] for name in _READ_COLUMNS},
            **{name: [getattr(feature, name) for feature in features] for name in _PHOTO_COLUMNS},
            **{name: pa.repeat(value, len(outcomes)) for name, value in self._constants.items()},
            "vector": list_array(vectors, self._schema.field("vector").type),
        }
        return pa.RecordBatch.from_arrays(
            [pa.array(columns[field.name], field.type) for field in self._schema], schema=self._schema
        )


def packed(table: pa.Table) -> bytes:
    """A table as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def unpacked(data: bytes) -> pa.Table:
    """The table in ``packed`` bytes."""
    return pa.ipc.open_stream(data).read_all()


def list_array(rows: np.ndarray[Any, Any], kind: pa.ListType) -> pa.ListArray:
    """A matrix, shape ``(rows, d)``, as a list column of ``kind``, without a copy."""
    offsets = pa.array(np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)), type=kind)


@lru_cache(maxsize=1)
def _server_once(settings: Settings, run_id: str, witnesses: tuple[str, ...]) -> PhotoServer:  # noqa: ARG001
    """The server of a run's photos, one for each worker and run: what one task learns of it, the next task knows."""
    return PhotoServer(settings, witnesses)


@lru_cache(maxsize=1)
def _freeze_once() -> None:
    """Keep what a worker has loaded out of the garbage collection that PySpark starts after each task."""
    gc.collect()
    gc.freeze()


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


def squares_under(pca: PCA) -> BatchFunction:
    """From features (``vector``) to the squares of their embeddings and residuals, with ``SQUARES_SCHEMA``."""

    def squares(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return _summed(transform(pca, matrix(batch["vector"])) for batch in filter(len, batches))

    return squares


def squares_but(name: str, value: str) -> BatchFunction:
    """The same of embeddings (``embedding``, ``residual``) that have another value in a column."""

    def squares(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        others = (batch.filter(pc.not_equal(batch[name], value)) for batch in batches)
        return _summed(
            (matrix(batch["embedding"]), batch["residual"].to_numpy(zero_copy_only=False))
            for batch in filter(len, others)
        )

    return squares


def _summed(projected: Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> Iterator[pa.RecordBatch]:
    """A row with ``SQUARES_SCHEMA`` for embeddings and residuals; none without any."""
    sums = [(len(both[0]), *(float(np.square(one, dtype=np.float64).sum()) for one in both)) for both in projected]
    if sums:
        totals = [[sum(column)] for column in zip(*sums, strict=True)]
        yield pa.RecordBatch.from_arrays([pa.array(total) for total in totals], schema=SQUARES_SCHEMA)


def reading(
    settings: Settings, function: BatchFunction, columns: Sequence[str], where: Mapping[str, str]
) -> BatchFunction:
    """``function`` of columns of rows that the executor reads, those ``where`` columns have their values.

    From parts of files (``PARTS_SCHEMA``) to what the function makes.
    """
    settings = settings.for_executors()

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = (
            FilePart(**{**part, "deletes": tuple(part["deletes"])})
            for batch in batches
            for packed in batch["parts"]
            for part in json.loads(packed.as_py())
        )
        return function(_ahead(rows for part in parts for rows in read_part(settings, part, columns, where)))

    return read


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches; the next one is read while its predecessor is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def of_numbered(work: pa.Table, function: BatchFunction) -> BatchFunction:
    """``function`` of the rows of ``work`` with some numbers (``id``)."""

    def numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        numbers = (number for batch in batches for number in batch["id"].to_pylist())
        return function(part for number in numbers for part in work.slice(number, 1).to_batches())

    return numbered


def first_keys(most: int) -> BatchFunction:
    """The ``most`` first of some photos (``PLACED_SCHEMA``), by their places."""

    def first(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        photos = (
            photo
            for batch in batches
            for photo in zip(places(batch), batch["key"].to_pylist(), batch["split"].to_pylist(), strict=True)
        )
        found = heapq.nsmallest(most, photos)
        columns = [pa.array([photo[number] for photo in found], pa.string()) for number in (1, 2)]
        yield pa.RecordBatch.from_arrays(columns, schema=PLACED_SCHEMA)

    return first


def rows_of_keys(keys: Sequence[str], schema: pa.Schema) -> BatchFunction:
    """The rows of some keys, with ``schema``."""

    def chosen(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        wanted = pa.array(keys, pa.string())
        found = (batch.filter(pc.is_in(batch["key"], wanted)) for batch in batches)
        return (batch.cast(schema) for batch in filter(len, found))

    return chosen


def writing(settings: Settings, function: BatchFunction, target: FileTarget) -> BatchFunction:
    """A file of the rows that ``function`` makes, in the order of their keys, with ``FILE_SCHEMA``; none without rows.

    The rows of a task are in memory.
    """
    settings = settings.for_executors()

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        made = list(function(batches))
        if not made:
            return
        rows = _in_key_order(pa.Table.from_batches(made)).cast(target.schema)
        file = write_rows(settings, target, rows.to_batches(_ROWS_AT_ONCE))
        if file:
            yield pa.RecordBatch.from_pylist([{**_file_columns(file), "rows": len(rows)}], FILE_SCHEMA)

    return write


def _in_key_order(rows: pa.Table) -> pa.Table:
    """The rows sorted by key. Those of one file are already, and a copy of them is spared."""
    keys = rows["key"].combine_chunks()
    is_sorted = pc.all(pc.less_equal(keys[:-1], keys[1:])).as_py()
    return rows if is_sorted in (True, None) else rows.sort_by("key")


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
    schema = EMBEDDINGS.schema
    values |= {"embedding": list_array(embedding, schema.field("embedding").type), "residual": residual}
    return pa.RecordBatch.from_arrays(
        [pa.array(values[name]).cast(schema.field(name).type) for name in schema.names], schema=schema
    )


def vector_totals(width: int) -> BatchFunction:
    """From features (``vector``) to totals of the vectors, with ``TOTALS_SCHEMA``, a row for each batch."""

    def totals(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in filter(len, batches):
            for start in range(0, len(batch), _SQUARED_AT_ONCE):
                yield _totals(batch["vector"].slice(start, _SQUARED_AT_ONCE), width)

    return totals


def _totals(vectors: pa.ListArray, width: int) -> pa.RecordBatch:
    """The vectors may be of different widths. NaN and infinity come through."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(np.asarray(vectors.flatten(), float))
        squares = np.bincount(pc.list_parent_indices(vectors), squares, len(vectors))
    usable = np.isfinite(squares) & (squares > 0)
    wrong_width = pc.sum(pc.not_equal(pc.list_value_length(vectors), width)).as_py()
    row = {"rows": len(vectors), "unusable": int((~usable).sum()), "wrong_width": wrong_width, "square": squares.sum()}
    return pa.RecordBatch.from_pylist([row], TOTALS_SCHEMA)


def share_of_keys(share: float) -> BatchFunction:
    """About a ``share`` of the rows, 0 to 1, chosen by the SHA-256 of their keys: the same ones in all tables."""
    most = int(share * 2**64)

    def is_chosen(key: str) -> bool:
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < most

    def chosen(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            mask = pa.array([is_chosen(key) for key in batch["key"].to_pylist()], pa.bool_())
            yield batch.filter(mask)

    return chosen
