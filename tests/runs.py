"""Runs as values, for tests that need no JVM: backbones, plans, task documents, and where they are written."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from fruits.analysis.moments import moments_of
from fruits.analysis.pca import PCA, fit
from fruits.analysis.quality import Confusion, Quality
from fruits.backbones.card import Card, Preprocessing
from fruits.lake.branches import Writer, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.publication import Base, Publication, current_base
from fruits.lake.schemas import DATA_TABLES, TableName
from fruits.run.documents import (
    _DOCUMENTS,
    Classified,
    Featurized,
    PlannedMaintenance,
    Projected,
    Published,
    TaskDocument,
    TaskName,
    Validated,
    run_store,
)
from fruits.run.request import MaintenanceRequest, RunRequest
from fruits.run.state import WRITTEN, PlannedRun, run_key
from fruits.settings import Settings
from fruits.stores import write_json

RUN_ID = "manual__2026-11-22T09:30:00+00:00"
MODEL_ID = "lite0-0123"
START = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
NO_OBJECTS = dict.fromkeys(("create", "update", "delete", "unchanged", "quarantined", "pending"), 0)
SNAPSHOTS: Mapping[TableName, int] = dict.fromkeys(DATA_TABLES, 1)


def card(model_id: str = MODEL_ID, width: int = 4) -> Card:
    """The card of a small backbone."""
    return Card(
        model_id=model_id,
        backbone="efficientnet-lite0",
        weights="default",
        weights_sha256=None,
        preprocessing=Preprocessing(height=8, width=8, resample="bicubic", crop_share=1.0),
        feature_width=width,
        flatbuffer_sha256="0" * 64,
        flatbuffer_bytes=1,
        licence="Apache-2.0",
        built_with={"tensorflow": "2"},
    )


def base(sequence: int = 0, snapshots: Mapping[Any, int] = SNAPSHOTS, publications: int = 1, **changed: Any) -> Base:
    """Where a run starts from."""
    return Base(Publication(sequence, snapshots, **changed), publications)


def planned(run_id: str = RUN_ID, **changed: Any) -> PlannedRun:
    """A run that is planned and has work to do."""
    values: dict[str, Any] = {
        "key": run_key(run_id),
        "run_id": run_id,
        "planned_at": START,
        "request": RunRequest(prefix=""),
        "base": base(),
        "backbone": card(),
        "counts": {**NO_OBJECTS, "create": 1},
        "known_rows": 0,
        "remaining": 0,
        "building": False,
        "work": True,
    }
    return PlannedRun(**{**values, **changed})


def featurized(**changed: Any) -> Featurized:
    """What `featurize` did."""
    values: dict[str, Any] = {
        "images": 1,
        "features": 1,
        "quarantine": {},
        "bytes": 9,
        "photo_seconds": {"get": 0.1, "infer": 1.25},
        "images_per_second": 70.3,
        "removed": 0,
        "wrote": {"features": 1, "quarantine": 1},
    }
    return Featurized(**{**values, **changed})


def projected(**changed: Any) -> Projected:
    """What `pca` did."""
    values: dict[str, Any] = {
        "action": "fit",
        "reason": "first fit",
        "pca_id": "pca-1",
        "n_statistics": 1,
        "recomputed": False,
        "drift": None,
        "projected": 1,
        "read": {"features": 1, "quarantine": 1},
        "wrote": dict.fromkeys(WRITTEN["pca"], 1),
    }
    return Projected(**{**values, **changed})


def classified(classifier_id: str = "lda-1", confusion: Confusion | None = None, **changed: Any) -> Classified:
    """The classifier that `pca` fitted."""
    values: dict[str, Any] = {
        "labels": 3,
        "n": 70,
        "shrinkage": 0.01,
        "temperature": 2.0,
        "calibrated_on": "held-out photos",
        "calibration_photos": 1_020,
        "error": 0.05,
        "quality": Quality(1_028, 0.9947, 0.0123, 0.951, 1.04),
    }
    return Classified(classifier_id=classifier_id, confusion=confusion, **{**values, **changed})


def validated(**changed: Any) -> Validated:
    """What `validate` found."""
    values: dict[str, Any] = {"features": 1, "quarantine": {}, "probe": {}, "gates": (), "snapshots": SNAPSHOTS}
    return Validated(**{**values, **changed})


def published(**changed: Any) -> Published:
    """What `publish` did."""
    return Published(**{"publication_id": "pub-000001-abcdef", "sequence": 1, "snapshots": SNAPSHOTS, **changed})


def planned_maintenance(run_id: str = "maintenance") -> PlannedMaintenance:
    """The plan of a run of maintenance."""
    request = MaintenanceRequest(retention_days=30, retention_publications=2)
    return PlannedMaintenance(key=run_key(run_id), run_id=run_id, request=request, found={})


def document(task: TaskName, minute: int = 0, result: Any = None, **changed: Any) -> TaskDocument[Any]:
    """A task's document, begun so many minutes after the run."""
    values: dict[str, Any] = {
        "task": task,
        "run_id": RUN_ID,
        "planned_at": None if task == "plan" else START,
        "attempt": 1,
        "token": "abc123",
        "state": "succeeded",
        "started_at": START + timedelta(minutes=minute),
        "finished_at": START + timedelta(minutes=minute, seconds=10),
        "wall_seconds": 10.0,
        "versions": {"fruits": "0.1.0", "spark": "4.1.4"},
        "seconds": {"session": 3.0, task: 5.0},
        "result": result,
    }
    return _DOCUMENTS[task](**{**values, **changed})


def write_documents(settings: Settings, *documents: TaskDocument[Any], run_id: str = RUN_ID) -> str:
    """Write the documents of a run; returns its key."""
    key = run_key(run_id)
    for one in documents:
        content = one.model_copy(update={"run_id": run_id}).model_dump(mode="json")
        write_json(run_store(settings, key), f"{one.task}.json", content)
    return key


def writer(run: str, task: str = "featurize") -> Writer:
    """The first attempt of a task of a run."""
    return Writer(run, f"{task}_1_abc123")


def start_branches(lake: Lake, run: str, *names: TableName) -> Base:
    """Fork a run's branches of tables from what is current; returns that."""
    current = current_base(lake)
    for name in names:
        start_branch(lake, name, writer(run).branch, current.snapshots[name])
    return current


def heads(lake: Lake, run: str, start: Base) -> dict[TableName, int]:
    """The snapshots at the ends of a run's branches; where it has none, those that it started from."""
    found = {name: lake.head(name, writer(run).branch) for name in DATA_TABLES}
    return {name: start.snapshots[name] if head is None else head for name, head in found.items()}


def plane(d: int = 3) -> PCA:
    """A PCA of two components of features of length ``d``."""
    return fit(moments_of(np.random.default_rng(1).normal(size=(9, d))), 2)
