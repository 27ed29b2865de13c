"""A bucket, a lake, the people and programs that work on them, and the faults that they meet.

``World.sweep`` does what Airflow does with a run: task after task, a task again after an error that may pass, the run
again from its plan after an error that a person must fix. A fault meets the n-th effect of a run, before or after it.
At every effect the world looks at the lake as a reader does.
"""

import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import SecretStr
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError

from fruits.analysis.pca import transform
from fruits.errors import DeniedError, FruitsError, TransientError
from fruits.lake import catalog as catalogs
from fruits.lake import reader as readers
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_statistics, load_versions
from fruits.lake.publication import Publication, publications, readable, roll_back
from fruits.lake.schemas import DATA_TABLES, TABLES
from fruits.photos.keys import KeyRules
from fruits.photos.listing import ListedObject
from fruits.run import lease as leases
from fruits.run.lease import current_lease
from fruits.run.request import MaintenanceRequest, RunRequest, resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.spark import job as jobs
from fruits.spark.executors import matrix
from fruits.steps import plan as planning
from fruits.steps import plan_maintenance as maintenance
from fruits.steps import prepare as preparing
from fruits.steps.plan import plan_run
from fruits.steps.plan_maintenance import plan_maintenance
from fruits.steps.prepare import prepare
from fruits.steps.publish import publish_run
from fruits.stores import effects_watched
from tests.chaos.jobs import BROKEN, CARD, WIDTH, WORK, moments_of_rows, numpy_jobs, same_numbers, vector_of
from tests.chaos.memory import MemoryCatalog

Kind = Literal["killed", "no answer", "denied", "refused", "rolled back", "maintained", "overtaken", "expired"]
KINDS: tuple[Kind, ...] = (
    "killed",  # the process is gone: none of its later effects happens
    "no answer",  # a server does not answer; the program goes on with the error
    "denied",  # a person must fix it
    "refused",  # a commit is refused; after: although it is in effect, as when its first answer was lost
    "rolled back",  # a person rolls back meanwhile
    "maintained",  # maintenance runs meanwhile, the lease notwithstanding
    "overtaken",  # another attempt of the same task runs meanwhile
    "expired",  # the clock jumps beyond the lease
)
STEPS = ("prepare", "plan", "featurize", "pca", "validate", "publish")
FIRST = ("Training/Kiwi/0.jpg", "Training/Fig/1.jpg", "Training/Fig/2.jpg")
"""Photos that are always there: a PCA needs some."""
DAY = datetime(2026, 11, 20, tzinfo=UTC)

_MOST_TRIES = 3
_MOST_ATTEMPTS = 60


class KilledError(BaseException):
    """The process of a task is gone."""


class NoAnswerError(ConnectionError):
    """A server did not answer."""


class RefusedError(CommitFailedException):
    """The catalog refused a commit."""


INJECTED = (KilledError, NoAnswerError, RefusedError)


@dataclass(frozen=True)
class Fault:
    """What happens at the ``number``-th effect of a run, before it or after it."""

    number: int
    moment: Literal["before", "after"]
    kind: Kind


@dataclass(frozen=True)
class Photo:
    """An object of the bucket."""

    etag: str
    data: bytes
    last_modified: datetime
    size: int = 1


