"""The request of a run, resolved from its params, its start, its data interval and the settings. No I/O."""

import difflib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fruits.analysis.pca import RefitPolicy
from fruits.errors import FruitsError
from fruits.photos.keys import check_prefix
from fruits.settings import Precision, Settings, count_or_share, holds_secret, public_uri

Mode = Literal["auto", "reconcile", "interval", "rebuild"]


class Frozen(BaseModel):
    """A value that is parsed once, at the edge, and never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _whole(value: object) -> object:
    """Take 5.0 as 5, because JSON has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _keys(value: object) -> object:
    """Take a text as one key; sort the keys and drop duplicates."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(key, str) for key in listed):
        raise ValueError("expected a list of keys")
    return tuple(sorted({key.strip() for key in listed if key.strip()}))


def _allowance(value: object) -> object:
    """Parse true, false or the start of a digest; the trigger form sends text."""
    text = str(value).strip().lower() if isinstance(value, bool | str) else ""
    if text in ("true", "false"):
        return text == "true"
    if not re.fullmatch("[0-9a-f]{8,64}", text):
        raise ValueError("expected true or a digest")
    return text


Whole = Annotated[int, BeforeValidator(_whole)]


class RunParams(Frozen):
    """The params of a run of ``fruit_features``: their names, types and defaults, for the trigger form and the CLI.

    A refusal quotes the description of the field as the expected value.
    """

    model_config = ConfigDict(strict=True)

    prefix: str | None = Field(None, description="the start of object keys, such as 'Training/'")
    keys: Annotated[tuple[str, ...], BeforeValidator(_keys)] = Field(
        (), description="a list of object keys, such as ['Training/Kiwi/1.jpg']"
    )
    mode: Mode = Field("auto", description="auto, reconcile, interval or rebuild")
    backbone: str | None = Field(None, description="the name of a backbone, such as 'MobileNetV2'")
    weights: str | None = Field(None, description="'default', 'imagenet', a path or a URI")
    precision: Precision | None = Field(None, description="fp32 or int8, or nothing for FRUITS_PRECISION")
    n_components: Annotated[int | float | None, BeforeValidator(count_or_share)] = Field(
        None, description="a count (1, 2, ...) or a share of variance between 0 and 1"
    )
    refit: RefitPolicy = Field("auto", description="auto, always or never")
    limit: Whole | None = Field(None, ge=1, description="a number of photos of at least 1, or nothing for all")
    retry_quarantined: bool = Field(False, description="true or false")
    allow_deletes: Annotated[bool | str, BeforeValidator(_allowance)] = Field(
        False, description="true, or the digest that `fruits status` shows, of at least 8 characters"
    )
    dry_run: bool = Field(False, description="true or false")
    settle_seconds: Whole = Field(10, ge=0, description="a whole number of seconds")
    sensor_timeout: Whole | None = Field(None, ge=1, description="a whole number of seconds of at least 1")


class RunRequest(Frozen):
    """The request of a run, resolved from params, events, interval and settings.

    With mode ``events`` the run covers the keys of the events that are kept when it is planned. ``interval`` is half
    open, in UTC. ``limit`` bounds the photos to featurize; None means all. ``backbone``, ``weights`` and ``precision``
    are None when the run requests none; the run then works under the effective backbone. ``allow_deletes`` approves
    deletions beyond the bounds: those with this digest, or any deletions (True).
    """

    prefix: str
    mode: Literal["reconcile", "interval", "rebuild", "events"] = "reconcile"
    keys: tuple[str, ...] = ()
    interval: tuple[datetime, datetime] | None = None
    backbone: str | None = None
    weights: str | None = None
    precision: Precision | None = None
    n_components: int | float = 0.95
    refit: RefitPolicy = "auto"
    limit: int | None = None
    retry_quarantined: bool = False
    allow_deletes: bool | str = False
    dry_run: bool = False

    @property
    def lists(self) -> bool:
        """Whether the run lists the bucket. Else it looks up single keys: those of events, or of the param ``keys``."""
        return self.mode != "events" and not self.keys

    def sweeps(self, prefix: str) -> bool:
        """Whether the run covers all photos of the settings' ``prefix``."""
        return self.lists and self.mode != "interval" and self.prefix == prefix


