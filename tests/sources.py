"""Reports of S3 Inventory and a table of S3 Metadata, as S3 writes them."""

import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from fruits.lake.metadata import table_name
from fruits.photos.pages import VERSIONS_SCHEMA
from fruits.stores import write_bytes

PARQUET_SCHEMA = (
    "message s3.inventory { required binary bucket (UTF8); required binary key (UTF8); {versions}"
    "optional int64 size; optional int64 last_modified_date (TIMESTAMP(MILLIS,true)); optional binary e_tag (UTF8);}"
)
PARQUET_VERSIONS = "optional binary version_id (UTF8); optional boolean is_latest; optional boolean is_delete_marker; "
CSV_COLUMNS = ("Bucket", "Key", "Size", "LastModifiedDate", "ETag")
CSV_VERSIONS = ("Bucket", "Key", "VersionId", "IsLatest", "IsDeleteMarker", "Size", "LastModifiedDate", "ETag")


@dataclass(frozen=True)
class Version:
    """A version of an object, or a delete marker."""

    key: str
    etag: str | None
    last_modified: datetime
    size: int | None = 9
    latest: bool = True
    gone: bool = False


def write_report(
    store: ObjectStore,
    folder: str,
    versions: Iterable[Version],
    date: datetime,
    *,
    form: str = "Parquet",
    all_versions: bool = False,
    bucket: str = "fruits",
    files: int = 1,
    **manifest: Any,
) -> None:
    """Write a report into the folder of an inventory's configuration; ``manifest`` has what is to be otherwise."""
    rows = list(versions)
    described = []
    for number in range(files):
        part = rows[number::files]
        csv = form == "CSV"
        data = _csv(part, bucket, all_versions) if csv else _parquet(part, bucket, all_versions)
        key = f"{folder}/data/{date:%Y%m%d%H%M}-{number}.{'csv.gz' if csv else 'parquet'}"
        write_bytes(store, key, data)
        described.append(
            {"key": key, "size": len(data), "MD5checksum": hashlib.md5(data, usedforsecurity=False).hexdigest()}
        )
    document = {
        "sourceBucket": bucket,
        "destinationBucket": "arn:aws:s3:::reports",
        "version": "2016-11-30",
        "creationTimestamp": str(int(date.timestamp() * 1_000)),
        "fileFormat": form,
        "fileSchema": ", ".join(CSV_VERSIONS if all_versions else CSV_COLUMNS)
        if form == "CSV"
        else PARQUET_SCHEMA.replace("{versions}", PARQUET_VERSIONS if all_versions else ""),
        "files": described,
        **manifest,
    }
    text = json.dumps(document).encode()
    where = f"{folder}/{date:%Y-%m-%dT%H-%MZ}"
    write_bytes(store, f"{where}/manifest.json", text)
    write_bytes(store, f"{where}/manifest.checksum", hashlib.md5(text, usedforsecurity=False).hexdigest().encode())


def _parquet(rows: list[Version], bucket: str, all_versions: bool) -> bytes:
    columns = {
        "bucket": [bucket] * len(rows),
        "key": [row.key for row in rows],
        "size": pa.array([row.size for row in rows], pa.int64()),
        "last_modified_date": pa.array([row.last_modified for row in rows], pa.timestamp("ms", tz="UTC")),
        "e_tag": pa.array([row.etag for row in rows], pa.string()),
    }
    if all_versions:
        columns |= {
            "version_id": [str(number) for number in range(len(rows))],
            "is_latest": [row.latest for row in rows],
            "is_delete_marker": [row.gone for row in rows],
        }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def _csv(rows: list[Version], bucket: str, all_versions: bool) -> bytes:
    def line(number: int, row: Version) -> str:
        versions = (str(number), str(row.latest).lower(), str(row.gone).lower()) if all_versions else ()
        size = "" if row.size is None else row.size
        values = (
            bucket,
            quote(row.key),
            *versions,
            size,
            f"{row.last_modified:%Y-%m-%dT%H:%M:%S}.000Z",
            row.etag or "",
        )
        return ",".join(f'"{value}"' for value in values)

    return gzip.compress("\n".join(line(*one) for one in enumerate(rows)).encode())


def versions_of(versions: Iterable[Version]) -> pa.RecordBatch:
    """Versions as the live inventory table has them; a later one has a larger sequence number."""
    rows = [
        (one.key, one.etag, one.size, one.last_modified, one.gone, f"{number:016x}")
        for number, one in enumerate(versions)
    ]
    columns = zip(*rows, strict=True) if rows else ([],) * len(VERSIONS_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, VERSIONS_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=VERSIONS_SCHEMA)


def metadata_table(folder: Path, bucket: str) -> Any:
    """An empty live inventory table, in a catalog of its own."""
    from pyiceberg.catalog import load_catalog
    from pyiceberg.schema import Schema
    from pyiceberg.types import BooleanType, LongType, NestedField, StringType, TimestampType

    strings = ("bucket", "key", "sequence_number", "version_id")
    fields = [*((name, StringType()) for name in strings), ("is_delete_marker", BooleanType()), ("size", LongType())]
    fields += [("last_modified_date", TimestampType()), ("e_tag", StringType()), ("storage_class", StringType())]
    schema = Schema(*(NestedField(place, name, kind, required=False) for place, (name, kind) in enumerate(fields, 1)))
    catalog = load_catalog("metadata", type="sql", uri=f"sqlite:///{folder}/metadata.db", warehouse=f"file://{folder}")
    namespace, _ = name = table_name(bucket)
    catalog.create_namespace(namespace)
    return catalog.create_table(name, schema)


def fill(table: Any, versions: Iterable[Version], bucket: str, *, versioned: bool = False) -> None:
    """Replace the rows of a live inventory table; a later version has a larger sequence number."""
    rows = [
        {
            "bucket": bucket,
            "key": one.key,
            "sequence_number": f"{number:016x}",
            "version_id": str(number) if versioned else None,
            "is_delete_marker": one.gone,
            "size": one.size,
            "last_modified_date": one.last_modified.replace(tzinfo=None),
            "e_tag": one.etag,
            "storage_class": "STANDARD",
        }
        for number, one in enumerate(versions)
    ]
    table.overwrite(pa.Table.from_pylist(rows, schema=table.schema().as_arrow()))
