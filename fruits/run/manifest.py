"""The manifest: which objects a run works on and what it does with each, as one Parquet file in the lake."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from fruits.lake.schemas import TIMESTAMP
from fruits.photos.entry import Entry
from fruits.stores import read_bytes, write_bytes

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

_PATH = "manifest.parquet"


def write_manifest(store: ObjectStore, entries: Sequence[Entry]) -> None:
    """Write the entries of a run to its folder."""
    columns = {name: [getattr(entry, name) for entry in entries] for name in MANIFEST_SCHEMA.names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=MANIFEST_SCHEMA), buffer, compression="zstd")
    write_bytes(store, _PATH, buffer.getvalue())


def read_manifest(store: ObjectStore) -> pa.Table:
    """The manifest in a run's folder, with ``MANIFEST_SCHEMA``."""
    return pq.read_table(io.BytesIO(read_bytes(store, _PATH)))
