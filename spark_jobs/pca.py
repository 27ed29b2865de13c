"""Bring PCA statistics, model and embeddings of a run up to date.

Merges the new rows into the backbone's running moments and takes the removed ones out, fits a new PCA version when the
policy says so (then projects every row), and otherwise projects the changed rows only. Reads the run's branch of
`features`; writes `pca_statistics`, `pca_models` and `embeddings` on the run's branch, and runs/<run>/pca.json.
"""

import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fruits.analysis.moments import (
    Moments,
    from_bytes,
    merge,
    merge_all,
    moments_of,
    should_recompute,
    subtract,
    to_bytes,
)
from fruits.analysis.pca import (
    PCA,
    FittedSummary,
    components_asked,
    fit,
    pca_identity,
    refit_reason,
    transform,
    unexplained_share,
)
from fruits.analysis.vectors import matrix
from fruits.errors import FruitsError
from fruits.lake.branches import start_branch
from fruits.lake.pca_tables import PCAVersion, load_statistics, load_versions, save_statistics, save_version
from fruits.lake.schemas import EMBEDDINGS, TableName
from fruits.photos.keys import FIT_SPLIT
from fruits.run.documents import read_documents
from fruits.spark.session import Job, log, map_batches, progress, run_job

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

WRITTEN: tuple[TableName, ...] = ("pca_statistics", "pca_models", "embeddings")
MOST_LITERALS = 200  # Iceberg does not prune by longer lists
SQUARE = "aggregate(embedding, 0D, (sum, x) -> sum + double(x) * x)"
ROWS_PER_FILE = 200_000  # about 128 MB of embeddings
MOMENTS_SCHEMA = pa.schema([("moments", pa.binary())])
SQUARES_SCHEMA = pa.schema([("explained", pa.float64()), ("unexplained", pa.float64())])


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns an exit code."""
    return run_job("pca", __doc__ or "", update_pca, argv)


def update_pca(job: Job) -> None:
    """Statistics, then the decision to refit, then the embeddings."""
    for name in WRITTEN:
        start_branch(job.lake, name, job.branch, job.base(name))
    replaced = job.replaced_keys()
    with job.document.stage("moments"):
        moments = update_statistics(job, replaced)
    if job.plan["building"]:
        with job.document.stage("remove"):
            job.remove_keys("embeddings", replaced)
        record_building(job, moments)
        return
    current = current_version(job)
    if current is None and moments.n == 0:
        raise FruitsError(nothing_to_fit(job))
    drift, measured = measure_drift(job, current) if current else (None, 0)
    reason = decide(job, current, moments.n, measured, drift)
    if reason is None and current is None:
        raise FruitsError("PCA: there is no version to project on")
    with job.document.stage("remove"):
        job.remove_keys("embeddings", replaced)
    if reason is None and current is not None:
        version = current
        with job.document.stage("project"):
            projected = project(job, version.pca_id, version.pca, unprojected_features(job, version.pca_id))
    else:
        version, projected = fit_version(job, moments, reason or "")
    pca = version.pca
    action = "project" if version is current else "fit"
    job.document.record(
        action=action,
        reason=reason,
        pca_id=version.pca_id,
        n=pca.n,
        k=pca.n_components,
        n_statistics=moments.n,
        explained_variance=float(pca.explained_variance_ratio.sum()),
        explained_variance_ratio=[float(ratio) for ratio in pca.explained_variance_ratio],
        drift=drift,
        projected=projected,
    )
    log.info(
        "%s %s: k=%d of n=%d, %d rows projected (%s)",
        action,
        version.pca_id,
        pca.n_components,
        pca.n,
        projected,
        reason,
    )


def record_building(job: Job, moments: Moments) -> None:
    """Nothing but the statistics, while a new backbone is being built: it is fitted once, when it is complete."""
    job.document.record(action="none", reason=None, pca_id=None, n_statistics=moments.n, drift=None, projected=0)
    log.info("backbone %s is not complete yet: statistics of %d photos, no PCA", job.model_id, moments.n)


def nothing_to_fit(job: Job) -> str:
    """The message of a first run without a photo to fit on."""
    found = read_documents(job.settings, job.slug).get("featurize", {})
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.get("quarantine", {}).items()) or "none"
    return (
        f"PCA: no photo in the fit split (`train`). Of {found.get('images', 0)} objects {found.get('features', 0)} "
        f"could be featurized; quarantined: {reasons}. Add photos as Training/<label>/<file> or <label>/<file>, or see "
        "that FRUITS_KEY_PATTERN reads the keys right."
    )


def live_features(job: Job) -> "DataFrame":
    """All rows of the backbone at the run's branch."""
    return job.read("features", job.head("features")).where(f"model_id = '{job.model_id}'")


