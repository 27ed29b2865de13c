"""The flatbuffer of EfficientNet-Lite0, written without TensorFlow, byte for byte as TensorFlow's converter writes it.

TensorFlow is 300 MB to download and a quarter of a minute to run, for one conversion. What its converter does to this
network is little: it folds batch normalisation and the scale of pixels into the convolutions, fuses ReLU6 with them,
and lays the graph out by a schema that LiteRT's package has as well. The tests compare the bytes with TensorFlow's own.

TensorFlow's bytes depend on the maker of the CPU, because it computes ``rsqrt`` from an instruction that is specified
by a bound on its error. Here it is computed as on Intel's CPUs, on every machine.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fruits.backbones.efficientnet_lite import (
    DEVIATION,
    EPSILON,
    MEAN,
    PREPROCESSING,
    WIDTH,
    Layer,
    Weights,
    blocks,
)

Floats = NDArray[np.float32]

_IDENTIFIER, _VERSION, _DESCRIPTION = b"TFL3", 3, "MLIR Converted."
_OLDEST_RUNTIME = b"1.6.0"
_TENSORFLOW = "2.21.0"  # the converter whose bytes these are
_API_VERSION, _CONCRETE_FUNCTION = 2, 3  # how Fruits calls that converter
# Its hash of the graph's structure, which weights do not change: get_model_hash in tensorflow.lite.python.util.
_STRUCTURE = 0x017E91BB9464D479

# The schema's options of each operator, and their constant fields.
_OPTIONS: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "CAST": ("", {}),
    "SUB": ("SubOptions", {}),
    "CONV_2D": ("Conv2DOptions", {}),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", {"depthMultiplier": 1}),
    "ADD": ("AddOptions", {}),
    "MEAN": ("ReducerOptions", {}),
}


class _Tensor(NamedTuple):
    """A tensor of the graph: its name in the file, shape, and numbers if it is constant."""

    name: str
    shape: tuple[int, ...]
    numbers: NDArray[Any] | None = None
    dtype: str = "FLOAT32"


class _Step(NamedTuple):
    """An operator of the graph with its output. Inputs and output are keys of tensors."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    tensor: _Tensor
    layer: Layer | None = None


def flatbuffer(weights: Mapping[str, Weights], rsqrt: Callable[[Floats], Floats] | None = None) -> bytes:
    """The fp32 flatbuffer: RGB 0..255, uint8 ``(1, 224, 224, 3)``, to features, float32 ``(1, 1280)``.

    Args:
        weights: Those of each layer, by its name.
        rsqrt: The reciprocal square root of TensorFlow on a CPU; None: :func:`rsqrt_of_intel`.
    """
    folded = {layer.name: fold(layer, weights[layer.name], rsqrt or rsqrt_of_intel) for layer in _layers()}
    steps = tuple(_steps())
    pixels = _Tensor("pixels", (1, PREPROCESSING.height, PREPROCESSING.width, 3), dtype="UINT8")
    tensors = {"pixels": pixels, **dict(_constants(folded)), **{step.output: step.tensor for step in steps}}
    return _packed(tensors, steps)


