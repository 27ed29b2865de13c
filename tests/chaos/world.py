"""A bucket, a lake, and the people and programs that work on them.

``World.sweep`` does what Airflow does with a run: task after task, a task again after an error that may pass, the run
again from its plan after an error that a person must fix. A fault meets the n-th effect of a run, before or after it.
At every effect the world looks at the lake as a reader does.
"""

import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr
from pyiceberg.io import InputFile
from pyiceberg.serializers import FromInputFile
from pyiceberg.table.metadata import TableMetadata

from fruits import stores
from fruits.cli import pin as pinning
from fruits.cli import rollback as rolling_back
from fruits.errors import FruitsError, TransientError
from fruits.lake import catalog as catalogs
from fruits.lake import reader as readers
from fruits.lake.approvals import approve
from fruits.lake.catalog import Lake, open_catalog
from fruits.lake.publication import publications, readable, readers_base
from fruits.photos.listing import ListedObject, batch_of
from fruits.run import lease as leases
from fruits.run import manifest as manifests
from fruits.run.documents import read_plan
from fruits.run.events import Burst, keep
from fruits.run.lease import release_lease
from fruits.run.request import MaintenanceRequest, RunRequest, resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.spark import classification
from fruits.spark import job as jobs
from fruits.steps import plan as planning
from fruits.steps import plan_maintenance as maintenance
from fruits.steps import prepare as preparing
from fruits.steps.plan import plan_run
from fruits.steps.plan_maintenance import plan_maintenance
from fruits.steps.prepare import prepare
from fruits.steps.publish import publish_run
from fruits.stores import effects_watched
from tests.chaos.faults import INJECTED, Fault, Faulty
from tests.chaos.files import MemoryFiles
from tests.chaos.jobs import CARD, WORK, first_of_all, numpy_jobs
from tests.chaos.memory import MemoryCatalog
from tests.chaos.observed import DAY, ObservedLake, chaos_settings
from tests.plans import joined_again

STEPS = ("prepare", "plan", "featurize", "pca", "validate", "publish")
FIRST = ("Training/Kiwi/0.jpg", "Training/Fig/1.jpg", "Training/Fig/2.jpg")
"""Photos that are always there: a PCA needs some."""

_MOST_TRIES = 3
_MOST_ATTEMPTS = 60


