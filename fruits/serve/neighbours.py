"""The published photos that are nearest to a photo, among any number of them.

The photos of a publication are rows of immutable files. Most of them are in segments on this machine's disk
(`fruits.serve.segments`), and what no segment has is compared as it is, photo by photo. ``build`` makes the segments
that a publication lacks: outside the lease and the DAG, beside readers, and beside another ``build``. A new publication
keeps the segments whose files it still has; deleted rows are left out of their searches. See
``docs/decisions/20-neighbour-index.md``.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fruits.analysis.pca import PCA, whiten
from fruits.disks import is_full
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.files import FilePart, Places, deleted_places, in_groups, read_part
from fruits.lake.parts import whole_files
from fruits.lake.publication import Publication
from fruits.lake.reader import PublishedRows
from fruits.serve.segments import (
    CLOSE,
    Candidates,
    Directions,
    PlacedPhotos,
    Segment,
    SegmentFile,
    card_of,
    cosines_of,
    joined,
    leftovers,
    names,
    open_segment,
    remove,
    write_segment,
)
from fruits.settings import Settings

log = logging.getLogger("fruits")

EXACT_ROWS = 100_000
"""So many photos without a segment are compared one by one: fewer are searched exactly, without any index."""

MOST_ROWS = 2**20
"""Photos of a segment, and a file more: this bounds the memory that building one takes."""

MOST_DEAD = 0.25
"""A segment of which a larger share of photos is no longer published is built anew."""

_COLUMNS = ("key", "label", "embedding")
_DIGITS = 5  # of a similarity
_ROWS_AT_ONCE = 8_192
_QUERIES_AT_ONCE = 1_024


@dataclass(frozen=True)
class Neighbour:
    """A published photo near another photo; ``similarity`` is the cosine of the whitened embeddings, -1 to 1."""

    key: str
    label: str
    similarity: float


class Photos(Protocol):
    """Photos that can be searched: `Segment` and `Unindexed`."""

    @property
    def keys(self) -> pa.Array:
        """Keys of the photos."""

    @property
    def labels(self) -> pa.Array:
        """Labels of the photos."""

    def candidates(self, directions: Directions, count: int) -> Iterator[Candidates]:
        """For each direction, photos that may be among its ``count`` nearest, with all that are as near as the last."""


@dataclass(frozen=True, eq=False)
class Unindexed:
    """Photos that no segment has: each is compared with each query."""

    keys: pa.Array
    labels: pa.Array
    directions: Directions

    def candidates(self, directions: Directions, count: int) -> Iterator[Candidates]:
        """For each direction, photos that may be among its ``count`` nearest, with all that are as near as the last."""
        for start in range(0, len(directions), _QUERIES_AT_ONCE):
            queries = directions[start : start + _QUERIES_AT_ONCE]
            for query, rows in zip(queries, self._near(queries, count), strict=True):
                yield rows, cosines_of(self.directions[rows], query)

    def _near(self, queries: Directions, count: int) -> list[NDArray[np.int64]]:
        best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        for start in range(0, len(self.directions), _ROWS_AT_ONCE):
            cosines = queries @ self.directions[start : start + _ROWS_AT_ONCE].T
            for query, row in enumerate(cosines):
                rows, before = best[query]
                near = np.flatnonzero(row >= _last(row, count) - CLOSE)
                rows, merged = np.concatenate([rows, start + near]), np.concatenate([before, row[near]])
                kept = merged >= _last(merged, count) - CLOSE
                best[query] = rows[kept], merged[kept]
        return [rows for rows, _ in best]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The photos of a publication, to be searched; threads may share them.

    Attributes:
        publication_id: The publication.
        pca: Its PCA, which whitens.
        segments: The photos that are in segments.
        unindexed: The others; None without any.
    """

    publication_id: str
    pca: PCA
    segments: tuple[Segment, ...]
    unindexed: Unindexed | None

    @property
    def rows(self) -> int:
        """The number of photos."""
        return sum(segment.live_rows for segment in self.segments) + self.unindexed_rows

    @property
    def unindexed_rows(self) -> int:
        """The number of photos that no segment has."""
        return len(self.unindexed.keys) if self.unindexed else 0

    def nearest(self, queries: NDArray[np.float32], count: int) -> list[list[Neighbour]]:
        """For each query, the ``count`` published photos of the greatest cosine, the best first, equal cosines by key.

        The cosines are exact. Photos in a segment may be missed; the decision says how seldom.

        Args:
            queries: Embeddings, shape ``(q, k)``.
            count: At least 1.
        """
        directions = directions_of(self.pca, queries)
        best: list[list[Neighbour]] = [[] for _ in directions]
        parts: list[Photos] = [*self.segments, *([self.unindexed] if self.unindexed else [])]
        for photos in parts:
            for found, candidates in zip(best, photos.candidates(directions, count), strict=True):
                found.extend(_nearest(photos, candidates, count))
        return [sorted(found, key=lambda photo: (-photo.similarity, photo.key))[:count] for found in best]


