"""Run documents: each task of a run leaves one JSON document, whatever its outcome.

The document is ``runs/<namespace>/<run key>/<task>.json`` in the lake. Each document is parsed once, here.
``migration`` brings the documents of earlier releases into today's form.
"""

import logging
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar, get_args

from obstore.store import ObjectStore

import fruits
from fruits.analysis.gates import Gate
from fruits.analysis.quality import CalibratedOn, Confusion, Quality
from fruits.denials import denials_explained
from fruits.disks import full_disks_explained
from fruits.errors import ConflictError, FruitsError, TransientError
from fruits.lake.approvals import Approval
from fruits.lake.branches import Snapshots, Writer
from fruits.lake.counters import RowCount
from fruits.photos.quarantine import Pending
from fruits.run.migration import upgraded
from fruits.run.request import Frozen, MaintenanceRequest
from fruits.run.state import PlannedRun
from fruits.settings import Settings
from fruits.stores import lake_store, list_files, read_json, write_json

log = logging.getLogger("fruits")

TaskName = Literal["plan", "featurize", "pca", "validate", "publish", "plan_maintenance", "maintain"]

TASKS: tuple[TaskName, ...] = ("plan", "featurize", "pca", "validate", "publish")
"""The tasks of a run that makes rows, in order. A run of maintenance has ``plan_maintenance`` and ``maintain``."""


RESUMED: frozenset[TaskName] = frozenset({"featurize"})
"""The tasks whose attempts go on where the attempt before ended."""


class Featurized(Frozen):
    """What ``featurize`` did: counts, core seconds by phase of a photo, and the snapshots that the task wrote.

    ``wrote`` is None in a document of lake format 1: the rows are then on the run's one branch. ``pending`` counts
    photos that could not be read now, by cause. ``manifest`` names the manifest without these photos, and
    ``carried_out`` has the number of its entries by action; both are None when the plan's own manifest was carried out
    unchanged.

    The counts are those of the whole run; ``resumed`` of the images were carried out by earlier attempts.
    ``photo_seconds``, ``images_per_second`` and ``usd_per_million`` are those of this attempt. The last is what the
    seconds of a million photos cost (FRUITS_CORE_HOUR_USD), without starts, storage and requests; None where unknown.
    """

    images: int
    features: int
    quarantine: Mapping[str, int]
    bytes: int
    photo_seconds: Mapping[str, float]
    images_per_second: float
    removed: int
    wrote: Snapshots | None
    pending: Mapping[str, int] = {}
    manifest: str | None = None
    carried_out: Mapping[str, int] | None = None
    resumed: int = 0
    usd_per_million: float | None = None

    @property
    def due(self) -> int:
        """Photos that the next run has to read: the pending photos that were not gone."""
        return sum(count for cause, count in self.pending.items() if cause != Pending.VANISHED)


class Classified(Frozen):
    """The classifier that ``pca`` fitted, and its figures.

    ``quality`` and ``confusion`` are None with too few photos to tell.
    """

    classifier_id: str
    labels: int
    n: int
    shrinkage: float
    temperature: float
    calibrated_on: CalibratedOn
    calibration_photos: int
    error: float
    quality: Quality | None
    confusion: Confusion | None = None


class Projected(Frozen):
    """What ``pca`` did: the PCA version in use and the reason, and the snapshots that the task read and wrote.

    ``gain`` is the share of the variance that a refit for drift would have explained in addition; None without drift.
    ``keep`` is the PCA version that readers keep if the new one fails its gates; both have the embeddings of all rows.
    ``undecided`` is the question of a refit that is due and waits for an approval. ``approvals`` has the approval of a
    refit that a person approved after the plan. ``classified`` is None without a classifier.
    """

    action: Literal["fit", "project", "none"]
    reason: str | None
    pca_id: str | None
    n_statistics: int
    recomputed: bool
    drift: float | None
    gain: float | None = None
    keep: str | None = None
    projected: int
    n: int | None = None
    k: int | None = None
    explained_variance: float | None = None
    explained_variance_ratio: tuple[float, ...] = ()
    read: Snapshots | None
    wrote: Snapshots | None
    undecided: tuple[Approval, ...] = ()
    approvals: tuple[Approval, ...] = ()
    classified: Classified | None = None


