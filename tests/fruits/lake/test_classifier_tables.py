"""What is written of a classifier is what readers get, to the last bit."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.classifier import fit_classifier
from fruits.analysis.labels import sums_of
from fruits.analysis.moments import moments_of
from fruits.lake.branches import Writer, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import (
    load_classifier,
    load_sample,
    sample_of,
    save_classifier,
    save_sample,
)
from fruits.lake.publication import Publication
from fruits.lake.schemas import CALIBRATION_SAMPLE

WRITER = Writer("a", "pca_1_ab")
ROWS = np.random.default_rng(5).normal(size=(420, 6)).astype(np.float32)
LABELS = [("Apple", "Kiwi")[number % 2] for number in range(len(ROWS))]


@pytest.fixture
def lake(folder_lake):
    lake = Lake.open(folder_lake)
    for name in ("classifiers", "calibration_sample"):
        start_branch(lake, name, WRITER.branch, lake.head(name))
    return lake


def rows_of(numbers, split="test", model_id="m"):
    columns = [
        {"key": f"{split}/{LABELS[n]}/{n:03}", "label": LABELS[n], "split": split, "vector": ROWS[n].tolist()}
        for n in numbers
    ]
    return pa.Table.from_pylist(
        [{**row, "model_id": model_id, "run_id": "a"} for row in columns], CALIBRATION_SAMPLE.schema
    )


def classifier(n):
    return fit_classifier(
        moments_of(ROWS[:n]), sums_of(ROWS[:n], LABELS[:n]), sample_of(rows_of(range(420)).sort_by("key"))
    )


def publication(lake, found, model_id="m"):
    """A publication that names a classifier."""
    snapshots = {"classifiers": lake.head("classifiers", WRITER.branch)}
    return Publication(1, snapshots, model_id=model_id, classifier_id=found and found.classifier_id)


@pytest.mark.parametrize("n", [40, 400])
def test_a_classifier_comes_back_bit_for_bit(lake, n):
    saved = classifier(n)
    save_classifier(lake, WRITER, "m", saved, "a")
    found = load_classifier(lake, publication(lake, saved))
    assert found.classifier_id == saved.classifier_id
    assert found.quality == saved.quality
    assert found.labels == saved.labels
    assert found.discriminant.counts.tolist() == saved.discriminant.counts.tolist()
    for values in ("probabilities", "sets"):
        assert getattr(found, values)(ROWS).tolist() == getattr(saved, values)(ROWS).tolist()


def test_a_backbone_has_one_classifier_and_leaves_that_of_another(lake):
    save_classifier(lake, WRITER, "other", classifier(40), "a")
    save_classifier(lake, WRITER, "m", classifier(40), "a")
    save_classifier(lake, WRITER, "m", classifier(400), "b")
    for model, n in (("m", 400), ("other", 40)):
        expected = classifier(n)
        assert load_classifier(lake, publication(lake, expected, model)).classifier_id == expected.classifier_id
    assert load_classifier(lake, publication(lake, classifier(40), "m")) is None, "replaced"
    assert load_classifier(lake, publication(lake, None)) is None


def test_the_same_classifier_again_is_not_written(lake):
    save_classifier(lake, WRITER, "m", classifier(400), "a")
    before = lake.head("classifiers", WRITER.branch)
    save_classifier(lake, WRITER, "m", classifier(400), "b")
    assert lake.head("classifiers", WRITER.branch) == before
    other = replace(classifier(400), quality=replace(classifier(400).quality, coverage=0.9))
    assert other.classifier_id == classifier(400).classifier_id
    save_classifier(lake, WRITER, "m", other, "c")
    assert load_classifier(lake, publication(lake, other)).quality.coverage == 0.9, "the same weights, scored anew"


def test_the_sample_of_a_backbone_is_replaced_and_comes_in_the_order_of_keys(lake):
    save_sample(lake, WRITER, "other", rows_of([1], model_id="other"))
    save_sample(lake, WRITER, "m", rows_of([3, 2]))
    save_sample(lake, WRITER, "m", pa.concat_tables([rows_of([9, 4]), rows_of([5], split="train")]))
    found = sample_of(load_sample(lake, lake.head("calibration_sample", WRITER.branch), "m"))
    assert found.keys == ["test/Apple/004", "test/Kiwi/009", "train/Kiwi/005"]
    assert found.fitted.tolist() == [False, False, True]
    assert found.vectors.tolist() == ROWS[[4, 9, 5]].tolist()
    assert len(load_sample(lake, lake.head("calibration_sample", WRITER.branch), "other")) == 1
