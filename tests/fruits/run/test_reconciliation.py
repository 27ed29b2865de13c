from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.errors import FruitsError
from fruits.photos.entry import WORK, Action
from fruits.photos.keys import KeyRules, twin_labels
from fruits.photos.listing import ListedObject
from fruits.photos.quarantine import Reason, Rereading
from fruits.run.reconciliation import KnownObject, entry_of
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps.plan import check_keys
from tests.plans import PlanInMemory, plan_of

LAKE = {"lake": "file:///lake", "catalog_uri": "sqlite:////lake/catalog.db"}
RULES = KeyRules.of(Settings.load(**LAKE))
START = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)


def asked(prefix: str, mode: Any = "reconcile", **more: Any) -> RunRequest:
    """A run's request."""
    return RunRequest(prefix=prefix, mode=mode, **more)


def changed(request: RunRequest, **values: Any) -> RunRequest:
    """The request with other values."""
    return request.model_copy(update=values)


EVERYTHING = asked("")
CREATED = frozenset({Action.CREATE, Action.UPDATE})

PREFIXES = st.sampled_from(["", "a", "a/", "b/Kiwi/", "dt=2026-11-2"])
KEYS = st.sampled_from(
    [
        f"{folder}{label}/{number}.jpg"
        for folder in ("", "a/", "b/", "a/Test/", "dt=2026-11-20/", "dt=2026-11-21/")
        for label in ("Kiwi", "Fig")
        for number in range(2)
    ]
    + ["stray.jpg", "a/Training/stray.jpg", "a/Weed/1.jpg", "dt=2026-13-40/Kiwi/1.jpg"]
)
MOMENTS = st.integers(0, 5 * 24).map(lambda hours: START - DAY + timedelta(hours=hours))
ETAGS = st.sampled_from(["one", "two"])
LABELLED = KeyRules(RULES.pattern, frozenset({"Kiwi", "Fig"}))


@st.composite
def listings(draw) -> list[ListedObject]:
    keys = draw(st.lists(KEYS, unique=True, max_size=12))
    return [ListedObject(key, draw(ETAGS), draw(st.integers(0, 9)), draw(MOMENTS)) for key in keys]


@st.composite
def tables(draw) -> dict[str, KnownObject]:
    known = {}
    for key in draw(st.lists(KEYS, unique=True, max_size=12)):
        reason = draw(st.none() | st.sampled_from(Reason))
        label, split = (None, None) if reason else (draw(st.sampled_from(["Kiwi", "Fig"])), draw(st.just("train")))
        known[key] = KnownObject(draw(ETAGS), draw(MOMENTS), label, split, reason)
    return known


@st.composite
def requests(draw) -> RunRequest:
    prefix = draw(PREFIXES)
    keys = draw(st.just(()) | st.lists(KEYS, max_size=5, unique=True).map(tuple))
    mode = draw(st.sampled_from(["reconcile", "interval", "rebuild"]))
    start, length = draw(MOMENTS), draw(st.integers(1, 48))
    return asked(
        prefix,
        mode,
        keys=keys,
        interval=(start, start + timedelta(hours=length)) if mode == "interval" else None,
        limit=draw(st.none() | st.integers(1, 4)),
        retry_quarantined=draw(st.booleans()),
    )


def moment_of(key: str, last_modified: datetime) -> datetime:
    """When an object counts for a data interval: the day its folder names, else its last modification."""
    if key.startswith("dt=") and not key.startswith("dt=2026-13"):
        return datetime.fromisoformat(key[3:13]).replace(tzinfo=UTC)
    return last_modified


def covered(request: RunRequest, key: str, last_modified: datetime) -> bool:
    """Whether a run covers an object, said another way than the planner says it."""
    if not key.startswith(request.prefix) or (request.keys and key not in request.keys):
        return False
    return request.interval is None or request.interval[0] <= moment_of(key, last_modified) < request.interval[1]


