"""The running moments of a backbone's fit split: merged with new rows, less the rows that left."""

import logging
from typing import TYPE_CHECKING

from fruits.analysis.moments import Moments, from_bytes, merge, merge_all, should_recompute, subtract
from fruits.lake.pca_tables import load_statistics, save_statistics
from fruits.photos.keys import FIT_SPLIT
from fruits.spark.executors import MOMENTS_SCHEMA, partial_moments
from fruits.spark.job import Job
from fruits.spark.session import map_batches

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

log = logging.getLogger("fruits")


def update_statistics(job: Job, replaced: "pa.Table") -> tuple[Moments, bool]:
    """Merge the run's new rows, subtract those of ``replaced`` keys, and save the moments on the attempt's branch.

    Where subtracting would lose digits the moments are taken from all rows again; the second value says so.
    """
    width, model_id = job.run.backbone.feature_width, job.run.model_id
    moments = load_statistics(job.lake, job.start["pca_statistics"], model_id, width)
    if replaced.num_rows and moments.n:
        gone = job.tables.read_keys("features", job.run.base.snapshots["features"], replaced, model_id)
        moments = subtract(moments, moments_of_rows(gone, width))
    moments = merge(moments, moments_of_rows(job.new_features(), width))
    recomputed = should_recompute(moments)
    if recomputed:
        log.info("moments: subtracting cancelled too many digits; taking them from the rows again")
        moments = moments_of_rows(job.features(), width)
    save_statistics(job.lake, job.tables.writer, model_id, moments, job.run.run_id)
    return moments, recomputed


def moments_of_rows(features: "DataFrame", width: int) -> Moments:
    """Moments of the fit split's vectors: at most one partial result per core, merged on the driver."""
    fit_rows = features.where(f"split = '{FIT_SPLIT}'").select("key", "vector")
    cores = features.sparkSession.sparkContext.defaultParallelism
    parts = map_batches(fit_rows.coalesce(cores), partial_moments(width), MOMENTS_SCHEMA).toArrow()
    return merge_all([Moments.empty(width), *(from_bytes(part.as_py()) for part in parts["moments"])])
