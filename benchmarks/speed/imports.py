"""What Airflow pays to parse each file of `dags/`, against `import airflow.sdk`: core seconds of new interpreters."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figure import Figure, median
from benchmarks.speed.scale import Scale
from local.stack import jobs_environment

ROOT = Path(__file__).resolve().parents[2]
MOST = 1.3
SDK = "import airflow.sdk"
_TIMED = "import time\nstart = time.process_time()\n{}\nprint(time.process_time() - start)"


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of each file."""
    files = sorted((ROOT / "dags").glob("*.py"))
    with tempfile.TemporaryDirectory() as home:
        # One turn more, whose bytecode the others find.
        turns = [[seconds(statement, home) for statement in statements(files)] for _ in range(scale.runs + 1)][1:]
    yield median(f"{SDK}, of a core", [turn[0] for turn in turns], "s")
    for place, file in enumerate(files, start=1):
        ratios = [turn[place] / turn[0] for turn in turns]
        yield median(f"import dags/{file.name}, against {SDK}", ratios, "x", most=MOST)


def statements(files: list[Path]) -> Iterator[str]:
    """The statements that are timed: the SDK, then each file."""
    yield SDK
    for file in files:
        yield f"import {file.stem}"


def seconds(statement: str, home: str) -> float:
    """Core seconds of a statement in a new interpreter of Airflow's environment."""
    python = jobs_environment().parent / "airflow" / "bin" / "python"
    variables = {"AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("dags", "plugins", "."))
    done = subprocess.run(  # noqa: S603 -- our own
        [str(python), "-W", "ignore", "-c", _TIMED.format(statement)],
        env={**os.environ, **variables, "PYTHONPATH": paths},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return float(done.stdout.split()[-1])