def fold(layer: Layer, weights: Weights, rsqrt: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
    """Kernel and bias of the convolution that does the layer's normalisation too, and in the stem the pixels' scale.

    The kernel is laid out as LiteRT wants it: (out, h, w, in), depthwise (1, h, w, out). Operations have the order of
    TensorFlow's, and each is rounded to float32.
    """
    factor = rsqrt(weights.variance + np.float32(EPSILON)) * weights.scale
    bias = weights.shift - weights.mean * factor
    if layer.depthwise:
        return weights.kernel.transpose(1, 2, 3, 0) * factor, bias
    kernel = weights.kernel.transpose(0, 2, 3, 1) * factor[:, np.newaxis, np.newaxis, np.newaxis]
    return (kernel / np.float32(DEVIATION) if layer.name == "stem" else kernel), bias


def rsqrt_of_intel(x: Floats) -> Floats:
    """``1 / sqrt(x)`` of positive numbers, with the bits that TensorFlow computes on Intel's CPUs.

    That is the estimate of the instruction RSQRTPS, and one step of Newton's method (Eigen's
    ``generic_rsqrt_newton_step``). Intel's estimate is the reciprocal square root of the middle of all numbers with the
    exponent and the first 10 fraction bits of ``x``, rounded to 12 fraction bits.
    """
    unread = np.uint32(13)
    first = x.view(np.uint32) >> unread << unread
    middle = (first | np.uint32(1) << unread - np.uint32(1)).view(np.float32).astype(np.float64)
    significand, exponent = np.frexp(1 / np.sqrt(middle))  # from 0.5: 13 bits, of which the first is always set
    estimate = np.ldexp(np.rint(np.ldexp(significand, 13)), exponent - 13).astype(np.float32)
    error = x * estimate * estimate - np.float32(1)
    return np.asarray(estimate * np.float32(-0.5) * error + estimate)


def _layers() -> Iterator[Layer]:
    return chain.from_iterable(block.layers for block in blocks())


def _steps() -> Iterator[_Step]:
    """The operators in their order. The converter names a fused one after all that went into it."""
    rows = PREPROCESSING.height
    shape = (1, rows, PREPROCESSING.width, 3)
    yield _Step("CAST", ("pixels",), "cast", _Tensor("Cast", shape))
    yield _Step("SUB", ("cast", "mean"), "centred", _Tensor("sub", shape))
    x = "centred"
    for block in blocks():
        entry = x
        for layer in block.layers:
            rows = -(-rows // layer.stride)
            shape = (1, rows, rows, layer.filters)
            operator = "DEPTHWISE_CONV_2D" if layer.depthwise else "CONV_2D"
            inputs = (x, f"{layer.name}/kernel", f"{layer.name}/bias")
            x = layer.name
            yield _Step(operator, inputs, x, _Tensor(_fused_name(layer), shape), layer)
        if block.residual:
            inner, x = x, f"{block.name}_add"
            yield _Step("ADD", (entry, inner), x, _Tensor(_name(f"{x}_1/Add"), shape))
    yield _Step("MEAN", (x, "axes"), "features", _Tensor("Identity", (1, WIDTH)))


def _constants(folded: Mapping[str, tuple[Floats, Floats]]) -> Iterator[tuple[str, _Tensor]]:
    """The constants by their keys, in the file's order: the converter's passes go from the last layer to the first.

    The stem's kernel was scaled by a later pass, and so has the name of the fused operator.
    """

    def kernel(layer: Layer, name: str) -> tuple[str, _Tensor]:
        numbers = folded[layer.name][0]
        return f"{layer.name}/kernel", _Tensor(name, numbers.shape, numbers)

    def bias(layer: Layer) -> tuple[str, _Tensor]:
        numbers = folded[layer.name][1]
        return f"{layer.name}/bias", _Tensor(_fused_name(layer), numbers.shape, numbers)

    stem, *others = _layers()
    backwards = (*reversed(others), stem)
    yield kernel(stem, _fused_name(stem))
    yield from (bias(layer) for layer in backwards if layer.activated)
    for layer in backwards:
        if layer.depthwise:
            yield kernel(layer, ";".join(_convolution_names(layer)))
        elif not layer.activated:
            yield bias(layer)
    yield from (kernel(layer, *_convolution_names(layer)) for layer in reversed(others) if not layer.depthwise)
    yield "mean", _Tensor("sub/y", (), np.array(MEAN, np.float32))
    yield "axes", _Tensor(_name("features_1/Mean/reduction_indices"), (2,), np.array([1, 2], np.int32), "INT32")


def _name(operation: str) -> str:
    return f"efficientnet_lite0_1/{operation}"


def _convolution_names(layer: Layer) -> list[str]:
    """Names of the operations that a layer's kernel was folded from."""
    if not layer.depthwise:
        return [_name(f"{layer.name}_1/convolution")]
    normalisation = _name(f"{layer.name}_bn_1/batchnorm")
    return [f"{normalisation}/mul_1", _name(f"{layer.name}_1/depthwise"), f"{normalisation}/mul"]


def _fused_name(layer: Layer) -> str:
    """Names of all operations of a layer."""
    activation = [_name(f"{layer.name}_relu6_1/Relu6")] if layer.activated else []
    normalisation = _name(f"{layer.name}_bn_1/batchnorm")
    parts = (*activation, f"{normalisation}/add_1", *_convolution_names(layer), f"{normalisation}/sub")
    return ";".join(parts)


def _packed(tensors: Mapping[str, _Tensor], steps: Sequence[_Step]) -> bytes:
    """The file of a graph. The first tensor is the input, the last one the output."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    places = {key: place for place, key in enumerate(tensors)}
    operators = list(dict.fromkeys(step.operator for step in steps))
    codes = [getattr(schema.BuiltinOperator, operator) for operator in operators]
    graph = schema.SubGraphT(
        tensors=_packed_tensors(tensors),
        inputs=[0],
        outputs=[len(tensors) - 1],
        operators=[_packed_step(step, operators, places) for step in steps],
        name="main",
    )
    contents = [None, *(tensor.numbers for tensor in tensors.values())]  # the first buffer stands for "none"
    notes = {"min_runtime_version": _OLDEST_RUNTIME.ljust(16, b"\0"), "CONVERSION_METADATA": _conversion_metadata()}
    contents += [np.frombuffer(note, np.uint8) for note in notes.values()]
    model = schema.ModelT(
        version=_VERSION,
        operatorCodes=[schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code) for code in codes],
        subgraphs=[graph],
        description=_DESCRIPTION,
        buffers=[schema.BufferT(None if numbers is None else _raw(numbers)) for numbers in contents],
        metadata=[schema.MetadataT(name, len(tensors) + 1 + place) for place, name in enumerate(notes)],
        signatureDefs=[],
    )
    size = sum(numbers.nbytes for numbers in contents if numbers is not None)
    builder = Builder(size + 100_000)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _packed_tensors(tensors: Mapping[str, _Tensor]) -> list[Any]:
    from ai_edge_litert import schema_py_generated as schema

    packed: list[Any] = []
    names: Counter[str] = Counter()
    for tensor in tensors.values():
        uses = names[tensor.name]
        names[tensor.name] += 1
        packed.append(
            schema.TensorT(
                shape=tensor.shape,
                type=getattr(schema.TensorType, tensor.dtype),
                buffer=len(packed) + 1,
                name=f"{tensor.name}{uses or ''}",
                quantization=schema.QuantizationParametersT(),
                hasRank=True,
            )
        )
    return packed


def _packed_step(step: _Step, operators: Sequence[str], places: Mapping[str, int]) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    options, fields = _OPTIONS[step.operator]
    if step.layer:
        stride = {"strideW": step.layer.stride, "strideH": step.layer.stride}
        activation = "RELU6" if step.layer.activated else "NONE"
        fields = {
            **fields,
            **stride,
            "fusedActivationFunction": getattr(schema.ActivationFunctionType, activation),
            "padding": schema.Padding.SAME,
        }
    return schema.OperatorT(
        opcodeIndex=operators.index(step.operator),
        inputs=[places[key] for key in step.inputs],
        outputs=[places[step.output]],
        builtinOptionsType=getattr(schema.BuiltinOptions, options or "NONE"),
        builtinOptions=getattr(schema, f"{options}T")(**fields) if options else None,
    )


def _conversion_metadata() -> bytes:
    """The table of TensorFlow's ``conversion_metadata.fbs``, a schema that LiteRT's package lacks."""
    from flatbuffers import Builder

    builder = Builder(0)
    version = builder.CreateString(_TENSORFLOW)
    builder.StartObject(4)  # Environment
    builder.PrependUOffsetTRelativeSlot(0, version, 0)
    builder.PrependUint32Slot(1, _API_VERSION, 0)
    builder.PrependInt32Slot(2, _CONCRETE_FUNCTION, 0)
    builder.PrependUint64Slot(3, _STRUCTURE, 0)
    environment = builder.EndObject()
    builder.StartVector(4, 0, 4)
    optimisations = builder.EndVector()
    builder.StartObject(1)  # ConversionOptions
    builder.PrependUOffsetTRelativeSlot(0, optimisations, 0)
    options = builder.EndObject()
    builder.StartObject(2)  # ConversionMetadata
    builder.PrependUOffsetTRelativeSlot(0, environment, 0)
    builder.PrependUOffsetTRelativeSlot(1, options, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def _raw(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(numbers.tobytes(), np.uint8)
