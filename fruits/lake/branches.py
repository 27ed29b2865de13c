"""Run branches: what a run writes stays on its own branch of each table until it is published."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fruits.errors import ConflictError, TransientError
from fruits.lake.catalog import Lake
from fruits.lake.schemas import TableName

if TYPE_CHECKING:
    from pyiceberg.table import Table, Transaction

_COMMIT_TRIES = 20
_MAIN = "main"


def branch_name(slug: str) -> str:
    """The branch of a run; ``slug`` is from ``state.run_key``."""
    return f"run_{slug}"


def publication_tag(sequence: object) -> str:
    """The tag that keeps a table's snapshot of a publication from expiring; all of them start with that of ``""``."""
    return f"publication_{sequence}"


def start_branch(lake: Lake, name: TableName, branch: str, base: int) -> None:
    """Point ``branch`` at ``base``, whatever was on it: a retried task starts again from where the plan began."""
    _set_ref(lake, name, branch, base, expected=None)


def advance_main(lake: Lake, name: TableName, *, expected: int, target: int) -> None:
    """Compare-and-swap: move ``main`` from snapshot ``expected`` to ``target``.

    Raises:
        ConflictError: when ``main`` is not at ``expected`` (any more).
    """
    _set_ref(lake, name, _MAIN, target, expected=expected)


def drop_branch(lake: Lake, name: TableName, branch: str) -> None:
    """Remove ``branch`` if it exists; its snapshots stay until they expire."""
    from pyiceberg.table.update import RemoveSnapshotRefUpdate

    table = lake.table(name)
    if branch in table.metadata.refs:
        _commit(lake, table, (), (RemoveSnapshotRefUpdate(ref_name=branch),))


def change_refs(lake: Lake, name: TableName, tags: Mapping[str, int], dropped: Mapping[str, int]) -> None:
    """Set ``tags`` to snapshots and drop refs, all in one commit; ``dropped`` says where each was seen.

    Raises:
        ConflictError: when a ref to drop has moved since: somebody works with it.
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
    """Commit what ``change`` does to ``branch`` of a table; do it anew when another branch moved meanwhile.

    PyIceberg (0.12) repeats a commit that lost a race, but not one that it finds out of date before it sends it; and to
    a branch that is gone it commits as if the table were empty.

    Raises:
        TransientError: when the branch is gone, or others were always quicker.
    """
    from pyiceberg.exceptions import CommitFailedException

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
        else:
            return
    raise TransientError(f"table {name}: {_COMMIT_TRIES} commits met another one; try again later")


def _set_ref(lake: Lake, name: TableName, ref: str, target: int, expected: int | None) -> None:
    from pyiceberg.table.update import AssertRefSnapshotId, SetSnapshotRefUpdate

    table = lake.table(name)
    update = SetSnapshotRefUpdate(ref_name=ref, type="branch", snapshot_id=target)
    requirements = () if expected is None else (AssertRefSnapshotId(ref=ref, snapshot_id=expected),)
    _commit(lake, table, requirements, (update,))


def _commit(lake: Lake, table: "Table", requirements: tuple, updates: tuple) -> None:  # type: ignore[type-arg]
    """Commit, again when only another branch of the table moved meanwhile.

    A commit may be refused and yet be there: its answer was lost, and it met itself when it was sent again.
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
    """Whether all refs are where ``updates`` put them; an update that has no snapshot removes its ref."""
    refs = {name: ref.snapshot_id for name, ref in table.metadata.refs.items()}
    return all(refs.get(update.ref_name) == getattr(update, "snapshot_id", None) for update in updates)
