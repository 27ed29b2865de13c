"""A Docker engine, without which there is nothing to test."""

import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """Fails where no Docker engine answers."""
    found = shutil.which("docker") is not None
    if not found or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.fail("ABSENT: no Docker engine answers; `make test-compose` needs one")
