"""What is answered from lakes that lack something: never a crash, and nothing is made up."""

import shutil

import numpy as np
import pytest

from benchmarks.pictures import THINGS, jpeg, no_fruit
from fruits.backbones.stage import load_backbone
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.serve.identify import Engine
from fruits.settings import Settings
from sample_photos import draw

pytestmark = [pytest.mark.jobs, pytest.mark.heavy]

LABELS = ("Apple Red", "Banana", "Kiwi")


@pytest.fixture(scope="module")
def backbone(staged_models):
    (folder,) = (path.parent for path in staged_models.glob("*/model.tflite"))
    lake = f"file://{staged_models.parent}"
    return load_backbone(Settings.load(lake=lake, catalog_uri=f"sqlite:///{staged_models}.db"), folder.name)


@pytest.fixture(scope="module")
def rows(backbone):
    """Features of eight drawn photos of each label by their keys in the fit split, and of two held-out ones."""
    preprocessing = backbone.card.preprocessing

    def feature(label, split, number):
        data = draw(label, split, number, size=(100, 160))
        image = decode(data, Limits(10**8, 10**8), needed_side(preprocessing)).image
        return backbone.features(preprocess(image, preprocessing))

    fitted = {f"train/{label}/{n}.img": feature(label, "Training", n) for label in LABELS for n in range(8)}
    return fitted | {f"test/{label}/{n}.img": feature(label, "Test", n) for label in LABELS for n in range(2)}


@pytest.fixture
def lake(tmp_path, staged_models, fake_run, backbone):
    """Publishes photos; gives the settings of the lake."""
    shutil.copytree(staged_models, tmp_path / "lake" / "models")
    settings = Settings.load(lake=f"file://{tmp_path}/lake", catalog_uri=f"sqlite:///{tmp_path}/catalog.db")

    def publish(rows, model_id=backbone.card.model_id):
        run = fake_run(settings)
        run.classify(rows, model_id)
        run.publish(model_id, run.write(rows, model_id))
        return settings

    return publish


@pytest.fixture
def ask():
    """The answer for a photo."""
    return lambda settings, photo: Engine.load(settings).identify(photo)


def of(rows, *names):
    """The rows whose keys start with one of some names."""
    return {key: vector for key, vector in rows.items() if key.startswith(names)}


def kiwi(number=50):
    return draw("Kiwi", "Test", number, size=(100, 160))


def test_no_held_out_photos(rows, lake, ask):
    found = ask(lake(of(rows, "train/")), kiwi())
    assert (found.label, found.known) == ("Kiwi", True)
    assert "Kiwi" in found.candidates


def test_one_label_is_the_likeliest_and_what_looks_otherwise_is_unknown(rows, lake, ask):
    settings = lake(of(rows, "train/Kiwi", "test/Kiwi"))
    found = ask(settings, kiwi())
    assert (found.labels, found.known) == ((("Kiwi", 1.0),), True)
    noise = ask(settings, jpeg(no_fruit("noise", 0)))
    assert (noise.label, noise.known, noise.candidates) == ("Kiwi", False, ())


def test_one_photo_of_a_label(rows, lake, ask):
    found = ask(lake(of(rows, "train/Apple", "train/Banana", "train/Kiwi/0")), kiwi())
    assert {near.label for near in found.nearest[:1]} <= set(LABELS)
    assert [label for label, _ in found.labels if label == "Kiwi"], "it takes part"
    assert np.isfinite(found.confidence)


def test_a_label_that_vanished_is_named_no_more(rows, lake, ask):
    assert ask(lake(rows), kiwi()).label == "Kiwi"
    found = ask(lake(of(rows, "train/Apple", "train/Banana")), kiwi())
    named = {label for label, _ in found.labels} | {near.label for near in found.nearest} | set(found.candidates)
    assert named == {"Apple Red", "Banana"}


def test_a_label_that_only_held_out_photos_have_is_no_answer_but_a_neighbour(rows, lake, ask):
    found = ask(lake(of(rows, "train/Apple", "train/Banana", "test/")), kiwi())
    assert "Kiwi" not in {label for label, _ in found.labels} | set(found.candidates)
    assert "Kiwi" in {near.label for near in found.nearest}


def test_things_that_are_no_fruit_are_unknown(rows, lake, ask):
    """A cup, a face, a blank wall, a cat ... against 30 drawn photos; `benchmarks/classify.py` asks real ones."""
    settings = lake(rows)
    unknown = [not ask(settings, jpeg(no_fruit(name, variant))).known for name in THINGS for variant in range(2)]
    assert np.mean(unknown) >= 0.9