class Probe(Frozen):
    """Held-out accuracy of the linear probe on features and on embeddings; None where it was not measured.

    ``rows`` is the number of held-out photos that the probe was scored on.
    """

    raw: float | None = None
    embedded: float | None = None
    rows: int = 0


class Validated(Frozen):
    """What ``validate`` found, and the snapshots that it measured: exactly these may be published.

    ``pca_id`` is the PCA version to publish; a document of an earlier release has None, for that of ``pca``.
    ``counters`` counts the rows of all backbones; a document of an earlier release has None.
    ``approvals`` are those of required gates that failed.
    """

    features: int
    quarantine: Mapping[str, int]
    probe: Probe
    gates: tuple[Gate, ...]
    snapshots: Snapshots | None
    pca_id: str | None = None
    counters: tuple[RowCount, ...] | None = None
    approvals: tuple[Approval, ...] = ()


class Published(Frozen):
    """The publication that ``publish`` made."""

    publication_id: str
    sequence: int
    snapshots: Snapshots


class PlannedMaintenance(Frozen):
    """The request of a run of maintenance, and the work that the run found."""

    key: str
    run_id: str
    request: MaintenanceRequest
    found: Mapping[str, Any]


class Maintained(Frozen):
    """What ``maintain`` did: the publication of the compacted tables, if any, and the data that it dropped."""

    dry_run: bool
    found: Mapping[str, Any]
    orphan_files: Mapping[str, int]
    expired_files: Mapping[str, int]
    publication_id: str | None = None
    dropped_versions: tuple[str, ...] = ()
    dropped_backbones: tuple[str, ...] = ()
    layout_before: Mapping[str, Any] = {}


Result = TypeVar("Result", bound=Frozen)


class TaskDocument(Frozen, Generic[Result]):
    """The record of a task's last attempt.

    Attributes:
        task: The task.
        run_id: Id of the run, as the task's rows carry it.
        planned_at: The plan that the task worked on; None for the plan itself.
        attempt: 1, 2, 3 ...
        token: Distinguishes this attempt from others of the same number.
        earlier: Names of the attempts before at the same plan, the oldest first, of a task that goes on where they
            ended.
        state: Whether the attempt is running, succeeded or failed.
        started_at: When the attempt began.
        finished_at: When the attempt ended; None while the attempt runs.
        wall_seconds: Duration of the attempt.
        versions: Versions of the software at work.
        seconds: Wall seconds by phase.
        error: Why the attempt failed.
        retryable: Whether a retry may succeed; a person must fix anything else.
        conflict: Whether the task failed because another run had published since the plan.
        result: What the task did; None when the task did not get that far.
    """

    task: TaskName
    run_id: str
    planned_at: datetime | None = None
    attempt: int
    token: str
    earlier: tuple[str, ...] = ()
    state: Literal["running", "succeeded", "failed"]
    started_at: datetime
    finished_at: datetime | None = None
    wall_seconds: float | None = None
    versions: Mapping[str, str]
    seconds: Mapping[str, float] = {}
    error: str | None = None
    retryable: bool = True
    conflict: bool = False
    result: Result | None = None

    def writer(self, run: str) -> Writer:
        """The attempt as the writer of snapshots; ``run`` is the run's key."""
        return Writer(run, _attempt_name(self.task, self.attempt, self.token), self.earlier)

    @property
    def done(self) -> Result | None:
        """The result of an attempt that succeeded."""
        return self.result if self.state == "succeeded" else None


