import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from urllib.parse import quote

import numpy as np
import psycopg2
import psycopg2.errors
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.table import DataScan, FileScanTask
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as SQLAlchemyTimeoutError

from fruits.errors import FruitsError, TransientError
from fruits.lake import catalog
from fruits.lake.branches import change_refs, commit_rows
from fruits.lake.catalog import (
    LAKE_FORMAT,
    ROW_GROUP_BYTES,
    RUN_PROPERTY,
    Lake,
    catalog_properties,
    database_problem,
    spark_configuration,
)
from fruits.lake.publication import Publication, _to_rows, publications
from fruits.lake.reader import PublishedRows, explain_lake_errors, open_read_only
from fruits.lake.rebuild import check_catalog_is_current, plan_rebuild, rebuild
from fruits.lake.schemas import DATA_TABLES, EMBEDDINGS, FEATURES, QUARANTINE, TABLES

NAMES = {table.name for table in TABLES}


def in_spark(settings):
    """The catalog's own part of Spark's configuration."""
    prefix = f"spark.sql.catalog.{settings.catalog_name}."
    return {
        key.removeprefix(prefix): value
        for key, value in spark_configuration(settings).items()
        if key.startswith(prefix)
    }


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
class TestMadeTables:
    def test_columns_types_and_nullability_are_those_of_the_schema_file(self, lake, table):
        made = schema_to_pyarrow(lake.table(table.name).schema(), include_field_ids=False)
        # Iceberg's own arrow types have 64-bit offsets; a cast that changes neither name, order nor nullability tells.
        assert made.names == table.schema.names
        empty = pa.Table.from_pylist([], schema=table.schema)
        assert lake.read(table.name, None).cast(table.schema).schema == empty.schema
        assert [field.nullable for field in made] == [field.nullable for field in table.schema]

    def test_every_column_says_what_it_is(self, lake, table):
        docs = {field.name: field.doc for field in lake.table(table.name).schema().fields}
        assert docs == {field.name: field.metadata[b"doc"].decode() for field in table.schema}
        assert all(docs.values())

    def test_it_starts_with_an_empty_snapshot_on_main(self, lake, table):
        assert lake.head(table.name) is not None
        assert lake.read(table.name, lake.head(table.name)).num_rows == 0

    def test_it_is_partitioned_as_defined_and_deletes_cost_no_rewrite(self, lake, table):
        made = lake.table(table.name)
        columns = [made.schema().find_column_name(field.source_id) for field in made.spec().fields]
        assert columns == ([table.partition_by] if table.partition_by else [])
        assert made.properties["write.delete.mode"] == "merge-on-read"
        assert int(made.properties["commit.retry.num-retries"]) >= 20

    def test_few_rows_share_a_row_group(self, lake, table):
        least, most = (0.25, 1) if table.name == "photo_hashes" else (8, 16)
        size = int(lake.table(table.name).properties["write.parquet.row-group-size-bytes"])
        assert least * 2**20 <= size <= most * 2**20


def test_tables_are_made_once(lake):
    before = {name: lake.table(name).metadata_location for name in NAMES}
    again = Lake.open(lake.settings)
    assert {name: again.table(name).metadata_location for name in NAMES} == before


def test_a_table_that_is_missing_is_made_beside_those_that_are_there(lake):
    kept = lake.table("features").metadata.table_uuid
    lake.catalog.drop_table((lake.settings.namespace, "embeddings"))
    again = Lake.open(lake.settings)
    assert again.head("embeddings") is not None
    assert again.table("features").metadata.table_uuid == kept


