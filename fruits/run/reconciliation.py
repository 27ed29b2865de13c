"""The action for each object: the listing compared with the tables, by key and ETag.

``entry_of`` decides about one object. ``make_plan`` streams all pairs of an object and a row past it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from functools import cached_property
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from fruits.photos.entry import WORK, Action, Entry
from fruits.photos.ignore import IgnoreRules, Names
from fruits.photos.keys import KeyPattern, KeyRules, twin_labels
from fruits.photos.listing import ListedObject
from fruits.photos.quarantine import SETTINGS_REASONS, Reason, Rereading
from fruits.run.deletions import Leaving
from fruits.run.joining import ENTRY_SCHEMA, Condition, Joined, of_labels, starts_with
from fruits.run.manifest import entries_batch, entries_of
from fruits.run.request import RunRequest

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Photos tried before come last: else a limit would be spent on the same unreadable ones each time.
_ORDER = "retry, last_modified, key"

_DELETED = Condition("action = 'delete'")
_FEATURIZED = Condition("action <> 'delete'")


@dataclass(frozen=True, slots=True)
class KnownObject:
    """What the tables hold for a key under the run's backbone: a feature (``reason`` None) or a quarantined object."""

    etag: str
    last_modified: datetime
    label: str | None = None
    split: str | None = None
    reason: str | None = None
    limit: int | None = None
    decoder: str | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run will do. The entries themselves stay in the database that the plan was made in.

    Attributes:
        joined: The database, with the entries of the run's scope.
        counts: Objects by action.
        remaining: Objects that will await work after the run: those that a limit left over, and others outside the
            run's scope. None when that is unknown, because the bucket was not listed.
        pending: Photos that a limit left over.
        bound: The last photo within the limit, as it is sorted; None when no photo is left over.
        withheld: Labels whose deletions wait for a person's approval; None stands for all deletions.
        unknown_keys: Requested keys that are neither in the bucket nor in the tables.
        ignored: Objects that are none of ours, by rule.
        twins: Groups of labels that are probably the same (``twin_labels``).
        as_of: The date of the source that showed the objects; None when they were listed or looked up.
        repeated: Rows beyond the first of each key that has an entry.
    """

    joined: Joined
    counts: Mapping[Action, int]
    remaining: int | None = 0
    pending: int = 0
    bound: tuple[Any, ...] | None = None
    withheld: frozenset[str] | None = frozenset()
    unknown_keys: tuple[str, ...] = ()
    ignored: Mapping[str, Names] = field(default_factory=dict)
    twins: tuple[tuple[str, ...], ...] = ()
    as_of: datetime | None = None
    repeated: int = 0

    @property
    def work(self) -> int:
        """The number of entries."""
        return sum(self.counts[action] for action in WORK)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The entries, with ``MANIFEST_SCHEMA``: photos oldest first and retries last, then deletions by key."""
        yield from self.joined.entries(self._photos(), _ORDER)
        yield from self.joined.entries(self._deletions(), "key")

    def entries(self, action: Action | None = None, most: int | None = None) -> Iterator[Entry]:
        """The entries, or the first of those of an action."""
        photos, of_action = self._photos(), f"action = '{action}'"
        if action is not Action.DELETE:
            chosen = photos if action is None else photos.and_(of_action)
            yield from _entries(self.joined.entries(chosen, _ORDER, most))
        if action in (None, Action.DELETE):
            yield from _entries(self.joined.entries(self._deletions(), "key", most))

    def pending_entries(self, most: int | None = None) -> Iterator[Entry]:
        """The photos that the limit left over, or the first of those."""
        if self.bound is not None:
            yield from _entries(self.joined.entries(_beyond(self.bound), _ORDER, most))

    def arriving(self) -> set[str | None]:
        """Labels of photos to featurize, pending ones included."""
        return set(self.joined.by("label", "entries", _FEATURIZED))

    def deleted_by_label(self) -> dict[str | None, int]:
        """The deletions by label, withheld or not; quarantined objects have the label None."""
        return self.joined.by("label", "entries", _DELETED)

    def deletes_any(self, keys: Sequence[str]) -> bool:
        """Whether one of ``keys`` is deleted."""
        return bool(keys) and self.joined.count("entries", _DELETED & _among(keys)) > 0

    def sample_of_deletions(self, most: int) -> list[str]:
        """Keys of at most so many objects whose rows leave, chosen at random."""
        return self.joined.sample("entries", most, self._deletions())

    def has_split(self, split: str) -> bool:
        """Whether a photo to featurize is of a split."""
        return self.joined.count("entries", self._photos().and_("split = ?", split)) > 0

    def leaving(self, labels: Iterable[str] | None = None) -> Leaving:
        """The rows that deletions remove, withheld or not; of these labels only, unless None."""
        return Leaving.of(self.joined.leaving("entries", _DELETED & of_labels(labels)))

    def without(self, labels: frozenset[str] | None) -> "Plan":
        """The plan without the deletions of these labels (None: without any), which wait for a person's approval."""
        left_out = self.joined.count("entries", _DELETED & of_labels(labels))
        counts = {**self.counts, Action.DELETE: self.counts[Action.DELETE] - left_out}
        return replace(self, withheld=labels, counts=counts)

    def _photos(self) -> Condition:
        return (
            _FEATURIZED
            if self.bound is None
            else _FEATURIZED.and_("(retry, last_modified, key) <= (?, ?, ?)", *self.bound)
        )

    def _deletions(self) -> Condition:
        if self.withheld is None:
            return Condition("false")
        others = "(label IS NULL OR label NOT IN (SELECT unnest(?::VARCHAR[])))"
        return _DELETED.and_(others, list(self.withheld)) if self.withheld else _DELETED


