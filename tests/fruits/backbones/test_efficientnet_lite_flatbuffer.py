from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fruits.backbones import efficientnet_lite
from fruits.backbones.build import build, convert, load_network
from fruits.backbones.efficientnet_lite import Weights, checkpoint_path, read_weights
from fruits.backbones.efficientnet_lite_flatbuffer import flatbuffer, rsqrt_of_intel
from fruits.backbones.weights import WeightsFile
from fruits.errors import FruitsError

pytestmark = pytest.mark.jobs

# TensorFlow's own on an Intel CPU; on an AMD CPU it gives efficientnet-lite0-aef1dbe660ef.
MODEL_ID = "efficientnet-lite0-c6a0058bc3bd"
SHA256 = "58552797c4993d42554b40fd0b97893d009b7a196d6e813b23fdda67b43c6c5c"


@pytest.fixture(scope="module")
def weights() -> dict[str, Weights]:
    return read_weights(checkpoint_path())


def test_the_default_backbone_has_the_identity_that_rows_carry_whatever_the_machine() -> None:
    card, content = build("EfficientNet-Lite0", "default")
    assert (card.model_id, card.flatbuffer_sha256) == (MODEL_ID, SHA256)
    assert (card.flatbuffer_bytes, card.feature_width) == (len(content), 1280)
    assert (card.precision, card.calibration) == ("fp32", None)
    own = build("efficientnet-lite0", WeightsFile.at(checkpoint_path()))
    assert own[1] == content
    assert replace(own[0], weights=card.weights, licence=card.licence) == card


@pytest.mark.heavy
@pytest.mark.parametrize("trained_further", [False, True])
def test_the_bytes_are_those_of_tensorflow_on_this_machine(
    trained_further: bool, weights: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    if trained_further:
        generator = np.random.default_rng(0)
        weights = {
            name: Weights(*(_changed(part, generator) for part in layer_weights))
            for name, layer_weights in weights.items()
        }
    monkeypatch.setattr(efficientnet_lite, "read_weights", lambda _: weights)
    expected = convert(load_network("efficientnet-lite0", "imagenet"))

    def rsqrt(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(tf.math.rsqrt(x))

    assert flatbuffer(weights, rsqrt) == expected


def _changed(numbers: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    return numbers * generator.uniform(0.5, 2, numbers.shape).astype(np.float32)


# The values are those of the instruction RSQRTPS on Intel's CPUs, with one step of Newton's method.
@pytest.mark.parametrize(("x", "bits"), [(1.0, 0x3F7FFFFE), (2.0, 0x3F3504F2), (0.001, 0x41FCFB72)])
def test_a_reciprocal_square_root_has_intels_bits(x: float, bits: int) -> None:
    assert rsqrt_of_intel(np.array([x], np.float32)).view(np.uint32)[0] == bits


@given(st.floats(2**-10, 2**100, width=32))
def test_a_reciprocal_square_root_is_right_to_two_units_in_the_last_place(x: float) -> None:
    found = rsqrt_of_intel(np.array([x], np.float32))[0]
    assert abs(found - x**-0.5) <= 2 * np.spacing(found)


@pytest.fixture
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        assert name == "tensorflow"

    monkeypatch.setattr("fruits.backbones.build.find_spec", find_spec)


@pytest.mark.parametrize(
    "builds",
    [
        lambda: build("MobileNetV2", "imagenet"),
        lambda: build("MobileNetV2", WeightsFile(Path("a.h5"), "a.h5", "")),
        lambda: build("efficientnet-lite0", "random"),
        lambda: build("efficientnet-lite0", "default", "int8"),
    ],
)
def test_what_needs_tensorflow_says_how_to_get_it(builds: Callable[[], Any], without_tensorflow: None) -> None:
    with pytest.raises(FruitsError, match=r"Backbone .*: TensorFlow has to build it.*: make setup-tensorflow$"):
        builds()