class TestTablesOfAnEarlierRelease:
    """Columns that were added since come with the next opening for work; published snapshots are read as they were."""

    @pytest.fixture(params=["1", "2", str(LAKE_FORMAT)])
    def old(self, lake, request):
        """A lake of earlier software, maybe of this format: `quarantine` lacks the newest columns, and has a row."""
        with lake.table("quarantine").update_schema() as change:
            change.delete_column("limit").delete_column("decoder")
        lake.set_properties({"fruits.lake-format": request.param, "fruits.lake-columns": "66"})
        fields = [field for field in QUARANTINE.schema if field.name not in ("limit", "decoder")]
        values = {"key": "a", "etag": "e", "model_id": "m", "reason": "corrupt", "detail": "d", "run_id": "r"}
        row = {**values, "size": 1, "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}
        rows = pa.Table.from_pylist([row], schema=pa.schema(fields))
        lake.table("quarantine").append(rows)
        return lake

    def test_columns_are_added_once_when_the_lake_is_opened(self, old):
        before = old.head("quarantine")
        opened = [Lake.open(old.settings).table("quarantine") for _ in range(2)]
        assert [table.schema().column_names for table in opened] == [QUARANTINE.schema.names] * 2
        assert opened[0].metadata == opened[1].metadata, "nothing is added without need"
        assert opened[1].metadata.current_snapshot_id == before

    def test_rows_from_before_have_null_there_and_can_be_read_at_their_snapshot(self, old):
        columns, snapshot = ("key", "reason", "limit", "decoder"), old.head("quarantine")
        opened = Lake.open(old.settings)
        assert opened.read("quarantine", snapshot, columns).to_pylist() == [{"key": "a", "reason": "corrupt"}]
        (batch,) = opened.batches("quarantine", snapshot, columns)
        assert batch.to_pylist() == [{"key": "a", "reason": "corrupt"}]
        publication = Publication(1, {"quarantine": snapshot}, model_id="m")
        (row,) = [
            row for batch in PublishedRows(opened, publication, "quarantine").batches() for row in batch.to_pylist()
        ]
        assert (list(row), row["limit"], row["decoder"]) == (QUARANTINE.schema.names, None, None)

    def test_new_rows_have_them(self, old):
        opened = Lake.open(old.settings)
        values = {"key": "b", "etag": "e", "model_id": "m", "reason": "too_many_pixels", "detail": "d", "run_id": "r"}
        row = {**values, "size": 1, "last_modified": datetime(2026, 1, 1, tzinfo=UTC), "limit": 9, "decoder": None}
        opened.table("quarantine").append(pa.Table.from_pylist([row], schema=QUARANTINE.schema))
        rows = {row["key"]: row["limit"] for row in opened.read("quarantine", None).to_pylist()}
        batches = pa.Table.from_batches(opened.batches("quarantine", None, ("key", "limit", "decoder")))
        assert rows == {row["key"]: row["limit"] for row in batches.to_pylist()}
        assert rows == {"a": None, "b": 9}

    def test_a_lake_that_lacks_no_column_is_opened_by_one_read_of_metadata(self, old, monkeypatch):
        loaded, load = [], Lake.table
        monkeypatch.setattr(Lake, "table", lambda lake, name: loaded.append(name) or load(lake, name))
        Lake.open(old.settings)
        assert set(loaded) == NAMES
        loaded.clear()
        Lake.open(old.settings)
        assert loaded == ["publications"]

    def test_tables_that_an_earlier_release_left_half_made_get_them_as_well(self, old):
        old.catalog.drop_table((old.settings.namespace, "publications"))
        opened = Lake.open(old.settings)
        assert opened.format() == LAKE_FORMAT
        assert opened.table("quarantine").schema().column_names == QUARANTINE.schema.names


def test_a_lake_from_before_the_number_of_columns_was_noted_gets_them_too(lake):
    for name, column in (("quarantine", "limit"), ("publications", "approvals")):
        with lake.table(name).update_schema() as change:
            change.delete_column(column)
    with lake.table("publications").transaction() as change:
        change.remove_properties("fruits.lake-columns")
    opened = Lake.open(lake.settings)
    for table in TABLES:
        assert {field.name for field in opened.table(table.name).schema().fields} == set(table.schema.names)


def test_tables_of_an_earlier_release_get_the_properties_that_they_lack_once_and_keep_their_own(lake, monkeypatch):
    small_groups, codec = "write.parquet.row-group-size-bytes", "write.parquet.compression-codec"
    for name in NAMES:
        with lake.table(name).transaction() as change:
            change.remove_properties(small_groups)
            change.set_properties({codec: "gzip"})
    opened = Lake.open(lake.settings)
    properties = [opened.table(name).properties for name in NAMES]
    assert {(int(found[small_groups]), found[codec]) for found in properties} == {(ROW_GROUP_BYTES, "gzip")}
    loaded, load = [], Lake.table
    monkeypatch.setattr(Lake, "table", lambda lake, name: loaded.append(name) or load(lake, name))
    Lake.open(lake.settings)
    assert loaded == ["publications"]


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_an_empty_catalog_is_not_put_over_published_tables(make_settings, kind):
    settings = make_settings(kind)
    lake = Lake.open(settings)
    snapshots = {name: lake.state(name).main for name in DATA_TABLES}
    row = Publication(1, snapshots, "pub-000001-abcdef", "run", None, "m", "p")
    lake.table("publications").append(_to_rows(row), snapshot_properties={RUN_PROPERTY: "run"})
    lost = make_settings(lake=settings.lake)  # with a catalog of its own
    with pytest.raises(FruitsError, match="`fruits catalog rebuild` makes the catalog again"):
        Lake.open(lost)
    assert Lake(lost).catalog.list_tables(lost.namespace) == [], "nothing was made there"
    assert Lake.open(settings).head("publications") == lake.head("publications")
    rebuild(lost, plan_rebuild(lost))
    again = Lake.open(lost)
    assert publications(again) == publications(lake)
    for commit in "12":
        again.set_properties({"commit": commit})
    check_catalog_is_current(again)
    with pytest.raises(FruitsError, match="the catalog is older than the lake"):
        check_catalog_is_current(Lake(settings))


def test_another_catalog_name_is_another_lake_in_the_same_database(lake, lake_settings):
    other = Lake.open(lake_settings(catalog_name="elsewhere", lake=f"{lake.settings.lake}-elsewhere"))
    assert other.table("features").metadata.table_uuid != lake.table("features").metadata.table_uuid


@pytest.mark.parametrize("attempt", range(4))
def test_threads_that_open_a_new_lake_at_once_find_the_same_tables(lake_settings, attempt):
    barrier = threading.Barrier(4)

    def identities(_):
        barrier.wait()
        lake = Lake.open(lake_settings())
        return {name: (lake.table(name).metadata.table_uuid, lake.head(name)) for name in NAMES}

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(identities, range(4))
    assert None not in first.values()
    assert others == [first] * 3


OPEN_AT = """
import sys, time
from fruits.lake.catalog import Lake
from fruits.settings import Settings
import pyiceberg.catalog.sql, pyiceberg.io.pyarrow
print("ready", flush=True)
sys.stdin.readline()
lake = Lake.open(Settings.load())
print(lake.table("features").metadata.table_uuid, lake.head("publications"))
"""


@pytest.mark.heavy
def test_processes_that_open_a_new_lake_at_once_find_the_same_tables(lake_settings):
    settings = lake_settings()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FRUITS_LAKE": settings.lake,
        "FRUITS_CATALOG_URI": settings.catalog_uri.get_secret_value(),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(answers)) == 1


