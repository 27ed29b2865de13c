"""`make ui` and `make stop` as far as no Airflow need run: test_ui_story.py has the rest."""

import fcntl
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from fruits.errors import FruitsError
from fruits.settings import Settings
from local import processes as sessions
from local import ui as module
from local.processes import identity
from local.stack import Stack, in_use, running_stack, server_pid
from sample_photos import draw
from tests.running_ui import alive

pytestmark = [pytest.mark.airflow, pytest.mark.heavy]


def test_a_note_about_processes_that_are_gone_stops_nobody(
    tmp_path: Path, sleep: "Callable[[], subprocess.Popen[bytes]]", capsys: pytest.CaptureFixture[str]
) -> None:
    """After a reboot their ids are other processes'."""
    stranger = sleep()
    started = psutil.Process(stranger.pid).create_time() - 60
    note = {"url": "", "user": "", "endpoint": "", "processes": {"s3": {"pid": stranger.pid, "started": started}}}
    (tmp_path / "ui.json").write_text(json.dumps(note))
    assert module.stop(tmp_path) == 0
    assert "Nothing is running." in capsys.readouterr().out
    assert stranger.poll() is None


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
        **dict.fromkeys(("url", "user", "endpoint", "queue", "service", "bucket"), "of the parts"),
        "processes": {name: identity(process.pid) for name, process in processes.items()},
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
        return dict.fromkeys(("url", "user", "endpoint", "queue", "service", "bucket"), "new")

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
        identities = {"queue": identity(queue.pid), "scheduler": identity(scheduler.pid)}
        (tmp_path / "ui.json").write_text(json.dumps({"processes": identities}))
        scheduler.kill()
        scheduler.wait()
        assert alive(worker), "it has ended with its parent: this test tells nothing"
        module.stop(tmp_path)
        assert "Stopped." in capsys.readouterr().out
        assert not alive(worker)
        assert queue.poll() is not None


def test_ui_waits_for_a_command_and_then_takes_the_place_of_the_server_that_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That server tells no queue of its changes."""

    def reached(_: Path) -> None:
        raise FruitsError("the queue would be started")

    monkeypatch.setattr(module, "start_queue", reached)
    in_use_by = f"a `make run` or a `fruits` command uses the S3 server on {tmp_path}; wait for it to end"
    with running_stack(tmp_path) as used:
        with pytest.raises(FruitsError, match=re.escape(in_use_by)):
            module.start(tmp_path)
        assert used.client().list_buckets()
    with pytest.raises(FruitsError, match="the queue would be started"):
        module.start(tmp_path)
    assert server_pid(tmp_path) is None


def test_processes_that_do_not_listen_are_ended_with_their_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "STOP_SECONDS", 0.5)
    script = "trap '' TERM; sleep 600 & sleep 600 & echo ready; wait; wait; sleep 600"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True) as stubborn:
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "ready\n"
        family = [psutil.Process(stubborn.pid), *psutil.Process(stubborn.pid).children()]
        assert len(family) == 3
        sessions.end_sessions([identity(stubborn.pid)])
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
    with pytest.raises(FruitsError) as raised:
        module.put(tmp_path, photo, key)
    assert str(raised.value).startswith(f"KEY {key!r}: expected an object key such as Training/Kiwi/1.jpg")


def test_an_upload_that_is_refused_says_why_and_where_to_look(
    stack: Stack, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_running_stack", lambda _: replace(stack, secret_key=stack.access_key))
    with pytest.raises(FruitsError, match="SignatureDoesNotMatch") as raised:
        module.put(stack.data, photo, "Training/Kiwi/1.jpg")
    assert str(photo) in str(raised.value)
    assert str(stack.data / "s3.log") in str(raised.value)


def test_without_a_photo_put_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(FruitsError, match="PHOTO is not set: make put PHOTO="):
        module.put(tmp_path, Path(), "Training/Kiwi/1.jpg")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("x.jpg", ["quarantined as key_pattern", "first bytes"]),
        ("Training/Kiwi/1.jpg", ["first bytes"]),
        ("Training/Kiwi/.1.jpg", ["ignored as hidden"]),
    ],
)
def test_an_upload_says_what_will_become_of_a_file_that_is_no_photo_with_a_label(
    settings: Settings, photo: Path, key: str, expected: list[str]
) -> None:
    remarks = list(module._remarks(photo, key, settings))
    assert [word in remark for word, remark in zip(expected, remarks, strict=True)] == [True] * len(expected)


def test_a_photo_under_a_label_gets_no_remark(settings: Settings, photo: Path) -> None:
    photo.write_bytes(draw("Kiwi", "Training", 1, size=(100, 160)))
    assert list(module._remarks(photo, "Training/Kiwi/1.jpg", settings)) == []
