"""Gates: the checks between a run and its publication. Pure functions of the validation job's measurements.

A share of a small sample is uncertain: its gate fails only when the whole confidence interval is beyond the threshold.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fruits.analysis.quality import Quality
from fruits.settings import Settings

Severity = Literal["required", "warn"]

_OF_PCA_VERSION = frozenset({"embeddings_complete", "components_orthonormal", "explained_variance", "probe"})
"""The required gates about the PCA version alone: another version of the same rows may pass them."""

_FEWEST_PROBED = 50  # one photo is then 2 % of the accuracy
_LARGE_SAMPLE = 1_000  # from here on the measured value decides: its interval is less than 3 % wide to each side
_Z = 1.96  # standard errors on each side of a 95 % interval
_MAX_ORTHONORMALITY_ERROR = 1e-6
_MOST_CALIBRATION_ERROR = 0.03
_SCALE_FACTOR = 4.0  # a missing pixel scaling makes a factor of 127 or more, a new camera less than 2


@dataclass(frozen=True)
class Gate:
    """A gate's result. ``value`` is None when the gate does not apply, ``threshold`` when nothing is compared."""

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
    """The validation job's measurements on the run's branches."""

    planned: int  # objects that the run had to create, update or delete
    unaccounted: Sequence[str]  # keys of planned objects that are not where their action puts them
    expected_rows: int  # objects that should be in features or quarantine for this backbone
    rows: int  # objects that are in features or quarantine for this backbone
    new_rows: int  # feature vectors this run wrote
    unusable_vectors: int  # new vectors with NaN or infinity, or all zero
    wrong_widths: int  # new vectors of another width than the backbone's features
    quarantined: int  # rows in quarantine
    scale_ratio: float | None  # root mean square of the new vectors, divided by that of the PCA's statistics
    missing_embeddings: int | None  # live features without exactly one embedding, and embeddings without a feature
    orthonormality_error: float | None
    explained_variance: float | None
    drift: float | None  # share of variance that new photos leave unexplained, minus that of the fit
    duplicates_across_splits: int
    unfitted_labels: Sequence[str]  # labels that occur in a held-out split only
    probe_raw: float | None
    probe_embedded: float | None
    probe_rows: int  # held-out photos that the probe was scored on; with few of them its accuracy is chance
    uncounted: int = 0  # rows that Iceberg counts beyond those that the counters explain, or fewer
    classifier: Quality | None = None  # None without a classifier, or with too few photos to tell
    classifier_before: Quality | None = None  # that of the publication before
    set_error: float | None = None  # share of photos whose set may lack the right label


def evaluate(findings: Findings, settings: Settings) -> tuple[Gate, ...]:
    """All gates, the required ones first."""
    accounted = findings.planned - len(findings.unaccounted)
    return (
        _at_most(
            "manifest_accounted", "required", len(findings.unaccounted), 0,
            f"{accounted} of {findings.planned} planned objects are where they belong"
            + _examples(findings.unaccounted),
        ),
        _at_most(
            "rows_accounted", "required", max(abs(findings.rows - findings.expected_rows), findings.uncounted), 0,
            f"{findings.rows} objects in features and quarantine, {findings.expected_rows} expected"
            + (f"; {findings.uncounted} rows came or went otherwise" if findings.uncounted else ""),
        ),
        _at_most(
            "vectors_usable", "required", findings.unusable_vectors, 0,
            f"{findings.new_rows} new vectors: {findings.unusable_vectors} with NaN, infinity or all zero",
        ),
        _at_most(
            "vector_width", "required", findings.wrong_widths, 0,
            f"{findings.new_rows} new vectors: {findings.wrong_widths} of another width than the backbone's",
        ),
        _at_most(
            "embeddings_complete", "required", findings.missing_embeddings, 0,
            "no PCA version yet" if findings.missing_embeddings is None else
            f"{findings.missing_embeddings} features without exactly one embedding",
        ),
        _at_most(
            "components_orthonormal", "required", findings.orthonormality_error, _MAX_ORTHONORMALITY_ERROR,
            "largest deviation of the components' Gram matrix from the identity",
        ),
        _at_least(
            "explained_variance", "required", findings.explained_variance, settings.min_explained_variance,
            "share of the fit split's variance that the components explain",
        ),
        _quarantined(findings, settings),
        _probe(findings, settings),
        _at_most(
            "drift", "warn", findings.drift, settings.refit_drift,
            "unexplained variance of new photos beyond what is expected",
        ),
        _scale(findings.scale_ratio),
        _classifier_accuracy(findings.classifier, findings.classifier_before),
        _classifier_calibration(findings.classifier),
        _classifier_coverage(findings.classifier, findings.set_error),
        _at_most(
            "labels_fitted", "warn", len(findings.unfitted_labels), 0,
            "labels that occur in a held-out split only" + _examples(findings.unfitted_labels),
        ),
        _at_most(
            "duplicates_across_splits", "warn", findings.duplicates_across_splits, 0,
            f"{findings.duplicates_across_splits} new photos whose bytes also stand in another split",
        ),
    )  # fmt: skip


