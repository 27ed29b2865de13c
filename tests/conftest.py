"""What tests share: a real S3 server, fresh buckets and lakes on it, and the real photos where they are."""

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fruits import stores
from fruits.settings import Settings
from local.stack import Stack, make_bucket, temporary_stack

# Each environment lacks the other's packages, so it cannot even import the other's tests. `make test` runs both.
IN_AIRFLOW = importlib.util.find_spec("airflow") is not None
collect_ignore = (
    ["spark_jobs"]
    if IN_AIRFLOW
    else [
        *("dags", "docker", "infra", "fruits/airflow"),
        *("local/test_run.py", "local/test_ui.py", "scripts/test_compose.py"),
    ]
)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded stack with its S3 server, running for the session."""
    with temporary_stack(tmp_path_factory.mktemp("stack")) as running, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("FRUITS_", "AWS_"))]:
            patch.delenv(name)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            patch.setenv(name, running.environment[name])
        stores._credentials.cache_clear()  # tests before the first with a stack may have had other keys
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
def staged_models(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake's ``models`` folder with the default backbone, built once for the session."""
    from fruits.backbones.stage import stage

    lake = tmp_path_factory.mktemp("staged")
    stage(Settings.load(lake=f"file://{lake}", catalog_uri=f"sqlite:///{lake}/catalog.db", s3_endpoint=stack.endpoint))
    return lake / "models"


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of moto's stand-in for AWS, which boto3 and Spark take for Glue. Only the airflow environment has it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", f"http://{host}:{port}")
    yield f"http://{host}:{port}"
    server.stop()


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