class TestReading:
    def test_rows_of_a_snapshot_with_some_columns_where_a_column_has_a_value(self, lake):
        rows = [row(key, model_id) for key, model_id in (("a", "m"), ("b", "m"), ("c", "other"))]
        lake.table("features").append(pa.Table.from_pylist(rows[:1], schema=FEATURES.schema))
        then = lake.head("features")
        lake.table("features").append(pa.Table.from_pylist(rows[1:], schema=FEATURES.schema))
        assert lake.read("features", then).num_rows == 1
        now = lake.read("features", lake.head("features"), ("key", "vector"), model_id="m")
        assert now.column_names == ["key", "vector"]
        assert sorted(now["key"].to_pylist()) == ["a", "b"]
        assert lake.read("features", None, model_id="m", key="b").num_rows == 1

    @pytest.mark.parametrize("table", [EMBEDDINGS, QUARANTINE], ids=lambda one: f"{one.name} by {one.partition_by}")
    @pytest.mark.parametrize("small", [0, 2**20], ids=["streamed", "read ahead"])
    def test_batches_are_the_rows_that_are_left_few_at_a_time(self, lake, tmp_path, monkeypatch, table, small):
        """With position deletes as Spark writes them, in a file with several row groups and in one of many files."""
        monkeypatch.setattr(catalog, "_BATCH_ROWS", 4)
        monkeypatch.setattr(catalog, "_FILES_AHEAD", 2)
        monkeypatch.setattr(catalog, "_SMALL_FILE_BYTES", small)
        with lake.table(table.name).transaction() as change:
            change.set_properties({"write.parquet.row-group-limit": "6"})
            for first in (0, 20, 40, 60):
                keys = [f"k{number}" for number in range(first, first + 20)]
                change.append(pa.concat_tables(numbered(table, keys, one) for one in ("wanted", "other")))
        equal = {table.partition_by or "model_id": "wanted"}
        scanned = [task.file.file_path for task in lake.scan(table.name, None, **equal).plan_files()]
        assert len(scanned) == 4
        delete_rows(monkeypatch, tmp_path, {scanned[1]: [0, 5, 7, 19], scanned[2]: [*range(20)]})
        for columns in (("*",), ("run_id", "key")):
            batches = list(lake.batches(table.name, None, columns, **equal))
            found, expected = pa.Table.from_batches(batches), lake.read(table.name, None, columns, **equal)
            assert found.column_names == expected.column_names
            assert found.to_pylist() == expected.to_pylist()
            assert found.num_rows == 80 - 4 - 20
            assert 0 < min(map(len, batches)) <= max(map(len, batches)) <= 4

    def test_columns_that_a_table_got_later_are_null_in_the_rows_of_older_files(self, lake):
        rows = numbered(QUARANTINE, ["old"], "m")
        lake.catalog.drop_table((lake.settings.namespace, "quarantine"))
        older = lake.catalog.create_table(
            (lake.settings.namespace, "quarantine"), rows.drop(["limit", "decoder"]).schema
        )
        older.append(rows.drop(["limit", "decoder"]))
        lake._add_missing_columns(QUARANTINE)
        lake.table("quarantine").append(numbered(QUARANTINE, ["new"], "m"))
        found = [
            row for batch in lake.batches("quarantine", None, ("key", "limit", "decoder")) for row in batch.to_pylist()
        ]
        assert {row["key"]: (row["limit"], row["decoder"]) for row in found} == {"old": (None, None), "new": (0, "")}

    @pytest.mark.heavy
    def test_batches_take_the_memory_of_a_row_group_not_of_a_file(self, lake):
        keys = [f"k{number}" for number in range(100_000)]
        noise = np.random.default_rng(0).random((len(keys), 128), dtype=np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(noise.ravel(), noise.shape[1])
        place, field = EMBEDDINGS.schema.get_field_index("embedding"), EMBEDDINGS.schema.field("embedding")
        wide = numbered(EMBEDDINGS, keys, "p").set_column(place, field, vectors.cast(field.type))
        with lake.table("embeddings").transaction() as change:
            change.set_properties({"write.parquet.row-group-limit": "2000"})
            change.append(wide)
        rows, size, before = wide.num_rows, wide.nbytes, pa.total_allocated_bytes()
        assert [file.rows for file in lake.files("embeddings", lake.head("embeddings"))] == [rows]
        most = 0
        for batch in lake.batches("embeddings", None, pca_id="p"):
            most = max(most, pa.total_allocated_bytes() - before)
            rows -= batch.num_rows
        assert rows == 0
        assert most < size / 4

    def test_a_branch_that_does_not_exist_has_no_head(self, lake):
        assert lake.head("features", "run_nobody") is None

    def test_it_tells_whether_any_row_is_under_a_prefix(self, lake):
        assert not lake.holds("")
        lake.table("features").append(pa.Table.from_pylist([row("Training/a", "m")], schema=FEATURES.schema))
        quarantined = dict.fromkeys(QUARANTINE.schema.names, "") | {
            "key": "stray",
            "size": 1,
            "last_modified": 0,
            "limit": 0,
        }
        lake.table("quarantine").append(pa.Table.from_pylist([quarantined], schema=QUARANTINE.schema))
        assert {prefix for prefix in ("", "Train", "st", "Test/", "raining") if lake.holds(prefix)} == {
            "",
            "Train",
            "st",
        }


def row(key, model_id):
    """A row of features."""
    values = {"key": key, "model_id": model_id, "vector": [1.0, 2.0], "last_modified": 0, "size": 1, "phash": 0}
    return {**dict.fromkeys(FEATURES.schema.names, ""), **values, "width": 1, "height": 1}


def numbered(table, keys, identity):
    """Rows of embeddings or of quarantine with these keys, of one backbone and PCA version."""
    row = {
        "model_id": identity,
        "pca_id": identity,
        "embedding": [1.0, 2.0],
        "residual": 0.0,
        "size": 1,
        "last_modified": 0,
        "limit": 0,
    }
    values = {name: pa.array([row.get(name, "")]) for name in table.schema.names}
    columns = [values[field.name].cast(field.type).take(pa.array([0] * len(keys))) for field in table.schema]
    return pa.table(columns, table.schema).set_column(0, table.schema.field("key"), pa.array(keys))


def delete_rows(monkeypatch, folder, positions):
    """Have all scans find a position delete file, which PyIceberg cannot write, with rows of these data files."""
    path = f"{folder}/deletes.parquet"
    named = [(file, position) for file, deleted in positions.items() for position in deleted]
    pq.write_table(
        pa.table({"file_path": [file for file, _ in named], "pos": [position for _, position in named]}), path
    )
    deletes = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=path,
        file_format=FileFormat.PARQUET,
        record_count=len(named),
    )
    plan_files = DataScan.plan_files

    def planned(scan):
        return [
            FileScanTask(task.file, {deletes} if task.file.file_path in positions else None, task.residual)
            for task in plan_files(scan)
        ]

    monkeypatch.setattr(DataScan, "plan_files", planned)


