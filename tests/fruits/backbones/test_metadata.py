"""TFLite Metadata, read by the numbers of the schema's fields: nothing of the writer is used."""

import io
import struct
import zipfile

import pytest

from fruits.backbones.metadata import Description, Output, metadata, with_files

pytestmark = pytest.mark.jobs

DESCRIBED = Description(
    name="fruits",
    description="Which of 2 labels.",
    version="pub-000007-abc",
    licence="Apache-2.0",
    input="pixels",
    width=224,
    height=192,
    outputs=(Output("probabilities", "Likely.", (-1, 3), "labels.txt"), Output("embedding", "Far.")),
    card="fruits.json",
)


class Table:
    """A table of a flatbuffer; fields by their number in the schema."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place

    @classmethod
    def root(cls, data: bytes) -> "Table":
        return cls(data, *struct.unpack_from("<I", data))

    def _field(self, number: int) -> int:
        """Where a field is; 0 for an absent one."""
        layout = self.place - struct.unpack_from("<i", self.data, self.place)[0]
        (size,) = struct.unpack_from("<H", self.data, layout)
        at = 4 + 2 * number
        (offset,) = struct.unpack_from("<H", self.data, layout + at) if at < size else (0,)
        return self.place + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        return struct.unpack_from(f"<{form}", self.data, self._field(field))[0] if self._field(field) else 0

    def has(self, field: int) -> bool:
        return bool(self._field(field))

    def _followed(self, at: int) -> int:
        return at + struct.unpack_from("<I", self.data, at)[0]

    def text(self, field: int) -> str:
        start = self._followed(self._field(field))
        (length,) = struct.unpack_from("<I", self.data, start)
        return self.data[start + 4 : start + 4 + length].decode()

    def table(self, field: int) -> "Table":
        return Table(self.data, self._followed(self._field(field)))

    def tables(self, field: int) -> list["Table"]:
        if not self._field(field):
            return []
        start = self._followed(self._field(field))
        (length,) = struct.unpack_from("<I", self.data, start)
        return [Table(self.data, self._followed(start + 4 + 4 * n)) for n in range(length)]

    def floats(self, field: int) -> list[float]:
        start = self._followed(self._field(field))
        (length,) = struct.unpack_from("<I", self.data, start)
        return list(struct.unpack_from(f"<{length}f", self.data, start + 4))


@pytest.fixture(scope="module")
def root():
    return Table.root(metadata(DESCRIBED))


def test_it_is_of_the_schema():
    assert metadata(DESCRIBED)[4:8] == b"M001"


def test_the_model_says_its_name_version_and_licence(root):
    assert [root.text(field) for field in (0, 1, 2, 5, 7)] == [
        "fruits",
        "Which of 2 labels.",
        "pub-000007-abc",
        "Apache-2.0",
        "1.0.0",
    ]
    (card,) = root.tables(6)
    assert (card.text(0), card.number(2, "B")) == ("fruits.json", 1)


def test_the_input_is_an_rgb_image_as_it_is(root):
    (network,) = root.tables(3)
    (pixels,) = network.tables(2)
    assert pixels.text(0) == "pixels"
    assert pixels.table(3).number(0, "B") == 2  # image properties
    image = pixels.table(3).table(1)
    assert image.number(0, "B") == 1  # RGB
    assert [image.table(1).number(field, "I") for field in (0, 1)] == [224, 192]
    (unit,) = pixels.tables(4)
    assert unit.number(0, "B") == 1  # normalisation
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([0.0], [1.0])
    assert (pixels.table(5).floats(0), pixels.table(5).floats(1)) == ([255.0], [0.0])


def test_outputs_have_names_and_labels(root):
    (network,) = root.tables(3)
    probabilities, embedding = network.tables(3)
    assert [one.text(0) for one in (probabilities, embedding)] == ["probabilities", "embedding"]
    assert [one.table(3).number(0, "B") for one in (probabilities, embedding)] == [1, 1]
    (labels,) = probabilities.tables(6)
    assert (labels.text(0), labels.number(2, "B")) == ("labels.txt", 2)  # labels of an axis
    assert embedding.tables(6) == []
    assert (probabilities.table(5).floats(0), probabilities.table(5).floats(1)) == ([3.0], [-1.0])
    assert not embedding.has(5)


def test_files_follow_as_they_are_and_the_flatbuffer_stays():
    files = {"labels.txt": "Café\nKiwi\n".encode(), "fruits.json": b"{}"}
    packed = with_files(b"flatbuffer" * 99, files)
    assert packed.startswith(b"flatbuffer" * 99)
    assert packed == with_files(b"flatbuffer" * 99, files)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}  # readers want it so
