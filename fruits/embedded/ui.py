"""``make ui`` and ``make stop``: S3 server, queue of its events and Airflow in the background.

Airflow's parts are started one by one rather than by ``airflow standalone``: that also starts two log servers, which
listen on every address of the machine and cannot be told otherwise (Airflow 3.3). On one machine nobody needs them.
"""

import json
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

from fruits.embedded.airflow import airflow, airflow_environment, migrate, new_secret
from fruits.embedded.queue import EventQueue, start_queue
from fruits.embedded.stack import BUCKET, Stack, free_ports, make_bucket, running_server, start_s3, stop_process
from fruits.errors import ExitCode, FruitsError

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
    """Start S3 server and Airflow unless they run already, wait until the UI answers, and say how to log in."""
    data = data.resolve()
    running = _read(data)
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
    """End what ``start`` started; other processes are left alone."""
    data = data.resolve()
    running = _read(data)
    if running is None:
        print("Nothing is running.")
        return ExitCode.OK
    s3 = running["processes"].pop("s3")
    _end(*running["processes"].values())
    _end(s3)
    _state_path(data).unlink()
    print("Stopped.")
    return ExitCode.OK


def put(data: Path, photo: Path, key: str) -> int:
    """Upload one photo, as an app or a camera would; returns an exit code.

    Raises:
        FruitsError: when nothing is running, there is no such file, no photo can have that key, or it was refused.
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
        FruitsError: when nothing is running.
    """
    stack = _running_stack(data)
    environment = airflow_environment(stack, EventQueue.read(stack.data))
    return subprocess.run([airflow(), *arguments], env=environment, check=False).returncode  # noqa: S603 -- its program


def _running_stack(data: Path) -> Stack:
    stack = running_server(data.resolve())
    if stack is None or _read(stack.data) is None:
        raise FruitsError(f"nothing is running on {data}; start it with `make ui`")
    return stack


def _start(data: Path) -> dict[str, Any]:
    if running_server(data) is not None:
        raise FruitsError(f"an S3 server is already running on {data} (a `make run`?); wait for it to end")
    data.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
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
    log = data / "logs" / f"{name}.log"
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
    """What runs, or None; the note of processes that are gone is removed."""
    path = _state_path(data)
    if not path.is_file():
        return None
    running = json.loads(path.read_text())
    if any(_process(identity) for identity in running["processes"].values()):
        return dict(running)
    path.unlink()
    return None


def _identity(pid: int) -> dict[str, float]:
    """A process by id and start time: an id alone may be another process's by tomorrow."""
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def _process(identity: dict[str, float]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(identity["pid"]))
        same = abs(process.create_time() - identity["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _end(*identities: dict[str, float]) -> None:
    """End processes and all that they started."""
    found = [process for process in map(_process, identities) if process]
    family = [member for process in found for member in (process, *_children(process))]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    stubborn = psutil.wait_procs(family, timeout=_STOP_SECONDS)[1]
    for member in stubborn:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(stubborn, timeout=_KILL_SECONDS)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []
