"""The manifest: which objects a run works on and what it does with each, as one Parquet file in the lake."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from fruits.lake.files import in_groups
from fruits.lake.schemas import TIMESTAMP
from fruits.photos.entry import WORK, Action, Entry
from fruits.photos.quarantine import Reason
from fruits.stores import open_file, write_bytes

Item = TypeVar("Item")

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("last_modified", TIMESTAMP, nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("rejection", pa.string()),
    ]
)

DEFAULT_NAME = "manifest.parquet"

DUE_ETAG = "due"
"""The ETag of a row that a rebuild kept, because the photo could not be read. No object has this ETag, so the next plan
takes the photo again, or deletes the row within the bounds of deletions."""

_SLICE_ROWS = 65_536
_GROUP_ROWS = 16_384  # of a row group, which the writer holds in memory
_IN_MEMORY = 8 * 2**20  # bytes of a manifest; a larger one waits in a temporary file for its upload


def write_manifest(store: ObjectStore, batches: Iterable[pa.RecordBatch], name: str = DEFAULT_NAME) -> None:
    """Write the entries of a run to its folder; ``batches`` have ``MANIFEST_SCHEMA``, and are held a few at a time."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        with pq.ParquetWriter(file, MANIFEST_SCHEMA, compression="zstd") as writer:
            for group in in_groups(batches, lambda batch: batch.num_rows, _GROUP_ROWS):
                writer.write_table(pa.Table.from_batches(group, MANIFEST_SCHEMA))
        file.seek(0)
        write_bytes(store, name, file)


def write_slices(store: ObjectStore, slices: Iterable["Manifest"], name: str) -> dict[Action, int]:
    """Write a manifest slice by slice to a run's folder; returns the number of its entries by action."""
    counts: list[dict[Action, int]] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for some in slices:
            counts.append(some.counts())
            yield from some.table.to_batches()

    write_manifest(store, batches(), name)
    return total_counts(counts)


def entries_batch(entries: Sequence[Entry]) -> pa.RecordBatch:
    """Entries as rows of a manifest."""
    columns = [pa.array([getattr(entry, one.name) for entry in entries], one.type) for one in MANIFEST_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=MANIFEST_SCHEMA)


@dataclass(frozen=True)
class Manifest:
    """The manifest of a run, or a slice of it, in memory: ``table`` has ``MANIFEST_SCHEMA``, an entry a row."""

    table: pa.Table

    def __len__(self) -> int:
        """The number of entries."""
        return int(self.table.num_rows)

    @property
    def readable_keys(self) -> list[str]:
        """Keys of the objects that are to be read."""
        read = pc.and_(pc.not_equal(self.table["action"], Action.DELETE.value), pc.is_null(self.table["rejection"]))
        keys: list[str] = self.table.filter(read)["key"].to_pylist()
        return keys

    @property
    def replaced_keys(self) -> pa.Table:
        """Keys of objects whose rows leave the tables: updated and deleted ones; one column, ``key``."""
        return self.table.filter(pc.not_equal(self.table["action"], Action.CREATE.value)).select(["key"])

    @property
    def kept_keys(self) -> pa.Table:
        """Keys of objects that a rebuild could not read, and whose rows stay; one column, ``key``."""
        return self.table.filter(
            pc.and_(
                pc.equal(self.table["etag"], DUE_ETAG),
                pc.equal(self.table["action"], Action.UPDATE.value),  # such a row may also be deleted
            )
        ).select(["key"])

    def without(self, unread: Collection[str], *, rebuilt: bool) -> "Manifest":
        """The manifest as carried out: without the objects that could not be read, whose rows stay.

        The next plan sees that these objects are due, or deletes the rows of those that are gone, within the bounds of
        deletions. After a rebuild the next plan would see neither, because a row's ETag may be the object's. So the
        entries of a rebuild stay as well, with ``DUE_ETAG``, which their rows get.
        """
        is_unread = pc.is_in(self.table["key"], pa.array(list(unread), pa.string()))
        done = self.table.filter(pc.invert(is_unread))
        if not rebuilt:
            return Manifest(done)
        kept = self.table.filter(pc.and_(is_unread, pc.equal(self.table["action"], Action.UPDATE.value)))
        place = kept.schema.get_field_index("etag")
        due = pa.array([DUE_ETAG] * kept.num_rows, pa.string())
        return Manifest(pa.concat_tables([done, kept.set_column(place, kept.schema.field("etag"), due)]))

    def counts(self) -> dict[Action, int]:
        """The number of entries of each action of a manifest."""
        return {action: self.count(action) for action in sorted(WORK)}

    def count(self, action: Action) -> int:
        """The number of entries with an action."""
        return int(pc.sum(pc.equal(self.table["action"], action.value)).as_py() or 0)


class StoredManifest:
    """The manifest of a run in its folder, read slice by slice: 1e7 entries take no more memory than 1e5.

    ``columns`` and ``replaced_keys`` alone are of all entries, and hold the columns that are asked for and no others.
    """

    def __init__(self, store: ObjectStore, name: str = DEFAULT_NAME) -> None:
        self._source = open_file(store, name)

    def __len__(self) -> int:
        """The number of entries."""
        return int(self._file.metadata.num_rows)

    def slices(self, columns: Sequence[str] | None = None, *, most: int | None = None) -> Iterator[Manifest]:
        """All entries in order, at most ``most`` (None: 65,536) at a time; with ``columns`` only these columns."""
        for batch in self._file.iter_batches(most or _SLICE_ROWS, columns=columns):
            yield Manifest(pa.Table.from_batches([batch]))

    def columns(self, *names: str) -> pa.Table:
        """Some columns of all entries, in memory."""
        return self._file.read(names)

    @property
    def replaced_keys(self) -> pa.Table:
        """Keys of objects whose rows leave the tables: updated and deleted ones; one column, ``key``."""
        return _concatenated((some.replaced_keys for some in self.slices(["key", "action"])), ["key"])

    @cached_property
    def actions(self) -> Mapping[Action, int]:
        """The number of entries by action."""
        return total_counts(some.counts() for some in self.slices(["action"]))

    def count(self, action: Action) -> int:
        """The number of entries with an action."""
        return self.actions[action]

    def sample_of_readable(self, most: int) -> list[str]:
        """Keys of at most ``most`` of the objects that are to be read, at even distances."""
        columns = ["key", "action", "rejection"]
        readable = sum(len(some.readable_keys) for some in self.slices(columns))
        step, seen, sample = max(1, -(-readable // most)), 0, list[str]()
        for some in self.slices(columns):
            keys = some.readable_keys
            sample += keys[-seen % step :: step]
            seen += len(keys)
        return sample

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._source)


def total_counts(counts: Iterable[Mapping[Action, int]]) -> dict[Action, int]:
    """The sums of counts by action."""
    total = dict.fromkeys(sorted(WORK), 0)
    for some in counts:
        for action, count in some.items():
            total[action] += count
    return total


def _concatenated(tables: Iterable[pa.Table], columns: Sequence[str]) -> pa.Table:
    empty = pa.schema([MANIFEST_SCHEMA.field(name) for name in columns]).empty_table()
    return pa.concat_tables([empty, *tables])


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most ``most`` of ``items``, at even distances."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])


def entries_of(batch: pa.RecordBatch) -> Iterator[Entry]:
    """The entries of a batch of a manifest's rows."""
    for row in batch.to_pylist():
        rejection = Reason(row["rejection"]) if row["rejection"] else None  # type: ignore[call-arg]  # by its value
        yield Entry(**{**row, "action": Action(row["action"]), "rejection": rejection})
