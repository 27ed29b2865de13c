"""`make ui` and `make stop` for real: Airflow's own scheduler, triggerer and API server, on this machine only."""

import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from fruits.backbones.card import Card, Preprocessing
from fruits.backbones.stage import _registry_path, staged_card
from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.settings import Settings
from fruits.stores import lake_store, write_json
from local.queue import EventQueue
from local.stack import Stack, environment_of
from sample_photos import photo_key
from tests.planted import PLANTED, SIGNATURE, TOKEN, assert_none, files, rows
from tests.running_ui import DAG, UI, alive, command, logs, wait_for

pytestmark = [pytest.mark.airflow, pytest.mark.heavy, pytest.mark.story]

SETTLE_SECONDS = 8


@pytest.fixture
def card(ui: UI) -> Card:
    """A backbone's card where `prepare` looks for it: a dry run needs no more, and building one takes half a minute."""
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
    with environment_of(ui.stack), pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        settings = Settings.load()
        Lake.open(settings)  # a dry run makes no lake
        store = lake_store(settings, "models")
        write_json(store, f"{card.model_id}/card.json", card.to_document())
        write_json(store, _registry_path(settings), {"model_id": card.model_id})
        assert staged_card(settings) == card
    return card


def test_the_ui_answers_and_asks_who_it_is(ui: UI) -> None:
    page = httpx.get(ui.url)
    assert page.status_code == 200
    assert "<html" in page.text
    assert httpx.get(f"{ui.url}/auth/login/", follow_redirects=True).status_code == 200
    assert httpx.get(f"{ui.url}/api/v2/{DAG}").status_code == 401
    guess = {"username": ui.api.user, "password": "guess"}
    assert httpx.post(f"{ui.url}/auth/token", json=guess).status_code == 401
    assert ui.api.ask(DAG)["is_paused"]


def test_every_part_of_airflow_is_healthy(ui: UI) -> None:
    health = ui.api.ask("monitor/health")
    parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    assert {part: health[part]["status"] for part in parts} == dict.fromkeys(parts, "healthy")


def test_nobody_else_on_the_network_is_served(ui: UI) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port, process.name())
        for process in ui.family()
        for connection in connections(process)
        if connection.status == psutil.CONN_LISTEN
    }
    queue = EventQueue.read(ui.data)
    expected = {int(url.rpartition(":")[2]) for url in (ui.url, ui.stack.endpoint, queue.endpoint, ui.shown("service"))}
    assert expected | {queue.webhook_port} <= {port for _, port, _ in listening}
    assert {address for address, _, _ in listening} == {"127.0.0.1"}, listening


def connections(process: psutil.Process) -> list[Any]:
    """Its connections; none when it has ended since."""
    with suppress(psutil.NoSuchProcess):
        return list(process.net_connections("inet"))
    return []


def test_a_second_ui_says_that_one_is_running(ui: UI) -> None:
    before = (ui.data / "ui.json").read_text()
    again = command(ui.data, "ui")
    assert again.returncode == 0
    assert "It is running already." in again.stdout
    assert ui.url in again.stdout
    assert ui.api.password in again.stdout
    assert (ui.data / "ui.json").read_text() == before


def test_photos_that_are_put_into_the_bucket_wake_the_dag(ui: UI, card: Card) -> None:
    """S3 server, webhook, bridge, queue, triggerer, run. What comes while that is active is one run more at most."""
    client = ui.stack.client()
    keys = {f"events/Pomme d'été/{number} a+b%20.jpg" for number in range(12)}
    # A run waiting to be started by earlier events would do for this test's, too.
    assert ui.api.request(f"api/v2/{DAG}/assets/queuedEvents", "DELETE").status_code in (204, 404)
    queue = EventQueue.read(ui.data)
    queue.client().purge_queue(QueueUrl=queue.url)
    ui.api.ask(DAG, "PATCH", {"is_paused": False})
    try:
        for key in keys:
            client.put_object(Bucket="fruits", Key=key, Body=b"photo")
        runs = wait_for(lambda: woken(ui, keys))
        assert len(runs) <= 2, "one that works, and one that waits for its turn"
        assert {(run["data_interval_start"], run["logical_date"]) for run in runs} == {(None, None)}
    finally:
        come_to_rest(ui)


def woken(ui: UI, keys: set[str]) -> list[dict[str, Any]]:
    """The runs that events of these keys started."""
    runs = ui.api.ask(f"{DAG}/dagRuns")["dag_runs"]
    started = [run for run in runs if run["run_type"] == "asset_triggered" and run["start_date"]]
    return [run for run in started if any(keys & set(event["keys"]) for event in payloads(ui, run))]


def payloads(ui: UI, run: dict[str, Any]) -> list[dict[str, Any]]:
    """What the events tell by which a run was started: how many messages, and the first few object keys."""
    path = f"{DAG}/dagRuns/{quote(run['dag_run_id'])}/upstreamAssetEvents"
    return [event["extra"]["payload"] for event in ui.api.ask(path)["asset_events"]]


