"""Batches of histories, and of damaged files for the decoder: each from one seed, in a process of its own or not."""

import io
import logging
import time
import traceback
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import HealthCheck, Phase, core, given, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.machine import Histories, RealHistories

Kind = Literal["memory", "real", "decoder"]
SIZES: dict[Kind, int] = {"memory": 100, "real": 10, "decoder": 1000}
"""How many histories or files a batch has; a seed gives other ones in a batch of another size."""
WORDS: dict[Kind, str] = {
    "memory": "histories in memory",
    "real": "histories on a SQLite file",
    "decoder": "damaged files for the decoder",
}

_STEPS = 8
Table = Counter[tuple[str, str, str]]


@dataclass(frozen=True)
class Batch:
    """What came of a batch: how many there were, seconds, what faults met, and the failure, if any."""

    kind: Kind
    seed: int
    size: int
    done: int
    seconds: float
    met: Table = field(default_factory=Counter)
    survived: Table = field(default_factory=Counter)
    failure: str = ""

    @property
    def again(self) -> str:
        """What to type to see the same again."""
        sizes = {"memory": f"HISTORIES={self.size} REAL=0", "real": f"HISTORIES=0 REAL={self.size}"}
        fuzz = "FUZZ=1" if self.kind == "decoder" else "FUZZ=0"
        return f"make chaos {sizes.get(self.kind, 'HISTORIES=0 REAL=0')} {fuzz} SEED={self.seed}"

    def __str__(self) -> str:
        """For a terminal."""
        if self.failure:
            return f"seed {self.seed}: {WORDS[self.kind]} FAILED; again: {self.again}\n{self.failure}"
        return f"seed {self.seed}: {self.done:,} {WORDS[self.kind]}, {self.seconds:.1f} s"


def run_batch(kind: Kind, seed: int, size: int) -> Batch:
    """Run a batch; a failure has the shortest history, or file, that breaks a promise."""
    for counter in (Histories.met, Histories.survived):
        counter.clear()
    Histories.histories, start, failure, spoken = 0, time.monotonic(), "", io.StringIO()
    before, core.global_force_seed = core.global_force_seed, seed  # type: ignore[assignment]
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(spoken):
            _run(kind, size)
    except Exception:  # noqa: BLE001 -- whatever breaks a history is shown, and the next seed has its turn
        failure = traceback.format_exc() + spoken.getvalue()
    finally:
        core.global_force_seed = before
        logging.disable(logging.NOTSET)
    done = (0 if failure else size) if kind == "decoder" else Histories.histories
    seconds = time.monotonic() - start
    return Batch(kind, seed, size, done, seconds, Histories.met.copy(), Histories.survived.copy(), failure)


def _run(kind: Kind, size: int) -> None:
    chosen = settings(
        max_examples=size,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    if kind == "decoder":
        from tests.fruits.photos.test_decode import check_any_bytes, photos_and_damaged_files

        chosen(given(photos_and_damaged_files)(check_any_bytes))()
    else:
        run_state_machine_as_test(Histories if kind == "memory" else RealHistories, settings=chosen)
