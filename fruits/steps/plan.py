"""The task `plan`: reconcile bucket and tables, and write the run's manifest. Needs no JVM."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from fruits.analysis.pca import components_asked
from fruits.backbones.card import Card
from fruits.backbones.stage import read_card, staged_card
from fruits.errors import FruitsError
from fruits.lake.branches import Snapshots
from fruits.lake.catalog import Lake
from fruits.lake.publication import (
    Base,
    Publication,
    current_base,
    publications,
    readers_base,
)
from fruits.lake.reader import open_read_only
from fruits.photos.entry import Action
from fruits.photos.keys import KeyRules
from fruits.photos.listing import list_objects
from fruits.run.documents import run_store, task_document
from fruits.run.lease import hold_lease, release_lease
from fruits.run.manifest import write_manifest
from fruits.run.reconciliation import KnownObject, Plan, make_plan
from fruits.run.request import RunRequest
from fruits.run.state import PlannedRun, run_key
from fruits.settings import Settings
from fruits.steps.prepare import with_backbone

log = logging.getLogger("fruits")

_MOST_LISTED = 20


def plan_run(settings: Settings, request: RunRequest, run_id: str) -> PlannedRun:
    """Reconcile bucket and tables, and write the run's manifest and its plan.

    The run must hold the lease, and keeps it when there is work.

    Raises:
        FruitsError: when there is nothing at all under the prefix, the bucket cannot be listed, or the backbone is not
            staged.
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
    with task_document(settings, "plan", key, run_id) as document:
        lake = open_read_only(settings) if request.dry_run else Lake.open(settings)
        base = readers_base(lake) if request.dry_run else current_base(lake)
        published = publications(lake, base.publications_snapshot)
        backbone = effective_backbone(settings, request, published)
        document.run_id(_unpublished_run_id(run_id, published))
        reconciliation = reconcile(settings, request, lake, base, backbone, document.phase)
        with document.phase("manifest"):
            manifest = f"manifest_{document.document.token}.parquet"
            write_manifest(run_store(settings, key), reconciliation.plan.entries, manifest)
        planned = PlannedRun(
            key=key,
            run_id=document.document.run_id,
            planned_at=document.document.started_at,
            request=request,
            base=base,
            backbone=backbone,
            counts=reconciliation.counts,
            known_rows=reconciliation.known_rows,
            remaining=reconciliation.plan.remaining,
            building=reconciliation.building,
            work=reconciliation.work,
            other_work=reconciliation.other_work,
            manifest=manifest,
            unknown_keys=reconciliation.plan.unknown_keys,
        )
        document.record(planned)
    _log(reconciliation, request)
    return planned


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
            f"backbone {chosen.backbone} with weights {chosen.weights}: not staged in {settings.lake}/models; clear "
            "the run from `prepare`, which builds it"
        )
    models = [publication.model_id for publication in published if publication.model_id]
    left_by_readers = card.model_id in models and card.model_id != models[-1]
    if left_by_readers and request.backbone is None and request.weights is None:
        log.warning(
            "backbone: readers use %s now, so this run keeps to it; set FRUITS_BACKBONE and FRUITS_WEIGHTS to that "
            "backbone, or ask for another one by the run's param `backbone`",
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
    """

    plan: Plan
    known_rows: int
    readers_model_id: str | None
    switching: bool
    other_work: str | None

    @property
    def building(self) -> bool:
        """Whether readers keep their backbone after this run, because objects remain under the new one."""
        return self.switching and self.plan.remaining > 0

    @property
    def counts(self) -> dict[str, int]:
        """Objects by action, and those that are pending."""
        actions = {action.value: self.plan.counts[action] for action in Action}
        return {**actions, "pending": len(self.plan.pending)}

    @property
    def work(self) -> bool:
        """Whether the run has anything to do."""
        return bool(self.plan.entries) or self.other_work is not None


def reconcile(
    settings: Settings,
    request: RunRequest,
    lake: Lake | None,
    base: Base | None,
    card: Card | None,
    phase: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Reconciliation:
    """Compare the bucket with the tables as published; writes nothing.

    Lake, publication or backbone are None where there is none yet. ``phase`` times a part of the work.

    Raises:
        FruitsError: when there is nothing at all under the prefix, none of the keys asked for exists, or the bucket
            cannot be listed.
    """
    readers = base.publication.model_id if base else None
    switching = readers is not None and readers != (card.model_id if card else None)
    known: dict[str, KnownObject] = {}
    if lake and base and card:
        with phase("known"):
            known = known_objects(lake, base.publication.snapshots, card.model_id)
    prefix = listed_prefix(settings, request, new_backbone=switching)
    with phase("list"):
        listed = list(list_objects(settings, prefix))
    if not listed and not any(key.startswith(request.prefix) for key in known):
        raise FruitsError(
            f"s3://{settings.bucket}/{request.prefix}: no objects there; upload photos as "
            "[Training|Test]/<label>/<file>, or correct the prefix"
        )
    with phase("plan"):
        plan = make_plan(listed, known, KeyRules.of(settings), request, prefix)
    check_keys(plan, request)
    other_work = None
    if lake and base and card and known:
        other_work = work_without_photos(lake, base, card, request, settings, plan)
    return Reconciliation(plan, len(known), readers, switching, other_work)


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
    unknown = plan.unknown_keys
    if not unknown:
        return
    shown = f"{', '.join(map(repr, unknown[:_MOST_LISTED]))}{' ...' if len(unknown) > _MOST_LISTED else ''}"
    if len(unknown) == len(request.keys):
        raise FruitsError(f"keys: none of them is in the bucket or in the tables: {shown}; correct the param `keys`")
    log.warning(
        "plan: %d of %d keys are neither in the bucket nor in the tables: %s", len(unknown), len(request.keys), shown
    )


def work_without_photos(
    lake: Lake, base: Base, card: Card, request: RunRequest, settings: Settings, plan: Plan
) -> str | None:
    """Why a run has to go on even when no photo changed; None when it has not."""
    published = base.publication
    if published.model_id != card.model_id:
        return None if plan.remaining else f"readers use backbone {published.model_id}; publishing {card.model_id}"
    if request.refit == "always":
        return "the PCA is fitted again, as asked"
    if request.refit == "auto" and not plan.remaining:
        card_rows = lake.read(
            "pca_models", published.snapshots["pca_models"], ("n_components",), pca_id=published.pca_id or ""
        )
        asked = components_asked(request.n_components, settings.max_components)
        if card_rows["n_components"].to_pylist() != [asked]:
            return f"the PCA is fitted again: components asked are now {asked}"
    return None


def known_objects(lake: Lake, snapshots: Snapshots, model_id: str) -> dict[str, KnownObject]:
    """What the published tables hold under a backbone, by key."""
    columns = ("key", "etag", "last_modified")
    features = lake.read("features", snapshots["features"], (*columns, "label", "split"), model_id=model_id)
    quarantine = lake.read("quarantine", snapshots["quarantine"], (*columns, "reason"), model_id=model_id)
    return {
        row.pop("key"): KnownObject(**row)
        for table in (features, quarantine)
        for batch in table.to_batches()
        for row in batch.to_pylist()
    }


def _log(reconciliation: Reconciliation, request: RunRequest) -> None:
    plan = reconciliation.plan
    log.info("plan: %s", ", ".join(f"{count} {name}" for name, count in reconciliation.counts.items()))
    if request.dry_run:
        for entry in plan.entries[:_MOST_LISTED]:
            quarantine = f" (quarantine: {entry.rejection})" if entry.rejection else ""
            log.info("would %s %s%s", entry.action, entry.key, quarantine)
        if len(plan.entries) > _MOST_LISTED:
            log.info("... and %d more", len(plan.entries) - _MOST_LISTED)
    if reconciliation.building:
        log.info(
            "plan: a new backbone is built beside %s: %d objects remain after this run, then readers switch to it",
            reconciliation.readers_model_id,
            plan.remaining,
        )
    if reconciliation.other_work:
        log.info("plan: %s", reconciliation.other_work)