@dataclass(frozen=True)
class RunDocuments:
    """The documents of a run's tasks; None for a task without a document."""

    plan: TaskDocument[PlannedRun] | None = None
    featurize: TaskDocument[Featurized] | None = None
    pca: TaskDocument[Projected] | None = None
    validate: TaskDocument[Validated] | None = None
    publish: TaskDocument[Published] | None = None
    plan_maintenance: TaskDocument[PlannedMaintenance] | None = None
    maintain: TaskDocument[Maintained] | None = None

    def of(self, task: TaskName) -> TaskDocument[Any] | None:
        """The document of a task."""
        document: TaskDocument[Any] | None = getattr(self, task)
        return document

    def __iter__(self) -> Iterator[TaskDocument[Any]]:
        """The documents that there are, in the order of the tasks."""
        return (document for task in get_args(TaskName) if (document := self.of(task)))

    def __bool__(self) -> bool:
        """Whether there is any document."""
        return next(iter(self), None) is not None

    @property
    def planned(self) -> PlannedRun | None:
        """The plan of the run, when it succeeded."""
        return self.plan.done if self.plan else None

    @property
    def featurized(self) -> Featurized | None:
        """What ``featurize`` did, as far as it got."""
        return self.featurize.result if self.featurize else None

    @property
    def projected(self) -> Projected | None:
        """What ``pca`` did, as far as it got."""
        return self.pca.result if self.pca else None

    @property
    def validated(self) -> Validated | None:
        """What ``validate`` found, whatever its verdict."""
        return self.validate.result if self.validate else None

    @property
    def undecided(self) -> tuple[Approval, ...]:
        """What the run left out, because it waits for a person's approval; failed gates are not among it."""
        return tuple(one for task in (self.planned, self.projected) if task for one in task.undecided)

    @property
    def approvals(self) -> tuple[Approval, ...]:
        """The approvals that the run used."""
        return approvals_of(self.planned, self.projected, self.validated)

    @property
    def of_maintenance(self) -> bool:
        """Whether the run is one of maintenance."""
        return self.plan_maintenance is not None or self.maintain is not None

    def current(self) -> "RunDocuments":
        """Drop each document that is older than the document of the task before: an earlier plan left it."""
        kept = self
        since: datetime | None = None
        for document in self:
            if since is not None and document.started_at < since:
                kept = replace(kept, **{document.task: None})
            else:
                since = document.started_at
        return kept


def approvals_of(*tasks: PlannedRun | Projected | Validated | None) -> tuple[Approval, ...]:
    """The approvals that tasks used: the plan's, of a refit that `pca` asked for, of failed gates."""
    return tuple(one for task in tasks if task for one in task.approvals)


_DOCUMENTS: Mapping[TaskName, type[TaskDocument[Any]]] = {
    "plan": TaskDocument[PlannedRun],
    "featurize": TaskDocument[Featurized],
    "pca": TaskDocument[Projected],
    "validate": TaskDocument[Validated],
    "publish": TaskDocument[Published],
    "plan_maintenance": TaskDocument[PlannedMaintenance],
    "maintain": TaskDocument[Maintained],
}


def run_folder(settings: Settings, run: str) -> str:
    """The folder of a run's documents and manifest in the lake; ``run`` is the run's key.

    Namespaces of one lake have runs of the same keys. Up to 0.2.0 a folder was ``runs/<run key>``; a run that has such
    a folder keeps it.
    """
    old = f"runs/{run}"
    return old if any(list_files(lake_store(settings), old)) else f"runs/{settings.namespace}/{run}"


def run_store(settings: Settings, run: str) -> ObjectStore:
    """The store of a run's documents and manifest; ``run`` is the run's key."""
    return lake_store(settings, run_folder(settings, run))


def read_documents(settings: Settings, run: str, folder: str | None = None) -> RunDocuments:
    """The documents of a run's tasks, those that exist; ``folder`` is the run's, where a listing has shown it.

    Raises:
        FruitsError: when this release does not know a document's form.
    """
    store = lake_store(settings)  # to open the run's own folder would create it
    folder = folder or run_folder(settings, run)
    found = {}
    for task in get_args(TaskName):
        if document := _read_document(store, f"{folder}/{task}.json", task):
            found[document.task] = document
    return RunDocuments(**found)


def read_document(settings: Settings, run: str, task: TaskName, folder: str | None = None) -> TaskDocument[Any] | None:
    """The document of one task of a run, if it exists; ``folder`` is the run's, where a listing has shown it.

    Raises:
        FruitsError: when this release does not know the document's form.
    """
    return _read_document(lake_store(settings), f"{folder or run_folder(settings, run)}/{task}.json", task)


def _read_document(store: ObjectStore, path: str, task: TaskName) -> TaskDocument[Any] | None:
    try:
        document = upgraded(read_json(store, path))
        return _DOCUMENTS[document["task"]].model_validate(document)
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # no JSON, or not what this release expects
        raise FruitsError(
            f"run document {path}: not a document of `{task}` that Fruits {fruits.__version__} knows ({error}); use "
            "the release that wrote it, or clear the run from `wait_for_lease`"
        ) from error


