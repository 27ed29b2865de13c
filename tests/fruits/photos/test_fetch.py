"""GETs from a server that misbehaves: a refusal is of one object or of all, and what may pass is pending."""

import threading
from collections.abc import Iterator

import pytest

from fruits import stores
from fruits.errors import DeniedError, FruitsError
from fruits.photos import fetch as fetching
from fruits.photos.decode import UnreadablePhotoError
from fruits.photos.fetch import Patience, PendingPhotoError, PhotoServer, readable_again
from fruits.photos.quarantine import Pending, Reason
from fruits.serve import doctor
from fruits.settings import Settings
from tests import misbehaving
from tests.misbehaving import StandIn, always, at_first, misbehaving_server, refuse

PHOTO = b"\xff\xd8\xff" + b"a photo, or near enough" * 1_000
NEEDS_CUSTOMER_KEY = (
    "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve "
    "the object."
)
BY_KMS = "User: fruits is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:eu-west-1:1:key/2"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, with two objects; failed requests are tried again at once."""
    monkeypatch.setattr(fetching, "_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(stores, "_MOST_RETRIES", 3)
    with misbehaving_server() as running:
        running.objects |= {"Kiwi/1.jpg": PHOTO, "Kiwi/2.jpg": PHOTO}
        yield running


@pytest.fixture
def settings(server: StandIn, tmp_path) -> Settings:
    return Settings.load(
        lake=f"file://{tmp_path}",
        catalog_uri=f"sqlite:///{tmp_path}/catalog.db",
        s3_endpoint=server.endpoint,
        s3_timeout_seconds=1,
        s3_retry_seconds=2,
    )


@pytest.fixture
def photos(settings: Settings) -> PhotoServer:
    """The bucket, with the second object as witness that it can be read."""
    return PhotoServer(settings, ["Kiwi/2.jpg"])


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        (refuse("InvalidObjectState", 403, "not valid for the storage class"), Reason.ARCHIVED, "storage class"),
        (refuse("InvalidRequest", 400, NEEDS_CUSTOMER_KEY), Reason.CUSTOMER_KEY, "Server Side Encryption"),
        (refuse("AccessDenied", 403, BY_KMS), Reason.KMS_KEY, "kms:Decrypt"),
        (refuse("KMS.DisabledException", 400, "the key is disabled"), Reason.KMS_KEY, "KMS.DisabledException"),
        (refuse("AccessDenied", 403, "Access Denied"), Reason.DENIED, "AccessDenied: Access Denied"),
        (misbehaving.status(403), Reason.DENIED, "status 403"),
        (refuse("MethodNotAllowed", 405), Reason.REFUSED, "MethodNotAllowed"),
        (misbehaving.status(400), Reason.REFUSED, "status 400"),
        (misbehaving.cut_at_half, Reason.INCOMPLETE, ""),
    ],
    ids=["archived", "customer key", "kms", "kms disabled", "acl", "bare 403", "405", "bare 400", "short"],
)
def test_an_object_that_alone_is_refused_has_a_reason_of_its_own(server, photos, fault, reason, detail):
    server.faults["Kiwi/1.jpg"] = always(fault)
    with pytest.raises(UnreadablePhotoError) as caught:
        photos.fetch("Kiwi/1.jpg")
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    assert photos.fetch("Kiwi/2.jpg").data == PHOTO


@pytest.mark.parametrize("bad", [refuse("AccessDenied"), misbehaving.status(403), refuse("AccessDenied", 403, BY_KMS)])
def test_a_bucket_that_denies_every_object_is_an_error_of_the_run(server, photos, bad):
    server.fault = always(bad)
    with pytest.raises(DeniedError, match="denies|kms:Decrypt"):
        photos.fetch("Kiwi/1.jpg")


def test_an_archived_witness_shows_that_the_bucket_is_open(server, photos):
    server.faults = {"Kiwi/1.jpg": always(refuse("AccessDenied")), "Kiwi/2.jpg": always(refuse("InvalidObjectState"))}
    with pytest.raises(UnreadablePhotoError) as caught:
        photos.fetch("Kiwi/1.jpg")
    assert caught.value.reason == Reason.DENIED


def test_witnesses_are_asked_once_and_only_before_any_photo_was_read(server, photos):
    server.objects |= {f"Fig/{number}.jpg": PHOTO for number in range(5)}
    server.faults |= {f"Fig/{number}.jpg": always(refuse("AccessDenied")) for number in range(5)}
    for number in range(5):
        with pytest.raises(UnreadablePhotoError):
            photos.fetch(f"Fig/{number}.jpg")
    assert server.asked["Kiwi/2.jpg"] == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [("InvalidAccessKeyId", 403), ("SignatureDoesNotMatch", 403), ("ExpiredToken", 400), ("NoSuchBucket", 404)],
)
def test_wrong_credentials_and_a_missing_bucket_are_errors_of_the_run(server, photos, code, status):
    photos.fetch("Kiwi/2.jpg")
    server.faults["Kiwi/1.jpg"] = always(refuse(code, status))
    with pytest.raises(FruitsError, match="S3 server") as caught:
        photos.fetch("Kiwi/1.jpg")
    assert not isinstance(caught.value, UnreadablePhotoError)


def test_an_object_that_vanished_is_pending_not_quarantined(photos):
    with pytest.raises(PendingPhotoError) as caught:
        photos.fetch("Kiwi/gone.jpg")
    assert caught.value.pending == Pending.VANISHED


TRANSIENT = {
    "503 without XML": misbehaving.status(503, b"<html>"),
    "503": refuse("SlowDown", 503),
    "500 empty": misbehaving.status(500),
    "429": misbehaving.status(429),
    "timeout of 400": refuse("RequestTimeout", 400),
    "reset": misbehaving.reset,
    "reset in the body": misbehaving.reset_in_body,
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_what_passes_is_tried_again_and_then_read(server, photos, fault):
    server.faults["Kiwi/1.jpg"] = at_first(2, fault)
    assert photos.fetch("Kiwi/1.jpg").data == PHOTO
    assert server.asked["Kiwi/1.jpg"] == 3


@pytest.mark.parametrize("fault", [*TRANSIENT.values(), misbehaving.slow(3)], ids=[*TRANSIENT, "stall"])
def test_what_does_not_pass_is_pending(server, photos, fault):
    server.faults["Kiwi/1.jpg"] = always(fault)
    with pytest.raises(PendingPhotoError) as caught:
        photos.fetch("Kiwi/1.jpg")
    assert caught.value.pending == Pending.UNANSWERED
    assert server.asked["Kiwi/1.jpg"] > 1


@pytest.mark.parametrize(
    ("encoding", "data", "refused"),
    [("gzip", b"\x1f\x8bpacked", True), ("br", b"packed", True), ("gzip", PHOTO, False), ("aws-chunked", b"x", False)],
)
def test_an_encoded_body_is_refused_unless_it_is_a_photo_after_all(server, photos, encoding, data, refused):
    server.objects["Kiwi/1.jpg"] = data
    server.faults["Kiwi/1.jpg"] = always(misbehaving.encoded(encoding))
    if refused:
        with pytest.raises(UnreadablePhotoError, match=f"Content-Encoding '{encoding}'") as caught:
            photos.fetch("Kiwi/1.jpg")
        assert caught.value.reason == Reason.CONTENT_ENCODING
    else:
        assert photos.fetch("Kiwi/1.jpg").data == data


def test_requests_say_who_pays_where_that_is_set(server, settings):
    for pays, expected in ((True, "requester"), (False, None)):
        chosen = settings.model_copy(update={"requester_pays": pays})
        PhotoServer(chosen).fetch("Kiwi/1.jpg")
        assert server.headers[-1].get("x-amz-request-payer") == expected
        assert stores.list_requester(chosen) == ({"RequestPayer": "requester"} if pays else {})


class TestPatience:
    """A server that is down costs the patience once, not once for each photo."""

    def test_is_exhausted_after_its_seconds_without_an_answer(self):
        clock = iter([0.0, 5.0, 9.0, 10.0, 10.0, 10.0]).__next__
        patience = Patience(10, clock)
        began = patience.now()
        patience.failed(began)  # at 5
        assert not patience.exhausted
        patience.failed(began)  # at 9
        assert not patience.exhausted
        patience.failed(began)  # at 10
        assert patience.exhausted

    def test_an_answer_renews_it_and_one_get_in_a_while_asks_whether_there_is_one(self):
        time = [0.0]
        patience = Patience(10, lambda: time[0])
        time[0] = 11.0
        patience.failed(0.0)
        assert patience.exhausted
        time[0] = 50.0
        assert [patience.exhausted for _ in range(3)] == [False, True, True]
        patience.answered()
        assert not patience.exhausted

    def test_one_photo_that_is_never_answered_does_not_stop_the_others(self):
        time = [0.0]
        patience = Patience(10, lambda: time[0])
        time[0] = 9.0
        patience.answered()  # another photo's
        time[0] = 11.0
        patience.failed(0.0)
        assert not patience.exhausted

    def test_photos_after_that_are_pending_without_a_request(self, server, photos):
        server.fault = always(misbehaving.status(503))
        photos.patience = Patience(0.1)
        for message, asked in (("status 503", True), ("not asked for", False)):
            before = server.asked.total()
            with pytest.raises(PendingPhotoError, match=message):
                photos.fetch("Kiwi/1.jpg")
            assert (server.asked.total() > before) == asked


class TestReadableAgain:
    def test_names_what_answers_now(self, server, settings):
        keys = ["Kiwi/1.jpg", "Kiwi/2.jpg", "Kiwi/3.jpg"]
        server.faults["Kiwi/1.jpg"] = always(refuse("InvalidObjectState"))
        assert readable_again(settings, keys) == {"Kiwi/2.jpg"}
        assert {"HEAD", "GET"} >= {method for method, _ in server.requests}

    @pytest.mark.parametrize("fault", [refuse("AccessDenied"), misbehaving.status(503), refuse("ExpiredToken", 400)])
    def test_a_server_that_refuses_or_is_down_changes_nothing(self, server, settings, fault):
        server.fault = always(fault)
        assert readable_again(settings, list(server.objects)) == frozenset()


class TestMetadataService:
    """The instance's metadata service, a stand-in whose first answers take longer than botocore waits by default."""

    @pytest.fixture
    def late(self, server, monkeypatch):
        paths = {
            "latest/api/token": b"token",
            "latest/meta-data/iam/security-credentials/": b"role",
            "latest/meta-data/iam/security-credentials/role": (
                b'{"Code": "Success", "AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c",'
                b' "Expiration": "2099-01-01T00:00:00Z"}'
            ),
        }
        server.paths |= paths
        server.path_delay = 1.3
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", "/nowhere")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.endpoint)
        return server

    @pytest.mark.usefixtures("late")
    def test_a_slow_answer_is_waited_for(self):
        assert stores._credentials()()["access_key_id"] == "a"
        assert doctor.credentials().found == "from iam-role"

    @pytest.mark.usefixtures("late")
    def test_the_operators_own_limits_stand(self, monkeypatch):
        monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "1")
        monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
        with pytest.raises(FruitsError, match="no AWS credentials"):
            stores._credentials()


def test_many_threads_ask_the_witnesses_once(server, photos):
    server.faults["Kiwi/1.jpg"] = always(refuse("AccessDenied"))
    outcomes = []

    def fetch():
        try:
            photos.fetch("Kiwi/1.jpg")
        except UnreadablePhotoError as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Reason.DENIED] * 8
    assert server.asked["Kiwi/2.jpg"] == 1
