"""What a run costs as the bucket grows: `make bench-growth` prints the figures and writes `build/bench/growth.json`.

Each part is a file of its own in this folder. A figure has a name, a value, a unit, a goal, and whether the goal is
met; a figure without a goal is there to compare. Needs the jobs environment.
"""

import sys
from collections.abc import Mapping, Sequence

from benchmarks.growth import events, gates, increment, inventory, layout, plan, refits, resume
from benchmarks.parts import Measure, chosen, end_on_sigterm, measured, parser_of

PARTS: Mapping[str, Measure] = {
    "plan": plan.figures,
    "events": events.figures,
    "inventory": inventory.figures,
    "gates": gates.figures,
    "layout": layout.figures,
    "refits": refits.figures,
    "resume": resume.figures,
    "increment": increment.figures,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts that are named, or all; 1 when a goal is missed."""
    parser = parser_of(__doc__, PARTS)
    figures = measured(chosen(parser, parser.parse_args(argv).parts, PARTS), "growth")
    return int(not all(figure["pass"] for figure in figures))


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