@dataclass(frozen=True)
class ListedRun:
    """Where a run's documents are in the lake, and when any file there was last written."""

    folder: str
    written_at: datetime


def listed_runs(settings: Settings) -> dict[str, ListedRun]:
    """The runs that have documents, by their key, the last written first; from one listing."""
    runs: dict[str, ListedRun] = {}
    for item in list_files(lake_store(settings), "runs"):  # to open the folder itself would create it
        folder, _, _ = item["path"].rpartition("/")
        _, *namespace, run = folder.split("/")
        if namespace not in ([], [settings.namespace]):
            continue
        listed = ListedRun(folder, item["last_modified"])
        known = runs.get(run, listed)
        # A run that has a folder of 0.2.0 keeps it: that is the shorter one.
        runs[run] = ListedRun(min(known.folder, folder, key=len), max(known.written_at, listed.written_at))
    return dict(sorted(runs.items(), key=lambda run: (run[1].written_at, run[0]), reverse=True))


class TaskRecorder(Generic[Result]):
    """Collects a task's record while the task works."""

    def __init__(self, document: TaskDocument[Result]) -> None:
        self.document = document
        self._started = time.perf_counter()

    def record(self, result: Result) -> None:
        """Set what the task did."""
        self.document = self.document.model_copy(update={"result": result})

    def version(self, name: str, version: str) -> None:
        """Note the version of a program at work."""
        versions = {**self.document.versions, name: version}
        self.document = self.document.model_copy(update={"versions": versions})

    def run_id(self, run_id: str) -> None:
        """Set the id that the run's rows carry."""
        self.document = self.document.model_copy(update={"run_id": run_id})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; its wall seconds appear under ``seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.document.seconds.get(name, 0.0) + time.perf_counter() - start
            seconds = {**self.document.seconds, name: round(spent, 3)}
            self.document = self.document.model_copy(update={"seconds": seconds})

    def finish(self, error: BaseException | None) -> None:
        """Set the final state."""
        values: dict[str, Any] = {
            "state": "failed" if error else "succeeded",
            "finished_at": datetime.now(UTC),
            "wall_seconds": round(time.perf_counter() - self._started, 3),
        }
        if error:
            known = isinstance(error, FruitsError)
            values["error"] = str(error) if known else repr(error)
            values["retryable"] = not known or isinstance(error, TransientError)
            values["conflict"] = isinstance(error, ConflictError)
        self.document = self.document.model_copy(update=values)


@contextmanager
def task_document(
    settings: Settings, task: TaskName, run: str, run_id: str, planned_at: datetime | None = None
) -> Iterator[TaskRecorder[Any]]:
    """Write the document of a task's next attempt when it begins and when it ends, also when it fails.

    An attempt that a later attempt has overtaken does not write over the later one's document, and its errors are not
    for a person: whoever holds the lease must not release the lease under the later attempt.

    Raises:
        TransientError: at the end, when a later attempt of the task has begun meanwhile.
    """
    store, path = run_store(settings, run), f"{task}.json"
    try:
        before = read_json(store, path)
        attempt, earlier = int(before["attempt"]) + 1, _earlier_attempts(task, before, planned_at)
    except (FileNotFoundError, KeyError, TypeError, ValueError):  # no document, or an unreadable one: begin anew
        attempt, earlier = 1, ()
    recorder: TaskRecorder[Any] = TaskRecorder(
        _DOCUMENTS[task](
            task=task,
            run_id=run_id,
            planned_at=planned_at,
            attempt=attempt,
            token=secrets.token_hex(3),
            earlier=earlier,
            state="running",
            started_at=datetime.now(UTC),
            versions={"fruits": fruits.__version__, "python": platform.python_version()},
        )
    )
    _write(store, path, recorder.document)
    overtaken = f"run {run}: a later attempt of {task} has begun, so this one does not count"
    try:
        with denials_explained(), full_disks_explained(settings):
            yield recorder
    except BaseException as error:
        recorder.finish(error)
        if not _overtaken(store, path, recorder.document):
            _write_failure(store, path, recorder.document)
        elif isinstance(error, FruitsError):
            raise TransientError(overtaken) from error
        raise
    recorder.finish(None)
    if _overtaken(store, path, recorder.document):
        raise TransientError(overtaken)
    _write(store, path, recorder.document)


