"""The disk of Spark's temporary files, or of the lake, is full: the job names folders and what to do; a retry works."""

import pytest

from fruits.errors import ExitCode
from fruits.run.state import run_key
from tests.small_disk import small_disk
from tests.spark_jobs.conftest import ROOT, environment
from tests.spark_jobs.equality import assert_equal_tables

pytestmark = [pytest.mark.slow, pytest.mark.jobs]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 128) as made:
        yield made


def test_a_job_that_meets_a_full_disk_says_so_and_after_room_is_made_makes_the_same_rows(
    chain, new_settings, first, disk, spark_submit, caplog
):
    settings = new_settings(bucket=first.settings.bucket, lake=f"file://{disk.folder}/lake", few_photos=0)
    assert chain.plan(settings, "run").work
    heads = chain.heads(settings)
    with disk.filled(left=100_000):  # room for documents, none for rows
        assert chain.submit("featurize", settings, "run") == ExitCode.BAD_INPUT
    assert caplog.messages[-1].startswith("a disk is full")
    assert f"the lake in {disk.folder}/lake, " in caplog.messages[-1]
    assert chain.heads(settings) == heads

    spill = disk.folder / "spill"
    spill.mkdir()
    for master, where in (("local[2,1]", f"temporary files in {spill}, "), ("local[2]", "make room on that disk")):
        options = ("--master", master, "--conf", f"spark.local.dir={spill}")  # the former: Spark runs the tasks
        with disk.filled(left=100_000), environment(settings):
            done = spark_submit(*options, ROOT / "spark_jobs" / "featurize.py", "--run", run_key("run"))
        assert done.returncode == ExitCode.BAD_INPUT, done.stdout[-3000:] + done.stderr[-3000:]
        assert where in done.stdout
        assert chain.heads(settings) == heads
    chain.submit_all(settings, "run")
    chain.publish(settings, "run")
    assert_equal_tables(chain, settings, first.settings)
