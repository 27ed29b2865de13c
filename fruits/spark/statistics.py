"""The running statistics of a backbone's fit split: merged with new rows, less the rows that left.

Moments of all rows for the PCA, and sums by label for classifiers.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from fruits.analysis.labels import LabelSums, merge_sums, subtract_sums
from fruits.analysis.moments import Moments, merge, should_recompute, subtract
from fruits.lake.pca_tables import (
    count_by_label,
    load_label_sums,
    load_statistics,
    save_label_sums,
    save_statistics,
)
from fruits.photos.keys import FIT_SPLIT
from fruits.spark.executors import STATISTICS_SCHEMA, Statistics, merge_partials, merged_statistics, partial_statistics
from fruits.spark.job import Job
from fruits.spark.session import map_batches
from fruits.spark.stored import Rows, RowsAtHand, SparkRows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger("fruits")

FAN_IN = 8
"""Partial results that are merged at once: moments of 1,280 features take 6.6 MB, so the driver gets 53 MB at most."""


@dataclass(frozen=True)
class Updated:
    """The moments after a run's changes; whether they were ``recomputed`` from all rows; whether labels are known."""

    moments: Moments
    recomputed: bool
    labelled: bool


def update_statistics(job: Job, replaced: pa.Table) -> Updated:
    """Merge the run's new rows, subtract those of ``replaced`` keys, and save the result on the attempt's branches.

    Where subtracting would lose digits of the moments, all statistics are taken from the rows again. A lake of a
    release without `label_statistics` gets them then, or at its next refit: until then, no label has a row.
    """
    width, model_id = job.run.backbone.feature_width, job.run.model_id
    before = load_statistics(job.lake, job.start["pca_statistics"], model_id, width)
    labelled = sum(count_by_label(job.lake, job.start["label_statistics"], model_id).values()) == before.n
    gone = statistics_of_rows(rows_before(job, replaced), width) if replaced.num_rows and before.n else None
    new = statistics_of_rows(job.new_rows(), width)
    moments = merge(subtract(before, gone.moments) if gone else before, new.moments)
    recomputed = should_recompute(moments)
    if recomputed:
        log.info("moments: subtracting cancelled too many digits; taking them from the rows again")
        moments = recompute(job)
    else:
        save_statistics(job.lake, job.tables.writer, model_id, moments, job.run.run_id)
        if labelled:
            update_labels(job, gone.labels if gone else {}, new.labels)
    return Updated(moments, recomputed, labelled or recomputed)


def update_labels(job: Job, gone: LabelSums, new: LabelSums) -> None:
    """Bring the rows of the labels that the run changed up to date."""
    changed = {*gone, *new}
    if not changed:
        return
    model_id, writer = job.run.model_id, job.tables.writer
    before = load_label_sums(job.lake, job.start["label_statistics"], model_id, changed)
    after = merge_sums([subtract_sums(before, gone), new])
    save_label_sums(job.lake, writer, model_id, after, job.run.run_id, replaced=before.keys())


def recompute(job: Job) -> Moments:
    """Take all statistics from the rows again, and save them in place of all that the attempt's branches have."""
    model_id, writer, run_id = job.run.model_id, job.tables.writer, job.run.run_id
    found = statistics_of_rows(job.all_rows(), job.run.backbone.feature_width)
    save_statistics(job.lake, writer, model_id, found.moments, run_id)
    there = job.lake.head("label_statistics", writer.branch)  # this run may have added labels already
    known = count_by_label(job.lake, there, model_id)
    save_label_sums(job.lake, writer, model_id, found.labels, run_id, replaced=known.keys())
    return found.moments


def rows_before(job: Job, replaced: pa.Table) -> Rows:
    """The features of ``replaced`` keys as the run's base has them."""
    before = job.run.base.snapshots["features"]
    if job.is_small:
        return RowsAtHand(job.read_keys("features", before, replaced, "key", "label", "split", "vector"))
    return SparkRows(job.tables.read_keys("features", before, replaced, job.run.model_id))


def statistics_of_rows(features: Rows, width: int) -> Statistics:
    """Statistics of the fit split's rows: a partial result for each task, merged in a tree, the last few here."""
    partials = features.only(split=FIT_SPLIT).apply(
        "statistics",
        partial_statistics(width),
        ("key", "label", "vector"),
        STATISTICS_SCHEMA,
        merge=partial(merged_partials, width=width),
    )
    return merge_partials(partials, width)


def merged_partials(found: "DataFrame", parts: int, width: int) -> "DataFrame":
    """Partial statistics (``STATISTICS_SCHEMA``) of so many ``parts``, merged to moments of at most ``FAN_IN``.

    Few parts cost no further stage.
    """
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    for groups in tree(parts):
        # All parts of a label come to one task, so that each label is merged once.
        part = F.when(F.col("label").isNull(), F.spark_partition_id()).otherwise(F.hash("label"))
        grouped = found.withColumn("part", part).repartition(groups, "part").drop("part")
        found = map_batches(grouped, merged_statistics(width), STATISTICS_SCHEMA)
    return found


def tree(parts: int) -> Iterator[int]:
    """The numbers of parts above the leaves of a tree that merges ``FAN_IN`` parts at once, down to ``FAN_IN``."""
    while parts > FAN_IN:
        parts = math.ceil(parts / FAN_IN)
        yield parts
