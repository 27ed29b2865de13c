"""A backbone's identity: preprocessing, flatbuffer, and the card that describes both."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from fruits.errors import FruitsError
from fruits.settings import Precision

Resample = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """The way from a decoded RGB photo to the network's input, uint8 of shape ``(height, width, 3)``.

    The pixels are not scaled: the flatbuffer takes 0..255.

    Attributes:
        height: Rows of the input.
        width: Columns of the input.
        resample: Filter of the resize.
        crop_share: Side of the centred square that is cropped before the resize, as a share of the photo's shorter
            side, in (0, 1]. None resizes the whole photo and ignores its aspect ratio.
    """

    height: int
    width: int
    resample: Resample = "bilinear"
    crop_share: float | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected a positive input size, got {self.height} x {self.width}")
        if self.resample not in get_args(Resample):
            raise ValueError(f"expected a resample of {get_args(Resample)}, got {self.resample!r}")
        if self.crop_share is not None and not 0 < self.crop_share <= 1:
            raise ValueError(f"expected a crop_share in (0, 1] or None, got {self.crop_share}")


@dataclass(frozen=True)
class Calibration:
    """The pictures that the ranges of an integer flatbuffer were measured on.

    Attributes:
        name: Name and version of the set; equal names stand for equal pictures at equal input sizes.
        images: Number of pictures.
        sha256: Hash of their pixels.
    """

    name: str
    images: int
    sha256: str


@dataclass(frozen=True)
class Card:
    """The description of a feature function.

    Attributes:
        model_id: Identity of the feature function: the backbone's slug and a hash of flatbuffer and preprocessing.
        backbone: Name of the architecture, such as ``efficientnet-lite0`` or ``MobileNetV2``.
        weights: Source of the weights, for a person to read.
        weights_sha256: Hash of the weights file; None for seeded random weights, which have no file.
        preprocessing: From a decoded photo to the input.
        feature_width: Length ``d`` of a feature vector.
        flatbuffer_sha256: Hash of the flatbuffer.
        flatbuffer_bytes: Size of the flatbuffer.
        licence: Licence of the weights, as far as known.
        built_with: Versions of the software that built the flatbuffer.
        precision: Arithmetic of the flatbuffer; cards of earlier releases are all ``fp32``.
        calibration: The pictures of an ``int8`` flatbuffer; None for ``fp32``.
    """

    model_id: str
    backbone: str
    weights: str
    weights_sha256: str | None
    preprocessing: Preprocessing
    feature_width: int
    flatbuffer_sha256: str
    flatbuffer_bytes: int
    licence: str
    built_with: Mapping[str, str]
    precision: Precision = "fp32"
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"expected a precision of {get_args(Precision)}, got {self.precision!r}")
        if (self.precision == "int8") != (self.calibration is not None):
            raise ValueError(f"expected a calibration for int8 and for nothing else, got {self.precision}")

    def to_document(self) -> dict[str, Any]:
        """The card as a JSON-serialisable dictionary."""
        return asdict(self) | {"built_with": dict(self.built_with)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The card in a document of :meth:`to_document`.

        Raises:
            FruitsError: when a field is missing, unknown or out of range.
        """
        try:
            preprocessing, calibration = Preprocessing(**document["preprocessing"]), document.get("calibration")
            parts = {"preprocessing": preprocessing, "calibration": calibration and Calibration(**calibration)}
            return cls(**{**document, **parts})
        except (KeyError, TypeError, ValueError) as error:
            name = document.get("model_id", "without model_id")
            raise FruitsError(
                f"Backbone card {name}: this version can't read the card ({error}); "
                "delete the backbone's folder and its registry entry from the lake and stage it again."
            ) from error


def slug(name: str) -> str:
    """``name`` in lower case, with runs of anything but letters, digits and hyphens replaced by one hyphen."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")


def sha256(data: bytes) -> str:
    """Hash of ``data``, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def model_id(backbone: str, flatbuffer: bytes, preprocessing: Preprocessing, precision: Precision = "fp32") -> str:
    """Identity of the feature function that ``flatbuffer`` computes after ``preprocessing``.

    Two builds have the same identity if and only if bytes and preprocessing are the same. The name of an integer
    backbone says so: ``mobilenetv2-int8-0123456789ab``.
    """
    canonical = json.dumps(asdict(preprocessing), sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(hashlib.sha256(flatbuffer).digest() + canonical).hexdigest()
    return f"{staged_name(backbone, precision)}-{digest[:12]}"


def staged_name(backbone: str, precision: Precision) -> str:
    """Name of a backbone in the lake: its slug, followed by the precision unless that is ``fp32``."""
    return slug(backbone) if precision == "fp32" else f"{slug(backbone)}-{precision}"
