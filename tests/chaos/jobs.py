"""The Spark jobs in numpy: same branches, documents, lease, statistics and gates, by the library's own functions.

Only what Spark and LiteRT compute is replaced. A photo's bytes are hashed into its vector, so a feature is a function
of the bytes. Rows are written by PyIceberg on the attempt's branch, in the order in which the real jobs write.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyiceberg.expressions import AlwaysTrue, And, EqualTo, In, Or
from pyiceberg.table.update import RemoveSnapshotsUpdate

from fruits.analysis.gates import Findings, evaluate, failed
from fruits.analysis.labels import LabelSums, sums_of
from fruits.analysis.moments import Moments, merge, moments_of, should_recompute, subtract
from fruits.analysis.pca import FittedSummary, components_asked, fit, orthonormality_error, pca_identity, refit_reason
from fruits.backbones.card import Card, Preprocessing
from fruits.errors import FruitsError, GateError
from fruits.lake.branches import commit_rows
from fruits.lake.classifier_tables import KEPT_PHOTOS, SAMPLED
from fruits.lake.counters import COUNTED, Counters, Kind
from fruits.lake.pca_tables import PCAVersion, load_statistics, load_versions, save_statistics, save_version
from fruits.lake.places import first_of
from fruits.lake.schemas import CALIBRATION_SAMPLE, DATA_TABLES, EMBEDDINGS, FEATURES, QUARANTINE, TableName, matrix
from fruits.photos.entry import Action
from fruits.photos.featurize import STAGES
from fruits.photos.keys import FIT_SPLIT
from fruits.photos.quarantine import DECODER, Pending, Reason
from fruits.run.documents import Probe, Projected, TaskName, Validated
from fruits.run.manifest import DUE_ETAG, Manifest, entries_of
from fruits.run.state import WRITTEN
from fruits.run.upkeep import Upkeep
from fruits.spark import featurizing
from fruits.spark import job as real
from fruits.spark.classification import update_classifier, update_sample
from fruits.spark.executors import OTHERS_SCHEMA, _embeddings, packed
from fruits.spark.featurizing import Outcomes
from fruits.spark.job import Job
from fruits.spark.statistics import update_labels
from fruits.spark.tables import Tables
from tests.loading import load_file

WIDTH = 4
CARD = Card("numpy-1", "numpy", "none", None, Preprocessing(8, 8), WIDTH, "0" * 64, 1, "none", {})
BROKEN = b"broken"
Bucket = Mapping[str, Any]


def vector_of(data: bytes) -> np.ndarray[Any, Any]:
    """The feature of a photo: a function of its bytes."""
    return np.frombuffer(hashlib.sha256(data).digest()[: 4 * WIDTH], np.uint32).astype(np.float32) / 2**32 + 0.1


class NumpyTables(Tables):
    """Tables that PyIceberg reads and writes; ``spark`` is never started."""

    def read(self, name: TableName, snapshot_id: int) -> Any:
        return self.lake.read(name, snapshot_id)

    def read_branch(self, name: TableName) -> Any:
        return self.lake.read(name, self.lake.head(name, self.writer.branch))

    def append(self, name: TableName, rows: Any) -> None:
        commit_rows(
            self.lake, name, lambda change: change.append(rows, **self.writer.commit), branch=self.writer.branch
        )

    @property
    def cores(self) -> int:
        return 1

    def delete_keys(self, name: TableName, keys: pa.Table, model_id: str, *, but_of_run: str | None = None) -> None:
        # PyIceberg (0.12) finds no row that is not equal to a text.
        others = {*self.read_branch(name)["run_id"].to_pylist()} - {but_of_run}
        if keys.num_rows:
            chosen = Or(In("run_id", others), EqualTo("etag", DUE_ETAG)) if but_of_run else AlwaysTrue()
            condition = And(EqualTo("model_id", model_id), In("key", keys["key"].to_pylist()), chosen)
            commit_rows(
                self.lake,
                name,
                lambda change: change.delete(condition, **self.writer.commit),
                branch=self.writer.branch,
            )

    def copy_keys(self, name: TableName, snapshot_id: int, keys: pa.Table, model_id: str, **values: str) -> None:
        rows = self.lake.read(name, snapshot_id, model_id=model_id)
        rows = rows.filter(pc.is_in(rows["key"], keys["key"].combine_chunks()))
        if rows.num_rows:
            self.append(name, pa.Table.from_pylist([{**row, **values} for row in rows.to_pylist()], schema=rows.schema))

    def call(self, procedure: str, name: TableName, arguments: str) -> Any:
        """Iceberg's procedures, as far as PyIceberg can do what they do."""
        if procedure == "rewrite_data_files":
            rows = self.read_branch(name)
            commit_rows(
                self.lake,
                name,
                lambda change: change.overwrite(rows, **self.writer.commit),
                branch=self.writer.branch,
            )
            return [{"rewritten_data_files_count": 2, "added_data_files_count": 1}]
        if procedure == "expire_snapshots":
            ids = [int(one.strip().rstrip("L")) for one in arguments.partition("array(")[2].rstrip(")").split(",")]
            self.lake.catalog.commit_table(self.lake.table(name), (), (RemoveSnapshotsUpdate(snapshot_ids=ids),))
            return [_Counts()]
        return []


