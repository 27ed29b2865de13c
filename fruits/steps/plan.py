"""The task `plan`: reconcile bucket and tables, and write the run's manifest. Needs no JVM."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from fruits.analysis.pca import components_asked
from fruits.backbones.card import Card
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import (
    Base,
    Publication,
    current_base,
    publications,
)
from fruits.photos.entry import Action
from fruits.photos.keys import KeyRules
from fruits.photos.listing import list_objects
from fruits.run.documents import (
    run_document,
    run_store,
)
from fruits.run.lease import hold_lease, release_lease
from fruits.run.manifest import write_manifest
from fruits.run.reconciliation import KnownObject, Plan, make_plan
from fruits.run.request import RunRequest
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.prepare import effective_backbone

log = logging.getLogger("fruits")

_MOST_LISTED = 20


def plan_run(settings: Settings, request: RunRequest, card: Card, run_id: str) -> dict[str, Any]:
    """Reconcile bucket and tables and write the run's manifest and plan document; returns the document.

    The run must hold the lease, and keeps it when there is work.

    Raises:
        FruitsError: when there is nothing at all under the prefix, or the bucket cannot be listed.
        TransientError: when another run holds the lease.
    """
    slug = run_key(run_id)
    if request.dry_run:  # changes nothing, so it need not wait
        return _plan(settings, request, card, run_id)
    with hold_lease(settings, slug):
        document = _plan(settings, request, card, run_id)
    if not document["work"]:
        release_lease(settings, slug)
    return document


def _plan(settings: Settings, request: RunRequest, card: Card, run_id: str) -> dict[str, Any]:
    slug = run_key(run_id)
    with run_document(settings, "plan", run_id, slug) as document:
        lake = Lake.open(settings)
        base = current_base(lake)
        published = publications(lake, base.publications_snapshot)
        card = effective_backbone(settings, request, card, published) or card
        document.record(run_id=_unpublished_run_id(run_id, published))
        found = reconcile(settings, request, lake, base, card, document.stage)
        with document.stage("manifest"):
            write_manifest(run_store(settings, slug), found.plan.entries)
        document.record(
            slug=slug,
            request=request.to_document(),
            model_id=card.model_id,
            card=card.to_document(),
            base=base.to_document(),
            known_rows=found.known_rows,
            unknown_keys=list(found.plan.unknown_keys),
            building=found.building,
            **found.to_document(),
        )
    _log_found(found, request)
    return document.content


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

    def to_document(self) -> dict[str, Any]:
        """What is to be done, as JSON types."""
        plan = self.plan
        return {
            "counts": {**{action.value: plan.counts[action] for action in Action}, "pending": len(plan.pending)},
            "remaining": plan.remaining,
            "work": bool(plan.entries) or self.other_work is not None,
            "other_work": self.other_work,
        }


def reconcile(
    settings: Settings,
    request: RunRequest,
    lake: Lake | None,
    base: Base | None,
    card: Card | None,
    stage: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Reconciliation:
    """Compare the bucket with the tables as published; writes nothing.

    Lake, publication or backbone are None where there is none yet. ``stage`` times what is done inside it.

    Raises:
        FruitsError: when there is nothing at all under the prefix, none of the keys asked for exists, or the bucket
            cannot be listed.
    """
    readers = base.publication.model_id if base else None
    switching = readers is not None and readers != (card.model_id if card else None)
    known: dict[str, KnownObject] = {}
    if lake and base and card:
        with stage("known"):
            known = known_objects(lake, base.publication.snapshots, card.model_id)
    prefix = listed_prefix(settings, request, new_backbone=switching)
    with stage("list"):
        listed = list(list_objects(settings, prefix))
    if not listed and not any(key.startswith(request.prefix) for key in known):
        raise FruitsError(
            f"s3://{settings.bucket}/{request.prefix}: no objects there; upload photos as "
            "[Training|Test]/<label>/<file>, or correct the prefix"
        )
    with stage("plan"):
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


def known_objects(lake: Lake, snapshots: Mapping[Any, int], model_id: str) -> dict[str, KnownObject]:
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


def _log_found(found: Reconciliation, request: RunRequest) -> None:
    plan = found.plan
    log.info("plan: %s", ", ".join(f"{count} {name}" for name, count in found.to_document()["counts"].items()))
    if request.dry_run:
        for entry in plan.entries[:_MOST_LISTED]:
            log.info(
                "would %s %s%s", entry.action, entry.key, f" (quarantine: {entry.rejection})" if entry.rejection else ""
            )
        if len(plan.entries) > _MOST_LISTED:
            log.info("... and %d more", len(plan.entries) - _MOST_LISTED)
    if found.building:
        log.info(
            "plan: a new backbone is built beside %s: %d objects remain after this run, then readers switch to it",
            found.readers_model_id,
            plan.remaining,
        )
    if found.other_work:
        log.info("plan: %s", found.other_work)
