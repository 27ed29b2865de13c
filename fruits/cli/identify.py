"""``fruits identify``: label photos by the published tables."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document, share, table
from fruits.serve.identify import Engine, Identification, identify_files
from fruits.settings import Settings


def read(settings: Settings, photos: Sequence[Path], *, nearest: int) -> dict[str, Any]:
    """The labels and the nearest photos of each photo; a photo that cannot be read has an ``error`` instead."""
    engine = Engine.load(settings)
    answers = identify_files(engine, photos, nearest=nearest)
    return {
        "publication_id": engine.publication.publication_id,
        "lacks": engine.lacks,
        "photos": [_document(engine, path, answer) for path, answer in zip(photos, answers, strict=True)],
    }


def _document(engine: Engine, path: Path, answer: Identification | str) -> dict[str, Any]:
    if isinstance(answer, Identification):
        return {"path": str(path), **answer.to_document(), "error": None}
    none: dict[str, Any] = dict.fromkeys(("label", "confidence", "familiarity", "known"))
    empty: dict[str, Any] = {"candidates": [], "labels": [], "nearest": []}
    return {"path": str(path), **none, **empty, **asdict(engine.versions), "error": answer}


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
