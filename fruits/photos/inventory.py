"""Reports of S3 Inventory: what a bucket held at a date, as files in another bucket.

S3 writes a report each day or week, in a folder that is called after its date. The report is complete once the folder
has ``manifest.json`` and ``manifest.checksum``. A report may lack recent uploads and have objects that are gone: S3
Inventory is eventually consistent.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedIOBase
from typing import Any, cast
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
from obstore.store import ObjectStore

from fruits.errors import FruitsError
from fruits.photos.pages import LISTED_SCHEMA
from fruits.stores import list_folders, open_file, read_bytes

_FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z")
_COLUMN_OF_PARQUET = re.compile(r"(?:required|optional)\s+\w+\s+(\w+)")
_NEEDED = {"key": "Key", "etag": "ETag", "size": "Size", "lastmodifieddate": "LastModifiedDate"}
_VERSIONS = ("islatest", "isdeletemarker")
_BATCH_ROWS = 4_096
_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Report:
    """A complete report.

    Attributes:
        date: When S3 began to scan the bucket.
        csv: Whether the files are CSV, else Parquet.
        columns: The names of the columns, as S3 spells them.
        files: Keys of the files, in the bucket that the report was written to.
    """

    date: datetime
    csv: bool
    columns: tuple[str, ...]
    files: tuple[str, ...]


def newest_report(store: ObjectStore, folder: str, bucket: str) -> Report:
    """The newest complete report on ``bucket`` in the folder of an inventory's configuration.

    Raises:
        FruitsError: when there is none, the report is on another bucket, its format is unknown, or it lacks a column.
    """
    for path in sorted(list_folders(store, folder), reverse=True):
        if _FOLDER.fullmatch(path.rpartition("/")[2]) and (text := _complete(store, path)) is not None:
            return _report(json.loads(text), path, bucket)
    raise FruitsError(
        f"S3 Inventory: {folder} has no complete report; S3 delivers the first one within 48 hours. Correct "
        "FRUITS_INVENTORY, expected s3://<bucket>/<prefix>/<bucket of photos>/<id of the inventory>, or set "
        "FRUITS_LISTING=list until the report is there"
    )


def _complete(store: ObjectStore, path: str) -> bytes | None:
    """The manifest in a report's folder; None when the report is not complete."""
    try:
        text = read_bytes(store, f"{path}/manifest.json")
        checksum = read_bytes(store, f"{path}/manifest.checksum").decode().strip()
    except FileNotFoundError:
        return None
    return text if hashlib.md5(text, usedforsecurity=False).hexdigest() == checksum.lower() else None


def _report(manifest: dict[str, Any], path: str, bucket: str) -> Report:
    where = f"S3 Inventory: {path}"
    if manifest["sourceBucket"] != bucket:
        raise FruitsError(
            f"{where} is about bucket {manifest['sourceBucket']!r}, and the photos are in {bucket!r}; correct "
            "FRUITS_INVENTORY or FRUITS_BUCKET"
        )
    form = str(manifest["fileFormat"])
    if form.lower() not in ("csv", "parquet"):
        raise FruitsError(
            f"{where} is in the format {form}, expected Parquet or CSV; change the format of the inventory's "
            "configuration, and set FRUITS_LISTING=list until the next report"
        )
    csv, schema = form.lower() == "csv", str(manifest["fileSchema"])
    columns = [name.strip() for name in schema.split(",")] if csv else _COLUMN_OF_PARQUET.findall(schema)
    missing = [shown for name, shown in _NEEDED.items() if name not in map(_plain, columns)]
    if missing:
        raise FruitsError(
            f"{where} lacks {', '.join(missing)}; add these fields to the inventory's configuration, and set "
            "FRUITS_LISTING=list until the next report"
        )
    date = datetime.fromtimestamp(int(manifest["creationTimestamp"]) / 1_000, UTC)
    return Report(date, csv, tuple(columns), tuple(str(file["key"]) for file in manifest["files"]))


def reported_batches(store: ObjectStore, report: Report, prefix: str) -> Iterator[pa.RecordBatch]:
    """The current objects of a report whose key starts with ``prefix``, in batches with ``LISTED_SCHEMA``.

    Of an object with several versions only the latest one counts, and none when that is a delete marker. Memory is
    bounded by some pages of a file.

    Raises:
        FruitsError: when a file is gone or can't be read.
    """
    for key in report.files:
        try:
            with open_file(store, key, _BUFFER_BYTES) as file:
                for batch in _csv_batches(file, report.columns) if report.csv else _parquet_batches(file):
                    if (objects := _current(batch, prefix, encoded=report.csv)).num_rows:
                        yield objects
        except FileNotFoundError:
            raise FruitsError(
                f"S3 Inventory: {key}, a file of the report of {report.date:%Y-%m-%d %H:%M} UTC, is gone; keep reports "
                "for some days, or set FRUITS_LISTING=list until the next one"
            ) from None
        except (pa.ArrowInvalid, EOFError, gzip.BadGzipFile) as error:
            raise FruitsError(
                f"S3 Inventory: {key} can't be read: {error}; set FRUITS_LISTING=list until the next report"
            ) from error


def _plain(name: str) -> str:
    """A column's name in one spelling: that of Parquet is `e_tag`, that of CSV `ETag`."""
    return name.replace("_", "").lower()


def _parquet_batches(file: BufferedIOBase) -> Iterator[dict[str, pa.Array]]:
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    columns = [name for name in opened.schema_arrow.names if _plain(name) in (*_NEEDED, *_VERSIONS)]
    for batch in opened.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
        yield {_plain(name): batch[name] for name in columns}


def _csv_batches(file: BufferedIOBase, names: tuple[str, ...]) -> Iterator[dict[str, pa.Array]]:
    from pyarrow import csv

    columns = [name for name in names if _plain(name) in (*_NEEDED, *_VERSIONS)]
    with csv.open_csv(
        gzip.open(file),
        read_options=csv.ReadOptions(column_names=names, block_size=_BUFFER_BYTES, use_threads=False),
        convert_options=csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
        ),
    ) as reader:
        for batch in reader:
            yield {_plain(name): batch[name] for name in columns}


def _current(batch: dict[str, pa.Array], prefix: str, *, encoded: bool) -> pa.RecordBatch:
    """The current objects of a batch whose key starts with ``prefix``; CSV has keys ``encoded`` as in a URL."""
    if encoded:
        batch["key"] = pa.array(map(unquote_plus, batch["key"].to_pylist()), pa.string())
    there = pc.starts_with(batch["key"], prefix)
    if "islatest" in batch:
        there = pc.and_(there, _flag(batch["islatest"]))
    if "isdeletemarker" in batch:
        there = pc.and_(there, pc.invert(_flag(batch["isdeletemarker"])))
    key, etag, size, moment = (batch[name].filter(there) for name in _NEEDED)
    columns = [key, pc.utf8_trim(etag.cast(pa.string()), '"'), size, moment]
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, LISTED_SCHEMA, strict=True)], schema=LISTED_SCHEMA
    )


def _flag(column: pa.Array) -> pa.Array:
    """Whether a column of booleans, or of `true` and `false`, is true; what is empty is not."""
    flags = pc.equal(pc.utf8_lower(column), "true") if pa.types.is_string(column.type) else column
    return cast("pa.Array", flags.fill_null(False))
