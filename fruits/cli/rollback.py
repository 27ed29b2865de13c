"""``fruits rollback``: an older publication becomes current again."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fruits.cli.output import Document, fields
from fruits.cli.place import person
from fruits.errors import FruitsError
from fruits.lake.publication import Base, choose, publications, refuse_runs_under_way, roll_back, same_content
from fruits.run.pin import current_pin, pinned

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake


def preview(lake: "Lake", base: Base, wanted: str) -> str:
    """What a person is asked to confirm; nothing where it is the current publication.

    Raises:
        FruitsError: when there is no such publication, or it can't be read any more.
    """
    published = publications(lake, base.publications_snapshot)
    chosen = choose(lake, published, wanted)
    if chosen == published[-1]:
        return ""
    features = (chosen.counts or {}).get("features", 0)
    return (
        f"Roll back from {published[-1].publication_id} to {chosen.publication_id} of {str(chosen.published_at)[:19]} "
        f"({features:,} features, backbone {chosen.model_id})?"
    )


def run(lake: "Lake", base: Base, wanted: str, why: str | None = None) -> dict[str, Any]:
    """Roll back; returns which publication was current before, and which is now. With ``why`` readers stay there.

    ``base`` is what readers had when a person chose the publication.

    Raises:
        FruitsError: when there is no such publication, it can't be read any more, or readers are pinned to another.
        ConflictError: when a run published since ``base``; that publication stays, and there is no new pin.
    """
    before = publications(lake, base.publications_snapshot)
    chosen = choose(lake, before, wanted)
    if why is None:
        pin = current_pin(lake.settings)
        if pin and not same_content(chosen, before[-1]):
            raise FruitsError(f"{pin}; `fruits unpin` first, or add --pin --why to pin readers to the other one")
        after = roll_back(lake, wanted, base=base)
    else:
        with pinned(lake.settings, chosen, person(), why) as pin:
            after = roll_back(lake, wanted, base=base)
            if after == base.publication:
                refuse_runs_under_way(lake, base)
    return {
        "before": before[-1].publication_id,
        "rolled_back_to": chosen.publication_id,
        "publication_id": after.publication_id,
        "sequence": after.sequence,
        "changed": after.publication_id != before[-1].publication_id,
        "model_id": after.model_id,
        "pca_id": after.pca_id,
        "features": (after.counts or {}).get("features", 0),
        "pin": str(pin) if pin else None,
    }


def render(done: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    if not done["changed"]:
        yield f"Nothing to do: readers see {done['rolled_back_to']} already."
        yield from filter(None, [done["pin"]])
        return
    yield fields(
        [
            ("before", done["before"]),
            ("now", f"{done['publication_id']}, which is {done['rolled_back_to']} again"),
            ("features", done["features"]),
            ("backbone", done["model_id"]),
            ("pca", done["pca_id"]),
        ]
    )
    stays = f"{done['pin']}. `fruits unpin` lets runs publish again."
    follows = (
        "The next run compares the bucket with these tables and brings newer photos back. To stay here: "
        "`fruits pin --why ...`."
    )
    next_run = stays if done["pin"] else follows
    yield f"\n{next_run} fruit_watchdog tells the DAGs that follow the asset fruits_embeddings."
