import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

from fruits.denials import denials_explained, explain, is_transient, missing_permission, refusal, server_words
from fruits.errors import DeniedError, FruitsError, TransientError

PLAIN = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
BY_AWS = (
    "User: arn:aws:sts::123456789012:assumed-role/fruits/i-1 is not authorized to perform: s3:PutObject on resource: "
    '"arn:aws:s3:::lake/lake/runs/one.json" because no identity-based policy allows the s3:PutObject action'
)
LAKE_FORMATION = "Insufficient Lake Formation permission(s): Required Alter on fruits"
BY_PYARROW = "key 't/x' in bucket 'lake': AWS Error ACCESS_DENIED during CreateMultipartUpload operation: Access"
JAVA_FILE = "java.nio.file.AccessDeniedException: /opt/spark/app-1/0"


def of_obstore(body: str, status: str = "403 Forbidden", kind: type[Exception] = PermissionDeniedError) -> Exception:
    text = f"Error performing GET http://127.0.0.1:1/lake/x in 4ms - Server returned non-2xx status code: {status}: "
    return kind(f"{text}{body}\n\nDebug source:\nSource {{}}")


def of_boto3(code: str, operation: str, message: str = "", status: int = 403) -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)


@pytest.mark.parametrize(
    ("error", "permission"),
    [
        (of_obstore(PLAIN), "s3:GetObject on arn:aws:s3:::photos/1.jpg"),
        (of_obstore(""), "s3:GetObject on arn:aws:s3:::photos/1.jpg"),  # an answer to HEAD
        (of_obstore(PLAIN, kind=GenericError), "s3:GetObject on arn:aws:s3:::photos/1.jpg"),  # as of a listing
        (
            GenericError("DeleteObjects request failed for key 1.jpg: Access Denied (code: AccessDenied)"),
            "s3:GetObject on arn:aws:s3:::photos/1.jpg",
        ),
        (of_obstore(PLAIN.replace("Access Denied", BY_AWS)), "s3:PutObject on arn:aws:s3:::lake/lake/runs/one.json"),
        (of_obstore(PLAIN.replace("Access Denied", "Key of another account")), "access (Key of another account)"),
        (of_obstore(PLAIN.replace("AccessDenied", "InvalidObjectState")), None),
        (of_obstore(PLAIN.replace("AccessDenied", "NoSuchKey"), "404 Not Found", GenericError), None),
        (GenericError("Generic S3 error: HTTP error: error sending request"), None),
    ],
)
def test_a_denial_of_obstore_names_the_permission_of_the_request_unless_the_server_names_another(error, permission):
    assert missing_permission(error, "s3:GetObject", "arn:aws:s3:::photos/1.jpg") == permission


@pytest.mark.parametrize(
    ("error", "permission"),
    [
        (of_boto3("AccessDenied", "ListObjectsV2", "Access Denied"), "s3:ListBucket on arn:aws:s3:::photos"),
        (of_boto3("403", "HeadObject", "Forbidden"), "s3:GetObject on arn:aws:s3:::photos"),
        (of_boto3("AccessDenied", "PutObject", BY_AWS), "s3:PutObject on arn:aws:s3:::lake/lake/runs/one.json"),
        (
            of_boto3("AuthorizationError", "Publish", "User: a is not authorized to perform: sns:Publish"),
            "sns:Publish",
        ),
        (of_boto3("AccessDeniedException", "UpdateTable", LAKE_FORMATION), f"UpdateTable ({LAKE_FORMATION})"),
        (of_boto3("SignatureDoesNotMatch", "ListObjectsV2", "..."), None),
        (of_boto3("NoSuchKey", "GetObject", "Access Denied", 404), None),
    ],
)
def test_a_denial_of_boto3_names_the_permission_of_the_operation_unless_aws_names_one(error, permission):
    assert missing_permission(error, resource="arn:aws:s3:::photos") == permission


@pytest.mark.parametrize(
    ("text", "permission"),
    [
        (
            f"software.amazon.awssdk.services.s3.model.S3Exception: {BY_AWS} (Service: S3, Status Code: 403)",
            "s3:PutObject on arn:aws:s3:::lake/lake/runs/one.json",
        ),
        (
            f"{BY_PYARROW}\nat ...",
            f"s3:PutObject ({BY_PYARROW})",
        ),
        (
            "Job aborted due to stage failure\nS3Exception: Access Denied (Service: S3, Status Code: 403)\nat ...",
            "access (S3Exception: Access Denied (Service: S3, Status Code: 403))",
        ),
        (f"{LAKE_FORMATION}\nat ...", f"access ({LAKE_FORMATION})"),
        (JAVA_FILE, None),
        ("disk full", None),
    ],
    ids=["AWS by Java", "PyArrow", "Java", "Lake Formation", "a local file", "anything else"],
)
def test_a_denial_that_only_text_tells_of_is_named_or_quoted(text, permission):
    assert missing_permission(OSError(text)) == permission