def scope(listed: list[ListedObject], known: Mapping[str, KnownObject], request: RunRequest) -> set[str]:
    """Keys that a run covers: an object is where the bucket says, and only if it is not there, where the tables say."""
    there = {item.key: item.last_modified for item in listed}
    gone = {key: row.last_modified for key, row in known.items() if key not in there}
    return {key for key, moment in {**there, **gone}.items() if covered(request, key, moment)}


def apply(
    plan: PlanInMemory, known: Mapping[str, KnownObject], unreadable: frozenset[str] = frozenset()
) -> dict[str, KnownObject]:
    """The tables once a run has done what its plan says."""
    after = dict(known)
    for entry in plan.entries:
        if entry.action == Action.DELETE:
            del after[entry.key]
        else:
            reason = entry.rejection or (Reason.TRUNCATED if entry.key in unreadable else None)
            label, split = (None, None) if reason else (entry.label, entry.split)
            after[entry.key] = KnownObject(entry.etag, entry.last_modified, label, split, reason)
    return after


@given(listings(), tables(), requests())
def test_every_object_in_scope_has_exactly_one_action_or_is_pending(listed, known, request_):
    plan = plan_of(listed, known, LABELLED, request_)
    planned = [entry.key for entry in (*plan.entries, *plan.pending)]
    in_scope = scope(listed, known, request_)
    assert len(planned) == len(set(planned))
    assert set(planned) <= in_scope
    assert sum(plan.counts.values()) + len(plan.pending) == len(in_scope)
    assert set(plan.counts) == set(Action)
    worked_on = [entry.action for entry in plan.entries]
    assert {action: worked_on.count(action) for action in WORK} == {action: plan.counts[action] for action in WORK}
    assert {entry.action for entry in plan.pending} <= {Action.CREATE, Action.UPDATE}


def test_keys_that_were_asked_for_and_are_nowhere_are_named():
    known = {"Fig/gone.jpg": KnownObject("one", START, "Fig", "train")}
    request_ = asked("", keys=("Fig/gone.jpg", "Fig/typo.jpg", KIWI.key))
    plan = plan_of([KIWI], known, RULES, request_)
    assert plan.unknown_keys == ("Fig/typo.jpg",)
    check_keys(plan, request_)
    alone = asked("", keys=("Fig/typo.jpg",))
    with pytest.raises(FruitsError, match="none of them is in the bucket or in the tables: 'Fig/typo.jpg'"):
        check_keys(plan_of([KIWI], known, RULES, alone), alone)


@given(listings(), tables(), requests())
def test_what_remains_is_what_a_sweep_would_do_next(listed, known, request_):
    """With a scope, a limit, or both; a prefix sees no farther than itself."""
    request_ = changed(request_, mode="reconcile" if request_.mode == "rebuild" else request_.mode)
    plan = plan_of(listed, known, LABELLED, request_, "")
    sweep = plan_of(listed, apply(plan, known), LABELLED, EVERYTHING)
    tried_again = sum(known[entry.key].reason is not None for entry in plan.pending if entry.key in known)
    assert len(sweep.entries) <= plan.remaining <= len(sweep.entries) + tried_again


@given(listings(), tables(), requests())
def test_an_action_says_where_its_object_is(listed, known, request_):
    plan = plan_of(listed, known, LABELLED, request_)
    there = {item.key: item for item in listed}
    for entry in (*plan.entries, *plan.pending):
        row, item = known.get(entry.key), there.get(entry.key)
        assert (entry.action == Action.CREATE) == (row is None)
        assert (entry.action == Action.DELETE) == (item is None)
        if item:
            assert (entry.etag, entry.size, entry.last_modified) == (item.etag, item.size, item.last_modified)
        else:
            assert (entry.etag, entry.last_modified, entry.label) == (row.etag, row.last_modified, row.label)
        assert (entry.rejection is None) == (entry.label is not None) or entry.action == Action.DELETE


