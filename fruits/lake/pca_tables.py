"""Rows of `pca_models`, `pca_statistics` and `label_statistics` as values, and back."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fruits.analysis.labels import LabelSum, LabelSums
from fruits.analysis.moments import Moments, packed_scatter, unpacked_scatter
from fruits.analysis.pca import PCA
from fruits.errors import FruitsError
from fruits.lake.branches import Writer, commit_rows
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication
from fruits.lake.schemas import LABEL_STATISTICS, PCA_MODELS, PCA_STATISTICS, TableDefinition
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
    split_rules: str | None = None

    @property
    def expected_unexplained(self) -> float:
        """Share of variance that photos like those of the fit are expected to leave unexplained."""
        return self.pca.unexplained_share if self.held_out_unexplained is None else self.held_out_unexplained


def load_versions(lake: Lake, snapshot_id: int, model_id: str) -> list[PCAVersion]:
    """The PCA versions of a backbone, the oldest first."""
    rows = lake.read("pca_models", snapshot_id, model_id=model_id).to_pylist()
    return sorted((_version(row) for row in rows), key=lambda version: version.fitted_at)


def load_pca(lake: Lake, publication: Publication) -> PCA:
    """The PCA that a publication names.

    Raises:
        FruitsError: when the publication's ``pca_models`` lacks it.
    """
    for version in load_versions(lake, publication.snapshots["pca_models"], str(publication.model_id)):
        if version.pca_id == publication.pca_id:
            return version.pca
    raise FruitsError(
        f"publication {publication.publication_id}: PCA version {publication.pca_id} is not in its pca_models; roll "
        "back to another publication, or run the DAG with refit `always`"
    )


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
        "split_rules": version.split_rules,
        "features_snapshot_id": version.features_snapshot_id,
        "reason": version.reason,
        "fitted_at": version.fitted_at.astimezone(UTC),
        "run_id": version.run_id,
    }
    replace_row(lake, writer, PCA_MODELS, row, "pca_id")


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
    replace_row(lake, writer, PCA_STATISTICS, row, "model_id")


def count_by_label(lake: Lake, snapshot_id: int | None, model_id: str) -> dict[str, int]:
    """Photos of each label in a backbone's fit split, as `label_statistics` has them; reads no vector."""
    rows = lake.read("label_statistics", snapshot_id, ("label", "n"), model_id=model_id)
    return dict(zip(rows["label"].to_pylist(), rows["n"].to_pylist(), strict=True))


def load_label_sums(lake: Lake, snapshot_id: int, model_id: str, labels: Collection[str] = ()) -> dict[str, LabelSum]:
    """The sums of a backbone's fit split by label: those of ``labels`` that there are, or all of them."""
    from pyiceberg.expressions import In

    scan = lake.scan("label_statistics", snapshot_id, ("label", "n", "total", "rest"), model_id=model_id)
    rows = (scan.filter(In("label", labels)) if labels else scan).to_arrow().to_pylist()
    return {row["label"]: LabelSum(row["n"], np.array(row["total"]), np.array(row["rest"])) for row in rows}


def save_label_sums(
    lake: Lake, writer: Writer, model_id: str, sums: LabelSums, run_id: str, *, replaced: Collection[str] = ()
) -> None:
    """Write the sums of some labels on an attempt's branch, in place of the rows of ``replaced`` labels.

    The rows of other labels stay as they are.
    """
    from pyiceberg.expressions import And, EqualTo, In

    rows = pa.Table.from_pylist(
        [
            {"model_id": model_id, "label": label, "n": one.n, "total": one.total, "rest": one.rest, "run_id": run_id}
            for label, one in sorted(sums.items())
        ],
        schema=LABEL_STATISTICS.schema,
    )

    def replace(transaction: "Transaction") -> None:
        if replaced:
            transaction.delete(And(EqualTo("model_id", model_id), In("label", tuple(replaced))), **writer.commit)
        if rows.num_rows:
            transaction.append(rows, **writer.commit)

    if replaced or rows.num_rows:
        commit_rows(lake, LABEL_STATISTICS.name, replace, branch=writer.branch)


def replace_row(lake: Lake, writer: Writer, definition: TableDefinition, row: Mapping[str, Any], identity: str) -> None:
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
    # A snapshot of an earlier release lacks columns that were added since.
    card = {field.name: row[field.name] for field in fields(PCAVersion) if field.name in row}
    return PCAVersion(pca=pca, **card)


def _floats(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(column.combine_chunks().flatten(), dtype=np.float64)
