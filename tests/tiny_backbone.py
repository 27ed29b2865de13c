"""A backbone of some hundred bytes, which needs no TensorFlow: mean colours on a grid of 4 x 4."""

from pathlib import Path
from typing import Any

from fruits.backbones.card import Card, Preprocessing, model_id, sha256
from fruits.backbones.runtime import Backbone
from fruits.settings import Settings
from fruits.stores import lake_store, write_bytes, write_json

SIDE, GRID = 16, 4
WIDTH = GRID * GRID * 3


def tiny_flatbuffer() -> bytes:
    """Pixels, uint8 `(1, 16, 16, 3)`, to features, float32 `(1, 48)`."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    grid, pool = (1, GRID, GRID, 3), SIDE // GRID
    tensors = [
        schema.TensorT(shape=list(shape), type=kind, buffer=0, name=name, hasRank=True)
        for name, shape, kind in (
            ("pixels", (1, SIDE, SIDE, 3), schema.TensorType.UINT8),
            ("floats", (1, SIDE, SIDE, 3), schema.TensorType.FLOAT32),
            ("grid", grid, schema.TensorType.FLOAT32),
            ("features", (1, WIDTH), schema.TensorType.FLOAT32),
        )
    ]
    pooling = schema.Pool2DOptionsT(strideW=pool, strideH=pool, filterWidth=pool, filterHeight=pool)
    layers: tuple[tuple[str, str, Any], ...] = (
        ("CAST", "CastOptions", schema.CastOptionsT()),
        ("AVERAGE_POOL_2D", "Pool2DOptions", pooling),
        ("RESHAPE", "ReshapeOptions", schema.ReshapeOptionsT(newShape=[1, WIDTH])),
    )
    codes = [getattr(schema.BuiltinOperator, kind) for kind, _, _ in layers]
    operators = [
        schema.OperatorT(number, [number], [number + 1], getattr(schema.BuiltinOptions, name), options)
        for number, (_, name, options) in enumerate(layers)
    ]
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1) for code in codes],
        subgraphs=[schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[3], operators=operators, name="main")],
        buffers=[schema.BufferT()],
    )
    return bytes(convert_object_to_bytearray(model))


def tiny_backbone(crop_share: float | None = 0.75) -> Backbone:
    """The backbone, with a card."""
    flatbuffer = tiny_flatbuffer()
    size = Preprocessing(SIDE, SIDE, "bicubic", crop_share)
    identity, digest = model_id("tiny", flatbuffer, size), sha256(flatbuffer)
    card = Card(identity, "tiny", "none", None, size, WIDTH, digest, len(flatbuffer), "CC0-1.0", {})
    return Backbone(card, flatbuffer)


def stage_tiny(settings: Settings, backbone: Backbone) -> None:
    """Write the backbone to the lake of some settings."""
    store, folder = lake_store(settings, "models"), backbone.card.model_id
    write_bytes(store, f"{folder}/model.tflite", backbone.flatbuffer)
    write_json(store, f"{folder}/card.json", backbone.card.to_document())


def photo_file(path: Path, colour: tuple[int, int, int], seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """A photo of one colour with some noise, as PNG."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed).normal(scale=12, size=(size[1], size[0], 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path
