"""What tests share: a real S3 server, fresh buckets and lakes on it, and the real photos where they are."""

import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fruits import stores
from fruits.embedded.stack import Stack, make_bucket, running_stack
from fruits.settings import Settings

# Each environment lacks the other's packages, so it cannot even import the other's tests. `make test` runs both.
IN_AIRFLOW = importlib.util.find_spec("airflow") is not None
collect_ignore = (
    ["spark_jobs"]
    if IN_AIRFLOW
    else ["dags", "infra", "plugins", "fruits/embedded/test_run.py", "fruits/embedded/test_ui.py"]
)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded stack with its S3 server, running for the session."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running, pytest.MonkeyPatch.context() as patch:
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
