"""`make up` stops early, in plain words, at whatever is not as it should be; docker-compose.yaml keeps its promises.

What the containers do is tested by `make test-compose`, which needs Docker.
"""

import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from fruits.settings import Settings
from tests.loading import load_file

pytestmark = pytest.mark.airflow

REPOSITORY = Path(__file__).resolve().parents[2]


compose = load_file(REPOSITORY / "scripts" / "compose.py", "fruits_compose")

ANSWERS = {
    "version": "28.2.2",
    "compose version": "2.26.1",
    "buildx": "github.com/docker/buildx v0.13.1 788433953",
    "info": "x86_64 16000000000",
    "volume": "",
    "compose ps": "",
}


ON_AWS = {"COMPOSE_PROFILES": "postgres", "FRUITS_S3_ENDPOINT": "", "FRUITS_EVENT_QUEUE": ""}


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout of its own, with the real .env.example, whose ports are free ones."""
    text = (REPOSITORY / ".env.example").read_text()
    for name in compose.PORTS:
        text = compose.with_values(text, {name: str(free_port())})
    (tmp_path / ".env.example").write_text(text)
    for name in compose.CODE:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(compose, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """A stand-in for Docker that answers as told and notes what it was asked to do."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(script: str = "", **answers: str) -> Path:
        cases = {**ANSWERS, **{name.replace("_", " "): answer for name, answer in answers.items()}}
        lines = "\n".join(f'"{question} "*|"{question}") echo "{answer}";;' for question, answer in cases.items())
        asked = tmp_path / "asked"
        (folder / "docker").write_text(f'#!/bin/sh\necho "$*" >> {asked}\n{script}\ncase "$*" in\n{lines}\nesac\n')
        (folder / "docker").chmod(0o755)
        return asked

    return make


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def up(capsys) -> tuple[int, str]:
    code = compose.main(["up"])
    return code, capsys.readouterr().err


def settings_with(checkout: Path, **values: str) -> None:
    (checkout / ".env").write_text(compose.with_values((checkout / ".env.example").read_text(), values))


# The way it should go


