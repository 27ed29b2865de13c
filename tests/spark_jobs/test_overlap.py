"""Overlapping runs: both correct, or one plans again; never a mix."""

import pytest

from fruits.errors import ConflictError
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from tests.spark_jobs.equality import assert_equal_tables

pytestmark = [pytest.mark.jobs]

TABLES = ("features", "quarantine", "embeddings", "pca_models", "pca_statistics", "label_statistics")


@pytest.fixture(scope="module")
def overlapped(chain, new_settings, first):
    """A backfill over some photos of the first run's bucket and a live run over all, planned from one base although
    each waits for the lease. The lake is in S3.

    Gives the settings, the backfill's keys, what readers found after the backfill was published, and what the live
    run's publication said.
    """
    settings = new_settings("s3", bucket=first.settings.bucket, min_probe_ratio=0, max_quarantined_share=0.9)
    keys = sorted(first.photos)[::2]
    chain.plan(settings, "backfill", keys=keys)
    chain.plan(settings, "live")
    for job in ("featurize", "pca", "validate"):
        for run in ("backfill", "live"):
            assert chain.submit(job, settings, run) == 0, chain.documents(settings, run).of(job)
    chain.publish(settings, "backfill")
    seen = {name: chain.rows(settings, name) for name in TABLES}, chain.heads(settings)
    with pytest.raises(ConflictError) as conflict:
        chain.publish(settings, "live")
    return settings, keys, seen, conflict.value


def test_the_second_to_publish_is_refused_and_told_to_plan_again(overlapped):
    _, _, _, conflict = overlapped
    assert "another run published after run live was planned" in str(conflict)
    assert "Clear the run from `wait_for_lease`" in str(conflict)


def test_nothing_of_the_refused_run_is_visible_and_planned_again_the_tables_equal_one_full_run(
    chain, overlapped, first
):
    settings, keys, (rows, heads), _ = overlapped
    refused = chain.documents(settings, "live").publish
    assert (refused.state, refused.retryable) == ("failed", False)
    assert chain.heads(settings) == heads
    assert [publication.run_id for publication in publications(Lake.open(settings))] == ["backfill"]
    assert {name: chain.rows(settings, name) for name in TABLES} == rows
    assert {row["run_id"] for name in TABLES for row in rows[name]} == {"backfill"}
    assert sorted(row["key"] for name in ("features", "quarantine") for row in rows[name]) == keys

    documents = chain.run(settings, "live", refit="always")
    assert documents.featurize.result.images == len(first.photos) - len(keys)
    assert [publication.run_id for publication in publications(Lake.open(settings))] == ["backfill", "live"]
    assert_equal_tables(chain, settings, first.settings)
