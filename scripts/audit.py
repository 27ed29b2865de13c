"""Ask for known vulnerabilities of every package that the locks in requirements/ name: `make audit`.

pip-audit asks the advisory service (PyPI's, or OSV with `--service osv`), in an environment of its own. Nothing is
installed from the locks. Exit code 0: no advisory is open; 1: some are; 3: the service gave no answer, so nothing is
known. `requirements/audit.toml` lists the advisories that do not concern us, each with the reason.
"""
# ruff: noqa: S603 - the arguments are our own

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
# Each lock of scripts/setup.py.
LOCKS = ("bootstrap", "build", "airflow", "airflow-dev", "jobs", "jobs-tensorflow", "jobs-dev")
PIP_AUDIT = "pip-audit==2.10.1"
NOT_KNOWN = 3
_SECONDS = 600


class NoAnswerError(Exception):
    """The advisory service gave no answer."""


@dataclass(frozen=True, order=True)
class Advisory:
    """A known vulnerability of a package that a lock names."""

    id: str
    package: str
    version: str
    fixed_in: str
    lock: str

    def __str__(self) -> str:
        fix = f"fixed in {self.fixed_in}" if self.fixed_in else "no fixed version"
        return f"{self.id}: {self.package} {self.version} in requirements/{self.lock}.txt, {fix}"


def main(argv: Sequence[str] | None = None) -> int:
    """Audit all locks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="where advisories come from")
    service = parser.parse_args(argv).service
    try:
        exceptions = read_exceptions((REQUIREMENTS / "audit.toml").read_text())
        found = sorted({advisory for lock in LOCKS for advisory in audit(lock, service)})
    except NoAnswerError as error:
        print(f"NOT AUDITED: {error}. Nothing is known of vulnerabilities now; try again with a network that reaches "
              "the advisory service, or another one: make audit ARGS='--service osv'", file=sys.stderr)  # fmt: skip
        return NOT_KNOWN
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    open_ = [advisory for advisory in found if advisory.id not in exceptions]
    for advisory in open_:
        print(advisory)
    for advisory in found:
        if advisory.id in exceptions:
            print(f"accepted, {advisory}: {exceptions[advisory.id]}")
    for identity in sorted(exceptions.keys() - {advisory.id for advisory in found}):
        print(f"{identity}: nothing has this vulnerability any more; remove it from requirements/audit.toml")
    print(f"{len(LOCKS)} locks audited: {len(open_)} open advisories, {len(found) - len(open_)} accepted")
    return 1 if open_ else 0


def read_exceptions(text: str) -> Mapping[str, str]:
    """The reasons by advisory.

    Raises:
        ValueError: when an exception has no reason.
    """
    exceptions = {
        str(one.get("id", "")): str(one.get("reason", "")) for one in tomllib.loads(text).get("exception", [])
    }
    for identity, reason in exceptions.items():
        if not identity or not reason.strip():
            raise ValueError(f"requirements/audit.toml: exception {identity!r}: expected an id and a reason; add them")
    return exceptions


def find_uv() -> str:
    """The machine's uv, or the one that `make setup` installed."""
    return shutil.which("uv") or str(ROOT / ".venvs" / "bootstrap" / "bin" / "uv")


def audit(lock: str, service: str) -> list[Advisory]:
    """The advisories of a lock's packages, all of them as the service has them.

    Raises:
        NoAnswerError: when pip-audit can't be installed, or the service does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="fruits-audit-") as folder:
        report = Path(folder, "report.json")
        command = [
            *(find_uv(), "tool", "run", PIP_AUDIT, "--requirement", str(REQUIREMENTS / f"{lock}.txt")),
            *("--disable-pip", "--no-deps", "--require-hashes", "--vulnerability-service", service),
            *("--progress-spinner", "off", "--format", "json", "--output", str(report)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise NoAnswerError(f"no answer for requirements/{lock}.txt within {_SECONDS} s") from None
        if not report.exists():
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise NoAnswerError(f"requirements/{lock}.txt: {reason}")
        return advisories(json.loads(report.read_text()), lock)


def advisories(report: Mapping[str, Any], lock: str) -> list[Advisory]:
    """The advisories in a report of pip-audit.

    Raises:
        NoAnswerError: when a package was passed over: nothing is known of its vulnerabilities.
    """
    skipped = [f"{one['name']} ({one['skip_reason']})" for one in report["dependencies"] if "skip_reason" in one]
    if skipped:
        raise NoAnswerError(f"requirements/{lock}.txt: not looked up: {', '.join(skipped)}")
    return [
        Advisory(found["id"], one["name"], one["version"], ", ".join(found["fix_versions"]), lock)
        for one in report["dependencies"]
        for found in one["vulns"]
    ]


if __name__ == "__main__":
    sys.exit(main())
