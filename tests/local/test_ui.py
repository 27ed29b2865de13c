"""`make ui` and `make stop`: Airflow's own scheduler, triggerer and API server, on this machine only."""

import fcntl
import json
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psutil
import pytest

from fruits.backbones.card import Card, Preprocessing
from fruits.backbones.stage import _registry_path, staged_card
from fruits.errors import ExitCode, FruitsError
from fruits.settings import Settings
from fruits.stores import lake_store, write_json
from local import ui as module
from local.queue import EventQueue
from local.stack import Stack, in_use, running_server, running_stack, server_pid
from sample_photos import photo_key
from tests.planted import PLANTED, SIGNATURE, TOKEN, assert_none, files, rows

pytestmark = [pytest.mark.airflow, pytest.mark.heavy, pytest.mark.story]

ROOT = Path(__file__).parents[2]
DAG = "/api/v2/dags/fruit_features"
SETTLE_SECONDS = 8


def command(data: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """`python -m local` in an environment where only ``variables`` are configured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FRUITS_", "AWS_", "AIRFLOW"))}
    return subprocess.run(
        [sys.executable, "-m", "local", "--data", str(data), *arguments],
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class UI:
    """A running stack with Airflow's UI, and what was printed when it was started."""

    data: Path
    out: str

    @property
    def url(self) -> str:
        return self.shown("Airflow UI")

    def shown(self, name: str) -> str:
        """What the person was told, by name."""
        line = next(line for line in self.out.splitlines() if line.strip().startswith(name))
        return line.strip().removeprefix(name).strip()

    @property
    def stack(self) -> Stack:
        stack = running_server(self.data)
        assert stack is not None
        return stack

    def family(self) -> list[psutil.Process]:
        """All processes that were started."""
        noted = json.loads((self.data / "ui.json").read_text())["processes"].values()
        roots = [psutil.Process(int(identity["pid"])) for identity in noted]
        return [member for root in roots for member in (root, *root.children(recursive=True))]

    def answer(
        self, path: str, method: str = "GET", body: dict[str, Any] | None = None, token: str = ""
    ) -> tuple[int, str]:
        """Status and text of the API server's answer."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def token(self) -> str:
        """A token for the user and password that were printed."""
        status, text = self.answer(
            "/auth/token", "POST", {"username": self.shown("user"), "password": self.shown("password")}
        )
        assert status == 201, text
        return str(json.loads(text)["access_token"])


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UI]:
    """The stack, started as a person starts it."""
    data = tmp_path_factory.mktemp("ui") / "data"
    try:
        done = command(data, "ui", **PLANTED)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs(data)}"
        yield UI(data, done.stdout)
    finally:
        command(data, "stop")


def logs(data: Path) -> str:
    """The ends of Airflow's logs, for a failing test's report."""
    return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted((data / "logs").glob("*.log")))


@pytest.fixture(scope="module")
def card(ui: UI) -> Card:
    """A backbone's card where `prepare` looks for it: a dry run needs no more, and building one takes half a minute."""
    stack = ui.stack
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**stack.environment, **PLANTED}.items():
            patch.setenv(name, value)
        settings = Settings.load()
        card = Card(
            model_id="efficientnet-lite0-0123456789ab",
            backbone="efficientnet-lite0",
            weights="none",
            weights_sha256="0" * 64,
            preprocessing=Preprocessing(224, 224),
            feature_width=1280,
            flatbuffer_sha256="0" * 64,
            flatbuffer_bytes=0,
            licence="none",
            built_with={},
        )
        store = lake_store(settings, "models")
        write_json(store, f"{card.model_id}/card.json", card.to_document())
        write_json(store, _registry_path(settings), {"model_id": card.model_id})
        assert staged_card(settings) == card
    return card


def test_the_ui_answers_and_asks_who_it_is(ui: UI) -> None:
    status, page = ui.answer("/")
    assert status == 200
    assert "<html" in page
    assert ui.answer("/auth/login")[0] == 200
    assert ui.answer(DAG)[0] == 401
    wrong = ui.answer("/auth/token", "POST", {"username": ui.shown("user"), "password": "guess"})
    assert wrong[0] == 401
    assert ui.answer(DAG, token=ui.token())[0] == 200


def test_every_part_of_airflow_is_healthy(ui: UI) -> None:
    health = json.loads(ui.answer("/api/v2/monitor/health")[1])
    parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    assert {part: health[part]["status"] for part in parts} == dict.fromkeys(parts, "healthy")


