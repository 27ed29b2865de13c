"""What the gates are evaluated on: measured on exactly the snapshots that the run's tasks wrote."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fruits.analysis.gates import Findings
from fruits.analysis.pca import orthonormality_error
from fruits.analysis.probe import probe_accuracy
from fruits.lake.pca_tables import PCAVersion, load_versions
from fruits.photos.entry import Action
from fruits.photos.keys import FIT_SPLIT
from fruits.run.documents import Probe
from fruits.spark.executors import matrix
from fruits.spark.job import Job

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_MOST_EXAMPLES = 20
_FEWEST_LABELS = 2  # a classifier needs two classes
_BUCKETS = 1_000_000


@dataclass(frozen=True)
class Measured:
    """A run's tables as its gates see them, for its backbone and PCA version (None while the backbone is built)."""

    job: Job
    version: PCAVersion | None

    @classmethod
    def of(cls, job: Job) -> "Measured":
        """The tables of a run whose pca job has succeeded."""
        document = job.documents.pca
        pca_id = document.done.pca_id if document and document.done else None
        versions = load_versions(job.lake, job.start["pca_models"], job.run.model_id)
        return cls(job, next((version for version in versions if version.pca_id == pca_id), None))

    @property
    def quarantine(self) -> "DataFrame":
        """Quarantined objects of the backbone."""
        return self.job.rows("quarantine").where(f"model_id = '{self.job.run.model_id}'")

    @property
    def embeddings(self) -> "DataFrame":
        """Embeddings under the PCA version."""
        pca_id = self.version.pca_id if self.version else None
        return self.job.rows("embeddings").where(f"pca_id = '{pca_id}'")

    def reasons(self) -> dict[str, int]:
        """Objects in quarantine by reason."""
        return {row["reason"]: row["count"] for row in self.quarantine.groupBy("reason").count().collect()}


def measure(measured: Measured) -> Findings:
    """Everything that the gates need to know."""
    job, version = measured.job, measured.version
    with job.phase("tables"):
        tables = {
            **accounted(measured),
            **new_vectors(measured),
            **splits_and_labels(measured),
            "missing_embeddings": missing_embeddings(measured) if version else None,
        }
    with job.phase("probe"):
        # A probe cannot be fitted on vectors that their own gates are about to refuse.
        usable = version is not None and not (tables["unusable_vectors"] or tables["wrong_widths"])
        accuracy = probe(measured) if usable else Probe()
    document = job.documents.pca
    return Findings(
        **tables,
        orthonormality_error=orthonormality_error(version.pca.components) if version else None,
        explained_variance=float(version.pca.explained_variance_ratio.sum()) if version else None,
        drift=document.done.drift if document and document.done else None,
        probe_raw=accuracy.raw,
        probe_embedded=accuracy.embedded,
    )


def accounted(measured: Measured) -> dict[str, Any]:
    """Is every planned object where its action puts it, and are there as many rows as there should be?"""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job = measured.job
    manifest, spark = job.manifest(), job.tables.spark
    planned = spark.createDataFrame(manifest.table.select(["key", "action"]))
    rows = job.features().select("key", "run_id").union(measured.quarantine.select("key", "run_id"))
    placed = (
        rows.join(planned.hint("broadcast"), "key")
        .groupBy("key")
        .agg(F.count("*").alias("rows"), F.count_if(F.col("run_id") == job.run.run_id).alias("written"))
    )
    right = F.when(F.col("action") == Action.DELETE.value, F.col("rows").isNull()).otherwise(
        (F.col("rows") == 1) & (F.col("written") == 1)
    )
    misplaced = planned.join(placed, "key", "left").where(~F.coalesce(right, F.lit(False)))
    quarantined = measured.quarantine.count()
    return {
        "planned": len(manifest),
        "unaccounted": [row.key for row in misplaced.limit(_MOST_EXAMPLES).collect()],
        "expected_rows": job.run.known_rows + manifest.count(Action.CREATE) - manifest.count(Action.DELETE),
        "rows": job.features().count() + quarantined,
        "quarantined": quarantined,
    }


