"""What the gates are evaluated on: measured on exactly the snapshots that the run's tasks wrote."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fruits.analysis.gates import Findings, probe_is_due
from fruits.analysis.pca import orthonormality_error
from fruits.analysis.probe import probe_accuracy
from fruits.lake.classifier_tables import load_quality
from fruits.lake.counters import COUNTED, Counters
from fruits.lake.hashes import MOST_HASHES, same_bytes
from fruits.lake.pca_tables import PCAVersion, load_versions
from fruits.lake.schemas import EMBEDDINGS, FEATURES, TableDefinition, matrix
from fruits.photos.entry import Action
from fruits.photos.keys import FIT_SPLIT
from fruits.run.documents import Probe
from fruits.run.manifest import StoredManifest
from fruits.spark.changes import Changes, changes_of
from fruits.spark.executors import TOTALS_SCHEMA, share_of_keys, vector_totals
from fruits.spark.job import Job
from fruits.spark.queries import Relation, answer
from fruits.spark.stored import rows_at

_FEWEST_LABELS = 2  # a classifier needs two classes

_MISPLACED = """
    SELECT planned.key
    FROM planned LEFT JOIN (
        SELECT key, count(*) AS n, count_if(run_id = ?) AS written
        FROM (
            SELECT key, run_id FROM features WHERE sign = 1 AND model_id = ?
            UNION ALL SELECT key, run_id FROM quarantine WHERE sign = 1 AND model_id = ?
        ) AS placed
        WHERE key IN (SELECT key FROM planned)
        GROUP BY key
    ) AS placed ON placed.key = planned.key
    WHERE CASE WHEN action = ? THEN n IS NOT NULL ELSE coalesce(n, 0) <> 1 OR written <> 1 END
    ORDER BY planned.key LIMIT 20
"""
_DUPLICATES = """
    SELECT count(DISTINCT came.key) AS n
    FROM came JOIN (SELECT DISTINCT sha256, split FROM others) AS others
        ON came.sha256 = others.sha256 AND came.split <> others.split
    WHERE came.model_id = ?
"""
_MISSING = """
    SELECT
        (
            SELECT count(*) FROM (
                SELECT key, etag
                FROM (
                    SELECT key, etag, 1 AS feature FROM features WHERE sign = 1 AND model_id = ?
                    UNION ALL SELECT key, etag, 0 AS feature FROM embeddings WHERE sign = 1 AND pca_id = ?
                ) AS photos
                GROUP BY key, etag HAVING count(*) <> 2 OR sum(feature) <> 1
            ) AS wrong
        ) AS missing,
        (SELECT CAST(coalesce(sum(sign), 0) AS BIGINT) FROM embeddings) AS change
"""


@dataclass(frozen=True)
class Measured:
    """A run's tables as its gates see them, for its backbone and PCA version (None while the backbone is built)."""

    job: Job
    version: PCAVersion | None
    changes: Changes

    @classmethod
    def of(cls, job: Job, pca_id: str | None) -> "Measured":
        """The tables of a run under a PCA version."""
        versions = load_versions(job.lake, job.start["pca_models"], job.run.model_id)
        version = next((version for version in versions if version.pca_id == pca_id), None)
        return cls(job, version, changes_of(job, pca_id))


def measure(measured: Measured) -> tuple[Findings, Counters]:
    """Everything that the gates need to know; and the counters of all backbones' rows."""
    job, version = measured.job, measured.version
    with job.phase("tables"):
        counters, uncounted = measured.changes.counted_after()
        ours = counters.of_backbone(job.run.model_id)
        features, quarantined = ours.total("features"), ours.total("quarantine")
        manifest = job.manifest()
        tables = {
            "planned": len(manifest),
            "unaccounted": misplaced(measured.changes, manifest),
            "expected_rows": job.run.known_rows + manifest.count(Action.CREATE) - manifest.count(Action.DELETE),
            "rows": features + quarantined,
            "uncounted": uncounted,
            "quarantined": quarantined,
            **new_vectors(measured),
            "unfitted_labels": ours.unfitted_labels,
            "duplicates_across_splits": duplicates_across_splits(measured.changes),
            "missing_embeddings": missing_embeddings(measured.changes) if version else None,
        }
    with job.phase("probe"):
        # A probe cannot be fitted on vectors that their own gates are about to refuse.
        usable = version is not None and not (tables["unusable_vectors"] or tables["wrong_widths"])
        accuracy = probe(measured, features, ours.held_out) if usable else Probe()
    document = job.documents.pca
    classified = document.done.classified if document and document.done else None
    published = job.run.base.publication
    before = load_quality(job.lake, published) if published.model_id == job.run.model_id else None
    findings = Findings(
        **tables,
        orthonormality_error=orthonormality_error(version.pca.components) if version else None,
        explained_variance=float(version.pca.explained_variance_ratio.sum()) if version else None,
        drift=document.done.drift if document and document.done else None,
        probe_raw=accuracy.raw,
        probe_embedded=accuracy.embedded,
        probe_rows=accuracy.rows,
        classifier=classified.quality if classified else None,
        classifier_before=before,
        set_error=classified.error if classified else None,
    )
    return findings, counters


def misplaced(changes: Changes, manifest: StoredManifest) -> list[str]:
    """Some keys of planned objects that are not where their action puts them."""
    job, rows = changes.job, {name: changes.rows[name] for name in COUNTED}
    planned = manifest.columns("key", "action")
    ours = (job.run.model_id, job.run.model_id)
    found = answer(job.tables, _MISPLACED, job.run.run_id, *ours, Action.DELETE.value, planned=planned, **rows)
    return [row["key"] for row in found]


