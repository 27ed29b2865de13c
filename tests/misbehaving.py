"""A small S3 server that misbehaves as a test asks: codes, bodies without XML, resets, cut bodies, slow answers.

``misbehaving_server`` has objects of its own; ``misbehaving_proxy`` passes requests on to a real server.
"""

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = Callable[["Request"], None]
MODIFIED = "Thu, 01 Jan 2026 00:00:00 GMT"


class Request(BaseHTTPRequestHandler):
    """A request for an object or for the listing; faults answer by these methods instead."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    @property
    def key(self) -> str:
        """The object's key; empty for a listing."""
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def do_GET(self) -> None:
        """An object, a part of it, or the listing."""
        stand_in = self.server.stand_in
        with stand_in.lock:
            stand_in.requests.append((self.command, self.key))
            stand_in.headers.append({name.lower(): value for name, value in self.headers.items()})
            number = stand_in.asked[self.key] = stand_in.asked[self.key] + 1
            fault = stand_in.faults.get(self.key) or stand_in.fault
        if (path := self.path.lstrip("/")) in stand_in.paths:
            time.sleep(stand_in.path_delay)
            self.answer(200, stand_in.paths[path], Content_Type="application/json")
        elif fault is not None and (fault_of_turn := fault(number)) is not None:
            with stand_in.lock:
                stand_in.faulty += 1
            fault_of_turn(self)
        else:
            self.serve()

    def serve(self, *, sent: int | None = None) -> None:
        """What was asked for; with ``sent`` only the first bytes of it, whatever Content-Length promises."""
        stand_in = self.server.stand_in
        if stand_in.upstream:
            self.pass_on(stand_in.upstream, sent)
        elif not self.key:
            prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
            self.answer(200, _listing({key: data for key, data in stand_in.objects.items() if key.startswith(prefix)}))
        elif self.key not in stand_in.objects:
            refuse("NoSuchKey", 404)(self)
        else:
            self.send_object(stand_in.objects[self.key], sent=sent)

    do_PUT = do_GET  # noqa: N815 -- a token of the metadata service
    do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 -- the names that http.server calls

    def pass_on(self, upstream: str, sent: int | None) -> None:
        """The answer of the real server to the same request, headers and all: its signature covers the host's name."""
        connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "date", "server", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.send_body(body, sent)

    def send_object(self, data: bytes, *, sent: int | None = None, **headers: str) -> None:
        """An object; with ``sent`` only its first bytes, although Content-Length names all."""
        asked = self.headers.get("Range")
        status, part = 200, data
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)), len(data) - 1)
            status, part = 206, data[start : end + 1]
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
        self.answer(status, part, sent=sent, ETag=f'"{md5(data, usedforsecurity=False).hexdigest()}"', **headers)

    def answer(self, status: int, body: bytes = b"", *, sent: int | None = None, **headers: str) -> None:
        """A status, headers and a body; with ``sent`` the connection ends after so many bytes of the body."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), "Last_Modified": MODIFIED, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.send_body(body, sent)

    def send_body(self, body: bytes, sent: int | None) -> None:
        """A body, or its first bytes and the end of the connection."""
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True

    def reset(self) -> None:
        """Cut the connection as a broken peer does, with RST."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.rfile = self.wfile = _Closed()  # type: ignore[assignment]

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class _Closed:
    closed = True

    def flush(self) -> None: ...
    def close(self) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stand_in: "StandIn"

    def handle_error(self, *_: Any) -> None:
        """A client that gave up is no error of the test."""


@dataclass
class StandIn:
    """The server: its objects by key, and faults by key or for every request.

    A fault is a function of how often the key was asked for (1, 2, ...); None lets the request through. ``paths`` are
    plain answers by path, after a delay: those of an instance's metadata service. With ``upstream``, requests without a
    fault are that server's.
    """

    endpoint: str
    upstream: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, Callable[[int], Fault | None]] = field(default_factory=dict)
    fault: Callable[[int], Fault | None] | None = None
    paths: dict[str, bytes] = field(default_factory=dict)
    path_delay: float = 0.0
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    faulty: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def misbehaving_proxy(upstream: str) -> AbstractContextManager[StandIn]:
    """A proxy before a real S3 server, which answers each request that meets no fault."""
    return misbehaving_server(upstream)


@contextmanager
def misbehaving_server(upstream: str = "") -> Iterator[StandIn]:
    """The server, on a free port of 127.0.0.1; the bucket may have any name."""
    server = _Server(("127.0.0.1", 0), Request)
    server.stand_in = StandIn(f"http://127.0.0.1:{server.server_address[1]}", upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def always(fault: Fault) -> Callable[[int], Fault]:
    """The fault at each request."""
    return lambda _: fault


def at_first(times: int, fault: Fault) -> Callable[[int], Fault | None]:
    """The fault at the first requests, then none."""
    return lambda number: fault if number <= times else None


def refuse(code: str, status: int = 403, message: str = "") -> Fault:
    """S3's refusal, in XML."""
    body = f"<Error><Code>{code}</Code><Message>{escape(message or code)}</Message></Error>".encode()
    return lambda request: request.answer(status, body, Content_Type="application/xml")


def status(code: int, body: bytes = b"") -> Fault:
    """A status without XML, as a proxy gives it."""
    return lambda request: request.answer(code, body)


def reset(request: Request) -> None:
    """Cut the connection before any answer."""
    request.reset()


def reset_in_body(request: Request) -> None:
    """Send a little of what was asked for, then cut the connection."""
    request.serve(sent=10)
    request.reset()


def cut_at_half(request: Request) -> None:
    """Send no more than the object's first half, whatever Content-Length promises, and close."""
    data = request.server.stand_in.objects[request.key]
    asked = request.headers.get("Range")
    start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
    request.send_object(data, sent=max(0, len(data) // 2 - start))


def cut_in_body(request: Request) -> None:
    """Send a little of what was asked for, whatever Content-Length promises, and close."""
    request.serve(sent=100)


def encoded(encoding: str) -> Fault:
    """The object with a Content-Encoding."""
    return lambda request: request.send_object(request.server.stand_in.objects[request.key], Content_Encoding=encoding)


def slow(seconds: float) -> Fault:
    """The object, late."""

    def answer(request: Request) -> None:
        time.sleep(seconds)
        request.serve()

    return answer


def _listing(objects: Mapping[str, bytes]) -> bytes:
    rows = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f'<ETag>"{md5(data, usedforsecurity=False).hexdigest()}"</ETag><Size>{len(data)}</Size></Contents>'
        for key, data in sorted(objects.items())
    )
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false'
        f"</IsTruncated><KeyCount>{len(objects)}</KeyCount>{rows}</ListBucketResult>"
    ).encode()