class TestSparkConfiguration:
    def test_it_opens_the_same_catalog_by_the_same_name(self, lake_settings):
        settings = lake_settings(catalog_name="orchard")
        everything = spark_configuration(settings)
        assert everything["spark.sql.catalog.orchard"] == "org.apache.iceberg.spark.SparkCatalog"
        assert "IcebergSparkSessionExtensions" in everything["spark.sql.extensions"]
        assert in_spark(settings)["warehouse"] == catalog_properties(settings)["warehouse"] == f"{settings.lake}/tables"
        assert in_spark(settings)["jdbc.schema-version"] == "V1"
        assert in_spark(settings)["cache-enabled"] == "false"

    def test_the_sqlite_file_is_the_one_that_pyiceberg_opens(self, lake_settings, tmp_path):
        folder = tmp_path / "with space and %41"
        folder.mkdir()
        settings = lake_settings(catalog_uri=f"sqlite:///{quote(str(folder))}/catalog.db")
        Lake.open(settings)
        file = in_spark(settings)["uri"].removeprefix("jdbc:sqlite:").partition("?")[0]
        assert file == f"{folder}/catalog.db"
        assert (folder / "catalog.db").is_file()

    def test_a_folder_needs_no_s3(self, lake_settings):
        settings = lake_settings(s3_endpoint="http://127.0.0.1:9")
        assert not {key for key in in_spark(settings) if "s3" in key or key == "io-impl"}
        assert not {key for key in catalog_properties(settings) if "s3" in key}

    def test_an_s3_lake_names_server_and_region(self, lake_settings):
        settings = lake_settings(lake="s3://bucket/warehouse", s3_endpoint="http://127.0.0.1:9", s3_region="eu-west-3")
        spark, python = in_spark(settings), catalog_properties(settings)
        assert spark["warehouse"] == python["warehouse"] == "s3://bucket/warehouse/tables"
        assert spark["s3.endpoint"] == python["s3.endpoint"] == "http://127.0.0.1:9"
        assert spark["s3.path-style-access"] == "true"
        assert spark["client.region"] == python["s3.region"] == "eu-west-3"
        assert spark["io-impl"] == "org.apache.iceberg.aws.s3.S3FileIO"

    def test_s3_on_aws_needs_no_endpoint(self, lake_settings):
        settings = lake_settings(lake="s3://bucket/warehouse")
        assert "s3.endpoint" not in in_spark(settings)
        assert "s3.endpoint" not in catalog_properties(settings)

    def test_postgresql_goes_by_jdbc_with_user_and_password_apart(self, lake_settings):
        settings = lake_settings(catalog_uri="postgresql://ann:p%40ss%2Fword@db.example:5433/lake")
        spark = in_spark(settings)
        assert spark["uri"] == "jdbc:postgresql://db.example:5433/lake"
        assert (spark["jdbc.user"], spark["jdbc.password"]) == ("ann", "p@ss/word")
        uri = "postgresql+psycopg2://ann:p%40ss%2Fword@db.example:5433/lake"
        assert catalog_properties(settings)["uri"] == uri

    def test_postgresql_has_its_usual_port(self, lake_settings):
        settings = lake_settings(catalog_uri="postgresql://ann@db.example/lake")
        assert in_spark(settings)["uri"] == "jdbc:postgresql://db.example:5432/lake"

    @pytest.mark.parametrize("account", [None, "123456789012"])
    def test_glue_is_the_same_on_both_sides(self, lake_settings, account):
        settings = lake_settings(
            catalog_uri=f"glue://{account or ''}", lake="s3://bucket/warehouse", s3_region="eu-west-3"
        )
        identity = {"glue.id": account} if account else {}
        assert catalog_properties(settings) == {
            "type": "glue",
            "glue.region": "eu-west-3",
            "glue.skip-archive": "true",
            "warehouse": "s3://bucket/warehouse/tables",
            "s3.region": "eu-west-3",
            **identity,
        }
        assert in_spark(settings) == {
            "type": "glue",
            "client.region": "eu-west-3",
            "glue.skip-archive": "true",
            "warehouse": "s3://bucket/warehouse/tables",
            "cache-enabled": "false",
            "io-impl": "org.apache.iceberg.aws.s3.S3FileIO",
            **identity,
        }


