"""The table ``photo_hashes`` as Spark writes it."""

from fruits.lake.hashes import FEATURES_PROPERTY
from fruits.lake.schemas import PHOTO_HASHES
from fruits.spark.tables import Tables


def write_hashes(tables: Tables, features: int) -> None:
    """Write ``photo_hashes`` of the features at a snapshot on the writer's branch, in place of what is there."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    rows = tables.read("features", features).select(*PHOTO_HASHES.schema.names)
    writing = rows.orderBy("model_id", "sha256").writeTo(tables.branch("photo_hashes"))
    writing.option(f"snapshot-property.{FEATURES_PROPERTY}", str(features)).overwrite(F.lit(True))
