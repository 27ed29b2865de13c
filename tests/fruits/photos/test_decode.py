import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pi_heif
import PIL
import pillow_heif
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from fruits.backbones.card import Preprocessing
from fruits.photos.decode import (
    _COSINES,
    DRAFT_MARGIN,
    MIN_SIDE,
    Limits,
    Photo,
    UnreadablePhotoError,
    decode,
    needed_side,
    perceptual_hash,
    preprocess,
)
from fruits.photos.quarantine import DECODER, Reason
from sample_photos import draw as draw_photo

LIMITS = Limits(max_bytes=20_000_000, max_pixels=20_000_000)
ORIENTATION = 0x0112
# Pytest resets the filter with which fruits.photos.decode silences Pillow; a test of its own shows that it does.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]
REAL_PHOTOS = Path(__file__).parents[4] / "shared" / "photos"


def painting(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A smooth picture without any symmetry, bright at the top left and with as many colours as a photo."""
    cells = np.random.default_rng(seed).integers(30, 200, (9, 11, 3), np.uint8)
    cells[0, 0] = 255, 240, 60
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def heif(*images: Image.Image, **options: object) -> bytes:
    """A HEIC file; its primary image is the first, unless ``primary_index`` says otherwise."""
    file = pillow_heif.HeifFile()
    for image in images:
        file.add_from_pillow(image)
    stream = io.BytesIO()
    file.save(stream, **{"quality": 95, **options})
    return stream.getvalue()


def deep_heif(image: Image.Image) -> bytes:
    """A HEIC file of 10 bits a channel."""
    values = np.asarray(image).astype(np.uint16) * 257
    file = pillow_heif.from_bytes("RGB;16", image.size, values.tobytes())
    stream = io.BytesIO()
    file.save(stream, quality=95)
    return stream.getvalue()


def box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def tiled_heif(image: Image.Image, side: int = 64) -> bytes:
    """A HEIC of a grid of tiles, as telephones write them; the tiles go beyond the image at its right and below."""
    columns, rows = -(-image.width // side), -(-image.height // side)
    corners = [(side * column, side * row) for row in range(rows) for column in range(columns)]
    tiles = [heif(image.crop((left, top, left + side, top + side))) for left, top in corners]
    coded = [tile[tile.index(b"mdat") + 4 :] for tile in tiles]
    settings_ = [
        tile[(at := tile.index(b"hvcC") - 4) : at + int.from_bytes(tile[at : at + 4], "big")] for tile in tiles
    ]
    items = range(2, 2 + len(tiles))
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, *image.size)

    def meta(start: int) -> bytes:
        """The box that describes the items; the tiles' data start there."""
        kinds = [(1, b"grid"), *((item, b"hvc1") for item in items)]
        entries = [box(b"infe", struct.pack(">IHH4sx", 2 << 24, item, 0, kind)) for item, kind in kinds]
        places = [struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))]
        for item, data in zip(items, coded, strict=True):
            places.append(struct.pack(">HHHHII", item, 0, 0, 1, start, len(data)))
            start += len(data)
        sizes = [box(b"ispe", struct.pack(">III", 0, *size)) for size in (image.size, (side, side))]
        properties = [
            struct.pack(">HBB", 1, 1, 1),
            *(struct.pack(">HBBB", item, 2, 2, 0x80 | 1 + item) for item in items),
        ]
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", struct.pack(">II4s13x", 0, 0, b"pict")),
            box(b"pitm", struct.pack(">IH", 0, 1)),
            box(b"iinf", struct.pack(">IH", 0, len(kinds)), *entries),
            box(b"iref", bytes(4), box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *items))),
            box(
                b"iprp", box(b"ipco", *sizes, *settings_), box(b"ipma", struct.pack(">II", 0, len(kinds)), *properties)
            ),
            box(b"idat", grid),
            box(b"iloc", struct.pack(">IBBH", 1 << 24, 0x44, 0, len(kinds)), *places),
        )

    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *coded)