@dataclass(frozen=True)
class Built:
    """What a ``build`` left: photos of the publication, those in segments, segments by what became of them."""

    publication_id: str
    rows: int
    indexed_rows: int
    segments: int
    built: int
    removed: int
    bytes: int


def open_neighbours(
    lake: Lake,
    publication: Publication,
    pca: PCA,
    *,
    before: Neighbours | None = None,
    exact_rows: int = EXACT_ROWS,
) -> Neighbours:
    """Open the photos of a publication for searches, with the segments that are there.

    What no segment has is read from the lake. Up to ``exact_rows`` of such photos are held in memory; more are in a
    file without a name in FRUITS_INDEX_FOLDER, whose pages the system reads as it needs them. Segments that ``before``
    has are not checked again.

    Raises:
        FruitsError: when the publication's snapshot has expired, or the folder cannot be written.
    """
    table = _Table.read(lake, publication, pca)
    with _explained(lake.settings):
        segments = _usable(table, _opened(lake.settings, before), exact_rows)
        unindexed = _unindexed(table, segments, exact_rows)
    return Neighbours(str(publication.publication_id), pca, tuple(segments), unindexed)


def build(
    lake: Lake,
    publication: Publication,
    pca: PCA,
    *,
    before: Neighbours | None = None,
    exact_rows: int = EXACT_ROWS,
    most_rows: int = MOST_ROWS,
) -> Built:
    """Build the segments that a publication lacks, and remove those that it does not use.

    Segments are merged like the runs of a log-structured tree (O'Neil and others, 1996): new photos take along each
    segment of less than twice their number. So there are few segments, and a photo is rarely written again. A second
    ``build`` waits for the first one and finds its segments. Segments for a newer publication stay. Segments that
    ``before`` has are not checked again.

    Raises:
        FruitsError: when the publication's snapshot has expired, or the folder cannot be written.
    """
    table = _Table.read(lake, publication, pca)
    with _explained(lake.settings), _locked(index_folder(lake.settings)) as folder:
        for path in leftovers(folder):
            remove(path)
        there = list(_opened(lake.settings, before))
        layout = planned(table.live, _usable(table, there, exact_rows), exact_rows, most_rows)
        cards = [card_of(table.pca_id, publication.sequence, table.held(group)) for group in layout.groups]
        for card in cards:
            log.info("neighbours: building a segment of %s photos", f"{card.rows:,}")
            write_segment(folder, card, table.photos(file.uri for file in card.files))
        newer = {segment.card.name for segment in there if segment.card.sequence > publication.sequence}
        used = {*layout.kept, *(card.name for card in cards)}
        unused = [name for name in names(folder) if name not in used | newer]
        for name in unused:
            remove(folder / name)
        size = sum(file.stat().st_size for name in used for file in (folder / name).iterdir())
    indexed = sum(table.live.values()) - layout.unindexed_rows
    rows = sum(table.live.values()) if table.files is not None else table.rows.total
    return Built(str(publication.publication_id), rows, indexed, len(used), len(cards), len(unused), size)


def index_folder(settings: Settings) -> Path:
    """The folder of the segments of one lake and namespace, in FRUITS_INDEX_FOLDER."""
    lake = hashlib.sha256(settings.lake.encode()).hexdigest()[:12]
    return settings.index_folder / f"{settings.namespace}-{lake}"


