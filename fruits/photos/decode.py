"""Photos: from an object's bytes to upright RGB pixels, a backbone's input and a perceptual hash.

Everything here is a pure function of the bytes. A photo that cannot be read raises :class:`UnreadablePhotoError`, which
carries the reason code of its quarantine. Bytes raise nothing else, but ``MemoryError`` on too
small a machine.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fruits.backbones.card import Preprocessing
from fruits.errors import FruitsError
from fruits.photos.boxes import is_cut_off
from fruits.photos.headers import find_problem, tiff_problem
from fruits.photos.quarantine import Reason

# Pillow warns about metadata that we do not use. `catch_warnings` around each photo would race between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

MIN_SIDE = 8
"""Fewest pixels of a side, the width of one JPEG block. A smaller photo can't show a fruit."""

DRAFT_MARGIN = 2
"""A JPEG is decoded at a reduced scale only if its shorter side stays at least this many times as long as needed.

The scales are powers of two, so the resize that follows still averages over at least 2 x 2 pixels, which hides the
reduction: `benchmarks/images.py` prints by how little the network's input differs from that of a full decode.
"""

_Opener = Callable[[io.BytesIO, str], ImageFile.ImageFile]


def _open_heif(stream: io.BytesIO, name: str) -> ImageFile.ImageFile:
    """The primary image of a HEIC file, as its turns and crops leave it; depth maps and thumbnails are not read."""
    opener: _Opener = _heif_plugin()
    return opener(stream, name)


@cache
def _heif_plugin() -> type[ImageFile.ImageFile]:
    import pi_heif  # few photos need it

    pi_heif.options.DECODE_THREADS = 1  # a Spark task has one core
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    plugin: type[ImageFile.ImageFile] = pi_heif.HeifImageFile
    return plugin


AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_AVIF = re.compile(rb".{4}ftyp(?:avi[fs]|(?:mif1|msf1).{4}(?:.{4}){0,30}?avi[fs])", re.DOTALL)
_FORMATS: tuple[tuple[re.Pattern[bytes], str, _Opener], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WEBP", WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), "GIF", GifImagePlugin.GifImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", TiffImagePlugin.TiffImageFile),
    (re.compile(rb"BM"), "BMP", BmpImagePlugin.BmpImageFile),
    (_AVIF, "AVIF", AvifImagePlugin.AvifImageFile),
    (re.compile(rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL), "HEIF", _open_heif),
)
_BOXED = ("AVIF", "HEIF")
"""Formats of boxes (ISO 14496-12), whose sizes tell where the file ends."""

_READ = "JPEG, PNG, WEBP, GIF, TIFF, BMP, HEIC or AVIF"
_NOT_READ = (
    (re.compile(rb".{4}ftyp", re.DOTALL), "MP4"),
    (re.compile(rb"\0\0\0\x0cjP|\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\0\x0cJXL|\xff\x0a"), "JPEG XL"),
    (re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<svg"), "SVG"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"%!PS"), "PostScript"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\0\0\x01\0"), "icon"),
)

# The operation that makes a photo upright, by the value of EXIF tag 0x0112 (Exif 2.32, 4.6.4.A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIGNED = 2  # of a TIFF's SampleFormat
_SIDES_SWAPPED = frozenset({5, 6, 7, 8})

_NOT_DECODED = re.compile(
    r"unknown pixel mode|decoder \S+ not available|Unsupported BMP|Unsupported feature|unsupported|not supported"
)
_TOO_COSTLY = re.compile(r"Decompressed data too large|Too much memory used in text|out of memory|[Ss]ecurity limit")
"""Pillow's and libheif's words for a variant that they do not read, and for their own bounds on memory."""

