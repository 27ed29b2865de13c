"""Run documents: each task of a run leaves one JSON document, ``runs/<run>/<task>.json``, whatever its outcome."""

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import obstore
from obstore.store import ObjectStore

import fruits
from fruits.denials import denials_explained
from fruits.errors import FruitsError, TransientError
from fruits.settings import Settings
from fruits.stores import lake_store, read_json, write_json

TaskName = Literal["plan", "featurize", "pca", "validate", "publish", "maintain"]

TASKS: tuple[TaskName, ...] = ("plan", "featurize", "pca", "validate", "publish")
"""The tasks of the chain, in order. Maintenance has the tasks `plan` and `maintain`."""


def run_store(settings: Settings, slug: str) -> ObjectStore:
    """The folder of a run's documents and manifest."""
    return lake_store(settings, f"runs/{slug}")


def read_documents(settings: Settings, slug: str) -> dict[TaskName, dict[str, Any]]:
    """The documents of a run's tasks, those that exist."""
    store = lake_store(settings)  # to open the run's own folder would make it
    documents: dict[TaskName, dict[str, Any]] = {}
    for task in get_args(TaskName):
        try:
            documents[task] = read_json(store, f"runs/{slug}/{task}.json")
        except FileNotFoundError:
            continue
    return documents


def current_documents(documents: Mapping[TaskName, Mapping[str, Any]]) -> dict[TaskName, Mapping[str, Any]]:
    """Those that belong together: a task that started before the one ahead of it is left over from an earlier try."""
    kept: dict[TaskName, Mapping[str, Any]] = {}
    since = ""
    for task, document in documents.items():
        if document["started_at"] < since:
            break
        kept[task], since = document, document["started_at"]
    return kept


def of_maintenance(documents: Mapping[TaskName, Mapping[str, Any]]) -> bool:
    """Whether a run is one of maintenance: its plan finds what there is to do, the chain's counts objects."""
    return "found" in documents.get("plan", {})


def last_written(settings: Settings) -> dict[str, datetime]:
    """When anything in a run's folder was last written, by the run's slug, the newest first; from one listing."""
    written: dict[str, datetime] = {}
    for batch in obstore.list(lake_store(settings), prefix="runs"):  # to open the folder itself would make it
        for item in batch:
            slug = item["path"].split("/")[1]
            written[slug] = max(written.get(slug, item["last_modified"]), item["last_modified"])
    newest = sorted(written, key=lambda slug: (written[slug], slug), reverse=True)
    return {slug: written[slug] for slug in newest}


class RunDocument:
    """What a task records while it works; values are JSON types."""

    def __init__(self, task: TaskName, run_id: str, attempt: int) -> None:
        self.content: dict[str, Any] = {
            "task": task,
            "run_id": run_id,
            "attempt": attempt,
            "state": "running",
            "started_at": _now(),
            "versions": {"fruits": fruits.__version__, "python": platform.python_version()},
            "seconds": {},
        }
        self._started = time.perf_counter()

    def record(self, **values: Any) -> None:
        """Set top-level fields."""
        self.content.update(values)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; its wall seconds appear under ``seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.content["seconds"].get(name, 0.0) + time.perf_counter() - start
            self.content["seconds"][name] = round(spent, 3)

    def finish(self, error: BaseException | None) -> None:
        """Set the final state."""
        self.content["state"] = "failed" if error else "succeeded"
        if error:
            mendable = isinstance(error, FruitsError) and not isinstance(error, TransientError)
            said = str(error) if isinstance(error, FruitsError) else repr(error)
            self.record(error=said, mendable=mendable)
        self.content["finished_at"] = _now()
        self.content["wall_seconds"] = round(time.perf_counter() - self._started, 3)


@contextmanager
def run_document(settings: Settings, task: TaskName, run_id: str, slug: str, **known: Any) -> Iterator[RunDocument]:
    """Write the document of a task when it starts and when it ends, also when it fails. A retry counts its attempt.

    ``known`` is recorded from the start.
    """
    store = run_store(settings, slug)
    path = f"{task}.json"
    try:
        attempt = int(read_json(store, path)["attempt"]) + 1
    except FileNotFoundError:
        attempt = 1
    document = RunDocument(task, run_id, attempt)
    document.record(**known)
    write_json(store, path, document.content)
    try:
        with denials_explained():
            yield document
    except BaseException as error:
        document.finish(error)
        write_json(store, path, document.content)
        raise
    document.finish(None)
    write_json(store, path, document.content)


@contextmanager
def task_document(settings: Settings, task: TaskName, plan: Mapping[str, Any]) -> Iterator[RunDocument]:
    """The document of a task after the plan: see ``run_document``. It names the plan that the task works on."""
    with run_document(settings, task, plan["run_id"], plan["slug"], planned_at=plan["started_at"]) as document:
        yield document


def read_plan(settings: Settings, slug: str) -> dict[str, Any]:
    """The document of a run's plan.

    Raises:
        FruitsError: when the run has not been planned.
    """
    try:
        plan = read_json(run_store(settings, slug), "plan.json")
    except FileNotFoundError:
        plan = {}
    if plan.get("state") != "succeeded":
        raise FruitsError(
            f"run {slug}: no finished plan in {settings.lake}/runs/{slug}; clear the run from `wait_for_lease`, or "
            "correct --run"
        )
    return plan


def check_tasks_before(settings: Settings, task: TaskName, plan: Mapping[str, Any]) -> dict[TaskName, dict[str, Any]]:
    """See that the tasks before ``task`` have succeeded, and on the plan that stands: a run may be planned again.

    Returns:
        The run's documents.

    Raises:
        FruitsError: naming the task that has not.
    """
    documents = read_documents(settings, plan["slug"])
    for before in TASKS[1 : TASKS.index(task)]:
        document = documents.get(before, {})
        if document.get("state") != "succeeded":
            raise FruitsError(
                f"run {plan['slug']}: its {before} job has not succeeded; run that first ({document.get('error')})"
            )
        if document["planned_at"] != plan["started_at"]:
            raise FruitsError(
                f"run {plan['slug']}: it was planned again after its {before} job; clear the run from "
                "`wait_for_lease`, so that every task works on the same plan"
            )
    return documents


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
