"""Publication: the one moment at which readers see a run.

The commit of a row to ``publications`` is the publication: a compare-and-swap on that one table, so either all of a run
is published or nothing. Then ``main`` of the other tables moves to the row's snapshots. If a crash comes between, the
next process that looks (a retry of the publisher, the next plan) completes the moves.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fruits.analysis.gates import Gate
from fruits.errors import ConflictError, FruitsError, TransientError
from fruits.lake.approvals import Approval
from fruits.lake.branches import (
    Snapshots,
    Writer,
    advance_main,
    change_refs,
    commit_rows,
    drop_run_branches,
    publication_tag,
    start_branch,
    verified_head,
)
from fruits.lake.catalog import RUN_PROPERTY, Lake, check_snapshot
from fruits.lake.counters import Counters, RowCount
from fruits.lake.schemas import DATA_TABLES, PUBLICATIONS, TableName

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

log = logging.getLogger("fruits")

_MOST_CHOICES = 10

_MAIN = "main"
_REWRITE = "replace"  # Iceberg's word for a snapshot with the rows of the one before in other files
_REPEATING = ("rollback__", "maintenance__")  # starts of run ids
_SETTLE_TRIES = 10
_MOST_FILES = 50  # of `publications`: a reader opens every file
_FINDINGS = ("gates", "counters")  # The columns that grow with the gates and the labels: thousands of values in a row.


@dataclass(frozen=True)
class Publication:
    """A row of ``publications``; sequence 0 with the tables' first snapshots when nothing was ever published.

    ``rules`` is the fingerprint of the rules for keys by which all rows under ``model_id`` were judged; None when that
    is not known.
    ``counters`` counts the rows of all backbones; None when an earlier release published, there are no rows, or the
    row is so old that its counters were dropped.
    """

    sequence: int
    snapshots: Snapshots
    publication_id: str | None = None
    run_id: str | None = None
    published_at: datetime | None = None
    model_id: str | None = None
    pca_id: str | None = None
    counts: Mapping[str, int] | None = None
    probe_raw: float | None = None
    probe_embedded: float | None = None
    probe_rows: int | None = None
    building: str | None = None
    gates: tuple[Gate, ...] = ()
    approvals: tuple[Approval, ...] = ()
    rules: str | None = None
    counters: tuple[RowCount, ...] | None = None
    classifier_id: str | None = None

    @property
    def counted(self) -> Counters | None:
        """The counters by kind; None when there are none."""
        return None if self.counters is None else Counters.of(self.counters)

    @property
    def rows(self) -> int:
        """Rows that readers see: features and quarantined objects."""
        return sum((self.counts or {}).get(name, 0) for name in ("features", "quarantine"))

    @property
    def remaining(self) -> int | None:
        """Objects that awaited work after the run; None when nobody knew, because the run did not list the bucket."""
        return (self.counts or {}).get("remaining")

    @property
    def made_by_run(self) -> bool:
        """Whether a run made the publication; a rollback or a compaction repeats the counts of an older one."""
        return not str(self.run_id).startswith(_REPEATING)


@dataclass(frozen=True)
class Base:
    """Where a run starts from: the current publication, and the snapshot of ``publications`` that says so."""

    publication: Publication
    publications_snapshot: int

    @property
    def snapshots(self) -> Snapshots:
        """Snapshots of all tables, ``publications`` included."""
        return {**self.publication.snapshots, "publications": self.publications_snapshot}


def publications(lake: Lake, snapshot_id: int | None = None) -> list[Publication]:
    """All publications at a snapshot (None: now), as ``publications_of`` reads them."""
    return with_newer_tables(lake, publications_of(lake.table("publications"), snapshot_id))


def with_newer_tables(lake: Lake, published: Sequence[Publication]) -> list[Publication]:
    """The publications, each with a snapshot of every table: the first one of a table that is newer than itself."""
    named = [publication.snapshots.keys() for publication in published]
    newer = [name for name in DATA_TABLES if not all(name in names for names in named)]
    first = {name: _first(lake, name) for name in _there(lake, newer)}
    return [replace(publication, snapshots={**first, **publication.snapshots}) for publication in published]


def _there(lake: Lake, names: Sequence[TableName]) -> list[TableName]:
    """Those of ``names`` that the lake has."""
    there = lake.names() if names else ()
    return [name for name in names if name in there]


def publications_of(table: "Table", snapshot_id: int | None = None) -> list[Publication]:
    """All publications in ``table``, which need not be in a catalog; the oldest first.

    Rows of another program are left out. The newest publication alone has its gates and counters: there may be one a
    minute. ``in_full`` reads those of others.
    """
    at = own_head(table) if snapshot_id is None else snapshot_id
    rows = _read(table, at, without=_FINDINGS).to_pylist()
    published = sorted(map(_from_row, rows), key=lambda publication: publication.sequence)
    return [*published[:-1], *in_full(table, published[-1:], at)]


def in_full(table: "Table", published: Sequence[Publication], snapshot_id: int | None = None) -> list[Publication]:
    """Some publications with their gates and counters; they follow one another in ``table``, the oldest first."""
    if not published:
        return []
    at = own_head(table) if snapshot_id is None else snapshot_id
    rows = _read(table, at, first=published[0].sequence, last=published[-1].sequence).to_pylist()
    found = {row["sequence"]: _from_row(row) for row in rows}
    findings = [found[publication.sequence] for publication in published]
    return [
        replace(publication, gates=full.gates, counters=full.counters)
        for publication, full in zip(published, findings, strict=True)
    ]


def _read(
    table: "Table", at: int, *, without: Sequence[str] = (), first: int | None = None, last: int | None = None
) -> pa.Table:
    """Rows of ``publications`` at a snapshot without some columns: those from a first sequence to a last one."""
    from pyiceberg.expressions import AlwaysTrue, And, GreaterThanOrEqual, LessThanOrEqual

    snapshot = check_snapshot(table, at)
    schema = table.schema() if snapshot.schema_id is None else table.schemas()[snapshot.schema_id]
    columns = tuple(field.name for field in schema.fields if field.name not in without)
    from_first = AlwaysTrue() if first is None else GreaterThanOrEqual("sequence", first)
    to_last = AlwaysTrue() if last is None else LessThanOrEqual("sequence", last)
    return table.scan(And(from_first, to_last), columns, snapshot_id=at).to_arrow()


def own_head(table: "Table") -> int:
    """The newest snapshot of ``main`` of ``publications`` without rows of another program.

    Each snapshot that adds or removes publications names its run. Snapshots of other programs do not, and lie above
    the newest one that does. A rewrite of files leaves the rows as they are, whoever did it.

    Before the first publication, the head is the empty snapshot that ``Lake.open`` made with the table and marked, so
    rows of another program are never taken for publications. A lake of Fruits 0.1 has no marks: where no snapshot names
    a run, ``main`` itself is the head, and rows of another program cannot be told from publications.

    Raises:
        FruitsError: when there is no branch ``main``.
    """
    above: list[Snapshot] = []
    head = _main_of(table, "publications")
    snapshot = table.snapshot_by_id(head)
    while snapshot is not None:
        summary = snapshot.summary
        if summary and summary[RUN_PROPERTY]:
            *_, own = (snapshot, *takewhile(_is_rewrite, reversed(above)))
            return int(own.snapshot_id)
        above.append(snapshot)
        parent = snapshot.parent_snapshot_id
        snapshot = table.snapshot_by_id(parent) if parent is not None else None
    return head


def _is_rewrite(snapshot: "Snapshot") -> bool:
    return snapshot.summary is not None and getattr(snapshot.summary["operation"], "value", None) == _REWRITE


def current_base(lake: Lake) -> Base:
    """The current publication; completes a publication that was interrupted after its commit.

    A ``main`` at a snapshot of no publication was moved by another program, and so was a ``main`` of ``publications``
    at a snapshot of no run. Such rows are never adopted: the log names table and snapshot, the tag
    ``foreign_<snapshot>`` keeps the rows, and ``main`` goes back to the publication.

    Raises:
        TransientError: when others kept moving the tables.
    """
    for _ in range(_SETTLE_TRIES):
        # Read before the publications: see _settle.
        mains = {name: _main_of(lake.table(name), name) for name in _there(lake, DATA_TABLES)}
        head = _put_back_publications(lake)
        published = publications(lake, head)
        base = Base(published[-1] if published else _before_all(lake), head)
        if mains == base.publication.snapshots:
            return base
        _keep_foreign(lake, mains, published)
        _settle(lake, mains, base.publication)
    raise TransientError("publications: other runs kept publishing while the current one was looked for; try again")


def readers_base(lake: Lake) -> Base:
    """The current publication as readers find it; unlike ``current_base``, this changes nothing."""
    head = own_head(lake.table("publications"))
    published = publications(lake, head)
    return Base(published[-1] if published else _before_all(lake), head)


def publish(
    lake: Lake, base: Base, writer: Writer, publication: Publication, *, onto: int | None = None
) -> Publication:
    """Make ``publication`` the current one, if ``base`` still is.

    Publishing the same run again changes nothing.

    Args:
        lake: The lake.
        base: Where the run started from.
        writer: The attempt that publishes; the row is added on its branch of ``publications``.
        publication: The row; its snapshots become ``main`` of their tables.
        onto: A snapshot of ``publications`` with the rows of the base's in fewer files; the row is added to it.

    Raises:
        ConflictError: when another run published, or a person pinned readers, since ``base``; readers keep what they
            have.
    """
    _put_back_publications(lake)
    start = base.publications_snapshot if onto is None else onto
    start_branch(lake, "publications", writer.branch, start)
    _add_row(lake, writer, start, publication)
    target = lake.head("publications", writer.branch)
    if target is None:
        raise TransientError(f"table publications: branch {writer.branch} vanished while publishing; try again")
    try:
        advance_main(lake, "publications", expected=base.publications_snapshot, target=target)
    except ConflictError as error:
        before = published_from(lake, base, str(publication.run_id))  # by this run, or by another attempt of it
        if before is None:
            overtaken = publications(lake)[-1:] != publications(lake, base.publications_snapshot)[-1:]
            cause = "another run published" if overtaken else "a person pinned readers"
            raise _conflict(publication.run_id, cause) from error
        publication = before
    current_base(lake)
    return publication


def check_current(lake: Lake, base: Base, run_id: str) -> None:
    """See that no other run has published since this run's base.

    Raises:
        ConflictError: when another run did, so that this run's result could not be published.
    """
    current = publications(lake)
    moved = bool(current) and current[-1].sequence > base.publication.sequence
    if moved and published_from(lake, base, run_id) is None:
        raise _conflict(run_id)


def _conflict(run_id: str | None, cause: str = "another run published") -> ConflictError:
    return ConflictError(
        f"{cause} after run {run_id} was planned, so its result would overwrite newer work; nothing was "
        "published. Clear the run from `wait_for_lease`, or wait for the next one."
    )


def _add_row(lake: Lake, writer: Writer, start: int, publication: Publication) -> None:
    """Append the row. At ``_MOST_FILES`` files, rewrite all rows into one file, because readers open every file.

    Then as many of the newest rows keep their counters. A run after a rollback to an older one counts all rows anew.
    """
    rows = _with_known_columns(lake, _to_rows(publication))
    table = lake.table("publications")
    snapshot = table.snapshot_by_id(start)
    files = int((snapshot.summary or {})["total-data-files"]) if snapshot else 0
    if files < _MOST_FILES:
        commit_rows(lake, "publications", lambda change: change.append(rows, **writer.commit), branch=writer.branch)
        return
    recent = publication.sequence - _MOST_FILES
    old, new = _read(table, start, without=("counters",), last=recent - 1), _read(table, start, first=recent)
    together = pa.concat_tables([_as(old, rows.schema), _as(new, rows.schema), rows])
    commit_rows(lake, "publications", lambda change: change.overwrite(together, **writer.commit), branch=writer.branch)


def _as(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the columns and types of a schema; columns that the rows lack are null."""
    for field in schema:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows.select(schema.names).cast(schema)


