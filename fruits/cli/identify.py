"""``fruits identify``: what photos are taken for, by the published tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document, share, table
from fruits.serve.identify import Identification, identify
from fruits.settings import Settings


def read(settings: Settings, photos: Sequence[Path], *, nearest: int) -> dict[str, Any]:
    """What each photo is taken for; a photo that cannot be read has an ``error`` instead."""
    found = identify(settings, photos, nearest=nearest)
    return {"publication_id": found[0].publication_id, "photos": [_document(one) for one in found]}


def _document(one: Identification) -> dict[str, Any]:
    return {
        "path": str(one.path),
        "label": one.label,
        "confidence": one.confidence,
        "familiarity": one.familiarity,
        "labels": [{"label": label, "confidence": confidence} for label, confidence in one.labels],
        "nearest": [{"key": it.key, "label": it.label, "similarity": it.similarity} for it in one.nearest],
        "error": one.error,
        "model_id": one.model_id,
        "pca_id": one.pca_id,
    }


def render(document: Document) -> Iterable[RenderableType]:
    """For a terminal: one line a photo, then the photos that it is nearest to."""
    columns = ("photo", "label", ">confidence", "or", ">familiarity")
    yield table(columns, (_row(photo) for photo in document["photos"]))
    for photo in document["photos"]:
        if photo["nearest"]:
            yield ""
            rows = ((near["key"], near["label"], f"{near['similarity']:.3f}") for near in photo["nearest"])
            yield table((f"nearest to {photo['path']}", "label", ">cosine"), rows)


def _row(photo: Document) -> tuple[object, ...]:
    if photo["error"]:
        return photo["path"], photo["error"], "", "", ""
    others = ", ".join(f"{one['label']} {one['confidence']:.0%}" for one in photo["labels"][1:3])
    return photo["path"], photo["label"], share(photo["confidence"]), others, share(photo["familiarity"])
