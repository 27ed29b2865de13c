import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fruits.analysis.probe import probe_accuracy
from fruits.backbones.build import _DEFAULT_SIZE, _INPUT_SIZES, _scale, build, load_network
from fruits.backbones.calibration import described, pictures
from fruits.backbones.card import Preprocessing
from fruits.backbones.efficientnet_lite import checkpoint_path
from fruits.backbones.runtime import Backbone
from fruits.backbones.weights import WeightsFile
from fruits.errors import FruitsError

pytestmark = [pytest.mark.jobs, pytest.mark.heavy, pytest.mark.filterwarnings("ignore::UserWarning:keras")]

Read = Callable[[Path, Preprocessing], NDArray[np.uint8]]
CHANCE = 1 / 19


def _varied_inputs(size: Preprocessing) -> Iterator[NDArray[np.uint8]]:
    """Noise, black, white, each primary colour, a ramp and coarse blocks."""
    shape = (size.height, size.width, 3)
    generator = np.random.default_rng(0)
    yield generator.integers(0, 256, shape, dtype=np.uint8)
    yield np.zeros(shape, np.uint8)
    yield np.full(shape, 255, np.uint8)
    for channel in range(3):
        yield np.eye(3, dtype=np.uint8)[channel] * np.full(shape, 255, np.uint8)
    yield np.broadcast_to(np.linspace(0, 255, size.width).astype(np.uint8)[:, None], shape).copy()
    blocks = generator.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    yield np.repeat(np.repeat(blocks, size.height // 7, axis=0), size.width // 7, axis=1)


def _least_cosine(backbone: Backbone, name: str, weights: str | WeightsFile) -> float:
    inputs = np.stack(list(_varied_inputs(backbone.card.preprocessing)))
    expected = np.asarray(load_network(name, weights).features(inputs), np.float64)
    found = np.stack([backbone.features(pixels) for pixels in inputs]).astype(np.float64)
    assert np.allclose(np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1), rtol=1e-3)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert norms.all()
    return float(((found * expected).sum(axis=1) / norms).min())


def test_the_flatbuffer_equals_the_keras_network_efficientnet_lite0(lite0: Backbone) -> None:
    assert _least_cosine(lite0, "efficientnet-lite0", "imagenet") > 0.99999


def test_the_flatbuffer_equals_the_keras_network_mobilenet(mobilenet: Backbone, mobilenet_weights: Path) -> None:
    assert _least_cosine(mobilenet, "MobileNetV2", WeightsFile.at(mobilenet_weights)) > 0.99999


def test_a_network_that_scales_pixels_itself_is_converted_too() -> None:
    assert _least_cosine(Backbone(*build("MobileNetV3Small", "random")), "MobileNetV3Small", "random") > 0.99999


def test_scaling_is_that_of_the_networks_own_module(mobilenet_weights: Path) -> None:
    import keras

    network = load_network("mobilenetv2", WeightsFile.at(mobilenet_weights))
    theirs = keras.applications.MobileNetV2(
        weights=str(mobilenet_weights), include_top=False, pooling="avg", input_shape=(224, 224, 3)
    )
    pixels = np.stack(list(_varied_inputs(network.preprocessing))).astype(np.float32)
    expected = theirs(keras.applications.mobilenet_v2.preprocess_input(pixels.copy()), training=False)
    assert np.allclose(network.features(pixels), expected, rtol=1e-4, atol=1e-4)
    for name in ("resnet", "resnet_v2", "vgg16", "densenet", "mobilenet_v3"):
        module = getattr(keras.applications, name)
        for constructor in vars(module).values():
            if inspect.isfunction(constructor) and constructor.__name__[0].isupper():
                assert _scale(constructor) is module.preprocess_input


def test_the_card_says_what_was_built(lite0: Backbone, mobilenet: Backbone, untrained: Backbone) -> None:
    assert lite0.card.preprocessing == Preprocessing(224, 224, "bicubic", 0.875)
    assert lite0.card.weights_sha256 is not None
    assert lite0.card.weights_sha256.startswith(checkpoint_path().stem.rpartition("-")[2])
    assert (mobilenet.card.backbone, mobilenet.card.preprocessing) == ("MobileNetV2", Preprocessing(224, 224))
    assert len({card.model_id for card in (lite0.card, mobilenet.card, untrained.card)}) == 3


def test_the_same_weights_give_the_same_bytes_whatever_was_built_before(
    lite0_flatbuffer: bytes, untrained: Backbone
) -> None:
    again = build("EfficientNet-Lite0", WeightsFile.at(checkpoint_path()))[1]
    assert again == lite0_flatbuffer
    assert build("mobilenetv2", "random")[0] == untrained.card


def test_an_integer_backbone_is_another_one_and_its_card_names_the_pictures(
    lite0: Backbone, integer_lite0: Backbone
) -> None:
    card = integer_lite0.card
    assert card.model_id.startswith("efficientnet-lite0-int8-")
    assert card.calibration == described(pictures(card.preprocessing))
    same = {"backbone", "weights", "weights_sha256", "preprocessing", "feature_width"}
    assert {name: getattr(card, name) for name in same} == {name: getattr(lite0.card, name) for name in same}
    assert card.flatbuffer_bytes < 0.35 * lite0.card.flatbuffer_bytes


def test_an_integer_backbone_is_the_same_bytes_each_time(integer_lite0: Backbone) -> None:
    again = Backbone(*build("efficientnet-lite0", "imagenet", "int8"))
    assert again.card == integer_lite0.card
    photo = next(_varied_inputs(again.card.preprocessing))
    assert np.array_equal(again.features(photo), integer_lite0.features(photo))


def test_integer_features_point_where_those_of_fp32_point_and_tell_as_much(
    lite0: Backbone, integer_lite0: Backbone, fruits_360: Path, read: Read
) -> None:
    probes = []
    for backbone in (lite0, integer_lite0):
        fit, test = (
            _features(backbone, fruits_360 / split, each, read) for split, each in (("Training", 8), ("Test", 4))
        )
        probes.append((test[0].astype(np.float64), probe_accuracy(*fit, *test)))
    (expected, accuracy), (found, integer_accuracy) = probes
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    assert np.mean((expected * found).sum(axis=1) / norms) >= 0.98
    assert abs(integer_accuracy - accuracy) <= 0.02, "one point on all photos; a photo of these few is nearly as much"


def test_a_network_that_integers_ruin_is_refused() -> None:
    with pytest.raises(FruitsError, match=r"FRUITS_PRECISION int8: MobileNetV3Small .*0\.9 .*FRUITS_PRECISION=fp32"):
        build("MobileNetV3Small", "random", "int8")


def test_input_sizes_are_those_of_keras_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    from keras.src.applications import imagenet_utils

    @dataclass
    class AskedError(Exception):
        size: int

    def ask(*_: object, default_size: int, **__: object) -> None:
        raise AskedError(default_size)

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", ask)
    sizes = {}
    for name, constructor in vars(keras.applications).items():
        # MobileNetV3 asks for no size: it builds 224 x 224.
        if inspect.isfunction(constructor) and not name.startswith("MobileNetV3"):
            with pytest.raises(AskedError) as asked:
                constructor(weights=None)
            sizes[name] = asked.value.size
    assert len(sizes) > 30
    assert {name: size for name, size in sizes.items() if size != _DEFAULT_SIZE} == _INPUT_SIZES


@pytest.mark.parametrize(
    ("name", "close"), [("MobilNetV2", "MobileNetV2"), ("efficientnet_lite0", "efficientnet-lite0")]
)
def test_an_unknown_backbone_is_answered_with_close_names_and_all_names(name: str, close: str) -> None:
    with pytest.raises(FruitsError, match=rf"FRUITS_BACKBONE {name}: .*did you mean .*{close}.*Expected one of.*VGG16"):
        build(name, "random")


def test_weights_of_another_network_are_named(mobilenet_weights: Path) -> None:
    with pytest.raises(
        FruitsError, match=r"mobilenet_v2.*h5: does not hold the weights of MobileNet .*FRUITS_BACKBONE"
    ):
        build("MobileNet", WeightsFile.at(mobilenet_weights))
    with pytest.raises(FruitsError, match=r"mobilenet_v2.*h5: not a legacy-format PyTorch checkpoint"):
        build("efficientnet-lite0", WeightsFile.at(mobilenet_weights))


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_a_damaged_weights_file_is_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"these are no weights" * 100)
    with pytest.raises(FruitsError, match=rf"damaged{suffix}: does not hold the weights of MobileNetV2"):
        build("MobileNetV2", WeightsFile.at(path))