class TestWrongCatalog:
    @pytest.mark.parametrize("uri", ["mysql://ann:secret@host/lake", "catalog.db", "s3://bucket/catalog"])
    def test_another_kind_of_database_is_named_with_what_was_expected(self, lake_settings, uri):
        with pytest.raises(
            FruitsError, match=r"FRUITS_CATALOG_URI expected sqlite:.*, postgresql://.*, glue://"
        ) as raised:
            Lake.open(lake_settings(catalog_uri=uri))
        assert "secret" not in str(raised.value)

    # Not even root can write to /proc.
    @pytest.mark.parametrize(
        "folder", ["{tmp}/missing", "{tmp}/a-file", "/proc"], ids=["missing", "a file", "read-only"]
    )
    def test_a_folder_that_cannot_hold_the_sqlite_file_is_named(self, lake_settings, tmp_path, folder):
        (tmp_path / "a-file").touch()
        path = f"{folder.format(tmp=tmp_path)}/catalog.db"
        with pytest.raises(FruitsError, match=r"unable to open database file; check FRUITS_CATALOG_URI") as raised:
            Lake.open(lake_settings(catalog_uri=f"sqlite:///{path}"))
        assert path in str(raised.value)

    def test_a_file_that_is_no_database_is_named(self, lake_settings, tmp_path):
        (tmp_path / "catalog.db").write_text("not a database, but long enough to look like one. " * 30)
        with pytest.raises(FruitsError, match=r"catalog\.db: .*not a database; check FRUITS_CATALOG_URI"):
            Lake.open(lake_settings())

    def test_a_postgresql_server_that_does_not_answer_is_named_without_the_password(self, lake_settings):
        with pytest.raises(FruitsError, match=r"127\.0\.0\.1:9/lake: .*check FRUITS_CATALOG_URI") as raised:
            Lake.open(lake_settings(catalog_uri="postgresql://ann:geheim@127.0.0.1:9/lake"))
        assert "geheim" not in str(raised.value)


