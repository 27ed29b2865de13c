"""Build a backbone: a network with its weights becomes a flatbuffer and a card.

The default backbone in fp32 is written from its weights (:mod:`fruits.backbones.efficientnet_lite_flatbuffer`). Every
other one is a Keras network that TensorFlow converts, once. Executors need no TensorFlow: they run the flatbuffer
(:mod:`fruits.backbones.runtime`).
"""

import difflib
import inspect
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fruits.backbones import calibration, efficientnet_lite, efficientnet_lite_flatbuffer
from fruits.backbones.card import Card, Preprocessing, model_id, sha256
from fruits.backbones.runtime import Backbone
from fruits.backbones.weights import IMAGENET, RANDOM, WeightsFile, named
from fruits.errors import FruitsError
from fruits.settings import Precision

_SEED = 20151208
_DOWNLOAD_TIMEOUT_SECONDS = 60
_LEAST_COSINE = 0.9  # on the pictures, of which some are plain; photos keep more
_COMPARED_EVERY = 5
_FILE_LICENCE = "that of the weights file"
_RANDOM_LICENCE = "none: seeded random numbers"
_KERAS_LICENCE = "that of the model's authors: https://keras.io/api/applications/"
_KERAS_SUFFIXES = (".weights.h5", ".h5", ".keras")
# keras.applications gives a network's training size only together with the classifier on top.
_DEFAULT_SIZE = 224
_INPUT_SIZES = {
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384,
    "EfficientNetV2M": 480,
    "EfficientNetV2L": 480,
    "InceptionResNetV2": 299,
    "InceptionV3": 299,
    "NASNetLarge": 331,
    "Xception": 299,
}


@dataclass(frozen=True)
class Network:
    """A Keras network before its conversion.

    Attributes:
        backbone: Name of the architecture, in its authors' spelling.
        model: Keras model from scaled pixels ``(n, height, width, 3)`` to pooled features ``(n, d)``.
        scale: Maps float32 RGB 0..255 to the input of ``model``, as tensors.
        preprocessing: From a decoded photo to the input.
        weights: Source of the weights.
        weights_sha256: Hash of the weights file; None without a file, or when Keras downloaded and checked the file.
        licence: Licence of the weights.
    """

    backbone: str
    model: Any
    scale: Callable[[Any], Any]
    preprocessing: Preprocessing
    weights: str
    weights_sha256: str | None
    licence: str

    def features(self, pixels: Any) -> Any:
        """Features ``(n, d)`` float32 of RGB pixels 0..255 ``(n, height, width, 3)``, by TensorFlow."""
        import tensorflow as tf

        return self.model(self.scale(tf.cast(pixels, tf.float32)), training=False)


def build(name: str, weights: str | WeightsFile, precision: Precision = "fp32") -> tuple[Card, bytes]:
    """The card and the flatbuffer of a backbone; the same weights and precision give the same bytes.

    Args:
        name: ``efficientnet-lite0`` or a model of ``keras.applications``, in any case.
        weights: ``imagenet`` or ``default`` (the same), ``random`` (seeded), or a weights file.
        precision: ``fp32``, or ``int8`` for an integer flatbuffer, calibrated on pictures of our own.

    Raises:
        FruitsError: when there is no such backbone, its weights can't be downloaded or do not fit, it loses too much
            by integer arithmetic, or it needs TensorFlow and there is none.
        ValueError: when ``weights`` is another name.
    """
    source = _source(weights)
    if name.lower() == efficientnet_lite.NAME and source != RANDOM and precision == "fp32":
        return _written_efficientnet_lite(source)
    network = load_network(name, source)
    pixels = calibration.pictures(network.preprocessing) if precision == "int8" else None
    flatbuffer = convert(network) if pixels is None else quantize(network, pixels)
    card = Card(
        model_id=model_id(network.backbone, flatbuffer, network.preprocessing, precision),
        backbone=network.backbone,
        weights=network.weights,
        weights_sha256=network.weights_sha256,
        preprocessing=network.preprocessing,
        feature_width=int(network.model.output_shape[-1]),
        flatbuffer_sha256=sha256(flatbuffer),
        flatbuffer_bytes=len(flatbuffer),
        licence=network.licence,
        built_with={"keras": version("keras"), "tensorflow": _tensorflow_version()},
        precision=precision,
        calibration=None if pixels is None else calibration.described(pixels),
    )
    if pixels is not None:
        _check_agreement(network, Backbone(card, flatbuffer), pixels[::_COMPARED_EVERY])
    return card, flatbuffer


