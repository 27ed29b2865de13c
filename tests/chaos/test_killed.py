"""`kill -9` of `publish` between the tables of a publication: real processes on a real catalog."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.run.state import run_key
from tests.chaos.world import FIRST, World, world

ROOT = Path(__file__).parents[2]
MOST_EFFECTS = 30


def publish_and_die(made: World, number: int) -> int:
    """A process of `publish` that kills itself after its n-th effect; the process's exit code."""
    settings = made.settings
    variables = {
        "PYTHONPATH": str(ROOT),
        "FRUITS_LAKE": settings.lake,
        "FRUITS_CATALOG_URI": settings.catalog_uri.get_secret_value(),
    }
    script = str(ROOT / "tests" / "spark_jobs" / "killed.py")
    command = [sys.executable, script, str(number), "after", "publish", "--run"]
    done = subprocess.run([*command, run_key("run")], env={**os.environ, **variables}, capture_output=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Merge on read is not yet supported")
def test_publish_killed_after_each_of_its_effects_in_turn_publishes_once():
    with world(real=True) as made:
        made.sweep("first")
        made.put(FIRST[0], b"other")
        made.put("Training/Kiwi/a.jpg", b"new")
        made.runs["run"] = made.request()
        made.run_on("run", "prepare", last="validate")
        deaths = 0
        for number in range(1, MOST_EFFECTS):
            if publish_and_die(made, number) == 0:
                break
            deaths += 1
            made.check_readers()
        assert deaths > 5
        made.check_equals_a_full_run()
        assert len(publications(Lake(made.settings))) == 2
