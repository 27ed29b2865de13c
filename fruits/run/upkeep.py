"""Which parts of the lake are still needed, and which parts maintenance drops.

The upper half is pure: values in, decisions out. ``survey`` reads the values from the lake, and
``spark_jobs/maintain.py`` carries the decisions out.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from fruits.errors import FruitsError, TransientError
from fruits.lake.branches import publication_tag, run_of_branch
from fruits.lake.catalog import DataFile, Lake, TableState
from fruits.lake.hashes import hashes_are_due
from fruits.lake.publication import Publication, current_base, publications, readers_base
from fruits.lake.schemas import PUBLICATIONS, TABLES, TableName
from fruits.run.documents import ListedRun, find_plan, listed_runs
from fruits.run.request import MaintenanceRequest
from fruits.run.state import PlannedRun, run_key
from fruits.settings import Settings

log = logging.getLogger("fruits")

TARGET_FILE_BYTES = 128 * 2**20
SMALL_FILE_BYTES = TARGET_FILE_BYTES // 2  # at a larger bound, the two files made of 1.1 targets would be small again
FEWEST_SMALL_FILES = 5
LARGEST_DELETED_SHARE = 0.05  # of a file that is large enough: a reader reads these rows in vain

_TAG = publication_tag("")
_MOST_LISTED = 10


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run's documents: the run's key, the time of the last write, and the plan where it was read.

    A folder is not ``readable`` when its plan is damaged, or of a release that this one does not know.
    """

    key: str
    touched_at: datetime
    planned: PlannedRun | None = None
    readable: bool = True


@dataclass(frozen=True)
class Layout:
    """The files of a table at a snapshot; those ``to_rewrite`` are too small or hold too many deleted rows."""

    files: int
    delete_files: int
    bytes: int
    to_rewrite: int


@dataclass(frozen=True)
class TableUpkeep:
    """The refs to set and to drop in a table, and the snapshots to expire."""

    tags: Mapping[str, int]
    dropped_tags: Mapping[str, int]
    dropped_branches: Mapping[str, int]
    expired: tuple[int, ...]


@dataclass(frozen=True)
class Upkeep:
    """The work that a maintenance run finds. Orphan files are missing: only a listing of all files finds those."""

    retained: tuple[int, ...]
    in_flight: tuple[str, ...]
    tables: Mapping[TableName, TableUpkeep]
    layouts: Mapping[TableName, Layout]
    expired_versions: tuple[str, ...]
    retired_backbones: tuple[str, ...]
    old_folders: tuple[str, ...]
    hashes_due: bool = False

    @property
    def to_compact(self) -> tuple[TableName, ...]:
        """Tables with files to rewrite; not ``photo_hashes``, which is written anew as a whole."""
        return tuple(name for name, layout in self.layouts.items() if layout.to_rewrite and name != "photo_hashes")

    def to_document(self) -> dict[str, Any]:
        """Counts and names, as JSON types."""
        upkeeps = self.tables.values()
        return {
            "retained_publications": list(self.retained),
            "runs_in_flight": list(self.in_flight),
            "layout": {name: asdict(layout) for name, layout in self.layouts.items()},
            "expired_versions": list(self.expired_versions),
            "retired_backbones": list(self.retired_backbones),
            "snapshots_to_expire": {name: len(upkeep.expired) for name, upkeep in self.tables.items()},
            "branches_to_drop": sorted({name for upkeep in upkeeps for name in upkeep.dropped_branches}),
            "tags_to_set": sorted({name for upkeep in upkeeps for name in upkeep.tags}),
            "tags_to_drop": sorted({name for upkeep in upkeeps for name in upkeep.dropped_tags}),
            "run_folders_to_remove": list(self.old_folders),
            "hashes_due": self.hashes_due,
        }


def retained_publications(
    published: Sequence[Publication], request: MaintenanceRequest, now: datetime
) -> tuple[Publication, ...]:
    """The publications that stay readable, the oldest first; the current publication is always among them."""
    oldest = now - timedelta(days=request.retention_days)
    newest = published[-request.retention_publications :]
    return tuple(
        publication
        for publication in published
        if publication in newest or (publication.published_at and publication.published_at > oldest)
    )


def runs_in_flight(
    folders: Iterable[RunFolder], published: Collection[Publication], abandoned_days: int, now: datetime
) -> tuple[RunFolder, ...]:
    """The runs that may still publish: they have planned work, have not published, and have written something lately.

    Nobody knows whether a run with an unreadable plan has work, so such a run counts as well.
    """
    done = {publication.run_id for publication in published}
    oldest = now - timedelta(days=abandoned_days)

    def may_publish(planned: PlannedRun | None) -> bool:
        return planned is not None and planned.work and not planned.request.dry_run and planned.run_id not in done

    return tuple(
        folder
        for folder in folders
        if folder.touched_at > oldest and (may_publish(folder.planned) or not folder.readable)
    )


