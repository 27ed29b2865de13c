import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local.classes import archive_classes, stop_archiving

pytestmark = pytest.mark.airflow


@pytest.fixture
def maker() -> Iterator[psutil.Process]:
    """A program in the background, in a session of its own."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def note(data: Path, pid: int, started: float) -> None:
    (data / "classes.json").write_text(json.dumps({"pid": pid, "started": started}))


def test_stop_ends_the_making_of_the_archive_once(maker: psutil.Process, tmp_path: Path) -> None:
    note(tmp_path, maker.pid, maker.create_time())
    assert stop_archiving(tmp_path)
    assert not maker.is_running() or maker.status() == psutil.STATUS_ZOMBIE
    assert not stop_archiving(tmp_path)


def test_another_process_with_that_number_is_left_alone(maker: psutil.Process, tmp_path: Path) -> None:
    note(tmp_path, maker.pid, maker.create_time() - 3600)
    assert not stop_archiving(tmp_path)
    assert maker.status() != psutil.STATUS_ZOMBIE


def test_a_ci_machine_makes_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    archive_classes(tmp_path)
    assert not list(tmp_path.iterdir())