@pytest.fixture(scope="module")
def trained() -> Any:
    """A Keras model of MobileNetV2 with weights that no initialisation gives."""
    model = load_network("MobileNetV2", "random").model
    model.set_weights([weight + 0.25 for weight in model.get_weights()])
    return model


def test_weights_that_lack_one_layer_are_named(trained: Any, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "partial.weights.h5"
    trained.save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/batch_normalization_11"]
    with pytest.raises(FruitsError, match=r"partial.weights.h5: does not hold the weights of MobileNetV2"):
        load_network("MobileNetV2", WeightsFile.at(path))


def test_weights_in_an_unknown_format_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"onnx")
    with pytest.raises(FruitsError, match=r"net.onnx: expected the weights of MobileNetV2 in a file that ends with"):
        build("MobileNetV2", WeightsFile.at(path))


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_every_format_of_keras_loads(trained: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"saved{suffix}"
    if suffix == ".weights.h5":
        trained.save_weights(path)
    else:
        trained.save(path)
    network = load_network("MobileNetV2", WeightsFile.at(path))
    assert all(map(np.array_equal, network.model.get_weights(), trained.get_weights()))
    assert network.weights == str(path)


def test_imagenet_without_a_network_proposes_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from keras.src.utils import file_utils

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(file_utils, "get_file", unreachable)
    with pytest.raises(
        FruitsError, match=r"weights of MobileNetV2 \(Name.*FRUITS_WEIGHTS to the path.*efficientnet-lite0"
    ):
        build("MobileNetV2", "default")


def test_a_path_is_no_name_of_weights() -> None:
    with pytest.raises(ValueError, match="WeightsFile"):
        build("MobileNetV2", "/some/file.weights.h5")


def test_features_tell_real_fruits_apart_and_random_weights_do_not(
    lite0: Backbone, mobilenet: Backbone, untrained: Backbone, shop_photos: Path, read: Read
) -> None:
    accuracies = [
        _leave_one_out_accuracy(*_features(backbone, shop_photos, 6, read))
        for backbone in (lite0, mobilenet, untrained)
    ]
    assert min(accuracies[:2]) > 0.6, accuracies
    assert CHANCE < accuracies[2] < 0.4, accuracies


def test_features_carry_from_training_to_test(lite0: Backbone, fruits_360: Path, read: Read) -> None:
    fit_rows, fit_labels = _features(lite0, fruits_360 / "Training", 8, read)
    test_rows, test_labels = _features(lite0, fruits_360 / "Test", 4, read)
    accuracy = probe_accuracy(fit_rows, fit_labels, test_rows, test_labels)
    assert accuracy is not None
    assert accuracy > 0.85


def _leave_one_out_accuracy(rows: NDArray[np.float32], labels: list[str]) -> float:
    """Exact leave-one-out accuracy of a ridge classifier on standardised features, in closed form (Allen, 1974)."""
    spread = rows.std(axis=0, dtype=np.float64)
    x = (rows - rows.mean(axis=0, dtype=np.float64)) / np.where(spread > 0, spread, 1)
    kinds, truth = np.unique(labels, return_inverse=True)
    y = 2 * np.eye(len(kinds))[truth] - 1
    gram = x @ x.T
    hat = gram @ np.linalg.inv(gram + 0.1 * np.trace(gram) / len(x) * np.eye(len(x)))
    left_out = (hat @ y - np.diag(hat)[:, None] * y) / (1 - np.diag(hat)[:, None])
    return float(np.mean(left_out.argmax(axis=1) == truth))


def _features(backbone: Backbone, folder: Path, each: int, read: Read) -> tuple[NDArray[np.float32], list[str]]:
    paths = [path for label in sorted(folder.iterdir()) for path in sorted(label.glob("*.jpg"))[:each]]
    rows = [backbone.features(read(path, backbone.card.preprocessing)) for path in paths]
    return np.stack(rows), [path.parent.name for path in paths]
