"""From lake formats 1, that of Fruits 0.1, to 4 to format 5.

Format 2 has typed run documents that record snapshots, a branch for each attempt, and leases in ``leases/``, where
format 1 had ``turns/``. A run of format 1 that is under way continues: ``upgraded`` brings its documents into today's
form, and its rows are on its one branch, ``run_<run key>``. Format 3 has run documents, leases and pins by namespace,
and more columns in ``quarantine`` and ``publications``. A run that an earlier release planned keeps its folder. Format
4 has the tables ``label_statistics`` and ``photo_hashes``, and more columns in ``pca_models`` and ``publications``, one
of which is ``rules``. Format 5 has the tables ``calibration_sample`` and ``classifiers``. A run under way of an earlier
release publishes these tables as they were before the run.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from obstore.exceptions import AlreadyExistsError

from fruits.errors import FruitsError
from fruits.lake.branches import Snapshots
from fruits.lake.catalog import LAKE_FORMAT, Lake
from fruits.lake.publication import with_newer_tables
from fruits.lake.schemas import DATA_TABLES, TABLES, TableName
from fruits.run.state import WRITTEN
from fruits.settings import Settings
from fruits.stores import lake_store, list_files, read_json, remove_files, write_json

if TYPE_CHECKING:
    from fruits.run.documents import RunDocuments
    from fruits.run.state import PlannedRun

_COMMON = ("task", "run_id", "planned_at", "attempt", "state", "started_at", "finished_at", "wall_seconds", "versions",
           "seconds", "error")  # fmt: skip
_RESULTS: Mapping[str, tuple[str, ...]] = {
    "featurize": ("images", "features", "quarantine", "bytes", "images_per_second", "removed"),
    "pca": ("action", "reason", "pca_id", "n_statistics", "recomputed", "drift", "projected", "n", "k",
            "explained_variance", "explained_variance_ratio"),
    "validate": ("features", "quarantine", "probe", "gates"),
    "publish": ("publication_id", "sequence", "snapshots"),
    "maintain": ("dry_run", "found", "orphan_files", "expired_files", "publication_id", "dropped_versions",
                 "layout_before"),
}  # fmt: skip
_LAST: Mapping[str, str] = {
    "featurize": "images",
    "pca": "n_statistics",
    "validate": "gates",
    "publish": "publication_id",
    "maintain": "orphan_files",
}
"""A field that a task of format 1 wrote with its result, and never before."""
_NEWER = tuple(table.name for table in TABLES if table.since > 1)
"""The tables that runs of an earlier release do not know."""


def migrate(lake: Lake) -> None:
    """Bring a lake to this release's format, unless the lake has that format. ``Lake.open`` has added the columns."""
    if lake.format() < LAKE_FORMAT:
        take_over_lease(lake.settings)
        lake.set_format()


def take_over_lease(settings: Settings) -> bool:
    """Take over the lease of an earlier release, so that its run continues; returns whether there was one.

    Format 1 had ``turns/``; releases up to 0.2.0 had one lease for all namespaces, ``leases/<number>.json``.
    """
    store = lake_store(settings)
    turns = sorted(item["path"] for item in list_files(store, "turns"))
    old = turns or sorted(item["path"] for item in list_files(store, "leases") if item["path"].count("/") == 1)
    if old:
        try:
            held = read_json(store, old[-1])
        except FileNotFoundError:  # another process was quicker
            return True
        released = held["ended"] if turns else held["released"]
        lease = {**{name: held[name] for name in ("number", "run", "renewed_at")}, "released": released}
        name = old[-1].rpartition("/")[2]
        with suppress(AlreadyExistsError):
            write_json(store, f"leases/{settings.namespace}/{name}", lease, create=True)
        remove_files(store, *old)
    return bool(old)


