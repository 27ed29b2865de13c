"""``fruits rollback``: an older publication becomes current again."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fruits.cli.output import Document, fields
from fruits.lake.publication import choose, publications, roll_back

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake


def preview(lake: "Lake", wanted: str) -> str:
    """What a person is asked to confirm; nothing where it is the current publication.

    Raises:
        FruitsError: when there is no such publication, or it can't be read any more.
    """
    published = publications(lake)
    chosen = choose(lake, published, wanted)
    if chosen == published[-1]:
        return ""
    features = (chosen.counts or {}).get("features", 0)
    return (
        f"Roll back from {published[-1].publication_id} to {chosen.publication_id} of {str(chosen.published_at)[:19]} "
        f"({features:,} features, backbone {chosen.model_id})?"
    )


def run(lake: "Lake", wanted: str) -> dict[str, Any]:
    """Roll back; returns which publication was current before, and which is now."""
    before = publications(lake)
    after = roll_back(lake, wanted)
    return {
        "before": before[-1].publication_id,
        "rolled_back_to": choose(lake, before, wanted).publication_id,
        "publication_id": after.publication_id,
        "sequence": after.sequence,
        "changed": after.publication_id != before[-1].publication_id,
        "model_id": after.model_id,
        "pca_id": after.pca_id,
        "features": (after.counts or {}).get("features", 0),
    }


def render(done: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    if not done["changed"]:
        yield f"Nothing to do: readers see {done['rolled_back_to']} already."
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
    yield (
        "\nThe next run compares the bucket with these tables and brings newer photos back. To stay here, pause "
        "the DAG fruit_features in Airflow's UI. fruit_watchdog tells the DAGs that follow the asset fruits_embeddings."
    )
