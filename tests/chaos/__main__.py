"""`make chaos`: histories under faults and damaged files, on several processes, and a table of what the faults met."""

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import count
from multiprocessing import get_context

from tests.chaos.batches import SIZES, WORDS, Batch, Kind, Table, run_batch


def print_table(met: Table, survived: Table) -> None:
    """What each fault met: how often, how many of those histories came to the right end, the tables right then."""
    print(f"\n{'fault':20} {'met':32} {'times':>7} {'survived':>9}  the tables right then")
    for fault, subject in sorted({row[:2] for row in met}):
        rows = [row for row in sorted(met) if row[:2] == (fault, subject)]
        times, good = (sum(counts[row] for row in rows) for counts in (met, survived))
        words = ", ".join(f"{row[2]}: {met[row]}" for row in rows)
        print(f"{fault:20} {subject:32} {times:7} {good:9}  {words}")


def batches_of(kind: Kind, number: int) -> list[int]:
    """The sizes of the batches that have so many histories together."""
    return [min(SIZES[kind], number - first) for first in range(0, number, SIZES[kind])]


class Chaos:
    """The batches on several processes, each with a seed of its own, and what came of them."""

    def __init__(self, seed: int, workers: int) -> None:
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of each process
        self.workers = workers
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self.seeds = count(seed)
        self.met: Table = Counter()
        self.survived: Table = Counter()
        self.done: Counter[Kind] = Counter()
        self.seconds: dict[Kind, float] = dict.fromkeys(SIZES, 0.0)
        self.failures = 0

    def histories(self, kind: Kind, number: int) -> None:
        """Run so many histories."""
        self._run(kind, batches_of(kind, number))

    def fuzz(self, seconds: float) -> None:
        """Feed the decoder damaged files until the seconds are over, or a file breaks a promise."""
        deadline, before = time.monotonic() + seconds, self.failures
        while time.monotonic() < deadline and self.failures == before:
            self._run("decoder", [SIZES["decoder"]] * self.workers)

    def _run(self, kind: Kind, sizes: list[int]) -> None:
        start = time.monotonic()
        for batch in self._batches(kind, sizes):
            print(batch, flush=True)
            self.met.update(batch.met)
            self.survived.update(batch.survived)
            self.done[kind] += batch.done
            self.failures += bool(batch.failure)
        self.seconds[kind] += time.monotonic() - start

    def _batches(self, kind: Kind, sizes: list[int]) -> Iterator[Batch]:
        running = [self.pool.submit(run_batch, kind, next(self.seeds), size) for size in sizes]
        for future in as_completed(running):
            yield future.result()

    def print_summary(self) -> None:
        """The table, the pace of each kind, and how many seeds failed."""
        print_table(self.met, self.survived)
        print()
        for kind, done in self.done.items():
            print(
                f"{done:,} {WORDS[kind]}: {60 * done / self.seconds[kind]:,.0f} a minute, on {self.workers} processes"
            )
        print(f"{self.failures} seeds failed")


def main() -> int:
    """Run histories until their number or the time is reached; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, help="how many, on the catalog in memory")
    parser.add_argument("--real", type=int, default=30, help="how many, on a SQLite file and a folder")
    parser.add_argument("--fuzz", type=float, default=30, help="how many seconds of damaged files for the decoder")
    parser.add_argument("--minutes", type=float, default=0, help="go on for so long, with new seeds")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9), help="of the first batch")  # noqa: S311
    parser.add_argument("--workers", type=int, default=2, help="how many processes")
    arguments = parser.parse_args()
    chaos, deadline = Chaos(arguments.seed, arguments.workers), time.monotonic() + 60 * arguments.minutes
    with chaos.pool:
        while True:
            chaos.histories("memory", arguments.histories)
            chaos.histories("real", arguments.real)
            chaos.fuzz(arguments.fuzz)
            if time.monotonic() >= deadline:
                break
    chaos.print_summary()
    return 1 if chaos.failures else 0


if __name__ == "__main__":
    sys.exit(main())