@given(listings(), tables(), requests().filter(lambda request: request.mode != "rebuild"), st.frozensets(KEYS))
def test_after_a_run_there_is_nothing_left_to_do(listed, known, request_, unreadable):
    request_ = changed(request_, limit=None)
    after = apply(plan_of(listed, known, LABELLED, request_), known, unreadable)
    again = plan_of(listed, after, LABELLED, changed(request_, retry_quarantined=False))
    assert again.entries == ()
    expected = {item.key for item in listed if covered(request_, item.key, item.last_modified)}
    assert {key for key in after if key in scope(listed, after, request_)} == expected


@given(listings(), tables(), st.integers(1, 4), st.frozensets(KEYS))
def test_limited_runs_end_where_one_unlimited_run_does(listed, known, limit, unreadable):
    whole = apply(plan_of(listed, known, LABELLED, EVERYTHING), known, unreadable)
    runs = 0
    while True:
        plan = plan_of(listed, known, LABELLED, changed(EVERYTHING, limit=limit))
        photos = [entry for entry in plan.entries if entry.action != Action.DELETE]
        assert len(photos) <= limit
        assert bool(plan.pending) <= (len(photos) == limit)
        if not plan.entries:
            break
        known = apply(plan, known, unreadable)
        runs += 1
    assert known == whole
    assert not plan.pending
    assert runs <= len(listed) + 1


LITTER = st.sampled_from(
    ["Kiwi/", "a/Kiwi/._0.jpg", "a/__MACOSX/Kiwi/1.jpg", "b/_SUCCESS", "dt=2026-11-20/Kiwi/1.txt", ".x/Kiwi/1.jpg"]
)


@given(listings(), st.sets(LITTER), tables(), requests())
def test_ignored_objects_are_a_state_of_their_own_and_change_nothing_else(listed, litter, known, request_):
    ignored = [ListedObject(key, "one", 9, START) for key in sorted(litter)]
    rules = KeyRules(RULES.pattern, frozenset({"Kiwi", "Fig"}), RULES.ignore)
    without = plan_of(listed, known, rules, request_)
    plan = plan_of([*ignored, *listed], known, rules, request_)
    assert replace(plan, ignored={}) == without
    in_scope = sorted(key for key in litter if covered(request_, key, START))
    assert sum(names.count for names in plan.ignored.values()) == len(in_scope)
    assert {key for names in plan.ignored.values() for key in names.examples} == set(in_scope)
    assert plan == plan_of([*listed[::-1], *ignored[::-1]], known, rules, request_)


def test_the_row_of_an_object_that_a_changed_rule_ignores_is_planned_to_leave():
    listed = [KIWI, ListedObject("Test/old/1.jpg", "one", 9, START), ListedObject("Test/Kiwi/.1.jpg", "one", 9, START)]
    known = {
        KIWI.key: FEATURE,
        "Test/old/1.jpg": replace(FEATURE, label="old"),
        "Test/Kiwi/.1.jpg": KnownObject("one", START, reason="not_an_image"),
    }
    rules = KeyRules.of(Settings.load(**LAKE, ignore="default,old/"))
    plan = plan_of(listed, known, rules, EVERYTHING)
    assert [(entry.key, entry.action) for entry in plan.entries] == [
        ("Test/Kiwi/.1.jpg", Action.DELETE),
        ("Test/old/1.jpg", Action.DELETE),
    ]
    assert {rule: names.examples for rule, names in plan.ignored.items()} == {
        "hidden": ("Test/Kiwi/.1.jpg",),
        "old/": ("Test/old/1.jpg",),
    }
    assert not plan_of(listed, apply(plan, known), rules, EVERYTHING).entries
    back = plan_of(listed, apply(plan, known), RULES, EVERYTHING)
    assert [(entry.key, entry.action) for entry in back.entries] == [("Test/old/1.jpg", Action.CREATE)]


def test_an_ignored_key_that_was_asked_for_is_not_unknown():
    request_ = asked("", keys=("Kiwi/.1.jpg",))
    plan = plan_of([ListedObject("Kiwi/.1.jpg", "one", 9, START)], {}, RULES, request_)
    assert (plan.unknown_keys, plan.entries) == ((), ())
    assert plan.ignored["hidden"].examples == ("Kiwi/.1.jpg",)


