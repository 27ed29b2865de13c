"""PCA versions and embeddings of a run: is a refit due, fit, project, and measure what a version leaves unexplained."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from fruits.analysis.moments import Moments
from fruits.analysis.pca import (
    PCA,
    FittedSummary,
    components_asked,
    drifted,
    fit,
    fit_problem,
    pca_identity,
    refit_gain,
    refit_reason,
    resized,
    unexplained_share,
)
from fruits.lake.appends import append_files, file_target
from fruits.lake.approvals import Approval, ask
from fruits.lake.pca_tables import PCAVersion, load_versions, save_version
from fruits.lake.publication import Publication, publications
from fruits.lake.schemas import EMBEDDINGS
from fruits.photos.keys import FIT_SPLIT, KeyPattern, KeyRules
from fruits.run.decisions import Decisions, decide, due_refit_question
from fruits.spark.executors import FILE_SCHEMA, SQUARES_SCHEMA, file_in, squares_but, squares_under, writing
from fruits.spark.executors import project as project_batches
from fruits.spark.job import Job
from fruits.spark.stored import Rows, SparkRows, rows_at

log = logging.getLogger("fruits")


def current_version(job: Job) -> PCAVersion | None:
    """The PCA in use for the run's backbone: the version that readers had last, else its newest.

    A newer version than the readers' may be one that failed its gates.
    """
    versions = load_versions(job.lake, job.start["pca_models"], job.run.model_id)
    by_id = {version.pca_id: version for version in versions}
    published = [by_id[one.pca_id] for one in published_under_backbone(job) if one.pca_id in by_id]
    return next(reversed(published or versions), None)


def published_under_backbone(job: Job) -> list[Publication]:
    """The publications with the run's backbone, the oldest first."""
    published = publications(job.lake, job.run.base.publications_snapshot)
    return [publication for publication in published if publication.model_id == job.run.model_id]


def fitted_rules(job: Job, current: PCAVersion) -> str | None:
    """The rules of the split that a version was fitted under; None where no others than today's are known.

    A version of an earlier release does not say them. Publications with it tell the rules that all rows followed then.
    """
    if current.split_rules is not None:
        return current.split_rules
    rules = {one.rules for one in published_under_backbone(job) if one.pca_id == current.pca_id}
    others = sorted(one for one in rules - {KeyRules.of(job.settings).fingerprint} if one)
    return f"earlier rules ({', '.join(others)})" if others else None


@dataclass(frozen=True)
class Refit:
    """Whether the PCA is fitted again.

    Attributes:
        reason: Why; None to keep the PCA in use.
        drift: Share of variance that new photos leave unexplained beyond the expected share, where it was measured.
        gain: What a refit would explain in addition, where photos drifted.
        keep: The PCA in use, when readers may keep it if the refit fails its gates: nobody asked for another, and no
            photo of its fit is held out now.
    """

    reason: str | None
    drift: float | None = None
    gain: float | None = None
    keep: PCAVersion | None = None


def reason_to_refit(job: Job, current: PCAVersion | None, moments: Moments) -> Refit:
    """Decide whether the PCA is fitted again.

    A run that leaves objects over, as each run of a backfill does, keeps the PCA that there is; so does a run that does
    not know, because it looked up single keys. The run that leaves none over refits, if that is due. So a backfill
    refits once at most. A refit that a person approved is done.
    """
    drift, measured = measure_drift(job, current) if current else (None, 0)
    settings, request = job.settings, job.run.request
    asked = components_asked(request.n_components, settings.max_components)
    split_rules = KeyPattern.of(settings).split_rules
    approval = approved_refit(job)
    if current is not None and request.refit == "auto" and not may_refit(job):
        return Refit(None, drift)
    rules_then = fitted_rules(job, current) if current else None
    gain = None
    max_drift, min_drift_rows = settings.refit_drift, settings.refit_drift_rows
    due = request.refit == "auto" and drifted(drift, measured, max_drift=max_drift, min_drift_rows=min_drift_rows)
    if current is not None and due:
        gain = refit_gain(current.pca, moments, request.n_components, settings.max_components)
        log.info("drift of %.1f %%: a refit would explain %.1f %% more of the variance", 100 * (drift or 0), 100 * gain)
    reason = refit_reason(
        request.refit,
        FittedSummary(current.pca.n, current.n_components, rules_then) if current else None,
        asked=asked,
        n_now=moments.n,
        n_new=measured,
        drift=drift,
        max_drift=max_drift,
        min_drift_rows=min_drift_rows,
        growth=settings.refit_growth,
        gain=gain,
        min_gain=settings.refit_gain,
        split_rules=split_rules,
    )
    may_keep = (
        current is not None
        and current.pca_id == job.run.base.publication.pca_id
        and (request.refit, current.n_components) == ("auto", asked)
        and rules_then in (None, split_rules)
    )
    keep = current if reason and may_keep else None
    if keep and (problem := no_refit(job, keep, moments)):
        log.info("no refit, although %s: %s", reason, problem)
        reason, keep = None, None
    if reason is None and approval is not None:
        reason = f"approved by {approval.approved_by}: {approval.why}"
    return Refit(reason, drift, gain, keep)


def approved_refit(job: Job) -> Approval | None:
    """The approval of a refit that the run uses; None without one."""
    return next((one for one in job.run.approvals if one.kind == "refit"), None)


def may_refit(job: Job) -> bool:
    """Whether the run decides about a refit that is due: it leaves nothing over, or a person approved one."""
    return job.remaining == 0 or approved_refit(job) is not None


