"""Files that are small and would cost a decoder hours or gigabytes are refused by a look at their structure."""

import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from fruits.photos import boxes, headers
from fruits.photos.decode import Limits, UnreadablePhotoError, decode
from fruits.photos.headers import find_problem
from fruits.photos.quarantine import Reason

LIMITS = Limits(max_bytes=50_000_000, max_pixels=100_000_000)
ORIENTATION = 0x0112


def photo(kind: str, size: tuple[int, int] = (96, 64), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    if kind == "HEIF":
        if isinstance(exif := options.get("exif"), Image.Exif):
            options["exif"] = exif.tobytes()
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(stream, **options)
    else:
        Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def refused(data: bytes, limits: Limits = LIMITS) -> UnreadablePhotoError:
    """The refusal, which must come at once."""
    began = time.process_time()
    with pytest.raises(UnreadablePhotoError) as caught:
        decode(data, limits, 224)
    assert time.process_time() - began < 2
    return caught.value


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments after its first marker."""
    return data[:2] + b"".join(segments) + data[2:]


def with_frame(data: bytes, marker: int, precision: int = 8) -> bytes:
    """A JPEG whose frame has another marker and precision."""
    place = data.index(b"\xff\xc0")
    return data[: place + 1] + bytes([marker]) + data[place + 2 : place + 4] + bytes([precision]) + data[place + 5 :]


def many_scans(count: int, size: tuple[int, int] = (96, 64)) -> bytes:
    """A progressive JPEG whose last scan comes again and again; the header declares ``size``."""
    data = bytearray(photo("JPEG", progressive=True))
    struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, *size[::-1])
    last = data.rindex(b"\xff\xda")
    return bytes(data[:last] + data[last:-2] * count + data[-2:])


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    data = photo("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def gif_of_comments(size: int) -> bytes:
    data = photo("GIF")
    place = data.index(b"\x2c", 13 + 768)
    return data[:place] + b"\x21\xfe" + (b"\xff" + b"c" * 255) * (size // 256) + b"\0" + data[place:]


def greedy_tiff(tags: int, order: str = "<") -> bytes:
    """A TIFF of which every tag is the whole file: kept apart, each would take its size."""
    pixels = b"\0" * 1_000_000
    entries = b"".join(struct.pack(f"{order}HHII", 40_000 + tag, 7, len(pixels), 8) for tag in range(tags))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    return head + pixels + struct.pack(f"{order}H", tags) + entries + struct.pack(f"{order}I", 0)


def long_tiff() -> bytes:
    """A TIFF with a tag of millions of numbers."""
    entry = struct.pack("<HHII", 273, 4, 2_000_000, 8)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)


def box(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body


def heif_of(
    kinds: dict[int, bytes],
    references: list[tuple[bytes, int, list[int]]],
    size: tuple[int, int] | None = (64, 64),
    more: bytes = b"",
) -> bytes:
    """The boxes of a HEIC whose items have some types, one size and references; the first item is the photo."""
    entries = [box(b"infe", struct.pack(">IHH4sx", 2 << 24, item, 0, kind)) for item, kind in kinds.items()]
    linked = [box(kind, struct.pack(f">HH{len(parts)}H", item, len(parts), *parts)) for kind, item, parts in references]
    places = b"".join(struct.pack(">HHHII", item, 0, 1, 0, 1_000_000) for item in kinds)
    sizes = [box(b"ispe", struct.pack(">III", 0, *size))] if size else []
    properties = b"".join(struct.pack(">HBB", item, len(sizes), 1)[: 3 + len(sizes)] for item in kinds)
    body = [
        box(b"pitm", struct.pack(">IH", 0, 1)),
        box(b"iinf", struct.pack(">IH", 0, len(kinds)) + b"".join(entries)),
        box(b"iloc", struct.pack(">IBBH", 0, 0x44, 0, len(kinds)) + places),
        box(b"iref", bytes(4) + b"".join(linked)),
        box(b"iprp", box(b"ipco", b"".join(sizes)) + box(b"ipma", struct.pack(">II", 0, len(kinds)) + properties)),
    ]
    return box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", bytes(4) + b"".join(body) + more)


GRID = {1: b"grid", 2: b"hvc1"}


COSTLY: dict[str, Callable[[], bytes]] = {
    "scans of a small JPEG": lambda: many_scans(headers.MOST_MARKERS),
    "scans of a large JPEG": lambda: many_scans(30, (9_000, 9_000)),
    "segments": lambda: with_segments(photo("JPEG"), *[segment(0xE9, b"")] * (headers.MOST_MARKERS + 1)),
    "EXIF in parts": lambda: with_segments(photo("JPEG"), *[segment(0xE1, b"Exif\0\0" + b"x" * 60_000)] * 60),
    "chunks before the pixels": lambda: png_with(*[chunk(b"teSt")] * (headers.MOST_HEADER_CHUNKS + 1)),
    "chunks of pixels": lambda: photo("PNG")[:-12] + chunk(b"IDAT") * (headers.MOST_CHUNKS + 1) + chunk(b"IEND"),
    "text": lambda: png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 5_000_000))),
    "comments": lambda: gif_of_comments(5_000_000),
    "tags": lambda: greedy_tiff(headers.MOST_TIFF_TAGS + 1),
    "tags of one place": lambda: greedy_tiff(100),
    "big-endian tags": lambda: greedy_tiff(100, ">"),
    "numbers": long_tiff,
    "large tiles": lambda: heif_of(GRID, [(b"dimg", 1, [2] * 10)], (9_000, 9_000)),
    "tiles again and again": lambda: heif_of(GRID, [(b"dimg", 1, [2] * 60_000)]),
    "grids of grids": lambda: heif_of(
        {item: b"hvc1" if item == 4 else b"grid" for item in range(1, 5)},
        [(b"dimg", item, [item + 1] * 200) for item in range(1, 4)],
    ),
    "a chain of images": lambda: heif_of(
        dict.fromkeys(range(1, 9), b"iden"), [(b"dimg", item, [item + 1]) for item in range(1, 8)]
    ),
    "an image of itself": lambda: heif_of({1: b"iden"}, [(b"dimg", 1, [1])]),
    "metadata of each tile": lambda: heif_of({1: b"hvc1", 2: b"Exif"}, [(b"cdsc", 2, [1] * 60)]),
    "boxes": lambda: heif_of(GRID, [], more=box(b"free") + box(b"iprp", box(b"free") * boxes.MOST_BOXES)),
    "two tables": lambda: heif_of(GRID, [], more=box(b"iinf", bytes(6))),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_file_that_would_cost_too_much_is_refused_at_once(name: str) -> None:
    assert refused(COSTLY[name]()).reason == Reason.TOO_COSTLY


@pytest.mark.parametrize(
    ("marker", "precision", "name"),
    [
        (0xC1, 12, "12-bit JPEG"),
        (0xC2, 12, "12-bit JPEG"),
        (0xC3, 8, "lossless JPEG"),
        (0xC3, 16, "lossless JPEG"),
        (0xC5, 8, "hierarchical JPEG"),
        (0xF7, 8, "JPEG-LS"),
    ],
)
def test_jpegs_that_are_not_read_are_refused_by_name(marker: int, precision: int, name: str) -> None:
    error = refused(with_frame(photo("JPEG"), marker, precision))
    assert (error.reason, error.detail) == (
        Reason.UNSUPPORTED_FORMAT,
        f"{name}: expected a baseline or progressive JPEG of 8 bits",
    )


@pytest.mark.parametrize(
    ("kind", "references"),
    [(b"unci", []), (b"av01", []), (b"grid", [(b"dimg", 1, [2])]), (b"iovl", [(b"dimg", 1, [3, 3])])],
)
def test_a_heic_of_another_coding_is_refused_by_name(
    kind: bytes, references: list[tuple[bytes, int, list[int]]]
) -> None:
    error = refused(heif_of({1: kind, 2: b"j2k1", 3: b"hvc1"}, references))
    name = "j2k1" if kind == b"grid" else kind.decode()
    assert (error.reason, error.detail) == (Reason.UNSUPPORTED_FORMAT, f"HEIF of the coding '{name}': expected HEVC")


def test_an_image_without_a_size_is_corrupt() -> None:
    assert refused(heif_of(GRID, [(b"dimg", 1, [2])], None)).detail == "HEIF with an image that has no size"


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_a_stream_that_is_larger_than_its_property_says_is_not_decoded(kind: str) -> None:
    size = struct.pack(">II", 1_000, 900)
    data = photo(kind, (1_000, 900), quality=20)
    assert data.count(size) == 1
    error = refused(data.replace(size, struct.pack(">II", 96, 64)), Limits(10**6, 10**5))
    expected = Reason.TOO_COSTLY if kind == "HEIF" else Reason.TOO_MANY_PIXELS
    assert error.reason == expected
    assert "1000x904" in error.detail or "1,000 x 900" in error.detail


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("extended", [True, False])
def test_a_webp_of_too_many_pixels_gets_no_canvas(
    extended: bool, lossless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = {"exif": Image.Exif().tobytes() + b" "} if extended else {}
    data = photo("WEBP", lossless=lossless, **exif)
    assert data[12:16] == (b"VP8X" if extended else b"VP8L" if lossless else b"VP8 ")
    monkeypatch.setattr("PIL.WebPImagePlugin._webp.WebPAnimDecoder", lambda *_: pytest.fail("a canvas was allocated"))
    error = refused(data, Limits(10**6, 96 * 64 - 1))
    assert (error.reason, error.detail[:26]) == (Reason.TOO_MANY_PIXELS, "WEBP of 96 x 64 pixels: ex")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF", "AVIF"])
def test_exif_that_would_cost_too_much_does_not_cost_the_photo(kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    plain = photo(kind, exif=exif)
    assert (decode(plain, LIMITS, 224).width, decode(plain, LIMITS, 224).height) == (64, 96)
    tags = 3_000
    bomb = exif.tobytes()[:6] + b"II*\0" + struct.pack("<IH", 8, tags)
    bomb += b"".join(struct.pack("<HHII", tag, 7, 30_000, 0) for tag in range(tags))
    began = time.process_time()
    photo_of_bomb = decode(photo(kind, exif=bomb), LIMITS, 224)
    assert time.process_time() - began < 2
    assert (photo_of_bomb.width, photo_of_bomb.height) == (96, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "HEIF", "AVIF"])
def test_honest_files_have_no_problem_wherever_they_end(kind: str) -> None:
    data = photo(kind, size=(640, 480))
    assert find_problem(data, kind, 640 * 480) is None
    for end in (*range(1, 200), len(data) // 2):
        problem = find_problem(data[:end], kind, 640 * 480)
        assert problem is None or (kind in ("HEIF", "AVIF") and problem[0] is Reason.TRUNCATED)


def test_a_progressive_photo_of_the_largest_size_is_accepted() -> None:
    data = bytearray(photo("JPEG", progressive=True))
    struct.pack_into(">HH", data, data.index(b"\xff\xc2") + 5, 10_000, 10_000)
    assert find_problem(bytes(data), "JPEG", 100_000_000) is None


def test_a_long_run_of_fill_bytes_is_read_once() -> None:
    start = time.process_time()
    assert find_problem(b"\xff\xd8" + b"\xff" * 2_000_000, "JPEG", LIMITS.max_pixels) is None
    assert time.process_time() - start < 5  # hours, where each of them starts a search of the rest
