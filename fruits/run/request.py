"""What a run was asked to do: params, how it was started, its data interval and the settings, resolved. No I/O."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from fruits.analysis.pca import RefitPolicy
from fruits.errors import FruitsError
from fruits.photos.keys import check_prefix
from fruits.settings import Settings, count_or_share

Mode = Literal["auto", "reconcile", "interval", "rebuild"]


class Frozen(BaseModel):
    """A value that is parsed once, where it comes in, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunRequest(Frozen):
    """What a run was asked to do, resolved from params, events, interval and settings.

    ``interval`` is half open, in UTC. ``limit`` bounds the photos featurized, None means all. ``backbone`` and
    ``weights`` are None where the run was not asked for any: it then serves readers the backbone that is due.
    ``allow_deletes`` approves deletions beyond the bounds: those with this digest, or any (True).
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
    allow_deletes: bool | str = False
    dry_run: bool = False


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
        allow_deletes=_allow_deletes(params.get("allow_deletes")),
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


def _allow_deletes(value: Any) -> bool | str:
    if value is None or isinstance(value, bool):
        return bool(value)
    text = str(value).strip().lower()
    if text in ("", "false", "true"):
        return text == "true"
    if re.fullmatch("[0-9a-f]{8,64}", text):
        return text
    raise FruitsError(
        f"allow_deletes {value!r}: expected true, or the digest that `fruits status` shows, of at least 8 characters"
    )


def _limit(value: Any) -> int | None:
    if value in (None, "", 0):
        return None
    if isinstance(value, int) and value > 0:
        return value
    raise FruitsError(f"limit {value!r}: expected a number of photos of at least 1, or nothing for all")


@dataclass(frozen=True)
class MaintenanceRequest:
    """What a maintenance run was asked to do.

    A publication is retained while it is younger than ``retention_days`` or among the newest
    ``retention_publications``. A run that was not heard of for ``abandoned_days`` is taken for dead. Files that no
    table refers to are removed when they are older than ``orphan_days``. ``rewrite_all`` sorts every file again.
    """

    retention_days: int
    retention_publications: int
    abandoned_days: int = 3
    orphan_days: int = 3
    rewrite_all: bool = False
    dry_run: bool = False


def resolve_maintenance(params: Mapping[str, Any], settings: Settings) -> MaintenanceRequest:
    """The request that params make; those left empty come from the settings or are defaults.

    Raises:
        FruitsError: naming the param, what was expected and what to do.
    """
    values = {
        "retention_days": settings.retention_days,
        "retention_publications": settings.retention_publications,
        **{name: value for name, value in params.items() if value is not None},
    }
    request = MaintenanceRequest(**values)
    for name, value in asdict(request).items():
        if not isinstance(value, bool) and (not isinstance(value, int) or value < 1):
            raise FruitsError(f"{name} {value!r}: expected a whole number of at least 1; correct the param")
    return request