_STRIP_PIXELS = 1 << 20
"""Pixels that are converted at once: each step of a conversion takes a copy's memory."""

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class UnreadablePhotoError(FruitsError):
    """A photo that cannot be featurized.

    Attributes:
        reason: The code of the quarantine.
        detail: The photo's problem, and the expectation.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.detail}; quarantined as {self.reason}"


@dataclass(frozen=True)
class Limits:
    """The largest photo that is decoded. Both limits are checked before the decoder takes memory.

    Attributes:
        max_bytes: Largest size of the object, in bytes.
        max_pixels: Largest number of pixels (width times height) that the photo's header may declare.
    """

    max_bytes: int
    max_pixels: int

    def of(self, reason: Reason) -> int | None:
        """The limit that a reason names; None for other reasons."""
        return {Reason.TOO_MANY_BYTES: self.max_bytes, Reason.TOO_MANY_PIXELS: self.max_pixels}.get(reason)


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    Attributes:
        image: The pixels: RGB, upright, without transparency. A large JPEG is at a reduced scale.
        width: Columns of the upright photo at its full size.
        height: Rows of the upright photo at its full size.
        format: Name of the file format, such as ``JPEG``.
    """

    image: Image.Image
    width: int
    height: int
    format: str


def decode(data: bytes, limits: Limits, shorter_side: int) -> Photo:
    """Decode the first image in ``data``, upright and in RGB.

    The EXIF orientation is applied, transparent pixels are laid over white, and 16-bit channels keep their upper 8
    bits. Colour profiles are ignored, as in the training of the backbones. A JPEG much larger than needed is decoded at
    1/2, 1/4 or 1/8 of its size, but never to less than ``DRAFT_MARGIN * shorter_side`` pixels on the shorter side.

    Args:
        data: The whole object.
        limits: The largest photo to decode.
        shorter_side: Pixels that preprocessing needs on the shorter side (:func:`needed_side`).

    Raises:
        UnreadablePhotoError: for any problem with ``data``.
    """
    name, opener = _recognise(data, limits)
    if problem := find_problem(data, name, limits.max_pixels):
        raise UnreadablePhotoError(*problem)
    # The GIF plugin allocates a canvas while it reads the header, so Pillow's own guard must know our limit.
    # Pillow refuses photos of more than twice the limit; the check below refuses the rest.
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    stream = io.BytesIO(data)
    try:
        file = opener(stream, "")
        largest = _largest_part(file)
    except Exception as error:
        raise _unreadable(error, name, data, limits, ended=stream.tell() >= len(data)) from error

    width, height = file.size
    measured = f"{name} of {width:,} x {height:,} pixels"
    if largest > limits.max_pixels:
        parts = measured if largest == width * height else f"{measured} in tiles of {largest:,} pixels"
        raise UnreadablePhotoError(Reason.TOO_MANY_PIXELS, f"{parts}: expected at most {limits.max_pixels:,} pixels")
    if min(width, height) < MIN_SIDE:
        raise UnreadablePhotoError(Reason.TOO_SMALL, f"{measured}: expected at least {MIN_SIDE} on each side")

    ended = not file.tile and stream.tell() >= len(data)  # a JPEG's header can end without pixels to follow
    try:
        file.draft(None, (DRAFT_MARGIN * shorter_side,) * 2)
        _load(file)
        orientation = _orientation(file)
        image = _rgb(file)
    except Exception as error:
        raise _unreadable(error, measured, data, limits, ended=ended) from error
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if orientation in _SIDES_SWAPPED:
        width, height = height, width
    return Photo(image=image, width=width, height=height, format=name)


def announced_format(head: bytes) -> tuple[str, bool] | None:
    """The format that the first bytes of a file announce, and whether it is read; None for no known image."""
    for signature, name, _ in _FORMATS:
        if signature.match(head):
            return name, True
    return next(((name, False) for signature, name in _NOT_READ if signature.match(head)), None)


def needed_side(preprocessing: Preprocessing) -> int:
    """Pixels on a photo's shorter side from which :func:`preprocess` need not enlarge the photo."""
    side = max(preprocessing.height, preprocessing.width)
    return side if preprocessing.crop_share is None else round(side / preprocessing.crop_share)


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """The backbone's input for ``image``, uint8 of shape ``(height, width, 3)``.

    Crop and resize are one operation: the crop's edges may lie between pixels, and the filter reads a few pixels beyond
    them. With every filter, the resize averages over all pixels that it merges (antialiasing).
    """
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if preprocessing.crop_share is not None:
        side = preprocessing.crop_share * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    size = (preprocessing.width, preprocessing.height)
    resized = image.resize(size, _RESAMPLING[preprocessing.resample], box=box, reducing_gap=3.0)
    return np.asarray(resized)


