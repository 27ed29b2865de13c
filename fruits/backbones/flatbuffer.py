"""Further layers after a backbone's output: a LiteRT flatbuffer is edited, and its weights stay byte for byte.

The classes of the schema are those that `ai-edge-litert` has, so nothing here needs TensorFlow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 16
"""The data of a buffer start at a multiple of so many bytes, as the schema demands. Its Python classes do not do it."""

SIGNATURE = "serving_default"
_RUNTIME = "min_runtime_version"
_LEAST_RUNTIME = (1, 14, 0)  # of REDUCE_MAX, the youngest of the layers here


class Graph:
    """A flatbuffer with one input and one output, to whose end layers are added. A tensor is known by its number.

    Layers take and give float32, one photo at a time.

    Args:
        flatbuffer: The flatbuffer. It is not changed.
    """

    def __init__(self, flatbuffer: bytes) -> None:
        from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

        self._model = read_model_from_bytearray(flatbuffer)
        (self._graph,) = self._model.subgraphs
        (self.input,), (self.output,) = self._graph.inputs, self._graph.outputs

    def fully_connected(
        self, name: str, rows: int, weights: NDArray[np.floating[Any]], bias: NDArray[np.floating[Any]] | None = None
    ) -> int:
        """``rows @ weights.T + bias``, shape ``(1, n)``, for rows ``(1, d)``, weights ``(n, d)`` and bias ``(n,)``."""
        constants = [self._constant(f"{name}/weights", np.asarray(weights, np.float32))]
        if bias is not None:
            constants.append(self._constant(f"{name}/bias", np.asarray(bias, np.float32)))
        return self._layer(name, "FULLY_CONNECTED", "FullyConnectedOptions", [rows, *constants], (1, len(weights)))

    def softmax(self, name: str, rows: int) -> int:
        """The softmax of rows ``(1, n)``."""
        return self._layer(name, "SOFTMAX", "SoftmaxOptions", [rows], self._shape(rows), beta=1.0)

    def directions(self, name: str, rows: int) -> int:
        """Rows ``(1, n)``, each over its length."""
        return self._layer(name, "L2_NORMALIZATION", "L2NormOptions", [rows], self._shape(rows))

    def greatest(self, name: str, rows: int, groups: int) -> int:
        """The greatest value of each group, shape ``(1, groups)``, for rows ``(1, groups * m)``, group after group."""
        shape = (1, groups, self._shape(rows)[1] // groups)
        new_shape = self._constant(f"{name}/shape", np.array(shape, np.int32))
        grouped = self._layer(
            f"{name}/groups", "RESHAPE", "ReshapeOptions", [rows, new_shape], shape, newShape=list(shape)
        )
        axis = self._constant(f"{name}/axis", np.array([2], np.int32))
        return self._layer(name, "REDUCE_MAX", "ReducerOptions", [grouped, axis], (1, groups))

    def packed(self, outputs: Sequence[int], metadata: Mapping[str, bytes]) -> bytes:
        """The flatbuffer with other outputs, in this order; its signature and its tensors have their layers' names.

        Args:
            outputs: Tensors, each with a name of its own.
            metadata: Buffers by name, such as ``TFLITE_METADATA``.
        """
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

        model, graph = self._model, self._graph
        graph.outputs = list(outputs)
        inputs, outputs_by_name = (
            [schema.TensorMapT(name=graph.tensors[tensor].name, tensorIndex=tensor) for tensor in tensors]
            for tensors in (graph.inputs, graph.outputs)
        )
        model.signatureDefs = [schema.SignatureDefT(inputs, outputs_by_name, SIGNATURE, 0)]
        kept = [entry for entry in model.metadata or [] if entry.name.decode() not in {*metadata, _RUNTIME}]
        added = {_RUNTIME: self._least_runtime(), **metadata}
        model.metadata = [
            *kept,
            *(schema.MetadataT(name, self._buffer(np.frombuffer(data, np.uint8))) for name, data in added.items()),
        ]
        buffers, model.buffers = model.buffers, [_Aligned(buffer) for buffer in model.buffers]
        packed = bytes(convert_object_to_bytearray(model))
        model.buffers = buffers
        return packed

    def _shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(length) for length in self._graph.tensors[tensor].shape)

    def _layer(
        self, name: str, kind: str, options: str, inputs: Sequence[int], shape: Sequence[int], **values: Any
    ) -> int:
        from ai_edge_litert import schema_py_generated as schema

        tensor = self._tensor(name, schema.TensorType.FLOAT32, shape, 0)
        self._graph.operators.append(
            schema.OperatorT(
                opcodeIndex=self._operator_code(getattr(schema.BuiltinOperator, kind)),
                inputs=list(inputs),
                outputs=[tensor],
                builtinOptionsType=getattr(schema.BuiltinOptions, options),
                builtinOptions=getattr(schema, f"{options}T")(**values),
            )
        )
        return tensor

    def _operator_code(self, code: int) -> int:
        """The number of the first version of an operator, which is enough for float32."""
        from ai_edge_litert import schema_py_generated as schema

        codes = self._model.operatorCodes
        for number, known in enumerate(codes):
            if max(known.builtinCode, known.deprecatedBuiltinCode) == code and known.version == 1:
                return number
        codes.append(schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1))
        return len(codes) - 1

    def _constant(self, name: str, values: NDArray[Any]) -> int:
        from ai_edge_litert import schema_py_generated as schema

        kind = {"float32": schema.TensorType.FLOAT32, "int32": schema.TensorType.INT32}[values.dtype.name]
        little = values.astype(values.dtype.newbyteorder("<"))
        return self._tensor(name, kind, values.shape, self._buffer(np.frombuffer(little.tobytes(), np.uint8)))

    def _tensor(self, name: str, kind: int, shape: Sequence[int], buffer: int) -> int:
        from ai_edge_litert import schema_py_generated as schema

        tensor = schema.TensorT(shape=list(shape), type=kind, buffer=buffer, name=name.encode(), hasRank=True)
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _buffer(self, data: NDArray[np.uint8]) -> int:
        from ai_edge_litert import schema_py_generated as schema

        self._model.buffers.append(schema.BufferT(data=data))
        return len(self._model.buffers) - 1

    def _least_runtime(self) -> bytes:
        """The oldest runtime that has all layers; 16 bytes, as the converter writes it."""
        versions: list[tuple[int, ...]] = [_LEAST_RUNTIME]
        for entry in self._model.metadata or []:
            if entry.name.decode() == _RUNTIME:
                text = bytes(self._model.buffers[entry.buffer].data).rstrip(b"\0").decode()
                versions.append(tuple(int(part) for part in text.split(".")))
        return ".".join(map(str, max(versions))).encode().ljust(16, b"\0")


@dataclass(frozen=True)
class _Aligned:
    """A buffer that is packed at a multiple of ``ALIGNMENT`` bytes."""

    buffer: Any

    def Pack(self, builder: Any) -> int:  # noqa: N802 -- the name that the schema's classes call
        if self.buffer.data is not None:
            builder.Prep(ALIGNMENT, len(self.buffer.data))
        packed: int = self.buffer.Pack(builder)
        return packed
