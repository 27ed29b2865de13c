"""Run a backbone: one photo in, one feature vector out, by LiteRT on one thread."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fruits.backbones.card import Card, model_id, sha256
from fruits.errors import FruitsError


class Backbone:
    """A feature function, verified against its card.

    A backbone holds an interpreter: use one backbone per thread, and build it in the process that uses it. A backbone
    can't be pickled.

    Args:
        card: The backbone's card.
        flatbuffer: The flatbuffer that the card describes.

    Raises:
        FruitsError: when the card describes another flatbuffer.
    """

    def __init__(self, card: Card, flatbuffer: bytes) -> None:
        digest = sha256(flatbuffer)
        if digest != card.flatbuffer_sha256:
            raise _mismatch(card, f"the flatbuffer's sha256 {card.flatbuffer_sha256}", digest)
        identity = model_id(card.backbone, flatbuffer, card.preprocessing, card.precision)
        if identity != card.model_id:
            raise _mismatch(card, "flatbuffer and preprocessing that hash to it", identity)
        self.card, self.flatbuffer = card, flatbuffer
        self._interpreter = _interpreter(flatbuffer)
        (pixels,), (features,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._shape = (card.preprocessing.height, card.preprocessing.width, 3)
        _expect(card, "input", pixels, (1, *self._shape), np.uint8)
        _expect(card, "output", features, (1, card.feature_width), np.float32)
        self._input, self._output = pixels["index"], features["index"]

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The feature vector, float32 ``(d,)``, of a preprocessed photo, uint8 RGB ``(height, width, 3)``.

        A pure function: on one machine the same pixels always give the same bits.

        Raises:
            ValueError: when the pixels have another shape or type.
        """
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            raise ValueError(f"expected uint8 pixels of shape {self._shape}, got {pixels.dtype} {pixels.shape}")
        self._interpreter.set_tensor(self._input, pixels[np.newaxis])
        self._interpreter.invoke()
        vector: NDArray[np.float32] = self._interpreter.get_tensor(self._output)[0]
        return vector


def _interpreter(flatbuffer: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=flatbuffer, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def _expect(card: Card, end: str, tensor: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    actual = tuple(int(length) for length in tensor["shape"])
    if actual != shape or tensor["dtype"] is not dtype:
        raise _mismatch(card, f"{end} {dtype.__name__} {shape}", f"{tensor['dtype'].__name__} {actual}")


def _mismatch(card: Card, expected: str, actual: str) -> FruitsError:
    return FruitsError(
        f"Backbone {card.model_id}: expected {expected}, found {actual}; its files in the lake were changed. "
        f"Delete models/{card.model_id} from the lake and stage it again: python -m fruits.backbones.stage"
    )
