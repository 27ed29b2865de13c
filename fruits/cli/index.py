"""``fruits index``: build the neighbour index of the current publication on this machine."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document
from fruits.lake.pca_tables import load_pca
from fruits.lake.reader import current_publication, open_read_only
from fruits.serve.neighbours import build, index_folder
from fruits.settings import Settings


def build_index(settings: Settings) -> dict[str, Any]:
    """Build the segments that the current publication lacks, and remove those that it does not use.

    Raises:
        FruitsError: when nothing has been published, or the folder cannot be written.
    """
    lake = open_read_only(settings)
    publication = current_publication(lake)
    started = time.monotonic()
    built = build(lake, publication, load_pca(lake, publication))
    return {"folder": str(index_folder(settings)), **asdict(built), "seconds": round(time.monotonic() - started, 1)}


def render(document: Document) -> Iterable[RenderableType]:
    """The answer for a terminal."""
    rest = document["rows"] - document["indexed_rows"]
    yield (
        f"{document['publication_id']}: {document['indexed_rows']:,} photos in {document['segments']} segments, "
        f"{rest:,} are compared one by one"
    )
    yield (
        f"{document['folder']}: {document['bytes']:,} bytes; {document['built']} segments built and "
        f"{document['removed']} removed in {document['seconds']} s"
    )