def test_nobody_else_on_the_network_is_served(ui: UI) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port, process.name())
        for process in ui.family()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    queue = EventQueue.read(ui.data)
    expected = {int(url.rpartition(":")[2]) for url in (ui.url, ui.stack.endpoint, queue.endpoint)}
    assert expected | {queue.webhook_port} <= {port for _, port, _ in listening}
    assert {address for address, _, _ in listening} == {"127.0.0.1"}, listening


def test_a_second_ui_says_that_one_is_running(ui: UI) -> None:
    before = (ui.data / "ui.json").read_text()
    again = command(ui.data, "ui")
    assert again.returncode == 0
    assert "It is running already." in again.stdout
    assert ui.url in again.stdout
    assert ui.shown("password") in again.stdout
    assert (ui.data / "ui.json").read_text() == before


def test_a_run_beside_the_ui_uses_its_s3_server(ui: UI, tmp_path: Path) -> None:
    """Its weights are nowhere, so that it ends before Spark, and says so."""
    photo = tmp_path / "photos" / "beside" / "Apple" / "1.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"photo")
    done = command(ui.data, "run", "--images", str(tmp_path / "photos"), FRUITS_WEIGHTS="/nowhere/weights.pth")
    assert done.returncode == ExitCode.BAD_INPUT
    assert "Traceback" not in done.stdout + done.stderr
    assert "FRUITS_WEIGHTS /nowhere/weights.pth: No such file" in done.stderr
    assert f"S3 server on {ui.stack.endpoint}" in done.stdout
    client = ui.stack.client()
    assert client.get_object(Bucket="fruits", Key="beside/Apple/1.jpg")["Body"].read() == b"photo"
    client.delete_object(Bucket="fruits", Key="beside/Apple/1.jpg")


def test_a_run_asked_for_over_the_api_waits_for_photos_and_for_quiet(ui: UI, card: Card) -> None:
    """Scheduler, workers and triggerer for real: both sensors are deferred before the plan is made."""
    token = ui.token()
    conf = {"prefix": "asked/", "sensor_timeout": 600, "dry_run": True, "settle_seconds": SETTLE_SECONDS}
    # Switching the DAG on starts its scheduled run as well, and runs take turns: this one is to be the first.
    asked = {"logical_date": None, "run_after": "2026-01-01T00:00:00Z", "conf": conf}
    status, text = ui.answer(f"{DAG}/dagRuns", "POST", asked, token)
    assert status == 200, text
    run = f"{DAG}/dagRuns/{json.loads(text)['dag_run_id']}"
    assert ui.answer(DAG, "PATCH", {"is_paused": False}, token)[0] == 200
    try:
        seen = follow(ui, run, token, until={"wait_for_images": "deferred"})
        assert seen["prepare"][-1] == "success"
        client = ui.stack.client()

        def upload() -> None:
            for number in range(3):
                client.put_object(
                    Bucket="fruits", Key=f"asked/{photo_key('Orange', 'Training', number)}", Body=b"photo"
                )

        follow(ui, run, token, until={"wait_for_images": "success"}, meanwhile=upload)
        uploaded = time.monotonic()
        seen = follow(ui, run, token, until={"plan": "success"})
        assert "deferred" in seen["uploads_settled"]
        assert time.monotonic() - uploaded >= SETTLE_SECONDS - 1, "S3 tells LastModified to the second"
        assert follow(ui, run, token, until={"publish": "skipped"})["featurize"] == ["skipped"]
        counts = json.loads(ui.answer(f"{run}/taskInstances/plan/xcomEntries/counts", token=token)[1])["value"]
        assert (counts["create"], counts["update"], counts["delete"]) == (3, 0, 0)
        while (state := json.loads(ui.answer(run, token=token)[1])["state"]) == "running":
            time.sleep(0.5)
        assert state == "success"
    finally:
        ui.answer(DAG, "PATCH", {"is_paused": True}, token)