def new_features(job: Job) -> "DataFrame":
    """The rows that this run wrote."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    return live_features(job).where(F.col("run_id") == job.run_id)


def unprojected_features(job: Job, pca_id: str) -> "DataFrame":
    """The rows without an embedding under a version: this run's, and those of runs that were building the backbone."""
    if job.plan["base"]["model_id"] == job.model_id:
        return new_features(job)
    embedded = job.read("embeddings", job.head("embeddings")).where(f"pca_id = '{pca_id}'").select("key", "etag")
    return live_features(job).join(embedded, ["key", "etag"], "left_anti")


def update_statistics(job: Job, replaced: pa.Table) -> Moments:
    """Merge what came, subtract what went; start again from the rows where that would lose digits."""
    width = job.feature_width
    moments = load_statistics(job.lake, job.base("pca_statistics"), job.model_id, width)
    if replaced.num_rows and moments.n:
        before = job.read("features", job.base("features")).where(f"model_id = '{job.model_id}'")
        pruned = before.where(key_filter(replaced["key"].to_pylist()))
        gone = pruned.join(job.spark.createDataFrame(replaced).hint("broadcast"), "key", "left_semi")
        moments = subtract(moments, moments_of_rows(gone, width))
    moments = merge(moments, moments_of_rows(new_features(job), width))
    recomputed = should_recompute(moments)
    if recomputed:
        log.info("moments: too many digits were cancelled; taking them from the rows again")
        moments = moments_of_rows(live_features(job), width)
    save_statistics(job.lake, job.branch, job.model_id, moments, job.run_id)
    job.document.record(recomputed=recomputed)
    return moments


def key_filter(keys: list[str]) -> "Column":
    """A filter that Iceberg prunes files by: the keys themselves while they are few, else their range."""
    from pyspark.sql import functions as F  # noqa: N812

    column = F.col("key")
    return column.isin(keys) if len(keys) <= MOST_LITERALS else column.between(min(keys), max(keys))