def png(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG of kinds that Pillow does not write; each row starts with its filter byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int, int]], pixels: bytes = b"") -> bytes:
    """A little-endian TIFF of (type, count, value) per tag; the pixels start at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def pixels(photo: Photo) -> np.ndarray:
    return np.asarray(photo.image).astype(int)


def read(data: bytes, shorter_side: int = 10_000) -> Photo:
    return decode(data, LIMITS, shorter_side)


def refusal(data: bytes, limits: Limits = LIMITS) -> UnreadablePhotoError:
    with pytest.raises(UnreadablePhotoError) as caught:
        decode(data, limits, 224)
    return caught.value


def distance(first: int, second: int) -> int:
    return ((first ^ second) & (2**64 - 1)).bit_count()


FILES: dict[str, bytes] = {
    "JPEG": encoded(painting(), "JPEG", quality=95),
    "progressive JPEG": encoded(painting(), "JPEG", quality=95, progressive=True),
    "grey JPEG": encoded(painting().convert("L"), "JPEG"),
    "CMYK JPEG": encoded(painting().convert("CMYK"), "JPEG", quality=95),
    "MPO": encoded(painting(), "MPO", save_all=True, append_images=[painting(seed=1)], quality=95),
    "PNG": encoded(painting(), "PNG"),
    "RGBA PNG": encoded(painting().convert("RGBA"), "PNG"),
    "palette PNG": encoded(painting().quantize(200), "PNG", transparency=0),
    "APNG": encoded(painting(), "PNG", save_all=True, append_images=[painting(seed=1)]),
    "WEBP": encoded(painting(), "WEBP", quality=95),
    "lossless WEBP": encoded(painting().convert("RGBA"), "WEBP", lossless=True),
    "animated WEBP": encoded(painting(), "WEBP", save_all=True, append_images=[painting(seed=1)], quality=95),
    "GIF": encoded(painting(), "GIF"),
    "animated GIF": encoded(painting(), "GIF", save_all=True, append_images=[painting(seed=1)]),
    "BMP": encoded(painting(), "BMP"),
    "TIFF": encoded(painting(), "TIFF"),
    "LZW TIFF": encoded(painting(), "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encoded(painting(), "TIFF", compression="jpeg", quality=95),
    "animated TIFF": encoded(painting(), "TIFF", save_all=True, append_images=[painting(seed=1)]),
    "grey 16-bit PNG": encoded(Image.fromarray(np.arange(96 * 64, dtype=np.uint16).reshape(64, 96)), "PNG"),
    "float TIFF": encoded(painting().convert("F"), "TIFF"),
    "HEIF": heif(painting()),
    "10-bit HEIF": deep_heif(painting()),
    "RGBA HEIF": heif(painting().convert("RGBA")),
    "many HEIF": heif(painting(40, 30, seed=1), painting(), painting(seed=2), primary_index=1),
    "tiled HEIF": tiled_heif(painting()),
    "AVIF": encoded(painting(), "AVIF", quality=95),
    "RGBA AVIF": encoded(painting().convert("RGBA"), "AVIF", quality=95),
    "animated AVIF": encoded(painting(), "AVIF", save_all=True, append_images=[painting(seed=1)], quality=95),
}
RGB_FILES = [name for name in FILES if not name.startswith(("grey", "float", "palette"))]


class TestDecode:
    @pytest.mark.parametrize("name", RGB_FILES)
    def test_every_accepted_format_gives_the_first_image_in_rgb(self, name: str) -> None:
        photo = read(FILES[name])
        assert (photo.width, photo.height) == (96, 64)
        assert photo.image.mode == "RGB"
        assert photo.format == {"MPO": "JPEG", "APNG": "PNG"}.get(name, name.rsplit(" ", 1)[-1])
        tolerance = 12 if "GIF" in name else 5 if "HEIF" in name else 3  # 256 colours; colours at half the size
        assert np.abs(pixels(photo) - np.asarray(painting()).astype(int)).mean() < tolerance

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "HEIF", "AVIF"])
    def test_the_photo_is_upright_whatever_its_exif_orientation(self, kind: str, orientation: int) -> None:
        upright = painting()
        # The stored picture is the one that the orientation's transposition turns upright: undo it by trying all.
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = next(
            candidate
            for method in [None, *Image.Transpose]
            if is_made_upright(candidate := upright if method is None else upright.transpose(method), exif, upright)
        )
        options = {"quality": 95} if kind != "TIFF" else {}
        if kind == "HEIF":
            data = heif(stored, exif=exif.tobytes(), chroma=444)
        else:
            data = encoded(stored, kind, exif=exif, **options)
        photo = read(data)
        assert (photo.width, photo.height) == upright.size == photo.image.size
        assert np.abs(pixels(photo) - np.asarray(upright).astype(int)).mean() < 3

    @pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
    def test_exif_and_xmp_do_not_turn_what_its_own_properties_leave_upright(self, kind: str) -> None:
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
        data = heif(painting(), xmp=xmp) if kind == "HEIF" else encoded(painting(), "AVIF", xmp=xmp)
        data = data.replace(b"irot", b"free").replace(b"imir", b"free")
        assert xmp in data
        assert (read(data).width, read(data).height) == (96, 64)

    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\0\0garbage",
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # an orientation of "abc"
            b"Exif\0\0II*\0\xff\xff\xff\xff",
            b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\x12" * 40,
        ],
    )
    def test_damaged_metadata_does_not_cost_the_photo(self, exif: bytes) -> None:
        assert np.array_equal(
            pixels(read(encoded(painting(), "JPEG", exif=exif))), pixels(read(encoded(painting(), "JPEG")))
        )

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_a_large_jpeg_is_decoded_at_a_reduced_scale_that_keeps_the_margin(self, orientation: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = encoded(painting(1603, 1201), "JPEG", quality=95, exif=exif)
        full, reduced = read(data), read(data, shorter_side=100)
        assert (reduced.width, reduced.height) == (full.width, full.height) == full.image.size
        assert 100 * DRAFT_MARGIN <= min(reduced.image.size) < 2 * 100 * DRAFT_MARGIN
        preprocessing = Preprocessing(100, 100)
        difference = preprocess(full.image, preprocessing).astype(int) - preprocess(reduced.image, preprocessing)
        assert np.abs(difference).mean() < 1

    @pytest.mark.parametrize("size", [(96, 64), (223, 900), (447, 447)])
    def test_a_small_jpeg_is_decoded_at_full_scale(self, size: tuple[int, int]) -> None:
        assert read(encoded(painting(*size), "JPEG"), shorter_side=224).image.size == size

    def test_a_ycck_jpeg_has_its_true_colours(self) -> None:
        cyan, magenta, yellow, black = painting().convert("RGB").convert("CMYK").split()
        black = black.point(lambda value: value // 2 + 20)
        truth = Image.merge("CMYK", (cyan, magenta, yellow, black))
        luma, blue, red = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
        stored = Image.merge("CMYK", (*(ImageOps.invert(channel) for channel in (luma, blue, red)), black))
        data = bytearray(encoded(stored, "JPEG", quality=98))
        adobe = data.index(b"Adobe")
        assert data[adobe + 11] == 0  # no colour transform
        data[adobe + 11] = 2  # YCCK
        assert np.abs(pixels(read(bytes(data))) - np.asarray(truth.convert("RGB")).astype(int)).mean() < 3

    def test_transparency_is_laid_over_white(self) -> None:
        half = Image.new("RGBA", (16, 16), (200, 0, 0, 128))
        half.paste((0, 0, 0, 0), (0, 0, 16, 8))
        grey = Image.merge("LA", (half.getchannel("R"), half.getchannel("A")))
        palette = Image.new("P", (16, 16), 1)
        palette.putpalette([0, 0, 0, 200, 0, 0])
        palette.paste(0, (0, 0, 16, 8))
        rgb_key, grey_key = Image.new("RGB", (16, 16), (1, 2, 3)), Image.new("L", (16, 16), 7)
        for data, below in [
            (encoded(half, "PNG"), (227, 127, 127)),
            (encoded(half, "WEBP", lossless=True), (227, 127, 127)),
            (encoded(half, "TIFF"), (227, 127, 127)),
            (encoded(half, "AVIF", quality=100), (227, 127, 127)),
            (heif(half, chroma=444), (227, 127, 127)),
            (encoded(grey, "PNG"), (227, 227, 227)),
            (encoded(palette, "PNG", transparency=0), (200, 0, 0)),
            (encoded(palette, "PNG", transparency=b"\x00\x80"), (227, 127, 127)),
            (encoded(palette, "GIF", transparency=0), (200, 0, 0)),
            (encoded(rgb_key, "PNG", transparency=(1, 2, 3)), (255, 255, 255)),
            (encoded(grey_key, "PNG", transparency=7), (255, 255, 255)),
        ]:
            image = read(data).image
            assert image.getpixel((4, 2)) == (255, 255, 255)
            assert image.getpixel((4, 12)) == pytest.approx(below, abs=1)

    def test_one_bit_is_black_and_white(self) -> None:
        image = Image.new("1", (16, 16), 0)
        image.paste(1, (0, 0, 16, 8))
        for kind in ("PNG", "TIFF", "BMP"):
            photo = read(encoded(image, kind))
            assert photo.image.getpixel((3, 3)) == (255, 255, 255)
            assert photo.image.getpixel((3, 12)) == (0, 0, 0)

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (np.linspace(0, 65535, 256, dtype=np.uint16), np.arange(256)),
            (np.linspace(0, 65535, 256, dtype=np.int32), np.arange(256)),
            (np.linspace(-9e8, 9e8, 256, dtype=np.int32), np.arange(256)),
            (np.linspace(0, 1, 256, dtype=np.float32), np.arange(256)),
            (np.linspace(0, 0.5, 256, dtype=np.float32), np.arange(256) / 2),
            (np.linspace(0, 3000, 256, dtype=np.float32), np.arange(256)),
            (np.linspace(-3e38, 3e38, 256, dtype=np.float32), np.arange(256)),
            (np.full(256, 5, np.float32), np.zeros(256)),
            (np.full(256, np.nan, np.float32), np.zeros(256)),
            (np.array([np.nan, np.inf, -np.inf, *np.linspace(1, 2, 253)], np.float32), None),
        ],
    )
    def test_wide_grey_values_are_scaled_not_clipped(self, values: np.ndarray, expected: np.ndarray | None) -> None:
        if expected is None:  # what is not finite is black
            expected = np.array([0, 0, 0, *np.linspace(0, 255, 253)])
        grey = pixels(read(encoded(Image.fromarray(values.reshape(16, 16)), "TIFF")))
        assert np.array_equal(grey[..., 0], grey[..., 2])
        assert np.abs(grey[..., 0].ravel() - expected).max() <= 1

    def test_sixteen_bit_png_and_big_endian_tiff_keep_their_upper_byte(self) -> None:
        values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
        rgb = np.stack([values, values[::-1], values.T], axis=-1).astype(">u2")
        rgb_rows = b"".join(b"\0" + row.tobytes() for row in rgb)
        strip = {256: (3, 1, 16), 257: (3, 1, 16), 259: (3, 1, 1), 273: (4, 1, 8), 278: (3, 1, 16)}
        bits = {258: (3, 3, 8 + 1536), 262: (3, 1, 2), 277: (3, 1, 3), 279: (4, 1, 1536)}
        rgb_tiff = tiff(strip | bits, rgb.astype("<u2").tobytes() + struct.pack("<HHH", 16, 16, 16))
        assert np.array_equal(pixels(read(png(16, 16, 16, 2, rgb_rows))), rgb >> 8)
        assert np.array_equal(pixels(read(rgb_tiff)), rgb >> 8)
        grey_png = png(16, 16, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
        big_endian = encoded(Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes()), "TIFF")
        for data in (grey_png, big_endian):
            assert np.array_equal(pixels(read(data))[..., 1], values >> 8)

    @pytest.mark.parametrize("white_is_zero", [False, True])
    @pytest.mark.parametrize(("bits", "kind"), [(1, 1), (2, 1), (4, 1), (8, 1), (12, 1), (16, 1), (32, 1), (32, 3)])
    def test_a_grey_tiff_of_any_depth_is_read_rightly_or_refused_by_name(
        self, bits: int, kind: int, white_is_zero: bool
    ) -> None:
        levels = np.arange(256).reshape(16, 16)
        values = levels / 255 if kind == 3 else levels * ((1 << bits) - 1) // 255
        if bits in (8, 16, 32):
            body = values.astype("<f4" if kind == 3 else f"<u{bits // 8}").tobytes()
        else:  # bits are packed, the highest first
            packed = "".join(f"{value:0{bits}b}" for value in values.ravel())
            body = int(packed, 2).to_bytes(len(packed) // 8, "big")
        size = {256: (3, 1, 16), 257: (3, 1, 16), 258: (3, 1, bits), 259: (3, 1, 1), 277: (3, 1, 1), 278: (3, 1, 16)}
        tags = size | {262: (3, 1, int(not white_is_zero)), 273: (4, 1, 8), 279: (4, 1, len(body)), 339: (3, 1, kind)}
        expected = np.rint(values * (255 / (1 if kind == 3 else (1 << bits) - 1)))
        try:
            grey = pixels(read(tiff(tags, body)))[..., 0]
        except UnreadablePhotoError as error:
            assert (error.reason, white_is_zero) == (Reason.UNSUPPORTED_FORMAT, True)  # noqa: PT017 -- read or refused
            assert (bits, kind) in {(12, 1), (32, 1)}
        else:
            assert np.abs(grey - (255 - expected if white_is_zero else expected)).max() <= 1

    @pytest.mark.parametrize(("bits", "kind"), [(8, 2), (10, 1), (14, 1), (24, 1)])
    def test_a_tiff_whose_values_pillow_would_misread_is_refused_by_name(self, bits: int, kind: int) -> None:
        size = {256: (3, 1, 16), 257: (3, 1, 16), 258: (3, 1, bits), 259: (3, 1, 1), 277: (3, 1, 1), 278: (3, 1, 16)}
        tags = size | {262: (3, 1, 1), 273: (4, 1, 8), 279: (4, 1, 32 * bits), 339: (3, 1, kind)}
        error = refusal(tiff(tags, b"\x80" * 32 * bits))
        assert error.reason is Reason.UNSUPPORTED_FORMAT
        assert "TIFF" in error.detail

    def test_memory_that_is_short_is_not_the_photos_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def exhausted(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr("PIL.Image.core.new", exhausted)
        with pytest.raises(MemoryError):
            read(FILES["PNG"])

    def test_a_colour_profile_changes_nothing(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        assert np.array_equal(pixels(read(encoded(painting(), "PNG", icc_profile=profile))), np.asarray(painting()))

    @pytest.mark.parametrize("name", FILES)
    def test_what_follows_the_image_is_ignored(self, name: str) -> None:
        assert np.array_equal(pixels(read(FILES[name] + b"\0garbage" * 200)), pixels(read(FILES[name])))


def is_made_upright(stored: Image.Image, exif: Image.Exif, upright: Image.Image) -> bool:
    """Whether a viewer, Pillow's, shows ``upright`` for ``stored`` with that orientation."""
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif))))
    return shown.size == upright.size and np.array_equal(np.asarray(shown), np.asarray(upright))


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", Reason.EMPTY),
            (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", Reason.NOT_AN_IMAGE),
            (b"\0" * 5000, Reason.NOT_AN_IMAGE),
            (b"key,label\na.jpg,Apple\n", Reason.NOT_AN_IMAGE),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Reason.TRUNCATED),
            (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", Reason.TRUNCATED),
            (b"\0\0\0\x1cftypheic", Reason.TRUNCATED),
            (b"\0\0\0\x1cftypavif", Reason.TRUNCATED),
            (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", Reason.UNSUPPORTED_FORMAT),
            (b"\0\0\0\x0cJXL \r\n\x87\n", Reason.UNSUPPORTED_FORMAT),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Reason.UNSUPPORTED_FORMAT),
            (b"%PDF-1.7\n", Reason.UNSUPPORTED_FORMAT),
            (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.UNSUPPORTED_FORMAT),
            (encoded(painting(), "ICO"), Reason.UNSUPPORTED_FORMAT),
            (encoded(painting(), "PPM"), Reason.NOT_AN_IMAGE),
            (encoded(painting(MIN_SIDE - 1, 64), "PNG"), Reason.TOO_SMALL),
            (encoded(painting(64, MIN_SIDE - 1), "JPEG"), Reason.TOO_SMALL),
            (encoded(painting(64, MIN_SIDE - 1), "AVIF"), Reason.TOO_SMALL),
            (heif(painting(64, MIN_SIDE - 1)), Reason.TOO_SMALL),
        ],
    )
    def test_what_is_not_a_photo_is_refused_with_its_reason(self, data: bytes, reason: Reason) -> None:
        assert refusal(data).reason is reason

    def test_the_smallest_photo_accepted(self) -> None:
        assert read(encoded(painting(MIN_SIDE, MIN_SIDE), "PNG")).image.size == (MIN_SIDE, MIN_SIDE)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_a_file_that_was_cut_off_is_refused(self, name: str, share: float) -> None:
        data = FILES[name]
        whole_first_image = {"MPO", "APNG", "animated WEBP", "animated GIF", "animated TIFF", "many HEIF"}
        if name in whole_first_image:  # the cut must fall into the first image
            share *= 0.4
        error = refusal(data[: int(len(data) * share)])
        assert error.reason is Reason.TRUNCATED
        assert f"{int(len(data) * share):,} bytes" in error.detail

    @pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "LZW TIFF", "HEIF", "AVIF"])
    def test_an_upload_that_lost_its_second_half_is_refused(self, name: str) -> None:
        data = FILES[name]
        assert refusal(data[: len(data) // 2]).reason is Reason.TRUNCATED

    def test_a_jpeg_that_ends_with_its_header_is_truncated(self) -> None:
        data = FILES["JPEG"]
        assert refusal(data[: data.index(b"\xff\xda")]).reason is Reason.TRUNCATED

    def test_a_webp_of_full_length_is_corrupt_not_truncated(self) -> None:
        data = FILES["WEBP"]
        assert refusal(data[:40] + b"\xff" * (len(data) - 40)).reason is Reason.CORRUPT

    def test_a_tile_that_is_cut_off_or_full_of_zeros_costs_the_photo(self) -> None:
        data = FILES["tiled HEIF"]
        assert refusal(data[:-1]).reason is Reason.TRUNCATED
        tile = heif(painting().crop((64, 0, 128, 64)))
        size = len(tile) - tile.index(b"mdat") - 4
        assert data.endswith(tile[-size:])
        assert refusal(data[:-size] + bytes(size)).reason is Reason.CORRUPT

    def test_damaged_data_are_corrupt_and_the_detail_says_of_what(self) -> None:
        damaged = bytearray(FILES["PNG"])
        damaged[damaged.index(b"IDAT") + 30] ^= 0xFF
        error = refusal(bytes(damaged))
        assert error.reason is Reason.CORRUPT
        assert error.detail.startswith("corrupt PNG of 96 x 64 pixels")

    @pytest.mark.parametrize("name", FILES)
    def test_the_limit_of_pixels_holds_before_any_pixel_is_decoded(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("PIL.Image.core.new", lambda *_: pytest.fail("memory was allocated for pixels"))
        for max_pixels in (96 * 64 - 1, 1000):  # below and above twice the limit, where Pillow's own guard sets in
            error = refusal(FILES[name], Limits(LIMITS.max_bytes, max_pixels))
            assert error.reason is Reason.TOO_MANY_PIXELS
            assert f"{max_pixels:,}" in error.detail

    @pytest.mark.parametrize("name", FILES)
    def test_the_limits_are_inclusive(self, name: str) -> None:
        data = FILES[name]
        assert decode(data, Limits(len(data), 96 * 64), 224).width == 96
        error = refusal(data, Limits(len(data) - 1, 96 * 64))
        assert error.reason is Reason.TOO_MANY_BYTES
        assert f"{len(data):,} bytes" in error.detail

    def test_a_bomb_of_one_colour_is_refused(self) -> None:
        bomb = png(50_000, 50_000, 1, 0, b"\0" * 1000)
        assert refusal(bomb).reason is Reason.TOO_MANY_PIXELS

    def test_a_small_tiff_with_a_huge_tile_is_refused(self) -> None:
        size = {256: (3, 1, 16), 257: (3, 1, 16), 258: (3, 1, 8), 259: (3, 1, 5), 262: (3, 1, 1), 277: (3, 1, 1)}
        for side in (1 << 13, 1 << 20):
            tiles = {322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, 8), 325: (4, 1, 16)}
            error = refusal(tiff(size | tiles, b"\0" * 16))
            assert error.reason is Reason.TOO_MANY_PIXELS
            assert f"tiles of {side * side:,} pixels" in error.detail

    def test_pillows_own_limit_neither_refuses_nor_warns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for data in FILES.values():
                assert read(data).width == 96

    def test_pillows_warnings_do_not_reach_the_log(self) -> None:
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\xf0\0\0\0\0\0\0\0"
        data = encoded(painting(), "JPEG", exif=exif)
        with pytest.warns(UserWarning, match="Truncated"):
            Image.open(io.BytesIO(data)).getexif()
        program = (
            "import sys; from fruits.photos.decode import Limits, decode; data = sys.stdin.buffer.read();"
            "print(decode(data, Limits(10**6, 10**6), 224).width)"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-W", "always", "-c", program],
            input=data,
            capture_output=True,
            check=True,
            env=environment,
        )
        assert (done.stdout.strip(), done.stderr) == (b"96", b"")

    def test_the_error_survives_the_way_back_from_a_worker(self) -> None:
        error = refusal(b"<html>")
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert (copy.reason, copy.detail, str(copy)) == (error.reason, error.detail, str(error))
        assert str(error).endswith("quarantined as not_an_image")


WORDS = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"]
DAMAGE: dict[str, Callable[[st.DrawFn, bytes, int], bytes]] = {
    "byte": lambda draw, data, at: data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :],
    "word": lambda draw, data, at: data[:at] + draw(st.sampled_from(WORDS)) + data[at + 4 :],
    "cut": lambda draw, data, at: data[:at] + data[at + draw(st.integers(1, 50)) :],
    "insert": lambda draw, data, at: data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:],
    "repeat": lambda draw, data, at: (
        data[:at] + data[at : at + draw(st.integers(1, 600))] * draw(st.sampled_from([2, 50, 500])) + data[at:]
    ),
    "end": lambda _, data, at: data[: at + 1],
}


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A file of any format with bytes changed, a part cut out, put in or repeated, or its end cut off."""
    data = draw(st.sampled_from(FUZZED))
    for damage in draw(st.lists(st.sampled_from(sorted(DAMAGE)), max_size=8)):
        # Headers are where the plugins' parsers are: half of the changes go there.
        at = draw(st.one_of(st.integers(0, min(200, len(data) - 1)), st.integers(0, len(data) - 1)))
        data = DAMAGE[damage](draw, data, at) or b"\0"
    return data


SECONDS_OF_A_PHOTO = 5
BYTES_OF_ALL = 300_000_000
FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "600"))
"""How many files of a fuzz test; `FUZZ_EXAMPLES=100000` for a long one."""
FUZZED = [
    *FILES.values(),
    *(encoded(Image.open(io.BytesIO(draw_photo("Kiwi", "Training", 1, size=(60, 90)))).convert("RGB"), kind)
      for kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF")),
    heif(Image.open(io.BytesIO(draw_photo("Kiwi", "Training", 1, size=(60, 90)))).convert("RGB")),
]  # fmt: skip
SIGNATURES = [FILES[name][:size] for name in FILES for size in (4, 16, 60)] + [b"MM\0*", b"II+\0", b"BM"]
FUZZ_LIMITS = Limits(max_bytes=1_000_000, max_pixels=1_000_000)


def photo_or_error(data: bytes) -> Photo | UnreadablePhotoError:
    try:
        return decode(data, FUZZ_LIMITS, 16)
    except UnreadablePhotoError as error:
        return error


photos_and_damaged_files = st.one_of(
    st.binary(max_size=300),
    st.builds(bytes.__add__, st.sampled_from(SIGNATURES), st.binary(max_size=300)),
    damaged_files(),
)


def check_any_bytes(data: bytes) -> None:
    """Any bytes give a photo or a reason, in bounded time and memory. `make chaos` calls this too."""
    began, peak = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = photo_or_error(data)
    assert time.thread_time() - began < SECONDS_OF_A_PHOTO
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < BYTES_OF_ALL
    if isinstance(outcome, Photo):
        assert outcome.image.mode == "RGB"
        assert outcome.width * outcome.height <= FUZZ_LIMITS.max_pixels
        assert preprocess(outcome.image, Preprocessing(16, 16)).shape == (16, 16, 3)
    else:
        assert outcome.reason in Reason
        assert 0 < len(outcome.detail) < 500


@given(photos_and_damaged_files)
@example(b"RIFF\xff\xff\xff\xffWEBPVP8X")
@example(b"GIF89a")
@settings(
    max_examples=FUZZ_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_bytes_give_a_photo_or_a_reason_in_bounded_time_and_memory(data: bytes) -> None:
    check_any_bytes(data)


class TestPreprocess:
    @pytest.mark.parametrize("crop_share", [None, 0.875])
    @pytest.mark.parametrize("size", [(100, 100), (348, 464), (9, 900)])
    def test_gives_uint8_rows_columns_channels(self, size: tuple[int, int], crop_share: float | None) -> None:
        array = preprocess(painting(*size), Preprocessing(20, 30, "bicubic", crop_share))
        assert (array.dtype, array.shape) == (np.uint8, (20, 30, 3))
        assert array.flags.c_contiguous

    def test_without_a_crop_the_whole_photo_is_squashed(self) -> None:
        image = Image.new("RGB", (400, 100), "black")
        image.paste("white", (0, 0, 100, 100))
        image.paste("red", (300, 0, 400, 100))
        array = preprocess(image, Preprocessing(40, 40))
        assert np.array_equal(array[20, [2, 15, 25, 37]], [(255, 255, 255), (0, 0, 0), (0, 0, 0), (255, 0, 0)])

    @pytest.mark.parametrize("size", [(160, 240), (240, 160), (160, 160)])
    def test_the_crop_is_the_central_square_of_the_shorter_side(self, size: tuple[int, int]) -> None:
        width, height = size
        centre = ((width - 140) // 2, (height - 140) // 2, (width + 140) // 2, (height + 140) // 2)  # 0.875 * 160
        image = painting(width, height)
        framed = Image.new("RGB", size, "magenta")
        framed.paste(image.crop(centre), centre)
        expected = image.crop(centre).resize((56, 56), Image.Resampling.BICUBIC)
        array = preprocess(framed, Preprocessing(56, 56, "bicubic", 0.875))
        inner = (slice(2, -2), slice(2, -2))  # at the rim the filter sees the frame
        assert np.array_equal(array[inner], np.asarray(expected)[inner])

    def test_the_filter_is_the_one_asked_for(self) -> None:
        image = painting(300, 300)
        for resample, filter_ in [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]:
            expected = np.asarray(image.resize((64, 64), filter_))
            assert np.array_equal(preprocess(image, Preprocessing(64, 64, resample)), expected)

    def test_a_very_large_photo_is_still_averaged_fairly(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (1500, 1700, 3), np.uint8)
        image = Image.fromarray(noise)
        array = preprocess(image, Preprocessing(32, 32)).astype(int)
        assert np.abs(array - np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))).mean() < 1

    def test_is_deterministic(self) -> None:
        data, preprocessing = encoded(painting(900, 700), "JPEG"), Preprocessing(64, 64, "bilinear", 0.875)
        first, second = (preprocess(read(data, 64).image, preprocessing) for _ in range(2))
        assert np.array_equal(first, second)

    @pytest.mark.parametrize(("crop_share", "side"), [(None, 224), (0.875, 256), (1.0, 224)])
    def test_needed_side_is_the_least_that_is_not_enlarged(self, crop_share: float | None, side: int) -> None:
        assert needed_side(Preprocessing(224, 200, "bilinear", crop_share)) == side


def collect_photos() -> list[Image.Image]:
    """One real photo of each kind of fruit."""
    found = [min(folder.glob("*.jpg")) for folder in sorted(REAL_PHOTOS.iterdir()) if folder.is_dir()]
    return [read(path.read_bytes()).image for path in found]


def grainy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 40, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


NEAR_DUPLICATES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: read(encoded(image, "JPEG", quality=60)).image,
    "halved": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "enlarged": lambda image: image.resize((image.width * 3, image.height * 3), Image.Resampling.BICUBIC),
    "grainy": grainy,
    "brightened": lambda image: image.point(lambda value: min(255, value + 10)),
}


class TestPerceptualHash:
    @pytest.mark.parametrize("change", NEAR_DUPLICATES)
    def test_near_duplicates_are_near(self, change: str) -> None:
        for seed in range(20):
            image = painting(348, 348, seed)
            assert distance(perceptual_hash(image), perceptual_hash(NEAR_DUPLICATES[change](image))) <= 8

    def test_different_photos_are_far(self) -> None:
        hashes = [perceptual_hash(painting(348, 348, seed)) for seed in range(20)]
        distances = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
        assert np.quantile(distances, 0.05) > 16

    @pytest.mark.skipif(not REAL_PHOTOS.is_dir(), reason=f"no real photos: {REAL_PHOTOS} is absent")
    def test_real_photos_are_near_their_duplicates_and_far_from_each_other(self) -> None:
        images = collect_photos()
        assert len(images) > 10
        hashes = [perceptual_hash(image) for image in images]
        for image, hash_ in zip(images, hashes, strict=True):
            for change in NEAR_DUPLICATES.values():
                assert distance(hash_, perceptual_hash(change(image))) <= 8
        distances = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
        assert np.quantile(distances, 0.05) > 16

    def test_does_not_depend_on_the_scale_a_jpeg_was_decoded_at(self) -> None:
        data = encoded(painting(1600, 1200), "JPEG")
        assert distance(perceptual_hash(read(data).image), perceptual_hash(read(data, 100).image)) <= 4

    def test_is_a_signed_64_bit_integer_with_half_of_its_bits_set(self) -> None:
        hashes = [perceptual_hash(painting(seed=seed)) for seed in range(20)]
        assert all(-(2**63) <= hash_ < 2**63 for hash_ in hashes)
        assert {hash_ < 0 for hash_ in hashes} == {True, False}
        assert all((hash_ & (2**64 - 1)).bit_count() == 32 for hash_ in hashes)

    def test_bits_are_those_above_the_median(self) -> None:
        for seed in range(20):
            image = painting(seed=seed)
            grey = image.resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("L")
            frequencies = _COSINES @ np.asarray(grey, np.float64) @ _COSINES.T
            bits = np.packbits(frequencies > np.median(frequencies)).tobytes()
            assert perceptual_hash(image) == int.from_bytes(bits, "big", signed=True)

    @pytest.mark.parametrize("colour", ["black", "white", "orange"])
    def test_photos_of_one_colour_have_one_hash(self, colour: str) -> None:
        assert perceptual_hash(Image.new("RGB", (348, 200), colour)) == 0

    def test_a_bit_is_one_frequency_of_the_cosine_transform(self) -> None:
        position = np.arange(32)
        for row, column in [(1, 1), (3, 2), (8, 8)]:
            wave = np.outer(*(np.cos(np.pi * k * (2 * position + 1) / 64) for k in (row, column)))
            image = Image.fromarray((128 + 100 * wave).round().astype(np.uint8)).convert("RGB")
            bit = 1 << (63 - (8 * (row - 1) + column - 1))
            assert perceptual_hash(image) & bit


class TestReason:
    def test_the_decoder_is_the_pillow_and_the_pi_heif_that_are_installed(self) -> None:
        """Others may read other files: change ``DECODER``, so that what was refused is read again."""
        pillow, heif_reader = DECODER.split(", ")
        assert pillow.split("+")[0] == f"pillow-{PIL.__version__}"
        assert heif_reader == f"pi-heif-{pi_heif.__version__}"

    def test_each_code_explains_itself(self) -> None:
        assert all(reason.description.endswith(".") and str(reason) == reason.value for reason in Reason)
        assert len({reason.description for reason in Reason}) == len(Reason)
        assert Reason("truncated") is Reason.TRUNCATED  # type: ignore[call-arg]  # by its value