def test_photos_that_are_put_into_the_bucket_wake_the_dag(ui: UI, card: Card) -> None:
    """S3 server, webhook, bridge, queue, triggerer, run; what comes while that is active is two runs more at most."""
    token = ui.token()
    client = ui.stack.client()
    keys = [f"events/Pomme d'été/{number} a+b%20.jpg" for number in range(31)]
    # A run waiting to be started by earlier events would do for this test's, too.
    assert ui.answer(f"{DAG}/assets/queuedEvents", "DELETE", token=token)[0] in (204, 404)
    queue = EventQueue.read(ui.data)
    queue.client().purge_queue(QueueUrl=queue.url)
    assert ui.answer(DAG, "PATCH", {"is_paused": False}, token)[0] == 200
    try:
        client.put_object(Bucket="fruits", Key=keys[0], Body=b"photo")
        (first,) = wait_until(lambda: woken(ui, token, {keys[0]}))
        assert (first["data_interval_start"], first["logical_date"]) == (None, None)
        before = messages(ui, token)
        for key in keys[1:]:
            client.put_object(Bucket="fruits", Key=key, Body=b"photo")
            time.sleep(0.05)
        wait_until(lambda: messages(ui, token) >= before + 30)
        assert len(woken(ui, token, set(keys))) <= 2, "one that works, and one that waits for its turn"

        def told() -> list[dict[str, Any]]:
            """The runs, each ended, once their events tell of all photos."""
            runs = woken(ui, token, set(keys))
            for run in runs:
                finish(ui, token, run)
            events = [event for run in runs for event in payloads(ui, token, run)]
            return runs if sum(event["messages"] for event in events) >= len(keys) else []

        runs = wait_until(told)
        assert runs[-1] == first
        assert len(runs) <= 3  # one, where Airflow made it when all events were in
    finally:
        ui.answer(DAG, "PATCH", {"is_paused": True}, token)


def woken(ui: UI, token: str, keys: set[str]) -> list[dict[str, Any]]:
    """The runs, newest first, that events of these keys started. Until there is one, runs in its way are ended."""
    runs = json.loads(ui.answer(f"{DAG}/dagRuns?order_by=-run_after", token=token)[1])["dag_runs"]
    started = [run for run in runs if run["run_type"] == "asset_triggered" and run["start_date"]]
    found = [run for run in started if any(keys & set(event["keys"]) for event in payloads(ui, token, run))]
    for run in runs:
        if not found and run["state"] == "running":
            finish(ui, token, run)
    facts = ("dag_run_id", "run_type", "data_interval_start", "logical_date")
    return [{fact: run[fact] for fact in facts} for run in found]


def finish(ui: UI, token: str, run: dict[str, Any]) -> None:
    """End a run as a person does who has seen enough."""
    assert ui.answer(f"{DAG}/dagRuns/{quote(run['dag_run_id'])}", "PATCH", {"state": "failed"}, token)[0] == 200


def payloads(ui: UI, token: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    """What the events tell by which a run was started: how many messages, and the first few object keys."""
    path = f"{DAG}/dagRuns/{quote(run['dag_run_id'])}/upstreamAssetEvents"
    return [event["extra"]["payload"] for event in asset_events(ui, path, token)]


def asset_events(ui: UI, path: str, token: str) -> list[dict[str, Any]]:
    """The events at a path. Airflow (3.3) answers 500 until the runs that they made have started: it is asked again."""

    def events() -> dict[str, Any] | None:
        status, text = ui.answer(path, token=token)
        return json.loads(text) if status == 200 else None

    return list(wait_until(events)["asset_events"])


def messages(ui: UI, token: str) -> int:
    """How many of the queue's messages have become events of the photos."""
    events = asset_events(ui, "/api/v2/assets/events?limit=100", token)
    return sum(event["extra"]["payload"]["messages"] for event in events if event["name"] == "fruits_photos")


Value = TypeVar("Value")


def wait_until(look: Callable[[], Value], seconds: float = 180) -> Value:
    """What is found, as soon as it is something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"nothing after {seconds} s")


def name(process: psutil.Process) -> str | None:
    """Its name; None when it has ended since."""
    with suppress(psutil.NoSuchProcess):
        return str(process.name())
    return None


def alive(process: psutil.Process) -> bool:
    """Whether it runs: one that has ended may stay in the table of processes until somebody asks how."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def follow(
    ui: UI,
    run: str,
    token: str,
    *,
    until: dict[str, str],
    meanwhile: Callable[[], None] = lambda: None,
    seconds: float = 120,
) -> dict[str, list[str]]:
    """The states each task was seen in, in order, until tasks are in the states asked for."""
    seen: dict[str, list[str]] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        meanwhile()
        instances = json.loads(ui.answer(f"{run}/taskInstances", token=token)[1])["task_instances"]
        for instance in instances:
            states = seen.setdefault(instance["task_id"], [])
            if instance["state"] and states[-1:] != [instance["state"]]:
                states.append(instance["state"])
        if all(seen.get(task, [])[-1:] == [state] for task, state in until.items()):
            return seen
        assert not any(states[-1:] == ["failed"] for states in seen.values()), f"{seen}\n{logs(ui.data)}"
        time.sleep(0.3)
    raise AssertionError(f"not {until} after {seconds} s: {seen}\n{logs(ui.data)}")