def readable(lake: Lake, published: Sequence[Publication]) -> list[Publication]:
    """The publications whose snapshots still exist in every table; no other publication can be read any more."""
    existing = {name: lake.state(name).snapshots for name in _there(lake, DATA_TABLES)}
    return [
        publication
        for publication in published
        if all(snapshot in existing[name] for name, snapshot in publication.snapshots.items())
    ]


def roll_back(lake: Lake, wanted: str, *, base: Base | None = None, now: datetime | None = None) -> Publication:
    """Make an older publication current again, as a new row on top; ``wanted`` is its id or sequence.

    The new row has the snapshots and findings of the older publication. So a later rollback can return to any
    publication, also to the one that was rolled back. A run that was planned before the rollback conflicts and does not
    publish. A rollback to the current publication changes nothing and returns that publication. ``base`` is what
    readers had when the older publication was chosen (None: what they have now).

    Raises:
        FruitsError: when there is no such publication or its snapshots have expired; lists the publications to choose.
        ConflictError: when another run published since ``base``; that publication stays.
    """
    base = base or current_base(lake)
    published = publications(lake, base.publications_snapshot)
    chosen = choose(lake, published, wanted)
    if same_content(chosen, base.publication):
        return base.publication
    moment = now or datetime.now(UTC)
    sequence = base.publication.sequence + 1
    (full,) = in_full(lake.table("publications"), [chosen])
    row = replace(
        full,
        sequence=sequence,
        publication_id=publication_id(sequence, chosen.snapshots),
        run_id=f"rollback__{moment.isoformat()}",
        published_at=moment,
        approvals=(),
    )
    for name, at in row.snapshots.items():  # else maintenance might expire the snapshots before the row is committed
        change_refs(lake, name, {publication_tag(sequence): at}, {})
    if not readable(lake, [chosen]):  # maintenance expired them first
        raise FruitsError(f"publication {chosen.publication_id}: its snapshots have just expired; choose another")
    writer = Writer(f"rollback_{moment:%Y%m%dt%H%M%S%f}", "rollback")
    try:
        publication = publish(lake, base, writer, row)
    except ConflictError as error:
        raise ConflictError(
            f"another run published while {chosen.publication_id} was rolled back to; nothing was changed. Look at "
            "what is current now (`fruits status`), and roll back again; with --pin no run publishes afterwards"
        ) from error
    drop_run_branches(lake, writer.run)
    return publication