def test_a_first_start_makes_secrets_that_only_the_owner_reads_and_says_how_to_log_in(checkout, docker, capsys):
    asked = docker()
    assert compose.main(["up"]) == 0
    said = capsys.readouterr().out
    file = checkout / ".env"
    settings = compose.read_settings(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    values = [settings[name] for name in compose.SECRETS]
    assert all(len(value) >= 40 for value in values)
    assert len(set(values)) == len(values)
    assert f"http://127.0.0.1:{settings['AIRFLOW_PORT']}" in said
    assert "make password" in said
    assert not any(value in said for value in values)
    did = asked.read_text()
    assert did.index("compose build") < did.index("compose up --detach --wait")


def test_a_second_start_changes_no_secret(checkout, docker):
    docker()
    assert compose.main(["up"]) == 0
    first = (checkout / ".env").read_text()
    assert compose.main(["up"]) == 0
    assert (checkout / ".env").read_text() == first


def test_secrets_that_are_missing_are_added_and_the_rest_stays(checkout, docker):
    docker()
    settings_with(checkout, FRUITS_BUCKET="mine")
    text = (checkout / ".env").read_text().replace("SPARK_SECRET=\n", "")
    (checkout / ".env").write_text(text + "FRUITS_BACKBONE=MobileNetV2\n")
    assert compose.main(["up"]) == 0
    settings = compose.read_settings(checkout / ".env")
    assert len(settings["SPARK_SECRET"]) == 48
    assert (settings["FRUITS_BUCKET"], settings["FRUITS_BACKBONE"]) == ("mine", "MobileNetV2")


def test_on_aws_no_key_is_made(checkout, docker):
    docker()
    settings_with(checkout, **ON_AWS)
    assert compose.main(["up"]) == 0
    settings = compose.read_settings(checkout / ".env")
    assert {name for name in settings if name.startswith("LOCAL_") and settings[name]} == set()


def test_the_password_is_told_to_who_may_read_the_file(checkout, docker, capsys):
    docker()
    compose.main(["up"])
    capsys.readouterr()
    assert compose.main(["password"]) == 0
    assert capsys.readouterr().out.strip() == compose.read_settings(checkout / ".env")["AIRFLOW_ADMIN_PASSWORD"]


# Bad input: each stops before anything is started


@pytest.mark.parametrize(
    ("script", "answers", "expected"),
    [
        ("echo no route >&2; exit 1", {}, "Docker's engine does not answer: no route"),
        ('[ "$1" = compose ] && exit 1', {}, "Docker's compose does not answer"),
        ('[ "$1" = buildx ] && exit 1', {}, "Docker's buildx does not answer"),
        ("", {"version": "24.0.7"}, "Docker's engine 24.0 is too old; 25.0 or newer"),
        ("", {"compose_version": "v2.10.0"}, "Docker's compose 2.10 is too old; 2.24 or newer"),
        ("", {"info": "x86_64 4000000000"}, "Docker has 4.0 GB of memory; 7.5 GB or more are needed"),
        ("", {"info": "aarch64 16000000000"}, "Docker runs on aarch64; x86-64 is needed"),
    ],
    ids=["engine", "compose", "buildx", "old engine", "old compose", "memory", "machine"],
)
def test_a_machine_that_is_not_up_to_it_is_told_why(docker, capsys, script, answers, expected):
    asked = docker(script, **answers)
    code, said = up(capsys)
    assert code == 2
    assert expected in said
    assert "compose build" not in asked.read_text()


def test_no_docker_at_all_is_told_with_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = up(capsys)
    assert code == 2
    assert "Docker is not installed" in said
    assert "apt-get install" in said


def test_a_port_that_is_taken_is_told_with_its_variable(checkout, docker, capsys):
    asked = docker()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings_with(checkout, AIRFLOW_PORT=str(port))
        code, said = up(capsys)
    assert code == 2
    assert f"AIRFLOW_PORT={port}: Address already in use" in said
    assert "set AIRFLOW_PORT in .env to a free port" in said
    assert "compose build" not in asked.read_text()


def test_a_port_that_is_our_own_is_no_obstacle(checkout, docker):
    docker(compose_ps="api-server")
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen()
        settings_with(checkout, AIRFLOW_PORT=str(ours.getsockname()[1]))
        assert compose.main(["up"]) == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"SPARK_WORKER_MEMORY": "2 GB"}, "SPARK_WORKER_MEMORY=2 GB: expected a size such as 2g"),
        ({"SPARK_WORKER_CORES": "many"}, "SPARK_WORKER_CORES=many: expected a count"),
        ({"SPARK_MASTER": "cluster"}, "SPARK_MASTER=cluster: expected spark://host:7077"),
        ({"COMPOSE_PROFILES": "locale"}, "COMPOSE_PROFILES=locale: expected local, postgres"),
        ({"AIRFLOW_FERNET_KEY": "short"}, "AIRFLOW_FERNET_KEY=***: expected 32 bytes"),
        ({"AIRFLOW_ADMIN_PASSWORD": "admin"}, "AIRFLOW_ADMIN_PASSWORD=***: expected 16 or more"),
        ({"POSTGRES_PASSWORD": "p@ss'word"}, "POSTGRES_PASSWORD=***: expected 8 or more"),
        (
            {**ON_AWS, "LOCAL_S3_ACCESS_KEY": "0123456789abcdef"},
            "LOCAL_S3_ACCESS_KEY: AWS would get these keys instead",
        ),
        ({"AIRFLOW_PORT": "http"}, "AIRFLOW_PORT=http: expected a port such as 8080"),
        ({"AIRFLOW_PORT": "70000"}, "AIRFLOW_PORT=70000"),
        (
            {"SPARK_WORKER_MEMORY": "16g"},
            "SPARK_WORKER_MEMORY=16g: it has to fit into SPARK_WORKER_CONTAINER_MEMORY=4g",
        ),
        ({"SCHEDULER_MEMORY": "2048m"}, "FRUITS_SPARK_DRIVER_MEMORY=2g: it has to fit into SCHEDULER_MEMORY=2048m"),
    ],
)
def test_a_variable_that_is_wrong_is_named_with_what_was_expected(checkout, docker, capsys, values, expected):
    asked = docker()
    settings_with(checkout, **values)
    code, said = up(capsys)
    assert code == 2
    assert expected in said
    assert "compose build" not in asked.read_text()


@pytest.mark.parametrize("line", ["FRUITS_BUCKET fruits", 'FRUITS_BUCKET="fruits"', "A=$HOME", "B=1 # one", "b=1"])
def test_a_line_that_is_no_variable_is_named_by_its_number(checkout, docker, capsys, line):
    docker()
    (checkout / ".env").write_text(f"# a comment\n\n{line}\n")
    code, said = up(capsys)
    assert code == 2
    assert ".env, line 3: expected NAME=value" in said


