"""The task `plan`: reconcile bucket and tables, and write the run's manifest. Needs no JVM."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice, takewhile

import pyarrow as pa

from fruits.analysis.pca import components_asked, drifted, resized
from fruits.backbones.card import Card
from fruits.backbones.stage import described_backbone, read_card, staged_card
from fruits.errors import FruitsError
from fruits.lake.approvals import Approval, ask, outdated, read_approvals, withdraw
from fruits.lake.branches import Snapshots
from fruits.lake.catalog import Lake
from fruits.lake.publication import (
    Base,
    Publication,
    current_base,
    in_full,
    publications,
    readers_base,
)
from fruits.lake.reader import open_read_only
from fruits.lake.source import check_source
from fruits.photos.entry import Action
from fruits.photos.fetch import readable_again
from fruits.photos.ignore import meaning_of
from fruits.photos.keys import FIT_SPLIT, KeyRules, nothing_to_fit, spelled
from fruits.photos.listing import listed_batches
from fruits.photos.lookup import looked_up_batches
from fruits.photos.pages import MOST_RANGES, UnorderedError
from fruits.photos.quarantine import ACCESS_REASONS, Rereading
from fruits.run.decisions import (
    Decisions,
    allowed_by,
    check_requested,
    continued,
    decide,
    deletions_question,
    described,
    named_by_questions,
    rebuild_question,
    refit_question,
    switch_question,
)
from fruits.run.deletions import DeletionBounds, Leaving, recent_deletions, withheld_deletions
from fruits.run.documents import run_store, task_document
from fruits.run.events import KeptEvents, forget, kept_events, kept_files
from fruits.run.joining import Joined, joined, of_labels, starts_with
from fruits.run.lease import hold_lease, release_lease
from fruits.run.manifest import write_manifest
from fruits.run.pin import current_pin
from fruits.run.reconciliation import Ignored, Plan, make_plan
from fruits.run.request import RunRequest
from fruits.run.sources import Source, TooOldError, catch_up, source_of
from fruits.run.state import PlannedRun, run_key
from fruits.settings import Settings
from fruits.steps.prepare import with_backbone
from fruits.stores import can_read_any, photo_store, server_name

log = logging.getLogger("fruits")

_NO_EVENTS = KeptEvents()

_MOST_LISTED = 20
_FEWEST_OF_RANGE = 10_000
"""Fewest rows for each range of a listing: with less, a listing in one pass is as quick."""

_MOST_LOOKED_FOR = 50
"""Most objects that a listing in ranges left out, and that a plan asks for before it removes their rows."""

_MOST_ASKED_AGAIN = 50
"""Most refused objects that a plan asks for again: enough to notice that an archive was restored or access granted."""


def plan_run(settings: Settings, request: RunRequest, run_id: str) -> PlannedRun:
    """Reconcile bucket and tables, and write the run's manifest and its plan.

    The run must hold the lease, and keeps it when there is work. Under a pin there is none.

    Raises:
        FruitsError: when the lake holds other photos, there is nothing at all under the prefix, the bucket cannot be
            listed, or the backbone is not staged.
        TransientError: when another run holds the lease.
    """
    key = run_key(run_id)
    if request.dry_run:  # writes nothing but its own document, so it need not wait
        return _plan(settings, request, run_id)
    with hold_lease(settings, key):
        planned = _plan(settings, request, run_id)
    if not planned.work:
        release_lease(settings, key)
    return planned


def _plan(settings: Settings, request: RunRequest, run_id: str) -> PlannedRun:
    key = run_key(run_id)
    with task_document(settings, "plan", key, run_id) as document, joined() as pairs:
        lake = open_read_only(settings) if request.dry_run else Lake.open(settings)
        check_source(lake)
        pin = current_pin(settings)
        base = readers_base(lake) if request.dry_run else current_base(lake)
        published = publications(lake, base.publications_snapshot)
        backbone = effective_backbone(settings, request, published)
        document.run_id(_unpublished_run_id(run_id, published))
        by_events, events = request.mode == "events", events_before(settings, request)
        request = or_sweep(request, events, base, backbone)
        stored = read_approvals(settings)
        reconciliation = reconcile(
            settings,
            request,
            pairs,
            lake,
            base,
            backbone,
            document.phase,
            run=key,
            published=published,
            approvals=stored,
            events=events,
            by_events=by_events,
        )
        undecided = reconciliation.decisions.undecided
        if not request.dry_run:
            undecided = ask_person(settings, request, reconciliation, stored)
            check_fit(settings, lake, base, backbone, reconciliation)
        with document.phase("manifest"):
            manifest = f"manifest_{document.document.token}.parquet"
            write_manifest(run_store(settings, key), reconciliation.plan.batches(), manifest)
        planned = PlannedRun(
            key=key,
            run_id=document.document.run_id,
            planned_at=document.document.started_at,
            request=reconciliation.request,
            base=base,
            backbone=backbone,
            counts=reconciliation.counts,
            known_rows=reconciliation.known_rows,
            remaining=reconciliation.plan.remaining,
            building=reconciliation.building,
            work=reconciliation.work and pin is None,
            pinned=str(pin) if pin else None,
            other_work=reconciliation.other_work,
            manifest=manifest,
            unknown_keys=reconciliation.plan.unknown_keys if request.keys else (),
            undecided=undecided,
            approvals=reconciliation.decisions.approvals,
            ignored=reconciliation.plan.ignored,
            rules=rules_of_rows(settings, reconciliation),
            events=() if reconciliation.plan.pending or reconciliation.building or request.dry_run else events.files,
            as_of=reconciliation.plan.as_of,
        )
        document.record(planned)
        _log(reconciliation, request)
    if not (planned.work or pin or request.dry_run):  # there is nothing to do for their keys
        forget(settings, planned.events)
    if pin:
        log.warning("plan: %s. The run ends here, and publishes nothing; `fruits unpin` lets runs go on", pin)
    return planned


def events_before(settings: Settings, request: RunRequest) -> KeptEvents:
    """The events that a run deals with: those that were there before it looks at the bucket.

    A sweep that lists the bucket needs no keys. One by another source looks the keys up: the source may be older.
    """
    sweeps = request.sweeps(settings.prefix)
    if request.mode == "events" or (sweeps and settings.listing != "list"):
        return kept_events(settings)
    return KeptEvents(kept_files(settings) if sweeps and not request.dry_run else ())


def or_sweep(request: RunRequest, events: KeptEvents, base: Base, card: Card) -> RunRequest:
    """The request, but a sweep instead of a run by events that cannot look up each key.

    That is: too many keys, a message in an unknown form, nothing published yet, or another backbone than the readers',
    under which all photos are built.
    """
    if request.mode != "events" or (not events.sweep and can_look_up(base, card)):
        return request
    log.info("plan: the events ask for a sweep: the bucket is listed")
    return request.model_copy(update={"mode": "reconcile"})


def can_look_up(base: Base | None, card: Card | None) -> bool:
    """Whether a run can do without a listing: readers have the run's backbone, and their publication counts its rows.

    Under another backbone all photos are built. Releases before 0.2.0 counted no rows.
    """
    return bool(base and card and base.publication.model_id == card.model_id and base.publication.rows)


def effective_backbone(settings: Settings, request: RunRequest, published: Sequence[Publication]) -> Card:
    """Choose the run's backbone: the requested one, or else the one that readers use.

    Readers move on by a run or a backfill under another backbone, and a sweep must not take them back to the configured
    one. A configured backbone that readers never had is new, and is chosen.

    Raises:
        FruitsError: when the backbone is not staged, or has fewer features than the components that were asked for.
    """
    chosen = with_backbone(settings, request)
    card = staged_card(chosen)
    if card is None:
        raise FruitsError(
            f"backbone {described_backbone(chosen)}: not staged in {settings.lake}/models; clear the run from "
            "`prepare`, which builds it"
        )
    models = [publication.model_id for publication in published if publication.model_id]
    left_by_readers = card.model_id in models and card.model_id != models[-1]
    if left_by_readers and (request.backbone, request.weights, request.precision) == (None, None, None):
        log.warning(
            "backbone: readers use %s now, so this run keeps to it; set FRUITS_BACKBONE, FRUITS_WEIGHTS and "
            "FRUITS_PRECISION to that backbone, or ask for another one by the run's params `backbone` and `precision`",
            models[-1],
        )
        card = read_card(settings, str(models[-1]))
    if isinstance(request.n_components, int) and request.n_components > card.feature_width:
        raise FruitsError(
            f"PCA: {request.n_components:,} components are more than the {card.feature_width:,} features of backbone "
            f"{card.model_id}; lower FRUITS_N_COMPONENTS or the run's `n_components`, or ask for a share such as 0.95"
        )
    log.info("backbone %s: %d features, %s", card.model_id, card.feature_width, card.weights)
    return card


@dataclass(frozen=True)
class Reconciliation:
    """What a run finds when it compares the bucket with the tables.

    Attributes:
        plan: What is to be done with each object.
        known_rows: Rows that the tables hold under the run's backbone.
        readers_model_id: The backbone that readers use; None before the first publication.
        switching: Whether the run's backbone is another one.
        other_work: Why the run has to go on even when no photo changed; None when it has not.
        request: What the run is to do, without a refit that waits for an approval.
        decisions: What waits for a person's approval, and the approvals that the run uses.
        rules: Fingerprint of the rules by which all rows were judged before the run; None when that is unknown.
    """

    plan: Plan
    known_rows: int
    readers_model_id: str | None
    switching: bool
    other_work: str | None
    request: RunRequest
    decisions: Decisions
    rules: str | None = None

    @property
    def building(self) -> bool:
        """Whether readers keep their backbone after this run: objects remain under the new one, or nobody approved."""
        return self.switching and (self.plan.remaining != 0 or self.decisions.waits("backbone"))

    @property
    def counts(self) -> dict[str, int]:
        """Objects by action, those that are pending, and those that are ignored."""
        actions = {action.value: self.plan.counts[action] for action in Action}
        ignored = sum(names.count for names in self.plan.ignored.values())
        return {**actions, "pending": self.plan.pending, "ignored": ignored}

    @property
    def work(self) -> bool:
        """Whether the run has anything to do."""
        return self.plan.work > 0 or self.other_work is not None


def reconcile(
    settings: Settings,
    request: RunRequest,
    pairs: Joined,
    lake: Lake | None,
    base: Base | None,
    card: Card | None,
    phase: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    *,
    run: str = "",
    published: Sequence[Publication] = (),
    approvals: Sequence[Approval] = (),
    events: KeptEvents = _NO_EVENTS,
    by_events: bool = False,
) -> Reconciliation:
    """Compare the bucket with the tables as published; writes nothing but ``pairs``, which has to be empty.

    A run by ``events``, or by the param ``keys``, looks up objects and rows of these keys. It lists nothing, and
    so does not know what remains in the bucket. A run ``by_events`` may also be a sweep, see ``or_sweep``. A sweep
    takes the objects from the source that the settings name, and looks the keys of ``events`` up. It lists the bucket
    when ``events.sweep``, and under another backbone than the readers', who would lose what the source does not know.

    The tables are read before the bucket is listed: what others publish meanwhile is then not taken for gone. Lake,
    publication or backbone are None where there is none yet. ``phase`` times a part of the work. ``run`` is the run's
    key, ``published`` and ``approvals`` are those of the lake.

    Raises:
        FruitsError: when there is no photo at all under the prefix (a run by events then has nothing to do), none of
            the keys asked for exists, or the bucket cannot be listed.
    """
    readers = base.publication.model_id if base else None
    switching = readers is not None and readers != (card.model_id if card else None)
    covered = request_of_keys(request, events.keys)
    keys = covered.keys if not request.lists and can_look_up(base, card) else None
    if lake and base and card:
        with phase("known"):
            pairs.add("known", known_rows(lake, base.publication.snapshots, card.model_id, keys))
    judged_by = base.publication.rules if base and not switching else None
    prefix = listed_prefix(settings, request, new_backbone=switching)
    source = source_of(settings, prefix) if keys is None and not switching and not events.sweep else None
    comparison = Comparison(
        settings,
        covered,
        pairs,
        KeyRules.of(settings),
        judged_by,
        prefix,
        phase,
        keys,
        source,
        events.keys,
        may_be_empty=by_events,
    )
    plan = comparison.plan()
    check_keys(plan, request)
    if not (lake and base and card):
        return Reconciliation(plan, pairs.rows["known"], readers, switching, None, request, Decisions())
    rows = (pairs.rows["known"] if keys is None else base.publication.rows) - plan.repeated
    other_work = work_without_photos(lake, base, card, request, settings, plan, published) if rows else None
    plan, decisions = Review(
        settings, request, lake, base, card, pairs, run, published, approvals, switching, other_work, keys
    ).of(plan)
    if decisions.waits("backbone"):
        other_work = None
    elif decisions.waits("refit"):  # then nothing of the refit is done; which reads no table
        request = request.model_copy(update={"refit": "never"})
        other_work = work_without_photos(lake, base, card, request, settings, plan, published)
    elif other_work is None and decisions.uses("refit"):
        other_work = "the PCA is fitted again, as approved"
    return Reconciliation(plan, rows, readers, switching, other_work, request, decisions, judged_by)


def request_of_keys(request: RunRequest, event_keys: Sequence[str]) -> RunRequest:
    """The request of a run by events as one by the keys of these events; any other request as it is."""
    return request.model_copy(update={"mode": "reconcile", "keys": event_keys}) if request.mode == "events" else request


@dataclass(frozen=True)
class Comparison:
    """The objects of the bucket compared with the rows of ``pairs``.

    Attributes:
        settings: The settings.
        request: What the run was asked.
        pairs: The rows under the run's backbone; the objects are added.
        rules: The rules for keys.
        judged_by: Fingerprint of the rules by which all rows were judged; None when that is unknown.
        prefix: What of the bucket is listed.
        phase: Times a part of the work.
        keys: The keys that are looked up; None where the bucket is listed.
        source: Where the objects come from when the bucket is not listed.
        event_keys: Keys that are looked up beside a source.
        may_be_empty: Whether a bucket without a photo is no error. An event may be about an object that is ignored, or
            gone.
    """

    settings: Settings
    request: RunRequest
    pairs: Joined
    rules: KeyRules
    judged_by: str | None
    prefix: str
    phase: Callable[[str], AbstractContextManager[None]]
    keys: Sequence[str] | None = None
    source: Source | None = None
    event_keys: Sequence[str] = ()
    may_be_empty: bool = False

    def plan(self) -> Plan:
        """The plan: by single keys, by a source, or by a listing, in ranges of keys where that shows the whole bucket.

        Raises:
            FruitsError: when there never was a photo under the prefix.
        """
        if self.keys is not None:
            return replace(self._plan(looked_up_batches(self.settings, self.keys)), remaining=None)
        if self.source and (plan := self._by_source(self.source)):
            return plan
        if bounds := self._bounds():
            try:
                plan = self._plan(listed_batches(self.settings, self.prefix, bounds))
            except UnorderedError as error:
                log.info("plan: %s: %s; listed again in one pass", server_name(self.settings), error)
            else:
                some = plan.sample_of_deletions(_MOST_LOOKED_FOR)
                gone = [key for key in some if self.rules.ignore.rule_of(key) is None]
                if not gone or not can_read_any(photo_store(self.settings), gone):
                    return plan
                log.warning("plan: %s left out objects; listed again in one pass", server_name(self.settings))
        return self._plan(listed_batches(self.settings, self.prefix, ()))

    def _by_source(self, source: Source) -> Plan | None:
        """The plan by a source; None when listing the bucket is the quicker way to the truth."""
        log.info("plan: the objects are those of %s", source)
        if warning := source.warning(datetime.now(UTC)):
            log.warning("plan: %s", warning)
        try:
            return replace(self._plan(source.objects(self.pairs), source.date), as_of=source.date)
        except TooOldError as error:
            log.warning("plan: %s: %s; the bucket is listed", source, error)
            return None

    def _bounds(self) -> list[str]:
        """Keys that part the rows, and so most of the bucket, into ranges of the same size."""
        ranges = min(MOST_RANGES, self.pairs.rows["known"] // _FEWEST_OF_RANGE)
        return self.pairs.spread("known", self.prefix, ranges - 1) if ranges > 1 else []

    def _plan(self, objects: Iterable[pa.RecordBatch], date: datetime | None = None) -> Plan:
        """The plan by these objects, which are as of ``date``, or of now."""
        for name in ("listed", "corrected", "entries"):
            self.pairs.clear(name)
        ignored = Ignored.by(self.rules, self.request)
        with self.phase("list"):
            self.pairs.add("listed", ignored.others(objects))
            if date is not None:
                catch_up(
                    self.pairs, ignored, partial(looked_up_batches, self.settings), self.prefix, date, self.event_keys
                )
        if self.keys is None and not self.may_be_empty:
            check_photos_there(self.settings, self.request, self.pairs, ignored)
        with self.phase("plan"):
            return make_plan(
                self.pairs,
                ignored,
                self.rules,
                self.request,
                self.prefix,
                rereading(self.settings, self.request, self.pairs),
                same_rules=self.judged_by == self.rules.fingerprint,
            )


@dataclass(frozen=True)
class Review:
    """What a plan has seen of bucket and tables, to decide what waits for a person's approval.

    Attributes:
        settings: The settings.
        request: What the run was asked.
        lake: The lake.
        base: The current publication.
        card: The run's backbone.
        pairs: The objects that no rule ignores, and the rows under that backbone.
        run: Key of the run.
        published: The publications of the lake, the newest last.
        approvals: The approvals of the lake.
        switching: Whether readers use another backbone.
        other_work: Why the run has to go on even when no photo changed; None when it has not.
        keys: The keys that were looked up; None when the bucket was listed.
    """

    settings: Settings
    request: RunRequest
    lake: Lake
    base: Base
    card: Card
    pairs: Joined
    run: str
    published: Sequence[Publication]
    approvals: Sequence[Approval]
    switching: bool
    other_work: str | None
    keys: Sequence[str] | None = None

    def of(self, plan: Plan) -> tuple[Plan, Decisions]:
        """The plan without the deletions that wait for an approval, and all decisions."""
        readers = self.base.publication.model_id
        recent = recent_deletions(self.published, datetime.now(UTC))
        allowed = allowed_by(self.request, self.settings, nothing_listed=self._nothing_listed)
        plan, decisions = self._deletions(plan, recent, allowed)
        if readers is not None and self.switching and plan.remaining == 0:
            decisions += decide(self._switch(readers, plan, recent), self.approvals, allowed)
        return plan, decisions + decide(self._large_work(plan), self.approvals)

    def _deletions(self, plan: Plan, recent: int, allowed: Callable[[Approval], bool]) -> tuple[Plan, Decisions]:
        """The plan without the deletions that wait for an approval, and what is decided about these."""
        if not plan.counts[Action.DELETE]:
            return plan, Decisions()
        leaving = plan.deleted_by_label()
        withheld = withheld_deletions(
            leaving,
            self.pairs.by_label("known") if self.keys is None else self._rows_by_label(leaving),
            recent,
            DeletionBounds.of(self.settings),
            arriving=plan.arriving(),
            nothing_listed=self._nothing_listed,
            still_waiting=plan.deletes_any(named_by_questions(self.approvals)),
        )
        if not withheld:
            return plan, Decisions()
        place = f"s3://{self.settings.bucket}/{self.request.prefix}"
        question = deletions_question(withheld, plan.leaving(withheld.labels), self._rows, place, self.run)
        decisions = decide([question], self.approvals, allowed)
        return (plan.without(withheld.labels) if decisions.undecided else plan), decisions

    def _switch(self, readers: str, plan: Plan, recent: int) -> list[Approval]:
        """The question whether readers get the run's backbone, when it is one."""
        self.pairs.add("readers", known_rows(self.lake, self.base.publication.snapshots, readers))
        self.pairs.find_lost(self.settings.prefix)
        withheld = withheld_deletions(
            self.pairs.by("label", "lost"),
            self.pairs.by_label("readers"),
            recent,
            DeletionBounds.of(self.settings),
            arriving=plan.arriving() | set(self.pairs.by_label("known")),
        )
        rows = self._rows + plan.counts[Action.CREATE] - plan.counts[Action.DELETE]
        if rows <= self.settings.approval_rows and not withheld:
            return []
        lost = Leaving.of(self.pairs.leaving("lost", of_labels(withheld.labels))) if withheld else None
        return [switch_question(readers, self.card.model_id, rows, withheld, lost, self.run)]

    @property
    def _rows(self) -> int:
        return self.pairs.rows["known"] if self.keys is None else self.base.publication.rows

    @property
    def _nothing_listed(self) -> bool:
        return self.keys is None and not self.pairs.rows["listed"]

    def _rows_by_label(self, labels: Iterable[str | None]) -> dict[str | None, int]:
        """Rows by label where only some keys were looked up: of ``labels`` at least those, others as if of none."""
        looked_up = self.pairs.by_label("known")
        found: dict[str | None, int] = {
            label: looked_up.get(label, 0) + self._has_others(label) for label in labels if label is not None
        }
        return found | {None: self._rows - sum(found.values())}

    def _has_others(self, label: str) -> bool:
        """Whether a label has a row besides those that were looked up."""
        snapshot, keys = self.base.publication.snapshots["features"], frozenset(self.keys or ())
        rows = self.lake.batches("features", snapshot, ("key",), model_id=self.card.model_id, label=label)
        return any(key not in keys for batch in rows for key in batch["key"].to_pylist())

    def _large_work(self, plan: Plan) -> list[Approval]:
        """The questions whether much is rebuilt or fitted again."""
        request, model_id, rows = self.request, self.card.model_id, self._rows
        if rows <= self.settings.approval_rows:
            return []
        questions = []
        if request.mode == "rebuild" and plan.counts[Action.UPDATE] > self.settings.approval_rows:
            questions.append(rebuild_question(request, model_id, plan, self.run))
        refit = refit_question(request, model_id, rows, self.settings, self.run)
        approved = any(one.decided and one.digest == refit.digest for one in self.approvals)
        due = self.other_work is not None or (approved and request.refit == "auto" and plan.remaining == 0)
        if due and not self.switching:
            questions.append(refit)
        return questions