def with_snapshots(lake: Lake, planned: "PlannedRun", documents: "RunDocuments") -> "RunDocuments":
    """The documents of a run, with the snapshots that a task of format 1 left on the run's one branch.

    Raises:
        FruitsError: when that branch is gone.
    """
    branch = f"run_{planned.key}"

    def heads(names: tuple[TableName, ...], task: str, read_at: datetime | None) -> Snapshots:
        """Where the branch is; refuses rows that were written after a task began to read, which it did not see."""
        found = {}
        for name in names:
            snapshot = lake.table(name).snapshot_by_name(branch)
            if snapshot is None:
                raise FruitsError(
                    f"run {planned.key}: its branch of table {name} is gone, and its rows with it; clear the run from "
                    "`wait_for_lease`, so that it is done again"
                )
            if read_at and snapshot.timestamp_ms > read_at.timestamp() * 1000:
                raise FruitsError(
                    f"run {planned.key}: table {name} was written to after its {task} job began; clear the run from "
                    f"`{task}`, so that every task works on the same rows"
                )
            found[name] = snapshot.snapshot_id
        return found

    def filled(document: Any, read: Mapping[str, tuple[TableName, ...]], wrote: tuple[TableName, ...] = ()) -> Any:
        if document is None or document.result is None or document.token or document.planned_at != planned.planned_at:
            return document  # not of format 1, or left from an earlier plan, which `check_tasks_before` refuses
        values: dict[str, Snapshots] = {
            field: heads(names, document.task, document.started_at) for field, names in read.items()
        }
        if wrote:
            values["wrote"] = heads(wrote, document.task, None)
        return document.model_copy(update={"result": document.result.model_copy(update=values)})

    tables = tuple(name for name in DATA_TABLES if name not in _NEWER)
    pca = tuple(name for name in WRITTEN["pca"] if name not in _NEWER)
    return replace(
        documents,
        featurize=filled(documents.featurize, {}, WRITTEN["featurize"]),
        pca=_completed(planned, filled(documents.pca, {"read": WRITTEN["featurize"]}, pca), "wrote"),
        validate=_completed(planned, filled(documents.validate, {"snapshots": tables}), "snapshots"),
    )


def _completed(planned: "PlannedRun", document: Any, field: str) -> Any:
    """A document with the base's snapshot of each table that is newer than the release that wrote the document."""
    snapshots = getattr(document.result, field) if document and document.result else None
    if snapshots is None:
        return document
    values = {field: {**{name: planned.base.snapshots[name] for name in _NEWER}, **snapshots}}
    return document.model_copy(update={"result": document.result.model_copy(update=values)})


def with_every_table(lake: Lake, planned: "PlannedRun") -> "PlannedRun":
    """The plan, with a snapshot of each table that is newer than the release that planned the run."""
    (publication,) = with_newer_tables(lake, [planned.base.publication])
    return planned.model_copy(update={"base": replace(planned.base, publication=publication)})


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A run document in today's form; a document of today's form is returned unchanged."""
    if "token" in document:
        return dict(document)
    common = {name: document[name] for name in _COMMON if name in document}
    common |= {"token": "", "retryable": not document.get("mendable", False)}
    task = document["task"]
    if task == "plan":
        return _plan_of_maintenance(document, common) if "found" in document else _plan(document, common)
    if _LAST[task] not in document:
        return {**common, "result": None}
    result = {name: document[name] for name in _RESULTS[task] if name in document}
    return {**common, "result": {**result, **_added(task, document)}}


def _added(task: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a result that format 1 lacks, or has under another name."""
    if task == "featurize":
        return {"photo_seconds": document["stages"], "wrote": None}
    if task == "pca":
        return {"recomputed": document.get("recomputed", False), "read": None, "wrote": None}
    if task == "maintain":
        return {"expired_files": document.get("expired_files", {})}
    return {"snapshots": None} if task == "validate" else {}


def _plan(document: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    if "counts" not in document:
        return {**common, "result": None}
    result = {
        "key": document["slug"],
        "run_id": document["run_id"],
        "planned_at": document["started_at"],
        "request": document["request"],
        "base": _base(document["base"]),
        "backbone": document["card"],
        **{name: document[name] for name in ("counts", "known_rows", "remaining", "building", "work", "other_work")},
        "unknown_keys": document["unknown_keys"],
    }
    return {**common, "result": result}


def _base(base: Mapping[str, Any]) -> dict[str, Any]:
    snapshots = dict(base["snapshots"])
    publications = snapshots.pop("publications")
    names = ("sequence", "publication_id", "pca_id", "model_id", "counts")
    return {
        "publication": {
            **{name: base[name] for name in names},
            "snapshots": snapshots,
            "probe_raw": base["probe"]["raw"],
            "probe_embedded": base["probe"]["embedded"],
        },
        "publications_snapshot": publications,
    }


def _plan_of_maintenance(document: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    result = None
    if "slug" in document:  # recorded at the end
        result = {"key": document["slug"], **{name: document[name] for name in ("run_id", "request", "found")}}
    return {**common, "task": "plan_maintenance", "result": result}