@dataclass
class World(ObservedLake):
    """The bucket and the lake of one history, and what people and programs do with them."""

    maintain: ModuleType = field(kw_only=True)
    runs: dict[str, RunRequest] = field(default_factory=dict)
    table: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    offset: timedelta = timedelta()

    def delete(self, choice: int) -> None:
        """Remove a photo from the bucket, but none of the first."""
        if keys := sorted(set(self.bucket) - set(FIRST)):
            del self.bucket[keys[choice % len(keys)]]

    def silence(self, choice: int) -> None:
        """Let the S3 server answer no more GETs of a photo, until the photo is uploaded again."""
        key = sorted(self.bucket)[choice % len(self.bucket)]
        self.bucket[key] = replace(self.bucket[key], silent=True)

    def answer(self) -> None:
        """Let the S3 server answer again for all photos."""
        self.bucket = {key: replace(photo, silent=False) for key, photo in self.bucket.items()}

    def ignore(self, *patterns: str) -> None:
        """Set FRUITS_IGNORE."""
        self.settings = self.settings.model_copy(update={"ignore": ("default", *patterns)})

    def approve(self) -> None:
        """Approve all deletions that wait for it."""
        for question in self.questions():
            if not question.decided:
                approve(self.settings, question, by="somebody", why="seen", via="fruits approve")

    def pin(self) -> None:
        """Pin readers to what they see."""
        with suppress(FruitsError):  # nothing is published yet
            pinning.run(Lake.open(self.settings), None, "a demonstration")
            self.check_readers()
            self.pinned = self.rows[1]

    def unpin(self) -> None:
        """Let runs publish again."""
        pinning.lift(self.settings)
        self.pinned = None

    def roll_back(self, choice: int, why: str | None = None) -> None:
        """Make an older publication current again; with ``why`` readers stay there."""
        lake = Lake.open(self.settings)
        if choices := readable(lake, publications(lake)):
            wanted = str(choices[choice % len(choices)].sequence)
            with suppress(FruitsError):  # pinned; or another run published, or maintenance expired it, in between
                rolling_back.run(lake, readers_base(lake), wanted, why)
                if why:
                    self.check_readers()
                    self.pinned = self.rows[1]

    def request(self, **params: Any) -> RunRequest:
        """What a run is asked to do; one that events have ``woken`` has no params."""
        if params.pop("woken", False):
            return resolve_request({}, self.settings, run_type="asset_triggered", keys_are_kept=True)
        day = params.pop("day", None)
        interval = None if day is None else (DAY + timedelta(days=day), DAY + timedelta(days=day + 1))
        started = {"run_type": "manual" if day is None else "backfill", "data_interval": interval}
        return resolve_request(params, self.settings, **started)

    def sweep(self, run_id: str, faults: Sequence[Fault] = (), **params: Any) -> None:
        """A run until it has published or found nothing to do."""
        self.runs[run_id] = self.request(**params)
        self.run_on(run_id, "prepare", faults, to_the_end=True)

    def notify(self, run_id: str, keys: Sequence[str], faults: Sequence[Fault] = ()) -> None:
        """Notifications name keys; the trigger keeps these, again after an error, and a run looks them up.

        The trigger deletes its messages when the keys are kept, so a fault before that lets them come again.
        """
        faulty = Faulty(self, run_id, faults)
        faulty.task = "notify"
        with met(faulty):
            for _ in range(_MOST_ATTEMPTS):
                faulty.dead = False
                with suppress(*INJECTED, FruitsError):
                    keep(self.settings, Burst(tuple(keys), datetime.now(UTC)))
                    break
        self.runs[run_id] = self.request(woken=True)
        self.run_on(run_id, "prepare", faults)

    def run_on(
        self, run_id: str, first: str, faults: Sequence[Fault] = (), *, last: str = STEPS[-1], to_the_end: bool = False
    ) -> None:
        """Do the tasks of a run from ``first`` to ``last``, again after an error that may pass.

        An error for a person ends the run, unless it is to come ``to_the_end``: then it starts again from its plan. A
        run that can read no photo ends after some tries, and Airflow gives its lease free.
        """
        faulty = Faulty(self, run_id, faults)
        task, tries = STEPS.index(first), 0
        with met(faulty):
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
                    if "could be read now" in str(error) and tries > _MOST_TRIES:
                        break
                    if for_a_person or tries > _MOST_TRIES:
                        task, tries = 0, 0
                    continue
                task, tries = task + 1, 0
                if not goes_on or STEPS[task - 1] == last:
                    return
            else:
                raise AssertionError(f"run {run_id} did not come to an end in {_MOST_ATTEMPTS} attempts")
        release_lease(self.settings, run_key(run_id))

    def attempt(self, task: str, run_id: str) -> bool:
        """One attempt of a task; whether the run goes on."""
        request, key = self.runs[run_id], run_key(run_id)
        if task == "prepare":
            prepare(self.settings, request)
        elif task == "plan":
            plan_run(self.settings, request, run_id)
            planned = read_plan(self.settings, key)
            self.note_plan(planned)
            return planned.work
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
        with met(faulty):
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


@contextmanager
def met(faulty: Faulty) -> Iterator[None]:
    """Inside, the faults of a run happen; pauses before another try take no time."""
    with effects_watched(faulty), pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", lambda _: None)
        yield


