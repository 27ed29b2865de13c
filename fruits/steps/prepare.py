"""The task `prepare`: check that everything the run needs is there, and build its backbone when it is missing."""

import logging
import os
import subprocess
from collections.abc import Sequence

from fruits.backbones.stage import described_backbone, staged_card
from fruits.backbones.weights import check_place
from fruits.errors import ExitCode, FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.lake.counters import COUNTED, live_rows
from fruits.lake.reader import NoLakeError, open_read_only
from fruits.lake.rebuild import check_catalog_is_current
from fruits.lake.source import bind_source, check_source
from fruits.photos.fetch import PHOTOS_ASKED, PUBLISHED_ASKED
from fruits.photos.listing import first_photos
from fruits.run.events import kept_events
from fruits.run.manifest import evenly
from fruits.run.migration import migrate
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.stores import can_read_any, check_lake, check_photos, photo_store

log = logging.getLogger("fruits")


def prepare(settings: Settings, request: RunRequest) -> bool:
    """Check bucket, catalog and lake, migrate the lake, and stage the backbone that was asked for.

    A dry run only checks. Returns whether the lake has published rows; a run that lists does not ask.

    Raises:
        FruitsError: says what is missing and what to do.
    """
    first = photos_to_ask(settings, request)
    try:
        check_photos(settings, evenly(first, PHOTOS_ASKED))
    except TransientError:
        raise
    except FruitsError:  # `featurize` then says of each photo why it is refused
        if not _published_photo_readable(settings):
            raise
    if request.dry_run:
        check_for_dry_run(settings, request)
        return True
    if settings.lake_kind == "s3":  # a denial shows now, not after the first job
        check_lake(settings, "prepare")
    lake = Lake.open(settings)
    check_catalog_is_current(lake)
    bind_source(lake)
    migrate(lake)
    stage_missing(with_backbone(settings, request))
    return request.lists or has_rows(lake)


def has_rows(lake: Lake) -> bool:
    """Whether there are published rows, by what the snapshots say of themselves; unknown numbers count as rows."""
    return any(live_rows(lake.table(name), lake.head(name) or 0) != 0 for name in COUNTED)


def photos_to_ask(settings: Settings, request: RunRequest) -> Sequence[str]:
    """Keys of photos of the run: of the first page of its listing, or those that it looks up without one."""
    if request.lists:
        return [item.key for item in first_photos(settings, request.prefix) if item.size]
    return request.keys or kept_events(settings).keys


def check_for_dry_run(settings: Settings, request: RunRequest) -> None:
    """Check lake and backbone without making anything.

    Raises:
        FruitsError: when the lake or its backbone does not exist yet, or when the lake holds other photos.
    """
    advice = "`fruits plan` shows what the first run would do, or start the run without `dry_run`"
    try:
        lake = open_read_only(settings)
    except NoLakeError as error:
        raise FruitsError(f"dry run: {error}. A dry run makes nothing; {advice}") from error
    check_source(lake)
    chosen = with_backbone(settings, request)
    if staged_card(chosen) is None:
        raise FruitsError(
            f"dry run: backbone {described_backbone(chosen)} is not in {settings.lake}/models, and a dry run "
            f"does not build it; {advice}"
        )


def _published_photo_readable(settings: Settings) -> bool:
    """Whether a photo of an earlier run can still be read: then the bucket refuses some objects only."""
    try:
        keys = open_read_only(settings).some_keys(None, PUBLISHED_ASKED)
    except FruitsError:
        return False
    return can_read_any(photo_store(settings), keys)


def with_backbone(settings: Settings, request: RunRequest) -> Settings:
    """The settings with the backbone, weights and precision that a run requests.

    Raises:
        FruitsError: when the weights are from a place that neither FRUITS_WEIGHTS nor FRUITS_WEIGHTS_FROM names.
    """
    if request.weights not in (None, settings.weights):
        check_place(request.weights, settings.weights_from)
    backbone = request.backbone or settings.backbone
    weights = request.weights or (settings.weights if backbone == settings.backbone else "default")
    precision = request.precision or settings.precision
    return settings.model_copy(update={"backbone": backbone, "weights": weights, "precision": precision})


def stage_missing(settings: Settings) -> None:
    """Build the backbone of the settings into the lake, unless the lake has that backbone.

    The build runs in the jobs environment, because LiteRT is there, and TensorFlow if it is installed.

    Raises:
        FruitsError: says what is missing and what to do.
        TransientError: when the build may succeed later.
    """
    if staged_card(settings) is not None:
        return
    log.info("backbone %s is not staged yet; building it", described_backbone(settings))
    python = settings.jobs_env / "bin" / "python"
    if not python.is_file():
        raise FruitsError(f"jobs environment: no Python at {python}; run `make setup`, or set FRUITS_JOBS_ENV")
    command = [str(python), "-m", "fruits.backbones.stage"]
    chosen = {name.upper(): getattr(settings, name) for name in ("backbone", "weights", "precision")}
    environment = {**os.environ, **{f"FRUITS_{name}": value for name, value in chosen.items()}}
    build = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if build.returncode:
        kind = TransientError if build.returncode == ExitCode.TRANSIENT else FruitsError
        raise kind(build.stderr.strip() or f"{' '.join(command)} failed with exit code {build.returncode}")
