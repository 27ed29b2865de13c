import io
from datetime import UTC, datetime

import obstore
import pytest
from PIL import Image

from fruits.photos.decode import Limits
from fruits.serve.report import pictures
from fruits.serve.report.content import QuarantinedObject
from fruits.stores import photo_store


def photo(width: int = 400, height: int = 300) -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(data, "JPEG")
    return data.getvalue()


def example(key: str, etag: str, size: int) -> QuarantinedObject:
    return QuarantinedObject(key, etag, "truncated", "detail", size, datetime(2026, 11, 22, tzinfo=UTC))


def picture(settings, *examples):
    return [one.picture for one in pictures.add_pictures(examples, settings)]


def test_a_picture_is_small_and_made_anew_from_its_pixels():
    image = Image.open(io.BytesIO(photo()))
    exif = image.getexif()
    exif[0x010E] = "<script>secret</script>"
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif, comment=b"<script>secret</script>")
    made = pictures.picture_of(data.getvalue())
    assert made.jpeg is not None
    assert b"secret" in data.getvalue()
    assert b"secret" not in made.jpeg
    shown = Image.open(io.BytesIO(made.jpeg))
    assert (shown.format, max(shown.size)) == ("JPEG", pictures.SIDE)
    assert made.note == "JPEG, 400 x 300 pixels"


def test_what_is_no_picture_is_told_by_its_first_bytes():
    made = pictures.picture_of(b"<html>" + b"x" * 1_000)
    assert made.jpeg is None
    assert made.note == f"begins with {b'<html>' + b'x' * 42!r}"
    assert pictures.picture_of(b"").note == "no bytes"


def test_a_photo_of_many_pixels_or_bytes_is_not_decoded(monkeypatch):
    for limits in (Limits(max_bytes=10**6, max_pixels=119_999), Limits(1_000, 10**6)):
        monkeypatch.setattr(pictures, "_LIMITS", limits)
        assert pictures.picture_of(photo()).jpeg is None
    monkeypatch.setattr(pictures, "_LIMITS", Limits(max_bytes=10**6, max_pixels=120_000))
    assert pictures.picture_of(photo()).jpeg is not None


def test_only_the_bytes_that_were_quarantined_are_shown(settings, put):
    data = photo()
    etag = put("Kiwi/1.jpg", data)
    put("Kiwi/2.jpg", data)
    same, changed, gone = picture(
        settings,
        example("Kiwi/1.jpg", etag, len(data)),
        example("Kiwi/2.jpg", "0" * 32, len(data)),
        example("Kiwi/3.jpg", etag, len(data)),
    )
    assert same.jpeg is not None
    assert (changed.jpeg, changed.note) == (None, "overwritten in the bucket since")
    assert (gone.jpeg, gone.note) == (None, "no longer in the bucket")


@pytest.mark.parametrize("key", ["a//b.jpg", "a/../b.jpg", "./b.jpg", "a/b.jpg/", "<script>.jpg", "a b?c#d%2Fe.jpg"])
def test_a_strange_key_costs_at_most_its_own_picture(settings, put, key):
    data = photo()
    etag = put("Kiwi/1.jpg", data)
    strange, plain = picture(settings, example(key, etag, len(data)), example("Kiwi/1.jpg", etag, len(data)))
    assert strange.jpeg is None
    assert strange.note
    assert plain.jpeg is not None


def test_of_a_large_object_only_the_first_bytes_are_fetched(settings, put, monkeypatch):
    monkeypatch.setattr(pictures, "_LIMITS", Limits(max_bytes=1_000, max_pixels=10**6))
    etag = put("Kiwi/1.jpg", photo())
    fetched = pictures._fetch(photo_store(settings), example("Kiwi/1.jpg", etag, len(photo())))
    assert fetched == photo()[:48]
    assert picture(settings, example("Kiwi/1.jpg", etag, len(photo())))[0].jpeg is None


def test_a_bucket_that_does_not_answer_costs_a_few_seconds(settings, monkeypatch):
    import threading

    never = threading.Event()
    monkeypatch.setattr(obstore, "get", lambda *_, **__: never.wait(30))
    monkeypatch.setattr(pictures, "_SECONDS", 0.1)
    try:
        found = picture(settings, *(example(f"{number}.jpg", "e", 9) for number in range(24)))
    finally:
        never.set()
    assert {one.note for one in found} == {"the bucket did not answer within 0 s"}
