"""The reason codes of the ``quarantine`` table, each with its explanation."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """A reason code. ``description`` explains the reason to a person who misses a photo."""

    description: str

    KEY_PATTERN = (
        "key_pattern",
        "The object key does not match the key pattern, or has an empty, `.` or `..` segment: it has no label.",
    )
    UNKNOWN_LABEL = "unknown_label", "The label in the object key is none of the labels that may occur."
    GONE = "gone", "The object was listed, but was no longer there when it was read (written by releases up to 0.2.0)."
    ARCHIVED = "archived", "The object is in an archive (S3 Glacier), and was not restored."
    DENIED = "denied", "The S3 server denies this object, though not the others: an ACL or a policy is in the way."
    KMS_KEY = "kms_key", "The object is encrypted with a KMS key that the role must not use, or that is disabled."
    CUSTOMER_KEY = "customer_key", "The object is encrypted with a key of its uploader (SSE-C), which Fruits lacks."
    CONTENT_ENCODING = "content_encoding", "The object is stored compressed, such as with `Content-Encoding: gzip`."
    INCOMPLETE = "incomplete", "The S3 server sends fewer bytes than it announces, at each attempt."
    REFUSED = "refused", "The S3 server refuses this object, though not the others."
    EMPTY = "empty", "The object has no bytes: its upload was probably interrupted."
    TOO_MANY_BYTES = "too_many_bytes", "The object is larger than the largest photo accepted."
    NOT_AN_IMAGE = (
        "not_an_image",
        "The bytes are not a photo, whatever the object key says: an error page, for example.",
    )
    UNSUPPORTED_FORMAT = "unsupported_format", "The bytes are an image, but of a format or variant that is not read."
    TOO_MANY_PIXELS = "too_many_pixels", "The photo's header declares more pixels than the largest photo accepted."
    TOO_SMALL = "too_small", "The photo has too few pixels to show a fruit."
    TRUNCATED = "truncated", "The photo's data end too early: its upload was probably interrupted."
    CORRUPT = "corrupt", "The photo's data are damaged and cannot be decoded."
    TOO_COSTLY = (
        "too_costly",
        "The file is built so that decoding would take far more time or memory than a photo does.",
    )

    def __new__(cls, code: str, description: str) -> Self:
        """A member whose value is ``code``."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.description = description
        return reason


class Pending(StrEnum):
    """Why a photo of the manifest could not be read now. The next run takes it, if it is still there."""

    VANISHED = "vanished"  # not in the bucket any more: the next listing says so
    UNANSWERED = "unanswered"  # the S3 server gave no answer within the budget
    MEMORY = "memory"  # the worker ran out of memory


SETTINGS_REASONS = frozenset({Reason.KEY_PATTERN, Reason.UNKNOWN_LABEL})
"""Reasons that depend on the settings: other settings may accept the same photo."""

ACCESS_REASONS = frozenset({Reason.ARCHIVED, Reason.DENIED, Reason.KMS_KEY})
"""Reasons that may end while the object, and so its ETag, stays the same: each plan asks for some of these again."""

DECODER_REASONS = frozenset(
    {Reason.NOT_AN_IMAGE, Reason.UNSUPPORTED_FORMAT, Reason.TRUNCATED, Reason.CORRUPT, Reason.TOO_COSTLY}
)
"""Reasons that are the decoder's verdict. The row holds ``DECODER``; under another one the object is read again."""

DECODER = "pillow-13.0.0+2, pi-heif-1.4.0"
"""What decides whether bytes are a photo: the version of Pillow, the revision of our own rules around it, and pi-heif.

A literal, so that plans and executors agree without Pillow. Raise the revision when ``decode`` accepts other bytes.
"""


@dataclass(frozen=True)
class Rereading:
    """Which quarantined objects a plan takes again although their bytes are the same.

    Attributes:
        max_bytes: The limit of today on an object's bytes.
        max_pixels: The limit of today on a photo's pixels.
        decoder: The decoder of today.
        readable: Refused keys that answer now.
        silent: Refused keys that still do not. When others answer, so may any refused key that was not asked for.
    """

    max_bytes: int
    max_pixels: int
    decoder: str = DECODER
    readable: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()

    def is_due(self, key: str, reason: str | None, limit: int | None, decoder: str | None) -> bool:
        """Whether an object is worth another read; ``limit`` and ``decoder`` are the row's, None in older rows."""
        if reason == Reason.TOO_MANY_BYTES:
            return limit is None or limit < self.max_bytes
        if reason == Reason.TOO_MANY_PIXELS:
            return limit is None or limit < self.max_pixels
        if reason in ACCESS_REASONS:
            return bool(self.readable) and key not in self.silent
        return reason in DECODER_REASONS and decoder != self.decoder
