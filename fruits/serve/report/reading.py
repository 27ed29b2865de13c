"""Reads the content of a report: run documents, tables, and pictures of quarantined objects. Every read is bounded."""

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fruits.errors import FruitsError
from fruits.lake.approvals import read_approvals
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, in_full, publications
from fruits.lake.reader import explain_lake_errors, open_read_only
from fruits.lake.schemas import DATA_TABLES, TableName
from fruits.run.documents import RunDocuments, listed_runs, read_documents
from fruits.run.pin import current_pin
from fruits.run.state import PlannedRun, run_key
from fruits.serve.report.content import (
    Building,
    EmbeddingMap,
    Overview,
    PastPublication,
    Quarantine,
    QuarantinedObject,
    RunReport,
    Tables,
    Work,
)
from fruits.serve.report.pictures import add_pictures
from fruits.serve.state import classified_of, error_of, fitted_version, fitted_versions, outcome_of
from fruits.settings import Settings

MOST_POINTS = 2_000
MOST_ROWS_READ = 1_000_000
"""Embeddings read for the map, 0.6 kB each: they stream past, only the sample is kept."""
MOST_EXAMPLES = 24
MOST_EXAMPLES_OF_A_REASON = 6
MOST_PUBLICATIONS = 20

_KNOWN_SHOWN = 5


class UnknownRunError(FruitsError):
    """There are no documents of a run."""


def read_overview(settings: Settings) -> Overview:
    """What readers see now: the current publication, its tables, its run, and the publications before.

    Raises:
        FruitsError: when lake, catalog or bucket cannot be read; says which and what to do.
    """
    with explain_lake_errors(settings):
        lake = open_read_only(settings)
        published = publications(lake)
        if not published:
            return Overview(settings.lake, settings.bucket, None, None, None, ())
        current = published[-1]
        documents = read_documents(settings, run_key(_dag_run_id(current))).current()
        pin = current_pin(settings)
        made_it = documents.plan is not None and documents.plan.run_id == current.run_id
        return Overview(
            lake=settings.lake,
            bucket=settings.bucket,
            publication=current,
            tables=read_tables(lake, current.snapshots, str(current.model_id), current.pca_id),
            work=_work(documents) if made_it else None,
            history=_history(lake, published),
            classified=classified_of(settings, lake, current),
            pin=str(pin) if pin else None,
            questions=[question for question in read_approvals(settings) if not question.decided],
        )


def read_run(settings: Settings, key: str) -> RunReport:
    """A run by its key (``run_key`` makes it of Airflow's run id), whatever became of it.

    Raises:
        UnknownRunError: when the run has no documents; says how to list the runs.
        FruitsError: when lake, catalog or bucket cannot be read; says which and what to do.
    """
    with explain_lake_errors(settings):
        documents = _documents_of(settings, key)
        lake = open_read_only(settings)
        published = publications(lake)
        planned = documents.planned
        run_id = next(iter(documents)).run_id
        outcome = outcome_of(documents)
        validated = documents.validated
        return RunReport(
            lake=settings.lake,
            bucket=settings.bucket,
            key=key,
            run_id=run_id,
            outcome=outcome,
            error=error_of(documents),
            planned=planned,
            work=_work(documents),
            gates=validated.gates if validated else (),
            pca=documents.projected,
            building=_building(planned) if planned and outcome == "published" else None,
            tables=_tables_of_run(lake, planned, documents) if planned else None,
            publication=next((publication for publication in published if publication.run_id == run_id), None),
            current=published[-1] if published else None,
            history=_history(lake, published),
            questions=documents.undecided,
            approvals=documents.approvals,
        )


def read_tables(lake: Lake, snapshots: Mapping[TableName, int], model_id: str, pca_id: str | None) -> Tables | None:
    """Quarantine, PCA version and map of the embeddings at these snapshots; None when one of them has expired."""
    if any(at not in lake.state(name).snapshots for name, at in snapshots.items() if name in DATA_TABLES):
        return None
    quarantine = read_quarantine(lake, snapshots["quarantine"], model_id)
    pictured = add_pictures(quarantine.examples, lake.settings)
    return Tables(
        quarantine=replace(quarantine, examples=pictured),
        pca=fitted_version(lake, snapshots["pca_models"], pca_id),
        map=read_map(lake, snapshots["embeddings"], pca_id) if pca_id else None,
    )


def read_quarantine(lake: Lake, snapshot_id: int, model_id: str) -> Quarantine:
    """Counts of a backbone's quarantined objects by reason, and the newest few of each."""
    columns = ("key", "etag", "reason", "detail", "size", "last_modified")
    counts: Counter[str] = Counter()
    newest: dict[str, pa.Table] = {}
    for batch in lake.batches("quarantine", snapshot_id, columns, model_id=model_id):
        rows = pa.Table.from_batches([batch])
        for reason in rows["reason"].unique().to_pylist():
            of_reason = rows.filter(pc.equal(rows["reason"], reason))
            counts[reason] += of_reason.num_rows
            together = pa.concat_tables([newest[reason], of_reason] if reason in newest else [of_reason])
            order = [("last_modified", "descending"), ("key", "ascending")]
            newest[reason] = together.sort_by(order).slice(0, MOST_EXAMPLES_OF_A_REASON)
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return Quarantine(ordered, _examples([newest[reason].to_pylist() for reason in ordered]))