def test_labels_that_are_probably_one_are_found_among_all_photos():
    listed = [KIWI, replace(KIWI, key="Test/kiwi/2.jpg"), replace(KIWI, key="Test/Fig/1.jpg")]
    assert plan_of(listed, {KIWI.key: FEATURE}, RULES, EVERYTHING).twins == (("Kiwi", "kiwi"),)


@given(listings(), st.integers(1, 4))
def test_a_limit_takes_the_oldest_photos_and_counts_the_rest(listed, limit):
    plan = plan_of(listed, {}, RULES, changed(EVERYTHING, limit=limit))
    assert len(plan.entries) == min(limit, len(listed))
    assert len(plan.pending) == len(listed) - len(plan.entries)
    newest_taken = max((entry.last_modified for entry in plan.entries), default=START)
    assert all(entry.last_modified >= newest_taken for entry in plan.pending)


def test_a_limit_leaves_no_deletion_over():
    known = {f"Kiwi/{n}.jpg": KnownObject("one", START, "Kiwi", "train") for n in range(5)}
    listed = [ListedObject(f"Fig/{n}.jpg", "one", 9, START) for n in range(5)]
    plan = plan_of(listed, known, RULES, changed(EVERYTHING, limit=1))
    assert (plan.counts[Action.CREATE], plan.counts[Action.DELETE], len(plan.pending)) == (1, 5, 4)


def test_a_limit_is_not_spent_on_photos_that_could_not_be_read_before():
    known = {f"Fig/{n}.jpg": KnownObject("one", START, reason="truncated") for n in range(3)}
    listed = [*(ListedObject(key, "one", 9, START) for key in known), replace(KIWI, last_modified=START + DAY)]
    plan = plan_of(listed, known, RULES, asked("", limit=1, retry_quarantined=True))
    assert [entry.key for entry in plan.entries] == [KIWI.key]
    assert len(plan.pending) == 3


@given(listings(), st.lists(MOMENTS, min_size=2, max_size=6, unique=True).map(sorted))
def test_consecutive_intervals_cover_each_object_exactly_once(listed, bounds):
    intervals = zip([START - 100 * DAY, *bounds], [*bounds, START + 100 * DAY], strict=True)
    requests_ = [asked("", "interval", interval=interval) for interval in intervals]
    planned = [entry.key for request in requests_ for entry in plan_of(listed, {}, RULES, request).entries]
    assert sorted(planned) == sorted(item.key for item in listed)


@given(listings(), tables(), requests())
def test_the_plan_does_not_depend_on_the_order_of_listing_or_tables(listed, known, request_):
    backwards = plan_of(listed[::-1], dict(reversed(known.items())), LABELLED, request_)
    assert backwards == plan_of(listed, known, LABELLED, request_)


@given(listings(), tables(), requests())
def test_what_is_outside_the_scope_is_never_deleted(listed, known, request_):
    after = apply(plan_of(listed, known, LABELLED, request_), known)
    lost = known.keys() - after.keys()
    assert lost <= scope(listed, known, request_) - {item.key for item in listed}


def in_memory(
    listed: list[ListedObject], known: Mapping[str, KnownObject], rules: KeyRules, request: RunRequest, prefix: str
) -> PlanInMemory:
    """The plan, object by object with all of them in memory: what a plan is, whatever its size."""
    there, decided, outside = {item.key: item for item in listed}, [], 0
    reconcile = changed(request, mode="reconcile", retry_quarantined=False)
    for key in {*there, *(key for key in known if key.startswith(prefix))}:
        item, row = there.get(key), known.get(key)
        inside = covered(request, key, (item or row).last_modified)
        entry = entry_of(key, item, row, rules, request if inside else reconcile, None)
        retry = None not in (item, row) and row.reason is not None and row.etag == item.etag
        decided += [(retry, entry)] if inside else []
        outside += not inside and entry.action in WORK
    counts = Counter(entry.action for _, entry in decided)
    photos = sorted(
        (retry, one.last_modified, one.key, one) for retry, one in decided if one.action in ("create", "update")
    )
    deletions = sorted((one.key, one) for _, one in decided if one.action == Action.DELETE)
    ordered = [entry for *_, entry in photos]
    within, beyond = ordered[: request.limit], ordered[len(ordered[: request.limit]) :]
    return PlanInMemory(
        entries=(*within, *(entry for _, entry in deletions)),
        pending=tuple(beyond),
        counts={action: counts[action] - sum(entry.action == action for entry in beyond) for action in Action},
        remaining=outside + len(beyond),
        unknown_keys=tuple(key for key in request.keys if key not in there and key not in known),
        ignored={},
        twins=twin_labels(one.label for _, one in decided if one.action != Action.DELETE and one.label),
    )