def perceptual_hash(image: Image.Image) -> int:
    """A signed 64-bit hash that changes little when the photo is re-encoded or resized.

    The photo is reduced to 32 x 32 grey pixels; each bit says whether one of the 8 x 8 lowest frequencies of their
    discrete cosine transform (DCT), the constant ones left out, exceeds the median. Compare two hashes by the number of
    bits in which they differ. Zauner (2010), "Implementation and benchmarking of perceptual image hash functions",
    DCT based hash.
    """
    grey = image.resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("L")
    frequencies = _COSINES @ np.asarray(grey, dtype=np.float64) @ _COSINES.T
    ordered = np.sort(frequencies, axis=None)
    bits = frequencies > (ordered[31] + ordered[32]) / 2  # the median; numpy's own function takes as long as the rest
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def _cosines() -> NDArray[np.float64]:
    """Rows 1 to 8 of the DCT-II of 32 values, shape ``(8, 32)``, scaled to integers.

    Sums of integers below 2**53 are exact in float64, so hashes do not depend on the machine's order of summation, and
    a photo of one colour has frequencies of exactly zero.
    """
    frequency, position = np.arange(1, 9)[:, None], np.arange(32)[None, :]
    cosines: NDArray[np.float64] = np.rint(2**14 * np.cos(np.pi * frequency * (2 * position + 1) / 64))
    return cosines


_COSINES = _cosines()


def _recognise(data: bytes, limits: Limits) -> tuple[str, _Opener]:
    """The format that the first bytes announce, and what opens its files."""
    if not data:
        raise UnreadablePhotoError(Reason.EMPTY, f"0 bytes: expected {_READ}")
    if len(data) > limits.max_bytes:
        detail = f"{len(data):,} bytes: expected at most {limits.max_bytes:,}"
        raise UnreadablePhotoError(Reason.TOO_MANY_BYTES, detail)
    for signature, name, opener in _FORMATS:
        if signature.match(data):
            return name, opener
    for signature, name in _NOT_READ:
        if signature.match(data):
            raise UnreadablePhotoError(Reason.UNSUPPORTED_FORMAT, f"{name}: expected {_READ}")
    detail = f"{len(data):,} bytes that start with {data[:16]!r}: expected {_READ}"
    raise UnreadablePhotoError(Reason.NOT_AN_IMAGE, detail)


def _largest_part(file: ImageFile.ImageFile) -> int:
    """Pixels that are decoded at once: the image's, or those of a TIFF's tile, which may be larger than the image.

    Raises:
        UnreadablePhotoError: for a TIFF of signed 8-bit values, which Pillow takes for unsigned ones.
    """
    tile = 0
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        bits, signed, _ = _tiff_samples(file)
        if signed and bits == 8:  # noqa: PLR2004 -- bits
            raise UnreadablePhotoError(Reason.UNSUPPORTED_FORMAT, "TIFF of signed 8-bit values")
        tile = int(file.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0)) * int(file.tag_v2.get(TiffImagePlugin.TILELENGTH, 0))
    return max(file.width * file.height, tile)


def _load(file: ImageFile.ImageFile) -> None:
    """Decode the pixels. libheif gives an image the size that it turns out to have."""
    declared = file.size
    file.load()
    if file.size != declared:
        raise ValueError(f"the pixels are {file.width:,} x {file.height:,}")


