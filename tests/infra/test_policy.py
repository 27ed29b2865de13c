"""The template's policy, proved: the chain runs with it, and with less of it fails with a message that says what lacks.

``infra/iam_proof.py`` says how, and what of AWS the proof leaves out.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.story]

SIDS = (
    "ListPhotos",
    "ReadPhotos",
    "ListLake",
    "ReadLake",
    "WriteLake",
    "CleanUpLake",
    "TakePhotoEvents",
    "SendAlerts",
)
MISSING = {  # without the statement, what the first step says that meets it
    "ListPhotos": "s3:ListBucket on arn:aws:s3:::fruits-photos-123456789012-us-east-1;",
    "ReadPhotos": "s3:GetObject on arn:aws:s3:::fruits-photos-123456789012-us-east-1/Test/",
    "ListLake": "s3:ListBucket on arn:aws:s3:::fruits-lake-123456789012-us-east-1;",
    "ReadLake": "s3:GetObject on arn:aws:s3:::fruits-lake-123456789012-us-east-1/lake/",
    "WriteLake": "s3:PutObject on arn:aws:s3:::fruits-lake-123456789012-us-east-1/lake/",
    "CleanUpLake": "s3:DeleteObject on arn:aws:s3:::fruits-lake-123456789012-us-east-1/lake/",
    "TakePhotoEvents": "sqs:",
    "SendAlerts": "sns:Publish",
}


@pytest.fixture(scope="module")
def whole(account: Any) -> list[dict[str, Any]]:
    """The template's statements."""
    return list(account.statements())


@pytest.fixture(scope="module")
def prepared(
    proof: ModuleType, account: Any, whole: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """This process is the host, with the whole policy; the first task has made tables and backbone."""
    proof.upload_photos(account)
    with proof.as_host(account, tmp_path_factory.mktemp("host")):
        proof.prepare()
        yield


@pytest.fixture(scope="module")
def run(proof: ModuleType, account: Any, prepared: None) -> dict[str, Any]:
    """The whole chain with the whole policy; what each step found."""
    account.upload("Training/Kiwi/new.jpg", b"wakes the trigger")
    account.calls.clear()
    return {name: step() for name, step in proof.chain("proof")}


def test_the_template_has_these_statements(whole):
    assert tuple(statement["Sid"] for statement in whole) == SIDS


@pytest.mark.parametrize("sid", SIDS)
def test_without_a_statement_the_first_check_names_what_is_missing(proof, account, whole, prepared, sid):
    """As the operator asks: by `fruits doctor`, which does not send alerts."""
    assert without(proof, account, whole, sid, [("doctor", proof.doctor), ("alert", proof.alert)])


@pytest.mark.parametrize("sid", [sid for sid in SIDS if sid not in {"TakePhotoEvents", "SendAlerts"}])
def test_without_a_statement_the_first_task_names_it_too(proof, account, whole, prepared, sid):
    assert without(proof, account, whole, sid, proof.early()[:1])


def test_without_its_events_the_trigger_names_what_is_missing(proof, account, whole, prepared):
    said = without(proof, account, whole, "TakePhotoEvents", [("events", proof.events)])
    assert "sqs:ReceiveMessage" in said
    assert "FRUITS_EVENT_QUEUE" in said


@pytest.mark.parametrize(
    ("pattern", "action", "resource", "allowed"),
    [
        ("arn:aws:s3:::b/lake/*", "s3:GetObject", "arn:aws:s3:::b/lake/x/y", True),
        ("arn:aws:s3:::b/lake/*", "s3:getobject", "arn:aws:s3:::b/lake/x", True),
        ("arn:aws:s3:::b/lake/*", "s3:GetObject", "arn:aws:s3:::b/lakes", False),
        ("arn:aws:s3:::b/lake/*", "s3:GetObjectAcl", "arn:aws:s3:::b/lake/x", False),
        ("arn:aws:s3:::b", "s3:GetObject", "arn:aws:s3:::b/x", False),
        ("arn:aws:s3:::b.c/*", "s3:GetObject", "arn:aws:s3:::bxc/x", False),
    ],
)
def test_our_own_judge_reads_a_statement_as_aws_does(proof, pattern, action, resource, allowed):
    statement = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": pattern}
    assert proof.permits(statement, action, resource) is allowed


def test_the_chain_runs_with_the_templates_policy(proof, run):
    assert run["plan"]["create"] > proof.PHOTOS
    assert run["publish"].startswith("pub-000001-")
    assert run["events"]
    assert run["alert"] == "sent"
    assert run["maintenance"]


def test_every_request_was_allowed_and_our_own_judge_agrees(proof, account, whole, run):
    assert len(account.calls) > 500
    denied = [call for call in account.calls if not call.allowed]
    assert denied == []
    ours = [call for call in account.calls if not any(proof.permits(one, call.action, call.resource) for one in whole)]
    assert ours == []


def test_nothing_is_allowed_that_was_not_needed(proof, account, whole, run):
    used = {call.action for call in account.calls}
    assert proof.actions(whole) - used == proof.NEVER_USED


def without(proof: ModuleType, account: Any, whole: list[dict[str, Any]], sid: str, steps: Any) -> str:
    """What the first step that fails says when a statement is gone; its permission is named."""
    account.set_statements([one for one in whole if one["Sid"] != sid])
    try:
        account.upload("Training/Kiwi/new.jpg", b"wakes the trigger")
        _, said = proof.first_denial(steps)
    finally:
        account.set_statements(whole)
    assert MISSING[sid] in said
    return said
