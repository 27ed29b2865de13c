"""Taking screenshots, as far as it needs no browser: tests/dags/test_trigger_form.py has the rest."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.airflow

SCRIPT = Path(__file__).parents[2] / "scripts" / "screenshots.py"


def test_without_a_browser_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--data", str(tmp_path)],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "apt-get install chromium chromium-driver" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was started"
