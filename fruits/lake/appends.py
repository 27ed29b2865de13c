"""Rows that executors write to files, and the driver commits: where the files go, and their snapshot."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fruits.lake.branches import Writer, commit_rows
from fruits.lake.catalog import ROW_GROUP_BYTES, Lake
from fruits.lake.files import FileTarget, WrittenFile
from fruits.lake.schemas import TableDefinition

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table, Transaction


def file_target(lake: Lake, definition: TableDefinition, partition: str) -> FileTarget:
    """Where rows of a partitioned table go: ``partition`` is their value of the column that partitions the table."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    table = lake.table(definition.name)
    path = table.spec().partition_to_path(_record(partition), table.schema())
    there = schema_to_pyarrow(table.schema())
    fields = [_identified(there.field(field.name), field.type) for field in definition.schema]
    return FileTarget(f"{table.location()}/data/{path}", pa.schema(fields), ROW_GROUP_BYTES)


def append_files(
    lake: Lake, definition: TableDefinition, partition: str, files: Sequence[WrittenFile], writer: Writer
) -> None:
    """Append files of a partition to the writer's branch of a table, in one snapshot; their rows are not read."""
    table = lake.table(definition.name)
    entries = [_data_file(table, partition, file) for file in files]

    def append(transaction: "Transaction") -> None:
        with transaction.update_snapshot(writer.snapshot_properties, writer.branch).merge_append() as snapshot:
            for entry in entries:
                snapshot.append_data_file(entry)

    commit_rows(lake, definition.name, append, branch=writer.branch)


def _identified(there: pa.Field, kind: pa.DataType) -> pa.Field:
    """A column of a type as we write it, with the ids that the table knows column and items of a list by."""
    if pa.types.is_list(kind):
        kind = pa.list_(kind.value_field.with_metadata(there.type.value_field.metadata))
    return there.with_type(kind)


def _data_file(table: "Table", partition: str, file: WrittenFile) -> "DataFile":
    """A file as a snapshot lists it, with the bounds and counts of its columns."""
    from pyiceberg.io.pyarrow import (
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_path_to_id_mapping,
    )
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

    statistics = data_file_statistics_from_parquet_metadata(
        pq.read_metadata(io.BytesIO(file.footer)),
        compute_statistics_plan(table.schema(), table.properties),
        parquet_path_to_id_mapping(table.schema()),
    )
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=file.uri,
        file_format=FileFormat.PARQUET,
        partition=_record(partition),
        file_size_in_bytes=file.size,
        sort_order_id=None,
        spec_id=table.spec().spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def _record(partition: str) -> Any:
    from pyiceberg.typedef import Record

    return Record(partition)
