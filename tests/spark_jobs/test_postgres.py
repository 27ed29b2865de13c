"""A catalog in PostgreSQL whose server goes away in a Spark job's commits: an attempt is lost, and no row."""

import pytest

from fruits.errors import ExitCode, TransientError
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from tests.spark_jobs.equality import assert_equal_tables

pytestmark = [pytest.mark.slow, pytest.mark.jobs]

SPARK, PYTHON = b"SET metadata_location = $1", b"COMMIT"
"""What each of them sends to change the catalog: Spark's statement is committed without a word more."""


def failed(chain, settings, task, run):
    """One attempt of a task of a run, which meets the cut; what its document says."""
    assert chain.submit(task, settings, run) == ExitCode.TRANSIENT
    document = chain.documents(settings, run).of(task)
    assert (document.state, document.retryable) == ("failed", True)
    return document.error


def test_a_run_ends_in_the_rows_of_an_undisturbed_one(chain, new_settings, first, postgres, database):
    name = postgres.database()
    direct = new_settings(
        bucket=first.settings.bucket, catalog_uri=f"postgresql://fruits@127.0.0.1:{postgres.port}/{name}"
    )
    settings = new_settings(
        bucket=first.settings.bucket,
        catalog_uri=f"postgresql://fruits@127.0.0.1:{database.port}/{name}",
        lake=direct.lake,
    )
    assert chain.plan(settings, "run").work
    for moment in ("before", "after"):
        database.cut(PYTHON, moment, refuse=1_000)  # the server is gone for good
        assert "catalog database" in failed(chain, settings, "featurize", "run")
        assert publications(Lake.open(direct)) == []
        database.cut(b"", "before", refuse=0)
    chain.submit_all(settings, "run")
    for moment in ("before", "after"):
        database.cut(PYTHON, moment)
        with pytest.raises(TransientError, match="catalog database"):
            chain.publish(settings, "run")
    chain.publish(settings, "run")
    assert [one.run_id for one in publications(Lake.open(direct))] == ["run"]
    assert_equal_tables(chain, settings, first.settings)

    # Spark deletes the rows that a rebuild replaces.
    assert chain.plan(settings, "again", mode="rebuild").work
    before = database.cuts
    for moment in ("before", "after"):
        database.cut(SPARK, moment, refuse=1_000)
        assert "catalog database" in failed(chain, settings, "featurize", "again")
        database.cut(b"", "before", refuse=0)
    database.cut(SPARK, "after", refuse=0)  # the server is back at once: Iceberg asks again, and finds its commit
    chain.submit_all(settings, "again")
    assert database.cuts == before + 3
    chain.publish(settings, "again")
    assert_equal_tables(chain, settings, first.settings)
