"""What does this run cover, and what is to be done with each object? Pure functions; no I/O."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, time
from enum import StrEnum
from typing import Any, Literal, get_args

from fruits.analysis.pca import RefitPolicy
from fruits.errors import FruitsError
from fruits.photos.keys import KeyPattern, check_prefix
from fruits.photos.listing import ListedObject
from fruits.photos.quarantine import SETTINGS_REASONS, Reason
from fruits.settings import Settings, count_or_share

Mode = Literal["auto", "reconcile", "interval", "rebuild"]


class Action(StrEnum):
    """What a run does with an object. Every object in its scope has exactly one."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"
    QUARANTINED = "quarantined"  # unreadable before, and not changed since


WORK = frozenset({Action.CREATE, Action.UPDATE, Action.DELETE})


@dataclass(frozen=True)
class RunRequest:
    """What a run was asked to do, resolved from params, events, interval and settings.

    ``interval`` is half open, in UTC. ``limit`` bounds the photos featurized, None means all. ``backbone`` and
    ``weights`` are None where the run was not asked for any: it then serves readers the backbone that is due.
    """

    prefix: str
    mode: Literal["reconcile", "interval", "rebuild"] = "reconcile"
    keys: tuple[str, ...] = ()
    interval: tuple[datetime, datetime] | None = None
    backbone: str | None = None
    weights: str | None = None
    n_components: int | float = 0.95
    refit: RefitPolicy = "auto"
    limit: int | None = None
    retry_quarantined: bool = False
    dry_run: bool = False

    def to_document(self) -> dict[str, Any]:
        """As JSON types."""
        interval = [moment.isoformat() for moment in self.interval] if self.interval else None
        return {**asdict(self), "keys": list(self.keys), "interval": interval}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "RunRequest":
        """The inverse of ``to_document``."""
        interval = document["interval"]
        start_end = (datetime.fromisoformat(interval[0]), datetime.fromisoformat(interval[1])) if interval else None
        return cls(**{**document, "keys": tuple(document["keys"]), "interval": start_end})


def resolve_request(
    params: Mapping[str, Any],
    settings: Settings,
    *,
    run_type: str = "manual",
    data_interval: tuple[datetime, datetime] | None = None,
) -> RunRequest:
    """Decide what a run covers: its params first, then how it was started, then its data interval.

    A run started by hand, by the schedule or by an asset event reconciles the whole prefix: an event only wakes the
    chain. A backfill covers its data interval. ``mode`` overrides either. ``data_interval`` is None for runs that have
    none.

    Raises:
        FruitsError: naming the param, what was expected and what to do.
    """
    mode = _mode(params.get("mode") or "auto", run_type)
    if mode == "interval" and data_interval is None:
        raise FruitsError(
            "mode 'interval' needs a data interval; start the run as a backfill, or choose mode 'reconcile'"
        )
    prefix = check_prefix(str(params.get("prefix") or settings.prefix))
    if not prefix.startswith(settings.prefix):
        raise FruitsError(
            f"prefix {prefix!r}: it is outside FRUITS_PREFIX, {settings.prefix!r}, where no sweep would keep photos up "
            "to date; correct the param `prefix`"
        )
    keys = tuple(sorted({key.strip() for key in params.get("keys") or () if key.strip()}))
    outside = [key for key in keys if not key.startswith(prefix)]
    if outside:
        raise FruitsError(
            f"keys: {outside[0]!r} does not start with the prefix {prefix!r}; correct the key or the prefix"
        )
    limit = _limit(params.get("limit"))
    if mode == "rebuild" and limit:
        raise FruitsError("mode 'rebuild' with a limit would take the same photos each time; leave `limit` empty")
    return RunRequest(
        prefix=prefix,
        mode=mode,
        keys=keys,
        interval=data_interval if mode == "interval" else None,
        backbone=params.get("backbone") or None,
        weights=params.get("weights") or None,
        n_components=_n_components(params.get("n_components"), settings),
        refit=_refit(params.get("refit") or "auto"),
        limit=limit,
        retry_quarantined=bool(params.get("retry_quarantined")),
        dry_run=bool(params.get("dry_run")),
    )


def _mode(mode: Mode, run_type: str) -> Literal["reconcile", "interval", "rebuild"]:
    if mode == "auto":
        return "interval" if run_type == "backfill" else "reconcile"
    if mode not in ("reconcile", "interval", "rebuild"):
        raise FruitsError(f"mode {mode!r}: expected auto, reconcile, interval or rebuild")
    return mode


def _refit(refit: RefitPolicy) -> RefitPolicy:
    if refit not in get_args(RefitPolicy):
        raise FruitsError(f"refit {refit!r}: expected {', '.join(get_args(RefitPolicy))}")
    return refit