def refuse_runs_under_way(lake: Lake, base: Base, now: datetime | None = None) -> None:
    """Let every run that was planned from ``base`` conflict, without a new publication.

    ``main`` of ``publications`` moves on to a snapshot with the same rows, so the compare-and-swap of such a run fails.

    Raises:
        ConflictError: when another run published since ``base``; nothing has changed then.
    """
    _put_back_publications(lake)
    writer = Writer(f"pin_{now or datetime.now(UTC):%Y%m%dt%H%M%S%f}", "rollback")
    start_branch(lake, "publications", writer.branch, base.publications_snapshot)
    no_rows = _with_known_columns(lake, PUBLICATIONS.schema.empty_table())
    commit_rows(lake, "publications", lambda change: change.append(no_rows, **writer.commit), branch=writer.branch)
    target = verified_head(lake, "publications", writer, base.publications_snapshot)
    try:
        advance_main(lake, "publications", expected=base.publications_snapshot, target=target)
    except ConflictError as error:
        raise ConflictError(
            f"another run published after {base.publication.publication_id} was chosen; nothing was changed, and "
            "readers have the newer publication. Look at that publication (`fruits status`), and try again"
        ) from error
    drop_run_branches(lake, writer.run)


def same_content(one: Publication, other: Publication) -> bool:
    """Whether readers see the same rows in both; equal snapshots are not enough, because the backbones may differ."""
    return (dict(one.snapshots), one.model_id, one.pca_id) == (dict(other.snapshots), other.model_id, other.pca_id)


