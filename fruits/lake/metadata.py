"""The live inventory table of S3 Metadata: what a bucket holds, as an Iceberg table that S3 keeps up to date.

S3 keeps the tables of a region in a table bucket of its own, ``aws-s3``, and brings in a change of the bucket within an
hour. A bucket with versions has a row for each version of an object, and ``sequence_number`` orders these.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from fruits.denials import denials_explained
from fruits.errors import FruitsError
from fruits.lake.catalog import scanned_batches
from fruits.photos.pages import VERSIONS_SCHEMA
from fruits.settings import Settings

if TYPE_CHECKING:
    from pyiceberg.table import Table

DELAY = timedelta(hours=1)
"""A change is in the table after so long, as S3 says."""

_COLUMNS = {
    "key": "key",
    "e_tag": "etag",
    "size": "size",
    "last_modified_date": "last_modified",
    "is_delete_marker": "gone",
    "sequence_number": "sequence",
}


def table_name(bucket: str) -> tuple[str, str]:
    """The namespace and the name of a bucket's live inventory table."""
    return "b_" + bucket.replace("-", "_").replace(".", "_"), "inventory"


def catalog_properties(arn: str) -> dict[str, str]:
    """The properties of the catalog of a table bucket for PyIceberg's ``load_catalog``."""
    _, partition, _, region, *_ = arn.split(":")
    domain = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
    return {
        "type": "rest",
        "uri": f"https://s3tables.{region}.{domain}/iceberg",
        "warehouse": arn,
        "rest.sigv4-enabled": "true",
        "rest.signing-name": "s3tables",
        "rest.signing-region": region,
        "s3.region": region,
    }


def inventory_table(settings: Settings) -> "Table":
    """The live inventory table of the bucket of photos.

    Raises:
        FruitsError: when there is none, or AWS denies it.
    """
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import ForbiddenError, NoSuchTableError, RESTError, UnauthorizedError

    arn, name = str(settings.metadata_table), table_name(settings.bucket)
    try:
        with denials_explained():
            return load_catalog("metadata", **catalog_properties(arn)).load_table(name)
    except NoSuchTableError as error:
        raise FruitsError(
            f"S3 Metadata: {arn} has no table {'.'.join(name)}; create the metadata configuration of bucket "
            f"{settings.bucket!r} with a live inventory table, or correct FRUITS_METADATA_TABLE"
        ) from error
    except (ForbiddenError, UnauthorizedError) as error:
        raise FruitsError(
            f"S3 Metadata: AWS denies table {'.'.join(name)} of {arn}; the role needs s3tables:GetTableBucket on the "
            "table bucket, and s3tables:GetTable, s3tables:GetTableData and s3tables:GetTableMetadataLocation on the "
            f"table ({error})"
        ) from error
    except RESTError as error:
        raise FruitsError(
            f"S3 Metadata: {arn}: {error}; check FRUITS_METADATA_TABLE, the network and the AWS credentials"
        ) from error


def date_of(table: "Table") -> datetime:
    """The date as of which the table surely knows the bucket.

    Raises:
        FruitsError: when S3 has not filled the table yet, or the table lacks a column.
    """
    missing = sorted({*_COLUMNS, "bucket", "version_id"} - set(table.schema().column_names))
    if missing:
        raise FruitsError(
            f"S3 Metadata: table {'.'.join(table.name())} lacks {', '.join(missing)}: expected the live inventory table"
        )
    snapshot = table.current_snapshot()
    if snapshot is None:
        raise FruitsError(
            f"S3 Metadata: table {'.'.join(table.name())} is empty; wait until its status is ACTIVE, and set "
            "FRUITS_LISTING=list until then"
        )
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1_000, UTC) - DELAY


def has_versions(table: "Table", bucket: str) -> bool:
    """Whether the bucket has, or once had, versions. Without any, the table's bounds say so, and no file is read."""
    from pyiceberg.expressions import NotNull

    scan = table.scan(row_filter=NotNull("version_id"), selected_fields=("bucket", "version_id"))
    return any(
        pc.any(pc.and_(pc.equal(batch["bucket"], bucket), pc.is_valid(batch["version_id"]))).as_py()
        for batch in scanned_batches(scan, scan.plan_files())
    )


def version_batches(table: "Table", bucket: str, prefix: str) -> Iterator[pa.RecordBatch]:
    """The versions of the objects whose key starts with ``prefix``, in batches with ``VERSIONS_SCHEMA``."""
    from pyiceberg.expressions import StartsWith

    where = {"row_filter": StartsWith("key", prefix)} if prefix else {}
    scan = table.scan(**where, selected_fields=("bucket", *_COLUMNS))
    for batch in scanned_batches(scan, scan.plan_files()):
        mine = batch.filter(pc.and_(pc.equal(batch["bucket"], bucket), pc.starts_with(batch["key"], prefix)))
        if mine.num_rows:
            columns = [mine[name] for name in _COLUMNS]
            columns[1] = pc.utf8_trim(columns[1].cast(pa.string()), '"')
            columns[4] = columns[4].fill_null(False)
            yield pa.RecordBatch.from_arrays(
                [column.cast(field.type) for column, field in zip(columns, VERSIONS_SCHEMA, strict=True)],
                schema=VERSIONS_SCHEMA,
            )
