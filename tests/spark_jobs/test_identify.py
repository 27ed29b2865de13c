"""What the jobs published, `identify` finds again."""

import numpy as np
import pytest

from fruits.serve.identify import Engine, identify_files

pytestmark = [pytest.mark.jobs]


def test_a_photo_goes_the_way_of_the_executors_bit_for_bit(chain, first):
    engine = Engine.load(first.settings)
    for row in chain.rows(first.settings, "features"):
        assert engine.feature(first.photos[row["key"]]).tolist() == row["vector"], row["key"]


def test_photos_and_broken_files_of_the_bucket_are_what_the_tables_say(chain, first, tmp_path):
    keys = [row["key"] for name in ("features", "quarantine") for row in chain.rows(first.settings, name)]
    paths = [tmp_path / str(number) for number in range(len(keys))]
    for path, key in zip(paths, keys, strict=True):
        path.write_bytes(first.photos[key])
    engine = Engine.load(first.settings)
    found = dict(zip(keys, identify_files(engine, paths), strict=True))
    assert engine.publication.publication_id == chain.published(first.settings).publication_id
    for row in chain.rows(first.settings, "features"):
        one = found[row["key"]]
        assert (one.nearest[0].key, one.nearest[0].similarity) == (row["key"], 1.0)
    assert np.mean([found[row["key"]].label == row["label"] for row in chain.rows(first.settings, "features")]) > 0.9
    for row in chain.rows(first.settings, "quarantine"):
        if row["reason"] != "key_pattern":  # a sound photo whose key has no label
            assert found[row["key"]].startswith(row["reason"])
