"""A PostgreSQL server of this machine's programs, and a proxy before it that cuts connections as a test asks."""

import os
import pwd
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

_PLACES = (*os.environ.get("PATH", "").split(os.pathsep), *map(str, Path("/usr/lib/postgresql").glob("*/bin")))
_OPTIONS = "-h 127.0.0.1 -c unix_socket_directories='' -c shared_buffers=16MB -c fsync=off -c log_min_messages=fatal"

Cut = Literal["before", "after"]
"""When a connection is cut: before the server gets a statement, or after the statement, with its answer lost."""


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where there are none."""
    found = (
        Path(place) for place in _PLACES if (Path(place) / "initdb").exists() and (Path(place) / "pg_ctl").exists()
    )
    return next(found, None)


@dataclass(frozen=True)
class Postgres:
    """A running server without passwords, which keeps its data in ``folder``."""

    bin: Path
    folder: Path
    port: int
    user: str | None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._run(
            "pg_ctl", "-D", self._data, "-w", "-l", self.folder / "log", "-o", f"-p {self.port} {_OPTIONS}", "start"
        )

    def stop(self) -> None:
        """Stop the server as a crash does."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")

    def database(self) -> str:
        """A new empty database; returns its name."""
        import psycopg2

        name = f"lake_{uuid.uuid4().hex[:12]}"
        connection = psycopg2.connect(host="127.0.0.1", port=self.port, user="fruits", dbname="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return name

    def initialise(self) -> None:
        """Make the server's files."""
        options = ("-U", "fruits", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        self._run("initdb", "-D", self._data, *options)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: object) -> None:
        """Run a program; PostgreSQL's refuse to run as root."""
        account: dict[str, Any] = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        command = [self.bin / program, *map(str, arguments)]
        with (self.folder / "programs").open("ab") as log:  # a pipe would stay open as long as the server runs
            done = subprocess.run(command, cwd=self.folder, stdout=log, stderr=log, check=False, **account)
        assert done.returncode == 0, (self.folder / "programs").read_text()[-2000:]


@contextmanager
def running_postgres(folder_of_programs: Path, port: int) -> Iterator[Postgres]:
    """A server; its files are gone in the end. As root it runs as the user postgres, or else nobody."""
    user = None
    if os.geteuid() == 0:
        known = {one.pw_name for one in pwd.getpwall()}
        user = "postgres" if "postgres" in known else "nobody"
    folder = Path(tempfile.mkdtemp(prefix="fruits-postgres-"))
    if user:
        shutil.chown(folder, user)
    server = Postgres(folder_of_programs, folder, port, user)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        with suppress(AssertionError):  # a test may have stopped it
            server.stop()
        shutil.rmtree(folder)


@dataclass
class CuttingProxy:
    """Passes connections on to a server, until a test has one of them cut.

    Attributes:
        port: Where the proxy listens.
        target: The server's port.
        cuts: How many connections were cut.
    """

    port: int
    target: int
    cuts: int = 0
    _statement: bytes = b""
    _moment: Cut = "before"
    _refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self, statement: bytes, moment: Cut, *, refuse: int = 1) -> None:
        """Cut the next connection that sends ``statement``, and refuse as many connections after that."""
        with self._lock:
            self._statement, self._moment, self._refused = statement, moment, refuse

    def serve(self, listener: socket.socket) -> None:
        """Take connections until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self._refuses():
                    _reset(client)
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:  # it is gone
                    _reset(client)
                    continue
                threading.Thread(target=self._upwards, args=(client, server), daemon=True).start()
                threading.Thread(target=_pump, args=(server, client), daemon=True).start()

    def _refuses(self) -> bool:
        with self._lock:
            refused = not self._statement and self._refused > 0
            self._refused -= refused
        return refused

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                with self._lock:
                    hit = bool(self._statement) and self._statement in data
                    if hit:
                        self._statement, moment = b"", self._moment
                        self.cuts += 1
                if hit:
                    _reset(client)
                    if moment == "after":
                        server.sendall(data)
                        server.shutdown(socket.SHUT_WR)
                        while server.recv(65_536):  # until the server has done it, and closes
                            pass
                    _reset(server)
                    return
                server.sendall(data)
        _end(server)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    _end(target)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _reset(connection: socket.socket) -> None:
    """Close a connection as a broken peer does, with RST."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    connection.close()


@contextmanager
def cutting_proxy(target: int) -> Iterator[CuttingProxy]:
    """A proxy before the server at a port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = CuttingProxy(listener.getsockname()[1], target)
        thread = threading.Thread(target=proxy.serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()