def ask_person(
    settings: Settings, request: RunRequest, reconciliation: Reconciliation, stored: Sequence[Approval]
) -> tuple[Approval, ...]:
    """Write down what waits for an approval, and take back earlier questions that no longer fit; returns the former.

    Raises:
        FruitsError: when the run was started for something that waits.
    """
    decisions = reconciliation.decisions
    undecided = tuple(ask(settings, continued(question, stored)) for question in decisions.undecided)
    if request.sweeps(settings.prefix) and not reconciliation.switching:
        old = outdated(stored, (*undecided, *decisions.approvals), datetime.now(UTC))
        withdraw(settings, old)
        for one in old:
            log.warning("approval %s no longer fits: %s", one.short, one.question)
    check_requested(request, undecided)
    return undecided


def rereading(settings: Settings, request: RunRequest, pairs: Joined) -> Rereading:
    """Which quarantined objects are worth another read today; asks the S3 server for a byte of some refused ones."""
    asks = request.mode == "reconcile" and not request.retry_quarantined
    refused = pairs.sample_refused(request.prefix, sorted(ACCESS_REASONS), _MOST_ASKED_AGAIN) if asks else []
    readable = readable_again(settings, refused) if refused else frozenset()
    return Rereading(
        settings.max_photo_bytes,
        settings.max_photo_pixels,
        readable=readable,
        silent=frozenset(refused) - readable,
    )


