"""The backbones that are measured, and the job `featurize` under them."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.jobs import start_job
from benchmarks.speed.photos import Photo
from benchmarks.speed.usage import Usage, watched
from fruits.backbones.stage import load_backbone, staged_card
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.run.documents import Featurized, read_documents
from fruits.run.lease import release_lease
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import plan_run

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_224_no_top.weights.h5"
_LIMITS = Limits(max_bytes=1_000_000_000, max_pixels=1_000_000_000)
_PIXELS = 64


@dataclass(frozen=True)
class Network:
    """A backbone by its name, and the variables of the environment that choose it."""

    name: str
    variables: Mapping[str, str]


EFFICIENTNET = Network("EfficientNet-Lite0", {})
INT8 = Network("EfficientNet-Lite0 in int8", {"FRUITS_PRECISION": "int8"})
MOBILENET = Network(
    "MobileNetV2",
    {"FRUITS_BACKBONE": "MobileNetV2", "FRUITS_WEIGHTS": str(WEIGHTS) if WEIGHTS.is_file() else "random"},
)
"""Without the weights beside the checkout they are random, which costs the same."""


def staged_files(settings: Settings, photos: list[Photo], folder: Path) -> tuple[Path, Path]:
    """The flatbuffer of the lake's backbone, and preprocessed pixels of some photos, as files."""
    card = staged_card(settings)
    assert card is not None  # noqa: S101 -- the lake was made with it
    load_backbone(settings, card.model_id)  # verified
    some = [
        preprocess(decode(photo.data, _LIMITS, needed_side(card.preprocessing)).image, card.preprocessing)
        for photo in photos[:: max(1, len(photos) // _PIXELS)]
    ]
    np.save(folder / "pixels.npy", np.stack(some))
    return lake_folder(settings) / "models" / card.model_id / "model.tflite", folder / "pixels.npy"


def lake_folder(settings: Settings) -> Path:
    """The folder of a lake on this machine."""
    return Path(settings.lake.removeprefix("file://"))


def featurized(settings: Settings, run_id: str, limit: int) -> tuple[Usage, Featurized]:
    """What the job `featurize` takes for so many photos of the bucket, and what it did. Nothing is published."""
    plan_run(settings, resolve_request({"limit": limit}, settings), run_id)
    usage = watched(start_job("featurize", run_id, stdout=subprocess.DEVNULL), "featurize")
    release_lease(settings, run_key(run_id))
    document = read_documents(settings, run_key(run_id)).featurize
    if document is None or document.done is None or document.done.features != limit:
        raise RuntimeError(f"featurize: expected {limit:,} features, found {document and document.done}")
    return usage, document.done