def moments_of_rows(features: "DataFrame", width: int) -> Moments:
    """Moments of the fit split's vectors: one partial result per core, merged on the driver."""
    fit_rows = features.where(f"split = '{FIT_SPLIT}'").select("key", "vector")

    def partial(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        moments = merge_all([Moments.empty(width), *(_moments_of_batch(batch) for batch in filter(len, batches))])
        yield pa.RecordBatch.from_pylist([{"moments": to_bytes(moments)}])

    cores = features.sparkSession.sparkContext.defaultParallelism
    parts = map_batches(fit_rows.coalesce(cores), partial, MOMENTS_SCHEMA).collect()
    return merge_all([Moments.empty(width), *(from_bytes(part.moments) for part in parts)])


def _moments_of_batch(batch: pa.RecordBatch) -> Moments:
    vectors = matrix(batch["vector"])
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        key = batch["key"][int(np.argmin(finite))].as_py()
        raise FruitsError(
            f"features: the vector of {key} has NaN or infinity; check the backbone's weights. Nothing is published."
        )
    return moments_of(vectors)


def current_version(job: Job) -> PCAVersion | None:
    """The PCA in use for the run's backbone: the published one, else its newest."""
    versions = load_versions(job.lake, job.base("pca_models"), job.model_id)
    published = [version for version in versions if version.pca_id == job.plan["base"]["pca_id"]]
    return (published or versions or [None])[-1]


def measure_drift(job: Job, current: PCAVersion) -> tuple[float | None, int]:
    """Share of variance that new photos leave unexplained beyond what is expected, and from how many rows.

    After runs that left photos over, and with them the decision to refit, it is measured on all rows since the fit.
    """
    pca = current.pca
    rows = new_features(job).where(f"split = '{FIT_SPLIT}'").select("vector")

    def squares(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in filter(len, batches):
            embedding, residual = transform(pca, matrix(batch["vector"]))
            yield pa.RecordBatch.from_pydict(
                {
                    "explained": np.square(embedding).sum(1, dtype=float),
                    "unexplained": np.square(residual.astype(float)),
                }
            )

    measured = map_batches(rows, squares, SQUARES_SCHEMA)
    if job.plan["base"]["counts"].get("remaining"):
        measured = measured.unionByName(squares_since_fit(job, current))
    totals = measured.selectExpr(
        "count(*) AS n", "sum(explained) AS explained", "sum(unexplained) AS unexplained"
    ).first()
    if not totals.n:
        return None, 0
    share = unexplained_share(np.sqrt([totals.explained]), np.sqrt([totals.unexplained]))
    return share - current.expected_unexplained, totals.n


def squares_since_fit(job: Job, current: PCAVersion) -> "DataFrame":
    """Squared norms of embedding and residual of the fit split's rows that were projected after the fit."""
    rows = job.read("embeddings", job.base("embeddings")).where(
        f"pca_id = '{current.pca_id}' AND split = '{FIT_SPLIT}'"
    )
    return rows.where(rows.run_id != current.run_id).selectExpr(
        f"{SQUARE} AS explained", "double(residual) * residual AS unexplained"
    )


def decide(job: Job, current: PCAVersion | None, n_now: int, n_new: int, drift: float | None) -> str | None:
    """Why to fit again, or None.

    A run that leaves objects over, as each of a backfill does, keeps the PCA that there is: the one that leaves none
    over refits, if that is due. So a backfill refits once at most.
    """
    settings, request = job.settings, job.request
    if current is not None and request.refit == "auto" and job.plan["remaining"]:
        return None
    return refit_reason(
        request.refit,
        FittedSummary(current.pca.n, current.n_components) if current else None,
        asked=components_asked(request.n_components, settings.max_components),
        n_now=n_now,
        n_new=n_new,
        drift=drift,
        max_drift=settings.refit_drift,
        min_drift_rows=settings.refit_drift_rows,
        growth=settings.refit_growth,
    )


def fit_version(job: Job, moments: Moments, reason: str) -> tuple[PCAVersion, int]:
    """Fit on the moments, project every row, and record the version; also how many rows were projected."""
    settings, request = job.settings, job.request
    with job.document.stage("fit"):
        pca = fit(moments, request.n_components, settings.max_components)
        pca_id = pca_identity(job.model_id, pca)
    known = {version.pca_id for version in load_versions(job.lake, job.base("pca_models"), job.model_id)}
    if pca_id in known:  # the same fit again: its rows and its card are replaced, not doubled
        job.spark.sql(f"DELETE FROM {job.branch_identifier('embeddings')} WHERE pca_id = '{pca_id}'")  # noqa: S608
    with job.document.stage("project"):
        projected = project(job, pca_id, pca, live_features(job))
    version = PCAVersion(
        pca_id=pca_id,
        model_id=job.model_id,
        pca=pca,
        n_components=components_asked(request.n_components, settings.max_components),
        held_out_unexplained=held_out_unexplained(job, pca_id),
        features_snapshot_id=job.head("features"),
        reason=reason,
        run_id=job.run_id,
        fitted_at=datetime.now(UTC),
    )
    save_version(job.lake, job.branch, version)
    return version, projected


def held_out_unexplained(job: Job, pca_id: str) -> float | None:
    """Share of the held-out rows' variance that a version leaves unexplained; None without such rows."""
    rows = job.read("embeddings", job.head("embeddings")).where(f"pca_id = '{pca_id}' AND split != '{FIT_SPLIT}'")
    totals = rows.selectExpr(f"sum({SQUARE}) AS explained", "sum(double(residual) * residual) AS unexplained").first()
    if totals.explained is None:
        return None
    return unexplained_share(np.sqrt([totals.explained]), np.sqrt([totals.unexplained]))


def project(job: Job, pca_id: str, pca: PCA, features: "DataFrame") -> int:
    """Append the embeddings of ``features`` under a PCA version; returns how many."""
    constants = {"model_id": job.model_id, "pca_id": pca_id, "run_id": job.run_id}

    def project_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in filter(len, batches):
            yield _embeddings(batch, pca, constants)

    count = int(features.count())
    if count:
        rows = features.select("key", "etag", "label", "split", "vector")
        with progress(job.spark, "project", count):
            embeddings = map_batches(rows, project_batches, EMBEDDINGS.schema)
            ordered = embeddings.repartitionByRange(math.ceil(count / ROWS_PER_FILE), "key").sortWithinPartitions("key")
            ordered.writeTo(job.branch_identifier("embeddings")).append()
    return count


def _embeddings(batch: pa.RecordBatch, pca: PCA, constants: dict[str, str]) -> pa.RecordBatch:
    embedding, residual = transform(pca, matrix(batch["vector"]))
    values = {name: batch[name] for name in ("key", "etag", "label", "split")}
    values |= {name: pa.repeat(value, batch.num_rows) for name, value in constants.items()}
    offsets = pa.array(range(0, embedding.size + 1, pca.n_components), pa.int32())
    values |= {"embedding": pa.ListArray.from_arrays(offsets, embedding.ravel()), "residual": residual}
    schema = EMBEDDINGS.schema
    return pa.RecordBatch.from_arrays(
        [pa.array(values[name]).cast(schema.field(name).type) for name in schema.names], schema=schema
    )


if __name__ == "__main__":
    sys.exit(main())
