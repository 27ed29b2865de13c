"""SeaweedFS as S3, SQLite as catalog and the settings that point at them, all under one data folder.

Commands share the S3 server. Locks on three files of the data folder say who is there, and go with their holders,
however those end: ``s3.lock`` is held by whoever starts or ends the server, begins or ceases to use it; ``s3.users`` by
each command that uses it, together; ``s3.server`` by the server itself, and it says which process that is.
"""

import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import FruitsError

BUCKET = "fruits"
REGION = "us-east-1"

_PORTS = {
    "s3": "-s3.port", "s3_grpc": "-s3.port.grpc",
    "master": "-master.port", "master_grpc": "-master.port.grpc",
    "volume": "-volume.port", "volume_grpc": "-volume.port.grpc",
    "filer": "-filer.port", "filer_grpc": "-filer.port.grpc",
    "admin": "-admin.port", "admin_grpc": "-admin.port.grpc",
}  # fmt: skip
_PORT_RANGE = range(20_000, 32_000)  # below those that systems give to outgoing connections, which come any time
# A person's own would be taken for, or beside, the stack's keys.
_OTHER_CREDENTIALS = frozenset({"AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"})
_START_SECONDS = 60
_PROBE_SECONDS = 5
_STOP_SECONDS = 5  # it takes 2, or 12 when it waits for connections of its own; it survives a kill without a loss


@dataclass(frozen=True)
class Stack:
    """A running embedded stack; ``environment`` points every program of ours at it."""

    data: Path
    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Settings of the stack as environment variables.

        Bucket, lake and catalog are always its own, whatever is set: it must not touch anybody's real ones.
        """
        return {
            **{name: value for name, value in os.environ.items() if name not in _OTHER_CREDENTIALS},
            "FRUITS_BUCKET": BUCKET,
            "FRUITS_LAKE": f"file://{self.data / 'lake'}",
            "FRUITS_CATALOG_URI": f"sqlite:///{self.data / 'catalog.db'}",
            "FRUITS_JOBS_ENV": os.environ.get("FRUITS_JOBS_ENV") or str(jobs_environment()),
            "FRUITS_ENGINE": "spark-submit",
            "FRUITS_S3_ENDPOINT": self.endpoint,
            "FRUITS_S3_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, *, attempts: int = 5, seconds: int = 60) -> Any:
        """A boto3 client of the S3 server, with so many attempts at each request and seconds to wait for its answer."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                retries={"total_max_attempts": attempts},
                read_timeout=seconds,
                max_pool_connections=32,
                s3={"addressing_style": "path"},
            ),
        )


@contextmanager
def environment_of(stack: Stack) -> Iterator[None]:
    """Inside, this process has the stack's environment variables, too."""
    before, environment = dict(os.environ), stack.environment
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def jobs_environment() -> Path:
    """The virtual environment of the Spark jobs, beside the one we run in."""
    return Path(sys.prefix).parent / "jobs"


@contextmanager
def running_stack(data: Path) -> Iterator[Stack]:
    """The stack with its data in ``data``: on the server that runs there, else on a new one.

    The last user ends the server, whoever started it, unless that was ``make ui``. One that a killed user left is used,
    and ended, by the next.

    Raises:
        FruitsError: when no server answers and none can be started.
    """
    data = data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    server = None
    with (data / "s3.users").open("ab") as users:
        try:
            with server_lock(data):
                fcntl.flock(users, fcntl.LOCK_SH)
                stack = running_server(data)
                if stack is None:
                    server = start_s3(data, shared=True)
                    stack = server.stack
                make_bucket(stack)
            yield stack
        finally:
            with server_lock(data):
                fcntl.flock(users, fcntl.LOCK_UN)  # by closing only, a process that was forked would keep it
                end_unused_server(data)
            if server is not None:
                server.process.poll()  # ended by us, it stays in the table of processes until we ask how


