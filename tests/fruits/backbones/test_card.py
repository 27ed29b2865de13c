import json
from dataclasses import replace

import pytest

from fruits.backbones.card import Calibration, Card, Preprocessing, model_id, sha256, slug
from fruits.errors import FruitsError

FLATBUFFER = b"some flatbuffer"
PREPROCESSING = Preprocessing(height=224, width=192, resample="bicubic", crop_share=0.875)
CARD = Card(
    model_id=model_id("MobileNetV2", FLATBUFFER, PREPROCESSING),
    backbone="MobileNetV2",
    weights="s3://weights/mobilenet.weights.h5",
    weights_sha256=sha256(b"weights"),
    preprocessing=PREPROCESSING,
    feature_width=1280,
    flatbuffer_sha256=sha256(FLATBUFFER),
    flatbuffer_bytes=len(FLATBUFFER),
    licence="Apache-2.0",
    built_with={"keras": "3"},
)
INTEGER = replace(
    CARD,
    model_id=model_id("MobileNetV2", FLATBUFFER, PREPROCESSING, "int8"),
    precision="int8",
    calibration=Calibration("pictures-1", 100, sha256(b"pixels")),
)


@pytest.mark.parametrize("card", [CARD, INTEGER, replace(CARD, weights_sha256=None, preprocessing=Preprocessing(8, 9))])
def test_a_card_survives_json(card: Card) -> None:
    assert Card.from_document(json.loads(json.dumps(card.to_document()))) == card


def test_a_card_of_an_earlier_release_is_that_of_fp32() -> None:
    document = CARD.to_document()
    del document["precision"], document["calibration"]
    assert Card.from_document(document) == CARD


def test_the_identity_of_an_integer_backbone_says_so_and_the_others_stay_as_they_were() -> None:
    assert CARD.model_id == "mobilenetv2-9a67bc90db0d"
    assert INTEGER.model_id == "mobilenetv2-int8-9a67bc90db0d"


@pytest.mark.parametrize(
    "changes", [{"precision": "fp16"}, {"precision": "int8"}, {"calibration": INTEGER.to_document()["calibration"]}]
)
def test_a_card_of_integers_without_a_calibration_or_the_reverse_is_named(changes: dict[str, object]) -> None:
    with pytest.raises(FruitsError, match=CARD.model_id):
        Card.from_document({**CARD.to_document(), **changes})


@pytest.mark.parametrize(
    "changes",
    [{"height": 225}, {"width": 193}, {"resample": "bilinear"}, {"crop_share": 0.9}, {"crop_share": None}],
)
def test_the_identity_changes_with_every_part_of_the_preprocessing(changes: dict[str, object]) -> None:
    assert model_id("MobileNetV2", FLATBUFFER, replace(PREPROCESSING, **changes)) != CARD.model_id


def test_the_identity_changes_with_the_flatbuffer_and_with_nothing_else() -> None:
    assert model_id("MobileNetV2", FLATBUFFER + b"!", PREPROCESSING) != CARD.model_id
    assert model_id("mobilenetv2", bytes(FLATBUFFER), replace(PREPROCESSING)) == CARD.model_id


def test_an_identity_is_a_slug_and_twelve_hexadecimal_digits() -> None:
    name, _, digest = CARD.model_id.rpartition("-")
    assert name == "mobilenetv2"
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert slug("../Efficient Net:Lite0 ") == "efficient-net-lite0"


@pytest.mark.parametrize(
    "changes", [{"height": 0}, {"width": -1}, {"resample": "nearest"}, {"crop_share": 0.0}, {"crop_share": 1.1}]
)
def test_impossible_preprocessing_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(PREPROCESSING, **changes)


@pytest.mark.parametrize("damage", [{"preprocessing": {"height": 1}}, {"colour": "red"}, {"preprocessing": None}])
def test_a_damaged_card_is_named(damage: dict[str, object]) -> None:
    with pytest.raises(FruitsError, match=CARD.model_id):
        Card.from_document({**CARD.to_document(), **damage})
