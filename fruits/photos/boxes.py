"""What decoding a HEIF or AVIF photo would cost, by its boxes (ISO 14496-12 and 23008-12).

An AVIF says its size twice: in a property that the reader checks, and in the coded stream, by which the decoder
allocates; libheif holds HEVC streams against the property. A file may have its tiles decoded again and again, and may
describe each image by the same megabytes of metadata: nobody bounds that. Honest photos stay far below the bounds here.
"""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from fruits.photos.quarantine import Reason

MOST_BOXES, MOST_ENTRIES = 20_000, 50_000
"""Boxes side by side, and entries of tables: places, properties and references. A photo of 100 megapixels has 2,000."""
MOST_DECODED = 8
"""Pixels that may be decoded for one image, its tiles and layers together, by those of the largest photo accepted."""
MOST_METADATA_BYTES = 50_000_000
"""Bytes of metadata, counted for each image that they describe, as they are copied."""
MOST_DEPTH = 4
"""An image that is derived from an image, and so on: a grid that is rotated is 2 deep."""
PADDING = 64
"""Pixels by which a coded side may exceed the photo's: coders fill up blocks."""

_CODERS = {"HEIF": frozenset({b"hvc1", b"hev1"}), "AVIF": frozenset({b"av01"})}
_NAMES = {"HEIF": "HEVC", "AVIF": "AV1"}
_DERIVED = frozenset({b"grid", b"iden", b"tmap"})
_SEQUENCE_HEADER = 1  # the type of the OBU of AV1 that says the size

Size = tuple[int, int]
Problem = tuple[Reason, str]


class TooCostlyError(ValueError):
    """The structure exceeds a bound."""


@dataclass
class _Items:
    """A file's items by their number: types, places of their data, sizes, and references."""

    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict)
    places: dict[int, Sequence[Size]] = field(default_factory=dict)
    sizes: dict[int, Size] = field(default_factory=dict)
    parts: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    described: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    known: dict[int, int] = field(default_factory=dict)
    idat: int = 0
    entries: int = 0

    def spend(self, entries: int) -> None:
        """Count entries of tables."""
        self.entries += entries
        if self.entries > MOST_ENTRIES:
            raise TooCostlyError(f"more than {MOST_ENTRIES:,} parts and properties of images")

    def pixels(self, item: int, depth: int = 0) -> int:
        """How many pixels are decoded for an item."""
        if depth > MOST_DEPTH:
            raise TooCostlyError(f"images that are derived more than {MOST_DEPTH} deep")
        if item not in self.known:
            own = max(prod(self.sizes.get(item, (0, 0))), PADDING * PADDING)
            self.known[item] = own + sum(self.pixels(part, depth + 1) for part in self.parts.get(item, ()))
        return self.known[item]

    def photo(self) -> set[int]:
        """The items that are decoded for the photo, without those that only say how others are put together."""
        seen: set[int] = set()
        ahead = [self.primary] if self.primary in self.kinds else []
        while ahead:
            item = ahead.pop()
            if item not in seen:
                seen.add(item)
                ahead += self.parts.get(item, ())
        return {item for item in seen if self.kinds.get(item) not in _DERIVED or item not in self.parts}


def is_cut_off(data: bytes) -> bool:
    """Whether a file ends before its last box, or before the box that describes its images."""
    place, kinds = 0, set()
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        kinds.add(data[place + 4 : place + 8])
        if size == 1:  # a size of 64 bits follows the type
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        place = place + max(size, 8) if size else len(data)  # without a size, a box goes up to the end
    return place > len(data) or not kinds & {b"meta", b"moov"}


def boxes_problem(data: bytes, max_pixels: int, format_name: str) -> Problem | None:
    """Why a HEIF or AVIF file must not be decoded; None for nearly every file. Damage is the decoder's to judge."""
    try:
        for kind, start, end in _boxes(data, 0, len(data)):
            if kind == b"meta" and (problem := _meta_problem(data, start, end, max_pixels, format_name)):
                return problem
    except TooCostlyError as error:
        return Reason.TOO_COSTLY, f"{format_name} with {error}"
    return None


def _meta_problem(data: bytes, start: int, end: int, max_pixels: int, name: str) -> Problem | None:
    items = _items(data, start, end, name)
    return _size_problem(data, items, max_pixels, name) or _photo_problem(data, items, name)


