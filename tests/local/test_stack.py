import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import FruitsError
from fruits.settings import Settings
from local import stack as module
from local.stack import (
    S3Server,
    Stack,
    end_unused_server,
    free_ports,
    make_bucket,
    running_server,
    running_stack,
    server_lock,
    start_s3,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("stack with a blank")


@pytest.fixture(scope="module")
def server(data):
    started = start_s3(data)
    yield started
    started.stop()


def listening(pid: int) -> set[tuple[str, int]]:
    """Address and port of every TCP socket that a process listens on."""
    inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = (line.split()[column] for column in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in inodes:
                address, port = local.split(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_the_server_is_reached_from_this_machine_only(server):
    pid = server.process.pid
    sockets = listening(pid).union(*(listening(child) for child in children(pid)))
    ports = json.loads((server.stack.data / "s3.ports.json").read_text())
    assert ("127.0.0.1", ports["s3"]) in sockets, "the server's own socket was not found: this test tells nothing"
    assert {address for address, _ in sockets} == {"127.0.0.1"}


def test_the_server_listens_on_no_port_but_those_chosen_for_it(server):
    """Another stack on the same machine must find its own ports free."""
    ports = json.loads((server.stack.data / "s3.ports.json").read_text())
    assert {port for _, port in listening(server.process.pid)} <= set(ports.values())


def test_the_keys_are_random_and_readable_by_their_owner_only(server, data, tmp_path):
    path = data / "s3.credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "access_key": server.stack.access_key,
        "secret_key": server.stack.secret_key,
    }
    assert len(server.stack.secret_key) >= 40
    others = module._credentials(tmp_path / "s3.credentials.json")
    assert others != (server.stack.access_key, server.stack.secret_key)


@pytest.mark.parametrize("wrong", ["secret_key", "access_key"])
def test_wrong_keys_are_refused(server, wrong):
    stranger = Stack(**{**vars(server.stack), wrong: "wrong"})
    with pytest.raises(ClientError) as caught:
        stranger.client().list_buckets()
    assert caught.value.response["Error"]["Code"] in ("SignatureDoesNotMatch", "InvalidAccessKeyId")


def test_nobody_reads_without_keys(server):
    make_bucket(server.stack)
    server.stack.client().put_object(Bucket="fruits", Key="secret.jpg", Body=b"photo")
    for path in ("/", "/fruits", "/fruits/secret.jpg"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.stack.endpoint}{path}", timeout=10)
        assert caught.value.code == 403


def test_a_running_server_is_found_and_used_not_started_again_nor_ended(server, data):
    assert running_server(data) == server.stack
    with running_stack(data) as used:
        assert used == server.stack
    assert server.process.poll() is None
    server.stack.client().list_buckets()


def test_a_server_that_does_not_answer_keeps_its_folder_to_itself(server, data, monkeypatch):
    ports = (data / "s3.ports.json").read_text()
    monkeypatch.setattr(module, "running_server", lambda _: None)
    expected = f"process {server.process.pid}, does not answer; try again"
    with pytest.raises(FruitsError, match=expected), running_stack(data):
        pass
    assert (data / "s3.ports.json").read_text() == ports, "nobody would find it again"
    assert server.process.poll() is None


@pytest.mark.parametrize("listens", [False, True], ids=["refuses", "says nothing"])
def test_a_stranger_on_the_port_is_not_taken_for_the_server(tmp_path, monkeypatch, listens):
    monkeypatch.setattr(module, "_PROBE_SECONDS", 1)
    module._credentials(tmp_path / "s3.credentials.json")
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        if listens:
            stranger.listen()
        (tmp_path / "s3.ports.json").write_text(json.dumps({"s3": stranger.getsockname()[1]}))
        assert running_server(tmp_path) is None


def test_nothing_runs_on_a_new_folder(tmp_path):
    assert running_server(tmp_path) is None


def test_a_bucket_is_made_once(server):
    for _ in range(2):
        make_bucket(server.stack, "orchard")
    names = [bucket["Name"] for bucket in server.stack.client().list_buckets()["Buckets"]]
    assert names.count("orchard") == 1


def test_the_environment_is_all_that_our_programs_and_awss_need(server, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("FRUITS_", "AWS_"))]:
        monkeypatch.delenv(name)
    environment = server.stack.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert settings.s3_endpoint == server.stack.endpoint
    assert settings.lake == f"file://{server.stack.data}/lake"
    assert settings.catalog_uri.get_secret_value() == f"sqlite:///{server.stack.data}/catalog.db"
    assert boto3.client("s3", endpoint_url=server.stack.endpoint).list_buckets()["Buckets"] is not None


def test_the_stack_never_points_at_somebodys_real_bucket_lake_or_account(server, monkeypatch):
    names = [
        *(
            "FRUITS_BUCKET",
            "FRUITS_LAKE",
            "FRUITS_CATALOG_URI",
            "FRUITS_S3_ENDPOINT",
            "FRUITS_S3_REGION",
            "FRUITS_ENGINE",
        ),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION"),
    ]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    before = server.stack.environment
    for name in names:
        monkeypatch.setenv(name, "somebody's")
    assert server.stack.environment == before


def test_other_settings_of_a_person_hold_for_the_stack_too(server, monkeypatch):
    monkeypatch.setenv("FRUITS_N_COMPONENTS", "32")
    monkeypatch.setenv("FRUITS_JOBS_ENV", "/opt/jobs")
    environment = server.stack.environment
    assert (environment["FRUITS_N_COMPONENTS"], environment["FRUITS_JOBS_ENV"]) == ("32", "/opt/jobs")


def put_and_stop(server: S3Server) -> None:
    make_bucket(server.stack)
    server.stack.client().put_object(Bucket="fruits", Key="Kiwi/1.jpg", Body=b"photo")
    server.stop()
    assert server.process.poll() is not None
    with pytest.raises(BotoCoreError):
        server.stack.client().list_buckets()


@pytest.mark.heavy
def test_a_restart_keeps_objects_and_keys_on_the_same_ports_or_on_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PROBE_SECONDS", 1)
    first = start_s3(tmp_path)
    put_and_stop(first)
    with running_stack(tmp_path) as second:
        assert second == first.stack
        assert second.client().get_object(Bucket="fruits", Key="Kiwi/1.jpg")["Body"].read() == b"photo"
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(first.stack.endpoint.rpartition(":")[2])))
        squatter.listen()
        with running_stack(tmp_path) as third:
            assert third.endpoint != first.stack.endpoint
            assert (third.access_key, third.secret_key) == (first.stack.access_key, first.stack.secret_key)
            assert third.client().get_object(Bucket="fruits", Key="Kiwi/1.jpg")["Body"].read() == b"photo"


