"""Overlapping runs: both correct, or one plans again; never a mix."""

import numpy as np
import pytest

from fruits.errors import ConflictError
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_statistics
from fruits.lake.publication import publications

pytestmark = [pytest.mark.jobs]

TABLES = ("features", "quarantine", "embeddings", "pca_models", "pca_statistics")


@pytest.fixture(scope="module")
def photos(chain):
    return chain.photos(12) | {"Test/Kiwi/broken.img": b"<html>"}


@pytest.fixture(scope="module")
def overlapped(chain, new_settings, photos):
    """A backfill over some photos and a live run over all, planned from one base although each waits for its turn.

    Gives the settings, what readers found after the backfill was published, and what the live run's publication said.
    """
    settings = new_settings(min_probe_ratio=0)
    chain.put(settings, photos)
    chain.plan(settings, "backfill", keys=list(photos)[:7])
    chain.plan(settings, "live")
    for job in ("featurize", "pca", "validate"):
        for run in ("backfill", "live"):
            assert chain.submit(job, settings, run) == 0, chain.documents(settings, run)[job]
    chain.publish(settings, "backfill")
    found = {name: chain.rows(settings, name) for name in TABLES}, chain.heads(settings)
    with pytest.raises(ConflictError) as conflict:
        chain.publish(settings, "live")
    return settings, found, conflict.value


def test_the_second_to_publish_is_refused_and_told_to_plan_again(chain, overlapped):
    settings, _, conflict = overlapped
    assert "another run published after run live was planned" in str(conflict)
    assert "Clear the run from `wait_for_lease`" in str(conflict)
    document = chain.documents(settings, "live")["publish"]
    assert (document["state"], document["mendable"]) == ("failed", True)


def test_nothing_of_the_refused_run_is_visible(chain, overlapped, photos):
    settings, (rows, heads), _ = overlapped
    assert chain.heads(settings) == heads
    assert [one.run_id for one in publications(Lake.open(settings))] == ["backfill"]
    assert {name: chain.rows(settings, name) for name in TABLES} == rows
    assert {row["run_id"] for name in TABLES for row in rows[name]} == {"backfill"}
    assert [row["key"] for row in rows["features"]] == sorted(list(photos)[:7])


def test_planned_again_the_tables_equal_a_serial_execution(chain, overlapped, new_settings, photos):
    settings, _, _ = overlapped
    documents = chain.run(settings, "live")
    assert documents["featurize"]["images"] == len(photos) - 7
    serial = new_settings(bucket=settings.bucket, min_probe_ratio=0)
    chain.run(serial, "backfill", keys=list(photos)[:7])
    chain.run(serial, "live")
    assert [one.run_id for one in publications(Lake.open(settings))] == ["backfill", "live"]
    for name in ("features", "quarantine"):
        assert chain.rows(settings, name) == chain.rows(serial, name)
    ours, theirs = (moments(chain, one) for one in (settings, serial))
    assert ours.n == theirs.n
    assert np.linalg.norm(ours.mean - theirs.mean) < 1e-9 * np.linalg.norm(theirs.mean)
    assert np.linalg.norm(ours.scatter - theirs.scatter) < 1e-9 * np.linalg.norm(theirs.scatter)
    embeddings = [
        chain.rows(one, "embeddings", without=("pca_id",), pca_id=chain.published(one).pca_id)
        for one in (settings, serial)
    ]
    assert len(embeddings[0]) == len(photos) - 1
    for mine, other in zip(*embeddings, strict=True):
        assert {**mine, "embedding": 0, "residual": 0} == {**other, "embedding": 0, "residual": 0}
        np.testing.assert_allclose(mine["embedding"], other["embedding"], atol=1e-4)


def moments(chain, settings):
    published = chain.published(settings)
    return load_statistics(Lake.open(settings), published.snapshots["pca_statistics"], published.model_id, 1280)
