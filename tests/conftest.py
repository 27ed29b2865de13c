"""What tests share: a real S3 server, fresh buckets and lakes on it, and the real photos where they are.

Each worker of pytest-xdist is a session with a server, a JVM and lakes of its own, so tests of two workers never meet.
"""

import fcntl
import gc
import importlib.util
import json
import os
import re
import secrets
import socket
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before the first import of numpy: each of two workers would start a thread per core, and wait for the other's.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from PIL import Image
from sqlalchemy import Engine, event

from fruits import stores
from fruits.settings import Settings
from local import stack as local_stack
from local.stack import Stack, make_bucket, temporary_stack, write_secret
from tests.postgres import CuttingProxy, Postgres, cutting_proxy, programs, running_postgres

if TYPE_CHECKING:
    from tests.running_ui import UI

IN_AIRFLOW = importlib.util.find_spec("airflow") is not None
OF_AIRFLOW = re.compile(r"^pytestmark = .*mark\.airflow", re.MULTILINE)
collect_ignore = ["migration", "spark_jobs"] if IN_AIRFLOW else []

SHARED = Path(__file__).parents[2] / "shared"
MARKS = {
    "server": {"stack", "server", "moto", "account"},
    "jvm": {"chain", "spark", "spark_submit"},
}
"""The fixtures that give a test each mark: a test is marked by what it uses, not by hand."""
LONGEST_FIRST = ("slow", "story", "heavy", "jvm", "server")
ONE_UI = tuple(
    f"tests/{name}.py" for name in ("dags/test_trigger_form", "fruits/airflow/test_report_view", "local/test_ui_story")
)
"""The files whose tests need `make ui`: they go to one worker, in this order, so that Airflow is started once."""
# A busy machine is no fault of the code: no example has a deadline, and drawing examples may be slow.
hypothesis_settings.register_profile("fruits", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.register_profile("quick", hypothesis_settings.get_profile("fruits"), max_examples=25)
hypothesis_settings.load_profile("fruits")
gc.disable()  # Collecting makes a million objects that stay: pytest_collection_finish.
S3_KEYS = {"access_key": f"fruits{secrets.token_hex(7)}", "secret_key": secrets.token_urlsafe(30)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--part 2/5`: of the tests marked slow, the second of five parts."""
    parser.addoption("--part", metavar="K/N", help="of the tests marked slow, only the K-th of N parts")


def pytest_configure(config: pytest.Config) -> None:
    """Give all tests of a session one environment, whatever the shell's is and whichever test comes first."""
    for name in [name for name in os.environ if name.startswith(("FRUITS_", "AWS_"))]:
        del os.environ[name]
    os.environ["AWS_ACCESS_KEY_ID"] = S3_KEYS["access_key"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = S3_KEYS["secret_key"]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    # Workers and the two environments look for free ports at the same moment: each has a quarter of them.
    quarter = len(local_stack._PORT_RANGE) // 4
    number = 2 * IN_AIRFLOW + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 2
    local_stack._PORT_RANGE = local_stack._PORT_RANGE[number * quarter : (number + 1) * quarter]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker a file at a time, as `--dist loadfile` does, but the files of ``ONE_UI`` as if they were one."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    return Files(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out each file of tests that is for the other environment: here is nothing of what it imports."""
    if collection_path.suffix != ".py" or not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text()
    foreign = "mark.airflow" not in text if IN_AIRFLOW else OF_AIRFLOW.search(text)
    return True if foreign else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by the fixtures that it uses, its own and theirs."""
    for name, fixtures in MARKS.items():
        if fixtures & set(getattr(item, "fixturenames", ())):
            item.add_marker(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the part of the slow tests that is asked for; files with long tests come first, else in random order.

    A worker takes a file at a time, so a long one that came last would leave the other worker idle.
    """
    if part := config.getoption("part"):
        keep_part(config, items, *map(int, part.split("/")))
    ranks: dict[str, int] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        rank = next((number for number, name in enumerate(LONGEST_FIRST) if name in marks), len(LONGEST_FIRST))
        ranks[_unit(item.nodeid)] = min(rank, ranks.get(_unit(item.nodeid), rank))
    turns = {file: turn for turn, file in enumerate(ONE_UI)}
    items.sort(key=lambda item: (ranks[_unit(item.nodeid)], turns.get(_file(item.nodeid), -1)))
    for path in {item.path for item in items if item.get_closest_marker("story")}:
        places = [place for place, item in enumerate(items) if item.path == path]
        steps = sorted((items[place] for place in places), key=lambda item: (item.location[1], item.nodeid))
        for place, item in zip(places, steps, strict=True):
            items[place] = item


def pytest_collection_finish() -> None:
    """From here on Python looks for garbage, but not among the modules and tests."""
    gc.freeze()
    gc.enable()


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _unit(nodeid: str) -> str:
    """What one worker does: a file, or the files that share one Airflow."""
    return "one ui" if _file(nodeid) in ONE_UI else _file(nodeid)


def keep_part(config: pytest.Config, items: list[pytest.Item], part: int, parts: int) -> None:
    """Of the tests marked slow, keep each whose place in the alphabet is of this part; a story is one."""
    slow = {id(item): _whole(item) for item in items if item.get_closest_marker("slow")}
    places = {name: number for number, name in enumerate(sorted(set(slow.values())))}
    others = {item for item, name in slow.items() if places[name] % parts != part % parts}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in others])
    items[:] = [item for item in items if id(item) not in others]


def _whole(item: pytest.Item) -> str:
    """The name of what is not divided among parts: a test, or all tests of a story."""
    return _file(item.nodeid) if item.get_closest_marker("story") else item.nodeid


@event.listens_for(Engine, "connect")
def _need_no_disk(connection: Any, _: object) -> None:
    """No test survives a power cut, so a catalog in SQLite need not wait for the disk at each commit."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(autouse=True)
def _nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a test, forget what it leaves in the process: the credentials it met, the size of the photos it decoded."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    yield
    stores._credentials.cache_clear()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded stack with its S3 server, running for the session."""
    folder = tmp_path_factory.mktemp("stack")
    write_secret(folder / "s3.credentials.json", json.dumps(S3_KEYS))
    with temporary_stack(folder) as running:
        yield running


@pytest.fixture
def bucket(stack: Stack) -> str:
    """An empty bucket of its own."""
    name = f"photos-{uuid.uuid4().hex[:12]}"
    make_bucket(stack, name)
    return name


@pytest.fixture
def make_settings(stack: Stack, bucket: str, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a lake and a bucket of this test's own; ``kind="s3"`` puts the lake into a bucket as well."""

    def make(kind: str = "file", **overrides: object) -> Settings:
        name = uuid.uuid4().hex[:12]
        lake = f"file://{tmp_path / name}"
        if kind == "s3":
            make_bucket(stack, f"lake-{name}")
            lake = f"s3://lake-{name}/warehouse"
        values = {
            "bucket": bucket,
            "lake": lake,
            "catalog_uri": f"sqlite:///{tmp_path / name}.db",
            "s3_endpoint": stack.endpoint,
            **overrides,
        }
        return Settings.load(**values)

    return make


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings of a lake in a folder and a bucket of this test's own."""
    return make_settings()


@pytest.fixture(scope="session")
def start_ui(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Callable[[], UI]]":
    """Starts the session's `make ui` unless it runs, and returns it."""
    from tests.running_ui import command, started_ui

    data = tmp_path_factory.mktemp("ui") / "data"
    running: list[UI] = []

    def start() -> "UI":
        if not (running and (data / "ui.json").is_file()):
            running[:] = [started_ui(data)]
        return running[0]

    try:
        yield start
    finally:
        command(data, "stop")


@pytest.fixture
def ui(start_ui: "Callable[[], UI]") -> "UI":
    """The session's `make ui`. A test leaves `fruit_features` paused and without an active run."""
    return start_ui()


@pytest.fixture(scope="session")
def real_fruits() -> Path:
    """Fruits-360 photos: ``{Training,Test}/<label>/*.jpg``."""
    return _shared("fruits")


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """Shop photos: ``<label>/*.jpg``."""
    return _shared("photos")


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"ABSENT: {folder} (real photos); this test needs them, the generated ones do not do")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, of this machine's programs."""
    folder = programs()
    if folder is None:
        pytest.skip("ABSENT: PostgreSQL's initdb and pg_ctl (Debian's package postgresql); nothing stands in for them")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_postgres(folder, port) as server:
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[CuttingProxy]:
    """A proxy before the PostgreSQL server."""
    with cutting_proxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def staged_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake's ``models`` folder with the default backbone, built once for all workers. Not to be changed by tests."""
    from fruits.backbones.stage import stage

    session = tmp_path_factory.getbasetemp()
    lake = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "staged"
    lake.mkdir(exist_ok=True)
    with (lake / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stage(Settings.load(lake=f"file://{lake}", catalog_uri=f"sqlite:///{lake}/catalog.db"))
    return lake / "models"


@pytest.fixture(scope="session")
def _moto_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def moto(_moto_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of moto's stand-in for AWS, which boto3 and Spark take for Glue. Only the airflow environment has it.

    It keeps what is made in it until the session ends, so tests give names of their own.
    """
    monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", _moto_server)
    return _moto_server


@pytest.fixture
def operations(moto: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What moto was asked for, as IAM calls it: `glue:GetTable`."""
    from moto.core.responses import BaseResponse

    asked: set[str] = set()
    call = BaseResponse.call_action

    def recorded(self: BaseResponse) -> object:
        asked.add(f"{self.service_name}:{self._get_action()}")
        return call(self)

    monkeypatch.setattr(BaseResponse, "call_action", recorded)
    return asked


@pytest.fixture(scope="session")
def allowed() -> Callable[[str], set[str]]:
    """The actions that a policy of infra/emr-serverless.json allows."""
    policies = json.loads((Path(__file__).parents[1] / "infra" / "emr-serverless.json").read_text())

    def allowed(policy: str) -> set[str]:
        statements = [one for one in policies[policy]["Statement"] if one["Effect"] == "Allow"]
        return {
            action
            for one in statements
            for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
        }

    return allowed


@pytest.fixture
def glue_settings(make_settings: Callable[..., Settings], moto: str) -> Settings:
    """Settings of a lake in S3 with its tables in Glue: moto keeps those for the process, hence the database's name."""
    return make_settings("s3", catalog_uri="glue://", namespace=f"fruits_{uuid.uuid4().hex[:8]}")