def test_airflow_keeps_no_secret(ui: UI) -> None:
    """After the runs above: its database with DAGs, params and XCom, its tasks' logs, its programs' logs."""
    database = rows(ui.data / "airflow" / "airflow.db")
    assert b"counts" in database["xcom"]
    assert b"fruit_features" in database["serialized_dag"]
    (passwords,) = (ui.data / "airflow").glob("*.generated")
    assert stat.S_IMODE(passwords.stat().st_mode) == 0o600
    left = files(ui.data, "s3/*", "s3.*", f"airflow/{passwords.name}", "airflow/airflow.db*")
    logs = [name for name in left if fnmatch(name, "airflow/logs/*task_id=plan/*.log")]
    assert any(b"plan: 3 create" in left[name] for name in logs)
    assert_none((ui.stack.secret_key, ui.shown("password"), SIGNATURE, TOKEN), {**database, **left})


def test_stop_ends_what_was_started_and_nothing_else(ui: UI, stack: Stack) -> None:
    """Last in this file. Another stack's S3 server, and any other process, go on."""
    with subprocess.Popen(["sleep", "600"]) as bystander:
        family = ui.family()
        assert {"weed"} < set(filter(None, map(name, family)))
        done = command(ui.data, "stop")
        assert done.returncode == 0
        assert "Stopped." in done.stdout
        assert [process for process in family if alive(process)] == []
        assert bystander.poll() is None
        assert stack.client().list_buckets()
        bystander.kill()
    again = command(ui.data, "stop")
    assert again.returncode == 0
    assert "Nothing is running." in again.stdout


def test_a_note_about_processes_that_are_gone_stops_nobody(tmp_path: Path) -> None:
    """After a reboot their ids are other processes'."""
    with subprocess.Popen(["sleep", "600"]) as stranger:
        started = psutil.Process(stranger.pid).create_time() - 60
        note = {"url": "", "user": "", "endpoint": "", "processes": {"s3": {"pid": stranger.pid, "started": started}}}
        (tmp_path / "ui.json").write_text(json.dumps(note))
        done = command(tmp_path, "stop")
        assert "Nothing is running." in done.stdout
        assert stranger.poll() is None
        stranger.kill()