def directions_of(pca: PCA, embeddings: NDArray[np.float32]) -> Directions:
    """Whitened embeddings of length 1; a row of zeros stays zero and has a cosine of 0 with every row."""
    whitened = whiten(pca, embeddings)
    lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
    return np.asarray(whitened / np.where(lengths > 0, lengths, 1), dtype=np.float32)


@dataclass(frozen=True)
class Layout:
    """Segments to keep, by name, groups of files to build segments of, and photos that stay without a segment."""

    kept: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    unindexed_rows: int


def planned(live: Mapping[str, int], segments: Sequence[Segment], exact_rows: int, most_rows: int) -> Layout:
    """Decide which segments a publication is to have.

    Args:
        live: The live rows of each file, in the order of the table.
        segments: Those that may be used: no two have a file in common.
        exact_rows: As many photos may stay without a segment.
        most_rows: Size of the largest segments, and a file more.
    """
    sound = [segment for segment in segments if segment.live_rows >= (1 - MOST_DEAD) * segment.card.rows]
    kept = sorted(sound, key=lambda segment: segment.live_rows)
    covered = {uri for segment in kept for uri in segment.covers}
    rows = sum(count for uri, count in live.items() if uri not in covered)
    if rows <= exact_rows:
        return Layout(tuple(segment.card.name for segment in kept), (), rows)
    while kept and kept[0].live_rows < min(2 * rows, most_rows - rows + 1):
        rows += kept[0].live_rows
        covered -= kept.pop(0).covers
    waiting = [uri for uri, count in live.items() if uri not in covered and count]
    groups = in_groups(waiting, live.__getitem__, most_rows)
    return Layout(tuple(segment.card.name for segment in kept), tuple(map(tuple, groups)), 0)


@dataclass(frozen=True, eq=False)
class _Table:
    """The embeddings of a publication: files (None: PyIceberg alone can read them) and the deleted places of each."""

    rows: PublishedRows
    pca: PCA
    pca_id: str
    files: Mapping[str, FilePart] | None
    deleted: Mapping[str, Places]

    @classmethod
    def read(cls, lake: Lake, publication: Publication, pca: PCA) -> "_Table":
        pca_id, snapshot_id = str(publication.pca_id), publication.snapshots["embeddings"]
        files = whole_files(lake, "embeddings", snapshot_id, pca_id=pca_id)
        deleted = deleted_places(lake.settings, files or [])
        rows = PublishedRows(lake, publication, "embeddings", _COLUMNS)
        return cls(rows, pca, pca_id, None if files is None else {file.uri: file for file in files}, deleted)

    @property
    def live(self) -> dict[str, int]:
        """The live rows of each file."""
        return {uri: file.rows - len(self.deleted[uri]) for uri, file in (self.files or {}).items()}

    def held(self, uris: Iterable[str]) -> list[SegmentFile]:
        """Files as a segment of them names them."""
        files, live = self.files or {}, self.live
        return [SegmentFile(uri=uri, rows=live[uri], deletes=files[uri].deletes) for uri in uris]

    def photos(self, uris: Iterable[str]) -> Iterator[PlacedPhotos]:
        """The live photos of some files, a row group at a time."""
        for uri in uris:
            start = 0
            every_row = with_changes((self.files or {})[uri], deletes=())
            for batch in read_part(self.rows.lake.settings, every_row, _COLUMNS, {}):
                places = np.arange(start, start := start + batch.num_rows)
                live = ~np.isin(places, self.deleted[uri])
                yield from _photos(batch.filter(pa.array(live)), places[live], self.pca)

    def foreign_photos(self) -> Iterator[PlacedPhotos]:
        """The live photos, by PyIceberg: they have no places that a segment could go by."""
        for batch in self.rows.batches():
            yield from _photos(batch, np.arange(batch.num_rows), self.pca)


def _photos(batch: pa.RecordBatch, places: Places, pca: PCA) -> Iterator[PlacedPhotos]:
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        some = batch.slice(start, _ROWS_AT_ONCE)
        vectors = some["embedding"].flatten().to_numpy(zero_copy_only=False).reshape(some.num_rows, -1)
        here = places[start : start + _ROWS_AT_ONCE]
        yield PlacedPhotos(some["key"], some["label"], here, directions_of(pca, vectors))


