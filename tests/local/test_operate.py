"""Events, a backfill and a run by hand through a real Airflow: `benchmarks/operate.py` on a small scale."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from tests.environments import ROOT, unconfigured

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.story]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A backfill of two days of four photos, twice; two more days, which events, a backfill and a run by hand all want;
    then one photo more.
    """
    folder = tmp_path_factory.mktemp("operate")
    scale = ("--days", "2", "--failed-days", "0", "--overlap-days", "2", "--photos", "4")
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks" / "operate.py"), *scale,
            "--data", str(folder / "data"), "--json", str(folder / "findings.json"),
        ],
        env=unconfigured(), cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (folder / "findings.json").is_file(), f"{done.stdout}\n{done.stderr}"
    return dict(json.loads((folder / "findings.json").read_text()))


def test_runs_that_are_started_together_all_end_green(findings: dict[str, Any]) -> None:
    assert set(findings["runs"].values()) == {"success"}, findings["runs"]
    kinds = Counter(run.partition("__")[0] for run in findings["runs"])
    assert (kinds["backfill"], kinds["manual"]) == (4, 1)
    assert kinds["asset_triggered"] >= 1


def test_a_backfill_does_each_day_in_its_run_refits_once_at_most_and_changes_nothing_again(
    findings: dict[str, Any],
) -> None:
    backfill = findings["backfill"]
    assert backfill["by_their_own_day"] + backfill["by_a_sweep"] == backfill["photos"] == 8
    assert backfill["fits"] <= 2, "one of the seed, one refit"
    assert backfill["publications_once_more"] == 0


def test_a_burst_of_events_makes_few_runs(findings: dict[str, Any]) -> None:
    """21 photos were put in three bursts."""
    assert sum(run.startswith("asset_triggered") for run in findings["runs"]) <= 6


def test_no_photo_is_left_out_and_the_tables_are_those_of_one_full_run(findings: dict[str, Any]) -> None:
    assert findings["overlap"]["present"] == findings["overlap"]["photos"] == 8
    assert findings["equal"] is True


def test_a_photo_that_is_put_into_the_bucket_is_published_untouched(findings: dict[str, Any]) -> None:
    (event,) = findings["events"]
    tasks = event["timeline"]
    assert {"wait_for_lease", "plan", "featurize", "pca", "validate", "publish"} <= tasks.keys()
    assert tasks["publish"][-1] <= event["seconds"] + 10