@dataclass
class World:
    """The bucket and the lake of one history."""

    settings: Settings
    maintain: ModuleType
    memory: MemoryCatalog | None
    folder: Path
    bucket: dict[str, Photo] = field(default_factory=dict)
    runs: dict[str, RunRequest] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    last: list[Publication] = field(default_factory=list)
    foreign: set[int | None] = field(default_factory=set)
    table: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    offset: timedelta = timedelta()
    puts: int = 0

    def put(self, key: str, data: bytes, day: int = 0) -> None:
        """Upload a photo, over the one that is there."""
        self.puts += 1
        moment = DAY + timedelta(days=day, seconds=self.puts)
        self.bucket[key] = Photo(f"e{self.puts}", data, moment)

    def request(self, **params: Any) -> RunRequest:
        """What a run is asked to do."""
        day = params.pop("day", None)
        interval = None if day is None else (DAY + timedelta(days=day), DAY + timedelta(days=day + 1))
        started = {"run_type": "manual" if day is None else "backfill", "data_interval": interval}
        return resolve_request(params, self.settings, **started)

    def sweep(self, run_id: str, faults: Sequence[Fault] = (), **params: Any) -> None:
        """A run until it has published or found nothing to do."""
        self.runs[run_id] = self.request(**params)
        self.run_on(run_id, "prepare", faults, to_the_end=True)

    def run_on(
        self, run_id: str, first: str, faults: Sequence[Fault] = (), *, last: str = STEPS[-1], to_the_end: bool = False
    ) -> None:
        """Do the tasks of a run from ``first`` to ``last``, again after an error that may pass.

        An error for a person ends the run, unless it is to come ``to_the_end``: then it starts again from its plan.
        """
        faulty = Faulty(self, run_id, faults)
        task, tries = STEPS.index(first), 0
        with effects_watched(faulty):
            for _ in range(_MOST_ATTEMPTS):
                faulty.task, faulty.dead = STEPS[task], False
                try:
                    goes_on = self.attempt(STEPS[task], run_id)
                except (*INJECTED, FruitsError) as error:
                    for_a_person = isinstance(error, FruitsError) and not isinstance(error, TransientError)
                    if for_a_person and not to_the_end:
                        return
                    if "holds the lease" in str(error):
                        self.offset += leases.DURATION * 2
                    tries += 1
                    if for_a_person or tries > _MOST_TRIES:
                        task, tries = 0, 0
                    continue
                task, tries = task + 1, 0
                if not goes_on or STEPS[task - 1] == last:
                    return
        raise AssertionError(f"run {run_id} did not come to an end in {_MOST_ATTEMPTS} attempts")

    def attempt(self, task: str, run_id: str) -> bool:
        """One attempt of a task; whether the run goes on."""
        request, key = self.runs[run_id], run_key(run_id)
        if task == "prepare":
            prepare(self.settings, request)
        elif task == "plan":
            return plan_run(self.settings, request, run_id).work
        elif task == "publish":
            publish_run(self.settings, key)
        else:
            work = WORK[task]  # type: ignore[index]
            jobs._run(task, self.settings, key, lambda job: work(job, self.bucket))
        return True

    def keep_house(self, run_id: str, faults: Sequence[Fault] = (), *, abandoned_days: int = 3) -> None:
        """A run of maintenance, again after an error that may pass."""
        request = MaintenanceRequest(retention_days=1, retention_publications=2, abandoned_days=abandoned_days)
        faulty = Faulty(self, run_id, faults)
        faulty.task = "maintain"
        with effects_watched(faulty):
            for _ in range(_MOST_ATTEMPTS):
                faulty.dead = False
                try:
                    plan_maintenance(self.settings, request, run_id)
                    jobs._run_maintenance(self.settings, run_key(run_id), self.maintain.maintain)
                except (*INJECTED, FruitsError) as error:
                    if "holds the lease" in str(error):
                        self.offset += leases.DURATION * 2
                    continue
                return
        raise AssertionError("maintenance did not come to an end")

    def roll_back(self, choice: int) -> None:
        """Make an older publication current again."""
        lake = Lake.open(self.settings)
        if choices := readable(lake, publications(lake)):
            with suppress(FruitsError):  # another run published, or maintenance expired the snapshots, in between
                roll_back(lake, str(choices[choice % len(choices)].sequence))

    # What readers see.

    def state(self) -> str:
        """The tables right now, in a few words."""
        if self.memory is None:
            return "on a real catalog"
        if len(self.memory.tables) < len(TABLES):
            return "tables missing"
        if not self.last:
            return "nothing published"
        current = publications(Lake(self.settings))[-1].snapshots
        behind = sum(self.memory.tables[name].heads["main"] != at for name, at in current.items())
        return f"{behind} of {len(DATA_TABLES)} main branches behind" if behind else "settled"

    def look(self) -> None:
        """See that readers find whole publications, and that each ``main`` is where a publication has it."""
        if self.memory and len(self.memory.tables) == len(TABLES):
            self._look()

    def _look(self) -> None:
        lake = Lake(self.settings)
        head = lake.head("publications")
        assert head is not None
        if head not in self.seen:
            published = publications(lake, head)
            assert [one.sequence for one in published] == list(range(1, len(published) + 1)), "a sequence with gaps"
            for one in published[-1:]:
                self.check_whole(lake, one)
            self.seen.add(head)
            self.last = published[-2:]
        if not self.last:
            return
        for name in DATA_TABLES:
            allowed = {one.snapshots[name] for one in self.last}
            if len(self.last) == 1:
                allowed.add(lake.table(name).snapshots()[0].snapshot_id)
            assert lake.head(name) in allowed | self.foreign, f"main of {name} is at no publication"

    def check_whole(self, lake: Lake, publication: Publication) -> None:
        """The tables of a publication agree with each other: keys, ETags, embeddings, statistics."""
        rows = {name: lake.read(name, publication.snapshots[name]) for name in DATA_TABLES}
        features, embeddings = rows["features"].to_pylist(), rows["embeddings"].to_pylist()
        keys = [row["key"] for row in features] + rows["quarantine"]["key"].to_pylist()
        assert len(keys) == len(set(keys)), f"objects more than once: {[key for key in keys if keys.count(key) > 1]}"
        current = {row["key"]: row for row in embeddings if row["pca_id"] == publication.pca_id}
        assert len(current) == len([row for row in embeddings if row["pca_id"] == publication.pca_id]), "doubled"
        assert {(row["key"], row["etag"]) for row in features} == {(key, row["etag"]) for key, row in current.items()}
        versions = load_versions(lake, publication.snapshots["pca_models"], CARD.model_id)
        (version,) = [one for one in versions if one.pca_id == publication.pca_id]
        expected, _ = transform(version.pca, matrix(rows["features"]["vector"].combine_chunks()))
        found = np.array([current[row["key"]]["embedding"] for row in features])
        assert np.allclose(found, expected, atol=1e-5), "an embedding is not that of its vector"
        statistics = load_statistics(lake, publication.snapshots["pca_statistics"], CARD.model_id, WIDTH)
        anew = moments_of_rows(rows["features"])
        assert statistics.n == anew.n, "the statistics count other rows"
        assert same_numbers(statistics.mean, anew.mean), "mean"
        assert same_numbers(statistics.scatter, anew.scatter), "scatter"

    def check_readers(self) -> None:
        """Readers find whole publications now; on a real catalog this is not looked at in between."""
        if self.memory:
            self.look()
        elif (self.folder / "catalog.db").exists():
            with suppress(NoSuchTableError):
                self._look()

    def check_equals_a_full_run(self) -> None:
        """Readers find what one run over the bucket as it is would have made."""
        lake = Lake(self.settings)
        publication = publications(lake)[-1]
        self.check_whole(lake, publication)
        assert {name: lake.head(name) for name in DATA_TABLES} == dict(publication.snapshots), "a main lags behind"
        features = lake.read("features", publication.snapshots["features"]).to_pylist()
        quarantine = lake.read("quarantine", publication.snapshots["quarantine"]).to_pylist()
        found = {row["key"]: (row["etag"], row["label"], row["split"], tuple(row["vector"])) for row in features}
        found |= {row["key"]: (row["etag"], row["reason"]) for row in quarantine}
        assert found == self.of_a_full_run()
        assert current_lease(self.settings) is None, "the lease was not released"

    def of_a_full_run(self) -> dict[str, tuple[Any, ...]]:
        """What one run over the bucket makes of each object."""
        rules, rows = KeyRules.of(self.settings), {}
        for key, photo in self.bucket.items():
            label, split, rejection = rules.judge(key)
            reason = rejection or ("corrupt" if photo.data == BROKEN else None)
            rows[key] = (
                (photo.etag, reason)
                if reason
                else (photo.etag, label, split, tuple(float(x) for x in vector_of(photo.data)))
            )
        return rows


