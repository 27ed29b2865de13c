"""AWS Glue as the catalog, against moto's Glue and a real S3 server.

moto (5.2) takes an update whatever version of the table it was made from, which Glue refuses. The tests add that one
rule, or nothing here would ever conflict; that Glue keeps to it is AWS's word.
"""

import json
import os
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fruits.denials import denials_explained
from fruits.errors import ConflictError, FruitsError, TransientError
from fruits.lake.branches import advance_main, change_refs, commit_rows, drop_run_branches, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.publication import Base, Publication, current_base, publications, publish
from fruits.lake.reader import NoLakeError, open_read_only
from fruits.lake.schemas import FEATURES, TABLES
from fruits.lake.source import bind_source
from fruits.serve.doctor import catalog as doctor_catalog
from fruits.serve.summary import describe_catalog
from fruits.settings import Settings
from tests.runs import heads, writer

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.airflow  # moto is there only


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The updates of tables that Glue was asked for; those that come too late are refused, as by AWS."""
    from moto.core.exceptions import JsonRESTError
    from moto.glue.responses import GlueResponse

    asked: list[dict[str, Any]] = []
    update, one_at_a_time = GlueResponse.update_table, threading.Lock()

    def checked(self: Any) -> Any:
        with one_at_a_time:
            asked.append(self.parameters)
            table = self.glue_backend.get_table(self.parameters["DatabaseName"], self.parameters["TableInput"]["Name"])
            if self.parameters.get("VersionId") not in (None, table.as_dict()["VersionId"]):
                raise JsonRESTError(
                    "ConcurrentModificationException", "Update table failed due to concurrent modifications."
                )
            return update(self)

    monkeypatch.setattr(GlueResponse, "update_table", checked)
    return asked


@pytest.fixture
def settings(updates: list[dict[str, Any]], glue_settings: Settings) -> Settings:
    """Settings of a lake whose Glue compares versions."""
    return glue_settings


def feature(key: str) -> pa.Table:
    values = {"key": key, "vector": [1.0], "last_modified": 0, "size": 1, "phash": 0, "width": 1, "height": 1}
    return pa.Table.from_pylist([{**dict.fromkeys(FEATURES.schema.names, ""), **values}], schema=FEATURES.schema)


def write(lake: Lake, run: str, base: Base) -> None:
    """One feature, on a run's branch."""
    by = writer(run)
    start_branch(lake, "features", by.branch, base.snapshots["features"])
    rows, commit = feature(f"{run}.jpg"), by.commit
    commit_rows(lake, "features", lambda change: change.append(rows, **commit), branch=by.branch)


def publication_of(lake: Lake, run: str, base: Base) -> Publication:
    sequence, moment = base.publication.sequence + 1, datetime.now(UTC)
    return Publication(sequence, heads(lake, run, base), run, run_id=run, published_at=moment, model_id="m", counts={})


class TestLake:
    def test_the_first_to_open_it_makes_database_and_tables_and_the_next_finds_them(self, settings: Settings) -> None:
        with pytest.raises(NoLakeError, match="has no tables"):
            open_read_only(settings)
        made = {table.name: Lake.open(settings).head(table.name) for table in TABLES}
        assert {table.name: open_read_only(settings).head(table.name) for table in TABLES} == made
        assert all(made.values())

    def test_rows_on_a_branch_are_not_on_main_until_it_moves(
        self, settings: Settings, updates: list[dict[str, Any]]
    ) -> None:
        lake = Lake.open(settings)
        base = current_base(lake)
        write(lake, "a", base)
        assert lake.read("features", None).num_rows == 0
        target = lake.head("features", writer("a").branch)
        assert target is not None
        advance_main(lake, "features", expected=base.snapshots["features"], target=target)
        assert lake.read("features", None)["key"].to_pylist() == ["a.jpg"]
        assert {one["SkipArchive"] for one in updates} == {True}, "else Glue would keep a version of each commit"
        assert all(one["VersionId"] for one in updates), "it is what Glue compares"

    def test_it_takes_no_more_than_the_policies_allow(
        self, settings: Settings, operations: set[str], allowed: Callable[[str], set[str]]
    ) -> None:
        lake = Lake.open(settings)
        bind_source(lake)
        assert operations <= allowed("Airflow")
        operations.clear()
        lake = Lake.open(settings)  # as a job does: everything is there
        write(lake, "a", current_base(lake))
        assert operations <= allowed("Jobs")
        assert {one for one in allowed("Jobs") if one.startswith("glue:")} == operations

    def test_many_that_open_a_new_one_at_once_find_the_same_tables(self, settings: Settings) -> None:
        from concurrent.futures import ThreadPoolExecutor

        barrier = threading.Barrier(4)

        def opened(_: int) -> list[object]:
            barrier.wait()
            lake = Lake.open(settings)
            return [lake.table(table.name).metadata.table_uuid for table in TABLES]

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(opened, range(4)))
        assert answers == [answers[0]] * 4

    def test_commits_to_branches_of_one_table_at_once_are_all_kept(
        self, settings: Settings, updates: list[dict[str, Any]]
    ) -> None:
        from concurrent.futures import ThreadPoolExecutor

        lake = Lake.open(settings)
        base = current_base(lake)
        runs = [f"run{number}" for number in range(6)]
        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(lambda run: write(Lake(settings), run, base), runs))
        kept = [lake.read("features", lake.head("features", writer(run).branch))["key"].to_pylist() for run in runs]
        assert kept == [[f"{run}.jpg"] for run in runs]

    def test_another_lake_in_the_same_database_is_refused(
        self, settings: Settings, make_settings: Callable[..., Settings]
    ) -> None:
        bind_source(Lake.open(settings))
        other = make_settings("s3", catalog_uri="glue://", namespace=settings.namespace, bucket=settings.bucket)
        for look in (lambda: open_read_only(other), lambda: bind_source(Lake.open(other))):
            with pytest.raises(
                FruitsError, match=rf"FRUITS_LAKE is {other.lake}, but .* in {settings.lake};.*NAMESPACE"
            ):
                look()

    def test_the_doctor_and_the_summary_know_it(self, settings: Settings) -> None:
        Lake.open(settings)
        assert doctor_catalog(settings).state == "ok"
        described = describe_catalog(settings)
        assert described["uri"] == "glue://"
        assert "uri" not in described["properties"]
        assert json.dumps(described)


