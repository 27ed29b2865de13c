"""What a run was asked to do: params, how it was started, its data interval and the settings, resolved. No I/O."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from fruits.analysis.pca import RefitPolicy
from fruits.errors import FruitsError
from fruits.photos.keys import check_prefix
from fruits.settings import Settings, count_or_share

Mode = Literal["auto", "reconcile", "interval", "rebuild"]


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
