"""Principal component analysis from moments: fit, projection, drift, and the decision to fit again.

Vocabulary, shapes and signs are those of ``sklearn.decomposition.PCA``. Unlike scikit-learn's, this PCA is fitted on
moments, not on rows.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fruits.analysis.moments import Moments
from fruits.analysis.shrinkage import oracle_shrinkage
from fruits.errors import FruitsError

RefitPolicy = Literal["auto", "always", "never"]

_BLOCK_ROWS = 256


@dataclass(frozen=True, eq=False)
class PCA:
    """A fitted PCA with ``k`` components of ``d`` features.

    Attributes:
        n: Number of fitted rows.
        mean: Shape ``(d,)``, float64: subtracted from a row before the projection.
        components: Shape ``(k, d)``, float64, orthonormal rows by falling explained variance.
        explained_variance: Shape ``(k,)``, float64, in the features' units squared (divisor ``n - 1``).
        explained_variance_ratio: Shape ``(k,)``, float64: the same as shares of ``total_variance``.
        total_variance: Variance of the rows, summed over the features.
    """

    n: int
    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    explained_variance: NDArray[np.float64]
    explained_variance_ratio: NDArray[np.float64]
    total_variance: float

    @property
    def n_components(self) -> int:
        """Number of components, ``k``."""
        return len(self.components)

    @property
    def unexplained_share(self) -> float:
        """Share of the fit's variance that the components leave unexplained, 0 to 1."""
        return max(0.0, 1.0 - float(self.explained_variance_ratio.sum()))


@dataclass(frozen=True)
class FittedSummary:
    """The facts about the PCA in use that decide on a refit.

    Attributes:
        n: Number of fitted rows.
        components_asked: ``components_asked`` of the fit.
        split_rules: The rules that chose the fitted rows; None when they are not known.
    """

    n: int
    components_asked: str
    split_rules: str | None = None


def fit(moments: Moments, n_components: float, max_components: int | None = None) -> PCA:
    """Fit a PCA on the moments of the fit split by eigendecomposition of the covariance (Jolliffe, 2002, chapter 3).

    Args:
        moments: Count, mean and scatter of the rows.
        n_components: A count (``int``), or the share of variance to explain (``float`` between 0 and 1): then the
            fewest components that reach the share.
        max_components: Largest number of components for a share of variance.

    Raises:
        FruitsError: when there are fewer than 2 rows, the rows do not vary, or the count is larger than they allow.
    """
    if problem := fit_problem(moments, n_components):
        raise FruitsError(problem)
    from scipy.linalg import eigh

    n, d = moments.n, moments.d
    total_variance, rank = float(np.trace(moments.scatter)) / (n - 1), min(n - 1, d)
    most = n_components if isinstance(n_components, int) else min(rank, max_components or rank)
    # The largest eigenvalues alone take half of the time, and the trace is the sum of all. LAPACK works on columns.
    covariance = np.divide(moments.scatter, n - 1, order="C").T
    ascending, vectors = eigh(covariance, subset_by_index=[d - most, d - 1], overwrite_a=True, check_finite=False)
    variance = np.maximum(ascending[::-1], 0.0)  # only rounding makes an eigenvalue of a covariance negative
    ratio = variance / total_variance
    k = most
    if not isinstance(n_components, int):
        k = min(int(np.searchsorted(np.cumsum(ratio), n_components)) + 1, most)
    return PCA(
        n=n,
        mean=moments.mean,
        components=_with_fixed_signs(vectors.T[::-1][:k]),
        explained_variance=variance[:k],
        explained_variance_ratio=ratio[:k],
        total_variance=total_variance,
    )


def fit_problem(moments: Moments, n_components: float) -> str | None:
    """Why ``fit`` refuses these moments; None when it does not."""
    n, d = moments.n, moments.d
    if n < 2:  # noqa: PLR2004
        return (
            f"PCA: the fit split has {_photos(n)}, and at least 2 are needed. Add photos, or check that the "
            "keys' split is read correctly (FRUITS_KEY_PATTERN, FRUITS_HOLDOUT_SHARE)."
        )
    if float(np.trace(moments.scatter)) <= moments.scatter_error:
        return (
            f"PCA: the {_photos(n)} of the fit split all have the same features, so there is no variance to explain. "
            "Add photos that differ, or check the backbone's weights."
        )
    rank = min(n - 1, d)
    if isinstance(n_components, int) and not 1 <= n_components <= rank:
        return (
            f"PCA: {n_components:,} components were requested, but the fit split has {_photos(n)} of {d:,} features, "
            f"which allow 1 to {rank:,}. Add photos, or set FRUITS_N_COMPONENTS to at most {rank:,} or to a share of "
            "variance such as 0.95."
        )
    return None


