"""What a LiteRT flatbuffer says about itself: TFLite Metadata, which MediaPipe and the TFLite Task Library read.

The metadata are a flatbuffer of a schema of their own (`metadata_schema.fbs` of `tensorflow/tflite-support`, version
1.1.0), in the buffer `TFLITE_METADATA` of the network. Files, such as that of the labels, are appended to the network
as a zip archive without compression. MediaPipe's package writes both too, and brings OpenCV and matplotlib.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the oldest parser that knows the fields below
_FIELDS = {
    "ModelMetadata": (
        "name",
        "description",
        "version",
        "subgraph_metadata",
        "author",
        "license",
        "associated_files",
        "min_parser_version",
    ),
    "SubGraphMetadata": ("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
    "TensorMetadata": (
        "name",
        "description",
        "dimension_names",
        "content",
        "process_units",
        "stats",
        "associated_files",
    ),
    "Content": ("content_properties_type", "content_properties", "range"),
    "FeatureProperties": (),
    "ImageProperties": ("color_space", "default_size"),
    "ImageSize": ("width", "height"),
    "ProcessUnit": ("options_type", "options"),
    "NormalizationOptions": ("mean", "std"),
    "Stats": ("max", "min"),
    "AssociatedFile": ("name", "description", "type", "locale"),
}
"""The fields of the schema's tables, in its order."""

_FEATURE, _IMAGE, _NORMALIZATION, _RGB = (np.uint8(number) for number in (1, 2, 1, 1))
_DESCRIPTIONS, _AXIS_LABELS = np.uint8(1), np.uint8(2)


@dataclass(frozen=True)
class Output:
    """An output: its name, what it says, its least and greatest value if it has any, and the file of its labels."""

    name: str
    description: str
    span: tuple[float, float] | None = None
    labels: str | None = None


@dataclass(frozen=True)
class Description:
    """What a network of one image says about itself.

    Attributes:
        name: Of the network.
        description: What it does, for a person.
        version: Its version.
        licence: Licence of its weights.
        input: Name of the input, pixels 0 to 255 as uint8 RGB.
        width: Columns of the input.
        height: Rows of the input.
        outputs: The outputs, in the network's order.
        card: Name of the file with all else; None without one.
    """

    name: str
    description: str
    version: str
    licence: str
    input: str
    width: int
    height: int
    outputs: Sequence[Output]
    card: str | None = None


def metadata(described: Description) -> bytes:
    """The metadata flatbuffer."""
    build = _Tables()
    image = build.table(
        "ImageProperties",
        color_space=_RGB,
        default_size=build.table("ImageSize", width=described.width, height=described.height),
    )
    pixels = build.table(
        "TensorMetadata",
        name=described.input,
        description="RGB pixels, 0 to 255.",
        content=build.table("Content", content_properties_type=_IMAGE, content_properties=image),
        # (x - 0) / 1: the network scales the pixels itself.
        process_units=[
            build.table(
                "ProcessUnit",
                options_type=_NORMALIZATION,
                options=build.table("NormalizationOptions", mean=[0.0], std=[1.0]),
            )
        ],
        stats=build.table("Stats", max=[255.0], min=[0.0]),
    )
    network = build.table(
        "SubGraphMetadata",
        input_tensor_metadata=[pixels],
        output_tensor_metadata=[_output(build, output) for output in described.outputs],
    )
    root = build.table(
        "ModelMetadata",
        name=described.name,
        description=described.description,
        version=described.version,
        subgraph_metadata=[network],
        license=described.licence,
        associated_files=[_file(build, described.card, _DESCRIPTIONS)] if described.card else None,
        min_parser_version=_PARSER,
    )
    return build.finished(root)


def with_files(flatbuffer: bytes, files: Mapping[str, bytes]) -> bytes:
    """A flatbuffer with files appended to it, as a zip archive: the same files give the same bytes."""
    stream = io.BytesIO(flatbuffer)
    with zipfile.ZipFile(stream, "a") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)  # stored as it is
    return stream.getvalue()


def _output(build: "_Tables", output: Output) -> "_Table":
    content = build.table(
        "Content", content_properties_type=_FEATURE, content_properties=build.table("FeatureProperties")
    )
    return build.table(
        "TensorMetadata",
        name=output.name,
        description=output.description,
        content=content,
        stats=build.table("Stats", max=[output.span[1]], min=[output.span[0]]) if output.span else None,
        associated_files=[_file(build, output.labels, _AXIS_LABELS)] if output.labels else None,
    )


def _file(build: "_Tables", name: str, kind: np.uint8) -> "_Table":
    return build.table("AssociatedFile", name=name, type=kind)


@dataclass(frozen=True)
class _Table:
    """A table that is written, by its place in the flatbuffer."""

    offset: int


class _Tables:
    """Writes the schema's tables, the inner ones first."""

    def __init__(self) -> None:
        import flatbuffers

        self._builder = flatbuffers.Builder(1024)

    def table(self, kind: str, **values: Any) -> _Table:
        """A table of a kind with these fields; a field of None is left out."""
        builder, fields = self._builder, _FIELDS[kind]
        written = {name: self._written(value) for name, value in values.items() if value is not None}
        builder.StartObject(len(fields))
        for name, value in written.items():
            slot = fields.index(name)
            if isinstance(value, _Table):
                builder.PrependUOffsetTRelativeSlot(slot, value.offset, 0)
            elif isinstance(value, np.uint8):
                builder.PrependUint8Slot(slot, int(value), 0)
            else:
                builder.PrependUint32Slot(slot, value, 0)
        return _Table(builder.EndObject())

    def finished(self, root: _Table) -> bytes:
        """The flatbuffer with ``root`` at its root."""
        self._builder.Finish(root.offset, file_identifier=_IDENTIFIER)
        return bytes(self._builder.Output())

    def _written(self, value: Any) -> Any:
        """A text or a list as the place where it is; a number or a table as it is."""
        if isinstance(value, str):
            return _Table(self._builder.CreateString(value))
        if not isinstance(value, list):
            return value
        if not isinstance(value[0], _Table):
            return _Table(self._builder.CreateNumpyVector(np.array(value, np.float32)))
        self._builder.StartVector(4, len(value), 4)
        for table in reversed(value):
            self._builder.PrependUOffsetTRelative(table.offset)
        return _Table(self._builder.EndVector())
