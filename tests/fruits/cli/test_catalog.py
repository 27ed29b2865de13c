"""``fruits catalog``, on an embedded stack's folder and by the variables of a lake."""

import json
import shutil
from pathlib import Path

import pytest
from pyiceberg.catalog import load_catalog
from typer.testing import CliRunner, Result

from fruits.cli.app import app
from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.run.lease import acquire_lease, current_lease
from fruits.settings import Settings
from tests.fruits.lake.test_publication import publish_run

NAMES = {"features", "quarantine", "pca_models", "pca_statistics", "embeddings", "publications"}


@pytest.fixture
def settings(folder_lake: Settings) -> Settings:
    """A lake with one publication in its catalog, which is a backup, and another one since."""
    database, lake = _database(folder_lake), Lake.open(folder_lake)
    publish_run(lake, "a")
    shutil.copy(database, f"{database}.backup")
    publish_run(lake, "b")
    shutil.copy(f"{database}.backup", database)
    return folder_lake


def _database(settings: Settings) -> Path:
    return Path(settings.catalog_uri.get_secret_value().removeprefix("sqlite:///"))


def rebuild(settings: Settings, *arguments: str, answer: str = "") -> Result:
    data = str(_database(settings).parent)
    command = ["catalog", "rebuild", "--data", data, *arguments]
    return CliRunner().invoke(app, command, prog_name="fruits", input=answer)


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_the_properties_of_a_catalog_are_printed_without_user_and_password(settings, monkeypatch, form):
    monkeypatch.setenv("FRUITS_LAKE", "s3://lake/fruits")
    monkeypatch.setenv("FRUITS_CATALOG_URI", "postgresql://keeper:p%40ss-w0rd@db:5432/catalog")
    printed = CliRunner().invoke(app, ["catalog", "properties", *form], prog_name="fruits").output
    for expected in ("postgresql+psycopg2://db:5432/catalog", "jdbc:postgresql://db:5432/catalog", "s3://lake/fruits"):
        assert expected in printed
    assert [word in printed for word in ("keeper", "w0rd")] == [False, False]


def test_the_printed_properties_open_the_published_tables(settings):
    data = str(_database(settings).parent)
    printed = CliRunner().invoke(app, ["catalog", "properties", "--data", data, "--json"], prog_name="fruits").stdout
    catalog = json.loads(printed)
    opened = load_catalog(catalog["name"], **catalog["properties"])
    rows = opened.load_table((catalog["namespace"], "publications")).scan().to_arrow()
    assert [run for run in rows["run_id"].to_pylist() if run] == published(settings)


def published(settings: Settings) -> list[str | None]:
    return [one.run_id for one in publications(Lake(settings))]


def test_it_shows_each_change_and_asks(settings):
    refused = rebuild(settings, answer="n\n")
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert published(settings) == ["a"]
    done = rebuild(settings, answer="y\n")
    assert done.exit_code == 0, done.output
    assert "table publications: 0" in done.stderr
    assert "Readers will see pub-000002-" in done.stderr
    assert published(settings) == ["a", "b"]
    again = rebuild(settings)
    assert "Nothing to do" in again.stdout
    assert current_lease(settings) is None


def test_without_a_person_who_answers_it_names_the_option_and_changes_nothing(settings):
    refused = rebuild(settings)
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert "no answer, so nothing was done; add --yes" in refused.stderr
    assert published(settings) == ["a"]


def test_a_dry_run_says_what_is_there_and_changes_nothing(settings):
    document = json.loads(rebuild(settings, "--dry-run", "--json").stdout)
    assert {one["table"]: one["action"] for one in document["tables"]} == {
        **dict.fromkeys(NAMES, "keep"),
        **dict.fromkeys(("features", "embeddings", "publications"), "move"),
    }
    assert (document["changed"], document["to_change"]) == (False, 3)
    assert "the command would change 3 tables" in rebuild(settings, "--dry-run").stdout
    assert published(settings) == ["a"]


def test_a_lost_catalog_of_an_embedded_stack_is_made_again(settings):
    _database(settings).unlink()
    document = json.loads(rebuild(settings, "--yes", "--json").stdout)
    assert {one["action"] for one in document["tables"]} == {"register"}
    assert published(settings) == ["a", "b"]


def test_a_run_that_works_is_named(settings):
    acquire_lease(settings, "manual_7")
    refused = rebuild(settings, "--yes")
    assert refused.exit_code == ExitCode.BAD_INPUT
    assert "run manual_7 holds the lease" in refused.stderr
    assert published(settings) == ["a"]


def test_json_does_not_ask(settings):
    assert "needs --yes or --dry-run" in rebuild(settings, "--json").stdout
