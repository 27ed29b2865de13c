"""The action for each object: the listing compared with the tables, by key and ETag. Pure functions; no I/O."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time

from fruits.photos.entry import WORK, Action, Entry
from fruits.photos.ignore import IgnoreRules, Names
from fruits.photos.keys import KeyPattern, KeyRules, twin_labels
from fruits.photos.listing import ListedObject
from fruits.photos.quarantine import SETTINGS_REASONS, Reason, Rereading
from fruits.run.request import RunRequest


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


@dataclass(frozen=True)
class Plan:
    """What a run will do: entries to work on, entries that a limit left over, and how many objects have each action.

    ``remaining`` objects will await work after the run: those that a limit left over, and others outside the run's
    scope. ``unknown_keys`` are requested keys that are neither in the bucket nor in the tables. ``ignored`` are objects
    that are none of ours, by rule. ``twins`` are groups of labels that are probably the same (``twin_labels``).
    """

    entries: tuple[Entry, ...]
    pending: tuple[Entry, ...]
    counts: Mapping[Action, int] = field(default_factory=dict)
    remaining: int = 0
    unknown_keys: tuple[str, ...] = ()
    ignored: Mapping[str, Names] = field(default_factory=dict)
    twins: tuple[tuple[str, ...], ...] = ()

    def without(self, withheld: Sequence[Entry]) -> "Plan":
        """The plan without entries that wait for a person's approval."""
        keys = {entry.key for entry in withheld}
        left_out = Counter(entry.action for entry in withheld)
        return replace(
            self,
            entries=tuple(entry for entry in self.entries if entry.key not in keys),
            counts={action: count - left_out[action] for action, count in self.counts.items()},
        )


def make_plan(
    listed: Iterable[ListedObject],
    known: Mapping[str, KnownObject],
    rules: KeyRules,
    request: RunRequest,
    listed_prefix: str | None = None,
    rereading: Rereading | None = None,
) -> Plan:
    """Reconcile the listing with the tables, by key and ETag, inside the scope of ``request``.

    ``listed_prefix`` is what ``listed`` lists, by default the request's prefix. Photos to featurize are taken oldest
    first, so a limited run leaves the newest for the next one. Deletions are never left over. The row of an object that
    a rule now ignores is deleted: the object is none of ours. ``rereading`` says which quarantined objects are worth
    another read.
    """
    listed_prefix = request.prefix if listed_prefix is None else listed_prefix
    counts: Counter[Action] = Counter()
    photos: list[Entry] = []
    seen: set[str] = set()
    labels: set[str | None] = set()
    ignored: dict[str, Names] = {}

    def is_retry(entry: Entry) -> bool:
        row = known.get(entry.key)
        return row is not None and row.reason is not None and row.etag == entry.etag

    in_scope = _scope(request, rules.pattern)
    outside = 0
    reconcile = request.model_copy(update={"mode": "reconcile", "retry_quarantined": False})
    for item in _ours(listed, rules.ignore, in_scope, ignored):
        seen.add(item.key)  # in scope or not: overwritten since, it may have left an interval that its row is in
        if not in_scope(item.key, item.last_modified):
            outside += _entry(item, known.get(item.key), rules, reconcile, rereading).action in WORK
            continue
        entry = _entry(item, known.get(item.key), rules, request, rereading)
        counts[entry.action] += 1
        labels.add(entry.label)
        if entry.action in WORK:
            photos.append(entry)
    gone = [
        Entry(key, row.etag, 0, row.last_modified, Action.DELETE, row.label, row.split)
        for key, row in known.items()
        if key not in seen and key.startswith(listed_prefix)
    ]
    deletions = [entry for entry in gone if in_scope(entry.key, entry.last_modified)]
    counts[Action.DELETE] += len(deletions)
    # Photos tried before come last: else a limit would be spent on the same unreadable ones each time.
    photos.sort(key=lambda entry: (is_retry(entry), entry.last_modified, entry.key))
    now, later = photos[: request.limit], photos[len(photos[: request.limit]) :]
    for entry in later:
        counts[entry.action] -= 1
    return Plan(
        entries=(*now, *sorted(deletions, key=lambda entry: entry.key)),
        pending=tuple(later),
        counts={action: counts[action] for action in Action},
        remaining=outside + len(gone) - len(deletions) + len(later),
        unknown_keys=tuple(
            key for key in request.keys if key not in seen and key not in known and not rules.ignore.rule_of(key)
        ),
        ignored=dict(sorted(ignored.items())),
        twins=twin_labels(label for label in labels if label),
    )


def _ours(
    listed: Iterable[ListedObject],
    ignore: IgnoreRules,
    in_scope: Callable[[str, datetime], bool],
    ignored: dict[str, Names],
) -> Iterator[ListedObject]:
    """The objects that no rule ignores. Those of the others that are in scope are counted in ``ignored``."""
    for item in listed:
        rule = ignore.rule_of(item.key)
        if rule is None:
            yield item
        elif in_scope(item.key, item.last_modified):
            ignored[rule] = ignored.get(rule, Names()).and_also(item.key)


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


def _entry(
    item: ListedObject,
    row: KnownObject | None,
    rules: KeyRules,
    request: RunRequest,
    rereading: Rereading | None,
) -> Entry:
    label, split, rejection = rules.judge(item.key)
    action = _action(item, row, (label, split, rejection), request, rereading)
    return Entry(item.key, item.etag, item.size, item.last_modified, action, label, split, rejection)


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