def check_photos_there(settings: Settings, request: RunRequest, pairs: Joined, ignored: Ignored) -> None:
    """See that there is a photo under the prefix, or was one.

    Raises:
        FruitsError: when there never was one.
    """
    if pairs.rows["listed"] or pairs.count("known", starts_with(request.prefix)):
        return
    others = (
        f" but {ignored.number:,} that FRUITS_IGNORE leaves out, such as {ignored.first!r}" if ignored.number else ""
    )
    raise FruitsError(
        f"s3://{settings.bucket}/{request.prefix}: no objects there{others}; upload photos as "
        "[Training|Test]/<label>/<file>, or correct the prefix"
    )


def rules_of_rows(settings: Settings, reconciliation: Reconciliation) -> str | None:
    """Fingerprint of the rules by which all rows of the run's backbone are judged once the run is done.

    A run over a part, or one that leaves something over, leaves rows that earlier rules judged.
    """
    request, plan, rules = reconciliation.request, reconciliation.plan, KeyRules.of(settings).fingerprint
    done = request.sweeps(settings.prefix) and not plan.remaining and not reconciliation.decisions.waits("deletions")
    return rules if done or reconciliation.rules == rules else None


def check_fit(settings: Settings, lake: Lake, base: Base, card: Card, reconciliation: Reconciliation) -> None:
    """See that the first run under a backbone has a photo to fit a PCA on, before a JVM is started.

    Raises:
        FruitsError: says why there is none, and what to do.
    """
    plan = reconciliation.plan
    if reconciliation.known_rows or reconciliation.building or not plan.work:
        return
    if plan.has_split(FIT_SPLIT):
        return
    if lake.read("pca_models", base.publication.snapshots["pca_models"], ("pca_id",), model_id=card.model_id).num_rows:
        return  # photos that were there once have left a PCA to project on
    photos = [entry for entry in plan.entries() if entry.rejection is None]
    if not photos:
        entry = next(plan.entries())
        why = (
            f"no key has a label that is accepted; {entry.key!r} is refused as {entry.rejection}. Expected photos as "
            "[Training|Test]/<label>/<file>; correct the layout, FRUITS_KEY_PATTERN or FRUITS_LABELS"
        )
    else:
        why = nothing_to_fit(KeyRules.of(settings).pattern, (entry.key for entry in photos))
    left = f". {plan.pending:,} more photos are pending: raise `limit`" if plan.pending else ""
    raise FruitsError(f"PCA: {why}{left}")


