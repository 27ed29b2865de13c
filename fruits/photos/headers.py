"""What a file's structure costs a decoder, and what of it Pillow would read wrongly: looked at before Pillow parses.

Pillow bounds pixels, and text in PNGs. It does not bound a JPEG of a hundred thousand scans, a GIF of comments, or a
TIFF whose tags all point to the whole file: small files that would take hours, or more memory than there is. Honest
photos stay far below the bounds here. Each look is one pass over markers or chunks, and ends at the bound.
"""

import re
import struct
from collections.abc import Callable, Mapping
from functools import partial

from fruits.photos.boxes import Problem, boxes_problem
from fruits.photos.quarantine import Reason

MOST_MARKERS = 5_000
"""Marker segments of a JPEG. A photo with a large colour profile and extended XMP has some hundreds."""
MOST_EXIF_SEGMENTS = 50
SCANS_AT_FULL_SIZE = 20
"""Scans of a JPEG with as many pixels as are accepted; smaller ones may have more. Progressive photos have some 10."""
MOST_HEADER_CHUNKS, MOST_CHUNKS = 2_000, 200_000
"""Chunks of a PNG before its pixels, and in all; encoders write pixels in chunks of 8 KB or more."""
MOST_GIF_COMMENT_BYTES = 1_000_000
MOST_TIFF_TAGS, MOST_TIFF_VALUES = 4_000, 1_000_000

_NOT_FRAMES = frozenset({0xC4, 0xC8, 0xCC})  # tables of codes and of arithmetic conditions, and a reserved marker
_FRAMES = frozenset(range(0xC0, 0xD0)) - _NOT_FRAMES | {0xF7}
_FRAME_NAMES: Mapping[int, str] = {
    0xC3: "lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical JPEG"),
    0xCB: "lossless JPEG",
    **dict.fromkeys((0xCD, 0xCE, 0xCF), "hierarchical JPEG"),
    0xF7: "JPEG-LS",
}
_START_OF_SCAN, _END = 0xDA, 0xD9
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # one 0xff: a run of them takes no squared time
_TIFF_SIZES: Mapping[int, int] = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
                                  16: 8, 17: 8, 18: 8}  # fmt: skip
_TIFF_BYTES = frozenset({1, 2, 7})  # values that Pillow keeps as bytes; others become Python's numbers
_EIGHT_BITS = 8


def find_problem(data: bytes, format_name: str, max_pixels: int) -> Problem | None:
    """Why a file must not be given to Pillow; None for nearly every file. Damaged structure is Pillow's to judge."""
    look = _LOOKS.get(format_name)
    try:
        return look(data, max_pixels) if look else None
    except (struct.error, IndexError, OverflowError):  # the structure goes on after the end of the data
        return None


def tiff_problem(data: bytes, max_pixels: int = 0) -> Problem | None:  # noqa: ARG001 -- as the other formats' looks
    """Why the first directory of a TIFF, or of EXIF data, must not be read."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    place = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)[0]
    count = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, place)[0]
    if count > MOST_TIFF_TAGS:
        return Reason.TOO_COSTLY, f"TIFF of {count:,} tags: expected at most {MOST_TIFF_TAGS:,}"
    entry, start, inside = (f"{order}HHQ", place + 8, 8) if big else (f"{order}HHI", place + 2, 4)
    apart = 0
    for number in range(count):
        tag, kind, values = struct.unpack_from(entry, data, start + number * (20 if big else 12))
        size = values * _TIFF_SIZES.get(kind, 1)
        apart += size if size > inside else 0
        if kind not in _TIFF_BYTES and values > MOST_TIFF_VALUES:
            return Reason.TOO_COSTLY, f"TIFF with {values:,} values of tag {tag}: expected at most {MOST_TIFF_VALUES:,}"
    if apart > len(data):
        return Reason.TOO_COSTLY, f"TIFF whose tags share {len(data):,} bytes: {apart:,} bytes in all"
    return None


def _jpeg_problem(data: bytes, max_pixels: int) -> Problem | None:
    scans = exif = pixels = 0
    place = 2
    for _ in range(MOST_MARKERS):
        found = _NEXT_MARKER.search(data, place)
        if found is None or (marker := data[found.end() - 1]) == _END:
            return None
        place = found.end()
        if marker in _ALONE:
            continue
        length = struct.unpack_from(">H", data, place)[0]
        if marker in _FRAMES:
            precision, height, width = struct.unpack_from(">BHH", data, place + 2)
            if name := _FRAME_NAMES.get(marker) or (f"{precision}-bit JPEG" if precision != _EIGHT_BITS else ""):
                return Reason.UNSUPPORTED_FORMAT, f"{name}: expected a baseline or progressive JPEG of 8 bits"
            pixels = width * height
            if pixels > max_pixels:
                return None  # too many, as the decoder says
        scans += marker == _START_OF_SCAN
        exif += data.startswith(b"Exif\0\0", place + 2)
        if scans * pixels > SCANS_AT_FULL_SIZE * max_pixels or exif > MOST_EXIF_SEGMENTS:
            return Reason.TOO_COSTLY, f"JPEG of {pixels:,} pixels with more than {scans - 1:,} scans, {exif} of EXIF"
        place += length
    return Reason.TOO_COSTLY, f"JPEG of more than {MOST_MARKERS:,} segments"


def _png_problem(data: bytes, max_pixels: int) -> Problem | None:  # noqa: ARG001
    place, most = 8, MOST_HEADER_CHUNKS
    for number in range(MOST_CHUNKS):
        if number > most:
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            return None
        if kind == b"IDAT":
            most = MOST_CHUNKS
        place += 12 + length
    return Reason.TOO_COSTLY, f"PNG of more than {most:,} chunks"


def _gif_problem(data: bytes, max_pixels: int) -> Problem | None:  # noqa: ARG001
    """A GIF's extensions before its first image; Pillow joins the parts of a comment one by one."""
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    first = place
    while data[place] == 0x21:  # noqa: PLR2004 -- an extension
        place += 2
        while size := data[place]:
            place += size + 1
            if place - first > MOST_GIF_COMMENT_BYTES:
                return Reason.TOO_COSTLY, f"GIF with more than {MOST_GIF_COMMENT_BYTES:,} bytes before its first image"
        place += 1
    return None


def _webp_problem(data: bytes, max_pixels: int) -> Problem | None:
    """A WebP's size: Pillow allocates its canvas, twice, before anybody can ask for the size."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[place : place + 3], "little") for place in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    if width * height > max_pixels:
        measured = f"WEBP of {width:,} x {height:,} pixels"
        return Reason.TOO_MANY_PIXELS, f"{measured}: expected at most {max_pixels:,} pixels"
    return None


_LOOKS: Mapping[str, Callable[[bytes, int], Problem | None]] = {
    "JPEG": _jpeg_problem,
    "PNG": _png_problem,
    "GIF": _gif_problem,
    "WEBP": _webp_problem,
    "TIFF": tiff_problem,
    "HEIF": partial(boxes_problem, format_name="HEIF"),
    "AVIF": partial(boxes_problem, format_name="AVIF"),
}
