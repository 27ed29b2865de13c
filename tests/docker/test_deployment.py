"""docker-compose.yaml as its users meet it: a copy of the checkout, `make up`, real containers.

`make test-compose` runs it. The tests are steps of one deployment's life, in this order; each leaves it running.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from fruits.errors import FruitsError
from local.api import AirflowAPI
from sample_photos import generate
from tests.loading import load_file
from tests.planted import assert_none, files

pytestmark = [pytest.mark.airflow, pytest.mark.compose]

ROOT = Path(__file__).parents[2]
PORTS = ("AIRFLOW_PORT", "SPARK_UI_PORT", "HISTORY_PORT", "S3_PORT")
RUNNING = frozenset(
    {
        "postgres", "api-server", "scheduler", "dag-processor", "triggerer",
        "identify", "spark-master", "spark-worker", "history-server", "s3", "queue",
    }
)  # fmt: skip
PUBLISHED_SECONDS = 900


screenshots = load_file(ROOT / "scripts" / "screenshots.py", "screenshots")
compose = load_file(ROOT / "scripts" / "compose.py", "fruits_compose")


@dataclass(frozen=True)
class Deployment:
    """A checkout with its containers, beside which others may run."""

    folder: Path
    said: str

    @property
    def settings(self) -> dict[str, str]:
        return dict(compose.read_settings(self.folder / ".env"))

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.settings[port]}"

    def make(self, *arguments: str) -> str:
        return succeed(["make", "--no-print-directory", *arguments], self.folder)

    def docker(self, *arguments: str) -> str:
        return succeed(["docker", "compose", "--ansi", "never", *arguments], self.folder)

    def fruits(self, *arguments: str) -> dict[str, Any]:
        """What the command line says, as JSON."""
        return dict(json.loads(self.docker("exec", "-T", "scheduler", "fruits", *arguments, "--json")))

    def publication(self) -> dict[str, Any]:
        return dict(self.fruits("status")["publication"] or {})

    def put(self, photo: Path, key: str) -> None:
        settings = self.settings
        boto3.client(
            "s3",
            endpoint_url=self.url("S3_PORT"),
            region_name="us-east-1",
            aws_access_key_id=settings["LOCAL_S3_ACCESS_KEY"],
            aws_secret_access_key=settings["LOCAL_S3_SECRET_KEY"],
        ).upload_file(str(photo), "fruits", key)

    @property
    def airflow(self) -> AirflowAPI:
        """Airflow's API, as its administrator sees it."""
        return AirflowAPI(self.url("AIRFLOW_PORT"), "admin", self.settings["AIRFLOW_ADMIN_PASSWORD"])