def probe_is_due(scored: int | None, held_out: int, sampled: float = 1.0) -> bool:
    """Whether the probe of a PCA version is measured again, because it was scored on too few photos to tell.

    So a probe on few photos, which only warns, becomes no required failure without a new measurement. It is due when
    a measurement would score twice as many photos: of a sample so many come by chance, less three standard deviations
    of the binomial distribution.

    Args:
        scored: Held-out photos that the probe was scored on; None when that is not known.
        held_out: Held-out photos now.
        sampled: Share of all photos that a measurement reads, 0 to 1.
    """
    if scored is None:
        return held_out > 0
    expected = held_out * sampled
    fewest = expected - 3 * math.sqrt(expected * (1 - sampled))
    return scored < _LARGE_SAMPLE and fewest >= 2 * max(scored, 1)


def only_of_version(broken: Sequence[Gate]) -> bool:
    """Whether required gates failed, and all of them are about the PCA version alone."""
    return bool(broken) and {gate.name for gate in broken} <= _OF_PCA_VERSION


def refused_refit(pca_id: str, kept: str, broken: Iterable[Gate]) -> Gate:
    """The warning of a run that publishes under the PCA version that there is, because its refit failed some gates."""
    reasons = "; ".join(f"{gate.name}: {gate.detail}" for gate in broken)
    detail = f"the new PCA version {pca_id} is not published, and readers keep {kept}, because of {reasons}"
    return Gate("refit", "warn", passed=False, value=None, threshold=None, detail=detail)


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share that was measured on ``n`` objects.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22. Unlike the interval
    of the normal approximation, it stays inside 0 to 1 and holds for few objects and for shares of 0 and 1.
    """
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, (centre - half) / (1 + _Z**2 / n)), min(1.0, (centre + half) / (1 + _Z**2 / n))


def _quarantined(findings: Findings, settings: Settings) -> Gate:
    """The share of quarantined objects, as a sample of what comes in."""
    rows, threshold = findings.rows, settings.max_quarantined_share
    share = findings.quarantined / rows if rows else None
    detail = f"{findings.quarantined} of {rows} objects are in quarantine"
    gate = _at_most("quarantined_share", "required", share, threshold, detail)
    if share is None or gate.passed or rows >= _LARGE_SAMPLE:
        return gate
    lowest, highest = wilson_interval(share, rows)
    return _if_certain(gate, f"{lowest:.1%} to {highest:.1%}", beyond=lowest > threshold)


def _probe(findings: Findings, settings: Settings) -> Gate:
    """The accuracy on embeddings as a share of that on features, both measured on the held-out photos.

    The contrast of two shares, ``embedded - threshold * raw``, has the interval of Newcombe (1998), "Interval
    estimation for the difference between independent proportions", Statistics in Medicine 17, method 10, built of
    Wilson intervals. Both are measured on the same photos, so they vary less against each other than independent
    shares, and the interval errs on the side of passing.
    """
    raw, embedded, n = findings.probe_raw, findings.probe_embedded, findings.probe_rows
    threshold = settings.min_probe_ratio
    severity: Severity = "required" if n >= _FEWEST_PROBED else "warn"
    if not raw or embedded is None:
        return _at_least("probe", severity, None, threshold, "no probe for this PCA version")
    detail = f"held-out accuracy {embedded:.3f} on embeddings, {raw:.3f} on features"
    gate = _at_least("probe", severity, embedded / raw, threshold, detail)
    if gate.passed or not 0 < n < _LARGE_SAMPLE or not math.isfinite(embedded / raw):
        return gate
    (raw_lowest, _), (lowest, highest) = wilson_interval(raw, n), wilson_interval(embedded, n)
    most = embedded - threshold * raw + math.hypot(highest - embedded, threshold * (raw - raw_lowest))
    return _if_certain(gate, f"an accuracy of {lowest:.3f} to {highest:.3f} on embeddings", beyond=most < 0)


def _classifier_accuracy(now: Quality | None, before: Quality | None) -> Gate:
    """The classifier's accuracy against that of the publication before, by the interval of ``_probe``."""
    name = "classifier_accuracy"
    if now is None or before is None:
        what = "no classifier, or too few photos to tell" if now is None else "no accuracy before to compare with"
        return Gate(name, "warn", passed=True, value=now.accuracy if now else None, threshold=None, detail=what)
    detail = f"accuracy {now.accuracy:.3f} on {now.n} photos, {before.accuracy:.3f} on {before.n} before"
    gate = _at_least(name, "warn", now.accuracy, before.accuracy, detail)
    if gate.passed:
        return gate
    (before_lowest, _), (lowest, highest) = (wilson_interval(one.accuracy, one.n) for one in (before, now))
    least = before.accuracy - now.accuracy - math.hypot(before.accuracy - before_lowest, highest - now.accuracy)
    return _if_certain(gate, f"{lowest:.3f} to {highest:.3f}", beyond=least > 0)


