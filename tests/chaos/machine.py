"""Histories of a lake under faults, made up by Hypothesis: people, programs and servers in any order."""

from collections import Counter
from contextlib import ExitStack
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fruits.run.events import kept_files
from tests.chaos.faults import KINDS, SEEN_LATER, Fault
from tests.chaos.jobs import BROKEN
from tests.chaos.world import FIRST, STEPS, World, world

KEYS = (
    *("Training/Kiwi/a.jpg", "Test/Kiwi/b.jpg", "Training/Fig/c.jpg", "Fig/d.jpg", "Training/Plum/e.jpg"),
    "no-label.jpg",
)
IGNORED = ("d.jpg", "b.*", "Plum/")
MOST_EFFECTS = 50
"""A run of all tasks has some forty effects."""

photos = st.sampled_from([b"1", b"2", b"3", BROKEN])
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)
seldom = st.sampled_from([False, False, True])
faults = st.lists(
    st.builds(Fault, st.integers(1, MOST_EFFECTS), st.sampled_from(["before", "after"]), st.sampled_from(KINDS)),
    max_size=2,
)


class Histories(RuleBasedStateMachine):
    """One history. After each sweep the tables equal one full run's, but for what is pending or waits for a person.

    At each effect readers see whole publications.
    """

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
        return f"{kind}__{self.number}"

    @rule(keys=some_keys, data=photos, day=st.integers(0, 1), silent=seldom)
    def put(self, keys: list[str], data: bytes, day: int, silent: bool) -> None:
        for key in keys:
            self.world.put(key, data, day, silent=silent)

    @rule(key=st.sampled_from(FIRST), data=st.sampled_from([b"4", b"5"]), silent=seldom)
    def overwrite(self, key: str, data: bytes, silent: bool) -> None:
        self.world.put(key, key.encode() + data, silent=silent and self.published)

    @precondition(lambda self: len(self.world.bucket) > len(FIRST))
    @rule(choice=st.integers(0, 10))
    def delete(self, choice: int) -> None:
        self.world.delete(choice)

    @precondition(lambda self: len(self.world.bucket) > len(FIRST) + 1)
    @rule(choices=st.lists(st.integers(0, 10), min_size=2, max_size=4), approved=st.booleans())
    def lose_photos(self, choices: list[int], approved: bool) -> None:
        """Some photos leave after a sweep, and the next sweep asks; a person may approve at once."""
        self.sweep([], "auto", allow=False)
        for choice in choices:
            self.world.delete(choice)
        self.sweep([], "auto", allow=False)
        if approved:
            self.world.approve()

    @precondition(lambda self: self.published)
    @rule(choice=st.integers(0, 10))
    def silence(self, choice: int) -> None:
        self.world.silence(choice)

    @rule()
    def answer(self) -> None:
        self.world.answer()

    @rule(patterns=st.lists(st.sampled_from(IGNORED), max_size=2))
    def ignore(self, patterns: list[str]) -> None:
        self.world.ignore(*patterns)

    @rule(faults=faults, refit=st.sampled_from(["auto", "auto", "always"]), allow=seldom)
    def sweep(self, faults: list[Fault], refit: str, allow: bool) -> None:
        self.world.sweep(self.next_run("sweep"), faults, refit=refit, allow_deletes=allow)
        assert not (allow and self.world.waiting), "allowed deletions wait"
        if any(fault.kind in SEEN_LATER for fault in faults):
            self.world.sweep(self.next_run("sweep"))
        self.world.check_after_a_sweep()
        self.published = True

    @rule(keys=st.lists(st.sampled_from((*KEYS, *FIRST)), min_size=1, max_size=4, unique=True), faults=faults)
    def notify(self, keys: list[str], faults: list[Fault]) -> None:
        """Notifications name some keys: changed ones, or others, as late and doubled events do."""
        self.world.notify(self.next_run("event"), keys, faults)
        if not faults and self.world.pinned is None:
            self.world.check_after_events(keys)

    @precondition(lambda self: self.world.waiting)
    @rule()
    def approve(self) -> None:
        self.world.approve()

    @precondition(lambda self: self.published)
    @rule()
    def pin(self) -> None:
        self.world.pin()

    @precondition(lambda self: self.world.pinned is not None)
    @rule()
    def unpin(self) -> None:
        self.world.unpin()

    @precondition(lambda self: self.published)
    @rule(
        faults=faults,
        scope=st.sampled_from([{"limit": 1}, {"day": 0}, {"day": 1}, {"keys": (FIRST[0],)}, {"mode": "rebuild"}]),
    )
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
    @rule(choice=st.integers(0, 10), why=st.sampled_from([None, "to stay there"]))
    def roll_back(self, choice: int, why: str | None) -> None:
        self.world.roll_back(choice, why)

    @invariant()
    def readers_see_whole_publications(self) -> None:
        self.world.check_readers()

    def teardown(self) -> None:
        try:
            self.world.answer()
            self.world.unpin()
            self.world.sweep(self.next_run("last"), allow_deletes=True)
            self.world.check_equals_a_full_run()
            assert not kept_files(self.world.settings), "events are kept after a sweep"
            Histories.survived.update(self.world.table)
        finally:
            Histories.met.update(self.world.table)
            Histories.histories += 1
            self.stack.close()


class RealHistories(Histories):
    """The same on a SQLite file and in a folder, by PyIceberg."""

    real = True