USER = """
import sys
from pathlib import Path
from local.stack import running_stack
with running_stack(Path(sys.argv[1])) as stack:
    print(stack.endpoint, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_user(data: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process, inside `running_stack` until this ends."""
    command = [sys.executable, "-c", USER, str(data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        yield process


def server_pid(data: Path) -> int:
    return json.loads((data / "s3.server").read_text())["pid"]


def gone(pid: int) -> bool:
    """Whether a process has ended: nobody may have asked how."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("starts", ["another", "we"])
def test_the_server_ends_with_its_last_user_not_with_the_one_that_started_it(tmp_path, starts):
    first, last = (another_user, running_stack) if starts == "another" else (running_stack, another_user)
    with ExitStack() as stays:
        with first(tmp_path):
            stays.enter_context(last(tmp_path))
        stack = running_server(tmp_path)
        assert stack is not None
        assert stack.client(attempts=1).list_buckets()["Buckets"]
    assert gone(server_pid(tmp_path))
    assert running_server(tmp_path) is None


def test_users_that_come_at_the_same_moment_share_one_server(tmp_path):
    together = threading.Barrier(3, timeout=60)

    def use(_: int) -> tuple[Stack, int]:
        together.wait()
        with running_stack(tmp_path) as stack:
            together.wait()
            return stack, server_pid(tmp_path)

    with ThreadPoolExecutor(3) as pool:
        used = list(pool.map(use, range(3)))
    assert len(set(used)) == 1
    assert gone(used[0][1])


def test_a_server_that_a_killed_user_left_is_used_and_ended_by_the_next(tmp_path):
    with another_user(tmp_path) as killed:
        killed.kill()
    pid = server_pid(tmp_path)
    assert not gone(pid), "it has ended with its user: this test tells nothing"
    with running_stack(tmp_path):
        assert server_pid(tmp_path) == pid
    assert gone(pid)


def test_a_server_that_does_not_listen_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    with running_stack(tmp_path):
        pid = server_pid(tmp_path)
        os.kill(pid, signal.SIGSTOP)
        while "\nState:\tT" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)
    assert gone(pid)


def test_the_note_of_a_server_that_is_gone_ends_nobody(tmp_path):
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        (tmp_path / "s3.server").write_text(json.dumps({"pid": stranger.pid, "shared": True}))
        with server_lock(tmp_path):
            assert not end_unused_server(tmp_path)
        assert stranger.poll() is None
        stranger.kill()


def test_a_server_that_cannot_start_is_reported_with_its_log_and_leaves_no_process(tmp_path, monkeypatch):
    refusing = tmp_path / "weed"
    refusing.write_text("#!/bin/sh\necho no such option\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(module, "_weed", lambda: str(refusing))
    with pytest.raises(FruitsError, match=r"did not start: exit code 1; its log is .*s3\.log"):
        start_s3(tmp_path)
    assert (tmp_path / "s3.log").read_text() == "no such option\n"


def test_a_process_that_will_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as stubborn:
        assert stubborn.stdout.readline() == b"ready\n"
        module.stop_process(stubborn)
        assert stubborn.poll() == -9


def test_without_the_program_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path / "envs" / "jobs"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FruitsError, match="run `make setup`"):
        start_s3(tmp_path)


def test_free_ports_are_distinct_and_free():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert module._all_free(ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        assert not module._all_free(ports)
