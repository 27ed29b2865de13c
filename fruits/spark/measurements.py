"""What the gates are evaluated on: measured on exactly the snapshots that the run's tasks wrote."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.gates import Findings, probe_is_due
from fruits.analysis.pca import orthonormality_error
from fruits.analysis.probe import probe_accuracy
from fruits.lake.classifier_tables import load_quality
from fruits.lake.counters import COUNTED, Counters
from fruits.lake.hashes import MOST_HASHES, same_bytes
from fruits.lake.pca_tables import PCAVersion, load_versions
from fruits.lake.schemas import TableName, matrix
from fruits.photos.entry import Action
from fruits.photos.keys import FIT_SPLIT
from fruits.run.documents import Probe
from fruits.run.manifest import StoredManifest
from fruits.spark.changes import Changes, ChangesAtHand, changes_of, counted_after
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
    changes: Changes | None = None

    @classmethod
    def of(cls, job: Job, pca_id: str | None) -> "Measured":
        """The tables of a run under a PCA version."""
        versions = load_versions(job.lake, job.start["pca_models"], job.run.model_id)
        version = next((version for version in versions if version.pca_id == pca_id), None)
        return cls(job, version, changes_of(job, pca_id))

    @property
    def new_features(self) -> "DataFrame":
        """The features that the run wrote."""
        return self.changes.appended("features") if self.changes else self.job.new_features()

    def placed(self) -> "DataFrame":
        """Key and run id of the rows that the run's keys have, and maybe others."""
        tables = COUNTED
        if self.changes is None:
            model_id = self.job.run.model_id
            rows = [self.job.rows(name).where(f"model_id = '{model_id}'") for name in tables]
        else:
            rows = [self.changes.appended(name) for name in tables]
            if self.changes.replaced.num_rows:
                rows += [self.changes.left(name) for name in tables]
        return reduce(lambda one, other: one.union(other), (some.select("key", "run_id") for some in rows))

    @property
    def embeddings(self) -> "DataFrame":
        """Embeddings under the PCA version."""
        pca_id = self.version.pca_id if self.version else None
        return self.job.rows("embeddings").where(f"pca_id = '{pca_id}'")