@contextmanager
def server_lock(data: Path) -> Iterator[None]:
    """Inside, nobody else starts or ends a server on ``data``, nor begins or ceases to use it."""
    with (data / "s3.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def in_use(data: Path) -> bool:
    """Whether a command is inside ``running_stack`` on ``data``; to be asked inside ``server_lock``."""
    with (data / "s3.users").open("ab") as users:
        return not _lock(users)


def end_unused_server(data: Path) -> bool:
    """End the server that ``running_stack`` started on ``data`` unless it is used; to be called in ``server_lock``.

    Returns whether there was one to end.
    """
    with (data / "s3.server").open("a+") as note:
        if in_use(data) or _lock(note):  # locked by us: there is no server
            return False
        noted = _noted(note)
        if not noted.get("shared"):
            return False
        _end(noted["pid"], note)
        return True


def running_server(data: Path) -> Stack | None:
    """The stack whose S3 server already runs on ``data``, if any: it answers to this folder's keys."""
    ports_path, keys_path = data / "s3.ports.json", data / "s3.credentials.json"
    if not (ports_path.is_file() and keys_path.is_file()):
        return None
    port = json.loads(ports_path.read_text()).get("s3")
    stack = Stack(data, f"http://127.0.0.1:{port}", *_credentials(keys_path))
    if _all_free([port]):
        return None
    try:
        stack.client(attempts=1, seconds=_PROBE_SECONDS).list_buckets()
    except (BotoCoreError, ClientError):
        return None
    return stack


@dataclass(frozen=True)
class S3Server:
    """A SeaweedFS process and how to reach it."""

    stack: Stack
    process: "subprocess.Popen[bytes]"

    def stop(self) -> None:
        """End the server; it writes its state first."""
        stop_process(self.process)


def start_s3(data: Path, notifications: str = "", *, shared: bool = False) -> S3Server:
    """Start SeaweedFS on 127.0.0.1 with its data in ``data``, on the ports of last time where they are free.

    ``notifications`` is what its ``notification.toml`` says: whom it tells of changes. A ``shared`` one is ended by the
    last user of ``running_stack``.

    Raises:
        FruitsError: when the server can't be started, or another one holds the folder; names the log.
    """
    folder, log_path = data / "s3", data / "s3.log"
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = _credentials(data / "s3.credentials.json")
    credentials = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    with log_path.open("ab") as log, _new_note(data) as note:
        ports = _ports(data / "s3.ports.json")
        stack = Stack(data, f"http://127.0.0.1:{ports['s3']}", access_key, secret_key)
        # Also when it is empty: a person's own is not for this server.
        write_secret(data / "notification.toml", notifications)
        process = subprocess.Popen(  # noqa: S603 -- our own binary
            _command(folder, ports),
            env={**os.environ, **credentials},
            cwd=data,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[note.fileno()],  # and with it the lock, until it ends
        )
        json.dump({"pid": process.pid, "shared": shared}, note)
    try:
        _wait_until_ready(stack, ports["master"], process, log_path)
    except BaseException:
        stop_process(process)
        raise
    return S3Server(stack, process)


def _command(folder: Path, ports: Mapping[str, int]) -> list[str]:
    return [
        _weed(), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-volume.max=10000",  # by default as many as the free disk would fill, and every bucket takes seven
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        *(f"{option}={ports[name]}" for name, option in _PORTS.items()),
    ]  # fmt: skip


def stop_process(process: "subprocess.Popen[bytes]") -> None:
    """End a process we started: politely, then not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _new_note(data: Path) -> IO[str]:
    """The note of the server on ``data``, locked and empty."""
    note = (data / "s3.server").open("a+")
    if _lock(note):
        note.truncate(0)
        return note
    with note:
        pid = _noted(note).get("pid", "unknown")
    raise FruitsError(
        f"the S3 server on {data}, process {pid}, does not answer; try again, or end it and see its log, "
        f"{data / 's3.log'}"
    )


def _noted(note: IO[str]) -> dict[str, Any]:
    """What a note says; empty when whoever started the server was killed before it could write."""
    note.seek(0)
    return dict(json.loads(note.read() or "{}"))


def _lock(file: IO[Any]) -> bool:
    """Lock a file unless another has locked it; returns whether it is ours."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end(pid: int, note: IO[str]) -> None:
    """End a server, whoever started it: politely, then not. For as long as it holds its note, the id is its own."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, end)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            if _lock(note):
                return
            time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of 127.0.0.1 that nobody listens on."""
    shuffled = secrets.SystemRandom().sample(_PORT_RANGE, len(_PORT_RANGE))
    return list(islice((port for port in shuffled if _all_free([port])), count))


def _ports(path: Path) -> dict[str, int]:
    """The ports of last time if all of them are still free, else new ones."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known.keys() == _PORTS.keys() and _all_free(list(known.values())):
        return {name: int(port) for name, port in known.items()}
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    path.write_text(json.dumps(ports))
    return ports


def _all_free(ports: Sequence[int]) -> bool:
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def _credentials(path: Path) -> tuple[str, str]:
    """The keys of this data folder's S3 server, made on first use and readable by their owner only."""
    if not path.is_file():
        keys = {"access_key": f"fruits{secrets.token_hex(7)}", "secret_key": secrets.token_urlsafe(30)}
        write_secret(path, json.dumps(keys))
    keys = json.loads(path.read_text())
    return keys["access_key"], keys["secret_key"]


def write_secret(path: Path, text: str) -> None:
    """Write a file that its owner only can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        path.chmod(0o600)  # of one that was there
        file.write(text)


def _weed() -> str:
    """The SeaweedFS program of the airflow environment, also when asked from the jobs environment beside it."""
    environments = Path(sys.prefix), Path(sys.prefix).parent / "airflow"
    beside = next((str(path) for one in environments if (path := one / "bin" / "weed").is_file()), None)
    found = beside or shutil.which("weed")
    if not found:
        raise FruitsError("SeaweedFS: no `weed` program in the airflow environment; run `make setup`")
    return found


def _wait_until_ready(stack: Stack, master: int, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    client = stack.client(attempts=1)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise FruitsError(f"SeaweedFS did not start: exit code {process.returncode}; its log is {log_path}")
        try:
            client.list_buckets()
            if _has_volumes(master):
                return
        except (BotoCoreError, ClientError, OSError):
            pass
        time.sleep(0.1)
    raise FruitsError(f"SeaweedFS did not start within {_START_SECONDS} s; its log is {log_path}")


def _has_volumes(master: int) -> bool:
    """Whether the server's part that holds the objects' bytes is there: until then it lists, but can't read them."""
    with closing(http.client.HTTPConnection("127.0.0.1", master, timeout=_PROBE_SECONDS)) as connection:
        connection.request("GET", "/dir/status")
        return bool(json.load(connection.getresponse())["Topology"]["DataCenters"])


def make_bucket(stack: Stack, bucket: str = BUCKET) -> None:
    """Make the bucket of photos unless it is there."""
    client = stack.client()
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if bucket not in {found["Name"] for found in client.list_buckets()["Buckets"]}:
                client.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise FruitsError(f"SeaweedFS: bucket {bucket} can't be made: {error}") from error
            time.sleep(0.2)
        else:
            return
