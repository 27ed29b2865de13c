"""SeaweedFS as S3, SQLite as catalog and the settings that point at them, all under one data folder.

The first command that needs the S3 server starts it, and the server runs until ``make stop``. It holds a lock on the
file ``s3.server``, which has its process id: as long as the lock is held, the id is the server's.
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
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

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
_PORT_RANGE = range(20_000, 32_000)  # below the ports that systems give to outgoing connections
# A person's own credentials would be taken instead of the stack's keys.
_OTHER_CREDENTIALS = frozenset({"AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"})
_START_SECONDS = 60
_PROBE_SECONDS = 5
_STOP_SECONDS = 5  # the server takes 2, or 12 when it waits for its own connections; a kill loses nothing


@dataclass(frozen=True)
class Stack:
    """A running embedded stack; ``environment`` points every program of this project at it."""

    data: Path
    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Settings of the stack as environment variables.

        Bucket, lake and catalog are always the stack's own, whatever is set: it must never touch somebody's real ones.
        """
        return {
            **{name: value for name, value in os.environ.items() if name not in _OTHER_CREDENTIALS},
            "FRUITS_BUCKET": BUCKET,
            "FRUITS_LAKE": f"file://{self.data / 'lake'}",
            "FRUITS_CATALOG_URI": f"sqlite:///{self.data / 'catalog.db'}",
            "FRUITS_INDEX_FOLDER": str(self.data / "neighbours"),
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
        """A boto3 client of the S3 server: attempts at each request, and seconds to wait for an answer."""
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


def environment_of(stack: Stack) -> AbstractContextManager[Any]:
    """Inside, this process has the stack's environment variables as well."""
    return patch.dict(os.environ, stack.environment, clear=True)


def jobs_environment() -> Path:
    """The virtual environment of the Spark jobs, beside the environment of this process."""
    return Path(sys.prefix).parent / "jobs"


@contextmanager
def running_stack(data: Path) -> Iterator[Stack]:
    """The stack with its data in ``data``; its S3 server is started unless it runs, and goes on afterwards.

    Raises:
        FruitsError: when no server answers and none can be started.
    """
    with in_use(data):
        stack = running_server(data.resolve()) or start_s3(data.resolve())
        make_bucket(stack)
        yield stack


@contextmanager
def temporary_stack(data: Path) -> Iterator[Stack]:
    """The same, but the S3 server ends with it: for tests and benchmarks."""
    try:
        with running_stack(data) as stack:
            yield stack
    finally:
        stop_s3(data)


@contextmanager
def in_use(data: Path) -> Iterator[bool]:
    """Inside, ``make ui`` does not end the S3 server of ``data``; yields whether no other command is inside."""
    data.mkdir(parents=True, exist_ok=True)
    with (data / "s3.users").open("ab") as users:
        os.set_inheritable(users.fileno(), True)  # Airflow holds the lock, too, should the command be killed
        alone = _lock(users)
        fcntl.flock(users, fcntl.LOCK_SH)
        yield alone


@contextmanager
def alone_on(data: Path) -> Iterator[None]:
    """Inside, no command uses the S3 server of ``data``.

    Raises:
        FruitsError: when a command uses the server.
    """
    data.mkdir(parents=True, exist_ok=True)
    with (data / "s3.users").open("ab") as users:
        if not _lock(users):
            raise FruitsError(
                f"a `make run` or a `fruits` command uses the S3 server on {data}; wait for it to end, then try again"
            )
        yield


def running_server(data: Path) -> Stack | None:
    """The stack whose S3 server runs on ``data`` and answers to this folder's keys, if there is one."""
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


def start_s3(data: Path, notifications: str = "") -> Stack:
    """Start SeaweedFS on 127.0.0.1 with its data in ``data``, on the ports of last time where they are free.

    ``notifications`` is the text of the server's ``notification.toml``: which webhook hears of changes. While another
    process starts a server on ``data``, wait for that server instead.

    Raises:
        FruitsError: when the server can't be started, or the one that holds the folder does not answer.
    """
    log_path = data / "s3.log"
    (data / "s3").mkdir(parents=True, exist_ok=True)
    with (data / "s3.server").open("a+") as note, log_path.open("ab") as log:
        deadline = time.monotonic() + _START_SECONDS
        while not _lock(note):
            if stack := running_server(data):
                return stack
            if time.monotonic() > deadline:
                raise FruitsError(
                    f"the S3 server on {data}, process {server_pid(data)}, does not answer; `make stop` ends it, "
                    f"its log is {log_path}"
                )
            time.sleep(0.2)
        access_key, secret_key = _credentials(data / "s3.credentials.json")
        ports = _ports(data / "s3.ports.json")
        write_secret(data / "notification.toml", notifications)  # an empty one, too: else a person's own would be taken
        process = subprocess.Popen(  # noqa: S603 -- our own binary
            _command(data / "s3", ports),
            env={**os.environ, "AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key},
            cwd=data,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[note.fileno()],  # the server inherits the lock and holds it until it ends
        )
        stack = Stack(data, f"http://127.0.0.1:{ports['s3']}", access_key, secret_key)
        try:
            note.truncate(0)
            json.dump({"pid": process.pid}, note)
            note.flush()
            _wait_until_ready(stack, ports["master"], process, log_path)
        except BaseException:
            stop_process(process)
            raise
    return stack


def server_pid(data: Path) -> int | None:
    """The process of the S3 server on ``data``, if it runs: whether it answers or not."""
    if not (data / "s3.server").is_file():
        return None
    with (data / "s3.server").open() as note:
        return None if _lock(note) else json.loads(note.read() or "{}").get("pid")


def stop_s3(data: Path) -> bool:
    """End the S3 server on ``data``: SIGTERM, then SIGKILL; returns whether there was one."""
    pid = server_pid(data)
    if pid is None:
        return False
    for end in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, end)
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            if server_pid(data) is None:
                return True
            time.sleep(0.05)
    return True


def stop_process(process: "subprocess.Popen[bytes]") -> None:
    """End a process that leads its session: SIGTERM, then SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _command(folder: Path, ports: dict[str, int]) -> list[str]:
    return [
        _weed(), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-volume.max=10000",  # the default is as many as fill the free disk, and every bucket takes seven
        "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        *(f"{option}={ports[name]}" for name, option in _PORTS.items()),
    ]  # fmt: skip


def _weed() -> str:
    """The SeaweedFS program of the airflow environment, which may be the environment beside this one."""
    beside = Path(sys.prefix).parent / "airflow" / "bin" / "weed"
    program = str(beside) if beside.is_file() else shutil.which("weed")
    if not program:
        raise FruitsError("SeaweedFS: no `weed` program in the airflow environment; run `make setup`")
    return program


def _lock(file: IO[Any]) -> bool:
    """Lock a file unless another process has locked it; returns whether it is locked now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of 127.0.0.1 on which no program listens."""
    shuffled = secrets.SystemRandom().sample(_PORT_RANGE, len(_PORT_RANGE))
    return list(islice((port for port in shuffled if _all_free([port])), count))


def _ports(path: Path) -> dict[str, int]:
    """The ports of last time if all of them are still free, else new ones."""
    ports: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
    if ports.keys() != _PORTS.keys() or not _all_free(list(ports.values())):
        ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        write_secret(path, json.dumps(ports))
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
    """The keys of this data folder's S3 server. Made on first use; only their owner can read them."""
    if not path.is_file():
        keys = {"access_key": f"fruits{secrets.token_hex(7)}", "secret_key": secrets.token_urlsafe(30)}
        write_secret(path, json.dumps(keys))
    keys = json.loads(path.read_text())
    return keys["access_key"], keys["secret_key"]


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read. Whoever reads meanwhile finds the old file or the new one, whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(name).replace(path)


def _wait_until_ready(stack: Stack, master: int, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise FruitsError(f"SeaweedFS did not start: exit code {process.returncode}; its log is {log_path}")
        with suppress(BotoCoreError, ClientError, OSError):
            if _has_volumes(master):
                make_bucket(stack, attempts=1)
                return
        time.sleep(0.1)
    raise FruitsError(f"SeaweedFS did not start within {_START_SECONDS} s; its log is {log_path}")


def _has_volumes(master: int) -> bool:
    """Whether the part of the server that stores the objects' bytes is up: before that, it lists but can't read."""
    with closing(http.client.HTTPConnection("127.0.0.1", master, timeout=_PROBE_SECONDS)) as connection:
        connection.request("GET", "/dir/status")
        return bool(json.load(connection.getresponse())["Topology"]["DataCenters"])


def make_bucket(stack: Stack, bucket: str = BUCKET, *, attempts: int = 5) -> None:
    """Make a bucket unless it exists."""
    client = stack.client(attempts=attempts)
    with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=bucket)