def measure(measured: Measured) -> tuple[Findings, Counters]:
    """Everything that the gates need to know; and the counters of all backbones' rows."""
    job, version = measured.job, measured.version
    with job.phase("tables"):
        counters, uncounted = counted_after(job, measured.changes)
        ours = counters.of_backbone(job.run.model_id)
        features, quarantined = ours.total("features"), ours.total("quarantine")
        manifest = job.manifest()
        tables = {
            "planned": len(manifest),
            "unaccounted": misplaced(measured, manifest),
            "expected_rows": job.run.known_rows + manifest.count(Action.CREATE) - manifest.count(Action.DELETE),
            "rows": features + quarantined,
            "uncounted": uncounted,
            "quarantined": quarantined,
            **new_vectors(measured),
            "unfitted_labels": ours.unfitted_labels,
            "duplicates_across_splits": duplicates_across_splits(measured),
            "missing_embeddings": missing_embeddings(measured, features) if version else None,
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


def misplaced(measured: Measured, manifest: StoredManifest) -> list[str]:
    """Some keys of planned objects that are not where their action puts them."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job = measured.job
    if isinstance(measured.changes, ChangesAtHand):
        return misplaced_at_hand(measured.changes, manifest)
    planned = job.tables.spark.createDataFrame(manifest.columns("key", "action"))
    placed = (
        measured.placed()
        .join(planned, "key")
        .groupBy("key")
        .agg(F.count("*").alias("rows"), F.count_if(F.col("run_id") == job.run.run_id).alias("written"))
    )
    right = F.when(F.col("action") == Action.DELETE.value, F.col("rows").isNull()).otherwise(
        (F.col("rows") == 1) & (F.col("written") == 1)
    )
    wrong = planned.join(placed, "key", "left").where(~F.coalesce(right, F.lit(False)))
    return [row.key for row in wrong.limit(_MOST_EXAMPLES).collect()]


def misplaced_at_hand(changes: ChangesAtHand, manifest: StoredManifest) -> list[str]:
    """The same among the rows of a small run."""
    placed = [row for rows in (changes.came, changes.stayed) for name in COUNTED for row in rows[name].to_pylist()]
    rows = Counter(row["key"] for row in placed)
    written = Counter(row["key"] for row in placed if row["run_id"] == changes.job.run.run_id)
    wrong = (
        entry["key"]
        for entry in manifest.columns("key", "action").to_pylist()
        if (rows[entry["key"]], written[entry["key"]]) != ((0, 0) if entry["action"] == Action.DELETE else (1, 1))
    )
    return list(islice(wrong, _MOST_EXAMPLES))


@dataclass(frozen=True)
class VectorTotals:
    """Rows, those that are unusable, those of a wrong width, and the mean of the squared lengths."""

    rows: int
    unusable: int
    wrong_width: int
    mean_square: float | None


def vectors_at_hand(changes: ChangesAtHand, width: int) -> VectorTotals:
    """The totals of the vectors of a small run."""
    vectors = changes.job.read_appended("features", "vector")["vector"]
    squares = np.array([float(np.square(np.asarray(vector.values, float)).sum()) for vector in vectors])
    wrong = pc.sum(pc.not_equal(pc.list_value_length(vectors), width)).as_py() or 0
    usable = np.isfinite(squares) & (squares > 0)
    return VectorTotals(len(squares), int((~usable).sum()), wrong, float(squares.mean()) if len(squares) else None)


def vectors_of(measured: Measured) -> VectorTotals:
    """The totals of the new vectors."""
    if isinstance(measured.changes, ChangesAtHand):
        return vectors_at_hand(measured.changes, measured.job.run.backbone.feature_width)
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job = measured.job
    square = F.expr("aggregate(vector, 0D, (sum, x) -> sum + double(x) * x)")  # NaN and infinity come through
    usable = (square > 0) & (square < math.inf) & ~F.isnan(square)
    totals = measured.new_features.agg(
        F.count("*").alias("rows"),
        F.count_if(~usable).alias("unusable"),
        F.count_if(F.size("vector") != job.run.backbone.feature_width).alias("wrong_width"),
        F.avg(square).alias("mean_square"),
    )
    return VectorTotals(**totals.collect()[0].asDict())


def new_vectors(measured: Measured) -> dict[str, Any]:
    """Are the new vectors numbers, of the right width, and on the scale that the PCA knows?"""
    version, totals = measured.version, vectors_of(measured)
    scale_ratio = None
    if version is not None and totals.mean_square is not None:
        expected = float(version.pca.mean @ version.pca.mean) + version.pca.total_variance
        scale_ratio = math.sqrt(totals.mean_square / expected)
    return {
        "new_rows": totals.rows,
        "unusable_vectors": totals.unusable,
        "wrong_widths": totals.wrong_width,
        "scale_ratio": scale_ratio,
    }


def duplicates_across_splits(measured: Measured) -> int:
    """New photos whose bytes stand in another split too."""
    job, columns = measured.job, ("key", "sha256", "split")
    few = None
    if isinstance(measured.changes, ChangesAtHand):
        few = measured.changes.came["features"].select(columns)
    elif measured.changes:
        few = measured.new_features.select(*columns).limit(MOST_HASHES + 1).toArrow()
    others = same_bytes(job.lake, job.start, job.run.model_id, few["sha256"].to_pylist()) if few is not None else None
    if few is None or others is None:
        new = measured.new_features.select(*columns)
        renamed = new.withColumnRenamed("split", "new_split")
        pairs = job.features().select("sha256", "split").join(renamed, "sha256").where("split != new_split")
        return int(pairs.select("key").distinct().count())
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for row in others.to_pylist():
        splits[row["sha256"]].add(row["split"])
    return len({row["key"] for row in few.to_pylist() if splits[row["sha256"]] - {row["split"]}})


def missing_embeddings(measured: Measured, features: int) -> int:
    """Features without exactly one embedding, and embeddings without a feature."""
    if measured.changes is None:
        job, embeddings = measured.job, measured.embeddings
        stale = job.new_features().join(embeddings.select("key", "etag"), ["key", "etag"], "left_anti").count()
        return abs(features - embeddings.count()) + int(stale)
    return missing_in(measured.changes, str(measured.version.pca_id if measured.version else None))


def missing_in(changes: Changes, pca_id: str) -> int:
    """The same among a run's changes: its base had an embedding of each feature."""
    if isinstance(changes, ChangesAtHand):
        return missing_at_hand(changes, pca_id)
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    def of(name: TableName, rows: "DataFrame") -> "DataFrame":
        return rows.select("key", "etag", F.lit(name).alias("table"))

    embedded = changes.appended("embeddings").where(f"pca_id = '{pca_id}'")
    rows = of("features", changes.appended("features")).unionByName(of("embeddings", embedded))
    if changes.replaced.num_rows:
        rows = rows.unionByName(of("embeddings", changes.left("embeddings").where(f"pca_id = '{pca_id}'")))
    one_each = (F.count_if(F.col("table") == "features") == 1) & (F.count_if(F.col("table") == "embeddings") == 1)
    wrong = rows.groupBy("key", "etag").agg(one_each.alias("one_each")).where("NOT one_each").count()
    change = changes.signed("embeddings").agg(F.coalesce(F.sum("sign"), F.lit(0)).alias("rows")).collect()[0].rows
    return int(wrong) + changes.unexplained("embeddings", int(change))


def missing_at_hand(changes: ChangesAtHand, pca_id: str) -> int:
    """The same among the rows of a small run."""

    def embedded(rows: pa.Table) -> Iterator[tuple[str, str]]:
        return ((row["key"], row["etag"]) for row in rows.to_pylist() if row["pca_id"] == pca_id)

    features = Counter((row["key"], row["etag"]) for row in changes.came["features"].to_pylist())
    embeddings = Counter(embedded(changes.came["embeddings"]))
    embeddings.update(embedded(changes.stayed["embeddings"]))
    wrong = sum((features[photo], embeddings[photo]) != (1, 1) for photo in features | embeddings)
    return wrong + changes.unexplained("embeddings", changes.change("embeddings"))


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
    rows = probe_sample(measured, sampled).toArrow()
    fit = rows.filter(rows["fit"])
    scored = rows.filter(~rows["fit"].to_numpy())
    if not scored.num_rows or len(fit["label"].unique()) < _FEWEST_LABELS:
        return Probe(rows=scored.num_rows)
    raw, embedded = (
        probe_accuracy(
            matrix(fit[column].combine_chunks()),
            fit["label"].to_pylist(),
            matrix(scored[column].combine_chunks()),
            scored["label"].to_pylist(),
        )
        for column in ("vector", "embedding")
    )
    return Probe(raw=raw, embedded=embedded, rows=scored.num_rows)


def sampled_share(most: int, total: int) -> float:
    """Share of ``total`` photos of which about ``most`` are a sample, 0 to 1."""
    return min(1.0, most / max(total, 1))


def probe_sample(measured: Measured, sampled: float) -> "DataFrame":
    """Feature and embedding of about a share of the photos, the same photos whatever their order."""
    from pyspark.sql import functions as F  # noqa: N812 -- its usual name

    job = measured.job
    features = job.features().select("key", "label", (F.col("split") == FIT_SPLIT).alias("fit"), "vector")
    if sampled < 1:
        features = features.where(F.pmod(F.xxhash64("key"), F.lit(_BUCKETS)) < int(_BUCKETS * sampled))
    return features.join(measured.embeddings.select("key", "embedding"), "key").orderBy("key")
