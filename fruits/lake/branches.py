"""Branches: the rows that an attempt of a run writes stay on its own branch of each table until the publication.

A branch belongs to one attempt of one task. It forks from snapshots that were verified before, and every snapshot on it
carries the run and the attempt. So a process that an earlier attempt left behind cannot reach the branch of a later
attempt, and a snapshot that another process made is found before anything is published.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fruits.errors import ConflictError, FruitsError, TransientError
from fruits.lake.catalog import RUN_PROPERTY, Lake, check_snapshot
from fruits.lake.schemas import TABLES, TableName

if TYPE_CHECKING:
    from pyiceberg.table import Table, Transaction

log = logging.getLogger("fruits")

Snapshots = Mapping[TableName, int]
"""Snapshot ids by table."""

ATTEMPT_PROPERTY = "fruits.attempt"

_COMMIT_TRIES = 20
_MAIN = "main"
_PREFIX = "run_"
_SEPARATOR = "__"
_ATTEMPT = r"(featurize|pca|validate|publish|maintain|rollback)(_|$)"


@dataclass(frozen=True)
class Writer:
    """An attempt that writes: the key of its run, and the name of the attempt, such as ``featurize_2_1f3ac0``.

    ``earlier`` names the attempts before, the oldest first, whose snapshots its branch may go on from.
    """

    run: str
    attempt: str
    earlier: tuple[str, ...] = ()

    @property
    def branch(self) -> str:
        """The branch that belongs to the attempt, in every table."""
        return f"{_PREFIX}{self.run}{_SEPARATOR}{self.attempt}"

    @property
    def snapshot_properties(self) -> dict[str, str]:
        """What each snapshot of the attempt carries in its summary."""
        return {RUN_PROPERTY: self.run, ATTEMPT_PROPERTY: self.attempt}

    @property
    def commit(self) -> dict[str, Any]:
        """Keyword arguments of PyIceberg's ``append``, ``delete`` and ``overwrite`` that make them the attempt's."""
        return {"branch": self.branch, "snapshot_properties": self.snapshot_properties}


def run_of_branch(ref: str) -> str | None:
    """The key of the run that a branch belongs to; None for ``main`` and other refs."""
    if not ref.startswith(_PREFIX):
        return None
    name = ref.removeprefix(_PREFIX)
    run, _, attempt = name.rpartition(_SEPARATOR)
    # Lakes of format 1 have one branch for a run, named after its key alone.
    return run if re.match(_ATTEMPT, attempt) else name


def publication_tag(sequence: object) -> str:
    """The tag that keeps a table's snapshot of a publication from expiring; for ``""``, the start of all such tags."""
    return f"publication_{sequence}"


def start_branch(lake: Lake, name: TableName, branch: str, base: int) -> None:
    """Point ``branch`` at snapshot ``base``, wherever ``branch`` pointed before."""
    _set_ref(lake, name, branch, base, expected=None)


def resumable_heads(lake: Lake, writer: Writer, base: Snapshots) -> Snapshots:
    """Where an attempt goes on: the verified heads of the newest earlier attempt that has some, else ``base``.

    An earlier attempt that still writes cannot reach the later attempt: each writes to its own branch.
    """
    for number in reversed(range(len(writer.earlier))):
        before = Writer(writer.run, writer.earlier[number], writer.earlier[:number])
        try:
            return {name: verified_head(lake, name, before, snapshot_id) for name, snapshot_id in base.items()}
        except TransientError:
            raise
        except FruitsError as error:  # killed before it had branches; or another process wrote to them
            log.info("not resumed after attempt %s: %s", before.attempt, error)
    return base