class TestADatabaseThatIsBusy:
    """Its error may pass: Airflow tries the task again, and a job or a command ends with the exit code for that."""

    @pytest.fixture
    def locked(self, lake_settings):
        """A lake whose catalog another program writes to, for longer than we wait."""
        file = lake_settings().catalog_uri.get_secret_value()
        settings = lake_settings(catalog_uri=f"{file}?timeout=0.1")
        lake = Lake.open(settings)
        with closing(sqlite3.connect(file.removeprefix("sqlite:///"))) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield lake, settings

    @pytest.mark.parametrize(
        "work",
        [
            lambda lake, settings: lake.table("features"),
            lambda lake, settings: lake.set_properties({"a": "b"}),
            lambda lake, settings: Lake.open(settings),
            lambda lake, settings: open_read_only(settings),
        ],
        ids=["load", "commit", "open", "open read-only"],
    )
    def test_a_locked_file_is_tried_again(self, locked, work):
        with pytest.raises(
            TransientError, match=r"catalog\.db.*database is locked; another program writes to the file"
        ):
            work(*locked)

    def test_a_command_says_so_too(self, locked):
        _, settings = locked
        with pytest.raises(TransientError, match="database is locked"), explain_lake_errors(settings):
            load_catalog("fruits", **catalog_properties(settings)).list_namespaces()

    @pytest.mark.parametrize(
        "error",
        [
            OperationalError("INSERT", {}, psycopg2.errors.SerializationFailure("could not serialize access")),
            OperationalError("INSERT", {}, psycopg2.errors.DeadlockDetected("deadlock detected")),
            InterfaceError("INSERT", {}, psycopg2.InterfaceError("connection already closed")),
            DatabaseError("INSERT", {}, psycopg2.DatabaseError("SSL SYSCALL"), connection_invalidated=True),
            SQLAlchemyTimeoutError("QueuePool limit of size 5 overflow 10 reached"),
        ],
        ids=lambda error: type(getattr(error, "orig", error)).__name__,
    )
    def test_so_is_what_postgresql_refuses_or_cuts_short(self, lake_settings, error):
        settings = lake_settings(catalog_uri="postgresql://ann:geheim@db/lake")
        assert isinstance(database_problem(settings, error), TransientError)

    def test_a_table_that_is_missing_or_denied_is_for_a_person(self, lake_settings):
        settings = lake_settings(catalog_uri="postgresql://ann:geheim@db/lake")
        for denied in (psycopg2.errors.UndefinedTable("no such"), psycopg2.errors.InsufficientPrivilege("denied")):
            problem = database_problem(settings, ProgrammingError("SELECT", {}, denied))
            assert type(problem) is FruitsError