def _written_efficientnet_lite(weights: str | WeightsFile) -> tuple[Card, bytes]:
    """The card and the flatbuffer of the default backbone, without TensorFlow."""
    checkpoint = _checkpoint(weights)
    flatbuffer = efficientnet_lite_flatbuffer.flatbuffer(efficientnet_lite.read_weights(checkpoint.path))
    preprocessing = efficientnet_lite.PREPROCESSING
    card = Card(
        model_id=model_id(efficientnet_lite.NAME, flatbuffer, preprocessing),
        backbone=efficientnet_lite.NAME,
        weights=checkpoint.source,
        weights_sha256=checkpoint.sha256,
        preprocessing=preprocessing,
        feature_width=efficientnet_lite.WIDTH,
        flatbuffer_sha256=sha256(flatbuffer),
        flatbuffer_bytes=len(flatbuffer),
        licence=_FILE_LICENCE if isinstance(weights, WeightsFile) else efficientnet_lite.LICENCE,
        built_with={name: version(name) for name in ("ai-edge-litert", "numpy")},
    )
    return card, flatbuffer


def load_network(name: str, weights: str | WeightsFile) -> Network:
    """The Keras network of :func:`build` before its conversion. Arguments and errors are the same."""
    source = _source(weights)
    _check_tensorflow(name)
    import keras

    # Keras names layers and variables by a global counter, and the flatbuffer keeps some of the names.
    keras.backend.clear_session()
    keras.utils.set_random_seed(_SEED)
    if name.lower() == efficientnet_lite.NAME:
        return _efficientnet_lite(source)
    return _keras_application(name, source)


def convert(network: Network) -> bytes:
    """The fp32 flatbuffer: RGB 0..255, uint8 ``(1, height, width, 3)``, to features, float32 ``(1, d)``."""
    import tensorflow as tf

    return bytes(_converter(network, tf.uint8).convert())


def quantize(network: Network, pixels: NDArray[np.uint8]) -> bytes:
    """The integer flatbuffer, with the input and output of :func:`convert`: weights and all values between have 8 bits.

    Post-training quantisation, a scale for each channel of the weights and one for each layer's values: Jacob et al.,
    "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018).

    Args:
        network: The network.
        pixels: The pictures ``(n, height, width, 3)`` that the ranges of values are measured on.
    """
    import tensorflow as tf

    converter = _converter(network, tf.float32)  # a cast from uint8 would keep the scaling of pixels in float
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([picture[np.newaxis].astype(np.float32)] for picture in pixels)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # the pictures give them
        return bytes(converter.convert())


def _converter(network: Network, pixel_type: Any) -> Any:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    size = network.preprocessing
    pixels = tf.TensorSpec((1, size.height, size.width, 3), pixel_type, name="pixels")
    function = tf.function(network.features, input_signature=[pixels]).get_concrete_function()
    frozen = convert_variables_to_constants_v2(function)
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen])