def listed_prefix(settings: Settings, request: RunRequest, *, new_backbone: bool) -> str:
    """What of the bucket a run has to list: its own prefix, but all photos when it is under a new backbone.

    Readers switch to that when nothing is left to do under it, wherever in the bucket.
    """
    return settings.prefix if new_backbone else request.prefix


def _unpublished_run_id(run_id: str, published: Sequence[Publication]) -> str:
    """``run_id``; ``run_id#2`` and so on when the run is planned again after it was published.

    Rows and publications tell their run by it, and those of the second time are not those of the first.
    """
    times = sum(run_id in (one.run_id, str(one.run_id).rpartition("#")[0]) for one in published)
    return f"{run_id}#{times + 1}" if times else run_id


def check_keys(plan: Plan, request: RunRequest) -> None:
    """See that keys that were asked for exist; warn of those that do not.

    Raises:
        FruitsError: when none does.
    """
    unknown = plan.unknown_keys if request.keys else ()  # a photo of an event may have gone again
    if not unknown:
        return
    shown = f"{', '.join(map(repr, unknown[:_MOST_LISTED]))}{' ...' if len(unknown) > _MOST_LISTED else ''}"
    if len(unknown) == len(request.keys):
        raise FruitsError(f"keys: none of them is in the bucket or in the tables: {shown}; correct the param `keys`")
    log.warning(
        "plan: %d of %d keys are neither in the bucket nor in the tables: %s", len(unknown), len(request.keys), shown
    )