class _Counts:
    """The answer of ``expire_snapshots``."""

    def asDict(self) -> dict[str, int]:  # noqa: N802 -- as a Spark row has it
        return {"deleted_files_count": 0}


def featurize(job: Job, bucket: Bucket) -> None:
    """The job itself; only Spark's part of it, from a chunk's photos to rows that are written, is numpy's."""

    def outcomes_of(job: Job, photos: Manifest, _: Sequence[str], **__: int) -> Outcomes:
        entries = [entry for batch in photos.table.to_batches() for entry in entries_of(batch)]
        return _outcomes([_outcome(job, entry, bucket) for entry in entries])

    job_script = script("featurize")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_script, "outcomes_of", outcomes_of)
        patch.setattr(job_script, "write_outcomes", _write_outcomes)
        job_script.featurize(job)


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> Outcomes:
    """The outcomes of photos; the rows of features are in place of files."""
    features = [row for row in rows if "vector" in row]
    others = [row for row in rows if "vector" not in row]
    return replace(
        Outcomes.of(
            [
                {
                    "features": len(features),
                    "bytes": 0,
                    "others": packed(pa.Table.from_pylist(others, OTHERS_SCHEMA)),
                    "uri": None,
                    **{f"seconds_{phase}": 0.0 for phase in STAGES},
                }
            ]
        ),
        files=features,
    )


def _write_outcomes(job: Job, outcomes: Outcomes) -> None:
    for definition, rows in (
        (FEATURES, pa.Table.from_pylist(outcomes.files, schema=FEATURES.schema)),
        (QUARANTINE, outcomes.quarantine),
    ):
        if rows.num_rows:
            job.tables.append(definition.name, rows)


def _outcome(job: Job, entry: Any, bucket: Bucket) -> dict[str, Any]:
    photo = bucket.get(entry.key)
    read = photo or entry
    if not entry.rejection and (photo is None or photo.silent):
        return {"key": entry.key, "pending": Pending.VANISHED if photo is None else Pending.UNANSWERED, "detail": "-"}
    row = {
        "key": entry.key,
        "etag": read.etag,
        "size": read.size,
        "last_modified": read.last_modified,
        "model_id": job.run.model_id,
        "run_id": job.run.run_id,
    }
    if entry.rejection or photo.data == BROKEN:
        return {**row, "reason": (entry.rejection or Reason.CORRUPT).value, "detail": "-", "decoder": DECODER}
    known = {"sha256": "0", "phash": 0, "width": 8, "height": 8, "format": "PNG"}
    return {**row, **known, "label": entry.label, "split": entry.split, "vector": vector_of(photo.data)}


def rows_of(job: Job, name: TableName) -> pa.Table:
    """The rows of the run's backbone at the job's starting snapshot."""
    return job.lake.read(name, job.start[name], model_id=job.run.model_id)


def moments_of_rows(rows: pa.Table) -> Moments:
    """Moments of the fit split."""
    fitted = rows.filter(pc.equal(rows["split"], FIT_SPLIT))
    return moments_of(matrix(fitted["vector"].combine_chunks())) if fitted.num_rows else Moments.empty(WIDTH)


def sums_of_rows(rows: pa.Table) -> LabelSums:
    """Sums by label of the fit split."""
    fitted = rows.filter(pc.equal(rows["split"], FIT_SPLIT))
    return sums_of(matrix(fitted["vector"].combine_chunks()), fitted["label"].to_pylist()) if fitted.num_rows else {}


def new_rows(job: Job) -> pa.Table:
    """The features that the run wrote."""
    rows = rows_of(job, "features")
    return rows.filter(pc.equal(rows["run_id"], job.run.run_id))


def first_of_all(job: Job) -> pa.Table:
    """What Spark would choose from all features for the sample that calibrates."""
    rows = first_of(rows_of(job, "features").select(SAMPLED), KEPT_PHOTOS)
    return rows.cast(pa.schema([CALIBRATION_SAMPLE.schema.field(name) for name in SAMPLED]))


