"""Check what a run wrote, before anybody reads it.

Measures the run's branches of all tables, scores the linear probe when there is a new PCA version, and evaluates the
gates. Writes runs/<run>/validate.json whatever the verdict; exit code 3 when a required gate fails.
"""

import math
import sys
from typing import TYPE_CHECKING, Any

from fruits.analysis.gates import Findings, evaluate, failed
from fruits.analysis.pca import orthonormality_error
from fruits.analysis.probe import probe_accuracy
from fruits.analysis.vectors import matrix
from fruits.errors import GateError
from fruits.lake.pca_tables import PCAVersion, load_versions
from fruits.photos.entry import Action
from fruits.photos.keys import FIT_SPLIT
from fruits.run.documents import read_documents
from fruits.run.manifest import read_manifest
from fruits.spark.session import Job, log, run_job

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

MOST_EXAMPLES = 20


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("validate", __doc__ or "", validate, argv)


def validate(job: Job) -> None:
    """Measure, evaluate, record; raise when a required gate failed.

    A backbone that is being built has no PCA version yet, and the gates on that do not apply.
    """
    pca_document = read_documents(job.settings, job.slug)["pca"]
    versions = load_versions(job.lake, job.head("pca_models"), job.model_id)
    version = next((version for version in versions if version.pca_id == pca_document["pca_id"]), None)
    tables = Tables(job, pca_document["pca_id"])
    with job.document.stage("tables"):
        measured = {
            **accounted(tables),
            **new_vectors(tables, version),
            **splits_and_labels(tables),
            "missing_embeddings": missing_embeddings(tables) if version else None,
        }
    with job.document.stage("probe"):
        # A probe cannot be fitted on vectors that their own gates are about to refuse.
        usable = version is not None and not (measured["unusable_vectors"] or measured["wrong_widths"])
        raw, embedded = probe(tables) if usable else (None, None)
    findings = Findings(
        **measured,
        orthonormality_error=orthonormality_error(version.pca.components) if version else None,
        explained_variance=float(version.pca.explained_variance_ratio.sum()) if version else None,
        drift=pca_document["drift"],
        probe_raw=raw,
        probe_embedded=embedded,
    )
    gates = evaluate(findings, job.settings)
    job.document.record(
        features=findings.rows - findings.quarantined,
        quarantine=tables.reasons(),
        probe={"raw": raw, "embedded": embedded},
        gates=[gate.to_document() for gate in gates],
    )
    for gate in gates:
        log.info("gate %-24s %-8s %s: %s", gate.name, gate.severity, "passed" if gate.passed else "FAILED", gate.detail)
    if broken := failed(gates):
        found = "; ".join(f"{gate.name}: {gate.detail}" for gate in broken)
        raise GateError(
            f"required gates failed, nothing is published and readers stay where they were: {found}. Look at the run's "
            "report, mend what caused it, and clear the run from `wait_for_lease`"
        )


class Tables:
    """The run's view of the tables, for one backbone and PCA version (None while it has none)."""

    def __init__(self, job: Job, pca_id: str | None) -> None:
        self.job = job
        self.pca_id = pca_id
        of_model = f"model_id = '{job.model_id}'"
        self.features = job.read("features", job.head("features")).where(of_model)
        self.quarantine = job.read("quarantine", job.head("quarantine")).where(of_model)
        self.embeddings = job.read("embeddings", job.head("embeddings")).where(f"pca_id = '{pca_id}'")

    @property
    def new_features(self) -> "DataFrame":
        """Feature rows that this run wrote."""
        return self.features.where(self.features.run_id == self.job.run_id)

    def reasons(self) -> dict[str, int]:
        """Objects in quarantine by reason."""
        return {row["reason"]: row["count"] for row in self.quarantine.groupBy("reason").count().collect()}