class TestWrongLake:
    def test_a_folder_that_cannot_be_written_is_named(self, lake_settings):
        with pytest.raises(FruitsError, match=r"file:///proc/lake.*FRUITS_LAKE"):
            Lake.open(lake_settings(lake="file:///proc/lake"))

    def test_a_wrong_secret_is_named(self, make_settings, monkeypatch):
        settings = make_settings("s3")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(FruitsError, match="it refuses the secret key; check AWS_SECRET_ACCESS_KEY"):
            Lake.open(settings)


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_both_kinds_of_lake_keep_rows(make_settings, kind):
    settings = make_settings(kind)
    Lake.open(settings).table("features").append(pa.Table.from_pylist([row("a", "m")], schema=FEATURES.schema))
    assert Lake.open(settings).read("features", None)["vector"].to_pylist() == [[1.0, 2.0]]


class TestFiles:
    def test_they_are_those_of_a_snapshot_with_partition_size_and_rows(self, lake):
        before = lake.head("embeddings")
        row = dict.fromkeys(("key", "etag", "label", "split", "model_id", "pca_id", "run_id"), "p")
        rows = pa.Table.from_pylist([{**row, "embedding": [1.0], "residual": 0.0}] * 3, schema=EMBEDDINGS.schema)
        commit_rows(lake, "embeddings", lambda transaction: transaction.append(rows))
        assert lake.files("embeddings", before) == []
        (file,) = lake.files("embeddings", lake.head("embeddings"))
        assert (file.rows, file.delete_files, file.deleted_rows) == (3, 0, 0)
        assert file.bytes > 0
        assert "p" in file.partition


def test_the_state_of_a_table_is_its_main_its_snapshots_and_its_other_refs(lake):
    first = lake.head("embeddings")
    change_refs(lake, "embeddings", {"publication_1": first}, {})
    state = lake.state("embeddings")
    assert (state.main, state.snapshots, dict(state.refs)) == (first, {first}, {"publication_1": first})