def work_without_photos(
    lake: Lake,
    base: Base,
    card: Card,
    request: RunRequest,
    settings: Settings,
    plan: Plan,
    publications: Sequence[Publication] = (),
) -> str | None:
    """Why a run has to go on even when no photo changed; None when it has not."""
    published = base.publication
    if published.model_id != card.model_id:
        return None if plan.remaining else f"readers use backbone {published.model_id}; publishing {card.model_id}"
    if request.refit == "always":
        return "the PCA is fitted again, as asked"
    if request.refit == "auto" and plan.remaining == 0:
        models = lake.read(
            "pca_models", published.snapshots["pca_models"], ("n", "n_components"), pca_id=published.pca_id or ""
        )
        asked = components_asked(request.n_components, settings.max_components)
        if models["n_components"].to_pylist() != [asked]:
            return f"the PCA is fitted again: components asked are now {asked}"
        if published.remaining is None:
            statistics = lake.read(
                "pca_statistics", published.snapshots["pca_statistics"], ("n",), model_id=card.model_id
            )
            fitted, now = (sum(rows["n"].to_pylist()) for rows in (models, statistics))
            if resized(fitted, now, settings.refit_growth) or _drifted_since_a_sweep(lake, publications, settings):
                return "runs that looked up single keys left open whether the PCA is fitted again"
    return None