def resolve_request(
    params: Mapping[str, Any],
    settings: Settings,
    *,
    run_type: str = "manual",
    data_interval: tuple[datetime, datetime] | None = None,
    keys_are_kept: bool = False,
) -> RunRequest:
    """Decide what a run covers: by its params first, then by its start, then by its data interval.

    A run by hand or by the schedule reconciles the whole prefix. So does a run that an asset event woke, unless the
    keys that the event names are kept in the lake: then the run covers these keys. A backfill covers its data interval.
    ``mode`` overrides all. ``data_interval`` is None for runs without an interval.

    Raises:
        FruitsError: naming the param, what was expected and what to do.
    """
    asked = _parsed(RunParams, params)
    by_events = keys_are_kept and run_type == "asset_triggered" and asked == RunParams()
    mode = "events" if by_events else _resolved(asked.mode, run_type)
    if mode == "interval" and data_interval is None:
        raise FruitsError(
            "mode 'interval' needs a data interval; start the run as a backfill, or choose mode 'reconcile'"
        )
    prefix = check_prefix(asked.prefix or settings.prefix)
    if not prefix.startswith(settings.prefix):
        raise FruitsError(
            f"prefix {prefix!r}: it is outside FRUITS_PREFIX, {settings.prefix!r}, where no sweep would keep photos up "
            "to date; correct the param `prefix`"
        )
    outside = [key for key in asked.keys if not key.startswith(prefix)]
    if outside:
        raise FruitsError(
            f"keys: {outside[0]!r} does not start with the prefix {prefix!r}; correct the key or the prefix"
        )
    if asked.weights and holds_secret(asked.weights):
        raise FruitsError(
            f"weights {public_uri(asked.weights)!r}: expected an address without a query and a password, because "
            "Airflow keeps the params of a run; withdraw that signature or password, and set FRUITS_WEIGHTS instead"
        )
    if mode == "rebuild" and asked.limit:
        raise FruitsError("mode 'rebuild' with a limit would take the same photos each time; leave `limit` empty")
    return RunRequest(
        prefix=prefix,
        mode=mode,
        keys=asked.keys,
        interval=data_interval if mode == "interval" else None,
        backbone=asked.backbone,
        weights=asked.weights,
        precision=asked.precision,
        n_components=settings.n_components if asked.n_components is None else asked.n_components,
        refit=asked.refit,
        limit=asked.limit,
        retry_quarantined=asked.retry_quarantined,
        allow_deletes=asked.allow_deletes,
        dry_run=asked.dry_run,
    )


def _resolved(mode: Mode, run_type: str) -> Literal["reconcile", "interval", "rebuild"]:
    if mode == "auto":
        return "interval" if run_type == "backfill" else "reconcile"
    return mode


_DAYS = "a whole number of days of at least 1"


class MaintenanceRequest(Frozen):
    """The request of a maintenance run; the params of ``fruit_maintenance`` have the same names.

    A publication is retained while it is younger than ``retention_days`` or among the newest
    ``retention_publications``. A run that has written nothing for ``abandoned_days`` counts as dead. Files that no
    table refers to are removed when they are older than ``orphan_days``. ``rewrite_all`` sorts every file again.
    """

    model_config = ConfigDict(strict=True, extra="ignore")  # documents of earlier releases

    retention_days: Whole = Field(ge=1, description=_DAYS)
    retention_publications: Whole = Field(ge=1, description="a whole number of at least 1")
    abandoned_days: Whole = Field(3, ge=1, description=_DAYS)
    orphan_days: Whole = Field(3, ge=1, description=_DAYS)
    rewrite_all: bool = Field(False, description="true or false")
    dry_run: bool = Field(False, description="true or false")


def resolve_maintenance(params: Mapping[str, Any], settings: Settings) -> MaintenanceRequest:
    """The request from params; empty params come from the settings or have defaults.

    Raises:
        FruitsError: naming the param, what was expected and what to do.
    """
    from_settings = {
        "retention_days": settings.retention_days,
        "retention_publications": settings.retention_publications,
    }
    return _parsed(MaintenanceRequest, params, from_settings)


Params = TypeVar("Params", bound=BaseModel)


def _parsed(
    model: type[Params],
    params: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Params:
    """``params`` as a ``model``. None and empty text are defaults, but neither true nor false.

    Raises:
        FruitsError: naming the param, and the expected value or the nearest name.
    """
    if not isinstance(params, Mapping):
        raise FruitsError(f'params {params!r}: expected an object of names and values, such as {{"limit": 100}}')
    fields = model.model_fields
    for name in params:
        if name not in fields:
            nearest = difflib.get_close_matches(str(name).lower(), fields, 1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"the params are {', '.join(fields)}."
            raise FruitsError(f"param {name!r}: there is no such param; {advice} Correct the conf and start a new run.")
    given = {
        name: value for name, value in params.items() if value not in (None, "") or fields[name].annotation is bool
    }
    try:
        return model.model_validate({**(defaults or {}), **given})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise FruitsError(
            f"{name} {params.get(name)!r}: expected {fields[name].description}; correct the param"
        ) from None