class TestPublication:
    def test_of_two_runs_from_one_base_one_is_published_and_the_other_told(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both have read the table before either writes it: only Glue's own comparison can tell them apart."""
        from concurrent.futures import ThreadPoolExecutor

        from pyiceberg.catalog.glue import GlueCatalog

        lake = Lake.open(settings)
        base = current_base(lake)
        for run in ("a", "b"):
            write(lake, run, base)
        publish_both, moved = threading.Barrier(2), threading.local()
        update = GlueCatalog._update_glue_table

        def together(self: Any, database_name: str, table_name: str, table_input: Any, version_id: str) -> None:
            swaps = table_name == "publications" and getattr(moved, "swap", False)
            moved.swap = False
            if swaps:
                publish_both.wait(30)
            update(self, database_name, table_name, table_input, version_id)

        def advance(*arguments: Any, **keywords: Any) -> None:
            moved.swap = arguments[1] == "publications"
            advance_main(*arguments, **keywords)

        monkeypatch.setattr(GlueCatalog, "_update_glue_table", together)
        monkeypatch.setattr("fruits.lake.publication.advance_main", advance)

        def result(run: str) -> str:
            mine = Lake(settings)
            try:
                return str(publish(mine, base, writer(run), publication_of(mine, run, base)).publication_id)
            except ConflictError as error:
                return str(error)

        with ThreadPoolExecutor(2) as pool:
            results = dict(zip(("a", "b"), pool.map(result, ("a", "b")), strict=True))
        (winner,) = [run for run, said in results.items() if said == run]
        (loser,) = {"a", "b"} - {winner}
        assert f"another run published after run {loser} was planned" in results[loser]
        (row,) = publications(lake)
        assert row.run_id == winner
        assert lake.read("features", None)["key"].to_pylist() == [f"{winner}.jpg"]


class TestLostReplies:
    """An update lands, its answer does not; sent again by botocore, it meets itself and is refused."""

    @pytest.fixture
    def lost(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        from moto.core.exceptions import JsonRESTError
        from moto.glue.responses import GlueResponse

        Lake.open(settings)
        update = GlueResponse.update_table

        def landed(self: Any) -> None:
            update(self)
            raise JsonRESTError(
                "ConcurrentModificationException", "Update table failed due to concurrent modifications."
            )

        monkeypatch.setattr(GlueResponse, "update_table", landed)

    @pytest.mark.usefixtures("lost")
    def test_a_run_is_published_all_the_same_and_once(self, settings: Settings) -> None:
        lake = Lake(settings)
        base = current_base(lake)
        write(lake, "a", base)
        assert publish(lake, base, writer("a"), publication_of(lake, "a", base)).publication_id == "a"
        assert [row.run_id for row in publications(lake)] == ["a"]
        assert lake.read("features", None)["key"].to_pylist() == ["a.jpg"]
        drop_run_branches(lake, "a")
        assert not lake.state("features").refs, "its branch is gone"

    @pytest.mark.usefixtures("lost")
    def test_refs_are_changed(self, settings: Settings) -> None:
        lake = Lake(settings)
        base = current_base(lake).publication.snapshots["features"]
        start_branch(lake, "features", "run_a", base)
        change_refs(lake, "features", {"publication_1": base}, {"run_a": base})
        assert dict(lake.state("features").refs) == {"publication_1": base}

    @pytest.mark.usefixtures("lost")
    def test_what_another_one_did_stays_a_conflict(self, settings: Settings) -> None:
        lake = Lake(settings)
        base = current_base(lake).publication.snapshots["features"]
        commit_rows(lake, "features", lambda transaction: transaction.append(feature("a.jpg")))
        with pytest.raises(ConflictError):
            advance_main(lake, "features", expected=base, target=base)


class TestWhatGlueRefuses:
    @pytest.fixture
    def refuse(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Has Glue refuse an operation."""
        from moto.core.exceptions import JsonRESTError
        from moto.glue.responses import GlueResponse

        def refuse(operation: str, code: str = "AccessDeniedException") -> None:
            denied = f"User: arn:x is not authorized to perform: glue:{operation.title().replace('_', '')}"

            def refused(self: Any) -> None:
                raise JsonRESTError(code, denied if code == "AccessDeniedException" else "later")

            monkeypatch.setattr(GlueResponse, operation, refused)

        return refuse

    @pytest.mark.parametrize(
        ("method", "operation"),
        [("get_tables", "GetTables"), ("create_database", "CreateDatabase"), ("create_table", "CreateTable")],
    )
    def test_what_it_denies_is_named(
        self, settings: Settings, refuse: Callable[..., None], method: str, operation: str
    ) -> None:
        refuse(method)
        with pytest.raises(FruitsError, match=f"AWS denies glue:{operation}; the role lacks") as raised:
            Lake.open(settings)
        assert not isinstance(raised.value, TransientError)

    def test_also_of_a_commit(self, settings: Settings, refuse: Callable[..., None]) -> None:
        lake = Lake.open(settings)
        refuse("update_table")
        with pytest.raises(FruitsError, match="AWS denies glue:UpdateTable"), denials_explained():  # as every task does
            start_branch(lake, "features", "run_a", current_base(lake).publication.snapshots["features"])

    def test_who_may_not_create_a_database_can_work_with_one(
        self, settings: Settings, refuse: Callable[..., None]
    ) -> None:
        import boto3

        glue = boto3.client("glue", region_name=settings.s3_region)
        glue.create_database(DatabaseInput={"Name": settings.namespace})
        refuse("create_database")
        assert Lake.open(settings).head("features")

    def test_readers_are_told_as_well(self, settings: Settings, refuse: Callable[..., None]) -> None:
        refuse("get_tables")
        with pytest.raises(FruitsError, match="AWS denies glue:GetTables"):
            open_read_only(settings)

    def test_an_answer_that_may_be_another_next_time_is_tried_again(
        self, settings: Settings, refuse: Callable[..., None]
    ) -> None:
        refuse("get_tables", "OperationTimeoutException")
        with pytest.raises(TransientError, match=rf"Glue \(us-east-1\), database '{settings.namespace}': "):
            Lake.open(settings)

    def test_a_glue_that_does_not_answer_is_transient(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", "http://127.0.0.1:9")
        monkeypatch.setattr("pyiceberg.catalog.glue.MAX_RETRIES", 1)
        with pytest.raises(TransientError, match="Glue .*check the network and FRUITS_S3_REGION"):
            Lake.open(settings)


SPARK = """
import sys
from pyspark.sql import SparkSession
from fruits.lake.catalog import spark_configuration
from fruits.settings import Settings

settings = Settings.load()
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
for key, value in spark_configuration(settings).items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
table = f"{settings.catalog_name}.{settings.namespace}.features"
spark.sql(f"SELECT * FROM {table}").writeTo(f"{table}.branch_run_a__featurize_1_abc123").append()
print("ROWS", spark.table(f"{table}.branch_run_a__featurize_1_abc123").count())
"""


@pytest.mark.heavy
def test_spark_and_pyiceberg_work_on_the_same_tables(
    settings: Settings, updates: list[dict[str, Any]], operations: set[str], allowed: Callable[[str], set[str]]
) -> None:
    lake = Lake.open(settings)
    base = current_base(lake)
    commit_rows(lake, "features", lambda transaction: transaction.append(feature("a.jpg")))
    write(lake, "a", base)
    before = len(updates)
    operations.clear()
    names = {
        "LAKE": settings.lake,
        "CATALOG_URI": "glue://",
        "NAMESPACE": settings.namespace,
        "S3_ENDPOINT": str(settings.s3_endpoint),
    }
    done = subprocess.run(
        [ROOT / ".venvs/jobs/bin/python", "-c", SPARK],
        env={
            **os.environ,
            **{f"FRUITS_{name}": value for name, value in names.items()},
            "JAVA_HOME": (ROOT / ".venvs/java_home").read_text().strip(),
            "SPARK_CONF_DIR": str(ROOT / "local" / "spark"),
        },
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert "ROWS 2" in done.stdout, done.stderr[-3000:]
    assert "glue:UpdateTable" in operations
    assert operations <= allowed("Jobs")
    assert lake.read("features", lake.head("features", writer("a").branch))["key"].to_pylist() == ["a.jpg", "a.jpg"]
    by_spark = updates[before:]
    assert by_spark, "Spark has told Glue, too"
    assert all(one["VersionId"] and one["SkipArchive"] for one in by_spark)