def test_code_that_the_containers_can_not_read_is_told(checkout, docker, capsys):
    docker()
    (checkout / "fruits" / "errors.py").touch(mode=0o600)
    code, said = up(capsys)
    assert code == 2
    assert (
        "errors.py: other users can't read it, and the containers run as another user; chmod -R o+rX dags docker fruits"
        in said
    )


def test_a_lost_env_is_asked_for_where_there_is_data(checkout, docker, capsys):
    asked = docker(volume="fruits_postgres-data")
    code, said = up(capsys)
    assert code == 2
    assert "there is a database, fruits_postgres-data" in said
    assert "Put the old file back" in said
    assert not (checkout / ".env").exists()
    assert "compose build" not in asked.read_text()


def test_a_line_that_is_missing_is_added_as_the_example_has_it(checkout, docker, capsys):
    docker()
    settings_with(checkout)
    text = (checkout / ".env").read_text().replace("FRUITS_BUCKET=fruits\n", "")
    (checkout / ".env").write_text(text)
    assert compose.main(["up"]) == 0
    assert compose.read_settings(checkout / ".env")["FRUITS_BUCKET"] == "fruits"
    assert "New in .env: FRUITS_BUCKET" in capsys.readouterr().out


def test_the_shells_variables_do_not_win_over_those_that_were_checked(checkout, docker, monkeypatch):
    seen = checkout / "seen"
    docker(f'[ "$1 $2" = "compose up" ] && echo "$FRUITS_BUCKET|$COMPOSE_PROJECT_NAME" >> {seen}')
    monkeypatch.setenv("FRUITS_BUCKET", "the-shells")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "mine")
    assert compose.main(["up"]) == 0
    assert seen.read_text() == "|mine\n"


def test_photos_are_not_put_into_a_bucket_of_aws(checkout, docker, capsys):
    docker()
    settings_with(checkout, **ON_AWS)
    assert compose.main(["up", "--images", str(checkout)]) == 2
    assert "upload to yours" in capsys.readouterr().err


def test_a_folder_of_photos_that_is_not_there_is_told_first(capsys):
    assert compose.main(["up", "--images", "/no/such/folder"]) == 2
    assert "IMAGES=/no/such/folder: no such folder" in capsys.readouterr().err


def test_when_a_part_does_not_come_up_its_last_words_are_told(docker, capsys):
    script = 'case "$*" in *"up --detach"*) exit 1;; *logs*) echo "init: bucket gone"; exit;; esac'
    docker(script, compose_ps="init exited 2 ")
    code, said = up(capsys)
    assert code == 2
    assert "init (exited, exit code 2) said:\ninit: bucket gone" in said
    assert "run `make up` again" in said


@pytest.mark.parametrize("what", ["pg_dump", "pg_restore"], ids=["half a dump", "a dump that can't be read"])
def test_a_back_up_that_fails_is_none(checkout, docker, capsys, what):
    docker(f'case "$*" in *"postgres {what}"*) echo half a dump; exit 1;; esac')
    settings_with(checkout)
    assert compose.main(["backup", str(checkout / "backups" / "1")]) == 2
    assert "database airflow could not be dumped" in capsys.readouterr().err
    assert not (checkout / "backups" / "1").exists()