def _size_problem(data: bytes, items: _Items, max_pixels: int, name: str) -> Problem | None:
    whole = not is_cut_off(data)
    for item, kind in items.kinds.items():
        width, height = items.sizes.get(item, (0, 0))
        if (width - PADDING) * (height - PADDING) > max_pixels:
            detail = f"{name} with an image of {width:,} x {height:,} pixels: expected at most {max_pixels:,} pixels"
            return Reason.TOO_MANY_PIXELS, detail
        if kind in _CODERS[name] and not width * height and whole:
            return Reason.CORRUPT, f"{name} with an image that has no size"
    most = MOST_DECODED * max(max_pixels, PADDING * PADDING)
    if any(items.pixels(item) > most for item in items.kinds):
        raise TooCostlyError(f"parts of more than {most:,} pixels for one image")
    metadata = sum(
        times * sum(size for _, size in items.places.get(item, ())) for item, times in items.described.items()
    )
    if metadata > MOST_METADATA_BYTES:
        raise TooCostlyError(f"metadata of {metadata:,} bytes in all: expected at most {MOST_METADATA_BYTES:,}")
    return None


def _photo_problem(data: bytes, items: _Items, name: str) -> Problem | None:
    """What is wrong with the photo's own items. libheif leaves out a tile that it can't decode, and says nothing."""
    photo = items.photo()
    if others := {items.kinds.get(item, b"") for item in photo} - _CODERS[name]:
        kinds = ", ".join(sorted(kind.decode("latin-1") for kind in others))
        return Reason.UNSUPPORTED_FORMAT, f"{name} of the coding {kinds!r}: expected {_NAMES[name]}"
    ends = [place + size for item in photo for place, size in items.places.get(item, ())]
    if max(ends, default=0) > len(data):
        return Reason.TRUNCATED, f"truncated {name}: its data go on after the {len(data):,} bytes that are there"
    if name == "HEIF" and not all(_is_of_units(data, items.places.get(item, ()), items) for item in photo):
        return Reason.CORRUPT, f"corrupt {name}, {len(data):,} bytes: its data are no units of HEVC"
    return None


def _is_of_units(data: bytes, places: Sequence[Size], items: _Items) -> bool:
    """Whether an item's data are HEVC's units, each after its length (ISO 14496-15, 4.3.3)."""
    if len(places) != 1 or not places[0][1]:  # in several parts, or up to the end of the file: libheif's to judge
        return True
    place, end = places[0][0], sum(places[0])
    while place + 4 <= end:
        items.spend(1)
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 2:  # noqa: PLR2004 -- bytes of a unit's header
            return False
        place += 4 + size
    return place == end


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and first and last place of the body, of the boxes between two places."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            size = struct.unpack_from(">Q", data, body)[0]
            body += 8
        stop = start + size if size else end
        if stop < body:
            return
        yield kind, body, min(stop, end)
        start = stop
    raise TooCostlyError(f"more than {MOST_BOXES:,} boxes")


def _items(data: bytes, start: int, end: int, name: str) -> _Items:
    found, bodies = _Items(), {}
    for kind, first, last in _boxes(data, start + 4, end):
        if kind in bodies:  # a reader may take either
            raise TooCostlyError(f"several boxes {kind.decode('latin-1')!r}")
        bodies[kind] = first, last
    found.idat = bodies.get(b"idat", (0, 0))[0]
    for kind, read in _READERS.items():
        if kind in bodies:
            read(data, *bodies[kind], found)
    for item, kind in found.kinds.items() if name == "AVIF" else ():
        if kind == b"av01" and (places := found.places.get(item)):
            coded = _av1_size(data[places[0][0] : places[0][0] + 64])
            found.sizes[item] = max(coded, found.sizes.get(item, (0, 0)), key=prod)
    return found


def _read_primary(data: bytes, place: int, _: int, found: _Items) -> None:
    found.primary = struct.unpack_from(">I" if data[place] else ">H", data, place + 4)[0]


def _read_kinds(data: bytes, start: int, end: int, found: _Items) -> None:
    for kind, place, _ in _boxes(data, start + (8 if data[start] else 6), end):
        if kind == b"infe" and data[place] > 1:  # the versions whose entries have a type
            code = ">I2x4s" if data[place] == 3 else ">H2x4s"  # noqa: PLR2004 -- the version of wide numbers
            item, found_kind = struct.unpack_from(code, data, place + 4)
            found.kinds[item] = found_kind


