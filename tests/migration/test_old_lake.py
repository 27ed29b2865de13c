"""Lakes and runs in flight of the release before lake formats open, go on and migrate."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fruits.cli.app import app
from fruits.errors import ExitCode, FruitsError, TransientError
from fruits.lake.catalog import LAKE_FORMAT, Lake
from fruits.lake.reader import open_read_only
from fruits.run.request import resolve_request
from fruits.run.state import run_key
from fruits.settings import Settings
from fruits.steps.plan import plan_run
from fruits.steps.prepare import prepare
from fruits.steps.publish import publish_run
from fruits.stores import lake_store, read_json, write_json
from tests.migration.conftest import settings_of
from tests.migration.old_lake import OldLakes
from tests.spark_jobs.conftest import Chain

pytestmark = [pytest.mark.jobs, pytest.mark.slow]

JOBS = ("featurize", "pca", "validate")
MADE_ANEW = ("last_modified", "fitted_at", "features_snapshot_id", "limit", "decoder", "split_rules")
"""Columns that differ from lake to lake, for each has its own objects and snapshots, or that the old release lacked."""

SUMMED = frozenset({"mean", "components", "explained_variance", "explained_variance_ratio", "total_variance"}) | {
    *("held_out_unexplained", "embedding", "residual")
}


@pytest.fixture
def fruits(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a lake; returns its JSON document."""

    def run(settings: Settings, *arguments: str) -> Any:
        for name in ("lake", "bucket", "s3_endpoint"):
            monkeypatch.setenv(f"FRUITS_{name.upper()}", getattr(settings, name))
        monkeypatch.setenv("FRUITS_CATALOG_URI", settings.catalog_uri.get_secret_value())
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return run


def names_in(settings: Settings, folder: str) -> list[str]:
    """The files of a folder of the lake."""
    return sorted(item["path"] for batch in obstore.list(lake_store(settings), prefix=folder) for item in batch)


def renew_turn(settings: Settings) -> None:
    """As the old task would, had it worked until now: making the lakes takes longer than a turn lasts."""
    (path,) = names_in(settings, "turns")
    turn = read_json(lake_store(settings), path)
    write_json(lake_store(settings), path, {**turn, "renewed_at": datetime.now(UTC).isoformat()})


def plan(settings: Settings, run_id: str) -> Any:
    """The tasks `prepare` and `plan`."""
    request = resolve_request({}, settings)
    prepare(settings, request)
    return plan_run(settings, request, run_id)


def by_key(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without what differs from lake to lake, sorted."""
    rows = table.drop_columns([name for name in MADE_ANEW if name in table.column_names]).to_pylist()
    return sorted(rows, key=lambda row: str(row.get("key", row.get("pca_id"))))


REFUSED = 3
"""Photos that the old release's decoder refused. It did not say which decoder that was: each is read again, once."""


def test_an_old_lake_is_read_as_it_is_and_migrates_with_the_next_run(
    old_lakes: OldLakes, fruits: Any, tmp_path: Path
) -> None:
    settings, old = settings_of(old_lakes, "published"), old_lakes.lakes["published"]
    status = fruits(settings, "status")
    assert status["publication"]["run_id"] == old.published
    assert status["publication"]["features"] == 28
    assert [(run["run_id"], run["outcome"]) for run in status["runs"]] == [(old.published, "published")]
    assert fruits(settings, "plan")["work"] is True, "the photos of `REFUSED` are read again"
    assert fruits(settings, "report", old.published, "-o", str(tmp_path / "report.html"))["bytes"]
    assert open_read_only(settings).format() == 1
    assert (len(names_in(settings, "turns")), len(names_in(settings, "leases"))) == (1, 0)

    planned = plan(settings, "scheduled__after_the_upgrade")
    assert {name: count for name, count in planned.counts.items() if name in ("create", "update", "delete")} == {
        "create": 0,
        "update": REFUSED,
        "delete": 0,
    }
    assert planned.counts["unchanged"] == 28
    assert open_read_only(settings).format() == LAKE_FORMAT
    assert (len(names_in(settings, "turns")), len(names_in(settings, "leases"))) == (0, 1)


@pytest.mark.parametrize("name", ["planned", "projected", "validated"])
def test_a_run_in_flight_goes_on_and_publishes_what_the_old_release_would_have(
    old_lakes: OldLakes, chain: Chain, fruits: Any, tmp_path: Path, name: str
) -> None:
    settings, old = settings_of(old_lakes, name), old_lakes.lakes[name]
    run_id, key = str(old.in_flight), run_key(str(old.in_flight))
    assert fruits(settings, "report", run_id, "-o", str(tmp_path / "report.html"))["bytes"]
    renew_turn(settings)
    with pytest.raises(TransientError, match=f"run {key} holds the lease"):
        plan(settings, "scheduled__of_another_run")
    assert not names_in(settings, "turns")

    with chain.environment(settings):
        for job in JOBS[len(old.done) - 1 :]:
            assert chain.jobs[job].main(["--run", key]) == ExitCode.OK
    published = publish_run(settings, key).publication

    lake = Lake.open(settings)
    assert (published.sequence, published.run_id) == (2, run_id)
    assert fruits(settings, "status")["publication"]["publication_id"] == published.publication_id
    for table in ("features", "quarantine", "pca_models", "embeddings"):
        expected = by_key(pq.read_table(old_lakes.expected[table]))
        check_same_rows(by_key(lake.read(table, published.snapshots[table])), expected)
    again = plan(settings, "scheduled__of_another_run")
    assert (again.counts["create"], again.counts["update"], again.counts["delete"]) == (0, REFUSED, 0)
    (lease,) = names_in(settings, "leases")
    assert read_json(lake_store(settings), lease)["released"] is False, "that run has work"


def check_same_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal to the bit, but for what comes out of sums over rows: their order is Spark's."""
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for column, value in row.items():
            if column in SUMMED:
                np.testing.assert_allclose(value, other[column], rtol=1e-4, atol=1e-4, err_msg=column)
            else:
                assert value == other[column], (row.get("key"), column)


def test_a_lake_of_a_newer_format_is_refused_by_name(settings: Settings, fruits: Any) -> None:
    lake = Lake.open(settings)
    with lake.table("publications").transaction() as transaction:
        transaction.set_properties({"fruits.lake-format": "99"})
    for opening in (Lake.open, open_read_only):
        with pytest.raises(FruitsError, match=rf"has format 99; Fruits .* knows formats up to {LAKE_FORMAT}"):
            opening(settings)
