from dataclasses import replace

import numpy as np
import pytest

from fruits.backbones.card import model_id
from fruits.backbones.runtime import Backbone
from fruits.errors import FruitsError

pytestmark = [pytest.mark.jobs, pytest.mark.heavy]


def _inputs(count: int, backbone: Backbone) -> np.ndarray:
    size = backbone.card.preprocessing
    return np.random.default_rng(0).integers(0, 256, (count, size.height, size.width, 3), dtype=np.uint8)


def test_features_are_bit_identical_in_every_interpreter_and_order(lite0: Backbone, lite0_flatbuffer: bytes) -> None:
    photos = _inputs(4, lite0)
    other = Backbone(lite0.card, lite0_flatbuffer)
    forward = [lite0.features(photo) for photo in photos]
    backward = [other.features(photo) for photo in photos[::-1]][::-1]
    assert np.array_equal(forward, backward)
    assert len({vector.tobytes() for vector in forward}) == len(photos)


def test_a_feature_vector_is_the_callers_own(lite0: Backbone) -> None:
    first, second = _inputs(2, lite0)
    vector = lite0.features(first)
    assert vector.shape == (lite0.card.feature_width,)
    assert vector.dtype == np.float32
    before = vector.copy()
    lite0.features(second)
    assert np.array_equal(vector, before)


def test_pixels_need_not_be_contiguous(lite0: Backbone) -> None:
    (photo,) = _inputs(1, lite0)
    mirrored = photo[:, ::-1]
    assert np.array_equal(lite0.features(mirrored), lite0.features(mirrored.copy()))


@pytest.mark.parametrize(("shape", "dtype"), [((224, 223, 3), "u1"), ((1, 224, 224, 3), "u1"), ((224, 224, 3), "f4")])
def test_pixels_of_another_shape_or_type_are_refused(shape: tuple[int, ...], dtype: str, lite0: Backbone) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 pixels of shape \(224, 224, 3\)"):
        lite0.features(np.zeros(shape, dtype))


def test_a_changed_flatbuffer_is_refused(lite0: Backbone, lite0_flatbuffer: bytes) -> None:
    changed = bytearray(lite0_flatbuffer)
    changed[len(changed) // 2] ^= 1
    with pytest.raises(FruitsError, match=f"{lite0.card.model_id}: expected the flatbuffer's sha256"):
        Backbone(lite0.card, bytes(changed))


def test_a_card_with_other_preprocessing_is_refused(lite0: Backbone, lite0_flatbuffer: bytes) -> None:
    squashed = replace(lite0.card, preprocessing=replace(lite0.card.preprocessing, crop_share=None))
    with pytest.raises(FruitsError, match="preprocessing that hash to it"):
        Backbone(squashed, lite0_flatbuffer)


def test_a_card_with_another_width_or_size_is_refused(lite0: Backbone, lite0_flatbuffer: bytes) -> None:
    with pytest.raises(FruitsError, match=r"expected output float32 \(1, 1279\), found float32 \(1, 1280\)"):
        Backbone(replace(lite0.card, feature_width=1279), lite0_flatbuffer)
    larger = replace(lite0.card.preprocessing, height=240)
    identity = model_id(lite0.card.backbone, lite0_flatbuffer, larger)
    with pytest.raises(FruitsError, match=r"expected input uint8 \(1, 240, 224, 3\)"):
        Backbone(replace(lite0.card, preprocessing=larger, model_id=identity), lite0_flatbuffer)
