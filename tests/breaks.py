"""Break each promise on purpose, and see that a test fails: ``python tests/breaks.py [NUMBER ...]``.

Each break of breaks.toml changes one place of a copy of the checkout, and runs the tests that are to notice. A break
that no test notices is a hole in the tests; this script then ends with 1. It runs in the jobs environment, starts the
tests of DAGs in Airflow's, and takes some minutes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "benchmarks",
    "dags",
    "docs",
    "fruits",
    "local",
    "plugins",
    "sample_photos",
    "spark_jobs",
    "scripts",
    "tests",
    "requirements",
    "infra",
    "pyproject.toml",
)


@dataclass(frozen=True)
class Break:
    """A promise, and one change that breaks it: ``old`` becomes ``new`` in ``file``; ``tests`` must notice."""

    promise: str
    file: str
    old: str
    new: str
    tests: str


BREAKS = tuple(Break(**values) for values in tomllib.loads((ROOT / "tests" / "breaks.toml").read_text())["break"])


def main(numbers: list[int]) -> int:
    """Do the breaks of these numbers, all without any; returns an exit code."""
    holes = []
    for number in numbers or range(1, len(BREAKS) + 1):
        one, start = BREAKS[number - 1], time.monotonic()
        noticed = is_noticed(one)
        holes += [] if noticed else [number]
        verdict = "noticed" if noticed else "NOT NOTICED"
        print(f"{number:3} {verdict:12} {time.monotonic() - start:4.0f} s  {one.promise} ({one.file})", flush=True)
    print(f"{len(holes)} of {len(numbers or BREAKS)} breaks were not noticed" + (f": {holes}" if holes else ""))
    return 1 if holes else 0


def is_noticed(one: Break) -> bool:
    """Whether a test fails, in a copy of the checkout with the break in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        (copy / ".venvs").symlink_to(ROOT / ".venvs")
        file = copy / one.file
        text = file.read_text()
        if text.count(one.old) != 1:
            raise SystemExit(f"break {one.promise!r}: expected {one.old!r} once in {one.file}; correct the break")
        file.write_text(text.replace(one.old, one.new))
        options = ["-x", "-q", "-p", "no:randomly", "--timeout=120", "-m", "not slow and not jvm"]
        airflow = all(test.startswith("tests/dags") for test in one.tests.split())
        python = str(ROOT / ".venvs" / "airflow" / "bin" / "python") if airflow else sys.executable
        command = [python, "-m", "pytest", *options, *one.tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"break {one.promise!r}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}")
        return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main([int(number) for number in sys.argv[1:]]))