def _opened(settings: Settings, before: Neighbours | None) -> Iterator[Segment]:
    """The sound segments in the folder; those that were opened ``before`` are not checked again."""
    folder = index_folder(settings)
    known = {segment.card.name: segment for segment in before.segments} if before else {}
    for name in names(folder) if folder.exists() else ():
        segment = known.get(name) or open_segment(folder / name)
        if segment is not None:
            yield segment


def _usable(table: _Table, segments: Iterable[Segment], exact_rows: int) -> list[Segment]:
    """Segments of the publication's PCA version with what is left of them, no two of which have a file in common."""
    if table.files is None or sum(table.live.values()) <= exact_rows:
        return []
    mine = [segment.left(table.live, table.deleted) for segment in segments if segment.card.pca_id == table.pca_id]
    usable: list[Segment] = []
    for segment in sorted(mine, key=lambda segment: (-segment.live_rows, segment.card.name)):
        if segment.live_rows and not any(segment.covers & other.covers for other in usable):
            usable.append(segment)
    return usable


def _unindexed(table: _Table, segments: Sequence[Segment], exact_rows: int) -> Unindexed | None:
    """The photos that no segment has, in memory or, if they are many, in a file without a name."""
    if table.files is None:
        rows, photos = table.rows.total, table.foreign_photos()
    else:
        covered = {uri for segment in segments for uri in segment.covers}
        waiting = {uri: count for uri, count in table.live.items() if uri not in covered and count}
        rows, photos = sum(waiting.values()), table.photos(waiting)
    if not rows:
        return None
    shape = (rows, table.pca.n_components)
    if rows <= exact_rows:
        directions = np.empty(shape, np.float32)
    else:
        directions = _nameless(index_folder(table.rows.lake.settings), shape)
    keys, labels, start = [], [], 0
    for some in photos:
        directions[start : (start := start + len(some.keys))] = some.directions
        keys.append(some.keys)
        labels.append(some.labels)
    return Unindexed(joined(keys), joined(labels), directions)


def _nearest(photos: Photos, candidates: Candidates, count: int) -> Iterator[Neighbour]:
    """The ``count`` nearest of some candidates, equal ones by key."""
    rows, cosines = candidates
    similarity = np.round(cosines, _DIGITS)
    nearest = similarity >= _last(similarity, count)
    chosen = pa.array(rows[nearest])
    found = pa.table({"similarity": similarity[nearest], "key": photos.keys.take(chosen), "row": chosen})
    # Very many may be as near as the last: copies of one picture.
    order = pc.select_k_unstable(found, count, [("similarity", "descending"), ("key", "ascending")])
    found = found.take(order)
    labels = photos.labels.take(found["row"].combine_chunks()).to_pylist()
    for key, label, value in zip(found["key"].to_pylist(), labels, found["similarity"].to_pylist(), strict=True):
        yield Neighbour(key, label, round(value, _DIGITS))


def _last(values: NDArray[np.floating], count: int) -> float:
    """The ``count``-th largest value; -inf where there are no more than ``count``."""
    return float(np.partition(values, -count)[-count]) if len(values) > count else -np.inf


def _nameless(folder: Path, shape: tuple[int, int]) -> Directions:
    """An array in a file without a name, which goes with the array."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # A full disk is an error here. Later, when a page is written, it would be the end of the process.
        os.posix_fallocate(file.fileno(), 0, max(1, 4 * shape[0] * shape[1]))
        return np.memmap(file, np.float32, "r+", shape=shape)


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Hold a folder's lock, which the system frees when the process ends; another process waits."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(opened)


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Raise errors of the disk inside as a ``FruitsError`` that names the folder; the lake has errors of its own."""
    try:
        yield
    except FileNotFoundError:  # a file of the lake, not of the folder, which is made when it is missing
        raise
    except OSError as error:
        what = "make room on that disk" if is_full(error) else "it must be a folder that this user may write"
        raise FruitsError(
            f"neighbour index in {settings.index_folder}: {error.strerror or error}; {what}, or set "
            "FRUITS_INDEX_FOLDER to another folder"
        ) from error
