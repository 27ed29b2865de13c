import json
import os
from pathlib import Path

import pytest

from fruits import stores
from fruits.errors import FruitsError
from fruits.stores import (
    check_lake,
    check_photo,
    denials_explained,
    denied_permission,
    exists,
    explain,
    lake_store,
    list_client,
    open_store,
    photo_store,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)
from local.stack import free_ports


@pytest.fixture(params=["file", "s3"])
def settings(request, make_settings):
    return make_settings(request.param)


def test_what_was_written_is_read_and_written_over(settings):
    store = lake_store(settings, "runs/one")
    for data in (b"first, which is longer", b"second"):
        write_bytes(store, "a/b c%20ü.bin", data)
        assert read_bytes(store, "a/b c%20ü.bin") == data
    document = {"label": "Pomme d'été", "counts": {"create": 3}, "none": None}
    write_json(store, "plan.json", document)
    assert read_json(store, "plan.json") == document
    assert "Pomme d'été" in read_bytes(store, "plan.json").decode()


def test_what_is_not_there_is_not_found(settings):
    store = lake_store(settings, "runs/one")
    assert not exists(store, "plan.json")
    for read in (read_bytes, read_json):
        with pytest.raises(FileNotFoundError):
            read(store, "plan.json")
    write_json(store, "plan.json", {})
    assert exists(store, "plan.json")


def test_folders_of_the_lake_are_apart_and_one_lake(settings):
    write_bytes(lake_store(settings, "runs/one"), "x", b"1")
    write_bytes(lake_store(settings, "runs/two"), "x", b"2")
    assert read_bytes(lake_store(settings), "runs/one/x") == b"1"
    assert read_bytes(lake_store(settings, "runs"), "two/x") == b"2"
    assert read_bytes(open_store(settings, f"{settings.lake}/runs/two"), "x") == b"2"


def test_a_lake_in_a_folder_may_have_any_name(make_settings, tmp_path):
    settings = make_settings(lake=f"file://{tmp_path}/a%20b/new")
    write_json(lake_store(settings, "runs"), "x.json", {"a": 1})
    assert json.loads((Path(tmp_path) / "a b" / "new" / "runs" / "x.json").read_text()) == {"a": 1}


def test_a_uri_of_another_kind_is_refused(make_settings):
    with pytest.raises(FruitsError, match=r"ftp://host/x: expected a URI that starts with file:/// or s3://"):
        open_store(make_settings(), "ftp://host/x")


def test_photos_are_read_from_the_bucket_of_the_settings(stack, make_settings, bucket):
    stack.client().put_object(Bucket=bucket, Key="Kiwi/100% a+b#?.jpg", Body=b"photo")
    assert read_bytes(photo_store(make_settings()), "Kiwi/100% a+b#?.jpg") == b"photo"


@pytest.fixture
def _fresh_credentials():
    stores._credentials.cache_clear()
    yield
    stores._credentials.cache_clear()


def refusal_by_obstore(settings) -> str:
    with pytest.raises(FruitsError) as caught:
        try:
            read_bytes(photo_store(settings), "x")
        except (stores.obstore.exceptions.BaseError, FileNotFoundError) as error:
            raise explain(error, settings, settings.bucket) from error
    return str(caught.value)


def refusal_by_boto3(settings) -> str:
    with pytest.raises(FruitsError) as caught:
        try:
            list_client(settings).list_objects_v2(Bucket=settings.bucket)
        except (stores.BotoCoreError, stores.botocore.exceptions.ClientError) as error:
            raise explain(error, settings, settings.bucket) from error
    return str(caught.value)


REFUSALS = pytest.mark.parametrize("refusal", [refusal_by_obstore, refusal_by_boto3])


