"""A worker or a master that cannot be used ends the job in a sentence that says what to do; in local mode."""

import pytest

import fruits.spark.release
from fruits.errors import ExitCode
from fruits.run.state import run_key
from local.stack import free_ports
from tests.spark_jobs.conftest import ROOT

pytestmark = [pytest.mark.jobs]


@pytest.fixture
def photos(first):
    """Two photos to fit a PCA on. Not the two oldest: which those are depends on how fast the server stored them."""
    return [key for key in first.photos if "Training/" in key][:2]


@pytest.fixture
def failure(chain, first, photos, new_settings, monkeypatch):
    """Runs featurize after something was done to its session; returns the error that its document tells."""

    def run(prepare):
        settings, job = new_settings(bucket=first.settings.bucket, few_photos=0), chain.jobs["featurize"]
        featurize = job.featurize

        def prepared(attempt):
            prepare(attempt.tables.spark.sparkContext)
            featurize(attempt)

        monkeypatch.setattr(job, "featurize", prepared)
        chain.plan(settings, "refused", keys=photos)
        assert chain.submit("featurize", settings, "refused") == ExitCode.BAD_INPUT
        assert chain.branch_rows(settings, "refused", "features") == []
        document = chain.documents(settings, "refused").featurize
        assert not document.retryable
        return document.error

    return run


def test_another_python(failure, monkeypatch):
    error = failure(lambda context: monkeypatch.setattr(context, "pythonVer", "3.99"))
    assert "the driver's is 3.99; executors need the jobs environment of this release" in error
    assert "make package" in error


def test_no_python(failure, monkeypatch):
    error = failure(lambda context: monkeypatch.setattr(context, "pythonExec", "./environment/bin/python"))
    assert "there is no Python at ./environment/bin/python; executors need the jobs environment" in error


def test_another_release(failure, monkeypatch):
    newer = {**fruits.spark.release.release(), "fruits": "0.2.0+0123456789ab"}
    error = failure(lambda _: monkeypatch.setattr(fruits.spark.release, "release", lambda: newer))
    assert f"is of another release than the driver: it has fruits {fruits.__version__}+" in error
    assert "; the driver has fruits 0.2.0+0123456789ab. Rebuild the workers' image (make up)" in error


def test_a_master_that_does_not_answer_is_named_with_its_connection(chain, first, photos, new_settings, spark_submit):
    settings = new_settings(bucket=first.settings.bucket, few_photos=0)
    master = f"spark://127.0.0.1:{free_ports(1)[0]}"
    chain.plan(settings, "in vain", keys=photos)
    with chain.environment(settings):
        script = ROOT / "spark_jobs" / "featurize.py"
        done = spark_submit("--master", master, script, "--run", run_key("in vain"))
    assert done.returncode == ExitCode.TRANSIENT, done.stderr
    document = chain.documents(settings, "in vain").featurize
    assert f"Spark master {master} does not answer" in document.error
    assert "Connection refused" in document.error
    assert "spark_default" in document.error
    assert document.retryable
    assert document.error in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
