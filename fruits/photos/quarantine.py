"""The reason codes of the ``quarantine`` table, each with its explanation."""

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
    GONE = "gone", "The object was listed, but was no longer there when it was read."
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

    def __new__(cls, code: str, description: str) -> Self:
        """A member whose value is ``code``."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.description = description
        return reason


SETTINGS_REASONS = frozenset({Reason.KEY_PATTERN, Reason.UNKNOWN_LABEL})
"""Reasons that depend on the settings: other settings may accept the same photo."""