def new_vectors(measured: Measured) -> dict[str, Any]:
    """Are the new vectors numbers, of the right width, and on the scale that the PCA knows?"""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job, version = measured.job, measured.version
    square = F.expr("aggregate(vector, 0D, (sum, x) -> sum + double(x) * x)")  # NaN and infinity come through
    usable = (square > 0) & (square < math.inf) & ~F.isnan(square)
    totals = (
        job.new_features()
        .agg(
            F.count("*").alias("rows"),
            F.count_if(~usable).alias("unusable"),
            F.count_if(F.size("vector") != job.run.backbone.feature_width).alias("wrong_width"),
            F.avg(square).alias("mean_square"),
        )
        .collect()[0]
    )
    scale_ratio = None
    if version is not None and totals.rows:
        expected = float(version.pca.mean @ version.pca.mean) + version.pca.total_variance
        scale_ratio = math.sqrt(totals.mean_square / expected)
    return {
        "new_rows": totals.rows,
        "unusable_vectors": totals.unusable,
        "wrong_widths": totals.wrong_width,
        "scale_ratio": scale_ratio,
    }


def splits_and_labels(measured: Measured) -> dict[str, Any]:
    """Do photos stand in two splits, and are there labels that nothing was fitted on?"""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job = measured.job
    features = job.features()
    new = job.new_features().select("key", "sha256", F.col("split").alias("new_split"))
    same_bytes = features.select("sha256", "split").join(new, "sha256").where("split != new_split")
    fitted = features.groupBy("label").agg(F.max(F.col("split") == FIT_SPLIT).alias("fitted"))
    held_out = features.where(F.col("split") != FIT_SPLIT)
    return {
        "held_out_rows": held_out.count(),
        "duplicates_across_splits": same_bytes.select("key").distinct().count(),
        "unfitted_labels": sorted(row.label for row in fitted.where(~F.col("fitted")).collect()),
    }


def missing_embeddings(measured: Measured) -> int:
    """Features without exactly one embedding, and embeddings without a feature."""
    job, embeddings = measured.job, measured.embeddings
    stale = job.new_features().join(embeddings.select("key", "etag"), ["key", "etag"], "left_anti").count()
    return abs(job.features().count() - embeddings.count()) + stale


def probe(measured: Measured) -> Probe:
    """Held-out accuracy of the linear probe; without held-out photos or labels there is none.

    For a PCA version that is published already its accuracy stands: a probe belongs to the version, not to the run.
    """
    published = measured.job.run.base.publication
    if measured.version and published.pca_id == measured.version.pca_id:
        return Probe(raw=published.probe_raw, embedded=published.probe_embedded)
    rows = probe_sample(measured).toArrow()
    fit = rows.filter(rows["fit"])
    held_out = rows.filter(~rows["fit"].to_numpy())
    if not held_out.num_rows or len(fit["label"].unique()) < _FEWEST_LABELS:
        return Probe()
    raw, embedded = (
        probe_accuracy(
            matrix(fit[column].combine_chunks()),
            fit["label"].to_pylist(),
            matrix(held_out[column].combine_chunks()),
            held_out["label"].to_pylist(),
        )
        for column in ("vector", "embedding")
    )
    return Probe(raw=raw, embedded=embedded)


def probe_sample(measured: Measured) -> "DataFrame":
    """At most about ``probe_rows`` photos with feature and embedding, the same photos whatever their order."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job = measured.job
    features = job.features().select("key", "label", (F.col("split") == FIT_SPLIT).alias("fit"), "vector")
    total, most = features.count(), job.settings.probe_rows
    if total > most:
        features = features.where(F.pmod(F.xxhash64("key"), F.lit(_BUCKETS)) < int(_BUCKETS * most / total))
    return features.join(measured.embeddings.select("key", "embedding"), "key").orderBy("key")