def pca(job: Job, bucket: Bucket) -> None:
    job.start_branches(*WRITTEN["pca"])
    replaced = job.manifest().replaced_keys
    moments, recomputed = _update_statistics(job, replaced)
    sample = update_sample(job, replaced)
    job.tables.delete_keys("embeddings", replaced, job.run.model_id)
    versions = load_versions(job.lake, job.start["pca_models"], job.run.model_id)
    published = [one for one in versions if one.pca_id == job.run.base.publication.pca_id]
    current = next(reversed(published or versions), None)
    if current is None and moments.n == 0:
        raise FruitsError("PCA: no photo in the fit split")
    asked = components_asked(job.run.request.n_components, job.settings.max_components)
    reason = None
    if not (current and job.run.request.refit == "auto" and job.run.remaining != 0):
        summary = FittedSummary(current.pca.n, current.n_components) if current else None
        known = {"asked": asked, "n_now": moments.n, "n_new": 0, "drift": None, "max_drift": 1.0, "min_drift_rows": 2}
        reason = refit_reason(job.run.request.refit, summary, **known, growth=job.settings.refit_growth)
    if reason or current is None:
        fitted = fit(moments, job.run.request.n_components, job.settings.max_components)
        pca_id = pca_identity(job.run.model_id, fitted)
        if pca_id in {one.pca_id for one in versions}:
            job.tables.delete_versions("embeddings", (pca_id,))
        projected = _project(job, pca_id, fitted, rows_of(job, "features"))
        run = {"run_id": job.run.run_id, "fitted_at": datetime.now(UTC), "features_snapshot_id": job.start["features"]}
        current = PCAVersion(pca_id, job.run.model_id, fitted, asked, None, reason=str(reason), **run)
        save_version(job.lake, job.tables.writer, current)
    else:
        projected = _project(job, current.pca_id, current.pca, new_rows(job))
    classified = update_classifier(job, moments, sample)
    job.recorder.record(
        Projected(
            action="fit" if reason else "project",
            reason=reason,
            pca_id=current.pca_id,
            n_statistics=moments.n,
            recomputed=recomputed,
            drift=None,
            projected=projected,
            classified=classified,
            read={name: job.start[name] for name in WRITTEN["featurize"]},
            wrote=job.wrote(*WRITTEN["pca"]),
        )
    )


def _update_statistics(job: Job, replaced: pa.Table) -> tuple[Moments, bool]:
    moments = load_statistics(job.lake, job.start["pca_statistics"], job.run.model_id, WIDTH)
    gone = None
    if replaced.num_rows and moments.n:
        base = job.lake.read("features", job.run.base.snapshots["features"], model_id=job.run.model_id)
        gone = base.filter(pc.is_in(base["key"], replaced["key"].combine_chunks()))
        moments = subtract(moments, moments_of_rows(gone))
    new = new_rows(job)
    moments = merge(moments, moments_of_rows(new))
    update_labels(job, sums_of_rows(gone) if gone else {}, sums_of_rows(new))
    recomputed = should_recompute(moments)
    if recomputed:
        moments = moments_of_rows(rows_of(job, "features"))
    save_statistics(job.lake, job.tables.writer, job.run.model_id, moments, job.run.run_id)
    return moments, recomputed


def _project(job: Job, pca_id: str, fitted: Any, rows: pa.Table) -> int:
    constants = {"model_id": job.run.model_id, "pca_id": pca_id, "run_id": job.run.run_id}
    if rows.num_rows:
        batch = rows.select(["key", "etag", "label", "split", "vector"]).combine_chunks().to_batches()[0]
        job.tables.append(
            "embeddings", pa.Table.from_batches([_embeddings(batch, fitted, constants)], EMBEDDINGS.schema)
        )
    return int(rows.num_rows)


def counters_after(job: Job) -> Counters:
    """The base's counters, less the rows of the replaced keys, with the rows that the run wrote."""
    replaced = job.manifest().replaced_keys["key"].combine_chunks()
    changes: Counter[Kind] = Counter()
    for name in COUNTED:
        base = job.lake.read(name, job.run.base.snapshots[name], model_id=job.run.model_id)
        written = rows_of(job, name)
        changes.update(_kinds(written.filter(pc.equal(written["run_id"], job.run.run_id))))
        changes.subtract(_kinds(base.filter(pc.is_in(base["key"], replaced))))
    return (job.run.base.publication.counted or Counters({})).changed(changes)


def count_rows(tables: Sequence[pa.Table]) -> Counters:
    """The counters of all rows of some tables."""
    return Counters(Counter(kind for table in tables for kind in _kinds(table)))