def test_a_back_up_is_its_owners_and_overwrites_none(checkout, docker, capsys):
    docker()
    settings_with(checkout)
    folder = checkout / "backups" / "1"
    assert compose.main(["backup", str(folder)]) == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"airflow.dump", "catalog.dump"}
    assert compose.main(["backup", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_with_rds_a_snapshot_is_asked_for(checkout, docker, capsys, command):
    docker()
    settings_with(checkout, COMPOSE_PROFILES="local", POSTGRES_HOST="rds")
    assert compose.main([command, str(checkout / "1")]) == 2
    assert "take a snapshot of RDS" in capsys.readouterr().err


def test_a_restore_that_fails_leaves_the_databases_as_they_are(checkout, docker, capsys):
    asked = docker('case "$*" in *"postgres pg_restore"*catalog*) exit 1;; esac')
    settings_with(checkout)
    for name in ("airflow", "catalog"):
        (checkout / f"{name}.dump").touch()
    assert compose.main(["restore", str(checkout)]) == 2
    assert "both databases are as they were" in capsys.readouterr().err
    assert "RENAME" not in asked.read_text()


def test_what_is_no_back_up_is_not_restored(checkout, docker, capsys):
    asked = docker()
    settings_with(checkout)
    assert compose.main(["restore", str(checkout)]) == 2
    assert "airflow.dump: no such file" in capsys.readouterr().err
    assert "exec" not in asked.read_text()


# docker-compose.yaml


@pytest.fixture(scope="module")
def file() -> dict[str, Any]:
    return dict(yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text()))


def running(file: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in file["services"].items() if one["restart"] != "no"}


def test_every_service_that_runs_is_watched_restarted_bounded_and_has_its_log_rotated(file):
    assert len(running(file)) == 11
    for name, service in running(file).items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert service["mem_limit"], name
        assert service["logging"]["options"]["max-size"], name


def test_nothing_listens_but_on_this_host_and_nothing_gains_rights(file):
    for name, service in file["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name


def test_code_is_mounted_read_only_and_data_is_in_named_volumes(file):
    for name, service in file["services"].items():
        for volume in service.get("volumes", ()):
            source, *_, mode = volume.split(":")
            if source.startswith("."):
                assert mode == "ro", f"{name}: {volume}"
            else:
                assert source in file["volumes"], f"{name}: {volume}"


def test_no_image_is_taken_as_it_comes(file):
    images = {service["image"] for service in file["services"].values()}
    foreign = {image for image in images if not image.startswith("${COMPOSE_PROJECT_NAME}-")}
    assert foreign == {"${POSTGRES_IMAGE:-postgres:17-bookworm}"}
    dockerfile = (REPOSITORY / "docker" / "Dockerfile").read_text()
    bases = set(re.findall(r"^(?:FROM|ARG PYTHON_IMAGE=) ?(\S+)", dockerfile, re.MULTILINE))
    assert bases == {"python:3.11-slim-bookworm", "${PYTHON_IMAGE}", "jobs"}
    assert set(re.findall(r"^USER (\w+)", dockerfile, re.MULTILINE)) == {"fruits"}


def test_every_setting_reaches_airflow(file):
    environment = file["services"]["scheduler"]["environment"]
    assert {f"FRUITS_{name.upper()}" for name in Settings.model_fields} <= environment.keys()


def test_secrets_reach_those_only_who_need_them(file):
    def services_with(text: str) -> set[str]:
        return {name for name, one in file["services"].items() if text in str(one.get("environment", ""))}

    airflow = {"init", "api-server", "scheduler", "dag-processor", "triggerer", "fruits"}
    assert services_with("${POSTGRES_PASSWORD") == {"postgres", "init"}
    assert services_with("${AIRFLOW_ADMIN_PASSWORD") == {"init"}
    for shared in ("${AIRFLOW_FERNET_KEY", "${AIRFLOW_JWT_SECRET", "${AIRFLOW_SECRET_KEY"):
        assert services_with(shared) == airflow
    assert services_with("${LOCAL_S3_SECRET_KEY") == airflow | {"identify", "spark-worker", "s3"}


def test_no_secret_is_in_a_label_and_a_changed_one_makes_containers_again(file, checkout, docker):
    digests = re.findall(r"\$\{(\w+)", str([service.get("labels", {}) for service in file["services"].values()]))
    assert set(digests) == {"CONFIG_DIGEST"}
    contents = " ".join(one["content"] for one in file["configs"].values())
    assert set(re.findall(r"\$\{(\w+)", contents)) == set(compose.CONFIGS)
    for service in file["services"].values():
        assert bool(service.get("configs")) <= ("fruits.config" in service.get("labels", {}))

    docker()

    def digest(**values: str) -> str:
        text = (checkout / ".env").read_text() if (checkout / ".env").exists() else ""
        (checkout / ".env").write_text(compose.with_values(text, values))
        assert compose.main(["up"]) == 0
        return compose.read_settings(checkout / ".env")["CONFIG_DIGEST"]

    first = digest()
    assert digest() == digest(AIRFLOW_PORT=str(free_port())) == first
    assert digest(SPARK_SECRET=compose.new_secret("SPARK_SECRET")) != first


def test_every_variable_is_explained_in_the_example(file):
    text = (REPOSITORY / ".env.example").read_text()
    known = compose.read_settings(REPOSITORY / ".env.example").keys()
    raw = (REPOSITORY / "docker-compose.yaml").read_text()
    used = set(re.findall(r"\$\{([A-Z][A-Z0-9_]*)", raw)) - {"COMPOSE_PROJECT_NAME", "FRUITS_CATALOG_URI"}
    assert used <= known
    assert set(compose.FORMATS) <= known
    assert all(compose.read_settings(REPOSITORY / ".env.example")[name] == "" for name in compose.SECRETS)
    assert os.linesep * 3 not in text
