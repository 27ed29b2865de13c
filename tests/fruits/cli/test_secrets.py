"""Secrets are planted, the programs run, and all that they print, log and write is searched for the secrets."""

import logging
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr

from fruits.backbones.stage import _registry_path, staged_card
from fruits.errors import FruitsError
from fruits.run.request import RunRequest, resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import effective_backbone, plan_run
from fruits.steps.prepare import prepare
from fruits.stores import lake_store, list_files, photo_store, read_bytes, write_bytes, write_json
from tests.planted import SIGNATURE, TOKEN, WEIGHTS, assert_none, files

pytestmark = pytest.mark.jobs

PASSWORD = "marker-password"
REQUEST = RunRequest(prefix="")
COMMANDS = (
    ("status",),
    ("doctor",),
    ("plan",),
    ("models",),
    ("report",),
    ("quarantine", "list"),
    ("identify", "nothing.jpg"),
    ("export", "features"),
    ("rollback", "nowhere", "--yes"),
    ("approve", "00000000", "--yes", "--why", "because"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where everything is written."""
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def lake(new_lake, folder) -> Settings:
    """A lake whose backbone has weights at a presigned address, and a bucket with a photo."""
    settings: Settings = new_lake(folder)
    card = staged_card(settings)
    signed = settings.model_copy(update={"weights": WEIGHTS, "weights_from": ("https://127.0.0.1:1",)})
    write_json(lake_store(signed, "models"), _registry_path(signed), {"model_id": card.model_id})
    write_bytes(photo_store(signed), "train/Kiwi/1.jpg", b"no photo")
    return signed


@pytest.fixture
def planted(lake, folder, monkeypatch) -> Settings:
    """The lake, with secrets of other programs in the environment."""
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", f"aws://key:{TOKEN}@/")
    monkeypatch.setenv("SLACK_TOKEN", TOKEN)
    monkeypatch.chdir(folder)
    return lake


@pytest.fixture
def secrets(stack) -> tuple[str, ...]:
    return (stack.secret_key, SIGNATURE, PASSWORD, TOKEN)


def written(settings: Settings, folder: Path) -> dict[str, bytes]:
    """All files under a folder, and all objects of the bucket."""
    store = photo_store(settings)
    return files(folder) | {item["path"]: read_bytes(store, item["path"]) for item in list_files(store)}


def test_a_plan_leaves_no_secret(planted: Settings, secrets, folder, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    prepare(planted, REQUEST)
    planned = plan_run(planted, REQUEST, "manual__1")
    assert planned.work
    found = written(planted, folder)
    assert [name for name in found if f"/{run_key('manual__1')}/plan.json" in name], "the run's document is searched"
    assert [name for name in found if name.endswith(("catalog.db", ".metadata.json"))]
    assert_none(secrets, {**found, "log": caplog.text, "plan": planned.model_dump_json(), "value": repr(planned)})


def test_a_backbone_that_cannot_be_built_names_no_secret(
    planted: Settings, secrets, environment_of, monkeypatch, caplog, capfd
) -> None:
    """The build runs in another process, which asks an address where nobody listens."""
    caplog.set_level(logging.DEBUG)
    newer = planted.model_copy(update={"weights": f"{WEIGHTS}-2"})
    for name, value in environment_of(newer).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FruitsError, match="https://127.0.0.1:1/net.weights.h5: the download failed") as raised:
        prepare(newer, REQUEST)
    with pytest.raises(FruitsError, match="weights https://127.0.0.1:1/net.weights.h5: not staged"):
        effective_backbone(newer, REQUEST, [])
    with pytest.raises(FruitsError, match="weights https://127.0.0.1:1/net.weights.h5 is not in"):
        prepare(newer, REQUEST.model_copy(update={"dry_run": True}))
    out, err = capfd.readouterr()
    account = "".join(traceback.format_exception(raised.value))
    assert_none(secrets, {"log": caplog.text, "out": out, "err": err, "error": account, "settings": repr(newer)})


def test_a_param_with_a_signature_is_refused_before_a_run_document_exists(planted: Settings, secrets, folder) -> None:
    with pytest.raises(FruitsError, match="without a query and a password") as raised:
        resolve_request({"weights": WEIGHTS}, planted)
    assert_none(secrets, {"error": str(raised.value), **written(planted, folder)})


@pytest.mark.parametrize(
    "command", [*COMMANDS, *((*command, "--json") for command in COMMANDS if command != ("doctor",))], ids=" ".join
)
def test_no_command_prints_or_writes_a_secret(fruits, planted: Settings, secrets, folder, command) -> None:
    result = fruits(*command, settings=planted)
    assert result.output
    assert_none(secrets, {"output": result.output, "error": repr(result.exception), **written(planted, folder)})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_the_password_of_a_catalog_that_does_not_answer(
    fruits, planted: Settings, secrets, command
) -> None:
    uri = SecretStr(f"postgresql://fruits:{PASSWORD}@127.0.0.1:1/fruits")
    result = fruits(*command, "--json", settings=planted.model_copy(update={"catalog_uri": uri}))
    assert result.exit_code != 0
    account = "".join(traceback.format_exception(result.exception)) if result.exception else ""
    assert_none(secrets, {"output": result.output, "error": account})