@given(listings(), tables(), requests())
def test_the_plan_of_streams_is_the_plan_in_memory(listed, known, request_):
    for prefix in (request_.prefix, ""):
        expected = in_memory(
            [item for item in listed if item.key.startswith(prefix)], known, LABELLED, request_, prefix
        )
        there = [item for item in listed if item.key.startswith(prefix)]
        assert plan_of(there, known, LABELLED, request_, prefix) == expected


@given(listings(), tables(), requests())
def test_keys_are_judged_again_only_where_that_changes_nothing(listed, known, request_):
    """Rows that follow the rules of today, as those of a lake do whose rules never changed."""
    judged = {key: LABELLED.judge(key) for key in known}
    known = {
        key: replace(row, label=judged[key][0], split=judged[key][1]) if row.reason is None else row
        for key, row in known.items()
        if row.reason is not None or judged[key][2] is None
    }
    plan = plan_of(listed, known, LABELLED, request_, "", same_rules=True)
    assert plan == plan_of(listed, known, LABELLED, request_, "")


def test_the_keys_of_unchanged_photos_are_not_judged_while_the_rules_are_the_same(monkeypatch):
    judged = []
    monkeypatch.setattr(KeyRules, "judge", lambda rules, key: judged.append(key) or ("Kiwi", "test", None))
    listed = [KIWI, replace(KIWI, key="Test/Kiwi/2.jpg")]
    plan_of(listed, {KIWI.key: FEATURE}, RULES, EVERYTHING, same_rules=True)
    assert judged == ["Test/Kiwi/2.jpg"]


def test_rules_that_decide_otherwise_have_another_fingerprint():
    made = Settings.load(**LAKE)
    others = [
        made.model_copy(update=change)
        for change in ({"labels": ("Fig",)}, {"holdout_share": 0.5}, {"key_pattern": "(?P<label>.*)"}, {"prefix": "a"})
    ]
    assert len({KeyRules.of(settings).fingerprint for settings in (made, *others)}) == 5
    assert KeyRules.of(Settings.load(**LAKE, ignore="old/")).fingerprint == RULES.fingerprint


def one(item: ListedObject | None, row: KnownObject | None, request: RunRequest = EVERYTHING, rules: KeyRules = RULES):
    """The action on one object."""
    key = item.key if item else "Test/Kiwi/1.jpg"
    plan = plan_of([item] if item else [], {key: row} if row else {}, rules, request)
    (action,) = [action for action, count in plan.counts.items() if count]
    return action


KIWI = ListedObject("Test/Kiwi/1.jpg", "one", 9, START)
STRAY = ListedObject("stray.jpg", "one", 9, START)
FEATURE = KnownObject("one", START, "Kiwi", "test")
STRANGERS = KeyRules(RULES.pattern, frozenset({"Fig"}))