def run(command: list[str], folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "COMPOSE_PROJECT_NAME": "fruits-test", **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def succeed(command: list[str], folder: Path) -> str:
    done = run(command, folder)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def eventually(look: Callable[[], bool], what: str, seconds: float = PUBLISHED_SECONDS) -> float:
    """Wait until ``look`` is true; returns the seconds it took."""
    started = time.monotonic()
    while not look():
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds} s"
        time.sleep(2)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Drawn photos of six kinds, and the broken ones, as a folder."""
    folder = tmp_path_factory.mktemp("photos")
    generate(folder, kinds=6, per_kind_train=8, per_kind_test=3)
    return folder


@pytest.fixture(scope="module")
def deployment(docker_engine, tmp_path_factory, photos) -> Iterator[Deployment]:
    """`make up` in a new copy of the checkout, with photos; all of it is removed in the end."""
    folder = tmp_path_factory.mktemp("deployment")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    text = (folder / ".env.example").read_text()
    # The cluster featurizes the photos that are there, and a dropped one is left to the driver.
    values = {"FRUITS_SPARK_DRIVER_MEMORY": "1g", "FRUITS_FEW_PHOTOS": "50"}
    values |= {name: str(free_port()) for name in PORTS}
    (folder / ".env").write_text(compose.with_values(text, values))
    remove = ["docker", "compose", "--profile", "*", "down", "--volumes", "--timeout", "5"]
    run(remove, folder)  # what an interrupted test left
    done = run(["make", "--no-print-directory", "up", f"IMAGES={photos}"], folder)
    try:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        yield Deployment(folder, done.stdout)
    finally:
        run(remove, folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_up_says_how_to_log_in_and_shows_no_secret(deployment):
    settings = deployment.settings
    assert f"Airflow UI     {deployment.url('AIRFLOW_PORT')}" in deployment.said
    assert "password       make password" in deployment.said
    assert deployment.make("password").strip() == settings["AIRFLOW_ADMIN_PASSWORD"]
    assert not any(settings[name] in deployment.said for name in compose.SECRETS)


def test_the_ui_takes_the_generated_password_and_no_other(deployment):
    with screenshots.browser() as driver:
        ui = deployment.airflow
        screenshots.log_in(driver, ui)
        driver.get(f"{ui.url}/dags/fruit_features")
        screenshots.wait_until(driver, lambda: screenshots.button(driver, "Trigger"), "the DAG's page")
    with pytest.raises(FruitsError, match="401"):
        replace(ui, password=ui.user).ask("dags")


def test_every_part_runs_as_nobody_special_with_one_python(deployment):
    states = deployment.docker("ps", "--format", "{{.Service}} {{.Health}}").split("\n")
    assert set(filter(None, states)) == {f"{name} healthy" for name in RUNNING}
    for name in RUNNING:
        assert deployment.docker("exec", "-T", name, "id", "-u").strip() != "0", name
    version = "import sys, platform; print(platform.python_version())"
    jobs, airflow = "/opt/fruits/.venvs/jobs/bin/python", "/opt/fruits/.venvs/airflow/bin/python"
    pythons = {
        deployment.docker("exec", "-T", service, python, "-c", version)
        for service, python in (("scheduler", airflow), ("scheduler", jobs), ("spark-worker", jobs))
    }
    assert len(pythons) == 1


def test_code_can_not_be_changed_from_inside(deployment):
    done = run(["docker", "compose", "exec", "-T", "scheduler", "touch", "/opt/fruits/dags/x.py"], deployment.folder)
    assert "Read-only file system" in done.stderr


def test_ports_are_on_this_host_only(deployment):
    published = re.findall(r"(\S+)->", deployment.docker("ps", "--format", "{{.Ports}}"))
    assert len(published) == len(PORTS)
    assert all(one.startswith("127.0.0.1:") for one in published)


def test_the_photos_that_were_there_are_published_by_the_cluster(deployment, photos):
    files = sum(1 for path in photos.rglob("*") if path.is_file())
    seconds = eventually(lambda: objects(deployment) == files, "a first publication")
    print(f"\nfirst publication, {files} photos: {seconds:.0f} s after `make up`")
    applications = httpx.get(f"{deployment.url('HISTORY_PORT')}/api/v1/applications", timeout=30).json()
    names = {one["name"] for one in applications}
    assert {"fruits featurize", "fruits pca"} <= names
    assert "fruits validate" not in names  # so few rows are the driver's own work


def test_a_dropped_photo_is_published_and_nobody_touches_anything(deployment, photos):
    under_way = "dags/fruit_features/dagRuns?state=queued&state=running"
    eventually(
        lambda: deployment.airflow.ask(under_way)["total_entries"] == 0, "the end of the runs that would take the photo"
    )
    before, objects_before, started = deployment.publication(), objects(deployment), time.monotonic()
    deployment.put(next(photos.glob("Test/*/*.jpg")), "Training/Kiwi/dropped.jpg")
    eventually(lambda: objects(deployment) == objects_before + 1, "the dropped photo")
    print(f"\nevent: one photo, from PUT to publication: {time.monotonic() - started:.0f} s")
    after = deployment.publication()
    assert after["sequence"] == before["sequence"] + 1
    assert after["run_id"].startswith("asset_triggered")


def test_a_photo_is_identified_through_airflow(deployment, photos):
    """The service takes the publication over within its period of looking."""
    photo, published = next(photos.glob("Training/*/*.jpg")), deployment.publication()["publication_id"]
    headers = {"Content-Type": "image/jpeg"}
    url = f"{deployment.url('AIRFLOW_PORT')}/fruits/identify"
    assert httpx.post(url, content=photo.read_bytes(), headers=headers, timeout=60).status_code == 401
    headers["Authorization"] = f"Bearer {deployment.airflow.token}"

    def answer() -> dict[str, Any]:
        return dict(httpx.post(url, content=photo.read_bytes(), headers=headers, timeout=60).json())

    eventually(lambda: answer().get("publication_id") == published, "an answer of the publication", 120)
    assert answer()["nearest"][0]["label"] == photo.parent.name


def test_no_secret_is_in_what_the_containers_leave(deployment, tmp_path):
    """After real runs: databases with XCom, logs of services, tasks, drivers and executors, event logs, arguments."""
    for folder in ("scheduler:/opt/airflow/logs", "spark-worker:/opt/spark/work", "history-server:/opt/spark/events"):
        deployment.docker("cp", folder, str(tmp_path / folder.partition(":")[0]))
    left = files(tmp_path)
    for what in ("task_id=featurize/", "/stderr", "/events_"):
        assert any(what in name for name in left), what
    assert any(b"SparkListenerEnvironmentUpdate" in text for name, text in left.items() if "/events_" in name)
    containers = deployment.docker("ps", "--all", "--quiet").split()
    shown = "{{json .Config.Labels}} {{json .Config.Entrypoint}} {{json .Config.Cmd}}"
    dump = ("exec", "-T", "postgres", "pg_dump", "-U", "postgres")
    texts = {
        **{database: deployment.docker(*dump, database) for database in compose.DATABASES},
        "logs": deployment.docker("logs"),
        "arguments": deployment.docker("top"),
        "labels": succeed(["docker", "inspect", "--format", shown, *containers], deployment.folder),
    }
    settings = deployment.settings
    secrets = [settings[name] for name in compose.SECRETS if name != "LOCAL_S3_ACCESS_KEY"]  # which is but a name
    assert_none(secrets, {**left, **texts})


@pytest.mark.slow
def test_a_photo_that_comes_while_all_is_restarted_is_not_lost(deployment, photos):
    before = objects(deployment)
    deployment.docker("stop", "queue")  # whom the S3 server tells, and who would tell Airflow
    deployment.put(next(photos.glob("Test/*/*.jpg")), "Training/Kiwi/unheard.jpg")
    deployment.docker("restart", *sorted(RUNNING - {"queue"}))
    deployment.docker("start", "queue")
    eventually(lambda: objects(deployment) == before + 1, "the photo nobody heard of")


@pytest.mark.slow
def test_a_second_worker_joins_by_scaling(deployment):
    deployment.docker("up", "--detach", "--no-recreate", "--scale", "spark-worker=2", "spark-worker")
    page = f"{deployment.url('SPARK_UI_PORT')}/json/"
    eventually(lambda: httpx.get(page, timeout=30).json()["aliveworkers"] == 2, "two workers", 120)


@pytest.mark.slow
def test_both_databases_can_be_backed_up_and_restored_and_an_old_catalog_is_rebuilt(deployment):
    before = deployment.publication()
    deployment.make("backup")
    (folder,) = (deployment.folder / "backups").iterdir()
    for sequence in (before["sequence"] - 1, before["sequence"]):  # two publications that the backup does not know
        deployment.fruits("rollback", str(sequence), "--yes")
    newest = deployment.publication()
    superuser = ("exec", "-T", "postgres", "psql", "-U", "postgres", "-v", "ON_ERROR_STOP=1")
    deployment.docker(*superuser, "-d", "catalog", "-c", "DELETE FROM iceberg_tables")
    deployment.docker(*superuser, "-d", "airflow", "-c", "DELETE FROM connection")
    assert run(["docker", "compose", "exec", "-T", "scheduler", "fruits", "status"], deployment.folder).returncode == 2
    deployment.make("restore", f"BACKUP={folder}")
    deployment.make("up")
    assert deployment.publication() == before
    doctor = run(["docker", "compose", "exec", "-T", "scheduler", "fruits", "doctor"], deployment.folder)
    assert "the catalog is older than the lake" in doctor.stdout
    assert deployment.fruits("catalog", "rebuild", "--yes")["changed"]
    assert deployment.publication() == newest
    connections = deployment.airflow.ask("connections")["connections"]
    assert {"spark_default", "aws_default"} <= {one["connection_id"] for one in connections}


@pytest.mark.slow
def test_down_and_up_keep_all(deployment, photos):
    before = deployment.publication()
    runs = deployment.airflow.ask("dags/fruit_features/dagRuns?limit=100")["total_entries"]
    deployment.make("down")
    assert deployment.docker("ps", "--quiet") == ""
    deployment.make("up")
    assert deployment.publication() == before
    assert deployment.airflow.ask("dags/fruit_features/dagRuns?limit=100")["total_entries"] >= runs > 0
    assert deployment.airflow.ask("connections")["total_entries"] >= 2
    deployment.put(next(photos.glob("Test/*/*.jpg")), "Training/Kiwi/again.jpg")
    eventually(lambda: objects(deployment) == before["features"] + before["quarantined"] + 1, "a photo after it")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"POSTGRES_PASSWORD": "another-than-before"}, "The database keeps the password that it was made with"),
        ({"LOCAL_S3_SECRET_KEY": "another-than-before"}, "SignatureDoesNotMatch"),
        ({"FRUITS_EVENT_QUEUE": "http://queue:9324/123456789012/none"}, "check FRUITS_EVENT_QUEUE"),
        ({"FRUITS_N_COMPONENTS": "some"}, "FRUITS_N_COMPONENTS is 'some': expected a count"),
    ],
    ids=["database password", "denied bucket", "no queue", "malformed setting"],
)
def test_what_is_wrong_stops_the_start_with_a_message(deployment, variables, expected):
    before = deployment.publication()
    done = run(["docker", "compose", "run", "--rm", "--no-deps", "-T", "init"], deployment.folder, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stdout
    assert "Traceback" not in done.stdout
    assert deployment.publication() == before


def objects(deployment: Deployment) -> int:
    """Objects that readers see as features, or in quarantine."""
    query = "SELECT metadata_location FROM iceberg_tables WHERE table_name = 'publications'"
    psql = ["psql", "--username", "postgres", "--dbname", "catalog", "--tuples-only", "--command", query]
    found = run(["docker", "compose", "exec", "-T", "postgres", *psql], deployment.folder)
    return _objects(deployment, found.stdout) if found.stdout.strip() else 0  # no such table yet: a new catalog


@cache
def _objects(deployment: Deployment, _metadata: str) -> int:
    """Asked once for each state of the table: asking costs seconds of a core, which the chain needs."""
    published = deployment.publication()
    return int(published["features"] + published["quarantined"]) if published else 0
