"""The command line on a lake that the real jobs made."""

import json

import pytest
from typer.testing import CliRunner

from fruits.cli.app import app

pytestmark = [pytest.mark.jobs]


@pytest.fixture
def answer(first, monkeypatch):
    """The JSON document of a command on the published first run."""
    for name in ("lake", "bucket", "s3_endpoint"):
        monkeypatch.setenv(f"FRUITS_{name.upper()}", getattr(first.settings, name))
    monkeypatch.setenv("FRUITS_CATALOG_URI", first.settings.catalog_uri.get_secret_value())

    def call(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


def test_status_tells_of_the_run_what_its_documents_do(answer, first):
    said = answer("status")
    (run,) = (run for run in said["runs"] if run["run_id"] == first.run_id)
    assert (run["outcome"], run["create"]) == ("published", len(first.photos))
    assert said["publication"]["publication_id"] == first.documents.publish.result.publication_id
    assert said["publication"]["features"] == first.documents.validate.result.features == 28
    assert sum(said["publication"]["quarantine"].values()) == len(first.photos) - 28
    assert all(gate["passed"] for gate in said["publication"]["gates"] if gate["severity"] == "required")


def test_plan_finds_nothing_to_do_but_what_is_asked_for(answer, first):
    said = answer("plan")
    assert (said["work"], said["counts"]["unchanged"]) == (False, 28)
    assert answer("plan", "--rebuild")["counts"]["update"] == len(first.photos)
    assert answer("plan", "--retry-quarantined")["counts"]["update"] > 0


def test_quarantine_lists_what_was_not_readable(answer, first):
    said = {one["key"] for one in answer("quarantine", "list")["objects"]}
    assert said == {key for key in first.photos if not key.endswith(".img")}


def test_identify_knows_a_photo_that_is_in_the_tables(answer, first, tmp_path):
    key = next(key for key in first.photos if key.startswith("Training/") and key.endswith(".img"))
    (tmp_path / "photo.jpg").write_bytes(first.photos[key])
    (found,) = answer("identify", tmp_path / "photo.jpg")["photos"]
    assert found["nearest"][0]["key"] == key
    assert found["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert found["label"] == key.split("/")[1]
