"""The catalog in the PostgreSQL of docker-compose.yaml, in a container of its own."""

import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from fruits.settings import Settings
from tests.fruits.lake.test_rebuild import drill

pytestmark = [pytest.mark.airflow, pytest.mark.compose, pytest.mark.slow]

COMPOSE = Path(__file__).parents[2] / "docker-compose.yaml"


def docker(*arguments: str) -> str:
    """What a command of Docker's prints."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def catalog_uri(docker_engine: None) -> Iterator[str]:
    """A new PostgreSQL server, whose data is in memory."""
    (image,) = re.findall(r"\$\{POSTGRES_IMAGE:-(\S+)\}", COMPOSE.read_text())
    password = secrets.token_hex(16)
    options = ("--env", f"POSTGRES_PASSWORD={password}", "--tmpfs", "/var/lib/postgresql/data")
    container = docker("run", "--detach", "--rm", *options, "--publish", "127.0.0.1::5432", image)
    try:
        port = docker("port", container, "5432").rpartition(":")[2]
        uri = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
        wait_for_server(uri)
        yield uri
    finally:
        docker("rm", "--force", container)


def wait_for_server(uri: str, seconds: float = 60) -> None:
    """Wait until a server takes connections from outside: the image starts its server once without, to prepare."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg2.connect(uri).close()
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, f"PostgreSQL does not answer within {seconds} s"
            time.sleep(0.2)
        else:
            return


def test_backups_of_all_ages_are_brought_to_the_newest_publication(catalog_uri: str, tmp_path: Path) -> None:
    settings = Settings.load(lake=f"file://{tmp_path}", catalog_uri=catalog_uri)
    assert 150 < drill(settings, 200) < 190, "most name files that are gone, some do not"
