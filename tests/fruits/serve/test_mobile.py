"""The file for phones answers as `fruits identify` does; it is read here by LiteRT, zipfile and json alone."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fruits.backbones.stage import load_backbone
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.serve.identify import Engine, Identification
from fruits.serve.mobile import CARD_FILE, LABELS_FILE, export_model
from fruits.settings import Settings
from sample_photos import draw
from tests.tiny_backbone import photo_file, stage_tiny, tiny_backbone

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).parents[3]
COLOURS = {"Apple Red": (200, 30, 30), "Banana": (220, 210, 40), "Kiwi": (60, 120, 30)}
LIMITS = Limits(10**8, 10**8)


def feature(backbone, path):
    size = backbone.card.preprocessing
    return backbone.features(preprocess(decode(path.read_bytes(), LIMITS, needed_side(size)).image, size))


@pytest.fixture(scope="module")
def tiny():
    return tiny_backbone()


@pytest.fixture(scope="module")
def rows(tiny, tmp_path_factory):
    """Features of 12 photos of each colour in `train`, and of 4 in `test`, by key."""
    file = tmp_path_factory.mktemp("photos") / "photo"
    return {
        f"{split}/{label}/{n:02}.png": feature(tiny, photo_file(file, colour, 100 * place + n + first))
        for split, count, first in (("train", 12, 0), ("test", 4, 1000))
        for place, (label, colour) in enumerate(COLOURS.items())
        for n in range(count)
    }


def new_lake(folder, fake_run, rows, backbone, *, classified=True) -> Settings:
    settings = Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")
    stage_tiny(settings, backbone)
    run = fake_run(settings)
    if classified:
        run.classify(rows, backbone.card.model_id)
    run.publish(backbone.card.model_id, run.write(rows, backbone.card.model_id))
    return settings


@pytest.fixture(scope="module")
def published(tmp_path_factory, fake_run, rows, tiny):
    """Settings of a lake with a publication. Not to be changed by tests."""
    return new_lake(tmp_path_factory.mktemp("lake"), fake_run, rows, tiny)


@pytest.fixture(scope="module")
def model(published, tmp_path_factory):
    """The exported file."""
    return export_model(published, tmp_path_factory.mktemp("model") / "fruits.tflite").path


def card_of(model):
    with zipfile.ZipFile(model) as archive:
        return json.loads(archive.read(CARD_FILE))


def answers(model, backbone, paths):
    """The outputs of the file for photos, each name with a row for each photo."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(model), num_threads=1).get_signature_runner()
    size = backbone.card.preprocessing
    pixels = [preprocess(decode(path.read_bytes(), LIMITS, needed_side(size)).image, size) for path in paths]
    found = [run(pixels=one[np.newaxis]) for one in pixels]
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def identified(settings, paths) -> list[Identification]:
    engine = Engine.load(settings)
    return [engine.identify(path.read_bytes()) for path in paths]


def assert_parity(settings, model, backbone, paths):
    """The file says what `fruits identify` says: labels, probabilities, sets."""
    card, found = card_of(model), answers(model, backbone, paths)
    for one, probabilities in zip(identified(settings, paths), found["probabilities"], strict=True):
        assert card["labels"][int(probabilities.argmax())] == one.label
        by_label = dict(zip(card["labels"], probabilities.tolist(), strict=True))
        assert {label: by_label[label] for label, _ in one.labels} == pytest.approx(dict(one.labels), abs=1e-3)
        in_set = np.array(card["labels"])[probabilities >= card["set_thresholds"]]
        assert set(in_set) == set(one.candidates) or not one.known


@pytest.fixture
def photos(tmp_path):
    return [photo_file(tmp_path / f"{label}.png", colour, 5000) for label, colour in COLOURS.items()]


class TestExportModel:
    def test_it_says_what_identify_says(self, published, model, tiny, photos):
        assert_parity(published, model, tiny, photos)

    def test_a_photo_of_no_known_kind_is_unknown(self, model, tiny, photos, tmp_path):
        half = Image.new("RGB", (40, 40), (30, 40, 220))
        half.paste((255, 255, 255), (0, 0, 40, 20))
        half.save(tmp_path / "half.png")
        similarity = answers(model, tiny, [*photos, tmp_path / "half.png"])["similarity"].max(axis=1)
        assert (similarity >= card_of(model)["known_threshold"]).tolist() == [True, True, True, False]

    def test_the_embedding_is_the_whitened_one(self, published, model, tiny, photos):
        from fruits.analysis.pca import transform, whiten
        from fruits.lake.pca_tables import load_pca
        from fruits.lake.reader import current_publication

        lake = Lake.open(published)
        pca = load_pca(lake, current_publication(lake))
        embedding = transform(pca, np.stack([feature(tiny, path) for path in photos]))[0]
        found = answers(model, tiny, photos)["embedding"]
        np.testing.assert_allclose(found, whiten(pca, embedding), rtol=1e-3, atol=1e-3)

    def test_the_versions_are_those_of_the_service(self, published, model, photos):
        one = Engine.load(published).versions
        card = card_of(model)
        versions = ("publication_id", "classifier_id", "model_id", "pca_id")
        assert [card[name] for name in versions] == [getattr(one, name) for name in versions]
        assert (card["licence"], one.publication_id.encode() in model.read_bytes()) == ("CC0-1.0", True)

    def test_labels_are_a_file_of_their_own_in_the_order_of_the_output(self, model):
        with zipfile.ZipFile(model) as archive:
            assert archive.read(LABELS_FILE).decode() == "Apple Red\nBanana\nKiwi\n"
        assert card_of(model)["labels"] == ["Apple Red", "Banana", "Kiwi"]

    def test_the_same_publication_gives_the_same_bytes(self, published, model, tmp_path):
        again = export_model(published, tmp_path / "again.tflite")
        assert again.path.read_bytes() == model.read_bytes()
        assert again.card == card_of(model)
        assert again.bytes == model.stat().st_size

    def test_more_prototypes_are_nearer(self, published, tiny, photos, tmp_path):
        files = [export_model(published, tmp_path / f"{n}", prototypes=n).path for n in (1, 4, 64)]
        nearness = [answers(file, tiny, photos)["similarity"].max(axis=1).sum() for file in files]
        assert nearness == sorted(nearness)
        assert nearness[0] < nearness[-1]

    def test_without_held_out_photos_the_fit_split_gives_the_threshold(self, rows, fake_run, tiny, tmp_path, photos):
        fitted = {key: row for key, row in rows.items() if key.startswith("train")}
        settings = new_lake(tmp_path, fake_run, fitted, tiny)
        model = export_model(settings, tmp_path / "fruits.tflite").path
        assert card_of(model)["known_calibrated_on"] == "cross-fitted photos"
        assert_parity(settings, model, tiny, photos)

    def test_a_backbone_that_takes_whole_photos_says_so(self, rows, fake_run, tmp_path, photos):
        whole = tiny_backbone(None)
        settings = new_lake(tmp_path, fake_run, rows, whole)
        model = export_model(settings, tmp_path / "fruits.tflite").path
        assert card_of(model)["input"]["crop_share"] is None
        assert_parity(settings, model, whole, photos)


