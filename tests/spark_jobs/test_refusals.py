"""A bucket in which objects are refused, cut, gone or not answered for: the run publishes the rest."""

import hashlib

import pytest

from fruits.errors import ExitCode
from fruits.run.manifest import DUE_ETAG
from tests import misbehaving
from tests.misbehaving import always, misbehaving_server, refuse

pytestmark = [pytest.mark.jobs]


@pytest.fixture
def server():
    with misbehaving_server() as running:
        yield running


def etags(rows):
    return {row["key"]: row["etag"] for row in rows}


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_refused_objects_are_quarantined_or_pending_and_the_rest_is_published(chain, new_settings, server):
    settings = new_settings(s3_endpoint=server.endpoint, s3_retry_seconds=3, max_quarantined_share=0.5)
    server.objects |= chain.photos(28)
    archived, denied, foreign, packed, cut, vanished, busy, *sound = sorted(server.objects)
    server.faults |= {
        archived: always(refuse("InvalidObjectState")),
        denied: always(refuse("AccessDenied")),
        foreign: always(refuse("AccessDenied", 403, "not authorized to perform: kms:Decrypt")),
        packed: always(misbehaving.encoded("gzip")),
        cut: always(misbehaving.cut_at_half),
        vanished: always(refuse("NoSuchKey", 404)),
        busy: always(misbehaving.status(503)),
    }
    server.objects[packed] = b"\x1f\x8bpacked"
    chain.run(settings, "first")
    assert {row["key"] for row in chain.rows(settings, "features")} == set(sound)
    assert {row["key"]: row["reason"] for row in chain.rows(settings, "quarantine")} == {
        archived: "archived",
        denied: "denied",
        foreign: "kms_key",
        packed: "content_encoding",
        cut: "incomplete",
    }
    featurized = chain.documents(settings, "first").featurize.result
    assert featurized.pending == {"vanished": 1, "unanswered": 1}
    counts = chain.published(settings).counts
    assert (counts["create"], counts["pending"], counts["remaining"]) == (26, 1, 1)

    # The archive is restored, the busy photo answers, and an overwritten one does not.
    overwritten = sound[0]
    before = server.objects[overwritten]
    server.objects[overwritten] = chain.photo(60)
    del server.objects[vanished], server.faults[archived], server.faults[busy]
    server.faults[overwritten] = always(misbehaving.status(503))
    documents = chain.run(settings, "second")
    assert {name: documents.planned.counts[name] for name in ("create", "update", "delete", "quarantined")} == {
        "create": 1,
        "update": 2,
        "delete": 0,
        "quarantined": 4,
    }
    features = etags(chain.rows(settings, "features"))
    assert set(features) == {*sound, archived, busy}
    assert features[overwritten] == md5(before), "readers keep the photo that could be read"
    assert len(chain.rows(settings, "quarantine")) == 4
    assert chain.published(settings).counts["pending"] == 1

    # A rebuild keeps the row of a photo that it could not read, and makes the photo due again.
    vectors = {row["key"]: row["vector"] for row in chain.rows(settings, "features")}
    assert chain.plan(settings, "rebuild", mode="rebuild").counts["update"] == len(vectors) + 4
    assert chain.submit("featurize", settings, "rebuild") == ExitCode.OK
    rows = chain.branch_rows(settings, "rebuild", "features")
    assert {row["key"]: row["vector"] for row in rows} == vectors
    rows += chain.branch_rows(settings, "rebuild", "quarantine")
    assert len(rows) == len(vectors) + 4
    assert len({row["run_id"] for row in rows}) == 1
    due = {key for key, etag in etags(rows).items() if etag == DUE_ETAG}
    assert overwritten in due
    # A worker that has had no other answer yet does not ask for the others either.
    assert len(due) == sum(chain.documents(settings, "rebuild").featurize.result.pending.values())

    # Nothing but that photo is due, and the server still does not answer for it: the run may be tried again.
    assert chain.plan(settings, "third").counts["update"] == 1
    assert chain.submit("featurize", settings, "third") == ExitCode.TRANSIENT
    document = chain.documents(settings, "third").featurize
    assert (document.state, document.retryable) == ("failed", True)
    assert "none of 1 photos could be read now ({'unanswered': 1})" in document.error
    assert f"the first, {overwritten}: status 503" in document.error

    # Nobody may read anything: an error of the run, and nothing is quarantined. Spark's workers outlive a job here, and
    # would ask a server that did not answer only later; with other settings they start anew.
    settings = settings.model_copy(update={"s3_retry_seconds": 2})
    server.faults.clear()
    server.fault = always(refuse("AccessDenied", 403, "Access Denied"))
    assert chain.submit("featurize", settings, "third") == ExitCode.BAD_INPUT
    document = chain.documents(settings, "third").featurize
    assert (document.state, document.retryable) == ("failed", False)
    assert "denies s3:GetObject" in document.error
