"""``fruits plan``: show what a run would do now. The command reads bucket and tables, and writes nothing."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import RenderableType

from fruits.backbones.card import Card
from fruits.backbones.stage import staged_card
from fruits.cli.output import Document, fields, table
from fruits.cli.pin import describe
from fruits.lake.approvals import read_approvals
from fruits.lake.catalog import Lake
from fruits.lake.publication import Base, Publication, publications
from fruits.lake.reader import NoLakeError, open_read_only
from fruits.lake.source import check_source
from fruits.photos.entry import Action, Entry
from fruits.photos.ignore import Names, meaning_of
from fruits.photos.keys import spelled
from fruits.run.decisions import described
from fruits.run.events import KeptEvents
from fruits.run.joining import joined
from fruits.run.reconciliation import Plan
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps.plan import Reconciliation, effective_backbone, events_before, reconcile
from fruits.steps.prepare import with_backbone

_ORDER = (Action.CREATE, Action.UPDATE, Action.DELETE)


def read(settings: Settings, request: RunRequest, *, keys: int | None) -> dict[str, Any]:
    """The plan of a run, with the first ``keys`` keys of each action (None: all keys).

    Raises:
        FruitsError: if the lake holds the photos of another place than the settings name, or as ``reconcile`` does.
    """
    lake, published = _current(settings)
    base = Base(published[-1], lake.state("publications").main) if lake and published else None
    card = _card(settings, request, published) if lake else None
    approvals = read_approvals(settings) if lake else ()
    with joined() as pairs:
        events = events_before(settings, request) if lake else KeptEvents()
        reconciliation = reconcile(
            settings,
            request,
            pairs,
            lake,
            base,
            card,
            published=published,
            approvals=approvals,
            events=events,
        )
        return _document(settings, request, reconciliation, lake, base, card, keys)


def _document(
    settings: Settings,
    request: RunRequest,
    reconciliation: Reconciliation,
    lake: Lake | None,
    base: Base | None,
    card: Card | None,
    keys: int | None,
) -> dict[str, Any]:
    plan, chosen = reconciliation.plan, with_backbone(settings, request)
    return {
        "lake": settings.lake,
        "bucket": settings.bucket,
        "request": request.model_dump(mode="json"),
        "as_of": plan.as_of.isoformat() if plan.as_of else None,
        "published": base.publication.publication_id if base else None,
        "pin": describe(settings) if lake else None,
        "backbone": chosen.backbone,
        "precision": chosen.precision,
        "model_id": card.model_id if card else None,
        "readers_model_id": reconciliation.readers_model_id,
        "building": reconciliation.building,
        "counts": reconciliation.counts,
        "remaining": plan.remaining,
        "work": reconciliation.work,
        "other_work": reconciliation.other_work,
        "undecided": [
            {**question.to_document(), "text": described(question)} for question in reconciliation.decisions.undecided
        ],
        "keys": {action.value: _keys(plan, action, keys) for action in _ORDER},
        "pending": [_entry(entry) for entry in plan.pending_entries(keys)],
        "ignored": {rule: names.to_document() for rule, names in plan.ignored.items()},
        "twin_labels": plan.twins,
    }


def _current(settings: Settings) -> tuple[Lake | None, Sequence[Publication]]:
    """The lake, if there is one, and its publications. The task calls ``current_base`` instead, which may write."""
    try:
        lake = open_read_only(settings)
    except NoLakeError:
        return None, ()
    check_source(lake)
    return lake, publications(lake)


def _card(settings: Settings, request: RunRequest, published: Sequence[Publication]) -> Card | None:
    """The backbone of the run; None if the backbone is not built yet."""
    if staged_card(with_backbone(settings, request)) is None:
        return None
    return effective_backbone(settings, request, published)


def _keys(plan: Plan, action: Action, most: int | None) -> list[dict[str, Any]]:
    return [_entry(entry) for entry in plan.entries(action, most)]


def _entry(entry: Entry) -> dict[str, Any]:
    return {"key": entry.key, "size": entry.size, "label": entry.label, "rejection": entry.rejection}


def render(plan: Document) -> Iterable[RenderableType]:
    """The plan for a terminal."""
    counts = plan["counts"]
    model = plan["model_id"] or f"{plan['backbone']} ({plan['precision']}), which the next run builds"
    waiting = sum(question["number"] for question in plan["undecided"] if question["kind"] == "deletions")
    yield fields(
        [
            ("bucket", f"s3://{plan['bucket']}/{plan['request']['prefix']}"),
            ("objects as of", plan["as_of"]),
            ("lake", plan["lake"]),
            ("published", plan["published"] or "nothing yet"),
            ("backbone", model),
            *((name, count) for name, count in counts.items()),
            ("waiting", waiting or None),
        ]
    )
    if plan["building"]:
        left = f"{plan['remaining']:,} objects remain after this run"
        yield f"{left}; readers keep {plan['readers_model_id']} until no object remains."
    if plan["other_work"]:
        yield f"Other work: {plan['other_work']}."
    yield from (question["text"] for question in plan["undecided"])
    if plan["pin"]:
        yield f"{plan['pin']}. A run would end without work."
    elif not plan["work"]:
        yield "Nothing to do."
    for action in _ORDER:
        yield from _listed(action.value, plan["keys"][action], counts[action])
    yield from _listed("pending", plan["pending"], counts["pending"])
    for rule, names in plan["ignored"].items():
        yield f"\nignored as {rule} {Names(**names)}. {meaning_of(rule)}"
    for labels in plan["twin_labels"]:
        yield f"\nThe labels {spelled(labels)} differ in case, form or spaces only: are they one label?"


def _listed(action: str, entries: list[Document], total: int) -> Iterable[RenderableType]:
    if not entries:
        return
    yield ""
    if action == Action.DELETE.value:  # the object is gone, and rows of the tables keep no size for the plan
        yield table((action, "label"), ((entry["key"], entry["label"]) for entry in entries))
    else:
        rows = ((entry["key"], entry["size"] or None, entry["rejection"] or entry["label"]) for entry in entries)
        yield table((action, ">bytes", "label"), rows)
    if total > len(entries):
        yield f"... and {total - len(entries):,} more; --keys all lists them"
