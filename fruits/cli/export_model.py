"""``fruits export model``: write the published engine to one file for phones."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document
from fruits.serve.mobile import export_model
from fruits.settings import Settings


def write(settings: Settings, target: Path, prototypes: int, *, overwrite: bool) -> dict[str, Any]:
    """Write the file. Raises ``FruitsError`` if the publication has no engine, or the file cannot be written."""
    done = export_model(settings, target, prototypes=prototypes, overwrite=overwrite)
    return {"path": str(done.path), "bytes": done.bytes, **done.card}


def render(done: Document) -> Iterable[RenderableType]:
    """The answer for a terminal."""
    size = f"{len(done['labels']):,} labels, {done['prototypes']} prototypes of each, {done['bytes']:,} bytes"
    yield f"{done['path']}: {size}, from {done['publication_id']}"
    kept = f"keeps {done['known_kept']:.0%} of known photos, by {done['known_calibrated_on']}"
    yield f"known from a similarity of {done['known_threshold']:.3f} on, which {kept}"
    yield f"backbone {done['model_id']}, classifier {done['classifier_id']}, {done['pca_id']}"
