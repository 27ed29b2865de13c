"""``make ui`` and ``make stop``: S3 server, queue of its events, Airflow and `fruits serve` in the background.

Airflow's parts are started one by one rather than by ``airflow standalone``: that also starts two log servers, which
listen on every address of the machine and cannot be told otherwise (Airflow 3.3). On one machine nobody needs them.
"""

import json
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import ExitCode, FruitsError
from fruits.photos.decode import announced_format
from fruits.photos.ignore import meaning_of
from fruits.photos.keys import KeyRules
from fruits.settings import Settings
from local.airflow import airflow, airflow_environment, migrate, new_secret
from local.api import password_file, password_of
from local.classes import archive_classes, stop_archiving
from local.folder import HEAD, LAYOUT
from local.processes import STOP_SECONDS, end_sessions, identity, process_of, runs
from local.queue import EventQueue, start_queue
from local.stack import (
    BUCKET,
    Stack,
    alone_on,
    environment_of,
    free_ports,
    jobs_environment,
    running_server,
    server_pid,
    start_s3,
    stop_process,
    stop_s3,
    write_secret,
)

_AIRFLOW = {
    "api-server": (),
    "scheduler": ("--skip-serve-logs",),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),
}
_USER = "admin"
_READY_SECONDS = 240


def start(data: Path) -> int:
    """Start S3 server and Airflow unless they run, wait until the UI answers, and print how to log in.

    When a part has ended since the last start, end the rest and start all parts again.

    Raises:
        FruitsError: when a part can't be started, or a command uses the S3 server, which would have to end.
    """
    data = data.resolve()
    running = running_ui(data)
    ended = _ended(running) if running else []
    if running and not ended:
        print("It is running already.")
    else:
        if ended:
            print(f"{_describe(data, ended)}; ending the rest, up to {STOP_SECONDS} s, to start all again", flush=True)
        with alone_on(data):
            _end_all(data)
            running = _start(data)
        archive_classes(data)
    print(f"\n  Airflow UI  {running['url']}")
    print(f"  user        {running['user']}")
    print(f"  password    {password_of(data, running['user'])}")
    print(f"  photos      s3://{running['bucket']} on {running['endpoint']}, keys in {data / 's3.credentials.json'}")
    print(f"  events      {running['queue']}")
    print(f"  service     {running.get('service', 'none; `make stop`, then `make ui` starts it')}")
    print(f"  logs        {data / 'logs'}")
    print("\n`make stop` ends it. The DAG fruit_features is paused until you switch it on.")
    return ExitCode.OK


def stop(data: Path) -> int:
    """End what ``start`` started, and the S3 server whoever started it; other processes are left alone."""
    data = data.resolve()
    archiving = stop_archiving(data)
    print("Stopped." if _end_all(data) or archiving else "Nothing is running.")
    return ExitCode.OK


def put(data: Path, photo: Path, key: str) -> int:
    """Upload one photo, as an app or a camera would; returns an exit code.

    Raises:
        FruitsError: when nothing is running or a part has ended, there is no such file, no photo can have that key, or
            it was refused.
    """
    if photo == Path():  # `make put` without PHOTO
        raise FruitsError("PHOTO is not set: make put PHOTO=kiwi.jpg KEY=Training/Kiwi/1.jpg")
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
    with environment_of(stack):
        settings = Settings.load()
    for remark in _remarks(photo, key, settings):
        print(f"  {remark}")
    return ExitCode.OK


def _remarks(photo: Path, key: str, settings: Settings) -> Iterator[str]:
    """What becomes of an upload that is no photo with a label."""
    rules = KeyRules.of(settings)
    if rule := rules.ignore.rule_of(key):
        yield f"will be ignored as {rule}. {meaning_of(rule)}"
        return
    rejection = rules.judge(key)[2]
    if rejection is not None:
        yield f"will be quarantined as {rejection}. {rejection.description} Expected {LAYOUT}"
    with photo.open("rb") as file:
        head = file.read(HEAD)
    if not (announced_format(head) or (None, False))[1]:
        yield "will be quarantined: the first bytes are not those of an image that is read"


def airflow_command(data: Path, arguments: Sequence[str]) -> int:
    """Run a command of Airflow's own on what ``start`` started; returns its exit code.

    Raises:
        FruitsError: when nothing is running or a part has ended.
    """
    stack = _running_stack(data)
    quiet = {"PYTHONWARNINGS": "ignore:Could not import graphviz:UserWarning"}  # Airflow warns at each call
    environment = {**quiet, **airflow_environment(stack, EventQueue.read(stack.data))}
    return subprocess.run([airflow(), *arguments], env=environment, check=False).returncode  # noqa: S603 -- its program


