"""`fruits approve`: it shows what it is about, asks, and writes down who, when and why."""

import getpass
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from fruits.analysis.gates import Gate
from fruits.lake.approvals import Approval, Kind, ask, digest_of, read_approvals
from fruits.run.decisions import gates_question
from fruits.settings import Settings
from tests.runs import RUN_ID, SNAPSHOTS, planned

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
DETAILS = {
    "reasons": ["480 deletions are more than 20% of 1,000 rows"],
    "first_keys": ["Kiwi/\x1b[31m.jpg", "Kiwi/2.jpg"],
    "by_label": {"Kiwi": 300, "Fig": 180},
    "labels": 3,
}
GATES = [Gate(name, "required", False, 0.5, 0.2, f"{name} is off") for name in ("quarantined_share", "probe")]


@pytest.fixture
def question(folder_lake: Settings) -> Approval:
    """A question that waits."""
    asked = Approval("deletions", digest_of("deletions", ["a"]), "Remove 480 of 1,000 rows?", 480, "run", NOW, DETAILS)
    return ask(folder_lake, asked)


@pytest.fixture
def of_gates(folder_lake: Settings) -> Approval:
    """A question about gates that failed."""
    return ask(folder_lake, gates_question(planned(), SNAPSHOTS, GATES))


def test_a_person_sees_the_set_gives_a_reason_and_confirms(
    fruits: Any, folder_lake: Settings, question: Approval
) -> None:
    done = fruits("approve", settings=folder_lake, input="moved\ny\n")
    assert done.exit_code == 0, done.output
    for shown in ("Remove 480", "20% of 1,000", "300 of Kiwi", "Kiwi/\\x1b[31m.jpg", "478 more", "1 more labels"):
        assert shown in done.stderr
    (approval,) = read_approvals(folder_lake)
    assert (approval.approved_by, approval.why, approval.via) == (getpass.getuser(), "moved", "fruits approve")


def test_without_a_yes_nothing_is_approved(fruits: Any, folder_lake: Settings, question: Approval) -> None:
    assert fruits("approve", "--why", "moved", settings=folder_lake, input="n\n").exit_code == 2
    assert read_approvals(folder_lake) == [question]


def test_a_script_names_the_digest_and_a_reason(fruits: Any, folder_lake: Settings, question: Approval) -> None:
    assert fruits("approve", question.short, "--yes", settings=folder_lake).exit_code == 2  # no reason
    call = ("approve", question.short, "--yes", "--why", "moved", "--by", "cron", "--json")
    document = json.loads(fruits(*call, settings=folder_lake).stdout)
    assert (document["digest"], document["approved_by"]) == (question.digest, "cron")
    assert fruits(*call, settings=folder_lake).exit_code == 2  # it waits no more


@pytest.mark.parametrize("named", ["run id", "run key"])
def test_gates_of_one_run_are_approved_by_their_names(
    fruits: Any, folder_lake: Settings, question: Approval, of_gates: Approval, named: str
) -> None:
    run = RUN_ID if named == "run id" else of_gates.run
    some = ("approve", "--yes", "--why", "a small bucket", "--run", run, "--gate", "probe")
    refused = fruits(*some, settings=folder_lake)
    assert refused.exit_code == 2
    assert "gates that failed are probe, quarantined_share" in refused.stderr
    done = fruits(*some, "--gate", "quarantined_share", settings=folder_lake)
    assert done.exit_code == 0
    assert f"Clear the task `validate` of run {of_gates.run}, downstream included." in done.stdout
    assert [one.kind for one in read_approvals(folder_lake) if one.decided] == ["gates"]


def test_the_findings_are_shown_before_the_decision(fruits: Any, folder_lake: Settings, of_gates: Approval) -> None:
    shown = fruits("approve", settings=folder_lake, input="\n").stderr
    assert "probe: measured 0.5, threshold 0.2: probe is off" in shown


def test_a_run_whose_gates_do_not_wait_is_refused(fruits: Any, folder_lake: Settings, question: Approval) -> None:
    refused = fruits("approve", "--run", "other", "--yes", "--why", "so", settings=folder_lake)
    assert "none of its gates waits for an approval" in refused.stderr
    assert "--gate: expected with --run" in fruits("approve", "--gate", "probe", "--yes", settings=folder_lake).stderr


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("deletions", "next sweep"),
        ("gates", "Clear the task `validate` of run manual__1"),
        ("rebuild", "Clear run manual__1 from `wait_for_lease`"),
        ("refit", "once you clear it from `wait_for_lease`"),
        ("backbone", "Otherwise start a run with the same param"),
    ],
)
def test_it_says_what_carries_the_approval_out(fruits: Any, folder_lake: Settings, kind: Kind, shown: str) -> None:
    asked = ask(folder_lake, Approval(kind, "ab" * 32, "Shall it?", 480, "manual__1", NOW))
    done = fruits("approve", asked.short, "--yes", "--why", "so", settings=folder_lake)
    assert shown in " ".join(done.stdout.split())


def test_status_names_what_waits_and_what_to_type(fruits: Any, answer: Any, new_lake: Any, tmp_path: Any) -> None:
    settings = new_lake(tmp_path)
    asked = ask(settings, Approval("deletions", "ab" * 32, "Remove 480 of 1,000 rows?", 480, "run", NOW, DETAILS))
    (waiting,) = answer("status", settings=settings)["approvals"]
    assert (waiting["digest"], waiting["command"]) == (asked.digest, asked.command)
    text = fruits("status", settings=settings).stdout
    assert f"fruits approve {asked.short}" in text
    assert "Remove 480 of 1,000 rows?" in text
    fruits("approve", "--yes", "--why", "moved", "--by", "ada", settings=settings)
    assert "Approved by ada. The next run that finds the same photos gone" in fruits("status", settings=settings).stdout
