"""Some rows among many vectors: a lookup reads their row groups alone, and a check of compaction the changed files."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.growth.layout import bytes_read
from fruits.errors import FruitsError
from fruits.lake.branches import Writer
from fruits.lake.catalog import ROW_GROUP_BYTES, Lake
from fruits.lake.schemas import FEATURES
from fruits.run.upkeep import Upkeep
from fruits.spark.compaction import changed_files, check_rows, rewrite
from fruits.spark.session import session_beside
from fruits.spark.tables import Tables, sql_string

pytestmark = [pytest.mark.jobs]

ROWS, WIDTH = 6_000, 1_280
VECTORS = np.random.default_rng(5).random((ROWS, WIDTH), np.float32)
NOTHING_DROPPED = Upkeep((), (), {}, {}, (), (), ())


def key(number):
    return f"Training/Kiwi/{number:05d}'s.jpg"


def features(numbers):
    """Rows of features with vectors of their own."""
    columns = {"key": [key(number) for number in numbers], "vector": list(VECTORS[numbers])}
    others = {
        field.name: ["x" if pa.types.is_string(field.type) else 0] * len(numbers)
        for field in FEATURES.schema
        if field.name not in columns
    }
    return pa.table({**columns, **others}, schema=pa.schema(FEATURES.schema)).select(FEATURES.schema.names)


def parquet_files(tables):
    """The data files of `features` on the branch."""
    snapshot = tables.lake.head("features", tables.writer.branch)
    tasks = tables.lake.table("features").scan(snapshot_id=snapshot).plan_files()
    return [pq.ParquetFile(task.file.file_path.removeprefix("file://")) for task in tasks]


@pytest.fixture(scope="module")
def seen(spark, new_settings):
    """Many vectors in one file and few in others; the few are compacted."""
    lake = Lake.open(new_settings())
    tables = Tables(lambda: session_beside(spark, lake.settings), lake, Writer("layout", "featurize_1_ab"))
    tables.start_branch("features", lake.head("features"))
    many = tables.spark.createDataFrame(features(range(0, ROWS, 2)))
    tables.append("features", many.repartitionByRange(1, "key").sortWithinPartitions("key"))
    (large,) = parquet_files(tables)
    for first in range(1, 11, 2):
        tables.append("features", tables.spark.createDataFrame(features([first, first + 100])).coalesce(1))
    tables.delete_keys("features", pa.table({"key": [key(3)]}), "x")
    seen = SimpleNamespace(tables=tables, large=large, before=lake.head("features", tables.writer.branch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fruits.spark.compaction.SMALL_FILE_BYTES", 2**20)
        rewrite(tables, FEATURES, rewrite_all=False)
    seen.after = lake.head("features", tables.writer.branch)
    return seen


def test_rows_of_a_file_are_in_the_order_of_their_keys_in_row_groups_of_a_few_megabytes(seen):
    """Also of a file that compaction wrote."""
    sizes = [group_bytes(seen.large, at) for at in range(seen.large.num_row_groups)]
    assert len(sizes) == 2
    assert max(sizes) <= 1.1 * ROW_GROUP_BYTES
    files = [file.read(columns=["key"])["key"].to_pylist() for file in parquet_files(seen.tables)]
    assert sorted(map(len, files)) == [9, ROWS // 2]
    assert all(keys == sorted(keys) for keys in files)


def group_bytes(file, at):
    """Bytes of a row group as it is stored."""
    group = file.metadata.row_group(at)
    return sum(group.column(column).total_compressed_size for column in range(group.num_columns))


def test_a_lookup_of_few_rows_or_of_a_folder_reads_their_row_groups_alone(seen):
    tables, half = seen.tables, group_bytes(seen.large, 0)
    few = [0, 2, 100, 200]
    found, read = looked_up(seen, few)
    assert found == {key(number) for number in few}
    assert 0 < read < 1.1 * half
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fruits.spark.tables._MOST_LITERALS", 3)
        assert looked_up(seen, few) == (found, pytest.approx(read, rel=0.1))
        patch.setattr("fruits.spark.tables._MOST_LISTS", 1)
        assert looked_up(seen, few) == (found, pytest.approx(read, rel=0.1))
    _, read = read_by(seen, lambda: tables.delete_keys("features", key_table(few), "no such backbone"))
    assert read < 1.1 * half


def looked_up(seen, numbers):
    """The keys that a lookup finds, and the bytes that it reads."""
    rows = seen.tables.read_keys("features", seen.after, key_table(numbers), "x").select("key", "vector")
    found, read = read_by(seen, rows.collect)
    return {row.key for row in found}, read


def key_table(numbers):
    return pa.table({"key": [key(number) for number in numbers]})


def read_by(seen, work):
    """What ``work`` returns, and the bytes that the JVM reads when it does the work again and has all its classes."""
    work()
    before = bytes_read(seen.tables.spark)
    return work(), bytes_read(seen.tables.spark) - before


def test_a_check_of_compaction_reads_the_files_that_it_changed(seen):
    changed = changed_files(seen.tables, "features", seen.before, seen.after)
    assert [len(tasks) for tasks in changed] == [5, 1]
    _, read = read_by(seen, lambda: check_rows(seen.tables, "features", seen.before, seen.after, NOTHING_DROPPED))
    assert read < 2**21
    check_rows(seen.tables, "features", seen.after, seen.after, NOTHING_DROPPED)


CHANGES = {
    "a row is lost": ("DELETE FROM {features} WHERE key = {key}", "8 rows in the compacted files where 9 were"),
    "a row of an old file is lost": ("DELETE FROM {features} WHERE key = {old}", "rows in the compacted files where"),
    "a number of a vector is another": (
        "UPDATE {features} SET vector = transform(vector, (x, i) -> if(i = 7, x + 1e-6f, x)) WHERE key = {key}",
        "or other values",
    ),
    "a row is there twice": ("INSERT INTO {features} SELECT * FROM {features} WHERE key = {key}", "10 rows in the"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_check_of_compaction_finds_whatever_is_not_as_it_was(seen, change):
    statement, message = CHANGES[change]
    tables = Tables(
        lambda: seen.tables.spark, seen.tables.lake, Writer("layout", f"maintain_{list(CHANGES).index(change)}_ab")
    )
    tables.start_branch("features", seen.after)
    names = {"features": tables.branch("features"), "key": sql_string(key(1)), "old": sql_string(key(2))}
    tables.spark.sql(statement.format(**names))
    after = tables.lake.head("features", tables.writer.branch)
    with pytest.raises(FruitsError, match=message):
        check_rows(tables, "features", seen.before, after, NOTHING_DROPPED)
