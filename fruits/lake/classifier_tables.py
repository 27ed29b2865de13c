"""Rows of `calibration_sample` and `classifiers` as values, and back; which photos are in the sample."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fruits.analysis.calibration import Calibration
from fruits.analysis.classifier import Classifier, Sample
from fruits.analysis.discriminant import Discriminant
from fruits.analysis.quality import Quality
from fruits.lake.branches import Writer, commit_rows
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import replace_row
from fruits.lake.publication import Publication
from fruits.lake.schemas import CALIBRATION_SAMPLE, CLASSIFIERS, matrix
from fruits.photos.keys import FIT_SPLIT, KeyPattern

if TYPE_CHECKING:
    from pyiceberg.table import Transaction

SAMPLE_PHOTOS = 2_048
"""Photos that calibrate or are scored; a share of half of them is right to 1.4 %."""

KEPT_PHOTOS = 2 * SAMPLE_PHOTOS
"""Photos that the table keeps, 20 MB of features: as many may leave until all features have to be looked at again."""

SAMPLED = ("key", "label", "split", "vector")
"""What the sample has of a feature."""

_OF_RUN = ["fitted_at", "run_id"]
_QUALITY = ("accuracy", "calibration_error", "coverage", "labels_of_set")


def load_sample(lake: Lake, snapshot_id: int, model_id: str) -> pa.Table:
    """The photos of a backbone that classifiers are calibrated on, in the order of keys."""
    rows = lake.read("calibration_sample", snapshot_id, model_id=model_id)
    return rows.cast(CALIBRATION_SAMPLE.schema).sort_by("key")


def save_sample(lake: Lake, writer: Writer, model_id: str, rows: pa.Table) -> None:
    """Replace the sample of a backbone on an attempt's branch."""
    from pyiceberg.expressions import EqualTo

    def replace(transaction: "Transaction") -> None:
        transaction.delete(EqualTo("model_id", model_id), **writer.commit)
        if rows.num_rows:
            transaction.append(rows, **writer.commit)

    commit_rows(lake, CALIBRATION_SAMPLE.name, replace, branch=writer.branch)


def sample_of(rows: pa.Table, pattern: KeyPattern | None = None) -> Sample:
    """Rows with the columns key, label, split and vector, in the order of keys, as a sample.

    ``pattern`` (None: no groups) reads the groups from the keys.
    """
    keys = rows["key"].to_pylist()
    fitted = np.array([split == FIT_SPLIT for split in rows["split"].to_pylist()], dtype=bool)
    groups = [pattern.group(key) for key in keys] if pattern else keys
    return Sample(keys, rows["label"].to_pylist(), fitted, matrix(rows["vector"].combine_chunks()), groups)


def load_classifier(lake: Lake, publication: Publication) -> Classifier | None:
    """The classifier that a publication names; None where it names none, as in older lakes."""
    row = _named(lake, publication)
    return _classifier(row) if row else None


def load_quality(lake: Lake, publication: Publication) -> Quality | None:
    """The quality of that classifier; reads no weights. None without one, or with too few photos to tell."""
    row = _named(lake, publication, "scored_photos", *_QUALITY)
    return _quality(row) if row else None


def load_fitting_run(lake: Lake, publication: Publication) -> str | None:
    """The id of the run that fitted that classifier; None without one."""
    row = _named(lake, publication, "run_id")
    return row["run_id"] if row else None


def save_classifier(lake: Lake, writer: Writer, model_id: str, classifier: Classifier, run_id: str) -> None:
    """Replace the classifier of a backbone on an attempt's branch; the same one again stays the row that it is."""
    found, calibration, quality = classifier.discriminant, classifier.calibration, classifier.quality
    row = {
        "classifier_id": classifier.classifier_id,
        "model_id": model_id,
        "labels": list(classifier.labels),
        "counts": found.counts,
        "weights": list(found.weights),
        "intercept": found.intercept,
        "shrinkage": found.shrinkage,
        "temperature": calibration.temperature,
        "error": calibration.error,
        "thresholds": calibration.thresholds,
        "calibrated_on": classifier.calibrated_on,
        "calibration_photos": calibration.n,
        "scored_photos": quality.n if quality else 0,
        **{name: getattr(quality, name) if quality else None for name in _QUALITY},
        "fit_split": FIT_SPLIT,
        "fitted_at": datetime.now(UTC),
        "run_id": run_id,
    }
    known = lake.read(CLASSIFIERS.name, lake.head(CLASSIFIERS.name, writer.branch), model_id=model_id)
    told = pa.Table.from_pylist([row], CLASSIFIERS.schema).drop_columns(_OF_RUN)
    if not known.drop_columns(_OF_RUN).cast(told.schema).equals(told):
        replace_row(lake, writer, CLASSIFIERS, row, "model_id")


def _named(lake: Lake, publication: Publication, *columns: str) -> dict[str, Any] | None:
    """Columns (none: all) of the row of the classifier that a publication names; None where it names none."""
    if publication.classifier_id is None:
        return None
    at, named = publication.snapshots["classifiers"], {"classifier_id": publication.classifier_id}
    rows = lake.read("classifiers", at, columns or ("*",), model_id=str(publication.model_id), **named).to_pylist()
    return rows[0] if rows else None


def _quality(row: dict[str, Any]) -> Quality | None:
    return Quality(row["scored_photos"], *(row[name] for name in _QUALITY)) if row["scored_photos"] else None


def _classifier(row: dict[str, Any]) -> Classifier:
    discriminant = Discriminant(
        labels=tuple(row["labels"]),
        counts=np.array(row["counts"], dtype=np.int64),
        weights=np.array(row["weights"]),
        intercept=np.array(row["intercept"]),
        shrinkage=row["shrinkage"],
    )
    calibration = Calibration(
        temperature=row["temperature"],
        error=row["error"],
        thresholds=np.array(row["thresholds"]),
        n=row["calibration_photos"],
    )
    return Classifier(discriminant, calibration, row["calibrated_on"], _quality(row))