def choose(lake: Lake, published: Sequence[Publication], wanted: str) -> Publication:
    """The publication with the id or sequence ``wanted``, when all its snapshots still exist."""
    choices = readable(lake, published)
    newest = ", ".join(str(choice.publication_id) for choice in reversed(choices[-_MOST_CHOICES:])) or "none"
    named = (row for row in published if wanted in (row.publication_id, str(row.sequence)))
    chosen = next(named, None)
    if chosen is None:
        raise FruitsError(
            f"publication {wanted!r}: no publication has this id or sequence; choose, newest first: {newest}"
        )
    if chosen not in choices:
        raise FruitsError(
            f"publication {chosen.publication_id}: its snapshots have expired (FRUITS_RETENTION_DAYS); you can roll "
            f"back to, newest first: {newest}"
        )
    return chosen


def published_from(lake: Lake, base: Base, run_id: str) -> Publication | None:
    """The publication that a run made from ``base``, if any; a run that was planned again has another base."""
    later = (row for row in publications(lake) if row.sequence > base.publication.sequence)
    found = [row for row in later if row.run_id == run_id][:1]
    return next(iter(in_full(lake.table("publications"), found)), None)


def publication_id(sequence: int, snapshots: Snapshots) -> str:
    """A readable and unique id: the sequence, and a part of the features' snapshot id."""
    return f"pub-{sequence:06d}-{snapshots['features'] % 16**6:06x}"