def _drifted_since_a_sweep(lake: Lake, published: Sequence[Publication], settings: Settings) -> bool:
    """Whether the photos of the newest runs that could not decide about a refit have drifted, taken together.

    Each run measured its own photos, and these are often too few to show a drift: the mean over all photos counts.
    """
    undecided = list(takewhile(lambda publication: publication.remaining is None, reversed(published)))[::-1]
    found = [
        (_featurized(publication), gate.value)
        for publication in in_full(lake.table("publications"), undecided)
        if publication.made_by_run
        for gate in publication.gates
        if gate.name == "drift" and gate.value is not None
    ]
    photos = sum(number for number, _ in found)
    mean = sum(number * drift for number, drift in found) / photos if photos else None
    return drifted(mean, photos, max_drift=settings.refit_drift, min_drift_rows=settings.refit_drift_rows)


def _featurized(publication: Publication) -> int:
    """Photos that the publication's run created or updated."""
    return sum((publication.counts or {}).get(action, 0) for action in (Action.CREATE, Action.UPDATE))


def known_rows(
    lake: Lake, snapshots: Snapshots, model_id: str, keys: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """What the published tables hold under a backbone, of sorted ``keys`` only; with columns of ``KNOWN_SCHEMA``."""
    columns = ("key", "etag", "last_modified")
    of_photos, of_refused = (*columns, "label", "split"), (*columns, "reason", "limit", "decoder")
    yield from lake.batches("features", snapshots["features"], of_photos, keys=keys, model_id=model_id)
    yield from lake.batches("quarantine", snapshots["quarantine"], of_refused, keys=keys, model_id=model_id)


def _log(reconciliation: Reconciliation, request: RunRequest) -> None:
    plan = reconciliation.plan
    log.info("plan: %s", ", ".join(f"{count} {name}" for name, count in reconciliation.counts.items()))
    for rule, names in plan.ignored.items():
        log.info("plan: ignored as %s %s. %s", rule, names, meaning_of(rule))
    for labels in plan.twins:
        log.warning("plan: the labels %s differ in case, form or spaces only: are they one label?", spelled(labels))
    if request.dry_run:
        for entry in islice(plan.entries(), _MOST_LISTED):
            quarantine = f" (quarantine: {entry.rejection})" if entry.rejection else ""
            log.info("would %s %s%s", entry.action, entry.key, quarantine)
        if plan.work > _MOST_LISTED:
            log.info("... and %d more", plan.work - _MOST_LISTED)
    if reconciliation.building:
        log.info(
            "plan: a new backbone is built beside %s: %d objects remain after this run, then readers switch to it",
            reconciliation.readers_model_id,
            plan.remaining,
        )
    if reconciliation.other_work:
        log.info("plan: %s", reconciliation.other_work)
    _log_decisions(reconciliation.decisions)


def _log_decisions(decisions: Decisions) -> None:
    for question in decisions.undecided:
        log.warning("plan: %s", described(question))
    for approval in decisions.approvals:
        log.info("plan: %s Approved by %s: %s", approval.question, approval.approved_by, approval.why)