def accounted(tables: Tables) -> dict[str, Any]:
    """Is every planned object where its action puts it, and are there as many rows as there should be?"""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job = tables.job
    manifest = read_manifest(job.store).select(["key", "action"])
    rows = tables.features.select("key", "run_id").union(tables.quarantine.select("key", "run_id"))
    planned = job.spark.createDataFrame(manifest).hint("broadcast")
    found = (
        rows.join(planned, "key")
        .groupBy("key")
        .agg(F.count("*").alias("rows"), F.count_if(F.col("run_id") == job.run_id).alias("written"))
    )
    placed = F.when(F.col("action") == Action.DELETE.value, F.col("rows").isNull()).otherwise(
        (F.col("rows") == 1) & (F.col("written") == 1)
    )
    misplaced = job.spark.createDataFrame(manifest).join(found, "key", "left").where(~F.coalesce(placed, F.lit(False)))
    actions = manifest["action"].to_pylist()
    created, deleted = (actions.count(action.value) for action in (Action.CREATE, Action.DELETE))
    quarantined = tables.quarantine.count()
    return {
        "planned": manifest.num_rows,
        "unaccounted": [row.key for row in misplaced.limit(MOST_EXAMPLES).collect()],
        "expected_rows": job.plan["known_rows"] + created - deleted,
        "rows": tables.features.count() + quarantined,
        "quarantined": quarantined,
    }


def new_vectors(tables: Tables, version: PCAVersion | None) -> dict[str, Any]:
    """Are the new vectors numbers, of the right width, and on the scale that the PCA knows?"""
    from pyspark.sql import functions as F  # noqa: N812

    square = F.expr("aggregate(vector, 0D, (sum, x) -> sum + double(x) * x)")  # NaN and infinity come through
    usable = (square > 0) & (square < math.inf) & ~F.isnan(square)
    totals = tables.new_features.agg(
        F.count("*").alias("rows"),
        F.count_if(~usable).alias("unusable"),
        F.count_if(F.size("vector") != tables.job.feature_width).alias("wrong_width"),
        F.avg(square).alias("mean_square"),
    ).first()
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


def splits_and_labels(tables: Tables) -> dict[str, Any]:
    """Do photos stand in two splits, and are there labels that nothing was fitted on?"""
    from pyspark.sql import functions as F  # noqa: N812

    new = tables.new_features.select("key", "sha256", F.col("split").alias("new_split"))
    same_bytes = tables.features.select("sha256", "split").join(new, "sha256").where("split != new_split")
    fitted = tables.features.groupBy("label").agg(F.max(F.col("split") == FIT_SPLIT).alias("fitted"))
    held_out = tables.features.where(F.col("split") != FIT_SPLIT)
    return {
        "held_out_rows": held_out.count(),
        "duplicates_across_splits": same_bytes.select("key").distinct().count(),
        "unfitted_labels": sorted(row.label for row in fitted.where(~F.col("fitted")).collect()),
    }


def missing_embeddings(tables: Tables) -> int:
    """Features without exactly one embedding, and embeddings without a feature."""
    stale = tables.new_features.join(tables.embeddings.select("key", "etag"), ["key", "etag"], "left_anti").count()
    return abs(tables.features.count() - tables.embeddings.count()) + stale


def probe(tables: Tables) -> tuple[float | None, float | None]:
    """Held-out accuracy of the linear probe on features and on embeddings; None without held-out photos or labels.

    What the current publication found for the same PCA version stands: a probe belongs to the version, not to the run.
    """
    job = tables.job
    if job.plan["base"]["pca_id"] == tables.pca_id:
        published = job.plan["base"]["probe"]
        return published["raw"], published["embedded"]
    rows = probe_sample(tables).toArrow()
    fit = rows.filter(rows["fit"])
    held_out = rows.filter(~rows["fit"].to_numpy())
    if not held_out.num_rows or len(fit["label"].unique()) < 2:  # noqa: PLR2004 -- a classifier needs two classes
        return None, None
    raw, embedded = (
        probe_accuracy(
            matrix(fit[column].combine_chunks()),
            fit["label"].to_pylist(),
            matrix(held_out[column].combine_chunks()),
            held_out["label"].to_pylist(),
        )
        for column in ("vector", "embedding")
    )
    return raw, embedded


def probe_sample(tables: Tables) -> "DataFrame":
    """At most about ``probe_rows`` photos with feature and embedding, the same ones whatever their order."""
    from pyspark.sql import functions as F  # noqa: N812

    features = tables.features.select("key", "label", (F.col("split") == FIT_SPLIT).alias("fit"), "vector")
    total, most = features.count(), tables.job.settings.probe_rows
    if total > most:
        buckets = 1_000_000
        features = features.where(F.pmod(F.xxhash64("key"), F.lit(buckets)) < int(buckets * most / total))
    return features.join(tables.embeddings.select("key", "embedding"), "key").orderBy("key")


if __name__ == "__main__":
    sys.exit(main())