def _classifier_calibration(now: Quality | None) -> Gate:
    """The expected calibration error; chance alone makes one of about ``1 / sqrt(n)`` at most."""
    error = now.calibration_error if now else None
    detail = "expected distance between confidence and accuracy, on photos that it was not calibrated on"
    if now is None:
        detail = "no classifier, or too few photos to tell"
    gate = _at_most("classifier_calibration", "warn", error, _MOST_CALIBRATION_ERROR, detail)
    if now is None or gate.passed:
        return gate
    lowest = max(0.0, now.calibration_error - 1 / math.sqrt(now.n))
    return _if_certain(gate, f"from {lowest:.3f}", beyond=lowest > _MOST_CALIBRATION_ERROR)


def _classifier_coverage(now: Quality | None, error: float | None) -> Gate:
    """The share of photos whose set has the right label, against the promised share."""
    name = "classifier_coverage"
    if now is None or error is None:
        what = "no classifier, or too few photos to tell"
        return Gate(name, "warn", passed=True, value=None, threshold=None, detail=what)
    detail = f"share of photos whose set has the right label; {now.labels_of_set:.2f} labels a set"
    gate = _at_least(name, "warn", now.coverage, 1 - error, detail)
    if gate.passed:
        return gate
    lowest, highest = wilson_interval(now.coverage, now.n)
    return _if_certain(gate, f"{lowest:.3f} to {highest:.3f}", beyond=highest < 1 - error)


def _if_certain(gate: Gate, interval: str, *, beyond: bool) -> Gate:
    """The gate of a small sample whose value is beyond the threshold: it fails if its interval is, too."""
    verdict = "beyond the threshold all the same" if beyond else "too few objects to tell"
    return replace(gate, passed=not beyond, detail=f"{gate.detail}; 95 % interval {interval}: {verdict}")


def failed(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The required gates that failed; a single one forbids the publication."""
    return tuple(gate for gate in gates if gate.severity == "required" and not gate.passed)


def _at_most(name: str, severity: Severity, value: float | None, threshold: float, detail: str) -> Gate:
    # NaN fails: every comparison with NaN is false.
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
