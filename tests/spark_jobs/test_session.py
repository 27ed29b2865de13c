"""Two lakes through the one Spark of a process: each job has a session of its own, and nothing of another's."""

from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import pyarrow as pa
import pytest

from fruits.errors import FruitsError
from fruits.lake.branches import Writer
from fruits.lake.catalog import Lake
from fruits.lake.schemas import QUARANTINE
from fruits.run.documents import task_document
from fruits.run.manifest import DUE_ETAG
from fruits.run.state import run_key
from fruits.spark.session import session, session_beside
from fruits.spark.tables import Tables

pytestmark = [pytest.mark.jobs]

PROPERTY = "spark.sql.iceberg.snapshot-property."


@contextmanager
def tables_of(settings, run):
    """The tables of a lake as a job of a run has them."""
    with (
        task_document(settings, "featurize", run_key(run), run) as recorder,
        session(run, settings, recorder) as spark,
    ):
        tables = Tables(lambda: spark, Lake.open(settings), Writer(run_key(run), recorder.document.writer(run).attempt))
        for name, value in tables.session_properties.items():
            spark.conf.set(name, value)
        yield tables


@pytest.fixture(scope="module")
def both(chain, first, new_settings):
    """Sessions on a lake in S3 and on a lake in a folder, open at once, after both wrote in turns."""
    rows = Lake.open(first.settings).read("features", chain.published(first.settings).snapshots["features"])
    in_s3, in_a_folder = new_settings("s3"), new_settings()
    with tables_of(in_s3, "one") as one, tables_of(in_a_folder, "two") as two:
        for tables in (one, two):
            tables.start_branch("features", tables.lake.head("features"))
        for start, tables in enumerate((one, two, one, two)):
            tables.append("features", tables.spark.createDataFrame(rows.slice(start, 1)))
        yield SimpleNamespace(rows=rows, one=one, two=two)


def test_each_lake_has_the_rows_of_its_own_session(both):
    keys = both.rows["key"].to_pylist()
    for tables, expected in ((both.one, {keys[0], keys[2]}), (both.two, {keys[1], keys[3]})):
        head = tables.lake.head("features", tables.writer.branch)
        assert set(tables.lake.read("features", head)["key"].to_pylist()) == expected
        assert {row.key for row in tables.read_branch("features").select("key").collect()} == expected


def test_each_snapshot_names_the_run_and_the_attempt_of_its_session(both):
    for tables in (both.one, both.two):
        base = tables.lake.head("features")
        assert tables.head("features", base) == tables.lake.head("features", tables.writer.branch)


def test_a_view_of_a_session_is_unknown_to_another(both):
    keys = {both.one: "a.jpg", both.two: "b.jpg"}
    for tables, key in keys.items():
        tables.delete_keys("features", pa.table({"key": [key]}), "no such backbone")
    assert [tables.spark.table("removed").first().key for tables in keys] == list(keys.values())


def test_settings_of_a_session_are_its_own(both, spark):
    both.one.spark.conf.set("spark.sql.shuffle.partitions", "3")
    assert both.two.spark.conf.get("spark.sql.shuffle.partitions") != "3"
    for tables, other in ((both.one, both.two), (both.two, both.one)):
        for name, value in tables.session_properties.items():
            assert tables.spark.conf.get(name) == value != other.spark.conf.get(name)
    assert not [key for key in spark.conf.getAll if key.startswith(PROPERTY)]


def test_a_session_knows_no_catalog_but_its_own(both, spark):
    catalog = f"spark.sql.catalog.{both.one.lake.settings.catalog_name}"
    assert both.one.spark.conf.get(f"{catalog}.s3.endpoint") == both.one.lake.settings.s3_endpoint
    assert both.two.spark.conf.get(f"{catalog}.s3.endpoint", None) is None
    assert both.two.spark.conf.get(f"{catalog}.io-impl", None) is None
    assert not [key for key in spark.conf.getAll if key.startswith(catalog)]


def test_a_spark_that_was_started_for_a_lake_serves_another_lake(both, first):
    """A lake in a folder after a lake in S3 of the same catalog name: nothing of the first is left over."""
    started = both.one.spark
    names = {key for key in started.conf.getAll if key.startswith("spark.sql.catalog.")}

    class Running:
        """A Spark whose every session has the catalog that it was started with."""

        conf = started.conf

        def newSession(self):  # noqa: N802 -- as Spark calls it
            spark = started.newSession()
            for name in names:
                spark.conf.set(name, started.conf.get(name))
            return spark

    beside = session_beside(Running(), first.settings)
    catalog = f"spark.sql.catalog.{first.settings.catalog_name}"
    assert beside.conf.get(f"{catalog}.warehouse") == first.settings.warehouse
    assert beside.conf.get(f"{catalog}.io-impl", None) is None
    assert beside.table(f"{first.settings.catalog_name}.{first.settings.namespace}.features").count() == 28


def test_a_spark_without_icebergs_extension_is_refused(both):
    without = SimpleNamespace(conf=SimpleNamespace(get=lambda name, default=None: default))
    with pytest.raises(FruitsError, match=r"it was started without spark\.sql\.extensions=org\.apache\.iceberg"):
        session_beside(without, both.one.lake.settings)


@pytest.mark.parametrize("run", ["it's ${env:HOME} \\\\ \\u0041", "manual__1"])
def test_rows_of_keys_leave_whatever_is_in_their_names_but_not_those_of_the_run_itself(both, run):
    tables = both.two
    tables.start_branch("quarantine", tables.lake.head("quarantine"))
    keys = ["a'b.jpg", "b\\\\.jpg", "c${spark.app.name}.jpg", "d\n%_\u2028\U0001f34e.jpg", "e\\'.jpg"]
    owners = [(key, owner, etag) for key in keys for owner, etag in ((run, "e1"), (run, DUE_ETAG), ("other", "e1"))]
    known = {"size": 1, "last_modified": datetime.now(UTC), "model_id": "m", "reason": "corrupt", "detail": "-"}
    rows = [{**known, "key": key, "run_id": owner, "etag": etag} for key, owner, etag in owners]
    tables.append("quarantine", tables.spark.createDataFrame(pa.Table.from_pylist(rows, schema=QUARANTINE.schema)))
    tables.delete_keys("quarantine", pa.table({"key": keys[:-1]}), "m", but_of_run=run)
    left = {(row.key, row.run_id, row.etag) for row in tables.read_branch("quarantine").collect()}
    assert left == {(key, run, "e1") for key in keys} | {one for one in owners if one[0] == keys[-1]}
    tables.delete_keys("quarantine", pa.table({"key": keys}), "m")
    assert tables.read_branch("quarantine").count() == 0
