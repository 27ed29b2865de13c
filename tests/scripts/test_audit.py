"""`make audit`: which advisories are open, accepted or unknown, with a stand-in of pip-audit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loading import load_file

audit = load_file(Path(__file__).resolve().parents[2] / "scripts" / "audit.py", "fruits_audit")

CLEAN = {"dependencies": [{"name": "numpy", "version": "2.0", "vulns": []}]}
FOUND = {
    "dependencies": [
        {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}]},
        {"name": "numpy", "version": "2.0", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]},
    ]
}
SKIPPED = {"dependencies": [{"name": "uv", "skip_reason": "Dependency not found"}]}

Answers = Callable[..., None]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Makes pip-audit answer with a report for each lock, or fail with a message when there is none."""
    monkeypatch.setattr(audit, "LOCKS", ("airflow", "jobs"))
    monkeypatch.setattr(audit, "REQUIREMENTS", tmp_path)

    def prepare(report: object = None, message: str = "", exceptions: str = "") -> None:
        (tmp_path / "audit.toml").write_text(exceptions)
        (tmp_path / "answer").write_text(json.dumps(report))
        uv = tmp_path / "uv"
        write = f'for last; do true; done; cp "{tmp_path}/answer" "$last"' if report else f"echo '{message}' >&2"
        uv.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n{write}\nexit 1\n')
        uv.chmod(0o755)
        monkeypatch.setattr(audit, "find_uv", lambda: str(uv))

    return prepare


def test_every_lock_is_audited() -> None:
    locks = {path.stem for path in audit.REQUIREMENTS.glob("*.txt")}
    assert locks == {*audit.LOCKS, "jars"}, "jars are no Python packages"


def test_without_advisories_it_passes(answers: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers(CLEAN)
    assert audit.main([]) == 0
    assert capsys.readouterr().out == "2 locks audited: 0 open advisories, 0 accepted\n"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [f"{lock}.txt" in call for lock, call in zip(("airflow", "jobs"), calls, strict=True)] == [True, True]
    assert all("tool run pip-audit==" in call and "--vulnerability-service pypi" in call for call in calls)


def test_an_open_advisory_fails_and_is_named(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    answers(FOUND)
    assert audit.main([]) == 1
    said = capsys.readouterr().out
    assert "PYSEC-1: pillow 1.0 in requirements/airflow.txt, fixed in 1.1, 2.0" in said
    assert "PYSEC-2: numpy 2.0 in requirements/jobs.txt, no fixed version" in said


def test_exceptions_have_reasons_and_end(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    accepted = "".join(f'[[exception]]\nid = "PYSEC-{n}"\nreason = "not called"\n' for n in (1, 2, 3))
    answers(FOUND, exceptions=accepted)
    assert audit.main([]) == 0
    said = capsys.readouterr().out
    assert "accepted, PYSEC-1: pillow 1.0 in requirements/airflow.txt, fixed in 1.1, 2.0: not called" in said
    assert "PYSEC-3: nothing has this vulnerability any more; remove it" in said
    answers(FOUND, exceptions='[[exception]]\nid = "PYSEC-1"\nreason = " "\n')
    assert audit.main([]) == 1
    assert "exception 'PYSEC-1': expected an id and a reason" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("report", "says"),
    [(None, "requirements/airflow.txt: no route to host"), (SKIPPED, "not looked up: uv (Dependency not found)")],
    ids=["no answer", "a package passed over"],
)
def test_where_the_service_does_not_answer_nothing_is_known(
    answers: Answers, capsys: pytest.CaptureFixture[str], report: object, says: str
) -> None:
    answers(report, message="no route to host")
    assert audit.main(["--service", "osv"]) == audit.NOT_KNOWN == 3
    said = capsys.readouterr()
    assert said.err.startswith("NOT AUDITED: requirements/airflow.txt")
    assert says in said.err
    assert said.out == ""