class Faulty:
    """A watcher of effects that lets the faults of a run happen, and looks at the lake at each effect."""

    def __init__(self, world: World, run_id: str, faults: Sequence[Fault]) -> None:
        self.world, self.run_id = world, run_id
        self.faults = {(fault.number, fault.moment): fault for fault in faults}
        self.count, self.task, self.dead, self.busy = 0, "", False, False

    def __call__(self, kind: str, path: str, moment: Literal["before", "after"]) -> None:
        if self.dead:
            raise KilledError
        if self.busy:
            return
        self.world.look()
        self.count += moment == "before"
        fault = self.faults.pop((self.count, moment), None)
        if fault is not None:
            self.busy = True
            try:
                self.happen(fault, kind, path)
            finally:
                self.busy = False
                self.world.table[f"{fault.kind} {moment}", subject(kind, path), self.world.state()] += 1

    def happen(self, fault: Fault, kind: str, path: str) -> None:
        """Let a fault happen."""
        if fault.kind == "killed":
            self.dead = True
            raise KilledError
        if fault.kind == "no answer":
            raise TransientError(f"{path}: no answer") if kind != "commit" else NoAnswerError(path)
        if fault.kind == "denied":
            raise DeniedError(f"{path}: denied")
        if fault.kind == "refused" and kind == "commit":
            raise RefusedError("Requirement failed: branch has changed" if fault.moment == "after" else "try again")
        self.meanwhile(fault)

    def meanwhile(self, fault: Fault) -> None:
        """Let somebody else do something, between two steps of the task."""
        world = self.world
        if fault.kind == "expired":
            world.offset += leases.DURATION * 2
        if fault.kind == "rolled back":
            world.roll_back(fault.number)
        if fault.kind == "maintained" and self.task != "maintain":
            world.keep_house(f"maintenance at {self.run_id} {fault.number}")
        if fault.kind == "overtaken" and self.task in STEPS:
            with suppress(FruitsError):
                world.attempt(self.task, self.run_id)