def come_to_rest(ui: UI) -> None:
    """Switch the DAG off and end its runs, as a person does who has seen enough."""
    ui.api.ask(DAG, "PATCH", {"is_paused": True})
    for run in ui.api.ask(f"{DAG}/dagRuns?state=running&state=queued")["dag_runs"]:
        ui.api.ask(f"{DAG}/dagRuns/{quote(run['dag_run_id'])}", "PATCH", {"state": "failed"})


def test_a_run_asked_for_over_the_api_waits_for_photos_and_for_quiet(ui: UI, card: Card) -> None:
    """Scheduler, workers and triggerer for real: both sensors are deferred before the plan is made."""
    conf = {"prefix": "asked/", "sensor_timeout": 600, "dry_run": True, "settle_seconds": SETTLE_SECONDS}
    # Switching the DAG on starts its scheduled run as well, and runs take turns: this one is to be the first.
    asked = {"logical_date": None, "run_after": "2026-01-01T00:00:00Z", "conf": conf}
    run = f"{DAG}/dagRuns/{ui.api.ask(f'{DAG}/dagRuns', 'POST', asked)['dag_run_id']}"
    ui.api.ask(DAG, "PATCH", {"is_paused": False})
    try:
        seen = follow(ui, run, until={"wait_for_images": "deferred"})
        assert seen["prepare"][-1] == "success"
        client = ui.stack.client()

        def upload() -> None:
            for number in range(3):
                key = f"asked/{photo_key('Orange', 'Training', number)}"
                client.put_object(Bucket="fruits", Key=key, Body=b"photo")

        follow(ui, run, until={"wait_for_images": "success"}, meanwhile=upload)
        uploaded = time.monotonic()
        seen = follow(ui, run, until={"publish": "skipped"})
        assert "deferred" in seen["uploads_settled"]
        assert time.monotonic() - uploaded >= SETTLE_SECONDS - 1, "S3 tells LastModified to the second"
        assert seen["featurize"] == ["skipped"]
        counts = ui.api.ask(f"{run}/taskInstances/plan/xcomEntries/counts")["value"]
        assert (counts["create"], counts["update"], counts["delete"]) == (3, 0, 0)
        assert wait_for(lambda: ended(ui, run)) == "success"
    finally:
        come_to_rest(ui)


def ended(ui: UI, run: str) -> str | None:
    """The state of a run that has ended."""
    state = str(ui.api.ask(run)["state"])
    return state if state in ("success", "failed") else None


def follow(
    ui: UI, run: str, *, until: dict[str, str], meanwhile: Callable[[], None] = lambda: None, seconds: float = 120
) -> dict[str, list[str]]:
    """The states each task was seen in, in order, until tasks are in the states asked for."""
    seen: dict[str, list[str]] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        meanwhile()
        for instance in ui.api.ask(f"{run}/taskInstances")["task_instances"]:
            states = seen.setdefault(instance["task_id"], [])
            if instance["state"] and states[-1:] != [instance["state"]]:
                states.append(instance["state"])
        if all(seen.get(task, [])[-1:] == [state] for task, state in until.items()):
            return seen
        assert not any(states[-1:] == ["failed"] for states in seen.values()), f"{seen}\n{logs(ui.data)}"
        time.sleep(0.3)
    raise AssertionError(f"not {until} after {seconds} s: {seen}\n{logs(ui.data)}")


def test_a_run_beside_the_ui_uses_its_s3_server_and_says_before_spark_what_can_not_work(ui: UI, tmp_path: Path) -> None:
    photo, weights = tmp_path / "photos" / "beside" / "Apple" / "1.jpg", tmp_path / "other.pth"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"photo")
    weights.write_bytes(b"these are no weights")
    done = command(ui.data, "run", "--images", str(tmp_path / "photos"), FRUITS_WEIGHTS=str(weights))
    assert done.returncode == ExitCode.BAD_INPUT
    assert f"S3 server on {ui.stack.endpoint}" in done.stdout
    assert re.findall(r"^> (\w+)$", done.stdout, re.MULTILINE) == ["prepare"], "no job was started"
    assert str(weights) in done.stderr
    assert "efficientnet" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3, done.stderr
    assert ui.stack.secret_key not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    client = ui.stack.client()
    assert client.get_object(Bucket="fruits", Key="beside/Apple/1.jpg")["Body"].read() == b"photo"


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
    assert any(fnmatch(name, "logs/run-*.log") for name in left)
    assert_none((ui.stack.secret_key, ui.api.password, SIGNATURE, TOKEN), {**database, **left})


def test_stop_ends_what_was_started_and_nothing_else(ui: UI, stack: Stack, sleep: Callable[[], Any]) -> None:
    """Last in this file. Another stack's S3 server, and any other process, go on."""
    bystander = sleep()
    family = ui.family()
    assert {"weed"} < set(filter(None, map(name, family)))
    done = command(ui.data, "stop")
    assert done.returncode == 0
    assert "Stopped." in done.stdout
    assert [process for process in family if alive(process)] == []
    assert bystander.poll() is None
    assert stack.client().list_buckets()
    again = command(ui.data, "stop")
    assert again.returncode == 0
    assert "Nothing is running." in again.stdout


def name(process: psutil.Process) -> str | None:
    """Its name; None when it has ended since."""
    with suppress(psutil.NoSuchProcess):
        return str(process.name())
    return None
