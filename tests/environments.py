"""Environment variables of programs that tests start."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def unconfigured(**variables: str) -> dict[str, str]:
    """The environment without anything that configures us, AWS or Airflow; ``variables`` come on top.

    Programs import the modules of this checkout.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FRUITS_", "AWS_", "AIRFLOW"))}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}