def subject(kind: str, path: str) -> str:
    """What an effect is done to, in a few words."""
    if kind == "commit":
        return f"commit to {path}"
    folder, _, name = path.rpartition("/")
    if "/leases" in folder:
        return f"{kind} of the lease"
    return f"{kind} of {'the manifest' if name.startswith('manifest') else name}"


@cache
def _settings() -> Settings:
    return Settings.load(
        lake="file:///nowhere", catalog_uri="sqlite:////nowhere", max_quarantined_share=1, keep_last_of_label=False
    )


class NoThread:
    """In the place of the thread that renews a lease every half minute: no task here takes so long."""

    def __init__(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        """Nothing runs."""

    def join(self) -> None:
        """Nothing ran."""


def replace_the_outside(patch: pytest.MonkeyPatch, made: World) -> None:
    """Let the library find the world's bucket, backbone, clocks and catalog."""

    def listed(_: Settings, prefix: str) -> Iterator[ListedObject]:
        for key, photo in sorted(made.bucket.items()):
            if key.startswith(prefix):
                yield ListedObject(key, photo.etag, photo.size, photo.last_modified)

    patch.setattr(planning, "list_objects", listed)
    for module in (planning, preparing):
        patch.setattr(module, "staged_card", lambda _: CARD)
    patch.setattr(planning, "read_card", lambda *_: CARD)
    patch.setattr(preparing, "first_photos", lambda *_: [])
    patch.setattr(preparing, "check_photos", lambda *_: None)
    for module in (maintenance, made.maintain):  # publications and folders are past the retention of a day
        patch.setattr(module, "datetime", clock(lambda: timedelta(hours=36)))
    patch.setattr(leases, "datetime", clock(lambda: made.offset))
    patch.setattr(leases, "threading", SimpleNamespace(Event=threading.Event, Thread=NoThread))
    if memory := made.memory:
        patch.setattr(catalogs, "open_catalog", lambda _: memory)
        patch.setattr(readers, "open_catalog", lambda _, **__: memory)
        patch.setattr(readers, "missing_parts", lambda _: [])
        for module in (preparing, maintenance):  # there are no metadata files
            patch.setattr(module, "check_catalog_is_current", lambda _: None)


def clock(offset: Callable[[], timedelta]) -> type[datetime]:
    """A `datetime` whose `now` is ahead."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + offset()

    return Ahead


@contextmanager
def world(*, real: bool = False) -> Iterator[World]:
    """A new bucket and a new lake: in memory, or on a SQLite file and in a folder."""
    shm = Path("/dev/shm")  # noqa: S108 -- run documents are files also when the catalog is in memory
    folder = Path(tempfile.mkdtemp(prefix="fruits-chaos-", dir=shm if shm.is_dir() else None))
    place = {"lake": f"file://{folder}/lake", "catalog_uri": SecretStr(f"sqlite:///{folder}/catalog.db")}
    settings = _settings().model_copy(update=place)
    memory = None if real else MemoryCatalog(settings.warehouse)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.callback(shutil.rmtree, folder)
        made = World(settings, stack.enter_context(numpy_jobs()), memory, folder)
        replace_the_outside(patch, made)
        for number, key in enumerate(FIRST):
            made.put(key, f"first {number}".encode())
        yield made