@REFUSALS
@pytest.mark.usefixtures("_fresh_credentials")
class TestWhatIsWrongWithS3:
    def test_a_missing_bucket(self, make_settings, refusal):
        settings = make_settings(bucket="no-such-bucket")
        message = refusal(settings)
        assert message.startswith(f"S3 server {settings.s3_endpoint}: bucket 'no-such-bucket' does not exist there;")
        assert "FRUITS_BUCKET" in message

    def test_a_wrong_secret(self, make_settings, refusal, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert "refuses the secret key; check AWS_SECRET_ACCESS_KEY" in refusal(make_settings())

    def test_an_unknown_access_key(self, make_settings, refusal, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        assert "does not know the access key; check AWS_ACCESS_KEY_ID" in refusal(make_settings())

    def test_no_credentials_at_all(self, make_settings, refusal, monkeypatch, tmp_path):
        for name in [name for name in os.environ if name.startswith("AWS_") and "METADATA" not in name]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert "there are no AWS credentials; set AWS_ACCESS_KEY_ID" in refusal(make_settings())

    def test_a_profile_that_does_not_exist(self, make_settings, refusal, monkeypatch):
        monkeypatch.setenv("AWS_PROFILE", "orchard")
        with pytest.raises((FruitsError, stores.BotoCoreError), match=r"profile \(orchard\) could not be found"):
            photo_store(make_settings()) if refusal is refusal_by_obstore else list_client(make_settings())

    def test_a_server_that_is_down(self, make_settings, refusal):
        settings = make_settings(s3_endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
        message = refusal(settings)
        assert message == (
            f"S3 server {settings.s3_endpoint}: it does not answer; check FRUITS_S3_ENDPOINT and the network."
        )


@pytest.mark.parametrize(
    ("said", "explained"),
    [
        (
            "... <Code>AccessDenied</Code> ...",
            "it denies access to bucket 'fruits' (... <Code>AccessDenied</Code> ...); the role lacks that permission",
        ),
        ("An error occurred (ExpiredToken) when calling", "the session token has expired"),
        ('Read timeout on endpoint URL: "https://x"', "it does not answer"),
        ("Something else\nin two lines\n\nDebug source:\nSource {}", "Something else in two lines."),
    ],
)
def test_what_a_server_may_say_is_explained(make_settings, said, explained):
    message = str(explain(RuntimeError(said), make_settings(s3_endpoint=None), "fruits"))
    assert message.startswith("S3 server AWS (us-east-1): ")
    assert explained in message
    assert "Debug" not in message


BODY = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
ENRICHED = (
    "User: arn:aws:sts::123456789012:assumed-role/fruits/i-1 is not authorized to perform: s3:PutObject on resource: "
    '"arn:aws:s3:::lake/lake/runs/one.json" because no identity-based policy allows the s3:PutObject action'
)


@pytest.mark.parametrize(
    ("said", "permission"),
    [
        (  # obstore, of a request by path
            f"Error performing PUT http://127.0.0.1:1/lake/a%20b/c.json in 4ms - ... 403 Forbidden: {BODY}",
            "s3:PutObject on arn:aws:s3:::lake/a b/c.json",
        ),
        (
            "Error performing HEAD http://127.0.0.1:1/lake/x in 4ms - ... 403 Forbidden: \n\nDebug",
            "s3:GetObject on arn:aws:s3:::lake/x",
        ),
        (
            f"Error performing GET http://127.0.0.1:1/lake?list-type=2&prefix=x%2F in 4ms - ... 403 Forbidden: {BODY}",
            "s3:ListBucket on arn:aws:s3:::lake",
        ),
        (  # obstore, of a request by host name, as on AWS
            f"Error performing GET https://photos.s3.x.amazonaws.com/Kiwi/1.jpg in 4ms - ... 403 Forbidden: {BODY}",
            "s3:GetObject on arn:aws:s3:::photos/Kiwi/1.jpg",
        ),
        (
            f"Error performing GET https://photos.s3.x.amazonaws.com/?list-type=2 in 4ms - ... 403 Forbidden: {BODY}",
            "s3:ListBucket on arn:aws:s3:::photos",
        ),
        (
            "DeleteObjects request failed for key lake/x/a b.json: Access Denied (code: AccessDenied)",
            "s3:DeleteObject on arn:aws:s3:::asked/lake/x/a b.json",
        ),
        (  # PyArrow
            "key 'lake/t/x' in bucket 'lake': AWS Error ACCESS_DENIED during CreateMultipartUpload operation: Access",
            "s3:PutObject on arn:aws:s3:::lake/lake/t/x",
        ),
        (  # boto3
            "An error occurred (AccessDenied) when calling the ListObjectsV2 operation: Access Denied",
            "s3:ListBucket on arn:aws:s3:::asked",
        ),
        (
            "An error occurred (403) when calling the HeadObject operation: Forbidden",
            "s3:GetObject on arn:aws:s3:::asked",
        ),
        (  # AWS itself, by whatever client
            f"An error occurred (AccessDenied) when calling the PutObject operation: {ENRICHED}",
            "s3:PutObject on arn:aws:s3:::lake/lake/runs/one.json",
        ),
        (
            f"software.amazon.awssdk.services.s3.model.S3Exception: {ENRICHED} (Service: S3, Status Code: 403)",
            "s3:PutObject on arn:aws:s3:::lake/lake/runs/one.json",
        ),
        (
            "User: a is not authorized to perform: sns:Publish on resource: arn:aws:sns:x:1:alerts because",
            "sns:Publish on arn:aws:sns:x:1:alerts",
        ),
        ("S3Exception: Access Denied (Service: S3, Status Code: 403)", "access to bucket 'asked'"),
        ("Error performing GET http://127.0.0.1:1/lake/x in 4ms - 404 Not Found: NoSuchKey", None),
        ("403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code></Error>", None),
        ("java.nio.file.AccessDeniedException: /opt/spark/app-1/0", None),
        ("anything else", None),
    ],
)  # fmt: skip
def test_a_denial_is_told_by_the_permission_that_is_missing(said, permission):
    assert denied_permission(said, "asked") == permission


def test_what_is_denied_is_named_wherever_it_comes_up():
    named = r"AWS denies s3:PutObject on arn:aws:s3:::lake/lake/runs/one.json; the role lacks that permission"
    with pytest.raises(FruitsError, match=named), denials_explained():
        raise OSError(ENRICHED)
    with pytest.raises(OSError, match="disk full"), denials_explained():
        raise OSError("disk full")


LAKE_FORMATION = "Insufficient Lake Formation permission(s): Required Alter on fruits"
BY_BOTO3 = f"An error occurred (AccessDeniedException) when calling the UpdateTable operation: {LAKE_FORMATION}"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Job aborted due to stage failure\nS3Exception: Access Denied (Service: S3, Status Code: 403)\nat ...",
            "AWS denies access (S3Exception: Access Denied (Service: S3, Status Code: 403)); the role lacks",
        ),
        (f"{LAKE_FORMATION}\nat ...", f"AWS denies access ({LAKE_FORMATION}); the role lacks"),
        (BY_BOTO3, f"AWS denies UpdateTable ({BY_BOTO3}); the role lacks"),
    ],
)
def test_where_nobody_names_the_permission_the_original_words_stay(said, told):
    with pytest.raises(FruitsError) as raised, denials_explained():
        raise RuntimeError(said)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)


