"""How fast Fruits is, by ratios of one run: `make bench`, or `make bench-quick` with few photos.

Prints a table, and writes `build/bench/bench.json` (a list of name, value, unit, goal, pass and spread),
`environment.json` and `bench.svg` beside it. Each part is a file of this folder; docs/performance.md explains them. A
figure is the median of three runs. Needs the jobs environment.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from benchmarks.figure import Figure
from benchmarks.parts import BUILD, chosen, end_on_sigterm, measured, parser_of
from benchmarks.speed import balance, bare, daft_way, drops, gets, imports, notebook, rows, sizes, small
from benchmarks.speed.environment import write_environment
from benchmarks.speed.picture import picture
from benchmarks.speed.scale import QUICK, Scale

PARTS: Mapping[str, Callable[[Scale], Iterable[Figure]]] = {
    "bare": bare.figures,
    "balance": balance.figures,
    "small": small.figures,
    "notebook": notebook.figures,
    "daft": daft_way.figures,
    "gets": gets.figures,
    "drops": drops.figures,
    "rows": rows.figures,
    "imports": imports.figures,
    "sizes": sizes.figures,
}
SLOW = ("balance", "small", "notebook", "daft", "drops", "sizes")
"""The parts that `make bench-quick` leaves out, unless they are named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts that are named, or all; 1 when a goal is missed."""
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--quick", action="store_true", help=f"few photos, and all parts but {', '.join(SLOW)}")
    parser.add_argument("--price", type=float, default=Scale.price, help="USD for an hour of a core (%(default)s)")
    args = parser.parse_args(argv)
    scale = Scale(price=args.price, **(QUICK if args.quick else {}))
    names = args.parts or [name for name in PARTS if not (args.quick and name in SLOW)]
    parts = chosen(parser, names, {name: partial(part, scale) for name, part in PARTS.items()})
    with write_environment(BUILD / "environment.json"):
        figures = measured(parts, "bench")
    (BUILD / "bench.svg").write_text(picture(figures))
    return int(not all(figure["pass"] for figure in figures))


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