def new_vectors(measured: Measured) -> dict[str, Any]:
    """Are the new vectors numbers, of the right width, and on the scale that the PCA knows?"""
    job, version = measured.job, measured.version
    base, here = job.run.base.snapshots["features"], measured.changes.new_at_hand
    rows = rows_at(job.tables, "features", job.start["features"], since=base, here=here, model_id=job.run.model_id)
    totals = rows.apply("vectors", vector_totals(job.run.backbone.feature_width), ("vector",), TOTALS_SCHEMA)
    found = pa.Table.from_batches(totals, TOTALS_SCHEMA)
    n, unusable, wrong_width, square = (pc.sum(found[name]).as_py() for name in TOTALS_SCHEMA.names)
    scale_ratio = None
    if version is not None and n:
        expected = float(version.pca.mean @ version.pca.mean) + version.pca.total_variance
        scale_ratio = math.sqrt(square / n / expected)
    return {
        "new_rows": n or 0,
        "unusable_vectors": unusable or 0,
        "wrong_widths": wrong_width or 0,
        "scale_ratio": scale_ratio,
    }


def duplicates_across_splits(changes: Changes) -> int:
    """Photos that the run wrote, and whose bytes stand in another split too."""
    job, came = changes.job, changes.rows["features"]
    if isinstance(came, pa.Table):
        came = came.filter(pc.equal(came["run_id"], job.run.run_id))
    else:
        came = came.where(came.run_id == job.run.run_id).select("key", "sha256", "split", "model_id")
        few = came.limit(MOST_HASHES + 1).toArrow()
        came = few if len(few) <= MOST_HASHES else came
    others: Relation | None = None
    if isinstance(came, pa.Table):
        others = same_bytes(job.lake, job.start, job.run.model_id, came["sha256"].to_pylist())
    if others is None:
        others = job.features().select("sha256", "split")
    return int(answer(job.tables, _DUPLICATES, job.run.model_id, came=came, others=others)[0]["n"])


def missing_embeddings(changes: Changes) -> int:
    """Features without exactly one embedding under the PCA version, and embeddings without a feature.

    Among a run's changes: its base had an embedding of each feature.
    """
    job, rows = changes.job, changes.rows
    values = job.run.model_id, str(changes.pca_id)
    tables = {name: rows[name] for name in ("features", "embeddings")}
    (found,) = answer(job.tables, _MISSING, *values, **tables)
    return int(found["missing"]) + changes.unexplained("embeddings", int(found["change"]))


def probe(measured: Measured, features: int, held_out: int) -> Probe:
    """Held-out accuracy of the linear probe; without held-out photos or labels there is none.

    For a PCA version that is published already its accuracy stands, because a probe belongs to the version and not to
    the run; but it is measured again after a fit, and where it was scored on too few photos.
    """
    published, projected = measured.job.run.base.publication, measured.job.documents.projected
    pca_id = measured.version.pca_id if measured.version else None
    fitted = projected is not None and (projected.action, projected.pca_id) == ("fit", pca_id)
    sampled = sampled_share(measured.job.settings.probe_rows, features)
    if pca_id == published.pca_id and not fitted and not probe_is_due(published.probe_rows, held_out, sampled):
        rows = published.probe_rows or 0
        return Probe(raw=published.probe_raw, embedded=published.probe_embedded, rows=rows)
    sample = probe_sample(measured, sampled)
    fit, labels = sample.fitted, sample.labels
    scored = int((~fit).sum())
    if not scored or len(set(labels[fit])) < _FEWEST_LABELS:
        return Probe(rows=scored)
    raw, embedded = (
        probe_accuracy(rows[fit], labels[fit], rows[~fit], labels[~fit]) for rows in (sample.vectors, sample.embeddings)
    )
    return Probe(raw=raw, embedded=embedded, rows=scored)


def sampled_share(most: int, total: int) -> float:
    """Share of ``total`` photos of which about ``most`` are a sample, 0 to 1."""
    return min(1.0, most / max(total, 1))


@dataclass(frozen=True, eq=False)
class ProbeSample:
    """Some photos in the order of keys: is each fitted, its label, and the rows of features and of embeddings."""

    fitted: NDArray[np.bool_]
    labels: NDArray[np.str_]
    vectors: NDArray[np.float32]
    embeddings: NDArray[np.float32]


def probe_sample(measured: Measured, sampled: float) -> ProbeSample:
    """About a share of the photos, the same photos whatever made the tables."""
    job, function, here = measured.job, share_of_keys(sampled), measured.changes.is_small_lake

    def rows(definition: TableDefinition, columns: Sequence[str], **partition: str) -> pa.Table:
        schema = pa.schema([definition.schema.field(name) for name in columns])
        stored = rows_at(job.tables, definition.name, job.start[definition.name], since=None, here=here, **partition)
        return pa.Table.from_batches(stored.apply("probe", function, columns, schema), schema)

    features = rows(FEATURES, ("key", "label", "split", "vector"), model_id=job.run.model_id)
    embeddings = rows(EMBEDDINGS, ("key", "embedding"), pca_id=str(measured.changes.pca_id))
    places = pc.index_in(features["key"], embeddings["key"].combine_chunks())
    order = pc.sort_indices(features["key"]).to_numpy()
    order = order[pc.is_valid(places).to_numpy()[order]]
    return ProbeSample(
        fitted=pc.equal(features["split"], FIT_SPLIT).to_numpy()[order],
        labels=np.array(features["label"].to_pylist(), str)[order],
        vectors=matrix(features["vector"].combine_chunks())[order],
        embeddings=matrix(embeddings["embedding"].combine_chunks())[places.to_numpy()[order].astype(int)],
    )