@pytest.mark.parametrize(
    ("item", "row", "request_", "rules", "action"),
    [
        (KIWI, None, EVERYTHING, RULES, Action.CREATE),
        (KIWI, FEATURE, EVERYTHING, RULES, Action.UNCHANGED),
        (KIWI, replace(FEATURE, etag="old"), EVERYTHING, RULES, Action.UPDATE),
        (None, FEATURE, EVERYTHING, RULES, Action.DELETE),
        (KIWI, replace(FEATURE, last_modified=START - DAY), EVERYTHING, RULES, Action.UNCHANGED),
        (KIWI, FEATURE, asked("", "rebuild"), RULES, Action.UPDATE),
        (KIWI, replace(FEATURE, label="Gooseberry"), EVERYTHING, RULES, Action.UPDATE),
        (KIWI, replace(FEATURE, split="train"), EVERYTHING, RULES, Action.UPDATE),
        (KIWI, FEATURE, EVERYTHING, STRANGERS, Action.UPDATE),
        (KIWI, KnownObject("one", START, reason="truncated"), EVERYTHING, RULES, Action.QUARANTINED),
        (KIWI, KnownObject("old", START, reason="truncated"), EVERYTHING, RULES, Action.UPDATE),
        (KIWI, KnownObject("one", START, reason="truncated"), asked("", "rebuild"), RULES, Action.UPDATE),
        (
            KIWI,
            KnownObject("one", START, reason="truncated"),
            asked("", retry_quarantined=True),
            RULES,
            Action.UPDATE,
        ),
        (None, KnownObject("one", START, reason="truncated"), EVERYTHING, RULES, Action.DELETE),
        (KIWI, KnownObject("one", START, reason="key_pattern"), EVERYTHING, RULES, Action.UPDATE),
        (KIWI, KnownObject("one", START, reason="unknown_label"), EVERYTHING, RULES, Action.UPDATE),
        (KIWI, KnownObject("one", START, reason="unknown_label"), EVERYTHING, STRANGERS, Action.QUARANTINED),
        (KIWI, KnownObject("one", START, reason="key_pattern"), EVERYTHING, STRANGERS, Action.UPDATE),
        (KIWI, KnownObject("one", START, reason="truncated"), EVERYTHING, STRANGERS, Action.UPDATE),
        (STRAY, None, EVERYTHING, RULES, Action.CREATE),
        (STRAY, KnownObject("one", START, reason="key_pattern"), EVERYTHING, RULES, Action.QUARANTINED),
        (
            STRAY,
            KnownObject("one", START, reason="key_pattern"),
            asked("", retry_quarantined=True),
            RULES,
            Action.QUARANTINED,
        ),
        (KIWI, KnownObject("one", START, reason="gone"), EVERYTHING, RULES, Action.UPDATE),
    ],
    ids=[
        "new",
        "as it was",
        "overwritten",
        "deleted",
        "touched but the same bytes",
        "rebuild",
        "another label by a changed pattern",
        "another split by a changed holdout",
        "label no longer allowed",
        "still unreadable",
        "overwritten after quarantine",
        "rebuild of quarantine",
        "retry of quarantine",
        "deleted from quarantine",
        "accepted by a changed pattern",
        "accepted by more labels",
        "label still not allowed",
        "pattern now takes it but its label is not allowed",
        "unreadable and its label no longer allowed",
        "stray",
        "stray still",
        "a stray is not worth a retry",
        "uploaded again as it was after it had gone",
    ],
)
def test_the_action_on_an_object(item, row, request_, rules, action):
    assert one(item, row, request_, rules) == action


@pytest.mark.parametrize(
    ("key", "labels", "rejection"),
    [
        ("stray.jpg", (), Reason.KEY_PATTERN),
        ("Test/Weed/1.jpg", ("Kiwi",), Reason.UNKNOWN_LABEL),
        ("Test/Kiwi/1.jpg", ("Kiwi",), None),
        ("Test/Weed/1.jpg", (), None),
    ],
)
def test_a_key_that_is_not_acceptable_is_rejected_with_its_reason(key, labels, rejection):
    rules = KeyRules.of(Settings.load(**LAKE, labels=labels))
    (entry,) = plan_of([ListedObject(key, "one", 9, START)], {}, rules, EVERYTHING).entries
    assert entry.rejection == rejection
    assert (entry.label, entry.split) == ((None, None) if rejection else (key.split("/")[1], "test"))