def test_the_lines_of_python_in_the_documentation_say_the_same(published, model, photos, tmp_path):
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "mobile.md").read_text(), re.DOTALL)
    shutil.copy(model, tmp_path / "fruits.tflite")
    for path, one in zip(photos, identified(published, photos), strict=True):
        shutil.copy(path, tmp_path / "photo.jpg")
        command = [sys.executable, "-W", "ignore", "-c", lines]
        said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert said == f"{one.label} {one.confidence:.3f} {list(one.candidates)}\n"


@pytest.mark.heavy
def test_the_default_backbone_answers_as_identify_does(staged_models, fake_run, tmp_path):
    shutil.copytree(staged_models, tmp_path / "lake" / "models")
    settings = Settings.load(lake=f"file://{tmp_path}/lake", catalog_uri=f"sqlite:///{tmp_path}/catalog.db")
    (folder,) = (path.parent for path in staged_models.glob("*/model.tflite"))
    backbone = load_backbone(settings, folder.name)

    def drawn(label, split, n):
        path = tmp_path / f"{label}-{split}-{n}"
        path.write_bytes(draw(label, split, n, size=(100, 160)))
        return path

    rows = {f"train/{label}/{n}": feature(backbone, drawn(label, "Training", n)) for label in COLOURS for n in range(6)}
    run = fake_run(settings)
    run.classify(rows, backbone.card.model_id)
    run.publish(backbone.card.model_id, run.write(rows, backbone.card.model_id))
    model = export_model(settings, tmp_path / "fruits.tflite").path
    asked = [drawn(label, "Test", n) for label in COLOURS for n in range(3)]
    assert_parity(settings, model, backbone, asked)


class TestBadInput:
    def test_without_a_classifier_it_says_so(self, rows, fake_run, tiny, tmp_path):
        settings = new_lake(tmp_path, fake_run, rows, tiny, classified=False)
        with pytest.raises(FruitsError, match="no classifier.*refit `always`"):
            export_model(settings, tmp_path / "x.tflite")
        assert not list(tmp_path.glob("*x.tflite*"))

    def test_one_label_is_nothing_to_tell_apart(self, rows, fake_run, tiny, tmp_path):
        kiwis = {key: row for key, row in rows.items() if "Kiwi" in key}
        with pytest.raises(FruitsError, match="'Kiwi' alone.*another label"):
            export_model(new_lake(tmp_path, fake_run, kiwis, tiny), tmp_path / "x.tflite")

    def test_a_publication_without_photos_is_refused(self, fake_run, tmp_path):
        settings = Settings.load(lake=f"file://{tmp_path}/lake", catalog_uri=f"sqlite:///{tmp_path}/catalog.db")
        fake_run(settings).publish("some-backbone", "pca-none")
        with pytest.raises(FruitsError, match="no classifier"):
            export_model(settings, tmp_path / "x.tflite")

    def test_an_empty_lake_says_what_to_do(self, folder_lake, tmp_path):
        Lake.open(folder_lake)
        with pytest.raises(FruitsError, match="nothing has been published"):
            export_model(folder_lake, tmp_path / "x.tflite")

    @pytest.mark.parametrize("prototypes", [0, -1, 65])
    def test_a_wrong_number_of_prototypes_is_refused(self, published, tmp_path, prototypes):
        with pytest.raises(FruitsError, match=f"prototypes {prototypes}: expected"):
            export_model(published, tmp_path / "x.tflite", prototypes=prototypes)

    def test_a_file_that_is_there_stays_unless_it_may_go(self, published, tmp_path):
        target = tmp_path / "fruits.tflite"
        target.write_bytes(b"mine")
        with pytest.raises(FruitsError, match="exists already"):
            export_model(published, target)
        assert target.read_bytes() == b"mine"
        export_model(published, target, overwrite=True)
        assert target.stat().st_size > 1000
