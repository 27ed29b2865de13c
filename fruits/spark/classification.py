"""The classifier of a run: the sample that it is calibrated on, and its fit on the statistics of the run."""

import hashlib
import logging
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.classifier import Classifier, fit_classifier
from fruits.analysis.moments import Moments
from fruits.lake.classifier_tables import load_sample, sample_of, save_classifier, save_sample
from fruits.lake.pca_tables import load_label_sums
from fruits.lake.schemas import CALIBRATION_SAMPLE
from fruits.photos.keys import FIT_SPLIT
from fruits.run.documents import Classified
from fruits.spark.job import Job

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

log = logging.getLogger("fruits")

SAMPLE_PHOTOS = 4_096
"""20 MB of features; a share of half of them is right to 1 %."""

_COLUMNS = ("key", "label", "split", "vector")


def update_sample(job: Job, replaced: pa.Table) -> pa.Table:
    """Bring the sample of the run's backbone up to date; returns its rows, in the order of keys.

    The sample has the ``SAMPLE_PHOTOS`` first of all photos: held-out ones come before those of the fit split, and
    photos of a split by the SHA-256 of their key. So it is the same whatever runs made the tables. New photos join by
    their place. Where photos leave a full sample, the next ones are looked for among all features: of many photos, few
    are in the sample, so a deletion costs a bounded share of such a pass on average.
    """
    model_id = job.run.model_id
    before = load_sample(job.lake, job.start["calibration_sample"], model_id)
    kept = before.filter(pc.invert(pc.is_in(before["key"], replaced["key"].combine_chunks())))
    left_full = len(before) == SAMPLE_PHOTOS and len(kept) < SAMPLE_PHOTOS
    if left_full or len(before) < min(SAMPLE_PHOTOS, features_before(job)):
        rows = first_photos(job.features())
    else:
        new = first_of(job.few_new_features) if job.is_small else first_photos(job.new_features())
        rows = first_of(pa.concat_tables([kept.select(_COLUMNS), new.select(_COLUMNS)]))
    rows = rows.sort_by("key")
    if not rows.select(["key", "vector"]).equals(before.select(["key", "vector"])):
        save_sample(job.lake, job.tables.writer, model_id, with_run(rows, job))
    return rows


def features_before(job: Job) -> int:
    """Features of the run's backbone that the run's base has, by its counters; 0 where nobody knows."""
    counted = job.run.base.publication.counted
    return counted.of_backbone(job.run.model_id).total("features") if counted else 0


def first_of(rows: pa.Table) -> pa.Table:
    """The ``SAMPLE_PHOTOS`` first of some rows, in no order."""
    order = [
        (split == FIT_SPLIT, hashlib.sha256(key.encode()).hexdigest(), number)
        for number, (key, split) in enumerate(zip(rows["key"].to_pylist(), rows["split"].to_pylist(), strict=True))
    ]
    return rows.take(pa.array([number for *_, number in sorted(order)[:SAMPLE_PHOTOS]], pa.int64()))


def first_photos(rows: "DataFrame") -> pa.Table:
    """The same of features that Spark has."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    first = rows.select(*_COLUMNS).orderBy(F.col("split") == FIT_SPLIT, F.sha2("key", 256)).limit(SAMPLE_PHOTOS)
    return first.toArrow().cast(pa.schema([CALIBRATION_SAMPLE.schema.field(name) for name in _COLUMNS]))


def with_run(rows: pa.Table, job: Job) -> pa.Table:
    """Rows of the sample as rows of the table, written by the run."""
    constants = {"model_id": job.run.model_id, "run_id": job.run.run_id}
    columns = {name: rows[name] for name in _COLUMNS} | {
        name: pa.array([value] * len(rows), pa.string()) for name, value in constants.items()
    }
    return pa.table({name: columns[name] for name in CALIBRATION_SAMPLE.schema.names}).cast(CALIBRATION_SAMPLE.schema)


def update_classifier(job: Job, moments: Moments, sample: pa.Table) -> Classified | None:
    """Fit the classifier of the run's backbone on statistics that the run has written, and save it.

    None where there is nothing to fit on: no photo in the fit split, or a lake of an earlier release whose sums of
    labels the next refit takes from the rows.
    """
    model_id, writer = job.run.model_id, job.tables.writer
    snapshot_id = job.lake.head("label_statistics", writer.branch)
    sums = load_label_sums(job.lake, snapshot_id, model_id) if snapshot_id else {}
    if not moments.n or sum(one.n for one in sums.values()) != moments.n:
        log.info("no classifier: %d photos in the fit split, %d by label", moments.n, sum(s.n for s in sums.values()))
        return None
    classifier = fit_classifier(moments, sums, sample_of(sample))
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
    )


def quality_in_words(classifier: Classifier) -> str:
    """What photos tell of a classifier."""
    quality = classifier.quality
    if quality is None:
        return f"calibrated on {classifier.calibration.n} {classifier.calibrated_on}, too few to tell its quality"
    return (
        f"accuracy {quality.accuracy:.3f}, calibration error {quality.calibration_error:.3f}, "
        f"coverage {quality.coverage:.3f} on {quality.n} photos"
    )
