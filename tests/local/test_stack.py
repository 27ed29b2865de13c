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
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from fruits.errors import FruitsError
from fruits.settings import Settings
from local import stack as module
from local.stack import (
    Stack,
    alone_on,
    free_ports,
    in_use,
    make_bucket,
    running_server,
    running_stack,
    server_pid,
    start_s3,
    stop_s3,
    temporary_stack,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("stack with a blank")


@pytest.fixture(scope="module")
def server(data) -> Iterator[Stack]:
    with temporary_stack(data) as stack:
        yield stack


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A data folder of the test's own, whose server ends with the test."""
    yield tmp_path
    stop_s3(tmp_path)


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
    pid = server_pid(server.data)
    sockets = listening(pid).union(*(listening(child) for child in children(pid)))
    ports = json.loads((server.data / "s3.ports.json").read_text())
    assert ("127.0.0.1", ports["s3"]) in sockets, "the server's own socket was not found: this test tells nothing"
    assert {address for address, _ in sockets} == {"127.0.0.1"}


def test_the_server_listens_on_no_port_but_those_chosen_for_it(server):
    """Another stack on the same machine must find its own ports free."""
    ports = json.loads((server.data / "s3.ports.json").read_text())
    assert {port for _, port in listening(server_pid(server.data))} <= set(ports.values())


def test_the_keys_are_random_and_readable_by_their_owner_only(server, data, tmp_path):
    path = data / "s3.credentials.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "access_key": server.access_key,
        "secret_key": server.secret_key,
    }
    assert len(server.secret_key) >= 40
    others = module._credentials(tmp_path / "s3.credentials.json")
    assert others != (server.access_key, server.secret_key)


@pytest.mark.parametrize("wrong", ["secret_key", "access_key"])
def test_wrong_keys_are_refused(server, wrong):
    stranger = Stack(**{**vars(server), wrong: "wrong"})
    with pytest.raises(ClientError) as caught:
        stranger.client().list_buckets()
    assert caught.value.response["Error"]["Code"] in ("SignatureDoesNotMatch", "InvalidAccessKeyId")


def test_nobody_reads_without_keys(server):
    make_bucket(server)
    server.client().put_object(Bucket="fruits", Key="secret.jpg", Body=b"photo")
    for path in ("/", "/fruits", "/fruits/secret.jpg"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{server.endpoint}{path}", timeout=10)
        assert caught.value.code == 403


def test_a_running_server_is_used_not_started_again_nor_ended(server, data):
    pid = server_pid(data)
    assert running_server(data) == server
    with running_stack(data) as used:
        assert used == server
    assert server_pid(data) == pid
    server.client().list_buckets()


def test_a_server_that_does_not_answer_keeps_its_folder_to_itself(server, data, monkeypatch):
    ports = (data / "s3.ports.json").read_text()
    monkeypatch.setattr(module, "running_server", lambda _: None)
    monkeypatch.setattr(module, "_START_SECONDS", 0.3)
    expected = f"process {server_pid(data)}, does not answer; `make stop` ends it"
    with pytest.raises(FruitsError, match=expected), running_stack(data):
        pass
    assert (data / "s3.ports.json").read_text() == ports, "no command would find the server again"
    assert server_pid(data) is not None


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
        make_bucket(server, "orchard")
    names = [bucket["Name"] for bucket in server.client().list_buckets()["Buckets"]]
    assert names.count("orchard") == 1


def test_the_environment_is_all_that_our_programs_and_awss_need(server, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("FRUITS_", "AWS_"))]:
        monkeypatch.delenv(name)
    environment = server.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert settings.s3_endpoint == server.endpoint
    assert settings.lake == f"file://{server.data}/lake"
    assert settings.catalog_uri.get_secret_value() == f"sqlite:///{server.data}/catalog.db"
    assert boto3.client("s3", endpoint_url=server.endpoint).list_buckets()["Buckets"] is not None


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
    before = server.environment
    for name in names:
        monkeypatch.setenv(name, "somebody's")
    assert server.environment == before


def test_other_settings_of_a_person_hold_for_the_stack_too(server, monkeypatch):
    monkeypatch.setenv("FRUITS_N_COMPONENTS", "32")
    monkeypatch.setenv("FRUITS_JOBS_ENV", "/opt/jobs")
    environment = server.environment
    assert (environment["FRUITS_N_COMPONENTS"], environment["FRUITS_JOBS_ENV"]) == ("32", "/opt/jobs")


@pytest.mark.heavy
def test_a_restart_keeps_objects_and_keys_on_the_same_ports_or_on_others(folder, monkeypatch):
    monkeypatch.setattr(module, "_PROBE_SECONDS", 1)
    with temporary_stack(folder) as first:
        first.client().put_object(Bucket="fruits", Key="Kiwi/1.jpg", Body=b"photo")
    with pytest.raises(BotoCoreError):
        first.client().list_buckets()
    with temporary_stack(folder) as second:
        assert second == first
        assert second.client().get_object(Bucket="fruits", Key="Kiwi/1.jpg")["Body"].read() == b"photo"
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(first.endpoint.rpartition(":")[2])))
        squatter.listen()
        with temporary_stack(folder) as third:
            assert third.endpoint != first.endpoint
            assert (third.access_key, third.secret_key) == (first.access_key, first.secret_key)
            assert third.client().get_object(Bucket="fruits", Key="Kiwi/1.jpg")["Body"].read() == b"photo"


USE = """
import sys
from pathlib import Path
from local.stack import running_stack
with running_stack(Path(sys.argv[1])) as stack:
    print(stack.endpoint)
"""


def test_the_server_goes_on_after_the_command_that_started_it_until_it_is_stopped(folder):
    used = [
        subprocess.run([sys.executable, "-c", USE, str(folder)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert used[0] == used[1]
    assert running_server(folder) is not None
    assert stop_s3(folder)
    assert running_server(folder) is None
    assert not stop_s3(folder)


START_WITHOUT_END = """
import signal
import sys
from pathlib import Path
from local import stack
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
stack._has_volumes = lambda _: False
stack.start_s3(Path(sys.argv[1]))
"""


def test_a_start_that_is_interrupted_leaves_no_server(folder):
    with subprocess.Popen([sys.executable, "-c", START_WITHOUT_END, str(folder)]) as process:
        while server_pid(folder) is None:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert server_pid(folder) is None


def test_commands_that_come_at_the_same_moment_share_one_server(folder):
    together = threading.Barrier(3, timeout=60)

    def use(_: int) -> tuple[Stack, int | None]:
        together.wait()
        with running_stack(folder) as stack:
            return stack, server_pid(folder)

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(use, range(3)))) == 1


def test_a_command_knows_whether_it_is_alone_and_nobody_ends_its_server(folder):
    with in_use(folder) as first, in_use(folder) as second:
        assert (first, second) == (True, False)
        with pytest.raises(FruitsError, match="uses the S3 server .* wait for it to end"), alone_on(folder):
            pass
    with alone_on(folder), in_use(folder.with_name("another")) as alone:
        assert alone


def test_a_server_that_does_not_listen_is_ended(folder, monkeypatch):
    monkeypatch.setattr(module, "_STOP_SECONDS", 0.3)
    start_s3(folder)
    pid = server_pid(folder)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    while "\nState:\tT" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.01)
    assert stop_s3(folder)
    assert server_pid(folder) is None


def test_the_note_of_a_server_that_is_gone_ends_nobody(tmp_path):
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        (tmp_path / "s3.server").write_text(json.dumps({"pid": stranger.pid}))
        assert not stop_s3(tmp_path)
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
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "envs" / "jobs"))
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