@dataclass(frozen=True)
class Parts:
    """What stands for the parts of a stack with its UI, which takes a minute to start, and the note about them."""

    data: Path
    processes: dict[str, "subprocess.Popen[bytes]"]

    def kill(self, *names: str) -> None:
        for name in names:
            self.processes[name].kill()
            self.processes[name].wait()

    def running(self) -> list[str]:
        return [name for name, process in self.processes.items() if process.poll() is None]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    names = ("api-server", "scheduler", "queue")
    processes = {name: subprocess.Popen(["sleep", "600"], start_new_session=True) for name in names}
    with (tmp_path / "s3.server").open("w") as s3:  # as `start_s3` does
        fcntl.flock(s3, fcntl.LOCK_EX)
        processes["s3"] = subprocess.Popen(["sleep", "600"], start_new_session=True, pass_fds=[s3.fileno()])
        json.dump({"pid": processes["s3"].pid}, s3)
    note = {
        **dict.fromkeys(("url", "user", "endpoint", "queue", "bucket"), "of the parts"),
        "processes": {name: module._identity(process.pid) for name, process in processes.items()},
    }
    (tmp_path / "ui.json").write_text(json.dumps(note))
    yield Parts(tmp_path, processes)
    for process in processes.values():
        process.kill()
        process.wait()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders on which all was started; instead of that they are listed."""
    folders: list[Path] = []

    def start(data: Path) -> dict[str, str]:
        folders.append(data)
        return dict.fromkeys(("url", "user", "endpoint", "queue", "bucket"), "new")

    monkeypatch.setattr(module, "_start", start)
    return folders


def test_ui_notices_a_part_that_was_killed_ends_the_rest_and_starts_all_again(
    parts: Parts, started: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    parts.kill("scheduler")
    assert module.start(parts.data) == 0
    said = capsys.readouterr().out
    assert f"scheduler has ended (see {parts.data}/logs/scheduler.log)" in said
    assert "It is running already." not in said
    assert parts.running() == []
    assert started == [parts.data]


def test_a_ui_whose_parts_all_run_is_not_started_again(
    parts: Parts, started: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert module.start(parts.data) == 0
    assert "It is running already." in capsys.readouterr().out
    assert parts.running() == list(parts.processes)
    assert started == []


def test_a_ui_with_a_dead_part_does_not_take_the_s3_server_from_a_command(
    parts: Parts, started: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    parts.kill("scheduler")
    with in_use(parts.data), pytest.raises(FruitsError, match="uses the S3 server .* wait for it to end"):
        module.start(parts.data)
    assert "scheduler has ended" in capsys.readouterr().out
    assert parts.running() == ["api-server", "queue", "s3"]
    module.start(parts.data)
    assert started == [parts.data]


@pytest.mark.parametrize(
    ("killed", "told"),
    [
        (("scheduler",), "scheduler has ended (see {0}/logs/scheduler.log); `make ui` starts it again"),
        (("s3",), "s3 has ended (see {0}/s3.log); `make ui` starts it again"),
        (
            ("queue", "s3"),
            "queue and s3 have ended (see {0}/logs/queue.log, {0}/s3.log); `make ui` starts them again",
        ),
        (("api-server", "scheduler", "s3", "queue"), "nothing is running on {0}; start it with `make ui`"),
    ],
    ids=["scheduler", "s3", "two", "all"],
)
def test_put_and_airflow_name_the_parts_that_have_ended(
    parts: Parts, photo: Path, killed: tuple[str, ...], told: str
) -> None:
    parts.kill(*killed)
    for call in (
        lambda: module.put(parts.data, photo, "Training/Kiwi/1.jpg"),
        lambda: module.airflow_command(parts.data, ["version"]),
    ):
        with pytest.raises(FruitsError) as raised:
            call()
        assert str(raised.value) == told.format(parts.data)


def test_stop_ends_what_a_killed_part_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scheduler that is killed leaves its workers."""
    with (
        subprocess.Popen(["sleep", "600"], start_new_session=True) as queue,
        subprocess.Popen(
            ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as scheduler,
    ):
        assert scheduler.stdout is not None
        worker = psutil.Process(int(scheduler.stdout.readline()))
        identities = {"queue": module._identity(queue.pid), "scheduler": module._identity(scheduler.pid)}
        (tmp_path / "ui.json").write_text(json.dumps({"processes": identities}))
        scheduler.kill()
        scheduler.wait()
        assert alive(worker), "it has ended with its parent: this test tells nothing"
        module.stop(tmp_path)
        assert "Stopped." in capsys.readouterr().out
        assert not alive(worker)
        assert queue.poll() is not None


def test_ui_waits_for_a_command_that_uses_the_s3_server(tmp_path: Path) -> None:
    with running_stack(tmp_path) as used:
        done = command(tmp_path, "ui")
        assert done.returncode == ExitCode.BAD_INPUT
        assert f"a `make run` or a `fruits` command uses the S3 server on {tmp_path}; wait for it to end" in done.stderr
        assert used.client().list_buckets()
    assert "Stopped." in command(tmp_path, "stop").stdout


def test_ui_takes_the_place_of_the_server_that_a_command_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That server tells no queue of its changes."""

    def reached(_: Path) -> None:
        raise FruitsError("the queue would be started")

    monkeypatch.setattr(module, "start_queue", reached)
    with running_stack(tmp_path):
        assert server_pid(tmp_path) is not None
    with pytest.raises(FruitsError, match="the queue would be started"):
        module.start(tmp_path)
    assert server_pid(tmp_path) is None


def test_processes_that_do_not_listen_are_ended_with_their_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.5)
    script = "trap '' TERM; sleep 600 & sleep 600 & echo ready; wait; wait; sleep 600"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True) as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "ready\n"
        family = [psutil.Process(stubborn.pid), *psutil.Process(stubborn.pid).children()]
        assert len(family) == 3
        module._end([module._identity(stubborn.pid)])
        stubborn.wait()
        assert [process for process in family if alive(process)] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "kiwi.jpg"
    path.write_bytes(b"photo")
    return path


@pytest.mark.parametrize("key", ["", "/Training/Kiwi/1.jpg", "Training/Kiwi/", "a\n.jpg", "\udcff.jpg"])
def test_a_photo_needs_a_key_that_an_object_can_have(tmp_path: Path, photo: Path, key: str) -> None:
    """`make put` without KEY passes an empty one."""
    done = command(tmp_path, "put", str(photo), key)
    assert done.returncode == ExitCode.BAD_INPUT
    assert f"KEY {key!r}: expected an object key such as Training/Kiwi/1.jpg" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_upload_that_is_refused_says_why_and_where_to_look(
    stack: Stack, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_running_stack", lambda _: replace(stack, secret_key=stack.access_key))
    with pytest.raises(FruitsError, match="SignatureDoesNotMatch") as raised:
        module.put(stack.data, photo, "Training/Kiwi/1.jpg")
    assert str(photo) in str(raised.value)
    assert str(stack.data / "s3.log") in str(raised.value)
