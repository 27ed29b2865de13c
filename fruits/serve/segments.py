"""Segments: published photos on this machine's disk, to be searched for the nearest without comparing each.

A segment is a folder that is written once and then never changed:

- ``card.json``: what the segment holds (`Card`);
- ``photos.arrow``: key, label and place of each photo, in the order of the files of the table;
- ``lists.faiss``: the photos' directions (whitened embeddings of length 1), float32, in lists of neighbouring photos
  (an inverted file: Jegou, Douze & Schmid, 2011, without their compression). A search compares the photos of the lists
  whose centres are nearest to the query.

The folder's name is a hash of what the segment holds, and the card has a digest of each file, so a segment that was cut
off or damaged is found out before it is used. Both files are mapped into memory: a search reads
the pages that it needs, and the system may drop them.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from fruits.lake.files import Places
from fruits.run.request import Frozen

log = logging.getLogger("fruits")

Directions = NDArray[np.float32]
"""Whitened embeddings of length 1, shape ``(n, k)``; a row of zeros stays zero."""

_FORMAT = 1
"""Raise it when a segment of today would be misread: another meaning of the files, another whitening."""

_LIST_ROWS = 256
"""Photos of a list, on average. A search compares as many photos as centres where lists are as long as there are lists
to search and centres to compare; shorter lists cost more centres, which training pays for."""

_LISTS_SEARCHED = 64
"""Also: a segment of up to 16,384 photos is searched as a whole, so exactly."""

_TRAINING_ROWS = 64
"""Photos of a sample for each centre; Faiss warns below 39."""

_ROUNDS = 10
"""Of k-means; more rounds move the centres little."""

_ROWS_AT_ONCE = 65_536
_QUERIES_AT_ONCE = 64
_SPARE = 16
"""Photos to find beyond those asked for, so that equal ones are seldom cut off."""

CLOSE = 2e-5
"""Cosines in float32 that differ by less may be equal when they are exact and rounded to five digits."""

_BUILDING = ".building-"


class SegmentFile(Frozen):
    """A file of the table: its live rows when the segment was built, and the files that named the others as deleted."""

    uri: str
    rows: int
    deletes: tuple[str, ...] = ()


class Card(Frozen):
    """What a segment holds: live rows of files of one PCA version; made for the publication with that ``sequence``."""

    format: int
    pca_id: str
    sequence: int
    files: tuple[SegmentFile, ...]
    digests: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name of the segment's folder."""
        held = [self.format, self.pca_id, [[file.uri, *file.deletes] for file in self.files]]
        return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:32]

    @property
    def rows(self) -> int:
        """The number of photos."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, eq=False)
class PlacedPhotos:
    """Photos of one file of the table: keys and labels of length n, places in the file, directions ``(n, k)``."""

    keys: pa.Array
    labels: pa.Array
    places: Places
    directions: Directions


Candidates = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Rows that may be among the nearest of a query, with their cosines."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment that was found sound, opened for searches; threads may share it.

    Attributes:
        card: What it holds.
        keys: Keys of the photos.
        labels: Labels of the photos.
        places: Places of the photos in their files.
        index: The lists, a ``faiss.IndexIVFFlat``.
        covers: URIs of the files of which it has all live rows.
        live_rows: The number of photos that are published.
        live: A bit for each photo: whether it is published; None if all are.
    """

    card: Card
    keys: pa.Array
    labels: pa.Array
    places: Places
    index: Any
    covers: frozenset[str]
    live_rows: int
    live: NDArray[np.uint8] | None = None

    def candidates(self, directions: Directions, count: int) -> Iterator[Candidates]:
        """For each direction, photos that may be among its ``count`` nearest, with all that are as near as the last."""
        for start in range(0, len(directions), _QUERIES_AT_ONCE):
            block = directions[start : start + _QUERIES_AT_ONCE]
            for query, cosines, rows in zip(block, *self._search(block, count + _SPARE), strict=True):
                most = count + _SPARE
                while len(rows) < self.card.rows and rows[-1] >= 0 and cosines[-1] > cosines[count - 1] - CLOSE:
                    most *= 2
                    (cosines,), (rows,) = self._search(query[np.newaxis], most)  # noqa: PLW2901 -- more of the same
                found = rows[rows >= 0]
                yield found, cosines_of(self.index.reconstruct_batch(found), query)

    def left(self, live_rows: Mapping[str, int], deleted: Mapping[str, Places]) -> "Segment":
        """What a publication has of the segment.

        Args:
            live_rows: The number of live rows of each file of the publication. Where a segment has fewer of them, as
                after a rollback to a time before rows were deleted, it does not cover the file, and leaves it out.
            deleted: The places of the deleted rows of each file.
        """
        live = np.zeros(self.card.rows, dtype=bool)
        covers, start = set(), 0
        for file in self.card.files:
            rows = slice(start, start := start + file.rows)
            if file.uri in live_rows:
                there = ~np.isin(self.places[rows], deleted[file.uri])
                if there.sum() == live_rows[file.uri]:
                    covers.add(file.uri)
                    live[rows] = there
        bits = None if live.all() else np.packbits(live, bitorder="little")
        return replace(self, covers=frozenset(covers), live_rows=int(live.sum()), live=bits)

    def _search(self, directions: Directions, most: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines, the nearest first, and rows (-1: no more), both ``(q, most)``, or as many as there are photos."""
        import faiss

        parameters = faiss.SearchParametersIVF(nprobe=min(_LISTS_SEARCHED, self.index.nlist))
        if self.live is not None:
            parameters.sel = faiss.IDSelectorBitmap(self.live)
        cosines, rows = self.index.search(directions, min(most, self.card.rows), params=parameters)
        return cosines, rows


def cosines_of(vectors: Directions, query: Directions) -> NDArray[np.float64]:
    """Cosines of directions ``(n, k)`` with one, in float64: they do not depend on what is compared at once."""
    return np.asarray(vectors.astype(np.float64) @ query.astype(np.float64), dtype=np.float64)


def joined(arrays: Iterable[pa.Array]) -> pa.Array:
    """Arrays of one kind as one; texts with offsets of 64 bits, because they may be longer than 2 GB together."""
    wide = [array.cast(pa.large_string()) if pa.types.is_string(array.type) else array for array in arrays]
    return pa.concat_arrays(wide)


def card_of(pca_id: str, sequence: int, files: Sequence[SegmentFile]) -> Card:
    """The card of a segment that is to be written."""
    return Card(format=_FORMAT, pca_id=pca_id, sequence=sequence, files=tuple(files), digests={})


def open_segment(folder: Path) -> Segment | None:
    """The segment in a folder; None where there is none, or where it is not as it was written."""
    import faiss

    try:
        card = Card.model_validate_json((folder / "card.json").read_bytes())
        sound = card.format == _FORMAT and card.name == folder.name and _digests(folder) == card.digests
    except FileNotFoundError:  # another process was quicker and removed it
        return None
    except (OSError, ValidationError):
        sound = False
    if not sound:
        log.warning("%s: not a segment as it was written; it is not used, and the next build removes it", folder)
        return None
    try:
        photos = pa.ipc.open_file(pa.memory_map(str(folder / "photos.arrow"))).get_batch(0)
        index = faiss.read_index(str(folder / "lists.faiss"), faiss.IO_FLAG_MMAP)
    except (FileNotFoundError, RuntimeError):  # removed meanwhile; Faiss knows no other errors
        if folder.exists():
            raise
        return None
    faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0  # 32 threads a search would cost milliseconds
    return Segment(card, photos["key"], photos["label"], photos["place"].to_numpy(), index, frozenset(), card.rows)


def write_segment(folder: Path, card: Card, photos: Iterable[PlacedPhotos]) -> Path:
    """Write a segment under its name; a folder of that name, which must be damaged, is replaced.

    Memory is bounded by the lists, 4 bytes for each component of each photo and half as much while they grow.

    Raises:
        OSError: when the disk is full or not ours.
    """
    building = folder / f"{_BUILDING}{card.name}"
    building.mkdir()
    try:
        k = _write_photos(building, photos)
        _write_lists(building, card.rows, k)
        written = card.model_copy(update={"digests": _digests(building)})
        (building / "card.json").write_text(written.model_dump_json(indent=2) + "\n")
    except (OSError, RuntimeError) as error:  # as Faiss says that the disk is full
        remove(building)  # the next try needs the room
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    target = folder / card.name
    remove(target)
    os.replace(building, target)  # noqa: PTH105 -- Path.replace says nothing of folders
    return target


def names(folder: Path) -> list[str]:
    """The names of the segments in a folder; what a build left behind that was interrupted is not among them."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def leftovers(folder: Path) -> list[Path]:
    """What interrupted builds left behind; whoever holds the folder's lock may remove it."""
    return sorted(folder.glob(f"{_BUILDING}*"))


def remove(path: Path) -> None:
    """Remove a segment, or whatever else has its name. A process that has it open goes on reading it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_photos(folder: Path, photos: Iterable[PlacedPhotos]) -> int:
    """Write ``photos.arrow``, and the directions to a file that ``_write_lists`` reads; returns k."""
    columns: list[list[pa.Array]] = []
    with (folder / "directions").open("wb") as directions:
        for some in photos:
            columns.append([some.keys, some.labels, pa.array(some.places)])
            directions.write(np.ascontiguousarray(some.directions).data)
    batch = pa.record_batch([joined(column) for column in zip(*columns, strict=True)], ["key", "label", "place"])
    with pa.ipc.new_file(str(folder / "photos.arrow"), batch.schema) as file:
        file.write_batch(batch)
    return int(some.directions.shape[1])


def _write_lists(folder: Path, rows: int, k: int) -> None:
    """Train the centres on a sample, put each photo into the list of its nearest centre, and write ``lists.faiss``."""
    import faiss

    lists = max(1, rows // _LIST_ROWS)
    directions = np.memmap(folder / "directions", np.float32, "r", shape=(rows, k))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(k), k, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.min_points_per_centroid = _ROUNDS, 1
    sample = np.random.default_rng(0).choice(rows, min(rows, _TRAINING_ROWS * lists), replace=False)
    index.train(directions[np.sort(sample)])
    for start in range(0, rows, _ROWS_AT_ONCE):
        index.add(directions[start : start + _ROWS_AT_ONCE])
    index.make_direct_map()  # which list has a photo
    faiss.write_index(index, str(folder / "lists.faiss"))
    (folder / "directions").unlink()


def _digests(folder: Path) -> dict[str, str]:
    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return {name: digest(folder / name) for name in ("photos.arrow", "lists.faiss")}
