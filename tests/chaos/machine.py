"""Histories of a lake under faults, made up by Hypothesis: people, programs and servers in any order."""

from collections import Counter
from contextlib import ExitStack
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.chaos.jobs import BROKEN
from tests.chaos.world import FIRST, KINDS, STEPS, Fault, World, world

KEYS = (
    *("Training/Kiwi/a.jpg", "Test/Kiwi/b.jpg", "Training/Fig/c.jpg", "Fig/d.jpg"),
    "no-label.jpg",
)
MOST_EFFECTS = 50
"""A run of all tasks has some forty effects."""

photos = st.sampled_from([b"1", b"2", b"3", BROKEN])
faults = st.lists(
    st.builds(Fault, st.integers(1, MOST_EFFECTS), st.sampled_from(["before", "after"]), st.sampled_from(KINDS)),
    max_size=2,
)


class Histories(RuleBasedStateMachine):
    """One history. After each sweep the tables equal one full run's; at each effect readers see whole publications."""

    real: ClassVar[bool] = False
    met: ClassVar[Counter[tuple[str, str, str]]] = Counter()
    survived: ClassVar[Counter[tuple[str, str, str]]] = Counter()
    histories: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.world: World = self.stack.enter_context(world(real=self.real))
        self.number = 0
        self.published = False

    def next_run(self, kind: str) -> str:
        self.number += 1
        return f"{kind} {self.number}"

    @rule(key=st.sampled_from(KEYS), data=photos, day=st.integers(0, 1))
    def put(self, key: str, data: bytes, day: int) -> None:
        self.world.put(key, data, day)

    @rule(key=st.sampled_from(FIRST), data=st.sampled_from([b"4", b"5"]))
    def overwrite(self, key: str, data: bytes) -> None:
        self.world.put(key, key.encode() + data)

    @precondition(lambda self: len(self.world.bucket) > len(FIRST))
    @rule(choice=st.integers(0, 10))
    def delete(self, choice: int) -> None:
        keys = sorted(set(self.world.bucket) - set(FIRST))
        del self.world.bucket[keys[choice % len(keys)]]

    @rule(faults=faults, refit=st.sampled_from(["auto", "auto", "always"]))
    def sweep(self, faults: list[Fault], refit: str) -> None:
        self.world.sweep(self.next_run("sweep"), faults, refit=refit)
        if any(fault.kind == "rolled back" for fault in faults):  # after the run had its say
            self.world.sweep(self.next_run("sweep"))
        self.world.check_equals_a_full_run()
        self.published = True

    @precondition(lambda self: self.published)
    @rule(faults=faults, scope=st.sampled_from([{"limit": 1}, {"day": 0}, {"day": 1}, {"keys": (FIRST[0],)}]))
    def cover_a_part(self, faults: list[Fault], scope: dict[str, Any]) -> None:
        self.world.sweep(self.next_run("part"), faults, **scope)

    @rule(faults=faults, last=st.sampled_from(STEPS[1:-1]))
    def start_and_leave(self, faults: list[Fault], last: str) -> None:
        run_id = self.next_run("left")
        self.world.runs[run_id] = self.world.request()
        self.world.run_on(run_id, "prepare", faults, last=last)

    @precondition(lambda self: self.world.runs)
    @rule(faults=faults, choice=st.integers(0, 10), first=st.sampled_from(STEPS))
    def clear(self, faults: list[Fault], choice: int, first: str) -> None:
        runs = sorted(self.world.runs)
        self.world.run_on(runs[choice % len(runs)], first, faults)

    @precondition(lambda self: self.published)
    @rule(faults=faults, abandoned_days=st.sampled_from([3, 3, 1]))
    def maintain(self, faults: list[Fault], abandoned_days: int) -> None:
        self.world.keep_house(self.next_run("maintenance"), faults, abandoned_days=abandoned_days)

    @precondition(lambda self: self.published)
    @rule(choice=st.integers(0, 10))
    def roll_back(self, choice: int) -> None:
        self.world.roll_back(choice)

    @invariant()
    def readers_see_whole_publications(self) -> None:
        self.world.check_readers()

    def teardown(self) -> None:
        try:
            self.world.sweep(self.next_run("last"))
            self.world.check_equals_a_full_run()
            Histories.survived.update(self.world.table)
        finally:
            Histories.met.update(self.world.table)
            Histories.histories += 1
            self.stack.close()


class RealHistories(Histories):
    """The same on a SQLite file and in a folder, by PyIceberg."""

    real = True