def read_map(lake: Lake, snapshot_id: int, pca_id: str) -> EmbeddingMap:
    """Embeddings of a PCA version on their first two components: a sample, chosen by a hash of the key."""
    tasks = lake.scan("embeddings", snapshot_id, pca_id=pca_id).plan_files()
    total = sum(task.file.record_count for task in tasks)
    share = MOST_POINTS / min(total, MOST_ROWS_READ) if total > MOST_POINTS else 1.0
    points: dict[str, list[tuple[float, float]]] = {}
    read = 0
    for rows in lake.batches("embeddings", snapshot_id, ("key", "label", "embedding"), pca_id=pca_id):
        read += rows.num_rows
        chosen = [row for row, key in enumerate(rows["key"].to_pylist()) if zlib.crc32(key.encode()) < share * 2**32]
        sample = rows.take(pa.array(chosen, pa.int64()))
        for label, embedding in zip(sample["label"].to_pylist(), sample["embedding"], strict=True):
            x, y = (*embedding.values[:2].to_pylist(), 0.0)[:2]
            points.setdefault(label, []).append((x, y))
        if read >= MOST_ROWS_READ:
            break
    ordered = dict(sorted(points.items(), key=lambda item: (-len(item[1]), item[0])))
    return EmbeddingMap(ordered, read, total if read >= MOST_ROWS_READ else read)


def _documents_of(settings: Settings, key: str) -> RunDocuments:
    known = listed_runs(settings)
    documents = read_documents(settings, key, known[key].folder).current() if key in known else RunDocuments()
    if documents.of_maintenance:
        raise UnknownRunError(f"run {key}: a run of maintenance has no report; read the log of its task `maintain`")
    if not documents:
        listed = ", ".join(list(known)[:_KNOWN_SHOWN]) or "none"
        raise UnknownRunError(
            f"run {key}: no documents in {settings.lake}/runs. Either the run has not reached its task `plan` yet, or "
            "there was no such run, or its documents have expired. `airflow dags list-runs fruit_features` lists the "
            f"runs; known here: {listed}"
        )
    return documents


def _dag_run_id(publication: Publication) -> str:
    """Airflow's run id: a run that is planned again after it was published has ``#2`` and so on behind it."""
    return re.sub(r"#\d+$", "", str(publication.run_id))


def _work(documents: RunDocuments) -> Work:
    featurized = documents.featurized
    return Work(tuple(documents), featurized if featurized and featurized.images else None)


def _tables_of_run(lake: Lake, planned: PlannedRun, documents: RunDocuments) -> Tables | None:
    """The tables as a run sees them: the snapshots that its tasks wrote, or else the snapshots of its base."""
    snapshots: dict[TableName, int] = dict(planned.base.snapshots)
    for document in (documents.featurize, documents.pca):
        if document and document.done and document.done.wrote:
            snapshots |= document.done.wrote
    validated = documents.validated
    pca_id = validated.pca_id if validated else None
    if pca_id is None and documents.pca and documents.pca.done:
        pca_id = documents.pca.done.pca_id
    base = planned.base.publication
    if pca_id is None and base.model_id == planned.model_id:  # another backbone's PCA is not the run's
        pca_id = base.pca_id
    return read_tables(lake, snapshots, planned.model_id, pca_id)


def _building(planned: PlannedRun) -> Building | None:
    return Building(str(planned.base.publication.model_id), planned.remaining or 0) if planned.building else None


def _history(lake: Lake, published: Sequence[Publication]) -> tuple[PastPublication, ...]:
    """The newest publications, with what their PCA explains."""
    if not published:
        return ()
    versions = fitted_versions(lake, published[-1].snapshots["pca_models"])
    explained = {version.pca_id: version.explained_variance for version in versions}
    newest = in_full(lake.table("publications"), published[-MOST_PUBLICATIONS:])
    return tuple(PastPublication(publication, explained.get(str(publication.pca_id))) for publication in newest)


def _examples(by_reason: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[QuarantinedObject, ...]:
    """The first example of each reason, then the second of each, up to ``MOST_EXAMPLES``; ordered by reason."""
    places = [(rank, reason) for reason, rows in enumerate(by_reason) for rank in range(len(rows))]
    chosen = sorted(sorted(places)[:MOST_EXAMPLES], key=lambda place: place[::-1])
    return tuple(QuarantinedObject(**by_reason[reason][rank]) for rank, reason in chosen)
