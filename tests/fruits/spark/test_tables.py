"""How keys are looked up in tables, without Spark."""

import pyarrow as pa
import pytest

from fruits.spark.tables import key_condition, ranges

pytestmark = pytest.mark.jobs


def numbered(count: int) -> pa.Table:
    return pa.table({"key": [f"{number:05d}" for number in range(count)]})


def test_keys_are_listed_sorted_and_once_in_lists_that_iceberg_prunes_by() -> None:
    assert key_condition(pa.table({"key": ["b", "a", "b"]})) == "(key IN ('a', 'b'))"
    lists = key_condition(numbered(401)).strip("()").split(" OR ")
    assert [len(one.split(",")) for one in lists] == [200, 200, 1]
    assert lists[1].startswith("key IN ('00200', ")


def test_very_many_keys_are_compared_with_few_ranges() -> None:
    condition = key_condition(numbered(10_001))
    assert condition.count("BETWEEN") == 100
    assert condition.startswith("(key BETWEEN '00000' AND ")
    assert condition.endswith(" AND '10000')")


def test_ranges_leave_out_the_widest_gaps() -> None:
    folders = [f"{label}/{number:02d}" for label in ("Apple", "Apple 6", "Peach") for number in range(40)]
    assert ranges(sorted(folders), 3) == [
        ("Apple 6/00", "Apple 6/39"),
        ("Apple/00", "Apple/39"),
        ("Peach/00", "Peach/39"),
    ]
    assert ranges(["a"], 3) == [("a", "a")]
    assert ranges(["a", "b"], 3) == [("a", "a"), ("b", "b")]
