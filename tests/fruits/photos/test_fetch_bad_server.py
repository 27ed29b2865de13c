"""A real S3 server behind a proxy that drops answers and holds them back, and photos of 1 byte and of 100 MB.

What can be tried again does not fail, no more is asked for than was dropped, and no photo holds the others up.
"""

import http.client
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from PIL import Image

from fruits.photos import fetch as fetching
from fruits.photos.entry import Action, Entry
from fruits.photos.featurize import Outcome, featurize_entries
from fruits.photos.fetch import PhotoServer
from fruits.photos.quarantine import Reason
from fruits.settings import Settings
from tests import misbehaving
from tests.misbehaving import Request, StandIn, always, at_first, misbehaving_proxy
from tests.tiny_backbone import tiny_backbone

LARGE = 100_000_000
SENT = 100
PIECE = 1 << 18
READ_AHEAD = 20_000_000
"""Bytes that the sockets of client and server may hold of a body that nobody reads: some 10 MB on Linux."""

SECONDS = 30.0
"""For how long a held answer waits for what must come meanwhile. It comes in milliseconds, unless the test fails."""


BACKBONE = tiny_backbone()


@pytest.fixture
def server(stack, monkeypatch) -> Iterator[StandIn]:
    """The proxy. The fetcher's own pauses are short."""
    monkeypatch.setattr(fetching, "_PAUSE_SECONDS", 0.2)
    with misbehaving_proxy(stack.endpoint) as running:
        yield running


@pytest.fixture
def settings(make_settings, server) -> Settings:
    return make_settings(s3_endpoint=server.endpoint, s3_retry_seconds=20)


@pytest.fixture
def put(stack, bucket) -> Callable[[str, bytes], Entry]:
    """Uploads bytes past the proxy, and returns the entry that a plan would have for them."""
    client = stack.client()

    def upload(key: str, data: bytes) -> Entry:
        etag = client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"].strip('"')
        return Entry(key, etag, len(data), datetime(2026, 1, 1, tzinfo=UTC), Action.CREATE, "Kiwi", "train")

    return upload


