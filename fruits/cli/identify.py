"""``fruits identify``: label photos by the published tables."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document, share, table
from fruits.serve.identify import Identification, identify
from fruits.settings import Settings

_NO_CLASSIFIER = (
    "This publication has no classifier: an earlier release made it, or the fit split has no photo. The next run that "
    "changes a photo fits a classifier; where the lake has no sums by label, a run with refit `always` does."
)


def read(settings: Settings, photos: Sequence[Path], *, nearest: int) -> dict[str, Any]:
    """The labels and the nearest photos of each photo; a photo that cannot be read has an ``error`` instead."""
    identifications = identify(settings, photos, nearest=nearest)
    first = identifications[0]
    return {
        "publication_id": first.publication_id,
        "lacks": None if first.classifier_id else _NO_CLASSIFIER,
        "photos": [_document(identification) for identification in identifications],
    }


def _document(photo: Identification) -> dict[str, Any]:
    return {
        "path": str(photo.path),
        "label": photo.label,
        "confidence": photo.confidence,
        "familiarity": photo.familiarity,
        "known": photo.known,
        "candidates": list(photo.candidates),
        "labels": [{"label": label, "confidence": confidence} for label, confidence in photo.labels],
        "nearest": [asdict(neighbour) for neighbour in photo.nearest],
        "error": photo.error,
        "model_id": photo.model_id,
        "pca_id": photo.pca_id,
        "classifier_id": photo.classifier_id,
    }


def render(document: Document) -> Iterable[RenderableType]:
    """The answer for a terminal: a line for each photo, then its error or the nearest published photos."""
    columns = ("photo", "label", ">confidence", "one of", ">familiarity")
    yield table(columns, (_row(photo) for photo in document["photos"]))
    if document["lacks"]:
        yield f"\n{document['lacks']}"
    for photo in document["photos"]:
        if photo["error"]:
            yield f"\n{photo['path']}: {photo['error']}"
        if photo["nearest"]:
            yield ""
            rows = ((near["key"], near["label"], f"{near['similarity']:.3f}") for near in photo["nearest"])
            yield table((f"nearest to {photo['path']}", "label", ">cosine"), rows)


def _row(photo: Document) -> tuple[object, ...]:
    if photo["known"] is False:
        nearest = f"unknown, likest {photo['label']}" if photo["label"] else "unknown"
        return photo["path"], nearest, share(photo["confidence"]), "", share(photo["familiarity"])
    candidates = ", ".join(photo["candidates"])
    return photo["path"], photo["label"], share(photo["confidence"]), candidates, share(photo["familiarity"])
