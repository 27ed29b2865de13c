"""The task `prepare`: what the run covers, and whether everything it needs is there."""

import logging
import os
import subprocess
from collections.abc import Sequence
from itertools import islice

from fruits.backbones.card import Card
from fruits.backbones.stage import read_card, staged_card
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import (
    Publication,
    publications,
)
from fruits.photos.listing import list_objects
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.stores import check_lake, check_photo

log = logging.getLogger("fruits")


def prepare(settings: Settings, request: RunRequest) -> Card:
    """Check that bucket, catalog and backbone are there; build the backbone when it is not staged yet.

    The build runs in the jobs environment, because TensorFlow lives there.

    Returns:
        The card of the run's backbone: the one asked for, else the one due, see ``effective_backbone``.

    Raises:
        FruitsError: saying what is missing and what to do.
    """
    first = next(islice(list_objects(settings, request.prefix), 1), None)
    if first is not None and first.size:
        check_photo(settings, first.key, denials_only=True)
    if settings.lake_kind == "s3":  # what is denied is known now, not after the first job
        check_lake(settings, "prepare")
    lake = Lake.open(settings)
    lake.check_bucket()
    chosen = with_backbone(settings, request)
    card = effective_backbone(settings, request, staged_card(chosen), publications(lake))
    if card is None:
        log.info(
            "backbone %s with weights %s is not staged yet; building it, about half a minute",
            chosen.backbone,
            chosen.weights,
        )
        _stage(chosen)
        card = staged_card(chosen)
    if card is None:
        raise FruitsError(f"backbone {chosen.backbone}: staged, but not found in {settings.lake}/models afterwards")
    if isinstance(request.n_components, int) and request.n_components > card.feature_width:
        raise FruitsError(
            f"PCA: {request.n_components:,} components are more than the {card.feature_width:,} features of backbone "
            f"{card.model_id}; lower FRUITS_N_COMPONENTS or the run's `n_components`, or ask for a share such as 0.95"
        )
    log.info("backbone %s: %d features, %s", card.model_id, card.feature_width, card.weights)
    return card


def with_backbone(settings: Settings, request: RunRequest) -> Settings:
    """The settings with the backbone and weights that a run was asked for."""
    backbone = request.backbone or settings.backbone
    weights = request.weights or (settings.weights if backbone == settings.backbone else "default")
    return settings.model_copy(update={"backbone": backbone, "weights": weights})


def effective_backbone(
    settings: Settings, request: RunRequest, card: Card | None, published: Sequence[Publication]
) -> Card | None:
    """The card that a run works with: ``card``, but the readers' when it was asked for none and they have moved on.

    They move on by a backfill under another backbone, and a sweep must not take them back to the configured one, even
    when they did so while it waited for the lease. A backbone that readers never had is a new one, and stays.
    """
    models = [one.model_id for one in published if one.model_id]
    left = card is not None and card.model_id in models and card.model_id != models[-1]
    if not left or request.backbone is not None or request.weights is not None:
        return card
    log.warning(
        "backbone: readers have moved on to %s, so this run keeps to that; set FRUITS_BACKBONE and FRUITS_WEIGHTS to "
        "it, or ask for another by the run's param `backbone`",
        models[-1],
    )
    return read_card(settings, models[-1])


def _stage(settings: Settings) -> None:
    jobs_python = settings.jobs_env / "bin" / "python"
    if not jobs_python.is_file():
        raise FruitsError(f"jobs environment: no Python at {jobs_python}; run `make setup`, or set FRUITS_JOBS_ENV")
    chosen = {"FRUITS_BACKBONE": settings.backbone, "FRUITS_WEIGHTS": settings.weights}
    command = [str(jobs_python), "-m", "fruits.backbones.stage"]
    done = subprocess.run(command, env={**os.environ, **chosen}, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise FruitsError(done.stderr.strip() or f"{' '.join(command)} failed with exit code {done.returncode}")