def photo(number: int) -> bytes:
    """A small photo of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (number % 256, 5 * number % 256, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def featurized(settings: Settings, entries: Sequence[Entry]) -> list[Outcome]:
    return list(featurize_entries(entries, PhotoServer(settings), BACKBONE, settings))


def vectors(outcomes: Sequence[Outcome]) -> dict[str, bytes | None]:
    return {one.entry.key: one.feature.vector.tobytes() if one.feature else None for one in outcomes}


@dataclass
class Held:
    """Answers an object, and holds all but its first byte back until ``others`` are answered.

    Attributes:
        others: How many other objects have to be answered before.
        sent: Bytes that were sent, or about to be, after the first one.
        in_time: Whether the others were answered while the answer was held.
    """

    server: StandIn
    others: int
    sent: int = 0
    in_time: bool = False
    answered: set[str] = field(default_factory=set)
    enough: threading.Event = field(default_factory=threading.Event)

    def other(self, request: Request) -> None:
        """Answer another object."""
        request.serve()
        with self.server.lock:
            self.answered.add(request.key)
            if len(self.answered) >= self.others:
                self.enough.set()

    def __call__(self, request: Request) -> None:
        """Answer the object itself."""
        connection = http.client.HTTPConnection(urlsplit(self.server.upstream).netloc, timeout=60)
        connection.request("GET", request.path, headers=dict(request.headers.items()))
        answer = connection.getresponse()
        request.send_response(answer.status)
        for name in ("Content-Length", "ETag", "Last-Modified"):
            request.send_header(name, answer.headers[name])
        request.end_headers()
        try:
            request.wfile.write(answer.read(1))
            self.in_time = self.enough.wait(SECONDS)
            while piece := answer.read(PIECE):
                self.sent += len(piece)
                request.wfile.write(piece)
        except ConnectionError:  # the client wants no more
            request.close_connection = True
        finally:
            connection.close()


def test_answers_that_are_dropped_are_asked_for_once_more_and_no_others(server, settings, put):
    entries = [put(f"Kiwi/{number:02}.jpg", photo(number)) for number in range(60)]
    undisturbed = vectors(featurized(settings, entries))
    server.asked.clear()
    faults = (misbehaving.reset_in_body, misbehaving.cut_in_body, misbehaving.reset)
    dropped = [entry.key for entry in entries[::4]]
    server.faults = {key: at_first(1, faults[number % 3]) for number, key in enumerate(dropped)}

    outcomes = featurized(settings, entries)
    assert vectors(outcomes) == undisturbed
    assert None not in undisturbed.values()
    assert server.faulty == len(dropped)
    assert server.asked == Counter({entry.key: 2 if entry.key in dropped else 1 for entry in entries})


def test_an_answer_that_takes_longer_than_the_timeout_goes_on_where_it_stopped(server, settings, put):
    def stall(request: Request) -> None:
        request.serve(sent=SENT)
        time.sleep(1.5)

    entry, other = put("Kiwi/1.jpg", photo(1)), put("Kiwi/2.jpg", photo(2))
    server.faults[entry.key] = at_first(1, stall)
    outcomes = featurized(settings.model_copy(update={"s3_timeout_seconds": 1}), [entry, other])
    assert None not in vectors(outcomes).values()
    assert server.asked == Counter({entry.key: 2, other.key: 1})
    ranges = [headers.get("range", "") for headers in server.headers]
    assert [one.partition("-")[0] for one in ranges if one] == [f"bytes={SENT}"]


@pytest.mark.parametrize("place", [0, 3], ids=["the first", "one amid the others"])
def test_a_photo_that_is_answered_late_holds_no_other_get_up(server, settings, put, place):
    entries = [put(f"Kiwi/{number}.jpg", photo(number)) for number in range(8)]
    held = Held(server, others=len(entries) - 1)
    server.faults = {entry.key: always(held.other) for entry in entries}
    server.faults[entries[place].key] = always(held)

    outcomes = featurized(settings, entries)
    assert held.in_time, f"while it was held, only {sorted(held.answered)} were answered"
    assert None not in vectors(outcomes).values()
    assert [outcome.entry for outcome in outcomes] == entries


class TestPhotosOfAnySize:
    """Objects of 1 byte and a photo of 100 MB amid small photos."""

    @pytest.fixture
    def entries(self, put):
        data = photo(9)  # as the last of the small photos has it
        batch = [put("Kiwi/large.jpg", data + bytes(LARGE - len(data)))]
        batch += [put(f"Kiwi/byte-{number}.jpg", b"\xff") for number in range(2)]
        return batch + [put(f"Kiwi/{number}.jpg", photo(number)) for number in range(10)]

    @pytest.fixture
    def held(self, server, entries):
        """The large photo's answer stops after its first byte until all other objects were answered."""
        held = Held(server, others=len(entries) - 1)
        server.faults = {entry.key: always(held.other) for entry in entries}
        server.faults["Kiwi/large.jpg"] = always(held)
        return held

    def test_each_has_its_reason_and_a_photo_beyond_the_limit_is_not_downloaded(self, server, settings, entries, held):
        large, *others = featurized(settings, entries)
        assert large.reason == Reason.TOO_MANY_BYTES
        assert large.detail == "100,000,000 bytes; at most 50,000,000 (FRUITS_MAX_PHOTO_BYTES)"
        assert [one.reason for one in others] == [Reason.NOT_AN_IMAGE] * 2 + [None] * 10
        assert all(one.feature for one in others[2:])
        assert not any(one.pending for one in [large, *others])
        assert held.sent < READ_AHEAD
        assert set(server.asked.values()) == {1}

    def test_under_a_higher_limit_it_is_a_photo_and_its_download_holds_no_other_get_up(
        self, server, settings, entries, held
    ):
        higher = settings.model_copy(update={"max_photo_bytes": LARGE})
        large, *others = featurized(higher, entries)
        assert held.in_time, f"while it was held, only {sorted(held.answered)} were answered"
        assert held.sent == LARGE - 1
        assert large.feature is not None
        assert large.feature.vector.tobytes() == others[-1].feature.vector.tobytes()
        assert [one.reason for one in others] == [Reason.NOT_AN_IMAGE] * 2 + [None] * 10
        assert set(server.asked.values()) == {1}