class NoThread:
    """In the place of the thread that renews a lease every half minute: no task here takes so long."""

    def __init__(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        """Nothing runs."""

    def join(self) -> None:
        """Nothing ran."""


class SmallParquetFile(pq.ParquetFile):
    """A file that is read without other threads: to wait for one takes longer than to read some rows."""

    def __init__(self, source: Any) -> None:
        super().__init__(source, pre_buffer=False)

    def read(self, columns: Sequence[str] | None = None) -> Any:
        """All rows, of some columns."""
        return super().read(columns, use_threads=False)

    def iter_batches(self, *args: Any, **named: Any) -> Any:
        """All rows, some at a time."""
        return super().iter_batches(*args, **named, use_threads=False)


def replace_the_outside(patch: pytest.MonkeyPatch, made: World) -> None:
    """Let the library find the world's bucket, backbone, clocks and catalog."""

    def listed(_: Settings, prefix: str, __: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        photos = [(key, photo) for key, photo in sorted(made.bucket.items()) if key.startswith(prefix)]
        yield batch_of([ListedObject(key, one.etag, one.size, one.last_modified) for key, one in photos])

    def looked_up(_: Settings, keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
        photos = [(key, made.bucket[key]) for key in keys if key in made.bucket]
        yield batch_of([ListedObject(key, one.etag, one.size, one.last_modified) for key, one in photos])

    patch.setattr(planning, "listed_batches", listed)
    patch.setattr(planning, "looked_up_batches", looked_up)
    patch.setattr(planning, "joined", joined_again)
    for module in (planning, preparing):
        patch.setattr(module, "staged_card", lambda _: CARD)
    patch.setattr(planning, "read_card", lambda *_: CARD)
    patch.setattr(preparing, "first_photos", lambda *_: [])
    patch.setattr(classification, "first_of_all", first_of_all)
    patch.setattr(preparing, "check_photos", lambda *_: None)
    for module in (maintenance, made.maintain):  # publications and folders are past the retention of a day
        patch.setattr(module, "datetime", clock(lambda: timedelta(hours=36)))
    patch.setattr(leases, "datetime", clock(lambda: made.offset))
    patch.setattr(leases, "threading", SimpleNamespace(Event=threading.Event, Thread=NoThread))
    if memory := made.memory:
        files = MemoryFiles()
        patch.setattr(stores, "obstore", files)
        patch.setattr(stores, "open_store", files.open_store)
        # Python writes JSON with line breaks ten times as slowly as without.
        patch.setattr(stores, "json", SimpleNamespace(loads=json.loads, dumps=lambda one, **_: json.dumps(one)))
        parquet = {"ParquetWriter": pq.ParquetWriter, "write_table": pq.write_table}
        patch.setattr(manifests, "pq", SimpleNamespace(ParquetFile=SmallParquetFile, **parquet))
        patch.setattr(Lake, "batches", batches_of_rows)
        patch.setattr(catalogs, "open_catalog", lambda _: memory)
        patch.setattr(readers, "open_catalog", lambda _, **__: memory)
        patch.setattr(readers, "missing_parts", lambda _: [])
        for module in (preparing, maintenance):  # there are no metadata files
            patch.setattr(module, "check_catalog_is_current", lambda _: None)
    else:
        opened = cache(lambda thread: open_catalog(made.settings))  # to open it takes longer than to use it
        patch.setattr(catalogs, "open_catalog", lambda _: opened(threading.get_ident()))
        patch.setattr(FromInputFile, "table_metadata", parsed_once(FromInputFile.table_metadata))


def batches_of_rows(
    lake: Lake,
    *scan: Any,
    keys: Sequence[str] | None = None,
    since: int | None = None,
    **equal: str,
) -> Sequence[pa.RecordBatch]:
    """As `Lake.batches`, of a table in memory."""
    rows = lake.read(*scan, **equal)
    chosen = rows if keys is None else rows.filter(pc.is_in(rows["key"], pa.array(keys, pa.string())))
    return chosen.to_batches()


def parsed_once(parse: Callable[[InputFile], TableMetadata]) -> Callable[[InputFile], TableMetadata]:
    """PyIceberg parses a file of metadata at each look at a table; a file of a name never changes."""
    known: dict[str, TableMetadata] = {}

    def parsed(file: InputFile) -> TableMetadata:
        if file.location not in known:
            known[file.location] = parse(file)
        return known[file.location]

    return parsed


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
    shm = Path("/dev/shm")  # noqa: S108 -- a file system in memory, where there is one
    folder = Path(tempfile.mkdtemp(prefix="fruits-chaos-", dir=shm if shm.is_dir() else None))
    place = {"lake": f"file://{folder}/lake", "catalog_uri": SecretStr(f"sqlite:///{folder}/catalog.db")}
    settings = chaos_settings().model_copy(update=place)
    memory = None if real else MemoryCatalog(settings.warehouse)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.callback(shutil.rmtree, folder)
        made = World(settings, memory, folder, maintain=stack.enter_context(numpy_jobs()))
        replace_the_outside(patch, made)
        for number, key in enumerate(FIRST):
            made.put(key, f"first {number}".encode())
        yield made