def _read_places(data: bytes, place: int, _: int, found: _Items) -> None:
    """Where each item's bytes are, as pairs of a place and a length."""
    version, sizes = data[place], struct.unpack_from(">H", data, place + 4)[0]
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    place += 6

    def number(size: int) -> int:
        nonlocal place
        place += size
        if place > len(data):
            raise struct.error("the data end")
        return int.from_bytes(data[place - size : place], "big")

    wide = 4 if version == 2 else 2  # noqa: PLR2004 -- the version of wide numbers
    for _item in range(number(wide)):
        found.spend(1)
        item, inside = number(wide), version and number(2) & 15
        number(2)
        if inside > 1:
            raise TooCostlyError("items inside of items")
        base, places = number(base_size) + (found.idat if inside == 1 else 0), []
        for _extent in range(number(2)):
            found.spend(1)
            number(index_size if version else 0)
            offset = number(offset_size)
            places.append((base + offset, number(length_size)))
        found.places[item] = places


def _read_references(data: bytes, start: int, end: int, found: _Items) -> None:
    code = "I" if data[start] else "H"
    for kind, place, _ in _boxes(data, start + 4, end):
        item, number = struct.unpack_from(f">{code}H", data, place)
        found.spend(number)
        if kind == b"dimg":
            found.parts[item] += struct.unpack_from(f">{number}{code}", data, place + struct.calcsize(f">{code}H"))
        if kind == b"cdsc":
            found.described[item] += number


def _read_sizes(data: bytes, start: int, end: int, found: _Items) -> None:
    """The size of each item, by its property ``ispe``."""
    sizes: dict[int, Size] = {}
    for kind, first, last in _boxes(data, start, end):
        if kind == b"ipco":
            for number, (name, place, _) in enumerate(_boxes(data, first, last), 1):
                if name == b"ispe":
                    sizes[number] = struct.unpack_from(">II", data, place + 4)
        if kind == b"ipma":
            for item, numbers in _associations(data, first, found):
                known = (sizes[number] for number in numbers if number in sizes)
                found.sizes[item] = max(*known, found.sizes.get(item, (0, 0)), (0, 0), key=prod)


def _associations(data: bytes, place: int, found: _Items) -> Iterator[tuple[int, Sequence[int]]]:
    item_code = ">I" if data[place] else ">H"
    code, mask = ("H", 0x7FFF) if data[place + 3] & 1 else ("B", 0x7F)
    entries, place = struct.unpack_from(">I", data, place + 4)[0], place + 8
    for _ in range(entries):
        found.spend(1)
        item = struct.unpack_from(item_code, data, place)[0]
        place += struct.calcsize(item_code)
        count = data[place]
        numbers = struct.unpack_from(f">{count}{code}", data, place + 1)
        place += 1 + count * struct.calcsize(code)
        yield item, [number & mask for number in numbers]


_READERS: Mapping[bytes, Callable[[bytes, int, int, _Items], None]] = {
    b"pitm": _read_primary,
    b"iinf": _read_kinds,
    b"iloc": _read_places,
    b"iref": _read_references,
    b"iprp": _read_sizes,
}


class _Bits:
    """Numbers of some bits each, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        """The next bits."""
        self._left -= count
        if self._left < 0:
            raise IndexError("the data end")
        return self._value >> self._left & (1 << count) - 1


def _av1_size(data: bytes) -> Size:
    """The largest size that the sequence header at the begin of AV1's data allows (AV1 specification, 5.5.1)."""
    place = 0
    while True:
        head = data[place]
        place += 2 if head & 4 else 1
        size = shift = 0
        while head & 2:
            size |= (data[place] & 127) << shift
            place, shift = place + 1, shift + 7
            if data[place - 1] < 128:  # noqa: PLR2004
                break
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            return _sequence_size(_Bits(data[place:]))
        if not head & 2:
            return (0, 0)
        place += size


def _sequence_size(bits: _Bits) -> Size:
    bits.read(4)
    if bits.read(1):  # the short header of a still picture
        bits.read(5)
    else:
        if bits.read(1):
            return (0, 0)  # with times, which no photo has
        delays = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:  # noqa: PLR2004 -- the levels that have two tiers
                bits.read(1)
            if delays and bits.read(1):
                bits.read(4)
    width, height = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width) + 1, bits.read(height) + 1