def whiten(pca: PCA, embedding: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Embeddings, shape ``(n, k)``, with each component over its standard deviation, as scikit-learn's ``whiten``.

    The variances are shrunk towards their mean (``oracle_shrinkage``): those of a few photos say little, and without
    that, each photo would be far from all others.
    """
    variance = pca.explained_variance
    trace, squares = float(variance.sum()), float(np.square(variance).sum())
    share = oracle_shrinkage(trace, squares, pca.n_components, max(pca.n - 1, 1))
    return np.asarray(embedding / np.sqrt((1 - share) * variance + share * variance.mean()), dtype=np.float32)


def transform(pca: PCA, rows: NDArray[np.floating[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Project ``rows``, shape ``(n, d)``, on the components.

    Returns:
        The embedding, shape ``(n, k)``, and the residual, shape ``(n,)``: the Euclidean norm of the
        centred row minus its projection. The norm is that of the difference: a difference of squared norms would lose
        half of the digits of a small residual. Both are computed in float64 and returned as float32.
    """
    embedding = np.empty((len(rows), pca.n_components), dtype=np.float32)
    residual = np.empty(len(rows), dtype=np.float32)
    # Always whole blocks, with the last block padded: the rounding of BLAS depends on the shape, and a row's embedding
    # must not depend on the other rows.
    block = np.zeros((_BLOCK_ROWS, len(pca.mean)))
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = rows[start : start + _BLOCK_ROWS]
        np.subtract(part, pca.mean, out=block[: len(part)])
        scores = block @ pca.components.T
        unexplained = np.linalg.norm(block - scores @ pca.components, axis=1)
        embedding[start : start + len(part)] = scores[: len(part)]
        residual[start : start + len(part)] = unexplained[: len(part)]
    return embedding, residual


def unexplained_share(embedding: NDArray[np.floating[Any]], residual: NDArray[np.floating[Any]]) -> float:
    """Share of these rows' variance about the fit's mean that the components leave unexplained, 0 to 1.

    The components are orthonormal, so ``||x - mean||^2`` is ``||embedding||^2 + residual^2``: the ``embeddings`` table
    is enough, and no feature is read. 0 for no rows.

    Args:
        embedding: Shape ``(n, k)``, from ``transform``.
        residual: Shape ``(n,)``, from ``transform``.
    """
    explained = float(np.square(embedding, dtype=np.float64).sum())
    unexplained = float(np.square(residual, dtype=np.float64).sum())
    return unexplained / (explained + unexplained) if unexplained > 0 else 0.0


def orthonormality_error(components: NDArray[np.floating[Any]]) -> float:
    """Largest absolute difference between ``components @ components.T`` and the identity; shape ``(k, d)``."""
    rows = components.astype(np.float64)
    return float(np.abs(rows @ rows.T - np.eye(len(rows))).max())


def subspace_angle(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Largest principal angle between the row spaces of ``a`` and ``b``, in radians, 0 to pi/2.

    Shapes ``(k, d)`` and ``(l, d)``, rows linearly independent. Cosines of the principal angles are the singular values
    of the product of two orthonormal bases; sines are those of the projection's remainder (Björck & Golub, 1973). The
    cosine is inaccurate near 0 and the sine near pi/2; together they are accurate everywhere.
    """
    larger, smaller = sorted((_orthonormal_columns(a), _orthonormal_columns(b)), key=lambda q: -q.shape[1])
    shared = larger.T @ smaller
    cosine = np.linalg.svd(shared, compute_uv=False).min()
    sine = np.linalg.norm(smaller - larger @ shared, ord=2)
    return float(np.arctan2(sine, cosine))


def pca_identity(model_id: str, pca: PCA) -> str:
    """Identity of a PCA version: a hash of the backbone's identity, the mean and the components."""
    digest = hashlib.sha256(model_id.encode() + b"\0")
    for values in (pca.mean, pca.components):
        digest.update(values.astype("<f8").tobytes())
    return f"pca-{digest.hexdigest()[:12]}"


def components_asked(n_components: float, max_components: int | None = None) -> str:
    """The arguments of ``fit`` as a text that is stored with the PCA. A different text is a reason to refit."""
    if isinstance(n_components, int):
        return f"{n_components}"
    limit = "" if max_components is None else f", at most {max_components}"
    return f"{n_components:g} of the variance{limit}"


def refit_gain(pca: PCA, moments: Moments, n_components: float, max_components: int | None = None) -> float:
    """Share of the variance of ``moments`` that a refit would explain beyond the share that ``pca`` explains of it.

    In closed form, without the rows: components ``C`` explain ``trace(C S C^T) / trace(S)`` of a scatter ``S``. Where a
    share of variance is asked for, a refit gains nothing beyond that share, although it may explain a little more.
    Negative where ``pca`` explains more than was asked for.

    Args:
        pca: The PCA in use.
        moments: Count, mean and scatter of the rows now.
        n_components: As for ``fit``.
        max_components: As for ``fit``.

    Raises:
        FruitsError: when ``fit`` does.
    """
    refitted = float(fit(moments, n_components, max_components).explained_variance_ratio.sum())
    if not isinstance(n_components, int):
        refitted = min(refitted, n_components)
    explained = float(np.einsum("kd,de,ke->", pca.components, moments.scatter, pca.components, optimize=True))
    return refitted - explained / float(np.trace(moments.scatter))


def drifted(drift: float | None, n_new: int, *, max_drift: float, min_drift_rows: int) -> bool:
    """Whether ``drift``, measured on ``n_new`` rows, is beyond the threshold."""
    return drift is not None and n_new >= min_drift_rows and drift > max_drift


def resized(n_fitted: int, n_now: int, growth: float) -> bool:
    """Whether a fit split of ``n_fitted`` rows has grown or shrunk by the factor ``growth``, and can be fitted."""
    return n_now > 1 and not n_fitted / growth < n_now < n_fitted * growth


def refit_reason(
    policy: RefitPolicy,
    current: FittedSummary | None,
    *,
    asked: str,
    n_now: int,
    n_new: int,
    drift: float | None,
    max_drift: float,
    min_drift_rows: int,
    growth: float,
    gain: float | None = None,
    min_gain: float = 0.0,
    split_rules: str | None = None,
) -> str | None:
    """The reason to fit the PCA again, as words for a log; None to keep the current PCA.

    Args:
        policy: ``always`` refits, ``never`` keeps the current PCA, ``auto`` refits for the reasons below.
        current: The PCA in use for this backbone; None before the first fit.
        asked: ``components_asked`` of this run; a difference from the current PCA's is a reason.
        n_now: Rows of the fit split now; ``growth`` times as many or as few as the current PCA's are a reason.
        n_new: Rows created or updated since the fit, on which ``drift`` was measured.
        drift: ``unexplained_share`` of those rows, minus that of the held-out rows at the time of the fit; None when
            not measured. Held-out rows are the fair baseline: a fit explains its own rows better than any others, and
            with few photos the difference is larger than a drift.
        max_drift: A larger drift, over at least ``min_drift_rows`` rows, is a reason.
        min_drift_rows: Fewest rows that can show a drift.
        growth: Growth or shrinkage of the fit split, as a factor, that is a reason.
        gain: ``refit_gain``; None when not measured. Photos of a rare kind always leave more unexplained than the rest,
            also after a refit, so drift alone would refit at every increment.
        min_gain: With a smaller gain a drift is no reason.
        split_rules: The rules that choose the fitted rows now. A difference from the known rules of the current PCA is
            a reason: it may have been fitted on rows that are held out now.

    Raises:
        FruitsError: when the policy is ``never`` and there is no PCA to keep.
    """
    if current is None:
        if policy == "never":
            raise FruitsError(
                "PCA: the refit policy is `never`, but no PCA has been published for this backbone yet. Run once with "
                "the policy `auto`, or choose a backbone that has a PCA."
            )
        return "first fit"
    if policy != "auto":
        return "asked for" if policy == "always" else None
    unknown = None in (current.split_rules, split_rules)
    drift_pays = gain is None or gain >= min_gain
    explained = "" if gain is None else f", and a refit explains {gain:.1%} more"
    reasons = {
        f"components asked changed from {current.components_asked} to {asked}": asked != current.components_asked,
        f"the rules of the split changed from {current.split_rules} to {split_rules}": not unknown
        and split_rules != current.split_rules,
        f"fit split {'grew' if n_now > current.n else 'shrank'} from {current.n:,} to {n_now:,}": resized(
            current.n, n_now, growth
        ),
        f"{n_new:,} new photos leave {drift or 0:.1%} more variance unexplained than the fit{explained}": drift_pays
        and drifted(drift, n_new, max_drift=max_drift, min_drift_rows=min_drift_rows),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _with_fixed_signs(components: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flip rows so that the loading of largest size is positive: the sign of an eigenvector is arbitrary."""
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return np.ascontiguousarray(components * signs[:, np.newaxis])


def _orthonormal_columns(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    return np.linalg.qr(rows.astype(np.float64).T)[0]


def _photos(n: int) -> str:
    return f"{n:,} photo" if n == 1 else f"{n:,} photos"