def verified_head(lake: Lake, name: TableName, writer: Writer, base: int) -> int:
    """The snapshot at the end of an attempt's branch, when that attempt alone wrote everything since ``base``.

    The attempts that the writer names as ``earlier`` may have written too, each before the next.

    Raises:
        FruitsError: when the branch is gone, or holds a snapshot that another process wrote.
    """
    head = lake.head(name, writer.branch)
    if head is None:
        raise FruitsError(
            f"run {writer.run}: branch {writer.branch} of table {name} is gone, and its rows with it; clear the run "
            "from `wait_for_lease`, so that it is done again"
        )
    check_lineage(lake, name, head, base, writer)
    return head


def check_lineage(lake: Lake, name: TableName, head: int, base: int, writer: Writer) -> None:
    """See that every snapshot after ``base`` up to ``head`` carries the writer's run and attempt.

    Snapshots of the writer's earlier attempts may come before, in the order of the attempts.

    Raises:
        FruitsError: naming the first snapshot that another process wrote; or when ``base`` is no ancestor of ``head``.
    """
    metadata = lake.table(name).metadata
    attempts = [*writer.earlier, writer.attempt]
    snapshot_id: int | None = head
    while snapshot_id != base:
        snapshot = metadata.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
        if snapshot is None:
            raise FruitsError(
                f"run {writer.run}: snapshot {head} of table {name} does not descend from snapshot {base}, which the "
                "run started from; clear the run from `wait_for_lease`"
            )
        summary = snapshot.summary
        carried = (summary[RUN_PROPERTY], summary[ATTEMPT_PROPERTY]) if summary else (None, None)
        if carried[0] != writer.run or carried[1] not in attempts:
            raise FruitsError(
                f"run {writer.run}: snapshot {snapshot_id} of table {name} was written by run {carried[0]}, attempt "
                f"{carried[1]}, and not by attempt {writer.attempt}; nothing is published. Clear the run from "
                "`wait_for_lease`"
            )
        del attempts[attempts.index(carried[1]) + 1 :]  # a later attempt does not come before an earlier one
        snapshot_id = snapshot.parent_snapshot_id


def is_append(table: "Table", base: int, head: int) -> bool:
    """Whether all snapshots after ``base`` up to ``head`` only appended rows, or deleted single rows.

    The deleted rows may be among the appended ones where several attempts wrote: see ``attempts_since``.
    """
    snapshot_id: int | None = head
    while snapshot_id != base:
        snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
        if snapshot is None or snapshot.summary is None:
            return False
        summary = snapshot.summary
        appended = getattr(summary["operation"], "value", None) == "append"
        if summary["deleted-data-files"] or (summary["added-data-files"] and not appended):
            return False
        snapshot_id = snapshot.parent_snapshot_id
    return True


def attempts_since(table: "Table", base: int, head: int) -> set[str | None]:
    """The attempts that wrote the snapshots after ``base`` up to ``head``; None for a snapshot that names none."""
    attempts: set[str | None] = set()
    snapshot = table.snapshot_by_id(head)
    while snapshot is not None and snapshot.snapshot_id != base:
        attempts.add(snapshot.summary[ATTEMPT_PROPERTY] if snapshot.summary else None)
        parent = snapshot.parent_snapshot_id
        snapshot = table.snapshot_by_id(parent) if parent is not None else None
    return attempts


def advance_main(lake: Lake, name: TableName, *, expected: int, target: int) -> None:
    """Compare-and-swap: move ``main`` from snapshot ``expected`` to ``target``.

    Raises:
        ConflictError: when ``main`` is not at ``expected`` (any more).
    """
    _set_ref(lake, name, _MAIN, target, expected=expected)


def drop_run_branches(lake: Lake, run: str) -> None:
    """Remove the branches of all attempts of a run from all tables; their snapshots stay until they expire."""
    from pyiceberg.table.update import RemoveSnapshotRefUpdate

    there = lake.names()
    for name in (definition.name for definition in TABLES if definition.name in there):
        table = lake.table(name)
        branches = [ref for ref in table.metadata.refs if run_of_branch(ref) == run]
        if branches:
            _commit(lake, table, (), tuple(RemoveSnapshotRefUpdate(ref_name=branch) for branch in branches))


