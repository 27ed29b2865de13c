"""Backbones built once per session, and the real photos and weights where there are any."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fruits.backbones.build import build
from fruits.backbones.card import Card, Preprocessing
from fruits.backbones.runtime import Backbone
from fruits.backbones.weights import WeightsFile
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.settings import Settings

SHARED = Path(__file__).resolve().parents[4] / "shared"
LIMITS = Limits(max_bytes=10_000_000, max_pixels=10_000_000)


@pytest.fixture(scope="session")
def lite0_flatbuffer(staged_models: Path) -> bytes:
    (path,) = staged_models.glob("*/model.tflite")
    return path.read_bytes()


@pytest.fixture(scope="session")
def lite0(staged_models: Path, lite0_flatbuffer: bytes) -> Backbone:
    (path,) = staged_models.glob("*/card.json")
    return Backbone(Card.from_document(json.loads(path.read_text())), lite0_flatbuffer)


@pytest.fixture(scope="session")
def integer_lite0() -> Backbone:
    return Backbone(*build("efficientnet-lite0", "imagenet", "int8"))


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    return _present(SHARED / "weights/mobilenet_v2_1.0_224_no_top.weights.h5", "MobileNetV2 weights")


@pytest.fixture(scope="session")
def mobilenet(mobilenet_weights: Path) -> Backbone:
    return Backbone(*build("MobileNetV2", WeightsFile.at(mobilenet_weights)))


@pytest.fixture(scope="session")
def untrained() -> Backbone:
    return Backbone(*build("MobileNetV2", "random"))


@pytest.fixture(scope="session")
def shop_photos() -> Path:
    return _present(SHARED / "photos", "shop photos of fruit")


@pytest.fixture(scope="session")
def fruits_360() -> Path:
    return _present(SHARED / "fruits", "Fruits-360 photos")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with a lake of their own; keyword arguments change them."""

    def load(**changes: str) -> Settings:
        uris = {"lake": f"file://{tmp_path}/lake", "catalog_uri": f"sqlite:///{tmp_path}/catalog.db"}
        return Settings.load(**{**uris, **changes})

    return load


@pytest.fixture(scope="session")
def read() -> Callable[[Path, Preprocessing], NDArray[np.uint8]]:
    """Reads a photo as the input of a network."""

    def network_input(path: Path, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        return preprocess(decode(path.read_bytes(), LIMITS, needed_side(preprocessing)).image, preprocessing)

    return network_input


def _present(path: Path, what: str) -> Path:
    if not path.exists():
        pytest.skip(f"REAL DATA ABSENT: no {what} at {path}; what this test proves is not proved here")
    return path