def _beyond(bound: Sequence[Any]) -> Condition:
    return _FEATURIZED.and_("(retry, last_modified, key) > (?, ?, ?)", *bound)


def _among(keys: Sequence[str]) -> Condition:
    return Condition("key IN (SELECT unnest(?::VARCHAR[]))", (list(keys),))


def _entries(batches: Iterable[pa.RecordBatch]) -> Iterator[Entry]:
    for batch in batches:
        yield from entries_of(batch)


@dataclass
class Ignored:
    """The objects of a listing that are none of ours.

    Attributes:
        ignore: The rules.
        in_scope: Does the run cover an object, by its key and its last modification?
        number: Objects that a rule ignores.
        first: The key of the first of these; None when there is none.
        by_rule: Those that the run covers, by rule.
    """

    ignore: IgnoreRules
    in_scope: Callable[[str, datetime], bool]
    number: int = 0
    first: str | None = None
    by_rule: dict[str, Names] = field(default_factory=dict)

    @classmethod
    def by(cls, rules: KeyRules, request: RunRequest) -> "Ignored":
        """Nothing yet, by the rules and for the scope of a run."""
        return cls(rules.ignore, _scope(request, rules.pattern))

    def others(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches of a listing without ignored objects, which are noted."""
        for batch in batches:
            rules = list(map(self.ignore.rule_of, batch["key"].to_pylist()))
            if any(rules):
                for place, rule in enumerate(rules):
                    if rule is not None:
                        self._note(rule, batch["key"][place].as_py(), batch["last_modified"][place].as_py())
                yield batch.filter(pc.is_null(pa.array(rules, pa.string())))
            else:
                yield batch

    def _note(self, rule: str, key: str, last_modified: datetime) -> None:
        self.number += 1
        self.first = key if self.first is None else self.first
        if self.in_scope(key, last_modified):
            self.by_rule[rule] = self.by_rule.get(rule, Names()).and_also(key)


def make_plan(
    joined: Joined,
    ignored: Ignored,
    rules: KeyRules,
    request: RunRequest,
    listed_prefix: str | None = None,
    rereading: Rereading | None = None,
    *,
    same_rules: bool = False,
) -> Plan:
    """Reconcile the listing with the tables, by key and ETag, inside the scope of ``request``.

    Photos to featurize are taken oldest first, so a limited run leaves the newest for the next one. Deletions are never
    left over. The row of an object that a rule now ignores is deleted: the object is none of ours.

    Args:
        joined: The objects that no rule ignores, and the rows.
        ignored: The other objects.
        rules: The rules for keys.
        request: What the run is to do.
        listed_prefix: What was listed; by default the request's prefix.
        rereading: Which quarantined objects are worth another read.
        same_rules: Whether all rows were judged by these rules. The keys of unchanged photos are then not judged again.
    """
    prefix = request.prefix if listed_prefix is None else listed_prefix
    # Only a run that reconciles leaves all features alone whose objects have not changed.
    decided = same_rules and request.mode == "reconcile"
    sorter = _Sorter(rules, request, rereading)
    joined.add("entries", sorter.entries(joined.pairs(prefix, changed=decided)))
    repeated = joined.drop_repeated()
    counts, labels = sorter.counts, set(sorter.labels)
    for action, number in repeated.items():
        counts[Action(action)] -= number
    if decided:
        in_scope = _covered(request)
        counts[Action.UNCHANGED] += joined.count("listed", in_scope) - sorter.objects + repeated[Action.UPDATE]
        before = joined.by_label("known", in_scope)
        labels |= {label for label, number in before.items() if number > sorter.rows_by_label[label]}
    bound = _last_within(joined, request.limit)
    left_over = joined.by("action", "entries", _beyond(bound)) if bound else {}
    for action, number in left_over.items():
        counts[Action(action)] -= number
    pending = sum(left_over.values())
    return Plan(
        joined=joined,
        counts={action: counts[action] for action in Action},
        remaining=sorter.outside + pending,
        pending=pending,
        bound=bound,
        unknown_keys=_unknown(joined, request.keys, rules.ignore),
        ignored=dict(sorted(ignored.by_rule.items())),
        twins=twin_labels(label for label in labels if label),
        repeated=repeated.total(),
    )


def _covered(request: RunRequest) -> Condition:
    """Does a run without an interval cover the column ``key``?"""
    starts = starts_with(request.prefix)
    return starts & _among(request.keys) if request.keys else starts


def _last_within(joined: Joined, limit: int | None) -> tuple[Any, ...] | None:
    """The last photo within the limit, as photos are sorted; None when no photo is beyond."""
    photos = _FEATURIZED
    if limit is None or joined.count("entries", photos) <= limit:
        return None
    return joined.place(photos, _ORDER, limit - 1)


def _unknown(joined: Joined, keys: Sequence[str], ignore: IgnoreRules) -> tuple[str, ...]:
    there = joined.present("listed", keys) | joined.present("known", keys)
    return tuple(key for key in keys if key not in there and not ignore.rule_of(key))


@dataclass(eq=False)
class _Sorter:
    """Decides about pairs, and counts."""

    rules: KeyRules
    request: RunRequest
    rereading: Rereading | None
    counts: Counter[Action] = field(default_factory=Counter)
    labels: set[str | None] = field(default_factory=set)
    rows_by_label: Counter[str | None] = field(default_factory=Counter)
    objects: int = 0
    outside: int = 0

    @cached_property
    def in_scope(self) -> Callable[[str, datetime], bool]:
        """Does the run cover an object?"""
        return _scope(self.request, self.rules.pattern)

    @cached_property
    def reconcile(self) -> RunRequest:
        """What a sweep would do with an object outside the scope."""
        return self.request.model_copy(update={"mode": "reconcile", "retry_quarantined": False})

    def entries(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The entries of the run, pending ones included, with a column ``retry``."""
        for batch in batches:
            decided = [entry for pair in _pairs(batch) if (entry := self._decided(*pair)) is not None]
            if decided:
                yield _to_batch(decided)

    def _decided(self, key: str, item: ListedObject | None, row: KnownObject | None) -> tuple[Entry, bool] | None:
        """The entry of a pair and whether it is a retry; None when the run does nothing with the object.

        An object is where the bucket says, and only if it is not there, where the tables say: overwritten since, it may
        have left an interval that its row is in.
        """
        inside = self.in_scope(key, cast("ListedObject | KnownObject", item or row).last_modified)
        entry = entry_of(key, item, row, self.rules, self.request if inside else self.reconcile, self.rereading)
        if not inside:
            self.outside += entry.action in WORK
            return None
        self.counts[entry.action] += 1
        if row is not None and row.reason is None:
            self.rows_by_label[row.label] += 1
        if item is not None:
            self.objects += 1
            self.labels.add(entry.label)
        if entry.action not in WORK:
            return None
        return entry, item is not None and row is not None and row.reason is not None and row.etag == item.etag


def _pairs(batch: pa.RecordBatch) -> Iterator[tuple[str, ListedObject | None, KnownObject | None]]:
    """Key, object and row of each pair of a batch of ``Joined.pairs``."""
    columns = [column.to_pylist() for column in batch.columns]
    for key, etag, size, modified, known_key, known_etag, known_modified, *rest in zip(*columns, strict=True):
        row = None if known_key is None else KnownObject(known_etag, _moment(known_modified), *rest)
        if key is None:
            yield known_key, None, row
        else:
            yield key, ListedObject(key, etag, size, _moment(modified)), row


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _to_batch(decided: Sequence[tuple[Entry, bool]]) -> pa.RecordBatch:
    """Entries, and whether each is a retry."""
    entries, retries = zip(*decided, strict=True)
    return entries_batch(entries).append_column(ENTRY_SCHEMA.field("retry"), pa.array(retries))


def _scope(request: RunRequest, pattern: KeyPattern) -> Callable[[str, datetime], bool]:
    """A predicate on key and last-modified time: does the run cover the object?"""
    keys = frozenset(request.keys)

    def in_scope(key: str, last_modified: datetime) -> bool:
        if not key.startswith(request.prefix) or (keys and key not in keys):
            return False
        if request.interval is None:
            return True
        parsed = pattern.parse(key)
        day = parsed.date if parsed else None
        moment = datetime.combine(day, time(), UTC) if day else last_modified
        return request.interval[0] <= moment < request.interval[1]

    return in_scope


def entry_of(
    key: str,
    item: ListedObject | None,
    row: KnownObject | None,
    rules: KeyRules,
    request: RunRequest,
    rereading: Rereading | None,
) -> Entry:
    """The entry of an object and the row of its key, of which one is there."""
    if item is None:
        gone = cast("KnownObject", row)
        return Entry(key, gone.etag, 0, gone.last_modified, Action.DELETE, gone.label, gone.split)
    label, split, rejection = rules.judge(key)
    action = _action(item, row, (label, split, rejection), request, rereading)
    return Entry(key, item.etag, item.size, item.last_modified, action, label, split, rejection)


def _action(
    item: ListedObject,
    row: KnownObject | None,
    judged: tuple[str | None, str | None, Reason | None],
    request: RunRequest,
    rereading: Rereading | None,
) -> Action:
    label, split, rejection = judged
    if row is None:
        return Action.CREATE
    if row.etag != item.etag or request.mode == "rebuild":
        return Action.UPDATE
    if row.reason is None:
        # Pattern, labels or holdout share changed since: the row's label or split is no longer what the key says.
        return Action.UNCHANGED if (row.label, row.split, rejection) == (label, split, None) else Action.UPDATE
    if rejection is not None:
        return Action.QUARANTINED if row.reason == rejection else Action.UPDATE
    # Listed, so what was gone is back, with the same bytes.
    again = request.retry_quarantined or row.reason == Reason.GONE or row.reason in SETTINGS_REASONS
    again = again or (rereading is not None and rereading.is_due(item.key, row.reason, row.limit, row.decoder))
    return Action.UPDATE if again else Action.QUARANTINED