def _earlier_attempts(task: TaskName, before: Mapping[str, Any], planned_at: datetime | None) -> tuple[str, ...]:
    """The attempts at the same plan, up to that of the document ``before``; for tasks that resume, else none."""
    if task not in RESUMED or not before.get("token") or not before.get("planned_at"):
        return ()
    if datetime.fromisoformat(before["planned_at"]) != planned_at:
        return ()
    return (*before.get("earlier", ()), _attempt_name(task, before["attempt"], before["token"]))


def _attempt_name(task: TaskName, attempt: int, token: str) -> str:
    return f"{task}_{attempt}_{token}"


def _write_failure(store: ObjectStore, path: str, document: TaskDocument[Any]) -> None:
    """Write the document of a task that failed; where that is impossible, as on a full disk, its error goes first."""
    try:
        _write(store, path, document)
    except TransientError:
        raise
    except FruitsError as error:
        log.warning("run document %s stays as it is, for the failure of its task can't be written: %s", path, error)


def _overtaken(store: ObjectStore, path: str, document: TaskDocument[Any]) -> bool:
    """Whether the stored document belongs to another attempt."""
    stored = _read_document(store, path, document.task)
    return stored is not None and (stored.attempt, stored.token) != (document.attempt, document.token)


def _write(store: ObjectStore, path: str, document: TaskDocument[Any]) -> None:
    write_json(store, path, document.model_dump(mode="json"))


def find_plan(settings: Settings, run: str, folder: str | None = None) -> PlannedRun | None:
    """The plan of a run, by the run's key; None when the run has no finished plan, or is one of maintenance.

    ``folder`` is the run's, where a listing has shown it.
    """
    document = read_document(settings, run, "plan", folder)
    planned = document.done if document else None
    return planned if isinstance(planned, PlannedRun) else None


def read_plan(settings: Settings, run: str) -> PlannedRun:
    """The plan of a run, by the run's key.

    Raises:
        FruitsError: when the run has not been planned.
    """
    planned = find_plan(settings, run)
    if planned is None:
        raise FruitsError(
            f"run {run}: no finished plan in {settings.lake}/{run_folder(settings, run)}; clear the run from "
            "`wait_for_lease`, or correct --run"
        )
    return planned


def check_tasks_before(task: TaskName, planned: PlannedRun, documents: RunDocuments) -> None:
    """Raise unless the tasks before ``task`` succeeded on this plan, each on the snapshots of the task before it.

    Raises:
        FruitsError: naming the task to clear.
    """
    for before in TASKS[1 : TASKS.index(task)]:
        document = documents.of(before)
        if document is None or document.state != "succeeded":
            raise FruitsError(
                f"run {planned.key}: its {before} job has not succeeded; run that first "
                f"({document.error if document else 'it has not run'})"
            )
        if document.planned_at != planned.planned_at:
            raise FruitsError(
                f"run {planned.key}: it was planned again after its {before} job; clear the run from "
                "`wait_for_lease`, so that every task works on the same plan"
            )
    featurized, projected, validated = (_result(documents.of(name)) for name in ("featurize", "pca", "validate"))
    if task in ("validate", "publish"):
        _check_same_snapshots(planned, ("featurize", "pca"), featurized.wrote, projected.read)
    if task == "publish":
        base = planned.base.publication.snapshots  # of the table that runs only read
        _check_same_snapshots(
            planned, ("pca", "validate"), {**base, **featurized.wrote, **projected.wrote}, validated.snapshots
        )


def _result(document: TaskDocument[Any] | None) -> Any:
    return document.result if document else None


def _check_same_snapshots(
    planned: PlannedRun, tasks: tuple[TaskName, TaskName], written: Snapshots, read: Snapshots
) -> None:
    if dict(written) != dict(read):
        first, second = tasks
        raise FruitsError(
            f"run {planned.key}: its {first} job ran again after its {second} job; clear the run from `{second}`, so "
            "that every task works on the same rows"
        )
