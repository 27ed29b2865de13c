"""A small lake in which drawn photos are published, with their classifier."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication
from fruits.lake.reader import current_publication
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.settings import Settings
from sample_photos import draw

LABELS = ("Apple Red", "Banana", "Kiwi")
LIMITS = Limits(10**8, 10**8)


@pytest.fixture(scope="session")
def backbone(staged_models: Path) -> Backbone:
    """The default backbone."""
    (folder,) = (path.parent for path in staged_models.glob("*/model.tflite"))
    lake = f"file://{staged_models.parent}"
    return load_backbone(Settings.load(lake=lake, catalog_uri=f"sqlite:///{staged_models}.db"), folder.name)


@pytest.fixture(scope="session")
def feature(backbone: Backbone) -> Callable[[bytes], np.ndarray]:
    """The feature vector of a photo's bytes, taken apart from the engine."""

    def vector(data: bytes) -> np.ndarray:
        preprocessing = backbone.card.preprocessing
        return backbone.features(preprocess(decode(data, LIMITS, needed_side(preprocessing)).image, preprocessing))

    return vector


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    """Six drawn photos of each label by key."""
    return {f"train/{label}/{n}.img": draw(label, "Training", n, size=(100, 160)) for label in LABELS for n in range(6)}


@pytest.fixture(scope="session")
def new_lake(staged_models: Path, fake_run: type, backbone: Backbone) -> Callable[..., Settings]:
    """Makes a lake in a folder, with some vectors published; gives its settings."""

    def make(folder: Path, rows: Mapping[str, np.ndarray], *, classified: bool = True) -> Settings:
        shutil.copytree(staged_models, folder / "lake" / "models")
        settings = Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")
        run = fake_run(settings)
        if classified:
            run.classify(rows, backbone.card.model_id)
        run.publish(backbone.card.model_id, run.write(rows, backbone.card.model_id))
        return settings

    return make


@pytest.fixture(scope="session")
def published(
    photos: Mapping[str, bytes],
    feature: Callable[[bytes], np.ndarray],
    new_lake: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Settings of a lake in which the photos are published. Not to be changed by tests."""
    return new_lake(tmp_path_factory.mktemp("published"), {key: feature(data) for key, data in photos.items()})


@pytest.fixture
def publication(lake: Settings) -> Publication:
    """The publication of the test's own lake."""
    return current_publication(Lake.open(lake))