def change_refs(lake: Lake, name: TableName, tags: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """Set ``tags`` to snapshots and drop refs, all in one commit; ``dropped`` says where each was seen.

    Raises:
        ConflictError: when a ref to drop has moved since, so another process works with the ref.
    """
    from pyiceberg.table.update import AssertRefSnapshotId, RemoveSnapshotRefUpdate, SetSnapshotRefUpdate

    if tags or dropped:
        updates = (
            *(SetSnapshotRefUpdate(ref_name=tag, type="tag", snapshot_id=at) for tag, at in tags.items()),
            *(RemoveSnapshotRefUpdate(ref_name=ref) for ref in dropped),
        )
        unmoved = tuple(AssertRefSnapshotId(ref=ref, snapshot_id=at) for ref, at in dropped.items())
        _commit(lake, lake.table(name), unmoved, updates)


def commit_rows(lake: Lake, name: TableName, change: "Callable[[Transaction], None]", *, branch: str = _MAIN) -> None:
    """Commit the changes of ``change`` to ``branch`` of a table; again when another branch moved meanwhile.

    PyIceberg (0.12) repeats a commit that lost a race, but not a commit that is outdated before it is sent. PyIceberg
    also commits to a missing branch, as if the table were empty.

    Raises:
        TransientError: when the branch is gone, other commits were always quicker, or the answer to a commit that
            deletes was lost: PyIceberg repeats the commit, and takes its own deletes for those of another.
    """
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    for attempt in range(_COMMIT_TRIES):
        table = lake.table(name)
        if branch not in table.metadata.refs:
            raise TransientError(f"table {name}: branch {branch} is gone; run the task again")
        try:
            with table.transaction() as transaction:
                change(transaction)
        except (CommitFailedException, ValueError) as error:
            if isinstance(error, ValueError) and "older than last sequence number" not in str(error):
                raise
            time.sleep(0.05 * (attempt + 1))
        except ValidationException as error:
            raise TransientError(f"table {name}: rows left {branch} meanwhile ({error}); run it again") from error
        else:
            return
    raise TransientError(f"table {name}: {_COMMIT_TRIES} commits met another one; try again later")


def _set_ref(lake: Lake, name: TableName, ref: str, target: int, expected: int | None) -> None:
    from pyiceberg.table.update import AssertRefSnapshotId, SetSnapshotRefUpdate

    table = lake.table(name)
    check_snapshot(table, target)
    update = SetSnapshotRefUpdate(ref_name=ref, type="branch", snapshot_id=target)
    requirements = () if expected is None else (AssertRefSnapshotId(ref=ref, snapshot_id=expected),)
    _commit(lake, table, requirements, (update,))


def _commit(lake: Lake, table: "Table", requirements: tuple, updates: tuple) -> None:  # type: ignore[type-arg]
    """Commit, again when only another branch of the table moved meanwhile.

    A refused commit may be in effect: its answer was lost, the client sent the commit again, and the two collided.
    """
    from pyiceberg.exceptions import CommitFailedException

    for attempt in range(_COMMIT_TRIES):
        try:
            lake.catalog.commit_table(table, requirements, updates)
        except CommitFailedException as error:
            if _in_effect(table.refresh(), updates):
                return
            if "Requirement failed" in str(error):
                raise ConflictError(f"table {'.'.join(table.name())}: {error}") from error
            time.sleep(0.05 * (attempt + 1))
        else:
            return
    raise TransientError(f"table {'.'.join(table.name())}: {_COMMIT_TRIES} commits met another one; try again later")


def _in_effect(table: "Table", updates: tuple) -> bool:  # type: ignore[type-arg]
    """Whether all refs are where ``updates`` put them; an update without a snapshot removes its ref."""
    refs = {name: ref.snapshot_id for name, ref in table.metadata.refs.items()}
    return all(refs.get(update.ref_name) == getattr(update, "snapshot_id", None) for update in updates)