def cosines(rows: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine between each row and its counterpart, shape ``(n,)``; 0 for a row of zeros."""
    left, right = rows.astype(np.float64), others.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny))


def _check_agreement(network: Network, backbone: Backbone, pixels: NDArray[np.uint8]) -> None:
    """Check that integer features point where those of the network point."""
    rows = np.stack([backbone.features(picture) for picture in pixels])
    cosine = float(cosines(rows, np.asarray(network.features(pixels))).mean())
    if not cosine >= _LEAST_COSINE:
        raise FruitsError(
            f"FRUITS_PRECISION int8: {network.backbone} loses too much by integer arithmetic: expected a mean cosine "
            f"of at least {_LEAST_COSINE} between its features and those of fp32, found {cosine:.3f}; "
            "set FRUITS_PRECISION=fp32, or choose another backbone."
        )


def _source(weights: str | WeightsFile) -> str | WeightsFile:
    """``imagenet``, ``random`` or a file."""
    source = weights if isinstance(weights, WeightsFile) else named(weights)
    if source is None:
        raise ValueError(f"expected default, imagenet, random or a WeightsFile, got {weights!r}")
    return source


def _check_tensorflow(name: str) -> None:
    if find_spec("tensorflow") is None:
        raise FruitsError(
            f"Backbone {name}: TensorFlow has to build it, and the jobs environment has none; only "
            f"{efficientnet_lite.NAME} in fp32 with trained weights needs none. Install it, then try again: "
            "make setup-tensorflow"
        )


def _checkpoint(weights: str | WeightsFile) -> WeightsFile:
    """The checkpoint of EfficientNet-Lite0: a file of the settings, or the package's."""
    if isinstance(weights, WeightsFile):
        return weights
    path = efficientnet_lite.checkpoint_path()
    return WeightsFile(path, path.name, sha256(path.read_bytes()))


def _efficientnet_lite(weights: str | WeightsFile) -> Network:
    model = efficientnet_lite.keras_model()
    source, digest, licence = RANDOM, None, _RANDOM_LICENCE
    if weights != RANDOM:
        checkpoint = _checkpoint(weights)
        efficientnet_lite.load_checkpoint(model, checkpoint.path)
        source, digest = checkpoint.source, checkpoint.sha256
        licence = _FILE_LICENCE if isinstance(weights, WeightsFile) else efficientnet_lite.LICENCE
    preprocessing = efficientnet_lite.PREPROCESSING
    return Network(efficientnet_lite.NAME, model, efficientnet_lite.scale, preprocessing, source, digest, licence)


def _keras_application(name: str, weights: str | WeightsFile) -> Network:
    constructor = _constructor(name)
    backbone = constructor.__name__
    size = _INPUT_SIZES.get(backbone, _DEFAULT_SIZE)
    options = {"include_top": False, "pooling": "avg", "input_shape": (size, size, 3)}
    source, digest, licence = RANDOM, None, _RANDOM_LICENCE
    if isinstance(weights, WeightsFile):
        model = constructor(weights=None, **options)
        _load_keras_weights(model, backbone, weights)
        source, digest, licence = weights.source, weights.sha256, _FILE_LICENCE
    elif weights == IMAGENET:
        with _explained_download(backbone):
            model = constructor(weights="imagenet", **options)
        source, licence = IMAGENET, _KERAS_LICENCE
    else:
        model = constructor(weights=None, **options)
    preprocessing = Preprocessing(height=size, width=size, resample="bilinear", crop_share=None)
    return Network(backbone, model, _scale(constructor), preprocessing, source, digest, licence)


def _constructor(name: str) -> Callable[..., Any]:
    """The function of ``keras.applications`` called ``name``, in any case."""
    import keras

    constructors = {key: value for key, value in vars(keras.applications).items() if inspect.isfunction(value)}
    by_lower_case = {key.lower(): value for key, value in constructors.items()}
    if name.lower() in by_lower_case:
        return by_lower_case[name.lower()]
    known = {key.lower(): key for key in (efficientnet_lite.NAME, *sorted(constructors))}
    close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3)]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise FruitsError(f"FRUITS_BACKBONE {name}: no such backbone; {hint}Expected one of: {', '.join(known.values())}.")


def _scale(constructor: Callable[..., Any]) -> Callable[[Any], Any]:
    """The function that scales pixels for the networks of the constructor's module."""
    scale: Callable[[Any], Any] = vars(inspect.getmodule(constructor))["preprocess_input"]
    return scale


def _load_keras_weights(model: Any, backbone: str, weights: WeightsFile) -> None:
    if not weights.path.name.endswith(_KERAS_SUFFIXES):
        raise FruitsError(
            f"FRUITS_WEIGHTS {weights.source}: expected the weights of {backbone} in a file that ends with "
            f"{', '.join(_KERAS_SUFFIXES)}."
        )
    try:
        model.load_weights(weights.path)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        detail = " ".join(str(error).split())[:300]
        raise FruitsError(
            f"FRUITS_WEIGHTS {weights.source}: does not hold the weights of {backbone} without its classifier "
            f"(include_top=False, alpha 1, saved by Keras): {detail}. Give a file that was saved from this model, "
            "or set FRUITS_BACKBONE to the model that the file was saved from."
        ) from error


@contextmanager
def _explained_download(backbone: str) -> Iterator[None]:
    """Limit the time of Keras' download, and explain its bare ``Exception``."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    except Exception as error:
        raise FruitsError(
            f"FRUITS_WEIGHTS imagenet: Keras could not download the weights of {backbone} "
            f"({' '.join(str(error).split())[:300]}). Without a network, set FRUITS_WEIGHTS to the path of a "
            f"no-top weights file, or FRUITS_BACKBONE to {efficientnet_lite.NAME}, whose weights are installed."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _tensorflow_version() -> str:
    import tensorflow as tf

    return str(tf.__version__)