def _kinds(rows: pa.Table) -> Iterator[Kind]:
    names = [name for name in ("model_id", "label", "split", "reason") if name in rows.column_names]
    return (Kind(**row) for row in rows.select(names).to_pylist())


def validate(job: Job, bucket: Bucket) -> None:
    features, quarantine, manifest = rows_of(job, "features"), rows_of(job, "quarantine"), job.manifest()
    pca_id = job.documents.pca.done.pca_id if job.documents.pca and job.documents.pca.done else None
    versions = load_versions(job.lake, job.start["pca_models"], job.run.model_id)
    version = next(one for one in versions if one.pca_id == pca_id)
    embeddings = job.lake.read("embeddings", job.start["embeddings"], pca_id=pca_id or "")
    written = Counter(
        (key, run == job.run.run_id)
        for table in (features, quarantine)
        for key, run in zip(table["key"].to_pylist(), table["run_id"].to_pylist(), strict=True)
    )
    actions = dict(zip(*(column.to_pylist() for column in manifest.columns("key", "action").columns), strict=True))
    misplaced = [
        key
        for key, action in actions.items()
        if (written[key, True], written[key, False]) != ((0, 0) if action == Action.DELETE else (1, 0))
    ]
    vectors = matrix(features["vector"].combine_chunks()) if features.num_rows else np.zeros((0, WIDTH))
    findings = Findings(
        planned=len(manifest),
        unaccounted=misplaced,
        expected_rows=job.run.known_rows + manifest.count(Action.CREATE) - manifest.count(Action.DELETE),
        rows=features.num_rows + quarantine.num_rows,
        new_rows=new_rows(job).num_rows,
        unusable_vectors=int((~np.isfinite(vectors)).any(1).sum()),
        wrong_widths=0,
        quarantined=quarantine.num_rows,
        scale_ratio=None,
        missing_embeddings=sum((Counter(features["key"].to_pylist()) - Counter(embeddings["key"].to_pylist())).values())
        + abs(features.num_rows - embeddings.num_rows),
        orthonormality_error=orthonormality_error(version.pca.components),
        explained_variance=float(version.pca.explained_variance_ratio.sum()),
        drift=None,
        duplicates_across_splits=0,
        unfitted_labels=(),
        probe_raw=None,
        probe_embedded=None,
        probe_rows=0,
    )
    gates = evaluate(findings, job.settings)
    job.recorder.record(
        Validated(
            features=features.num_rows,
            quarantine=Counter(quarantine["reason"].to_pylist()),
            probe=Probe(),
            gates=gates,
            snapshots={name: job.start[name] for name in DATA_TABLES},
            counters=counters_after(job).counts,
        )
    )
    if broken := failed(gates):
        raise GateError("; ".join(f"{gate.name}: {gate.detail}" for gate in broken))


WORK: Mapping[TaskName, Callable[[Job, Bucket], None]] = {"featurize": featurize, "pca": pca, "validate": validate}


@cache
def script(name: str) -> ModuleType:
    """A script of `spark_jobs`."""
    loaded: ModuleType = load_file(Path(__file__).parents[2] / "spark_jobs" / f"{name}.py", f"chaos_{name}")
    return loaded


@contextmanager
def numpy_jobs() -> Iterator[ModuleType]:
    """Inside, jobs work on ``NumpyTables``; gives the script of maintenance."""
    maintain = script("maintain")

    def no_spark() -> Any:
        return None

    @contextmanager
    def tables(task: TaskName, lake: Any, run: str, recorder: Any) -> Iterator[Tables]:
        yield NumpyTables(no_spark, lake, recorder.document.writer(run))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "_tables", tables)
        patch.setattr(featurizing, "server_answers", lambda *_: True)  # for most photos, always
        patch.setattr(maintain, "drop_dangling_deletes", lambda *_: None)
        patch.setattr(maintain, "check_rows", _check_rows)
        yield maintain


def _check_rows(tables: Tables, name: TableName, before: int, after: int, upkeep: Upkeep) -> None:
    rows: list[Any] = [tables.read(name, snapshot) for snapshot in (before, after)]
    was, now = (Counter(map(repr, table.to_pylist())) for table in rows)
    if not (upkeep.expired_versions or upkeep.retired_backbones):
        assert was == now, f"compaction changed the rows of {name}"


def same_numbers(found: Any, expected: Any) -> bool:
    """Whether arrays agree to 1e-9 of their scale."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    return found.shape == expected.shape and bool(
        np.abs(found - expected).max(initial=0) <= 1e-9 * max(1.0, math.sqrt(float((expected**2).sum())))
    )
