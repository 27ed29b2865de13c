"""A worker that cannot be used ends the job in a sentence that says what to do; real workers, in local mode."""

import pytest

import fruits.spark.release
from fruits.errors import ExitCode

pytestmark = [pytest.mark.jobs]


@pytest.fixture
def failure(chain, first, new_settings, monkeypatch):
    """Runs featurize after something was done to its session; returns the error that its document tells."""

    def run(prepare):
        settings, job = new_settings(bucket=first.settings.bucket), chain.jobs["featurize"]
        featurize = job.featurize

        def prepared(one):
            prepare(one.spark.sparkContext)
            featurize(one)

        monkeypatch.setattr(job, "featurize", prepared)
        chain.plan(settings, "refused", limit=2)
        assert chain.submit("featurize", settings, "refused") == ExitCode.BAD_INPUT
        assert chain.branch_rows(settings, "refused", "features") == []
        document = chain.documents(settings, "refused")["featurize"]
        assert document["mendable"]
        return document["error"]

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
    assert "is of another release than the driver: it has fruits 0.1.0+" in error
    assert "; the driver has fruits 0.2.0+0123456789ab. Rebuild the workers' image (make up)" in error
