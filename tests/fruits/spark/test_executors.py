"""The functions that executors run, on batches as Spark gives them."""

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.moments import moments_of
from fruits.errors import FruitsError
from fruits.settings import Settings
from fruits.spark.executors import Statistics, featurize, merge_partials, merged_statistics, partial_statistics
from fruits.spark.statistics import FAN_IN, tree

VECTORS = np.random.default_rng(7).normal(size=(9, 4)).astype(np.float32)
LABELS = list("aabcabcca")


def batch(vectors: np.ndarray, first: int = 0) -> pa.RecordBatch:
    keys = [f"{first + number}.jpg" for number in range(len(vectors))]
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    labels = LABELS[first : first + len(vectors)]
    return pa.RecordBatch.from_arrays(
        [pa.array(keys, pa.string()), pa.array(labels, pa.string()), column], names=["key", "label", "vector"]
    )


def statistics(*batches: pa.RecordBatch) -> Statistics:
    return merge_partials(partial_statistics(4)(iter(batches)), 4)


def check_equal(found: Statistics) -> None:
    """Statistics are those of all of ``VECTORS``."""
    expected = moments_of(VECTORS)
    assert found.moments.n == expected.n == 9
    np.testing.assert_allclose(found.moments.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.moments.scatter, expected.scatter, rtol=1e-12, atol=1e-12)
    assert set(found.labels) == {"a", "b", "c"}
    for label, one in found.labels.items():
        rows = VECTORS[np.array(LABELS) == label].astype(float)
        assert one.n == len(rows)
        np.testing.assert_allclose(one.mean, rows.mean(0), rtol=1e-12, atol=1e-12)


def test_the_statistics_of_a_task_are_those_of_the_rows_of_all_its_batches() -> None:
    check_equal(statistics(batch(VECTORS[:2]), batch(VECTORS[:0]), batch(VECTORS[2:], 2)))


def test_partial_statistics_are_merged_by_executors_as_on_the_driver() -> None:
    leaves = [[*partial_statistics(4)(iter([batch(VECTORS[first : first + 2], first)]))] for first in range(0, 9, 2)]
    above = [[*merged_statistics(4)(chain.from_iterable(some))] for some in (leaves[:2], leaves[2:])]
    assert [sum(row is None for part in some for row in part["label"].to_pylist()) for some in above] == [1, 1]
    check_equal(merge_partials(chain.from_iterable(above), 4))


def test_a_task_without_a_row_sends_nothing() -> None:
    assert not list(partial_statistics(4)(iter([]))) + list(partial_statistics(4)(iter([batch(VECTORS[:0])])))
    assert not list(merged_statistics(4)(iter([])))


@pytest.mark.parametrize(
    ("tasks", "levels"), [(1, []), (8, []), (9, [2]), (163, [21, 3]), (100_000, [12_500, 1_563, 196, 25, 4])]
)
def test_few_partial_results_come_to_the_driver_however_many_tasks_there_are(tasks: int, levels: list[int]) -> None:
    assert [*tree(tasks)] == levels
    assert [tasks, *levels][-1] <= FAN_IN


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_a_number_is_named(value: float) -> None:
    spoilt = VECTORS.copy()
    spoilt[5, 3] = value
    with pytest.raises(FruitsError, match=r"the vector of 5\.jpg has NaN or infinity.*Nothing is published"):
        statistics(batch(spoilt))


def test_what_travels_to_executors_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark import cloudpickle

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "marker-of-the-environment")
    settings = Settings.load(
        lake="file:///lake",
        catalog_uri="postgresql://user:marker-of-the-catalog@host/db",
        weights="https://host/a.h5?signature=marker-of-the-weights",
        weights_from="https://host",
    )
    assert b"marker" in cloudpickle.dumps(settings), "a secret is pickled like anything else"
    travelling = cloudpickle.dumps(featurize(settings, "model", "run"))
    assert b"marker" not in travelling
    assert b"file:///lake" in travelling