def _unreadable(error: Exception, measured: str, data: bytes, limits: Limits, *, ended: bool) -> Exception:
    """The reason behind a plugin's exception. ``ended``: the plugin had read all of ``data``."""
    if isinstance(error, UnreadablePhotoError | MemoryError):
        return error
    message = " ".join(str(error).split()) or type(error).__name__
    if _NOT_DECODED.search(message):
        detail = f"{measured}, of a kind that is not read ({message})"
        return UnreadablePhotoError(Reason.UNSUPPORTED_FORMAT, detail)
    if _TOO_COSTLY.search(message):
        return UnreadablePhotoError(Reason.TOO_COSTLY, f"{measured}, {len(data):,} bytes: {message}")
    if isinstance(error, Image.DecompressionBombError):
        detail = f"{measured} declares more than twice the {limits.max_pixels:,} pixels expected at most"
        return UnreadablePhotoError(Reason.TOO_MANY_PIXELS, detail)
    if data.startswith(b"RIFF"):  # Pillow reads a WebP at once, so only the declared length shows a truncation
        ended = 8 + int.from_bytes(data[4:8], "little") > len(data)
    if measured.startswith(_BOXED):  # these plugins read all at once, too
        ended = is_cut_off(data)
    if ended or ("truncated" in message.lower() and not measured.startswith(_BOXED)):
        detail = f"truncated {measured}: its data go on after the {len(data):,} bytes that are there"
        return UnreadablePhotoError(Reason.TRUNCATED, detail)
    return UnreadablePhotoError(Reason.CORRUPT, f"corrupt {measured}, {len(data):,} bytes: {message}")


def _orientation(file: ImageFile.ImageFile) -> int:
    """The EXIF orientation of a loaded file; 1 (upright) when the file has no readable one.

    A HEIF or AVIF has properties for that, and EXIF and XMP must not turn it once more (ISO 23008-12, 6.5.10). libheif
    applies them. Pillow translates those of an AVIF to EXIF.
    """
    if isinstance(file, AvifImagePlugin.AvifImageFile):
        file.info.pop("xmp", None)
    elif file.format == "HEIF":
        return 1
    exif = file.info.get("exif") or b""
    try:
        if exif and tiff_problem(exif.removeprefix(b"Exif\0\0")):
            return 1
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - damaged metadata must not cost the photo
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """``image`` in RGB; transparent pixels are laid over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGB", image.size, "white")
        for top, bottom in _strips(image.height, image.width):
            layer = image.crop((0, top, image.width, bottom)).convert("RGBA")
            white.paste(layer, (0, top), mask=layer)
        return white
    return image.convert("RGB")


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row of strips that cover a photo."""
    rows = max(1, _STRIP_PIXELS // width)
    return ((top, min(height, top + rows)) for top in range(0, height, rows))


def _grey(image: Image.Image) -> Image.Image:
    """A photo of 12-bit, 16-bit or 32-bit grey values, in 8 bits.

    12 and 16 bits span their range. 32-bit photos have no agreed white: white is 65535 for integers and 1.0 for floats
    if all values lie between 0 and that number. Otherwise the values are stretched from their minimum to their maximum.
    NaN and infinity become black, or the least value. A TIFF may say that 0 is white.
    """
    values = np.asarray(image)
    bits, signed, white_is_zero = _tiff_samples(image)
    grey = np.empty(values.shape, np.uint8)
    strips = [slice(*rows) for rows in _strips(*values.shape)]
    if image.mode.startswith("I;16"):
        for rows in strips:
            grey[rows] = values[rows] >> (bits - 8)
    else:
        if image.mode == "I" and not signed:
            values = values.view(np.uint32)
        finite = [part[np.isfinite(part)] for part in (values[rows] for rows in strips)]
        least = min((float(part.min()) for part in finite if part.size), default=0.0)
        most = max((float(part.max()) for part in finite if part.size), default=0.0)
        low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
        if least < low or most > high:
            low, high = least, most
        span = (high - low) or 1.0
        for rows in strips:
            part = values[rows].astype(np.float64)
            part[~np.isfinite(part)] = least
            grey[rows] = np.rint((part - low) * (255.0 / span))
    return Image.fromarray(255 - grey if white_is_zero else grey)


def _tiff_samples(image: Image.Image) -> tuple[int, bool, bool]:
    """Bits of a grey value, whether it is signed, and whether 0 is white: what Pillow's modes do not tell of a TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16, True, False
    tags = image.tag_v2
    return (
        int(tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]),
        tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == _SIGNED,
        tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0,
    )
