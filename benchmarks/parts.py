"""The command line of a benchmark in parts: choose parts, print their figures, write the figures as JSON."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.figure import Figure, line_of

BUILD = Path(__file__).resolve().parents[1] / "build" / "bench"
Measure = Callable[[], Iterable[Figure]]


def parser_of(description: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """A parser that takes names of parts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(parts)}; all when none is named")
    return parser


def chosen(parser: argparse.ArgumentParser, named: Sequence[str], parts: Mapping[str, Measure]) -> list[Measure]:
    """The parts that are named, or all; an unknown name ends the program."""
    if unknown := set(named) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    return [parts[name] for name in named or parts]


def measured(parts: Iterable[Measure], name: str) -> list[Figure]:
    """The figures of parts, each printed when it is there; all in ``build/bench/<name>.json``."""
    figures = []
    BUILD.mkdir(parents=True, exist_ok=True)
    for measure in parts:
        for figure in measure():
            print(line_of(figure), flush=True)
            figures.append(figure)
        (BUILD / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")  # a later part may fail
    return figures


def end_on_sigterm() -> None:
    """End as after Ctrl-C when somebody ends the program: the servers that it started end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
