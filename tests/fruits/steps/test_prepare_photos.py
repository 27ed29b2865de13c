"""What `prepare` makes of photos that it may not read: one is no reason to stop, all of them are."""

import pyarrow as pa
import pytest

from fruits.errors import DeniedError, FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.lake.reader import open_read_only
from fruits.lake.schemas import FEATURES
from fruits.run.events import Burst, keep
from fruits.run.request import RunRequest
from fruits.steps.prepare import prepare
from tests import misbehaving
from tests.misbehaving import always, misbehaving_server, refuse

KEYS = [f"Kiwi/{number:03}.jpg" for number in range(100)]
NEXT_MISSING = "no Python at"  # the jobs environment, which `prepare` needs after the photos


@pytest.fixture
def server():
    with misbehaving_server() as running:
        running.objects |= dict.fromkeys(KEYS, b"photo")
        yield running


@pytest.fixture
def settings(server, folder_lake, tmp_path):
    return folder_lake.model_copy(
        update={"s3_endpoint": server.endpoint, "s3_retry_seconds": 1, "jobs_env": tmp_path / "nowhere"}
    )


@pytest.mark.parametrize("fault", [refuse("InvalidObjectState"), refuse("AccessDenied"), misbehaving.status(400)])
def test_photos_that_are_archived_or_denied_stop_nothing_while_another_can_be_read(server, settings, fault):
    server.faults |= {key: always(fault) for key in KEYS[:40]}
    with pytest.raises(FruitsError, match=NEXT_MISSING):
        prepare(settings, RunRequest(prefix=""))
    assert len([key for _, key in server.requests if key]) < 20


def test_a_bucket_of_archived_photos_is_not_denied(server, settings):
    server.faults |= {key: always(refuse("InvalidObjectState")) for key in KEYS}
    with pytest.raises(FruitsError, match=NEXT_MISSING):
        prepare(settings, RunRequest(prefix=""))


def test_a_bucket_that_denies_every_photo_is_an_error_before_anything_is_made(server, settings):
    server.faults |= {key: always(refuse("AccessDenied", 403, "Access Denied")) for key in KEYS}
    with pytest.raises(DeniedError, match="denies s3:GetObject on arn:aws:s3:::fruits/Kiwi/000.jpg"):
        prepare(settings, RunRequest(prefix=""))
    with pytest.raises(FruitsError, match="there is no|no lake there"):
        open_read_only(settings)


SSE_C = "The object was stored using a form of Server Side Encryption"


@pytest.mark.parametrize(
    "answer", [("AccessDenied", 403, "Access Denied"), ("InvalidRequest", 400, SSE_C), ("KMS.DisabledException", 400)]
)
@pytest.mark.parametrize("scope", [{"prefix": "Kiwi/"}, {"prefix": "", "mode": "events"}])
def test_photos_that_are_all_refused_stop_nothing_while_a_photo_of_the_tables_can_be_read(
    server, settings, answer, scope
):
    keep(settings, Burst(tuple(KEYS[:2])))
    server.faults |= {key: always(refuse(*answer)) for key in KEYS}
    server.objects["Fig/old.jpg"] = b"photo"
    server.faults["Fig/old.jpg"] = lambda _: None
    values = {"key": "Fig/old.jpg", "vector": [1.0], "size": 5, "phash": 0, "width": 9, "height": 9, "last_modified": 0}
    row = {**dict.fromkeys(FEATURES.schema.names, ""), **values}
    Lake.open(settings).table("features").append(pa.Table.from_pylist([row], schema=FEATURES.schema))
    with pytest.raises(FruitsError, match=NEXT_MISSING):
        prepare(settings, RunRequest(**scope))


def test_a_server_that_does_not_answer_may_do_so_later(server, settings):
    server.faults |= {key: always(misbehaving.status(503)) for key in KEYS}
    with pytest.raises(TransientError, match="does not answer"):
        prepare(settings, RunRequest(prefix=""))
