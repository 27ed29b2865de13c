"""The current state, read in one place: what readers see, and what became of the last runs."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fruits.errors import FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import load_fitting_run
from fruits.lake.publication import Publication, publications
from fruits.run.documents import Classified, RunDocuments, listed_runs, read_document, read_documents
from fruits.run.state import PlannedRun, run_key
from fruits.settings import Settings

log = logging.getLogger("fruits")

RunOutcome = Literal[
    "published", "nothing to do", "waits for approval", "pinned", "dry run", "failed", "running", "unfinished"
]


@dataclass(frozen=True)
class FittedVersion:
    """A PCA version without its matrices; ``explained_variance_ratio`` has one share per component."""

    pca_id: str
    model_id: str
    n: int
    k: int
    n_components: str
    explained_variance_ratio: Sequence[float]
    held_out_unexplained: float | None
    reason: str
    fitted_at: datetime

    @property
    def explained_variance(self) -> float:
        """Share of the fit split's variance that all components explain."""
        return sum(self.explained_variance_ratio)


_COLUMNS = tuple(FittedVersion.__dataclass_fields__)


@dataclass(frozen=True)
class State:
    """What readers see: a publication, its PCA version, and its quarantined objects by reason."""

    publication: Publication
    pca: FittedVersion | None
    quarantine: Mapping[str, int]


def read_state(lake: Lake, published: Sequence[Publication] | None = None) -> State | None:
    """The state of the current publication; None when nothing has been published yet."""
    known = publications(lake) if published is None else published
    if not known:
        return None
    current = known[-1]
    return State(
        current,
        fitted_version(lake, current.snapshots["pca_models"], current.pca_id),
        quarantine_reasons(lake, current.snapshots["quarantine"], str(current.model_id)),
    )


def fitted_versions(lake: Lake, snapshot_id: int, **equal: str) -> list[FittedVersion]:
    """The PCA versions at a snapshot of `pca_models`, the oldest first."""
    rows = lake.read("pca_models", snapshot_id, _COLUMNS, **equal).to_pylist()
    return sorted((FittedVersion(**row) for row in rows), key=lambda version: version.fitted_at)


def fitted_version(lake: Lake, snapshot_id: int, pca_id: str | None) -> FittedVersion | None:
    """A PCA version at a snapshot of `pca_models`; None when it is not there."""
    return next(iter(fitted_versions(lake, snapshot_id, pca_id=pca_id or "")), None)


def classified_of(settings: Settings, lake: Lake, publication: Publication) -> Classified | None:
    """What the run that fitted a publication's classifier wrote down about it.

    None without a classifier, or when the document is gone: maintenance drops those of old runs.
    """
    run_id = load_fitting_run(lake, publication)
    document = read_document(settings, run_key(run_id.partition("#")[0]), "pca") if run_id else None
    classified: Classified | None = document.result.classified if document and document.result else None
    return classified if classified and classified.classifier_id == publication.classifier_id else None


def quarantine_reasons(lake: Lake, snapshot_id: int, model_id: str) -> dict[str, int]:
    """Quarantined objects of a backbone by reason, in the order of the reasons' names."""
    counts: Counter[str] = Counter()
    for batch in lake.batches("quarantine", snapshot_id, ("reason",), model_id=model_id):
        counts.update(batch["reason"].to_pylist())
    return dict(sorted(counts.items()))


def runs(settings: Settings) -> Iterator[tuple[str, RunDocuments]]:
    """The runs of `fruit_features`, the newest first: key and documents, read one by one.

    The log names a run whose documents can't be read; that run is passed over.
    """
    for key, listed in listed_runs(settings).items():
        try:
            documents = read_documents(settings, key, listed.folder).current()
        except TransientError:
            raise
        except FruitsError as error:
            log.warning("passed over: %s", error)
            continue
        if documents and not documents.of_maintenance:
            yield key, documents


def outcome_of(documents: RunDocuments) -> RunOutcome:
    """What became of a run."""
    states = {document.state for document in documents}
    planned = documents.planned
    if "failed" in states:
        return "failed"
    if documents.publish is not None and documents.publish.state == "succeeded":
        return "published"
    if "running" in states:
        return "running"
    if planned is None:
        return "unfinished"
    return _outcome_of_plan(planned)


def _outcome_of_plan(planned: PlannedRun) -> RunOutcome:
    """What became of a run when only its plan is finished."""
    if planned.request.dry_run:
        return "dry run"
    if planned.pinned:
        return "pinned"
    if planned.work:
        return "unfinished"
    return "waits for approval" if planned.undecided else "nothing to do"


def error_of(documents: RunDocuments) -> str | None:
    """Why a run failed; None when no task failed."""
    return next((document.error for document in documents if document.error), None)


def probe_of(publication: Publication | None) -> dict[str, float | str | None]:
    """The probe as readers get it; a publication that keeps the PCA keeps the figures, which may be older."""
    if publication is None or publication.probe_raw is None:
        return {"raw": None, "embedded": None, "pca_id": None}
    return {"raw": publication.probe_raw, "embedded": publication.probe_embedded, "pca_id": publication.pca_id}


def describe_probe(probe: Mapping[str, Any]) -> str | None:
    """``probe_of`` for a person; None without a figure."""
    if probe["raw"] is None:
        return None
    embedded = "not measured" if probe["embedded"] is None else f"{probe['embedded']:.3f}"
    return f"{probe['raw']:.3f} on features, {embedded} on embeddings, measured with {probe['pca_id']}"


def wall_seconds(documents: RunDocuments) -> float:
    """Seconds of all tasks of a run together."""
    return sum(document.wall_seconds or 0.0 for document in documents)
