"""One run: its key in the lake, and the decisions of its plan."""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime

from fruits.backbones.card import Card
from fruits.lake.approvals import Approval
from fruits.lake.publication import Base
from fruits.lake.schemas import TableName
from fruits.photos.ignore import Names
from fruits.run.request import Frozen, RunRequest

WRITTEN: Mapping[str, tuple[TableName, ...]] = {
    "featurize": ("features", "quarantine"),
    "pca": ("pca_statistics", "label_statistics", "calibration_sample", "pca_models", "embeddings", "classifiers"),
}
"""The tables that a task writes, by task."""


class PlannedRun(Frozen):
    """What a run will do. The plan decides it under the lease, and every later task works on exactly this value.

    Attributes:
        key: Key of the run in the lake: the name of its folder, and the start of its branches' names.
        run_id: Id that the run's rows and its publication carry: Airflow's, with ``#2`` when it is planned again after
            its publication.
        planned_at: When the run was planned; distinguishes the plans of one run.
        request: The run's request.
        base: The publication that the run starts from.
        backbone: The card of the run's backbone.
        counts: Objects by action, and those ``pending`` and ``ignored``.
        known_rows: Objects that the tables held under the backbone.
        remaining: Objects that await work after this run; None when that is unknown, because the run did not list the
            bucket.
        building: Whether readers keep their backbone after this run, because objects remain under the new one.
        work: Whether there is anything to do.
        other_work: Why the run goes on although no photo changed; None when there is no such reason.
        manifest: Name of the manifest in the run's folder: each plan has its own.
        unknown_keys: Requested keys that are neither in the bucket nor in the tables.
        undecided: Questions about work that the run left out, because a person has to approve it.
        approvals: The approvals that the run uses.
        pinned: Who pinned readers to a publication, when and why: the run has no work then. None without a pin.
        ignored: Objects that are none of ours, by the rule that ignores them.
        rules: Fingerprint of the rules for keys by which all rows are judged once the run is done; None when not all.
        events: Files of kept events that the run deals with (``fruits.run.events``).
        as_of: The date of the source of the sweep (``fruits.run.sources``); None when the bucket was asked.
    """

    key: str
    run_id: str
    planned_at: datetime
    request: RunRequest
    base: Base
    backbone: Card
    counts: Mapping[str, int]
    known_rows: int
    remaining: int | None
    building: bool
    work: bool
    other_work: str | None = None
    manifest: str = "manifest.parquet"
    unknown_keys: tuple[str, ...] = ()
    undecided: tuple[Approval, ...] = ()
    approvals: tuple[Approval, ...] = ()
    pinned: str | None = None
    ignored: Mapping[str, Names] = {}
    rules: str | None = None
    events: tuple[str, ...] = ()
    as_of: datetime | None = None

    @property
    def model_id(self) -> str:
        """Identity of the run's backbone."""
        return self.backbone.model_id


def run_key(run_id: str) -> str:
    """``run_id`` in a form for branch names and paths, still unique: ``manual_2026_11_22t09_30_00_1f3a``."""
    plain = re.sub(r"[^a-z0-9]+", "_", run_id.lower()).strip("_")
    return f"{plain[:60]}_{hashlib.sha256(run_id.encode()).hexdigest()[:6]}"