def _running_stack(data: Path) -> Stack:
    data = data.resolve()
    running = running_ui(data)
    if running is None:
        raise FruitsError(f"nothing is running on {data}; start it with `make ui`")
    if ended := _ended(running):
        raise FruitsError(f"{_describe(data, ended)}; `make ui` starts {'it' if len(ended) == 1 else 'them'} again")
    stack = running_server(data)
    if stack is None:
        raise FruitsError(f"the S3 server on {data} does not answer; try again, or see its log, {_log(data, 's3')}")
    return stack


def running_ui(data: Path) -> dict[str, Any] | None:
    """The note of what ``start`` started, as long as a part of it runs."""
    path = _note_path(data)
    running = dict(json.loads(path.read_text())) if path.is_file() else None
    return running if running and len(_ended(running)) < len(running["processes"]) else None


def _ended(running: Mapping[str, Any]) -> list[str]:
    """The parts that were started and have ended since."""
    return [name for name, known in running["processes"].items() if not runs(process_of(known))]


def _describe(data: Path, ended: Sequence[str]) -> str:
    logs = ", ".join(str(_log(data, name)) for name in ended)
    return f"{' and '.join(ended)} {'has' if len(ended) == 1 else 'have'} ended (see {logs})"


def _log(data: Path, part: str) -> Path:
    return data / "s3.log" if part == "s3" else data / "logs" / f"{part}.log"


def _end_all(data: Path) -> bool:
    """End all parts, the S3 server last; returns whether anything ran."""
    running = running_ui(data)
    if running:
        end_sessions(known for name, known in running["processes"].items() if name != "s3")
    _note_path(data).unlink(missing_ok=True)
    return stop_s3(data) or running is not None


def _start(data: Path) -> dict[str, Any]:
    with ExitStack() as undo:
        queue, queue_process = start_queue(data)
        undo.callback(stop_process, queue_process)
        stack = start_s3(data, queue.notifications)
        undo.callback(stop_s3, data)
        print(f"S3 server on {stack.endpoint}")
        migrate(stack)
        pids = {"s3": server_pid(data) or 0, "queue": queue_process.pid}
        running = _start_airflow(stack, queue, pids)
        undo.pop_all()
    return running


def _start_airflow(stack: Stack, queue: EventQueue, beside: Mapping[str, int]) -> dict[str, Any]:
    print("starting Airflow, about 40 s")
    port, service_port = free_ports(2)
    url, service = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{service_port}"
    environment = {**_environment(stack, queue, port), "FRUITS_SERVICE_URL": service}
    _make_password(stack.data)
    commands = {name: [airflow(), name, *options] for name, options in _AIRFLOW.items()}
    python = str(jobs_environment() / "bin" / "python")
    commands["service"] = [python, "-P", "-m", "fruits", "serve", "--port", str(service_port)]
    parts = {name: _start_part(name, command, stack.data, environment) for name, command in commands.items()}
    pids = {**{name: part.pid for name, part in parts.items()}, **beside}
    running: dict[str, Any] = {
        "url": url,
        "user": _USER,
        "endpoint": stack.endpoint,
        "queue": queue.url,
        "service": service,
        "bucket": environment["FRUITS_BUCKET"],
        "processes": {name: identity(pid) for name, pid in pids.items()},
    }
    _note_path(stack.data).write_text(json.dumps(running))
    try:
        _wait_until_healthy(url, parts.values(), stack.data / "logs")
    except BaseException:
        _end_all(stack.data)
        raise
    return running


def _start_part(
    name: str, command: Sequence[str], data: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    log = _log(data, name)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(  # noqa: S603 -- our own environments' programs
            command,
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
        # Seconds, half of them before each of a run's tasks; the default is 1. An idle scheduler takes 6 % of a core.
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
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
        health = httpx.get(url, timeout=5).json()
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all(health[part]["status"] == "healthy" for part in parts)
    except (httpx.HTTPError, ValueError, KeyError):
        return False


def _make_password(data: Path) -> None:
    """Make the user's password unless there is one: Airflow logs what it makes, in a file that everybody can read."""
    path = password_file(data)
    if path.is_file():
        path.chmod(0o600)
    else:
        write_secret(path, json.dumps({_USER: new_secret()}))


def _note_path(data: Path) -> Path:
    return data / "ui.json"
