"""A real S3 server behind a proxy that answers 503, resets and cuts connections, and is slow: nothing is lost."""

import pytest

from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from tests import misbehaving
from tests.misbehaving import always, at_first, misbehaving_proxy, refuse
from tests.spark_jobs.equality import assert_equal_tables

pytestmark = [pytest.mark.slow, pytest.mark.jobs]

BURSTS = (
    refuse("SlowDown", 503, "Please reduce your request rate."),
    misbehaving.status(503),
    misbehaving.status(500, b"upstream connect error"),
    misbehaving.reset,
    misbehaving.reset_in_body,
    misbehaving.cut_in_body,
    misbehaving.slow(5),
)


@pytest.fixture
def server(stack):
    with misbehaving_proxy(stack.endpoint) as proxy:
        yield proxy


def test_rows_are_those_of_an_undisturbed_run_and_what_is_never_answered_is_pending(chain, new_settings, first, server):
    settings = new_settings(bucket=first.settings.bucket, s3_endpoint=server.endpoint, s3_retry_seconds=15)
    sound = sorted(key for key in first.photos if "img" in key)
    silent = sound.pop()
    server.fault = at_first(2, refuse("SlowDown", 503))  # whatever is asked for: the listing, each photo
    server.faults = {key: at_first(2, fault) for key, fault in zip(sound, BURSTS, strict=False)}
    server.faults[silent] = always(misbehaving.status(503))

    documents = chain.run(settings, "first")
    assert server.faulty > 2 * len(sound)
    counts = chain.published(settings).counts
    assert (counts["pending"], counts["create"]) == (1, len(first.photos) - 1)
    assert documents.featurize.result.pending == {"unanswered": 1}
    without = ("run_id",)
    for name in ("features", "quarantine"):
        expected = [row for row in chain.rows(first.settings, name, without=without) if row["key"] != silent]
        assert chain.rows(settings, name, without=without) == expected

    del server.faults[silent]
    assert chain.run(settings, "second", refit="always").planned.counts["create"] == 1
    assert_equal_tables(chain, settings, first.settings)
    assert len(publications(Lake.open(settings))) == 2
