"""What a run costs as the bucket grows: `make bench-growth` prints the figures and writes `build/bench/growth.json`.

Each part is a file of its own in this folder. A figure has a name, a value, a unit, a goal, and whether the goal is
met; a figure without a goal is there to compare. Needs the jobs environment.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.growth import events, gates, increment, inventory, layout, plan, refits, resume
from benchmarks.growth.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
PARTS: Mapping[str, Callable[[], list[Figure]]] = {
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all when none is named")
    unknown = set(named := parser.parse_args(argv).parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figures = []
    for part in named or PARTS:
        for figure in PARTS[part]():
            goal = "" if figure["goal"] is None else f"goal {figure['goal']:g}: {'met' if figure['pass'] else 'MISSED'}"
            print(f"  {figure['name']:<70} {figure['value']:>10,.2f} {figure['unit']:<6} {goal}", flush=True)
            figures.append(figure)
    (ROOT / "build/bench").mkdir(parents=True, exist_ok=True)
    (ROOT / "build/bench/growth.json").write_text(json.dumps(figures, indent=2) + "\n")
    return int(not all(figure["pass"] for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