def _settle(lake: Lake, mains: Snapshots, publication: Publication) -> None:
    """Move ``main`` of each table to where the publication has it.

    ``mains`` were read before the publication. A ``main`` that has moved since then belongs to a newer publication, and
    the compare-and-swap leaves that ``main`` alone. A rollback may move a ``main`` back, so the caller looks again.
    """
    for name, target in publication.snapshots.items():
        if mains[name] != target:
            try:
                advance_main(lake, name, expected=mains[name], target=target)
            except ConflictError:
                continue


def _before_all(lake: Lake) -> Publication:
    """What readers have before the first publication: the empty snapshot that each table began with."""
    return Publication(0, {name: _first(lake, name) for name in _there(lake, DATA_TABLES)}, counters=())


def _first(lake: Lake, name: TableName) -> int:
    state = lake.state(name)
    return list(state.line(state.main))[-1]


def _keep_foreign(lake: Lake, mains: Snapshots, published: Sequence[Publication]) -> None:
    """Name and tag each ``main`` at a snapshot of no publication: another program moved it."""
    for name, snapshot in mains.items():
        ours = {publication.snapshots[name] for publication in published}
        if snapshot not in ours and snapshot != _first(lake, name):
            _name_foreign(lake, name, snapshot)


def _put_back_publications(lake: Lake) -> int:
    """Where ``main`` of ``publications`` is, after rows of another program are named, tagged and left behind."""
    table = lake.table("publications")
    head, own = _main_of(table, "publications"), own_head(table)
    if own != head:
        _name_foreign(lake, "publications", head)
        with suppress(ConflictError):  # another task was quicker; whoever commits next finds out
            advance_main(lake, "publications", expected=head, target=own)
    return own


def _name_foreign(lake: Lake, name: TableName, snapshot: int) -> None:
    tag = f"foreign_{snapshot}"
    change_refs(lake, name, {tag: snapshot}, {})
    log.warning(
        "table %s: main is at snapshot %d, which no run published: another program wrote to the table. Its rows are "
        "not adopted; the tag %s keeps them, and main goes back to the current publication. Find that program, and "
        "give it a table of its own",
        name,
        snapshot,
        tag,
    )


def _main_of(table: "Table", name: TableName) -> int:
    snapshot = table.snapshot_by_name(_MAIN)
    if snapshot is None:
        raise FruitsError(f"table {name} has no main branch; it was not made by this software")
    return int(snapshot.snapshot_id)


def _to_rows(publication: Publication) -> pa.Table:
    row = {
        "publication_id": publication.publication_id,
        "sequence": publication.sequence,
        "run_id": publication.run_id,
        "published_at": publication.published_at or datetime.now(UTC),
        "model_id": publication.model_id,
        "pca_id": publication.pca_id,
        "snapshots": list(publication.snapshots.items()),
        "counts": list((publication.counts or {}).items()),
        "probe_raw": publication.probe_raw,
        "probe_embedded": publication.probe_embedded,
        "probe_rows": publication.probe_rows,
        "building": publication.building,
        "gates": [asdict(gate) for gate in publication.gates],
        "approvals": [_approval_to_row(approval) for approval in publication.approvals],
        "rules": publication.rules,
        "counters": None if publication.counters is None else [asdict(count) for count in publication.counters],
        "classifier_id": publication.classifier_id,
    }
    return pa.Table.from_pylist([row], schema=PUBLICATIONS.schema)


def _from_row(row: Mapping[str, Any]) -> Publication:
    values = {
        "snapshots": dict(row["snapshots"]),
        "counts": dict(row["counts"]),
        "gates": tuple(Gate(**gate) for gate in row.get("gates") or ()),
        "approvals": tuple(_approval_from_row(approval) for approval in row.get("approvals") or ()),
        # PyIceberg (0.12) writes null lists as empty ones.
        "counters": tuple(RowCount(**count) for count in row.get("counters") or ()) or None,
    }
    return Publication(**{**row, **values})


def _approval_to_row(approval: Approval) -> dict[str, Any]:
    return {**asdict(approval), "details": json.dumps(approval.details, ensure_ascii=False)}


def _approval_from_row(row: Mapping[str, Any]) -> Approval:
    return Approval(**{**row, "details": json.loads(row["details"])})


def _with_known_columns(lake: Lake, rows: pa.Table) -> pa.Table:
    """The rows as the table takes them: a lake that no run of this release has opened yet has fewer columns."""
    known = {field.name for field in lake.table("publications").schema().fields}
    return rows.select([name for name in rows.column_names if name in known])
