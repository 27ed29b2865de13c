"""The proxy before an S3 server drops as many answers as it is told to, and passes the others on."""

import http.client
from urllib.parse import urlsplit

from benchmarks.speed.slow_proxy import slow_proxy
from tests.misbehaving import misbehaving_server

DATA = bytes(range(256)) * 64


def is_whole(address: str) -> bool:
    """Whether the object arrives."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    try:
        connection.request("GET", "/photos/a.jpg")
        return connection.getresponse().read() == DATA
    except (http.client.HTTPException, ConnectionError):
        return False
    finally:
        connection.close()


def test_one_of_three_answers_is_dropped_and_the_others_are_whole():
    with misbehaving_server() as server:
        server.objects["a.jpg"] = DATA
        with slow_proxy(urlsplit(server.endpoint).port or 0, dropped=3) as address:
            assert [is_whole(address) for _ in range(6)] == [True, True, False] * 2
        with slow_proxy(urlsplit(server.endpoint).port or 0, 0.01) as address:
            assert all(is_whole(address) for _ in range(3))