@pytest.mark.parametrize(
    ("request_", "deleted"),
    [
        (asked(""), {"a/Kiwi/1.jpg", "b/Kiwi/1.jpg", "dt=2026-11-21/Kiwi/1.jpg"}),
        (asked("a/"), {"a/Kiwi/1.jpg"}),
        (asked("", keys=("b/Kiwi/1.jpg", "b/Kiwi/2.jpg")), {"b/Kiwi/1.jpg"}),
        (asked("", "interval", interval=(START, START + DAY)), {"a/Kiwi/1.jpg"}),
        (asked("", "interval", interval=(START + DAY, START + 2 * DAY)), {"dt=2026-11-21/Kiwi/1.jpg"}),
        (asked("b/", "interval", interval=(START, START + DAY)), set()),
    ],
    ids=["everything", "prefix", "keys", "interval", "interval by date in the key", "prefix and interval"],
)
def test_deletions_stay_inside_the_scope(request_, deleted):
    known = {
        "a/Kiwi/1.jpg": KnownObject("one", START, "Kiwi", "train"),
        "b/Kiwi/1.jpg": KnownObject("one", START + 5 * DAY, "Kiwi", "train"),
        "dt=2026-11-21/Kiwi/1.jpg": KnownObject("one", START, "Kiwi", "train"),
    }
    plan = plan_of([], known, RULES, request_)
    assert {entry.key for entry in plan.entries} == deleted
    assert {entry.action for entry in plan.entries} <= {Action.DELETE}


def test_a_backfill_does_not_delete_what_was_overwritten_after_its_interval():
    """The row's last modification lies in the interval, the object's does not: it is still there, for a later run."""
    known = {KIWI.key: replace(FEATURE, etag="old", last_modified=START)}
    listed = [replace(KIWI, last_modified=START + 3 * DAY)]
    plan = plan_of(listed, known, RULES, asked("", "interval", interval=(START, START + DAY)))
    assert plan.entries == ()
    assert one(listed[0], known[KIWI.key]) == Action.UPDATE


REREADING = Rereading(100, 1_000, "pillow-2", frozenset({KIWI.key}), frozenset({"Test/Kiwi/2.jpg"}))


@pytest.mark.parametrize(
    ("reason", "row", "taken"),
    [
        ("too_many_bytes", {"limit": 99}, True),
        ("too_many_bytes", {"limit": 100}, False),
        ("too_many_bytes", {"limit": 101}, False),
        ("too_many_pixels", {"limit": 999}, True),
        ("too_many_pixels", {"limit": 1_000}, False),
        ("too_many_pixels", {}, True),  # the row of an earlier release
        ("corrupt", {"decoder": "pillow-1"}, True),
        ("unsupported_format", {"decoder": "pillow-2"}, False),
        ("not_an_image", {}, True),
        ("too_small", {}, False),
        ("empty", {}, False),
        ("incomplete", {}, False),
    ],
)
def test_what_a_limit_or_a_decoder_refused_is_taken_again_under_another(reason, row, taken):
    listed = [replace(KIWI, key="Test/Kiwi/2.jpg")]
    known = {listed[0].key: KnownObject("one", START, reason=reason, **row)}
    plan = plan_of(listed, known, RULES, EVERYTHING, "", REREADING)
    assert plan.counts[Action.UPDATE if taken else Action.QUARANTINED] == 1
    assert len(plan.entries) == taken


@pytest.mark.parametrize("reason", ["archived", "denied", "kms_key"])
def test_what_was_refused_is_taken_again_when_it_answers(reason):
    listed = [KIWI, replace(KIWI, key="Test/Kiwi/2.jpg")]
    known = {item.key: KnownObject("one", START, reason=reason) for item in listed}
    plan = plan_of(listed, known, RULES, EVERYTHING, "", REREADING)
    assert [(entry.key, entry.action) for entry in plan.entries] == [(KIWI.key, Action.UPDATE)]
    assert plan.counts[Action.QUARANTINED] == 1
