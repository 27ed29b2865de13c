"""The chunks of a run's manifest: what `featurize` carries out and commits at a time.

A killed attempt loses the work of a chunk at most, which is some minutes; and a chunk is so large that its commits cost
little.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fruits.photos.entry import Action
from fruits.run.manifest import Manifest
from fruits.settings import Settings

FEWEST_PHOTOS = 10_000
"""A run of at most so many photos is one chunk, unless settings or bytes bound it. It takes a minute or two."""

_SHARES = 20  # a killed attempt loses about a twentieth of a large run
_MOST_PHOTOS = 500_000  # their entries are in the driver's memory
_ENTRIES_OF_A_PHOTO = 16  # entries without a photo to featurize are no work, but their keys are in memory
_FEWEST_OF_A_TASK = 32
_COST_OF_A_PHOTO = 400_000  # bytes of a large JPEG that take as long as the inference of a photo
_SEEN_ROUNDS, _FEWEST_OF_A_ROUND = 4, 500  # progress counts tasks that are done


@dataclass(frozen=True)
class Piece:
    """Some entries to carry out, in the order of the manifest.

    Attributes:
        entries: The entries.
        missing: Of each entry, whether its photo is to be featurized; shape ``(n,)``, bool.
    """

    entries: Manifest
    missing: np.ndarray[tuple[int], np.dtype[np.bool_]]

    @property
    def photos(self) -> Manifest:
        """The entries whose photos are to be featurized."""
        return Manifest(self.entries.table.filter(pa.array(self.missing)))

    def costs(self) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Of each entry the photos to featurize (1 or 0), their bytes, and 1; shape ``(n, 3)``."""
        sizes = self.entries.table["size"].to_numpy()
        return np.stack([self.missing, self.missing * sizes, np.ones_like(sizes)], axis=1)

    def slice(self, start: int, length: int) -> "Piece":
        """So many entries from an offset on."""
        return Piece(Manifest(self.entries.table.slice(start, length)), self.missing[start : start + length])


@dataclass(frozen=True)
class Limits:
    """The most photos to featurize, bytes of these photos, and entries of a chunk."""

    photos: int
    bytes: int
    entries: int


def limits_of(settings: Settings, photos: int, cores: int) -> Limits:
    """The limits of the chunks of a run of so many photos. All chunks but the last have about the same size."""
    share = max(FEWEST_PHOTOS, math.ceil(photos / _SHARES))
    most = min(settings.chunk_photos * cores, share, _MOST_PHOTOS)
    chunks = max(1, math.ceil(photos / most))
    even = max(1, math.ceil(photos / chunks))
    return Limits(even, settings.chunk_bytes * cores, _ENTRIES_OF_A_PHOTO * max(even, FEWEST_PHOTOS))


def are_few(photos: Manifest, settings: Settings) -> bool:
    """Whether the driver featurizes some photos itself: they take about as long as ``few_photos`` of 100 px at most."""
    cost = int(_costs(photos.table).sum())
    return len(photos) <= settings.few_photos and cost <= 2 * settings.few_photos * _COST_OF_A_PHOTO


def piece_to_do(entries: Manifest, there: pa.ChunkedArray) -> Piece:
    """What remains of some entries when the attempt's branches have rows of the run for the keys ``there``.

    Nothing remains of a created object that is there. The rows that an updated object had before leave once more,
    because the attempt before may have been killed in between.
    """
    table = entries.table
    is_there = pc.is_in(table["key"], there)
    done = pc.and_(is_there, pc.equal(table["action"], Action.CREATE.value))
    missing = pc.and_not(pc.not_equal(table["action"], Action.DELETE.value), is_there)
    left = pc.invert(done)
    return Piece(Manifest(table.filter(left)), missing.filter(left).to_numpy().astype(bool))


def in_chunks(pieces: Iterable[Piece], limits: Limits) -> Iterator[Piece]:
    """The entries of ``pieces`` in chunks within the limits; a photo larger than the limit is a chunk of its own."""
    waiting: list[Piece] = []
    used = np.zeros(3, int)
    most = np.array([limits.photos, limits.bytes, limits.entries])
    for piece in pieces:
        rest = piece
        while len(rest.entries):
            totals = used + rest.slice(0, limits.entries).costs().cumsum(axis=0)
            fits = int((totals <= most).all(axis=1).sum())
            if fits == 0 and waiting:
                yield _joined(waiting)
                waiting, used = [], np.zeros(3, int)
                continue
            fits = max(fits, 1)
            waiting.append(rest.slice(0, fits))
            used, rest = totals[fits - 1], rest.slice(fits, len(rest.entries) - fits)
    if waiting:
        yield _joined(waiting)


def _joined(pieces: list[Piece]) -> Piece:
    entries = pa.concat_tables([piece.entries.table for piece in pieces])
    return Piece(Manifest(entries), np.concatenate([piece.missing for piece in pieces]))


def in_tasks(photos: Manifest, settings: Settings, cores: int) -> list[Manifest]:
    """Some photos in the order of keys, in the slices that Spark tasks featurize; a task's rows are in order.

    The slices cost about the same, and have at most ``photos_per_task`` photos.
    """
    table = photos.table.sort_by("key")
    tasks = tasks_of(photos, settings, cores)
    costs = _costs(table).cumsum()
    cuts = np.searchsorted(costs, costs[-1] * np.arange(1, tasks) / tasks)
    most = settings.photos_per_task
    return [
        Manifest(table.slice(start, min(most, stop - start)))
        for first, stop in pairwise([0, *map(int, cuts), len(photos)])
        for start in range(first, stop, most)
    ]


def _costs(table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """What each photo costs, in bytes that take as long."""
    costs: np.ndarray[tuple[int], np.dtype[np.int64]] = table["size"].to_numpy() + _COST_OF_A_PHOTO
    return costs


def tasks_of(photos: Manifest, settings: Settings, cores: int) -> int:
    """How many Spark tasks featurize some photos: a multiple of the cores, so that no core waits for another.

    A task has at most ``photos_per_task`` photos, and about ``bytes_per_task`` bytes. Few photos make fewer tasks: to
    start a worker takes longer than to featurize them.
    """
    count, size = len(photos), pc.sum(photos.table["size"]).as_py() or 0
    rounds = max(
        math.ceil(count / (settings.photos_per_task * cores)),
        math.ceil(size / (settings.bytes_per_task * cores)),
        min(_SEEN_ROUNDS, count // (_FEWEST_OF_A_ROUND * cores)),
    )
    per_task = min(settings.photos_per_task, _FEWEST_OF_A_TASK)
    worthwhile = max(math.ceil(count / per_task), math.ceil(size / settings.bytes_per_task))
    return max(1, min(rounds * cores, worthwhile))
