"""The classifier of a run: the sample that it is calibrated on, and its fit on the statistics of the run."""

import logging
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.classifier import Classifier, Sample, fit_classifier
from fruits.analysis.labels import LabelSums
from fruits.analysis.moments import Moments
from fruits.lake.classifier_tables import (
    KEPT_PHOTOS,
    SAMPLE_PHOTOS,
    SAMPLED,
    load_sample,
    sample_of,
    save_classifier,
    save_sample,
)
from fruits.lake.pca_tables import load_label_sums
from fruits.lake.places import first_of, places
from fruits.lake.schemas import CALIBRATION_SAMPLE
from fruits.photos.keys import KeyPattern
from fruits.run.documents import Classified
from fruits.spark.executors import PLACED_SCHEMA, first_keys, rows_of_keys
from fruits.spark.job import Job
from fruits.spark.session import map_batches
from fruits.spark.statistics import tree
from fruits.spark.stored import Rows

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger("fruits")

_SCHEMA = pa.schema([CALIBRATION_SAMPLE.schema.field(name) for name in SAMPLED])


def update_sample(job: Job, replaced: pa.Table) -> pa.Table:
    """Bring the kept photos of the run's backbone up to date; returns the sample, in the order of keys.

    The sample has the ``SAMPLE_PHOTOS`` first of all photos by their ``Place``, so it is the same whatever runs made
    the tables. The table keeps more of them. All photos that it lacks come behind its last one, and so new photos
    behind that are not kept. When too few are left, the first ones are looked for among all features. Of n photos few
    are kept, and half of them must leave before that: a deletion costs a look at some photos on average, at any n.
    """
    model_id = job.run.model_id
    before = load_sample(job.lake, job.start["calibration_sample"], model_id)
    there = features_before(job)
    is_replaced = pc.is_in(before["key"], replaced["key"].combine_chunks())
    kept = before.filter(pc.invert(is_replaced)).select(SAMPLED)
    mends = len(before) > 0 and job.run.request.refit == "always"
    if mends or there is None or len(before) < min(there, SAMPLE_PHOTOS):  # the latter: a lake of an earlier release
        rows = first_of_all(job)
    else:
        last = max(places(before), default=None) if len(before) < there else None
        rows = first_of(pa.concat_tables([kept, first_photos(job.new_rows())]), KEPT_PHOTOS, last)
        if last is not None and len(rows) < SAMPLE_PHOTOS:
            rows = first_of_all(job)
    rows = rows.sort_by("key")
    if not rows.equals(before.select(SAMPLED)):
        save_sample(job.lake, job.tables.writer, model_id, with_run(rows, job))
    return first_of(rows, SAMPLE_PHOTOS).sort_by("key")


def first_of_all(job: Job) -> pa.Table:
    """The ``KEPT_PHOTOS`` first of all features of the run's backbone."""
    return first_photos(job.all_rows())


def features_before(job: Job) -> int | None:
    """Features of the run's backbone that the run's base has, by its counters; None where nobody knows."""
    counted = job.run.base.publication.counted
    if counted is None:
        return None if job.run.base.publication.publication_id else 0
    return counted.of_backbone(job.run.model_id).total("features")


def first_photos(rows: Rows) -> pa.Table:
    """The ``KEPT_PHOTOS`` first of features: chosen without their vectors, which are then read."""
    first = first_keys(KEPT_PHOTOS)
    (found,) = first(rows.apply("first photos", first, PLACED_SCHEMA.names, PLACED_SCHEMA, merge=first_of_parts))
    keys = found["key"].to_pylist()
    return pa.Table.from_batches(rows.apply("sample", rows_of_keys(keys, _SCHEMA), SAMPLED, _SCHEMA), _SCHEMA)


def first_of_parts(found: "DataFrame", parts: int) -> "DataFrame":
    """The first photos of each of so many ``parts``, reduced to those of at most ``FAN_IN``."""
    for groups in tree(parts):
        found = map_batches(found.repartition(groups), first_keys(KEPT_PHOTOS), PLACED_SCHEMA)
    return found


def with_run(rows: pa.Table, job: Job) -> pa.Table:
    """Rows of the sample as rows of the table, written by the run."""
    constants = {"model_id": job.run.model_id, "run_id": job.run.run_id}
    columns = {name: rows[name] for name in SAMPLED} | {
        name: pa.array([value] * len(rows), pa.string()) for name, value in constants.items()
    }
    return pa.table({name: columns[name] for name in CALIBRATION_SAMPLE.schema.names}).cast(CALIBRATION_SAMPLE.schema)


def update_classifier(job: Job, moments: Moments, sample: pa.Table) -> Classified | None:
    """Fit the classifier of the run's backbone on statistics that the run has written, and save it.

    None where there is no classifier: no photo in the fit split, or a lake of an earlier release whose sums of labels
    the next refit takes from the rows. Then the table has none either. A fit that fails stops no publication.
    """
    model_id, writer = job.run.model_id, job.tables.writer
    snapshot_id = job.lake.head("label_statistics", writer.branch)
    sums = load_label_sums(job.lake, snapshot_id, model_id) if snapshot_id else {}
    classifier = fitted(moments, sums, sample_of(sample, KeyPattern.of(job.settings))) if len(sample) else None
    if classifier is None:
        job.tables.delete_backbones("classifiers", (model_id,))
        return None
    save_classifier(job.lake, writer, model_id, classifier, job.run.run_id)
    found = quality_in_words(classifier)
    log.info("classifier %s: %d labels, %s", classifier.classifier_id, len(classifier.labels), found)
    return Classified(
        classifier_id=classifier.classifier_id,
        labels=len(classifier.labels),
        n=classifier.discriminant.n,
        shrinkage=classifier.discriminant.shrinkage,
        temperature=classifier.calibration.temperature,
        calibrated_on=classifier.calibrated_on,
        calibration_photos=classifier.calibration.n,
        error=classifier.calibration.error,
        quality=classifier.quality,
        confusion=classifier.confusion,
    )


def fitted(moments: Moments, sums: LabelSums, sample: Sample) -> Classifier | None:
    """The classifier of statistics, calibrated on a sample; None where it cannot be fitted, and the log says why."""
    counted = sum(one.n for one in sums.values())
    if not moments.n or counted != moments.n:
        log.info("no classifier: %d photos in the fit split, %d by label", moments.n, counted)
        return None
    try:
        return fit_classifier(moments, sums, sample)
    except (ValueError, np.linalg.LinAlgError) as error:
        log.warning("no classifier: %s", error)
        return None


def quality_in_words(classifier: Classifier) -> str:
    """What photos tell of a classifier."""
    if classifier.quality is None:
        return f"calibrated on {classifier.calibration.n} {classifier.calibrated_on}, too few to tell its quality"
    return str(classifier.quality)
