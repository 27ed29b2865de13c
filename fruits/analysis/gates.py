"""Gates: the checks between a run and its publication. Pure functions of what the validation job measured."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fruits.settings import Settings

Severity = Literal["required", "warn"]

_FEWEST_PROBED = 50  # one photo more or less is then 2 %
_MAX_ORTHONORMALITY_ERROR = 1e-6
_SCALE_FACTOR = 4.0  # a forgotten pixel scaling is off by 127 or more, a new camera by less than 2


@dataclass(frozen=True)
class Gate:
    """What a gate found. ``value`` is None where it does not apply, ``threshold`` where it compares with nothing."""

    name: str
    severity: Severity
    passed: bool
    value: float | None
    threshold: float | None
    detail: str

    def to_document(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Findings:
    """What the validation job measured on the run's branches."""

    planned: int  # objects the run was to create, update or delete
    unaccounted: Sequence[str]  # keys of them that are not where their action puts them
    expected_rows: int  # objects that should be in features or quarantine for this backbone
    rows: int  # objects that are
    new_rows: int  # feature vectors this run wrote
    unusable_vectors: int  # of them: with NaN or infinity, or all zero
    wrong_widths: int  # of them: not as wide as the backbone's features
    quarantined: int  # of them: in quarantine
    scale_ratio: float | None  # root mean square of the new vectors over what the PCA's statistics expect
    missing_embeddings: int | None  # live features without exactly one embedding, and embeddings without a feature
    orthonormality_error: float | None
    explained_variance: float | None
    drift: float | None  # share of variance new photos leave unexplained, less what the fit left
    duplicates_across_splits: int
    unfitted_labels: Sequence[str]  # labels that occur in a held-out split only
    probe_raw: float | None
    probe_embedded: float | None
    held_out_rows: int  # features in a held-out split: few of them make the probe's accuracies a matter of luck


def evaluate(found: Findings, settings: Settings) -> tuple[Gate, ...]:
    """All gates, the required ones first."""
    share = found.quarantined / found.rows if found.rows else None
    ratio = found.probe_embedded / found.probe_raw if found.probe_raw and found.probe_embedded is not None else None
    return (
        _at_most(
            "manifest_accounted", "required", len(found.unaccounted), 0,
            f"{found.planned - len(found.unaccounted)} of {found.planned} planned objects are where they belong"
            + _examples(found.unaccounted),
        ),
        _at_most(
            "rows_accounted", "required", abs(found.rows - found.expected_rows), 0,
            f"{found.rows} objects in features and quarantine, {found.expected_rows} expected",
        ),
        _at_most(
            "vectors_usable", "required", found.unusable_vectors, 0,
            f"{found.new_rows} new vectors: {found.unusable_vectors} with NaN, infinity or all zero",
        ),
        _at_most(
            "vector_width", "required", found.wrong_widths, 0,
            f"{found.new_rows} new vectors: {found.wrong_widths} of another width than the backbone's",
        ),
        _at_most(
            "embeddings_complete", "required", found.missing_embeddings, 0,
            "no PCA version yet" if found.missing_embeddings is None else
            f"{found.missing_embeddings} features without exactly one embedding",
        ),
        _at_most(
            "components_orthonormal", "required", found.orthonormality_error, _MAX_ORTHONORMALITY_ERROR,
            "largest deviation of the components' Gram matrix from the identity",
        ),
        _at_least(
            "explained_variance", "required", found.explained_variance, settings.min_explained_variance,
            "share of the fit split's variance that the components explain",
        ),
        _at_most(
            "quarantined_share", "required", share, settings.max_quarantined_share,
            f"{found.quarantined} of {found.rows} objects are in quarantine",
        ),
        _at_least(
            "probe", "required" if found.held_out_rows >= _FEWEST_PROBED else "warn", ratio, settings.min_probe_ratio,
            "no probe for this PCA version" if ratio is None else
            f"held-out accuracy {found.probe_embedded:.3f} on embeddings, {found.probe_raw:.3f} on features",
        ),
        _at_most(
            "drift", "warn", found.drift, settings.refit_drift,
            "unexplained variance of new photos beyond what is expected",
        ),
        _scale(found.scale_ratio),
        _at_most(
            "labels_fitted", "warn", len(found.unfitted_labels), 0,
            "labels that occur in a held-out split only" + _examples(found.unfitted_labels),
        ),
        _at_most(
            "duplicates_across_splits", "warn", found.duplicates_across_splits, 0,
            f"{found.duplicates_across_splits} new photos whose bytes also stand in another split",
        ),
    )  # fmt: skip


def failed(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The required gates that did not pass: any of them forbids the publication."""
    return tuple(gate for gate in gates if gate.severity == "required" and not gate.passed)


def _at_most(name: str, severity: Severity, value: float | None, threshold: float, detail: str) -> Gate:
    # Written so that NaN fails.
    passed = value is None or value <= threshold
    return Gate(name, severity, passed, _number(value), float(threshold), detail)


def _at_least(name: str, severity: Severity, value: float | None, threshold: float, detail: str) -> Gate:
    passed = value is None or value >= threshold
    return Gate(name, severity, passed, _number(value), float(threshold), detail)


def _scale(ratio: float | None) -> Gate:
    passed = ratio is None or 1 / _SCALE_FACTOR <= ratio <= _SCALE_FACTOR
    detail = "root mean square of the new vectors over the fit's; far from 1 means another pixel scaling"
    return Gate("unit_scale", "warn", passed, _number(ratio), _SCALE_FACTOR, detail)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _examples(names: Sequence[str], most: int = 3) -> str:
    return f": {', '.join(names[:most])}{' ...' if len(names) > most else ''}" if names else ""
