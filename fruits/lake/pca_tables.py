"""Rows of `pca_models` and `pca_statistics` as values, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fruits.analysis.moments import Moments, packed_scatter, unpacked_scatter
from fruits.analysis.pca import PCA
from fruits.lake.branches import Writer, commit_rows
from fruits.lake.catalog import Lake
from fruits.lake.schemas import PCA_MODELS, PCA_STATISTICS, TableDefinition
from fruits.photos.keys import FIT_SPLIT

if TYPE_CHECKING:
    from pyiceberg.table import Transaction


@dataclass(frozen=True)
class PCAVersion:
    """A fitted PCA with its card: identity, backbone, requested components, reason and data of the fit.

    ``held_out_unexplained`` is the share of the held-out split's variance that the fit left unexplained; None without
    held-out photos. Unseen photos always fare worse than fitted ones, so drift is compared with this share.
    """

    pca_id: str
    model_id: str
    pca: PCA
    n_components: str
    held_out_unexplained: float | None
    features_snapshot_id: int
    reason: str
    run_id: str
    fitted_at: datetime

    @property
    def expected_unexplained(self) -> float:
        """Share of variance that photos like those of the fit are expected to leave unexplained."""
        return self.pca.unexplained_share if self.held_out_unexplained is None else self.held_out_unexplained


def load_versions(lake: Lake, snapshot_id: int, model_id: str) -> list[PCAVersion]:
    """The PCA versions of a backbone, the oldest first."""
    rows = lake.read("pca_models", snapshot_id, model_id=model_id).to_pylist()
    return sorted((_version(row) for row in rows), key=lambda version: version.fitted_at)


def save_version(lake: Lake, writer: Writer, version: PCAVersion) -> None:
    """Write a PCA version on an attempt's branch; a version of the same identity is replaced."""
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
        "held_out_unexplained": version.held_out_unexplained,
        "fit_split": FIT_SPLIT,
        "features_snapshot_id": version.features_snapshot_id,
        "reason": version.reason,
        "fitted_at": version.fitted_at.astimezone(UTC),
        "run_id": version.run_id,
    }
    _replace(lake, writer, PCA_MODELS, row, "pca_id")


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


def save_statistics(lake: Lake, writer: Writer, model_id: str, moments: Moments, run_id: str) -> None:
    """Replace the running moments of a backbone on an attempt's branch."""
    row = {
        "model_id": model_id,
        "n": moments.n,
        "mean": moments.mean,
        "scatter": packed_scatter(moments),
        "mean_error": moments.mean_error,
        "scatter_error": moments.scatter_error,
        "run_id": run_id,
    }
    _replace(lake, writer, PCA_STATISTICS, row, "model_id")


def _replace(lake: Lake, writer: Writer, definition: TableDefinition, row: dict[str, Any], identity: str) -> None:
    """Write one row on an attempt's branch in place of the row of the same identity, in one commit."""
    from pyiceberg.expressions import EqualTo

    same = {identity: row[identity]}
    known = lake.read(definition.name, lake.head(definition.name, writer.branch), (identity,), **same).num_rows
    rows = pa.Table.from_pylist([row], schema=definition.schema)

    def replace(transaction: "Transaction") -> None:
        if known:
            transaction.delete(EqualTo(identity, row[identity]), **writer.commit)
        transaction.append(rows, **writer.commit)

    commit_rows(lake, definition.name, replace, branch=writer.branch)


def _version(row: Mapping[str, Any]) -> PCAVersion:
    pca = PCA(
        n=row["n"],
        mean=np.array(row["mean"]),
        components=np.array(row["components"]),
        explained_variance=np.array(row["explained_variance"]),
        explained_variance_ratio=np.array(row["explained_variance_ratio"]),
        total_variance=row["total_variance"],
    )
    card = {field.name: row[field.name] for field in fields(PCAVersion) if field.name != "pca"}
    return PCAVersion(pca=pca, **card)


def _floats(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(column.combine_chunks().flatten(), dtype=np.float64)