def table_upkeep(
    name: TableName, state: TableState, retained: Iterable[Publication], in_flight: Iterable[RunFolder]
) -> TableUpkeep:
    """The refs that a table is to have, and the snapshots that nothing needs then.

    A table needs ``main``, the snapshots of retained publications, the snapshots that runs in flight started from, and
    all snapshots on the branches of such runs, because a later task checks each of them.
    """
    runs = tuple(in_flight)
    retained_tags = (
        {}
        if name == PUBLICATIONS.name
        else {publication_tag(publication.sequence): publication.snapshots[name] for publication in retained}
    )
    keys = {run.key for run in runs}
    tags = {tag: snapshot for tag, snapshot in retained_tags.items() if state.refs.get(tag) != snapshot}
    dropped_tags = {ref: at for ref, at in state.refs.items() if ref.startswith(_TAG) and ref not in retained_tags}
    owners = {ref: run_of_branch(ref) for ref in state.refs}
    dropped_branches = {ref: at for ref, at in state.refs.items() if owners[ref] and owners[ref] not in keys}
    kept = [at for ref, at in state.refs.items() if ref not in {*dropped_tags, *dropped_branches, *tags}]
    # A run that an earlier release planned knows nothing of a newer table.
    bases = [run.planned.base.snapshots[name] for run in runs if run.planned and name in run.planned.base.snapshots]
    needed = {state.main, *retained_tags.values(), *kept, *bases}
    for ref, at in state.refs.items():
        if owners[ref] in keys:
            needed |= {*takewhile(lambda snapshot: snapshot not in bases, state.line(at))}
    return TableUpkeep(tags, dropped_tags, dropped_branches, tuple(sorted(state.snapshots - needed)))


def expired_versions(
    versions: Iterable[Mapping[str, Any]], retained: Collection[Publication], in_flight: Collection[RunFolder]
) -> tuple[str, ...]:
    """PCA versions (``pca_id``, ``model_id``, ``fitted_at``) that no retained publication and no run needs.

    A backbone that is built beside the published one uses its newest version, if it was published before.
    """
    known = sorted(versions, key=lambda version: version["fitted_at"])
    building = _building(retained, in_flight)
    newest = {version["model_id"]: version["pca_id"] for version in known if version["model_id"] in building}
    bases = {run.planned.base.publication.pca_id for run in in_flight if run.planned}
    needed = {*newest.values(), *(publication.pca_id for publication in retained), *bases}
    return tuple(version["pca_id"] for version in known if version["pca_id"] not in needed)


def retired_backbones(
    present: Iterable[str],
    published: Iterable[Publication],
    retained: Collection[Publication],
    in_flight: Collection[RunFolder],
) -> tuple[str, ...]:
    """Backbones with rows that readers had once, and that no retained publication and no run needs any more.

    A backbone that is being built is needed, and publications name it. Nobody knows the backbone of a run with an
    unreadable plan, so then none is retired.
    """
    if not all(run.readable for run in in_flight):
        return ()
    once = {publication.model_id for publication in published}
    needed = {publication.model_id for publication in retained} | _building(retained, in_flight)
    return tuple(sorted(name for name in present if name in once - needed))


def _building(retained: Iterable[Publication], in_flight: Iterable[RunFolder]) -> set[str | None]:
    """Backbones that are built beside the readers', and those of runs in flight."""
    runs = {run.planned.model_id for run in in_flight if run.planned}
    return {publication.building for publication in retained} | runs


def old_folders(
    folders: Iterable[RunFolder],
    retained: Iterable[Publication],
    in_flight: Iterable[RunFolder],
    request: MaintenanceRequest,
    now: datetime,
) -> tuple[str, ...]:
    """Run folders that nobody needs: older than the retention, and of no retained publication and no run in flight."""
    oldest = now - timedelta(days=request.retention_days)
    # A run that was planned again publishes as `run#2`: its folder is that of `run`.
    publishers = {run_key(str(publication.run_id).partition("#")[0]) for publication in retained}
    needed = publishers | {run.key for run in in_flight}
    return tuple(folder.key for folder in folders if folder.touched_at < oldest and folder.key not in needed)


def layout_of(files: Iterable[DataFile], *, rewrite_all: bool = False) -> Layout:
    """How many files are to be rewritten, by the rules that Iceberg's ``rewrite_data_files`` is given.

    A file is rewritten when it is one of several small files of its partition, or when many of its rows are deleted. So
    the cost grows with the changes since the last time, and not with the table.
    """
    files = tuple(files)
    small: Counter[str] = Counter()
    deleted: defaultdict[str, int] = defaultdict(int)
    for file in files:
        if file.deleted_rows and file.deleted_rows >= LARGEST_DELETED_SHARE * file.rows:
            deleted[file.partition] += 1
        elif file.bytes < SMALL_FILE_BYTES:
            small[file.partition] += 1
    rewritten = sum(
        small[partition] + deleted[partition]
        for partition in {*small, *deleted}
        if deleted[partition] or small[partition] >= FEWEST_SMALL_FILES
    )
    return Layout(
        files=len(files),
        delete_files=sum(file.delete_files for file in files),
        bytes=sum(file.bytes for file in files),
        to_rewrite=len(files) if rewrite_all else rewritten,
    )


