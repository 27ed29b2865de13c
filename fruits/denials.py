"""Refusals of S3 servers and other AWS services, as errors that say what to do.

botocore gives every refusal a code and an operation. obstore has a type for a denial, except while it lists, and none
for an answer of 5xx; S3's own code is then in the message. PyArrow and Spark only pass text on. So types and codes
decide where they exist. Text is searched for two things: AWS's sentence that names the permission, and denials that
PyArrow and Spark report.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from botocore.exceptions import ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError
from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError

from fruits.errors import DeniedError, FruitsError, TransientError

NO_CREDENTIALS = (
    "there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
)
_REMEDIES = {
    "NoSuchBucket": "bucket {bucket!r} does not exist there; create it, or correct FRUITS_BUCKET or FRUITS_LAKE",
    "InvalidAccessKeyId": "it does not know the access key; check AWS_ACCESS_KEY_ID, profile or instance role",
    "SignatureDoesNotMatch": "it refuses the secret key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; fetch new credentials",
}
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "AuthorizationError", "403"})
_TRANSIENT = frozenset(
    {
        *("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "ServerBusy"),
        *("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded"),
    }
)
_SERVER_ERROR = 500
_TRY_AGAIN = frozenset({408, 409, 429})  # a GET that meets a conflict came while another request was under way
_NOT_FOUND = 404
_UNAUTHORIZED = 401
_OF_THE_CALLER = frozenset(
    {
        *_REMEDIES,
        *("RequestTimeTooSkewed", "InvalidToken", "AuthorizationHeaderMalformed", "TokenRefreshRequired"),
        *("AccountProblem", "NotSignedUp", "InvalidSecurity", "PermanentRedirect", "InvalidBucketName"),
    }
)
"""Codes of refusals that are about credentials, clock, region or bucket: every object would meet them."""

Refusal = Literal[
    "caller", "transient", "vanished", "archived", "customer_key", "kms_key", "denied", "incomplete", "refused"
]
"""Why a GET of one object failed. ``caller``: every GET would; ``transient``: the same GET may succeed later."""
_NO_MORE_WORDS = frozenset({"", "Access Denied", "Forbidden"})

_PERMISSIONS = {
    **dict.fromkeys(("ListObjects", "ListObjectsV2", "HeadBucket"), "s3:ListBucket"),
    **dict.fromkeys(("GetObject", "HeadObject"), "s3:GetObject"),
    **dict.fromkeys(("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "s3:PutObject"),
    **dict.fromkeys(("DeleteObject", "DeleteObjects"), "s3:DeleteObject"),
}
"""The permission that an operation of S3 needs."""

_NAMED_BY_AWS = re.compile(r'not authorized to perform: (\S+?)(?: on resource: "?([^\s"]+)"?)?(?:[\s<]|$)')
_IN_OBSTORE_MESSAGE = re.compile(
    r"<Code>(?P<code>[\w.]+)</Code>(?:\s*<Message>(?P<message>[^<]*))?|\(code: (?P<bulk>\w+)\)"
)
_OBSTORE_STATUS = re.compile(r"status code: (\d{3})\b")
_WRONG_REGION = "redirect without LOCATION"
_CREDENTIALS_MAY_COME = re.compile(
    r"CredentialRetrievalError|MetadataRetrievalError|TimeoutError|EndpointConnectionError|ConnectionClosedError"
)
_CUSTOMER_KEY = re.compile(r"form of Server Side Encryption|SSE-C|customer.provided.key", re.IGNORECASE)
_KMS_KEY = re.compile(r"\bkms\b|customer master key|ciphertext refers", re.IGNORECASE)
_CUT_OFF = re.compile(r"IncompleteBody|UnexpectedEof|Content-Range header|416 Range")
_DENIED_IN_TEXT = re.compile(r"ACCESS_DENIED|Access Denied|Insufficient Lake Formation permission")
_OPERATION_IN_TEXT = re.compile(r"(?:during|when calling the) (\w+) operation")


def explain(error: Exception, server: str, bucket: str, permission: str = "", key: str = "") -> FruitsError:
    """An error of an S3 client as an error that says what to do.

    Args:
        error: An exception of botocore or obstore.
        server: Name of the S3 server, for the message.
        bucket: The bucket that was asked.
        permission: The permission that the request needs; by default that of botocore's operation.
        key: The object's key, empty for the bucket as a whole.
    """
    code, _ = _answer(error)
    reason = " ".join(str(error).partition("\n\n")[0].split())  # obstore adds debugging notes after an empty line
    if is_transient(error):
        reason = reason.rpartition(" - ")[2]  # obstore says first how often it has tried
        return TransientError(
            f"S3 server {server}: it does not answer; check FRUITS_S3_ENDPOINT and the network ({reason})."
        )
    if isinstance(error, NoCredentialsError):
        reason = NO_CREDENTIALS
    elif code in _REMEDIES:
        reason = _REMEDIES[code].format(bucket=bucket)
    elif denied := missing_permission(error, permission, f"arn:aws:s3:::{bucket}/{key}".rstrip("/")):
        return DeniedError(f"S3 server {server}: it denies {denied}; the role lacks that permission.", denied)
    return FruitsError(f"S3 server {server}: {reason}.")


@contextmanager
def denials_explained() -> Iterator[None]:
    """Raise denials of any AWS service as a ``DeniedError``; all other errors pass unchanged."""
    try:
        yield
    except FruitsError:
        raise
    except Exception as error:
        denied = missing_permission(error)
        if denied is None:
            raise
        raise DeniedError(f"AWS denies {denied}; the role lacks that permission.", denied) from error


def missing_permission(error: Exception, permission: str = "", resource: str = "") -> str | None:
    """The permission that the caller lacks, such as ``s3:PutObject on arn:aws:s3:::fruits/1.jpg``; None for no denial.

    AWS names the permission in most answers. Where the server only says "Access Denied", the answer is ``permission``
    (by default that of botocore's operation) on ``resource``. Any other words of the server are quoted.
    """
    text = str(error)
    if named := _NAMED_BY_AWS.search(text):
        return " on ".join(filter(None, named.groups()))
    if isinstance(error, ClientError | BaseError):
        code, words = _answer(error)
        if code not in _DENIED:
            return None
        operation = getattr(error, "operation_name", "")
        resource = resource if permission or operation in _PERMISSIONS else ""
    else:
        line = next((line for line in text.splitlines() if _DENIED_IN_TEXT.search(line)), None)
        if line is None:
            return None
        words = " ".join(line.split())
        in_text = _OPERATION_IN_TEXT.search(line)
        operation = in_text[1] if in_text else ""
    permission = permission or _PERMISSIONS.get(operation, operation)
    if permission and words.rstrip(".") in _NO_MORE_WORDS:
        return f"{permission} on {resource}" if resource else permission
    return f"{_PERMISSIONS.get(operation, operation) or 'access'} ({words})"


def error_code(error: Exception) -> str:
    """The code of S3, or of another AWS service, for an error of botocore or obstore; empty when nobody answered."""
    return _answer(error)[0]


def _answer(error: Exception) -> tuple[str, str]:
    """Code and words of the server."""
    if isinstance(error, ClientError):
        answer = error.response["Error"]
        return answer.get("Code", ""), answer.get("Message", "")
    match = _IN_OBSTORE_MESSAGE.search(str(error))
    if match:
        return match["code"] or match["bulk"], match["message"] or ""
    return ("AccessDenied" if isinstance(error, PermissionDeniedError) else ""), ""  # an answer to HEAD has no body


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later: throttling, an answer of 5xx, a timeout, a cut connection."""
    code, status = error_code(error), _status(error)
    if isinstance(error, ClientError) or status:
        return code in _TRANSIENT or status >= _SERVER_ERROR or status in _TRY_AGAIN
    if isinstance(error, UnauthenticatedError):  # of the credentials' provider: no request was made
        return bool(_CREDENTIALS_MAY_COME.search(str(error)))
    if isinstance(error, GenericError):
        return code in _TRANSIENT or not (code or _WRONG_REGION in str(error))
    return isinstance(error, NoConnectionError | HTTPClientError)


def refusal(error: Exception) -> Refusal:
    """Why a GET of one object failed, from an exception of obstore.

    The codes are those of Amazon S3's error responses; other servers answer with a status alone.
    """
    code, words = _answer(error)
    status = _status(error)
    if _CUT_OFF.search(str(error)):
        return "incomplete"
    if is_transient(error):
        return "transient"
    missing = isinstance(error, FileNotFoundError) or status == _NOT_FOUND
    signs: tuple[tuple[object, Refusal], ...] = (
        (code in _OF_THE_CALLER or status == _UNAUTHORIZED or not (code or status or missing), "caller"),
        (missing, "vanished"),
        (code == "InvalidObjectState", "archived"),
        (_CUSTOMER_KEY.search(words), "customer_key"),
        (code.startswith("KMS.") or (code in _DENIED and _KMS_KEY.search(words)), "kms_key"),
        (isinstance(error, PermissionDeniedError), "denied"),
    )
    return next((meaning for sign, meaning in signs if sign), "refused")


def server_words(error: Exception) -> str:
    """The server's answer in a few words: code and message, or else the status."""
    code, words = _answer(error)
    status = _status(error)
    if code and (words or not status):
        return f"{code}: {words}" if words and words != code else code
    return f"status {status}" if status else " ".join(str(error).partition("\n\n")[0].split())


def _status(error: Exception) -> int:
    """The HTTP status of the answer; 0 without an answer."""
    if isinstance(error, ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    found = _OBSTORE_STATUS.search(str(error).partition("\n\n")[0])
    return int(found[1]) if found else 0
