"""`make test` and its kind: the tests of both environments at once, each test in the environment that it is for.

Tests wait for servers and other programs, so the tests of one environment leave time for those of the other. The output
of the jobs environment is shown as it comes, that of the airflow environment when both are done.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal

Environment = Literal["jobs", "airflow"]

ROOT = Path(__file__).parents[1]
OF_ENVIRONMENT: dict[Environment, str] = {"jobs": "not airflow", "airflow": "airflow"}
PASSED, NO_TESTS = 0, 5
"""Two of pytest's exit codes."""


def start(
    environment: Environment, marks: str, options: Sequence[str], output: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    """Start pytest in an environment; ``output`` is a file, or None for the terminal."""
    python = ROOT / ".venvs" / environment / "bin" / "python"
    selected = ("-m", f"{OF_ENVIRONMENT[environment]} and {marks}")
    variables = {"COVERAGE_FILE": f"build/coverage/{environment}"}
    if environment == "jobs":
        variables["JAVA_HOME"] = (ROOT / ".venvs" / "java_home").read_text().strip()
    command = (python, "-m", "pytest", "--dist", "loadfile", "--no-loadscope-reorder", *selected, *options)
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, stdout=output, stderr=output)


def verdict(jobs: int, airflow: int, *, may_be_empty: bool) -> str | None:
    """What is wrong with the two exit codes of pytest, or None; part of the tests may be none of an environment's."""
    if not {jobs, airflow} <= {PASSED, NO_TESTS}:
        return f"Tests failed (pytest returned {jobs} in the jobs environment, {airflow} in the airflow environment)."
    if NO_TESTS in (jobs, airflow) and not may_be_empty:
        return "An environment has no tests."
    return None


def main(argv: Sequence[str] | None = None) -> str | None:
    """Run the tests with some marks in both environments; other options go to pytest. Returns what is wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--marks", required=True, help="which tests, as pytest's -m has it")
    parser.add_argument("--workers", default="2", help="processes of the jobs environment")
    parser.add_argument("--airflow-workers", help="processes of the airflow environment (default: as many)")
    parser.add_argument("--hypothesis-profile", default="fruits", help="how many examples a property is tried on")
    parser.add_argument("--part", help="K/N: of the tests marked slow, only the K-th of N parts")
    parser.add_argument("--coverage", action="store_true", help="measure what the tests reach")
    args, arguments = parser.parse_known_args(argv)
    options = ["--hypothesis-profile", args.hypothesis_profile, *arguments]
    if args.part:
        options = ["--part", args.part, *options]
    if args.coverage:
        options = ["--cov", "--cov-report=", "--cov-fail-under=0", *options]
    with TemporaryFile() as output:
        airflow_options = ("-n", args.airflow_workers or args.workers, *options)
        airflow = start("airflow", args.marks, airflow_options, output)
        jobs = start("jobs", args.marks, ("-n", args.workers, *options), None)
        try:
            codes = jobs.wait(), airflow.wait()
        except KeyboardInterrupt:  # both have it too, and end what their tests started
            codes = jobs.wait(), airflow.wait()
        output.seek(0)
        sys.stdout.flush()
        sys.stdout.buffer.write(output.read())
    return verdict(*codes, may_be_empty=bool(args.part or arguments))


if __name__ == "__main__":
    sys.exit(main())
