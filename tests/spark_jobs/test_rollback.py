"""After a rollback the chain goes on: Spark branches from the older snapshots, and newer photos come back."""

import pytest

from fruits.errors import ConflictError
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications, roll_back

pytestmark = [pytest.mark.jobs]


def test_a_run_after_a_rollback_brings_newer_photos_back(chain, new_settings):
    settings = new_settings()
    chain.put(settings, chain.photos(16))
    chain.run(settings, "first")
    chain.put(settings, chain.photos(4, start=16))
    chain.delete(settings, "Training/Apple Red/0.img")
    chain.run(settings, "second", refit="always")
    wanted = {name: chain.rows(settings, name, without=("run_id",)) for name in ("features", "embeddings")}
    chain.put(settings, chain.photos(1, start=20))
    chain.plan(settings, "late")
    chain.submit_all(settings, "late")

    back = roll_back(Lake.open(settings), "1")
    assert len(chain.rows(settings, "features")) == 16
    assert chain.heads(settings)["features"] == back.snapshots["features"]
    with pytest.raises(ConflictError):
        chain.publish(settings, "late")

    chain.delete(settings, *chain.photos(1, start=20))
    counts = chain.run(settings, "third", refit="always")["plan"]["counts"]
    assert (counts["create"], counts["delete"]) == (4, 1)
    assert chain.rows(settings, "features", without=("run_id",)) == wanted["features"]
    assert [one.sequence for one in publications(Lake.open(settings))] == [1, 2, 3, 4]
