"""The functions that executors run, on batches as Spark gives them."""

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.moments import Moments, from_bytes, moments_of
from fruits.errors import FruitsError
from fruits.settings import Settings
from fruits.spark.executors import featurize, partial_moments

VECTORS = np.random.default_rng(7).normal(size=(9, 4)).astype(np.float32)


def batch(vectors: np.ndarray, first: int = 0) -> pa.RecordBatch:
    keys = [f"{first + number}.jpg" for number in range(len(vectors))]
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    return pa.RecordBatch.from_arrays([pa.array(keys, pa.string()), column], names=["key", "vector"])


def moments(*batches: pa.RecordBatch) -> Moments:
    (result,) = partial_moments(4)(iter(batches))
    return from_bytes(result["moments"][0].as_py())


def test_the_moments_of_a_task_are_those_of_the_rows_of_all_its_batches() -> None:
    expected, found = moments_of(VECTORS), moments(batch(VECTORS[:2]), batch(VECTORS[:0]), batch(VECTORS[2:], 2))
    assert found.n == expected.n == 9
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-12, atol=1e-12)


def test_a_task_without_a_row_sends_no_moments() -> None:
    assert not list(partial_moments(4)(iter([]))) + list(partial_moments(4)(iter([batch(VECTORS[:0])])))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_a_number_is_named(value: float) -> None:
    spoilt = VECTORS.copy()
    spoilt[5, 3] = value
    with pytest.raises(FruitsError, match=r"the vector of 5\.jpg has NaN or infinity.*Nothing is published"):
        moments(batch(spoilt))


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
