"""``make ui`` and ``make stop``: S3 server, queue of its events and Airflow in the background.

Airflow's parts are started one by one rather than by ``airflow standalone``: that also starts two log servers, which
listen on every address of the machine and cannot be told otherwise (Airflow 3.3). On one machine nobody needs them.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import ExitCode, FruitsError
from local.airflow import airflow, airflow_environment, migrate, new_secret
from local.queue import EventQueue, start_queue
from local.stack import (
    BUCKET,
    Stack,
    end_unused_server,
    free_ports,
    in_use,
    make_bucket,
    running_server,
    server_lock,
    start_s3,
    stop_process,
)

_PARTS = {
    "api-server": (),
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
_READY_SECONDS = 240
_STOP_SECONDS = 30
_KILL_SECONDS = 2


def start(data: Path) -> int:
    """Start S3 server and Airflow unless they run already, wait until the UI answers, and say how to log in.

    When a part of what runs has ended, the rest is ended and all is started again.

    Raises:
        FruitsError: when a part can't be started, or a command uses the S3 server that would have to be another.
    """
    data = data.resolve()
    running = _read(data)
    if running is not None and (ended := _ended(running)):
        _end_rest(data, running, ended)
        running = None
    if running is None:
        running = _start(data)
    else:
        print("It is running already.")
    print(f"\n  Airflow UI  {running['url']}")
    print(f"  user        {running['user']}")
    print(f"  password    {_password(data, running['user'])}")
    print(f"  photos      s3://{running['bucket']} on {running['endpoint']}, keys in {data / 's3.credentials.json'}")
    print(f"  events      {running['queue']}")
    print(f"  logs        {data / 'logs'}")
    print("\n`make stop` ends it. The DAG fruit_features is paused until you switch it on.")
    return ExitCode.OK


def stop(data: Path) -> int:
    """End what ``start`` started, and an S3 server that a killed command left; other processes are left alone."""
    data = data.resolve()
    running = _read(data)
    found = running is not None
    if data.is_dir():
        with server_lock(data):
            if running is not None:
                _end_all(data, running)
            found = end_unused_server(data) or found
    print("Stopped." if found else "Nothing is running.")
    return ExitCode.OK


def put(data: Path, photo: Path, key: str) -> int:
    """Upload one photo, as an app or a camera would; returns an exit code.

    Raises:
        FruitsError: when nothing is running or a part has ended, there is no such file, no photo can have that key, or
            it was refused.
    """
    if not photo.is_file():
        raise FruitsError(f"{photo}: no such file; PHOTO expects a photo")
    if not key or not key.isprintable() or key != key.strip("/"):
        raise FruitsError(
            f"KEY {key!r}: expected an object key such as Training/Kiwi/1.jpg, "
            "with no slash at its start or end and no control characters"
        )
    stack = _running_stack(data)
    try:
        stack.client().upload_file(str(photo), BUCKET, key)
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        log = stack.data / "s3.log"
        raise FruitsError(f"{photo}: {error}; try another KEY or PHOTO, or see the S3 server's log, {log}") from error
    print(f"{photo} -> s3://{BUCKET}/{key}")
    return ExitCode.OK


def airflow_command(data: Path, arguments: Sequence[str]) -> int:
    """Run a command of Airflow's own on what ``start`` started; returns its exit code.

    Raises:
        FruitsError: when nothing is running or a part has ended.
    """
    stack = _running_stack(data)
    environment = airflow_environment(stack, EventQueue.read(stack.data))
    return subprocess.run([airflow(), *arguments], env=environment, check=False).returncode  # noqa: S603 -- its program


def _running_stack(data: Path) -> Stack:
    data = data.resolve()
    running = _read(data)
    if running is None:
        raise FruitsError(f"nothing is running on {data}; start it with `make ui`")
    if ended := _ended(running):
        raise FruitsError(f"{_told(data, ended)}; `make ui` starts {'it' if len(ended) == 1 else 'them'} again")
    stack = running_server(data)
    if stack is None:
        raise FruitsError(f"the S3 server on {data} does not answer; try again, or see its log, {_log(data, 's3')}")
    return stack


def _ended(running: Mapping[str, Any]) -> list[str]:
    """The parts that were started and have ended since."""
    return [name for name, identity in running["processes"].items() if _process(identity) is None]


def _told(data: Path, ended: Sequence[str]) -> str:
    logs = ", ".join(str(_log(data, name)) for name in ended)
    return f"{' and '.join(ended)} {'has' if len(ended) == 1 else 'have'} ended (see {logs})"


def _log(data: Path, part: str) -> Path:
    return data / "s3.log" if part == "s3" else data / "logs" / f"{part}.log"


def _end_rest(data: Path, running: Mapping[str, Any], ended: Sequence[str]) -> None:
    """End what still runs of the parts, unless that would take the S3 server from a command that uses it."""
    with server_lock(data):
        if "s3" not in ended and in_use(data):
            raise FruitsError(
                f"{_told(data, ended)}, and a `make run` or a `fruits` command uses the S3 server; wait for it to end, "
                "then `make ui` starts all again"
            )
        print(f"{_told(data, ended)}; ending the rest, up to {_STOP_SECONDS} s, to start all again", flush=True)
        _end_all(data, running)


def _end_all(data: Path, running: Mapping[str, Any]) -> None:
    """End all parts, the S3 server last, and forget them."""
    parts = dict(running["processes"])
    s3 = parts.pop("s3")
    _end(*parts.values())
    _end(s3)
    _state_path(data).unlink(missing_ok=True)


def _start(data: Path) -> dict[str, Any]:
    data.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        with server_lock(data):
            end_unused_server(data)  # one that a killed command left
            if running_server(data) is not None:
                raise FruitsError(
                    f"an S3 server is already running on {data} "
                    "(a `make run`, a `fruits` command, another `make ui`?); wait for it to end"
                )
            queue, queue_process = start_queue(data)
            undo.callback(stop_process, queue_process)
            server = start_s3(data, queue.notifications)
            undo.callback(server.stop)
        print(f"S3 server on {server.stack.endpoint}")
        make_bucket(server.stack)
        migrate(server.stack)
        running = _start_airflow(server.stack, queue, {"s3": server.process, "queue": queue_process})
        undo.pop_all()
    return running


def _start_airflow(stack: Stack, queue: EventQueue, beside: Mapping[str, "subprocess.Popen[bytes]"]) -> dict[str, Any]:
    print("starting Airflow, about 40 s")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    environment = _environment(stack, queue, port)
    parts = {name: _start_part(name, stack.data, environment) for name in _PARTS}
    running: dict[str, Any] = {
        "url": url,
        "user": "admin",
        "endpoint": stack.endpoint,
        "queue": queue.url,
        "bucket": environment["FRUITS_BUCKET"],
        "processes": {name: _identity(process.pid) for name, process in {**parts, **beside}.items()},
    }
    _state_path(stack.data).write_text(json.dumps(running))
    try:
        _wait_until_healthy(url, parts.values(), stack.data / "logs")
    except BaseException:
        stop(stack.data)
        raise
    return running


def _start_part(name: str, data: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    log = _log(data, name)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(  # noqa: S603 -- our own environment's airflow
            [airflow(), name, *_PARTS[name]],
            env=environment,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=data,
        )


def _environment(stack: Stack, queue: EventQueue, port: int) -> dict[str, str]:
    return {
        **airflow_environment(stack, queue),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "4",  # the default of 32 processes serves a larger machine
        "AIRFLOW__API_AUTH__JWT_SECRET": new_secret(),
        "AIRFLOW__API__SECRET_KEY": new_secret(),
    }


def _wait_until_healthy(url: str, parts: Collection["subprocess.Popen[bytes]"], logs: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and all(part.poll() is None for part in parts):
        if _healthy(f"{url}/api/v2/monitor/health"):
            return
        time.sleep(1)
    raise FruitsError(f"Airflow did not start within {_READY_SECONDS} s; its logs are in {logs}")


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 -- our own http URL
            health = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError):
        return False
    parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    return all(health[part]["status"] == "healthy" for part in parts)


def _password(data: Path, user: str) -> str:
    path = data / "airflow" / "simple_auth_manager_passwords.json.generated"
    return str(json.loads(path.read_text()).get(user, "?")) if path.is_file() else "see the log"


def _state_path(data: Path) -> Path:
    return data / "ui.json"


def _read(data: Path) -> dict[str, Any] | None:
    """What was started, if any of it runs, else None; the note of processes that are all gone is removed."""
    path = _state_path(data)
    if not path.is_file():
        return None
    running = json.loads(path.read_text())
    if len(_ended(running)) < len(running["processes"]):
        return dict(running)
    path.unlink()
    return None


def _identity(pid: int) -> dict[str, float]:
    """A process by id and start time: an id alone may be another process's by tomorrow."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def _process(identity: Mapping[str, float]) -> psutil.Process | None:
    process = _noted(identity)
    return process if process and _alive(process) else None


def _noted(identity: Mapping[str, float]) -> psutil.Process | None:
    """The process, also when it has ended and nobody has asked how."""
    try:
        process = psutil.Process(int(identity["pid"]))
        return process if abs(process.create_time() - identity["started"]) < 1 else None
    except psutil.NoSuchProcess:
        return None


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _end(*identities: Mapping[str, float]) -> None:
    """End processes and all that they started."""
    family = {member for identity in identities for member in _family(identity) if _alive(member)}
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    stubborn = psutil.wait_procs(family, timeout=_STOP_SECONDS)[1]
    for member in stubborn:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(stubborn, timeout=_KILL_SECONDS)


def _family(identity: Mapping[str, float]) -> list[psutil.Process]:
    """A process that leads a session, and all that it started, also what it left behind when it was killed."""
    process = _noted(identity)
    pid = int(identity["pid"])
    if process is None and psutil.pid_exists(pid):
        return []  # another's by now; it would not be while one of the session had been left
    session = [member for member in psutil.process_iter() if _session(member.pid) == pid]
    return [*session, *([process, *_children(process)] if process else [])]


def _session(pid: int) -> int | None:
    with suppress(OSError):  # gone, or not ours
        return os.getsid(pid)
    return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []
