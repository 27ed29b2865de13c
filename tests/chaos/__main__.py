"""`make chaos`: histories under faults, and a table of what the faults met: ``python -m tests.chaos``."""

import argparse
import logging
import random
import sys
import time
import traceback
from collections import Counter

from hypothesis import HealthCheck, Phase, core, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.machine import Histories, RealHistories

_BATCH = 200


def run_batch(machine: type[Histories], seed: int, histories: int, steps: int = 6) -> None:
    """Run histories of one seed; raises at the first that breaks a promise, reduced to a short program."""
    before, core.global_force_seed = core.global_force_seed, seed  # type: ignore[assignment]
    chosen = settings(
        max_examples=histories,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try:
        run_state_machine_as_test(machine, settings=chosen)
    finally:
        core.global_force_seed = before


def print_table(met: Counter[tuple[str, str, str]], survived: Counter[tuple[str, str, str]]) -> None:
    """What each fault met: how often, how many of those histories came to the right end, the tables right then."""
    print(f"{'fault':20} {'met':32} {'times':>7} {'survived':>9}  the tables right then")
    for fault, subject in sorted({row[:2] for row in met}):
        rows = [row for row in sorted(met) if row[:2] == (fault, subject)]
        times, good = (sum(counts[row] for row in rows) for counts in (met, survived))
        words = ", ".join(f"{row[2]}: {met[row]}" for row in rows)
        print(f"{fault:20} {subject:32} {times:7} {good:9}  {words}")


def main() -> int:
    """Run histories until their number or the time is reached; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--histories", type=int, default=1000, help="how many, on the catalog in memory")
    parser.add_argument("--real", type=int, default=30, help="how many, on a SQLite file and a folder")
    parser.add_argument("--minutes", type=float, default=0, help="go on for so long, with new seeds")
    parser.add_argument("--seed", type=int, default=random.randrange(10**9), help="of the first batch")  # noqa: S311
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    deadline, seed, failures = time.monotonic() + 60 * arguments.minutes, arguments.seed, 0
    while True:
        for machine, histories in ((Histories, arguments.histories), (RealHistories, arguments.real)):
            for first in range(0, histories, _BATCH):
                failures += not passes(machine, seed, min(_BATCH, histories - first))
                seed += 1
        if time.monotonic() >= deadline:
            break
    print_table(Histories.met, Histories.survived)
    print(f"{Histories.histories:,} histories, {failures} seeds failed")
    return 1 if failures else 0


def passes(machine: type[Histories], seed: int, histories: int) -> bool:
    """Whether the histories of a seed keep the promises; prints their pace, or the shortest history that does not."""
    start, before = time.monotonic(), Histories.histories
    print(f"{machine.__name__}: seed {seed}, {histories} histories ...", end=" ", flush=True)
    try:
        run_batch(machine, seed, histories)
    except Exception:  # noqa: BLE001 -- whatever breaks a history is shown, and the next seed has its turn
        option = "HISTORIES" if machine is Histories else "HISTORIES=0 REAL"
        print(f"FAILED; again: make chaos {option}={histories} SEED={seed}")
        traceback.print_exc()
        return False
    spent = time.monotonic() - start
    print(f"{spent:.1f} s, {60 * (Histories.histories - before) / spent:,.0f} a minute", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
