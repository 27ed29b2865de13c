"""The parts of a table's files that executors read by themselves, in tasks of about one size."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from fruits.lake.catalog import Lake
from fruits.lake.counters import live_rows
from fruits.lake.files import FilePart, in_groups
from fruits.lake.schemas import TableName

if TYPE_CHECKING:
    from pyiceberg.table import FileScanTask

_PART_BYTES = 32 * 2**20


def file_parts(
    lake: Lake, name: TableName, snapshot_id: int, *, since: int | None = None, **equal: str
) -> list[FilePart] | None:
    """The parts of the files that hold the rows of a partition at a snapshot, in the order of the keys they begin with.

    With ``since`` only the files that this snapshot has not. ``equal`` gives the values of the columns that partition
    the table. None where a file needs another reader: a program other than ours deleted rows by their values, which
    PyIceberg (0.12) refuses, or in deletion vectors.
    """
    tasks = _readable_tasks(lake, name, snapshot_id, since, equal)
    return None if tasks is None else [part for task in tasks for part in _parts(task)]


def whole_files(lake: Lake, name: TableName, snapshot_id: int, **equal: str) -> list[FilePart] | None:
    """The same files, each as one part, with the exact number of rows that were written."""
    tasks = _readable_tasks(lake, name, snapshot_id, None, equal)
    if tasks is None:
        return None
    return [
        FilePart(task.file.file_path, 0, None, task.file.record_count, task.file.file_size_in_bytes, _deletes(task))
        for task in tasks
    ]


def in_tasks(parts: Sequence[FilePart], cores: int, most_bytes: int = 8 * _PART_BYTES) -> list[list[FilePart]]:
    """Neighbouring parts in tasks of about one size: as many as there are cores, or a multiple."""
    total = sum(part.size for part in parts)
    rounds = max(1, -(-total // (most_bytes * cores)))
    return list(in_groups(parts, lambda part: part.size, max(1, -(-total // (rounds * cores)))))


def _readable_tasks(
    lake: Lake, name: TableName, snapshot_id: int, since: int | None, equal: Mapping[str, str]
) -> "list[FileScanTask] | None":
    from pyiceberg.expressions import AlwaysTrue

    table = lake.table(name)
    if live_rows(table, snapshot_id) is None:
        return None
    key = table.schema().find_field("key").field_id
    tasks = list(lake.scan_tasks(name, lake.scan(name, snapshot_id, ("key",), **equal), since))
    if not all(task.residual == AlwaysTrue() and _by_place(task) for task in tasks):
        return None
    return sorted(tasks, key=lambda task: ((task.file.lower_bounds or {}).get(key, b""), task.file.file_path))


def _by_place(task: "FileScanTask") -> bool:
    """Whether deleted rows of a file are named by their places, in Parquet files, as Spark writes them."""
    from pyiceberg.manifest import DataFileContent, FileFormat

    kinds = {(deletes.content, deletes.file_format) for deletes in task.delete_files}
    return kinds <= {(DataFileContent.POSITION_DELETES, FileFormat.PARQUET)}


def _parts(task: "FileScanTask") -> Iterator[FilePart]:
    """A file in parts of whole row groups; in one part where nobody noted where its row groups begin."""
    file = task.file
    starts = [0, *(file.split_offsets or ())[1:]]
    groups = pairwise([*starts, file.file_size_in_bytes])
    for group in in_groups(groups, lambda ends: ends[1] - ends[0], _PART_BYTES):
        start, end = group[0][0], group[-1][1]
        share = (end - start) / file.file_size_in_bytes
        last = end == file.file_size_in_bytes
        yield FilePart(
            file.file_path, start, None if last else end, round(file.record_count * share), end - start, _deletes(task)
        )


def _deletes(task: "FileScanTask") -> tuple[str, ...]:
    return tuple(sorted(deletes.file_path for deletes in task.delete_files))
