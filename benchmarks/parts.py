"""The command line of a benchmark in parts: choose parts, print their figures, write the figures as JSON.

A part that fails loses no figure of the others, and none of its own that are there already.
"""

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.figure import Figure, figure, line_of

BUILD = Path(__file__).resolve().parents[1] / "build" / "bench"
Measure = Callable[[], Iterable[Figure]]


def parser_of(description: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """A parser that takes names of parts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(parts)}; all when none is named")
    return parser


def chosen(
    parser: argparse.ArgumentParser, named: Sequence[str], parts: Mapping[str, Measure]
) -> Mapping[str, Measure]:
    """The parts that are named, or all; an unknown name ends the program."""
    if unknown := set(named) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    return {name: parts[name] for name in named or parts}


def measured(parts: Mapping[str, Measure], name: str) -> list[Figure]:
    """The figures of parts, each printed and written into ``build/bench/<name>.json`` when it is there.

    A part that fails has a figure that says so, and does not pass; the parts after it are measured.
    """
    figures: list[Figure] = []
    BUILD.mkdir(parents=True, exist_ok=True)
    for found in _figures(parts):
        print(line_of(found), flush=True)
        figures.append(found)
        (BUILD / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")  # somebody may end the program
    return figures


def _figures(parts: Mapping[str, Measure]) -> Iterator[Figure]:
    for name, measure in parts.items():
        began = time.perf_counter()
        try:
            yield from measure()
        except Exception:  # noqa: BLE001 -- whatever it is, the other parts have nothing to do with it
            traceback.print_exc()
            yield figure(f"{name}: measured to its end", 0.0, least=1.0)
        print(f"{name} took {time.perf_counter() - began:.0f} s", flush=True)


def end_on_sigterm() -> None:
    """End as after Ctrl-C when somebody ends the program: the servers that it started end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
