import hashlib
import io
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import obstore
import pytest
from PIL import Image

from fruits.backbones.card import Card, Preprocessing
from fruits.errors import FruitsError
from fruits.photos.decode import Limits, decode, perceptual_hash, preprocess
from fruits.photos.entry import Action, Entry
from fruits.photos.featurize import STAGES, featurize_entries
from fruits.photos.fetch import PhotoServer
from fruits.photos.quarantine import DECODER, Pending, Reason
from local.stack import free_ports
from sample_photos import BROKEN, generate

PREPROCESSING = Preprocessing(height=8, width=8)
PLANNED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class MeanColour:
    """Stands in for a backbone: a photo's feature is its mean colour."""

    card: Card = Card("mean-1", "mean", "none", None, PREPROCESSING, 3, "", 0, "none", {})
    before: list = field(default_factory=list)

    def features(self, pixels):
        for look in self.before:
            look()
        assert pixels.shape == (8, 8, 3)
        return pixels.mean(axis=(0, 1), dtype=np.float32)


def photo(seed: int = 0, size=(40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def put(stack, bucket):
    """Uploads bytes and returns the entry that a plan would have for them."""
    client = stack.client()

    def upload(key: str, data: bytes) -> Entry:
        etag = client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"].strip('"')
        return Entry(key, etag, len(data), PLANNED, Action.CREATE, "Kiwi", "train")

    return upload


@pytest.fixture
def featurize(settings):
    def run(*entries: Entry, backbone=None, **changed):
        chosen = settings.model_copy(update=changed)
        return list(featurize_entries(entries, PhotoServer(chosen), backbone or MeanColour(), chosen))

    return run


@pytest.fixture
def gets(monkeypatch):
    """The keys of the GETs that were made, and of those whose bytes were downloaded."""
    made, downloaded, real_get = [], [], obstore.get

    class Watched:
        def __init__(self, key, answer):
            self.key, self.answer, self.meta, self.attributes = key, answer, answer.meta, answer.attributes

        def bytes(self):
            downloaded.append(self.key)
            return self.answer.bytes()

    def get(store, key):
        made.append(key)
        return Watched(key, real_get(store, key))

    monkeypatch.setattr(obstore, "get", get)
    return made, downloaded


def test_a_readable_photo_yields_its_feature_and_what_it_is(put, featurize, settings):
    data = photo()
    (outcome,) = featurize(entry := put("Kiwi/a b%20ü.jpg", data))
    decoded = decode(data, Limits(10**9, 10**9), 8)
    assert (outcome.entry, outcome.reason, outcome.detail) == (entry, None, "")
    assert (outcome.etag, outcome.size) == (hashlib.md5(data).hexdigest(), len(data))  # noqa: S324 -- S3's
    feature = outcome.feature
    assert feature.sha256 == hashlib.sha256(data).hexdigest()
    assert feature.phash == perceptual_hash(decoded.image)
    assert (feature.width, feature.height, feature.format) == (40, 30, "JPEG")
    assert np.array_equal(feature.vector, MeanColour().features(preprocess(decoded.image, PREPROCESSING)))
    assert feature.vector.dtype == np.float32
    assert set(outcome.seconds) == set(STAGES)
    assert min(outcome.seconds.values()) >= 0


def test_broken_photos_are_quarantined_for_their_reason_and_the_others_get_through(put, featurize, tmp_path):
    generate(tmp_path, kinds=1, per_kind_train=2, per_kind_test=0, size=(64, 80))
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.*")}
    outcomes = {outcome.entry.key: outcome for outcome in featurize(*(put(*file) for file in files.items()))}
    unreadable = {key: code for key, code in BROKEN.items() if code != Reason.KEY_PATTERN}
    assert {key: outcome.reason for key, outcome in outcomes.items() if outcome.reason} == unreadable
    assert all((outcome.feature is None) == bool(outcome.reason) for outcome in outcomes.values())
    assert all(bool(outcome.detail) == bool(outcome.reason) for outcome in outcomes.values())
    assert len(outcomes) == len(files) == len(unreadable) + 3


def test_an_object_that_has_gone_is_pending_as_the_plan_knew_it(put, featurize, stack, bucket):
    entry, other = put("Kiwi/1.jpg", photo()), put("Kiwi/2.jpg", photo())
    stack.client().delete_object(Bucket=bucket, Key=entry.key)
    outcome, rest = featurize(entry, other)
    assert (outcome.reason, outcome.feature, outcome.pending) == (None, None, Pending.VANISHED)
    assert (outcome.etag, outcome.size, outcome.last_modified) == (entry.etag, entry.size, PLANNED)
    assert rest.feature is not None


def test_an_object_that_changed_since_the_plan_is_reported_as_it_was_read(put, featurize):
    planned = put("Kiwi/1.jpg", photo(1))
    current = put("Kiwi/1.jpg", newer := photo(2, size=(50, 60)))
    (outcome,) = featurize(planned)
    assert outcome.entry == planned
    assert (outcome.etag, outcome.size) == (current.etag, len(newer))
    assert outcome.etag != planned.etag
    assert outcome.last_modified > PLANNED
    assert outcome.feature.sha256 == hashlib.sha256(newer).hexdigest()
    assert (outcome.feature.width, outcome.feature.height) == (50, 60)


def test_a_photo_with_too_many_bytes_is_not_downloaded(put, featurize, gets):
    small, large = photo(1), photo(2, size=(400, 300))
    outcomes = featurize(put("large.jpg", large), put("small.jpg", small), max_photo_bytes=len(small))
    assert [outcome.reason for outcome in outcomes] == [Reason.TOO_MANY_BYTES, None]
    assert outcomes[0].detail == f"{len(large):,} bytes; at most {len(small):,} (FRUITS_MAX_PHOTO_BYTES)"
    assert (outcomes[0].size, outcomes[0].limit, outcomes[0].decoder) == (len(large), len(small), None)
    assert gets == (["large.jpg", "small.jpg"], ["small.jpg"])


def test_a_photo_with_too_many_pixels_is_quarantined(put, featurize):
    (outcome,) = featurize(put("Kiwi/1.jpg", photo(size=(40, 30))), max_photo_pixels=1_199)
    assert (outcome.reason, outcome.limit, outcome.decoder) == (Reason.TOO_MANY_PIXELS, 1_199, None)


def test_a_verdict_of_the_decoder_names_the_decoder(put, featurize):
    (outcome,) = featurize(put("Kiwi/1.jpg", b"<html>"))
    assert (outcome.reason, outcome.limit, outcome.decoder) == (Reason.NOT_AN_IMAGE, None, DECODER)


def test_a_worker_out_of_memory_blames_no_photo(put, featurize, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr("PIL.Image.core.new", exhausted)
    (outcome,) = featurize(put("Kiwi/1.jpg", photo()))
    assert (outcome.reason, outcome.pending, outcome.etag) == (None, Pending.MEMORY, outcome.entry.etag)


def test_a_rejected_object_is_never_fetched(put, featurize, gets):
    rejected = [
        Entry("stray.jpg", "e", 5, PLANNED, Action.CREATE, rejection=Reason.KEY_PATTERN),
        Entry("Weed/1.jpg", "f", 6, PLANNED, Action.UPDATE, rejection=Reason.UNKNOWN_LABEL),
    ]
    sound = put("Kiwi/1.jpg", photo())
    outcomes = featurize(rejected[0], sound, rejected[1])
    assert [outcome.reason for outcome in outcomes] == [Reason.KEY_PATTERN, None, Reason.UNKNOWN_LABEL]
    assert [(outcome.etag, outcome.size) for outcome in outcomes[::2]] == [("e", 5), ("f", 6)]
    assert outcomes[0].detail == Reason.KEY_PATTERN.description
    assert gets[0] == ["Kiwi/1.jpg"]


def test_outcomes_come_in_the_order_of_the_entries_whichever_get_is_slow(put, featurize, monkeypatch):
    entries = [put(f"Kiwi/{number}.jpg", photo(number)) for number in range(12)]
    real_get = obstore.get

    def slow_for_even(store, key):
        time.sleep(0.05 if int(key[5:-4]) % 2 == 0 else 0)
        return real_get(store, key)

    monkeypatch.setattr(obstore, "get", slow_for_even)
    outcomes = featurize(*entries, gets_in_flight=4)
    assert [outcome.entry for outcome in outcomes] == entries
    assert [outcome.etag for outcome in outcomes] == [entry.etag for entry in entries]


@dataclass
class EveryPixel(MeanColour):
    """Stands in for a backbone: a photo's feature is its input."""

    def features(self, pixels):
        super().features(pixels)
        return pixels.ravel().astype(np.float32)


@pytest.mark.parametrize("in_flight", [1, 4, 16])
def test_each_photo_has_the_values_that_plain_pillow_gives_whatever_is_beside_it(put, featurize, in_flight):
    """Bit by bit the pixels, the hashes and the ETag of its own bytes, among photos that have no feature."""
    sizes = [(100, 100), (348, 464), (40, 30), (96, 64), (33, 47), (700, 500), (100, 90)]
    photos = {f"Kiwi/{number}.jpg": photo(number, size) for number, size in enumerate(sizes)}
    entries = [put(key, data) for key, data in photos.items()]
    entries.insert(2, put("Kiwi/broken.jpg", photo(9)[:300]))
    entries.insert(5, Entry("stray.jpg", "e", 5, PLANNED, Action.CREATE, rejection=Reason.KEY_PATTERN))
    outcomes = featurize(*entries, gets_in_flight=in_flight, backbone=EveryPixel())
    assert [outcome.entry for outcome in outcomes] == entries
    assert [outcome.reason for outcome in outcomes if outcome.reason] == [Reason.TRUNCATED, Reason.KEY_PATTERN]
    for outcome in (outcome for outcome in outcomes if outcome.feature):
        data, feature = photos[outcome.entry.key], outcome.feature
        image = Image.open(io.BytesIO(data))
        assert (feature.width, feature.height) == image.size
        image.draft(None, (16, 16))
        image.load()
        pixels = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR, reducing_gap=3.0))
        assert feature.vector.tobytes() == pixels.ravel().astype(np.float32).tobytes()
        assert feature.phash == perceptual_hash(image)
        assert feature.sha256 == hashlib.sha256(data).hexdigest()
        assert outcome.etag == hashlib.md5(data).hexdigest()  # noqa: S324 -- S3's


def test_half_of_the_photos_in_flight_are_decoded_before_the_first_is_inferred(put, featurize, monkeypatch):
    order = []

    def noted(*args):
        order.append("decoded")
        return preprocess(*args)

    monkeypatch.setattr("fruits.photos.featurize.preprocess", noted)
    backbone = MeanColour(before=[lambda: order.append("inferred")])
    featurize(*(put(f"Kiwi/{n}.jpg", photo(n)) for n in range(6)), gets_in_flight=8, backbone=backbone)
    assert order == ["decoded"] * 4 + ["inferred"] * 4 + ["decoded"] * 2 + ["inferred"] * 2


def test_a_backbone_out_of_memory_blames_no_photo(put, featurize):
    def exhausted():
        raise MemoryError

    (outcome,) = featurize(put("Kiwi/1.jpg", photo()), backbone=MeanColour(before=[exhausted]))
    assert (outcome.reason, outcome.pending, outcome.etag) == (None, Pending.MEMORY, outcome.entry.etag)


@pytest.mark.parametrize("in_flight", [1, 3, 50])
def test_a_feature_depends_neither_on_the_batch_nor_on_what_is_in_flight(put, featurize, in_flight):
    entries = [put(f"Kiwi/{number}.jpg", photo(number)) for number in range(7)]
    alone = [featurize(entry)[0].feature.vector.tobytes() for entry in entries]
    together = featurize(*reversed(entries), gets_in_flight=in_flight)
    assert [outcome.feature.vector.tobytes() for outcome in reversed(together)] == alone


def test_gets_overlap_with_each_other_and_with_the_inference(put, featurize, monkeypatch):
    """Each GET waits for as many others as may be in flight: one after the other, they would wait in vain."""
    in_flight, count = 4, 12
    entries = [put(f"Kiwi/{number}.jpg", photo(number)) for number in range(count)]
    real_get, together = obstore.get, threading.Barrier(in_flight)
    started: list[str] = []
    decoded: list[int] = []
    held: list[int] = []
    ahead: list[int] = []

    def get(store, key):
        started.append(key)
        together.wait(timeout=60)
        return real_get(store, key)

    monkeypatch.setattr(obstore, "get", get)

    def counted(*args):
        held.append(len(started) - len(decoded))
        decoded.append(1)
        return decode(*args)

    monkeypatch.setattr("fruits.photos.featurize.decode", counted)
    backbone = MeanColour(before=[lambda: ahead.append(len(started))])
    outcomes = featurize(*entries, gets_in_flight=in_flight, backbone=backbone)
    assert [outcome.reason for outcome in outcomes] == [None] * count
    assert ahead[0] >= in_flight, "the first inference waits for no more than its own photo"
    assert max(held) <= in_flight, "no more photos are held in memory than may be in flight"


def test_entries_are_taken_as_they_are_needed(put, settings):
    entries = [put(f"Kiwi/{number}.jpg", photo(number)) for number in range(10)]
    taken = []
    outcomes = featurize_entries(
        (taken.append(entry) or entry for entry in entries),
        PhotoServer(settings),
        MeanColour(),
        settings.model_copy(update={"gets_in_flight": 2}),
    )
    assert next(outcomes).entry == entries[0]
    assert len(taken) <= 4
    outcomes.close()  # type: ignore[attr-defined]  # a generator


def test_nothing_to_do_yields_nothing(featurize):
    assert featurize() == []


def test_a_bucket_that_cannot_be_read_is_an_error_not_a_quarantine(put, featurize):
    with pytest.raises(FruitsError, match="bucket 'no-such-bucket' does not exist"):
        featurize(put("Kiwi/1.jpg", photo()), bucket="no-such-bucket")


def test_photos_of_a_server_that_is_down_are_pending(put, featurize):
    entries = [put(f"Kiwi/{number}.jpg", photo()) for number in range(3)]
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    outcomes = featurize(*entries, s3_endpoint=nowhere, s3_retry_seconds=1)
    assert [(outcome.reason, outcome.pending) for outcome in outcomes] == [(None, Pending.UNANSWERED)] * 3


def test_a_defect_of_the_backbone_is_not_blamed_on_the_photo(put, featurize):
    def defect():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        featurize(put("Kiwi/1.jpg", photo()), backbone=MeanColour(before=[defect]))