def test_denials_are_explained_wherever_they_come_up_and_other_errors_pass():
    named = r"AWS denies s3:PutObject on arn:aws:s3:::lake/lake/runs/one.json; the role lacks that permission"
    with pytest.raises(DeniedError, match=named), denials_explained():
        raise OSError(BY_AWS)
    for error in (OSError("disk full"), RuntimeError(JAVA_FILE), FruitsError(f"another message: {BY_AWS}")):
        with pytest.raises(type(error)) as caught, denials_explained():
            raise error
        assert caught.value is error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            of_boto3("ExpiredToken", "ListObjectsV2", status=400),
            "the session token has expired; fetch new credentials.",
        ),
        (
            of_obstore(PLAIN.replace("AccessDenied", "ExpiredToken"), "400 Bad Request", GenericError),
            "the session token",
        ),
        (of_boto3("NoSuchBucket", "ListObjectsV2", status=404), "bucket 'fruits' does not exist there; create it"),
        (NoCredentialsError(), "there are no AWS credentials; set AWS_ACCESS_KEY_ID"),
        (of_boto3("AccessDenied", "ListObjectsV2"), "it denies s3:ListBucket on arn:aws:s3:::fruits; the role lacks"),
        (
            PermissionDeniedError("Something else\nin two lines: <Code>Odd</Code>\n\nDebug"),
            "Something else in two lines",
        ),
    ],
)
def test_a_refusal_says_what_to_do(error, message):
    explained = explain(error, "AWS (us-east-1)", "fruits")
    assert str(explained).startswith(f"S3 server AWS (us-east-1): {message}")
    assert "Debug" not in str(explained)
    assert not isinstance(explained, TransientError)


SLOW_DOWN = PLAIN.replace("AccessDenied", "SlowDown")


@pytest.mark.parametrize(
    "error",
    [
        GenericError("Generic S3 error: Error performing GET http://x in 1ms - HTTP error: operation timed out"),
        of_obstore(SLOW_DOWN, "503 Service Unavailable", GenericError),
        of_obstore("<html>", "502 Bad Gateway", GenericError),
        ReadTimeoutError(endpoint_url="https://x"),
        of_boto3("SlowDown", "ListObjectsV2", status=503),
        of_boto3("502", "ListObjectsV2", "Bad Gateway", status=502),
    ],
)
def test_a_server_that_may_answer_later_is_worth_another_attempt(error):
    explained = explain(error, "http://x", "fruits")
    assert isinstance(explained, TransientError)
    assert str(explained).startswith(
        "S3 server http://x: it does not answer; check FRUITS_S3_ENDPOINT and the network ("
    )


BY_PROVIDER = "The operation lacked valid authentication credentials for path External AWS credential provider: {}"


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (UnauthenticatedError(BY_PROVIDER.format("CredentialRetrievalError: from iam-role")), "transient"),
        (UnauthenticatedError(BY_PROVIDER.format("ReadTimeoutError: http://169.254.169.254")), "transient"),
        (UnauthenticatedError(BY_PROVIDER.format("UnauthorizedSSOTokenError: expired")), "caller"),
        (GenericError("Received redirect without LOCATION, this normally indicates a wrong region"), "caller"),
        (of_obstore(PLAIN.replace("AccessDenied", "RequestTimeTooSkewed")), "caller"),
        (of_obstore("", "429 Too Many Requests", GenericError), "transient"),
        (of_obstore("", "400 Bad Request", GenericError), "refused"),
        (of_obstore(PLAIN.replace("AccessDenied", "AllAccessDisabled")), "denied"),
        (FileNotFoundError("Object at location x not found"), "vanished"),
    ],
)
def test_a_get_that_failed_says_whether_another_object_or_another_time_would_do(error, meaning):
    assert refusal(error) == meaning


@pytest.mark.parametrize("status", ["400 Bad Request", "405 Method Not Allowed", "416 Range Not Satisfiable"])
def test_an_answer_of_4xx_without_xml_is_no_server_that_is_down(status):
    error = of_obstore("", status, GenericError)
    assert not is_transient(error)
    assert not isinstance(explain(error, "http://x", "fruits"), TransientError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (of_obstore(PLAIN), "AccessDenied: Access Denied"),
        (of_obstore("", "503 Service Unavailable", GenericError), "status 503"),
        (
            GenericError("Generic S3 error: HTTP error: connection reset\n\nDebug"),
            "Generic S3 error: HTTP error: connection reset",
        ),
    ],
)
def test_the_servers_words_are_few(error, words):
    assert server_words(error) == words