def no_refit(job: Job, current: PCAVersion, moments: Moments) -> str | None:
    """Why a refit that is due is left out, so that the run keeps its PCA: it cannot be done, or failed its gates."""
    if problem := fit_problem(moments, job.run.request.n_components):
        return problem
    refused = refused_version(job, current)
    if refused and not resized(refused.pca.n, moments.n, job.settings.refit_growth):
        return f"version {refused.pca_id} failed its gates"
    return None


def refused_version(job: Job, current: PCAVersion) -> PCAVersion | None:
    """The newest version that was fitted after the published one, and failed its gates; None without one."""
    versions = load_versions(job.lake, job.start["pca_models"], job.run.model_id)
    return next((version for version in reversed(versions) if version.fitted_at > current.fitted_at), None)


def decide_refit(job: Job, reason: str | None) -> Decisions:
    """Ask whether the PCA that readers have is fitted again, where a refit needs an approval; writes the question."""
    question = due_refit_question(job.run, reason, job.settings)
    if question is None:
        return Decisions()
    return decide([question], [ask(job.settings, question)])


def measure_drift(job: Job, current: PCAVersion) -> tuple[float | None, int]:
    """Share of variance that new photos leave unexplained beyond the expected share, and from how many rows.

    A run that decides about a refit, after runs that left the decision to a later run, measures all rows since the fit.
    Other runs measure their own rows: they read no vectors of earlier runs.
    """
    since_fit = job.run.base.publication.remaining != 0 and may_refit(job)
    new = job.new_rows().only(split=FIT_SPLIT)
    squares = Squares.of(new.apply("drift", squares_under(current.pca), ("vector",), SQUARES_SCHEMA))
    if since_fit:
        rows = rows_at(job.tables, "embeddings", job.start["embeddings"], pca_id=current.pca_id).only(split=FIT_SPLIT)
        squares += Squares.of_embeddings(rows, "run_id", current.run_id)
    share = squares.unexplained_share
    return (None if share is None else share - current.expected_unexplained), squares.rows


@dataclass(frozen=True)
class Squares:
    """Some rows, and the squared lengths of their embeddings and of their residuals, summed."""

    rows: int = 0
    explained: float = 0.0
    unexplained: float = 0.0

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch]) -> "Squares":
        """The sum of rows with ``SQUARES_SCHEMA``."""
        return sum((cls(**row) for batch in batches for row in batch.to_pylist()), cls())

    @classmethod
    def of_embeddings(cls, rows: Rows, name: str, value: str) -> "Squares":
        """Those of rows of `embeddings` that have another value in a column."""
        return cls.of(rows.apply("squares", squares_but(name, value), (name, "embedding", "residual"), SQUARES_SCHEMA))

    def __add__(self, other: "Squares") -> "Squares":
        """Those of both."""
        return Squares(self.rows + other.rows, self.explained + other.explained, self.unexplained + other.unexplained)

    @property
    def unexplained_share(self) -> float | None:
        """See ``fruits.analysis.pca.unexplained_share``; None without rows."""
        return unexplained_share(np.sqrt([self.explained]), np.sqrt([self.unexplained])) if self.rows else None


def fit_version(job: Job, moments: Moments, reason: str) -> tuple[PCAVersion, int]:
    """Fit on the moments, project every row, and save the version; also how many rows were projected."""
    settings, request, model_id = job.settings, job.run.request, job.run.model_id
    with job.phase("fit"):
        pca = fit(moments, request.n_components, settings.max_components)
        pca_id = pca_identity(model_id, pca)
    known = {version.pca_id for version in load_versions(job.lake, job.start["pca_models"], model_id)}
    if pca_id in known:  # the same fit again: its rows and its version are replaced, not doubled
        job.tables.delete_versions("embeddings", (pca_id,))
    with job.phase("project"):
        projected = project(job, pca_id, pca, job.all_rows())
    version = PCAVersion(
        pca_id=pca_id,
        model_id=model_id,
        pca=pca,
        n_components=components_asked(request.n_components, settings.max_components),
        held_out_unexplained=held_out_unexplained(job, pca_id),
        features_snapshot_id=job.start["features"],
        reason=reason,
        run_id=job.run.run_id,
        fitted_at=datetime.now(UTC),
        split_rules=KeyPattern.of(settings).split_rules,
    )
    save_version(job.lake, job.tables.writer, version)
    return version, projected


def project(job: Job, pca_id: str, pca: PCA, features: Rows) -> int:
    """Append the embeddings of ``features`` under a PCA version; returns how many.

    The tasks write them to files, which the driver commits.
    """
    embeddings = project_batches(pca, job.run.model_id, pca_id, job.run.run_id)
    written = writing(job.settings, embeddings, file_target(job.lake, EMBEDDINGS, pca_id))
    made = features.apply("project", written, ("key", "etag", "label", "split", "vector"), FILE_SCHEMA)
    files = [row for batch in made for row in batch.to_pylist()]
    if files:
        append_files(job.lake, EMBEDDINGS, pca_id, [file_in(row) for row in files], job.tables.writer)
    return sum(row["rows"] for row in files)


def unprojected_features(job: Job, pca_id: str) -> Rows:
    """The rows without an embedding under a version: this run's, and those of runs that were building the backbone."""
    if job.run.base.publication.model_id == job.run.model_id:
        return job.new_rows()
    embedded = job.tables.read_branch("embeddings").where(f"pca_id = '{pca_id}'").select("key", "etag")
    return SparkRows(job.features().join(embedded, ["key", "etag"], "left_anti"))


def held_out_unexplained(job: Job, pca_id: str) -> float | None:
    """Share of the held-out rows' variance that a version leaves unexplained; None without such rows."""
    head = job.tables.head("embeddings", job.start["embeddings"])
    rows = rows_at(job.tables, "embeddings", head, pca_id=pca_id)
    return Squares.of_embeddings(rows, "split", FIT_SPLIT).unexplained_share
