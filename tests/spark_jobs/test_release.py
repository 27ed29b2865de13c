"""The digest of executors covers what they import: real workers tell."""

import os
from pathlib import Path

import pytest

import fruits.spark.session
from fruits.spark.release import EXECUTOR_SOURCES, same_release
from tests.fruits.spark.test_release import module_of

pytestmark = [pytest.mark.jobs]


def test_workers_import_exactly_the_sources_of_the_digest(chain, first, new_settings, monkeypatch, tmp_path):
    def recorded(function):
        checked, folder = same_release(function), str(tmp_path)

        def work(batches):
            import sys

            yield from checked(batches)
            ours = [name for name in sys.modules if name.partition(".")[0] == "fruits"]
            Path(folder, str(os.getpid())).write_text("\n".join(ours))

        return work

    monkeypatch.setattr(fruits.spark.session, "same_release", recorded)
    settings = new_settings(bucket=first.settings.bucket, few_photos=0)
    chain.run(settings, "recorded")
    imported = {name for file in tmp_path.iterdir() for name in file.read_text().split()}
    assert imported == set(map(module_of, EXECUTOR_SOURCES))
