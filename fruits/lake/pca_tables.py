"""Rows of `pca_models` and `pca_statistics` as values, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from fruits.keys import FIT_SPLIT
from fruits.lake.catalog import Lake
from fruits.lake.schemas import PCA_MODELS, PCA_STATISTICS
from fruits.moments import Moments, packed_scatter, unpacked_scatter
from fruits.pca import PCA


@dataclass(frozen=True)
class PCAVersion:
    """A fitted PCA with its card: identity, backbone, what was asked, why and on what it was fitted."""

    pca_id: str
    model_id: str
    pca: PCA
    n_components: str
    features_snapshot_id: int
    reason: str
    run_id: str
    fitted_at: datetime


def load_versions(lake: Lake, snapshot_id: int, model_id: str) -> list[PCAVersion]:
    """The PCA versions of a backbone, the oldest first."""
    rows = lake.read("pca_models", snapshot_id, model_id=model_id).to_pylist()
    return sorted((_version(row) for row in rows), key=lambda version: version.fitted_at)


def append_version(lake: Lake, branch: str, version: PCAVersion) -> None:
    """Add a PCA version on a branch."""
    pca = version.pca
    row = {
        "pca_id": version.pca_id,
        "model_id": version.model_id,
        "n": pca.n,
        "k": pca.n_components,
        "n_components": version.n_components,
        "mean": pca.mean,
        "components": list(pca.components),
        "explained_variance": pca.explained_variance,
        "explained_variance_ratio": pca.explained_variance_ratio,
        "total_variance": pca.total_variance,
        "fit_split": FIT_SPLIT,
        "features_snapshot_id": version.features_snapshot_id,
        "reason": version.reason,
        "fitted_at": version.fitted_at.astimezone(UTC),
        "run_id": version.run_id,
    }
    lake.table("pca_models").append(pa.Table.from_pylist([row], schema=PCA_MODELS.schema), branch=branch)


def load_statistics(lake: Lake, snapshot_id: int, model_id: str, width: int) -> Moments:
    """The running moments of a backbone's fit split; empty ones of ``width`` features when there are none yet."""
    table = lake.read("pca_statistics", snapshot_id, model_id=model_id)
    if not table.num_rows:
        return Moments.empty(width)
    return Moments(
        n=table["n"][0].as_py(),
        mean=_floats(table["mean"]),
        scatter=unpacked_scatter(_floats(table["scatter"])),
        mean_error=table["mean_error"][0].as_py(),
        scatter_error=table["scatter_error"][0].as_py(),
    )


def save_statistics(lake: Lake, branch: str, model_id: str, moments: Moments, run_id: str) -> None:
    """Replace the running moments of a backbone on a branch."""
    from pyiceberg.expressions import EqualTo

    row = {
        "model_id": model_id,
        "n": moments.n,
        "mean": moments.mean,
        "scatter": packed_scatter(moments),
        "mean_error": moments.mean_error,
        "scatter_error": moments.scatter_error,
        "run_id": run_id,
    }
    rows = pa.Table.from_pylist([row], schema=PCA_STATISTICS.schema)
    table = lake.table("pca_statistics")
    with table.transaction() as transaction:
        if lake.read("pca_statistics", _branch_snapshot(lake, branch), ("model_id",), model_id=model_id).num_rows:
            transaction.delete(EqualTo("model_id", model_id), branch=branch)
        transaction.append(rows, branch=branch)


def _branch_snapshot(lake: Lake, branch: str) -> int | None:
    return lake.head("pca_statistics", branch)


def _version(row: Mapping[str, Any]) -> PCAVersion:
    pca = PCA(
        n=row["n"],
        mean=np.array(row["mean"]),
        components=np.array(row["components"]),
        explained_variance=np.array(row["explained_variance"]),
        explained_variance_ratio=np.array(row["explained_variance_ratio"]),
        total_variance=row["total_variance"],
    )
    names = ("pca_id", "model_id", "n_components", "features_snapshot_id", "reason", "run_id", "fitted_at")
    return PCAVersion(pca=pca, **{name: row[name] for name in names})


def _floats(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    return column.combine_chunks().flatten().to_numpy()
