"""How much a benchmark measures: `make bench`, or the few photos of `make bench-quick`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.network import EFFICIENTNET, INT8, MOBILENET, Network
from benchmarks.speed.photos import MEDIUM, SMALL


@dataclass(frozen=True)
class Scale:
    """Numbers of runs, photos and rows.

    Attributes:
        runs: Times that each figure is measured.
        bare: Backbones, and sides of photos in pixels, that are measured against the bare loop.
        few: Photos of the run whose cost is subtracted, so that what a job always costs does not count.
        many: Photos of the run that it is subtracted from.
        loop: Photos of each of the two processes of the bare loop.
        notebooks: Photos of each comparison with the notebook, its goals by precision, and the forms of the notebook.
        rows: Rows of features of the PCA.
        projected: Rows of the larger projection, some times ``rows``.
        price: USD for an hour of one core.
    """

    runs: int = 3
    bare: Sequence[tuple[Network, int]] = (
        (EFFICIENTNET, SMALL),
        (INT8, SMALL),
        (MOBILENET, SMALL),
        (EFFICIENTNET, MEDIUM),
    )
    few: int = 1_000
    many: int = 7_000
    loop: int = 1_000
    notebooks: Sequence[tuple[int, Mapping[str, float], tuple[str, ...]]] = (
        (1_980, {"fp32": 3.0}, ("best", "usual")),
        (10_000, {"fp32": 3.5, "int8": 5.0}, ("best",)),
    )
    rows: int = 20_000
    projected: int = 200_000
    price: float = 0.048


QUICK: Mapping[str, Any] = {
    "bare": ((EFFICIENTNET, SMALL),),
    "many": 2_500,
    "loop": 800,
    "notebooks": ((500, {"fp32": 3.0}, ("best",)),),
    "rows": 5_000,
    "projected": 20_000,
}
"""What `make bench-quick` changes."""
