"""The tables of the lake: the only place that knows their columns and types."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

TIMESTAMP = pa.timestamp("us", tz="UTC")

TableName = Literal[
    "features",
    "quarantine",
    "pca_models",
    "pca_statistics",
    "label_statistics",
    "photo_hashes",
    "calibration_sample",
    "classifiers",
    "embeddings",
    "publications",
]


@dataclass(frozen=True)
class TableDefinition:
    """A table: its name, what a row is, its columns, the column that it is partitioned by (None: not partitioned).

    ``sort_by`` is the column by which rows are sorted within a file. ``since`` is the lake's format that the table came
    with: a lake of an older format, which only readers have opened, lacks the table. ``row_group_bytes`` is the size of
    row groups, where that is not the lake's.
    """

    name: TableName
    row: str
    schema: pa.Schema
    sort_by: str
    partition_by: str | None = None
    since: int = 1
    row_group_bytes: int | None = None


def _column(name: str, kind: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


def _list(item: pa.DataType) -> pa.ListType:
    return pa.list_(pa.field("element", item, nullable=False))


def _map(value: pa.DataType) -> pa.MapType:
    return pa.map_(pa.string(), pa.field("value", value, nullable=False))


_KEY = _column("key", pa.string(), "Object key in the bucket.")
_ETAG = _column(
    "etag", pa.string(), "ETag of the object that was read; `due` where a rebuild could not read it: the next run will."
)
_SIZE = _column("size", pa.int64(), "Size of the object, in bytes.")
_LAST_MODIFIED = _column("last_modified", TIMESTAMP, "When the object was last written, in UTC.")
_LABEL = _column("label", pa.string(), "Kind of fruit, from the object key.")
_SPLIT = _column("split", pa.string(), "`train` (the fit split), `test` or `validation` (held out).")
_MODEL_ID = _column("model_id", pa.string(), "Identity of the backbone: name and hash of network and preprocessing.")
_PCA_ID = _column("pca_id", pa.string(), "Identity of the PCA version.")
_SHA256 = _column("sha256", pa.string(), "SHA-256 of the object's bytes, hexadecimal.")
_RUN_ID = _column("run_id", pa.string(), "Run that wrote the row.")

GATE = pa.struct(
    [
        _column("name", pa.string(), "Name of the gate."),
        _column("severity", pa.string(), "`required` or `warn`."),
        _column("passed", pa.bool_(), "Whether it passed."),
        _column("value", pa.float64(), "What was measured; null where it does not apply.", nullable=True),
        _column("threshold", pa.float64(), "What it is compared with; null where there is none.", nullable=True),
        _column("detail", pa.string(), "The finding in words."),
    ]
)

APPROVAL = pa.struct(
    [
        _column("kind", pa.string(), "`deletions`, `gates`, `rebuild`, `refit` or `backbone`."),
        _column("digest", pa.string(), "SHA-256 of exactly what was asked."),
        _column("question", pa.string(), "What happens on approval."),
        _column("number", pa.int64(), "How many rows or gates it is about."),
        _column("details", pa.string(), "First keys, rows by label, reasons or measured values, as JSON."),
        _column("run", pa.string(), "Key of the run that asked."),
        _column("asked_at", TIMESTAMP, "When it was asked."),
        _column("approved_at", TIMESTAMP, "When it was approved."),
        _column("approved_by", pa.string(), "Who approved."),
        _column("via", pa.string(), "By which way."),
        _column("why", pa.string(), "The reason that was given."),
    ]
)

COUNTER = pa.struct(
    [
        _column("model_id", pa.string(), "Backbone of the rows."),
        _column("label", pa.string(), "Label of the features; null for quarantined objects.", nullable=True),
        _column("split", pa.string(), "Split of the features; null for quarantined objects.", nullable=True),
        _column("reason", pa.string(), "Reason of the quarantined objects; null for features.", nullable=True),
        _column("rows", pa.int64(), "How many rows there are, at least 1."),
    ]
)

FEATURES = TableDefinition(
    "features",
    "a live object under a backbone",
    pa.schema(
        [
            _KEY, _ETAG, _SIZE, _LAST_MODIFIED, _LABEL, _SPLIT, _SHA256,
            _column("phash", pa.int64(), "Perceptual hash: near duplicates differ in few bits."),
            _column("width", pa.int32(), "Width of the upright photo, in pixels."),
            _column("height", pa.int32(), "Height of the upright photo, in pixels."),
            _column("format", pa.string(), "Image format, such as JPEG."),
            _MODEL_ID,
            _column("vector", _list(pa.float32()), "Feature vector of the backbone."),
            _RUN_ID,
        ]
    ),
    sort_by="key",
    partition_by="model_id",
)  # fmt: skip

QUARANTINE = TableDefinition(
    "quarantine",
    "an object that could not be featurized",
    pa.schema(
        [
            _KEY, _ETAG, _SIZE, _LAST_MODIFIED, _MODEL_ID,
            _column("reason", pa.string(), "Reason code."),
            _column("detail", pa.string(), "What was found and what was expected."),
            _RUN_ID,
            _column("limit", pa.int64(), "The limit that refused the object; null for other reasons.", nullable=True),
            _column("decoder", pa.string(), "The decoder that refused it; null for other reasons.", nullable=True),
        ]
    ),
    sort_by="key",
)  # fmt: skip

PCA_MODELS = TableDefinition(
    "pca_models",
    "a fitted PCA version",
    pa.schema(
        [
            _PCA_ID, _MODEL_ID,
            _column("n", pa.int64(), "Photos in the fit."),
            _column("k", pa.int32(), "Components."),
            _column("n_components", pa.string(), "What was asked: a count, or a share of variance."),
            _column("mean", _list(pa.float64()), "Mean feature vector, length d."),
            _column("components", _list(_list(pa.float64())), "Principal axes, k rows of length d, orthonormal."),
            _column("explained_variance", _list(pa.float64()), "Variance along each component."),
            _column("explained_variance_ratio", _list(pa.float64()), "Its share of the total variance."),
            _column("total_variance", pa.float64(), "Trace of the covariance matrix."),
            _column(
                "held_out_unexplained",
                pa.float64(),
                "Share of variance left unexplained on the held-out split; null where there was none.",
                nullable=True,
            ),
            _column("fit_split", pa.string(), "Split that it was fitted on."),
            _column("split_rules", pa.string(), "The rules that decided the photos' splits then.", nullable=True),
            _column("features_snapshot_id", pa.int64(), "Snapshot of `features` that it was fitted on."),
            _column("reason", pa.string(), "Why it was fitted."),
            _column("fitted_at", TIMESTAMP, "When it was fitted."),
            _RUN_ID,
        ]
    ),
    sort_by="pca_id",
)  # fmt: skip

PCA_STATISTICS = TableDefinition(
    "pca_statistics",
    "the running moments of one backbone's fit split",
    pa.schema(
        [
            _MODEL_ID,
            _column("n", pa.int64(), "Photos in the fit split."),
            _column("mean", _list(pa.float64()), "Mean feature vector, length d."),
            _column("scatter", _list(pa.float64()), "Upper triangle of the centred scatter matrix, row by row."),
            _column("mean_error", pa.float64(), "Bound on the rounding error of `mean`."),
            _column("scatter_error", pa.float64(), "Bound on the rounding error of `scatter`."),
            _RUN_ID,
        ]
    ),
    sort_by="model_id",
)  # fmt: skip

LABEL_STATISTICS = TableDefinition(
    "label_statistics",
    "a label of one backbone's fit split: its running count and sum",
    pa.schema(
        [
            _MODEL_ID, _LABEL,
            _column("n", pa.int64(), "Photos of the label in the fit split, at least 1."),
            _column("total", _list(pa.float64()), "Sum of their feature vectors, length d; the mean is `total / n`."),
            _column("rest", _list(pa.float64()), "What rounding left of `total`: the exact sum less `total`."),
            _RUN_ID,
        ]
    ),
    sort_by="label",
    partition_by="model_id",
    since=4,
)  # fmt: skip

PHOTO_HASHES = TableDefinition(
    "photo_hashes",
    "a feature as maintenance found it last, by the hash of its photo; lakes of 200,000 photos or more have rows",
    pa.schema([_SHA256, _KEY, _MODEL_ID]),
    sort_by="sha256",
    partition_by="model_id",
    since=4,
    row_group_bytes=512 * 2**10,  # a lookup reads a row group for each hash
)

CALIBRATION_SAMPLE = TableDefinition(
    "calibration_sample",
    "one of some thousand photos of a backbone that classifiers are calibrated on: held-out ones first, by a hash",
    pa.schema(
        [_KEY, _LABEL, _SPLIT, _MODEL_ID, _column("vector", _list(pa.float32()), "Its feature vector."), _RUN_ID]
    ),
    sort_by="key",
    partition_by="model_id",
    since=5,
)

CLASSIFIERS = TableDefinition(
    "classifiers",
    "the classifier of one backbone; each run that changes the photos replaces it",
    pa.schema(
        [
            _column("classifier_id", pa.string(), "Identity: a hash of labels, weights and calibration."),
            _MODEL_ID,
            _column("labels", _list(pa.string()), "The c labels, sorted."),
            _column("counts", _list(pa.int64()), "Photos of each label in the fit split."),
            _column("weights", _list(_list(pa.float64())), "Linear discriminant: c rows of length d."),
            _column("intercept", _list(pa.float64()), "Length c; the score of a feature is `weights @ x + intercept`."),
            _column("shrinkage", pa.float64(), "Share of the identity in the covariance within labels."),
            _column("temperature", pa.float64(), "Confidences are the softmax of the scores over the temperature."),
            _column("error", pa.float64(), "Share of photos whose set may lack the right label."),
            _column("thresholds", _list(pa.float64()), "A label of at least this confidence is in the set; length c."),
            _column("calibrated_on", pa.string(), "`held-out photos`, `cross-fitted photos` or `nothing`."),
            _column("calibration_photos", pa.int64(), "Photos that it was calibrated on."),
            _column("scored_photos", pa.int64(), "Photos of the figures below, of neither fit nor calibration."),
            _column("accuracy", pa.float64(), "Share of them whose likeliest label is right.", nullable=True),
            _column("calibration_error", pa.float64(), "Expected calibration error.", nullable=True),
            _column("coverage", pa.float64(), "Share of them whose set has the right label.", nullable=True),
            _column("labels_of_set", pa.float64(), "Labels of a set, on average.", nullable=True),
            _column("fit_split", pa.string(), "Split that it was fitted on."),
            _column("fitted_at", TIMESTAMP, "When it was fitted."),
            _RUN_ID,
        ]
    ),
    sort_by="model_id",
    since=5,
)  # fmt: skip

EMBEDDINGS = TableDefinition(
    "embeddings",
    "an object under a PCA version",
    pa.schema(
        [
            _KEY, _ETAG, _LABEL, _SPLIT, _MODEL_ID, _PCA_ID,
            _column("embedding", _list(pa.float32()), "Projection on the components, length k."),
            _column("residual", pa.float32(), "Length of what the components leave of the centred feature."),
            _RUN_ID,
        ]
    ),
    sort_by="key",
    partition_by="pca_id",
)  # fmt: skip

PUBLICATIONS = TableDefinition(
    "publications",
    "one atomic publication; the highest sequence is current",
    pa.schema(
        [
            _column("publication_id", pa.string(), "Identity of the publication."),
            _column("sequence", pa.int64(), "1, 2, 3 ... without gaps."),
            _RUN_ID,
            _column("published_at", TIMESTAMP, "When it was published."),
            _MODEL_ID,
            _column("pca_id", pa.string(), "PCA version that readers use.", nullable=True),
            _column("snapshots", _map(pa.int64()), "Snapshot id of each table."),
            _column("counts", _map(pa.int64()), "Objects by action, features and quarantined objects."),
            _column("probe_raw", pa.float64(), "Held-out accuracy of the linear probe on features.", nullable=True),
            _column("probe_embedded", pa.float64(), "The same on embeddings.", nullable=True),
            _column("probe_rows", pa.int64(), "Held-out photos that the probe was scored on.", nullable=True),
            _column("building", pa.string(), "Backbone that is built beside the one in use.", nullable=True),
            _column("gates", _list(GATE), "What the gates found."),
            _column("approvals", _list(APPROVAL), "The decisions of people that it rests on.", nullable=True),
            _column("rules", pa.string(), "Identity of the rules for keys that all rows follow.", nullable=True),
            _column("counters", _list(COUNTER), "Rows by label and split, or reason; empty: unknown.", nullable=True),
            _column("classifier_id", pa.string(), "Classifier of the backbone; null without one.", nullable=True),
        ]
    ),
    sort_by="sequence",
)  # fmt: skip

TABLES: tuple[TableDefinition, ...] = (
    FEATURES, QUARANTINE, PCA_MODELS, PCA_STATISTICS, LABEL_STATISTICS, PHOTO_HASHES, CALIBRATION_SAMPLE, CLASSIFIERS,
    EMBEDDINGS, PUBLICATIONS,
)  # fmt: skip

BY_NAME: dict[TableName, TableDefinition] = {table.name: table for table in TABLES}
"""The tables by their names."""

DATA_TABLES: tuple[TableName, ...] = tuple(table.name for table in TABLES if table is not PUBLICATIONS)
"""The tables whose ``main`` a publication moves; ``publications`` itself is the record of it."""


def matrix(vectors: pa.ListArray) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """A list column as a matrix, shape ``(rows, d)``; ``(0, 0)`` for none."""
    return np.asarray(vectors.flatten(), dtype=np.float32).reshape(len(vectors), -1 if len(vectors) else 0)