def test_a_local_file_that_may_not_be_read_is_no_denial_of_aws():
    said = "java.nio.file.AccessDeniedException: /opt/spark/app-1/0"
    with pytest.raises(RuntimeError, match=said), denials_explained():
        raise RuntimeError(said)


ANSWER = "Error performing GET http://127.0.0.1:1/photos/a.jpg in 4ms - ... 403 Forbidden: <Error>{}</Error>"


@pytest.mark.parametrize(
    ("answer", "stops"),
    [
        ("<Code>AccessDenied</Code><Message>Access Denied</Message>", True),
        (f"<Code>AccessDenied</Code><Message>{ENRICHED.replace('PutObject', 'GetObject')}</Message>", True),
        ("<Code>InvalidObjectState</Code><Message>Not valid for the storage class</Message>", False),
        (f"<Code>AccessDenied</Code><Message>{ENRICHED.replace('s3:PutObject', 'kms:Decrypt')}</Message>", False),
        ("<Code>AccessDenied</Code><Message>The ciphertext refers to a key that does not exist</Message>", False),
    ],
    ids=["plain", "by name", "archived", "another key", "another account's key"],
)
def test_a_run_stops_only_when_photos_may_not_be_read_at_all(make_settings, monkeypatch, answer, stops):
    def refused(*_, **__):
        raise stores.obstore.exceptions.PermissionDeniedError(ANSWER.format(answer))

    settings = make_settings()
    monkeypatch.setattr(stores.obstore, "get_range", refused)
    with pytest.raises(FruitsError, match="S3 server"):
        check_photo(settings, "a.jpg")
    if stops:
        with pytest.raises(FruitsError, match="denies s3:GetObject"):
            check_photo(settings, "a.jpg", denials_only=True)
    else:
        check_photo(settings, "a.jpg", denials_only=True)


def test_a_lake_where_nothing_can_be_removed_keeps_one_object_of_each_caller(stack, make_settings, monkeypatch):
    def denied(*_, **__):
        raise stores.obstore.exceptions.PermissionDeniedError(f"DeleteObjects request failed for key x: {BODY}")

    settings = make_settings("s3")
    monkeypatch.setattr(stores.obstore, "delete", denied)
    for caller in ("prepare", "doctor", "prepare"):
        with pytest.raises(FruitsError, match="denies s3:DeleteObject"):
            check_lake(settings, caller)
    bucket, _, prefix = settings.lake.removeprefix("s3://").partition("/")
    kept = [item["Key"] for item in stack.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert kept == [f"{prefix}/checks/doctor", f"{prefix}/checks/prepare"]


def test_two_that_check_a_lake_at_once_do_not_disturb_each_other(make_settings, monkeypatch):
    def quicker(store, name, data):
        write_bytes(store, name, data)
        stores.obstore.delete(store, name)

    monkeypatch.setattr(stores, "write_bytes", quicker)
    check_lake(make_settings("s3"), "prepare")


def test_the_checks_of_bucket_and_lake_find_nothing_where_all_is_well(stack, make_settings, bucket):
    settings = make_settings("s3")
    stack.client().put_object(Bucket=bucket, Key="Kiwi/1.jpg", Body=b"photo")
    check_photo(settings, "Kiwi/1.jpg")
    check_photo(settings, "Kiwi/gone.jpg")
    check_lake(settings, "prepare")
    name = settings.lake.split("/")[2]
    assert stack.client().list_objects_v2(Bucket=name)["KeyCount"] == 0, "nothing is left behind"
