"""Parquet files of a table's rows, as executors write them. `fruits.lake.appends` commits them on the driver."""

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from fruits.settings import Settings
from fruits.stores import open_store, write_bytes

Part = TypeVar("Part")

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
        write_bytes(_folder(settings, target), name, file)
        return WrittenFile(f"{target.folder}/{name}", size, footer.getvalue())


def _folder(settings: Settings, target: FileTarget) -> ObjectStore:
    """The folder of the files. Iceberg takes a path of this machine as it is, and our stores decode ``%20``."""
    literal = target.folder.startswith("file:")
    return open_store(settings, target.folder.replace("%", "%25") if literal else target.folder)


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
