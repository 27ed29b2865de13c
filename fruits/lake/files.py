"""Parquet files of a table's rows, as executors read and write them: no vector passes the JVM.

`fruits.lake.appends` commits the written files on the driver. `fruits.lake.parts` knows the parts to read.
"""

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from fruits.settings import Settings
from fruits.stores import open_file, open_store, write_bytes

Part = TypeVar("Part")
Places = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Numbers of rows in a file, from 0."""

_IN_MEMORY = 32 * 2**20  # bytes of a file; a larger one waits in a temporary file for its upload
_REPEATED = ["label", "split", "format", "model_id", "run_id"]  # columns with few values, which a dictionary shortens


@dataclass(frozen=True)
class FileTarget:
    """Where rows of a table go.

    Attributes:
        folder: URI of the folder of the files.
        schema: The columns, each with the id that the table knows the column by.
        row_group_bytes: Bytes of a row group before compression.
    """

    folder: str
    schema: pa.Schema
    row_group_bytes: int


@dataclass(frozen=True)
class FilePart:
    """Some neighbouring row groups of a file of rows.

    Attributes:
        uri: The file.
        start: Where the first of the row groups begins in the file.
        end: Where the row group after the last one begins; None for all that follow.
        rows: About how many rows there are.
        size: About how many bytes.
        deletes: Files that name rows of the file, by place, which were deleted since.
    """

    uri: str
    start: int
    end: int | None
    rows: int
    size: int
    deletes: tuple[str, ...] = ()

    def has(self, place: int) -> bool:
        """Whether a row group that begins at a place is one of the part."""
        return self.start <= place and (self.end is None or place < self.end)


@dataclass(frozen=True)
class WrittenFile:
    """A file that is in the lake, and in no snapshot yet. ``footer`` has the file's Parquet metadata."""

    uri: str
    size: int
    footer: bytes


def write_rows(settings: Settings, target: FileTarget, batches: Iterable[pa.RecordBatch]) -> WrittenFile | None:
    """Write rows to a new file, all or nothing; returns None where there are no rows.

    A failed or repeated Spark task leaves a file that nobody commits, which maintenance removes as an orphan.
    """
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        with pq.ParquetWriter(
            file, target.schema, compression="zstd", use_dictionary=_REPEATED, store_schema=False
        ) as writer:
            for group in in_groups(batches, lambda batch: batch.nbytes, target.row_group_bytes):
                writer.write_table(pa.Table.from_batches(group, target.schema))
        metadata = writer.writer.metadata
        if not metadata.num_rows:
            return None
        name, footer = f"{uuid4().hex}.parquet", io.BytesIO()
        metadata.write_metadata_file(footer)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        write_bytes(_folder(settings, target.folder), name, file)
        return WrittenFile(f"{target.folder}/{name}", size, footer.getvalue())


def read_part(
    settings: Settings, part: FilePart, columns: Sequence[str], where: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """Columns of the live rows of a part, a row group at a time: those where each column in ``where`` has its value."""
    file = pq.ParquetFile(_opened(settings, part.uri))
    deleted = deleted_places(settings, [part])[part.uri]
    next_row = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        first_row, next_row = next_row, next_row + group.num_rows
        first = group.column(0)
        if not part.has(first.dictionary_page_offset or first.data_page_offset):
            continue
        rows = file.read_row_group(number, [*dict.fromkeys((*columns, *where))])
        gone = deleted[(deleted >= first_row) & (deleted < next_row)] - first_row
        if len(gone):
            live = np.ones(group.num_rows, dtype=bool)
            live[gone] = False
            rows = rows.filter(pa.array(live))
        if where:
            rows = rows.filter(reduce(pc.and_, (pc.equal(rows[name], value) for name, value in where.items())))
        yield from rows.select(list(columns)).combine_chunks().to_batches()


def deleted_places(settings: Settings, parts: Sequence[FilePart]) -> dict[str, Places]:
    """Places of the deleted rows in the file of each part, sorted; each file of deletes is read once."""
    rows = {part.uri: [np.empty(0, dtype=np.int64)] for part in parts}
    for uri in sorted({uri for part in parts for uri in part.deletes}):
        deletes = pq.read_table(_opened(settings, uri), columns=["file_path", "pos"])
        for named in pc.unique(deletes["file_path"]).to_pylist():
            if named in rows:
                rows[named].append(deletes.filter(pc.equal(deletes["file_path"], named))["pos"].to_numpy())
    return {uri: np.unique(np.concatenate(places)) for uri, places in rows.items()}


def _opened(settings: Settings, uri: str) -> io.BufferedIOBase:
    folder, _, name = uri.rpartition("/")
    return open_file(_folder(settings, folder), name)


def _folder(settings: Settings, folder: str) -> ObjectStore:
    """A folder of files. Iceberg takes a path of this machine as it is, and our stores decode ``%20``."""
    return open_store(settings, folder.replace("%", "%25") if folder.startswith("file:") else folder)


def in_groups(parts: Iterable[Part], size: Callable[[Part], int], least: int) -> Iterator[list[Part]]:
    """Parts in groups, each as soon as it has the ``least`` size; the last may be smaller."""
    waiting: list[Part] = []
    total = 0
    for part in parts:
        waiting.append(part)
        total += size(part)
        if total >= least:
            yield waiting
            waiting, total = [], 0
    if waiting:
        yield waiting