def _n_components(value: Any, settings: Settings) -> int | float:
    if value in (None, ""):
        return settings.n_components
    try:
        return count_or_share(value)
    except ValueError as error:
        raise FruitsError(f"n_components {value!r}: {error}") from None


def _limit(value: Any) -> int | None:
    if value in (None, "", 0):
        return None
    if isinstance(value, int) and value > 0:
        return value
    raise FruitsError(f"limit {value!r}: expected a number of photos of at least 1, or nothing for all")


@dataclass(frozen=True, slots=True)
class KnownObject:
    """What the tables hold for a key under the run's backbone: a feature (``reason`` None) or a quarantined object."""

    etag: str
    last_modified: datetime
    label: str | None = None
    split: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the manifest: an object and what to do with it.

    ``rejection`` is the reason for which the object is quarantined without being read; label and split are then None.
    For a DELETE the object's fields are those that the tables knew.
    """

    key: str
    etag: str
    size: int
    last_modified: datetime
    action: Action
    label: str | None = None
    split: str | None = None
    rejection: Reason | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will do: entries to work on, entries that a limit left over, and how many objects have each action.

    ``remaining`` objects will await work after the run: those a limit left over, and others outside the run's scope.
    ``unknown_keys`` were asked for, and are neither in the bucket nor in the tables.
    """

    entries: tuple[Entry, ...]
    pending: tuple[Entry, ...]
    counts: Mapping[Action, int] = field(default_factory=dict)
    remaining: int = 0
    unknown_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeyRules:
    """Judges keys: pattern and allowed labels (empty: any)."""

    pattern: KeyPattern
    labels: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> "KeyRules":
        """The rules of the settings."""
        return cls(KeyPattern.of(settings), frozenset(settings.labels))

    def judge(self, key: str) -> tuple[str | None, str | None, Reason | None]:
        """Label, split and, when the key is not acceptable, the reason."""
        parsed = self.pattern.parse(key)
        if parsed is None:
            return None, None, Reason.KEY_PATTERN
        if self.labels and parsed.label not in self.labels:
            return None, None, Reason.UNKNOWN_LABEL
        return parsed.label, parsed.split, None


def make_plan(
    listed: Iterable[ListedObject],
    known: Mapping[str, KnownObject],
    rules: KeyRules,
    request: RunRequest,
    listed_prefix: str | None = None,
) -> Plan:
    """Reconcile the listing with the tables, by key and ETag, inside the scope of ``request``.

    ``listed_prefix`` is what ``listed`` lists, by default the request's prefix. Photos to featurize are taken oldest
    first, so a limited run leaves the newest for the next one. Deletions are never left over.
    """
    listed_prefix = request.prefix if listed_prefix is None else listed_prefix
    counts: Counter[Action] = Counter()
    photos: list[Entry] = []
    seen: set[str] = set()

    def is_retry(entry: Entry) -> bool:
        row = known.get(entry.key)
        return row is not None and row.reason is not None and row.etag == entry.etag

    in_scope = _scope(request, rules.pattern)
    outside = 0
    reconcile = replace(request, mode="reconcile", retry_quarantined=False)
    for item in listed:
        seen.add(item.key)  # in scope or not: overwritten since, it may have left an interval that its row is in
        if not in_scope(item.key, item.last_modified):
            outside += _entry(item, known.get(item.key), rules, reconcile).action in WORK
            continue
        entry = _entry(item, known.get(item.key), rules, request)
        counts[entry.action] += 1
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
        unknown_keys=tuple(key for key in request.keys if key not in seen and key not in known),
    )


def _scope(request: RunRequest, pattern: KeyPattern):  # type: ignore[no-untyped-def]
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


def _entry(item: ListedObject, row: KnownObject | None, rules: KeyRules, request: RunRequest) -> Entry:
    label, split, rejection = rules.judge(item.key)
    action = _action(item, row, (label, split, rejection), request)
    return Entry(item.key, item.etag, item.size, item.last_modified, action, label, split, rejection)


def _action(
    item: ListedObject,
    row: KnownObject | None,
    judged: tuple[str | None, str | None, Reason | None],
    request: RunRequest,
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
    if request.retry_quarantined or row.reason == Reason.GONE or row.reason in SETTINGS_REASONS:
        return Action.UPDATE
    return Action.QUARANTINED


def run_slug(run_id: str) -> str:
    """``run_id`` as it can be used in branch names and paths, still unique: ``manual_2026_11_22t09_30_00_1f3a``."""
    plain = re.sub(r"[^a-z0-9]+", "_", run_id.lower()).strip("_")
    return f"{plain[:60]}_{hashlib.sha256(run_id.encode()).hexdigest()[:6]}"