def survey(lake: Lake, request: MaintenanceRequest, now: datetime) -> Upkeep:
    """Read the lake, and decide what to do."""
    # Tables before run documents: a snapshot that a run writes after this reading cannot be among those to expire.
    there = lake.names()
    tables = [table for table in TABLES if table.name in there]
    states = {table.name: lake.state(table.name) for table in tables}
    base = readers_base(lake) if request.dry_run else current_base(lake)
    published = publications(lake, base.publications_snapshot)
    existing = [
        publication for publication in published if publication == published[-1] or _is_there(publication, states)
    ]
    retained = retained_publications(existing, request, now)
    folders = run_folders(lake.settings, now - timedelta(days=request.abandoned_days))
    flying = runs_in_flight(folders, published, request.abandoned_days, now)
    snapshots = {**base.publication.snapshots, PUBLICATIONS.name: base.publications_snapshot}
    versions = lake.read("pca_models", snapshots["pca_models"], ("pca_id", "model_id", "fitted_at")).to_pylist()
    # Every run of a backbone writes its statistics, so they tell which backbones have rows.
    backbones = lake.read("pca_statistics", snapshots["pca_statistics"], ("model_id",))["model_id"].to_pylist()
    return Upkeep(
        retained=tuple(publication.sequence for publication in retained),
        in_flight=tuple(run.key for run in flying),
        tables={name: table_upkeep(name, state, retained, flying) for name, state in states.items()},
        layouts={
            table.name: layout_of(lake.files(table.name, snapshots[table.name]), rewrite_all=request.rewrite_all)
            for table in tables
        },
        expired_versions=expired_versions(versions, retained, flying),
        retired_backbones=retired_backbones(backbones, published, retained, flying),
        old_folders=old_folders(folders, retained, flying, request, now),
        hashes_due=hashes_are_due(lake, snapshots),
    )


def _is_there(publication: Publication, states: Mapping[TableName, TableState]) -> bool:
    """Whether no snapshot of a publication has expired; the retention may have been shorter before."""
    return all(snapshot in states[name].snapshots for name, snapshot in publication.snapshots.items())


def run_folders(settings: Settings, plans_since: datetime) -> list[RunFolder]:
    """The folders of all runs, with the plans of those that were written to after ``plans_since``."""
    return [_run_folder(settings, key, listed, plans_since) for key, listed in sorted(listed_runs(settings).items())]


def _run_folder(settings: Settings, key: str, listed: ListedRun, plans_since: datetime) -> RunFolder:
    """A run's folder. The log names a plan that can't be read; the rows of such a run are kept."""
    moment = listed.written_at
    try:
        return RunFolder(key, moment, find_plan(settings, key, listed.folder) if moment > plans_since else None)
    except TransientError:
        raise
    except FruitsError as error:
        log.warning("passed over: %s; the rows of the run are kept until the run counts as abandoned", error)
        return RunFolder(key, moment, readable=False)


def log_upkeep(upkeep: Upkeep, verb: str) -> None:
    """Log one line for each kind of work."""
    found = upkeep.to_document()
    log.info("retained publications: %s; runs in flight: %s", _listed(upkeep.retained), _listed(upkeep.in_flight))
    for name, layout in upkeep.layouts.items():
        log.info(
            "%s: %d files, %d delete files, %.1f MB; %s rewrite %d files and expire %d of its snapshots",
            name,
            layout.files,
            layout.delete_files,
            layout.bytes / 1e6,
            verb,
            layout.to_rewrite,
            len(upkeep.tables[name].expired),
        )
    for what, names in (
        ("drop PCA versions and their embeddings", upkeep.expired_versions),
        ("drop retired backbones and their rows", upkeep.retired_backbones),
        ("drop left-over branches", found["branches_to_drop"]),
        ("drop tags", found["tags_to_drop"]),
        ("set tags", found["tags_to_set"]),
        ("remove run folders", upkeep.old_folders),
    ):
        if names:
            log.info("%s %s: %s", verb, what, _listed(names))
    if upkeep.hashes_due:
        log.info("%s write photo_hashes of all features", verb)


def _listed(names: Sequence[object]) -> str:
    """The first few of ``names``, in words."""
    few = ", ".join(str(name) for name in names[:_MOST_LISTED])
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    return (few + more) or "none"
