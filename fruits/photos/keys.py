"""Label, split and date of a photo, read from its object key by one configurable pattern."""

import hashlib
import re
from dataclasses import dataclass
from datetime import date

from fruits.errors import FruitsError
from fruits.photos.quarantine import Reason
from fruits.settings import Settings

FIT_SPLIT = "train"
"""PCA and probe are fitted on this split; every other split is held out."""

HELD_OUT_SPLIT = "test"

_SPLIT_NAMES = {
    "train": FIT_SPLIT,
    "training": FIT_SPLIT,
    "test": HELD_OUT_SPLIT,
    "testing": HELD_OUT_SPLIT,
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_SEGMENTS = frozenset({"", ".", ".."})


@dataclass(frozen=True, slots=True)
class PhotoKey:
    """The parts of an object key. ``date`` is None when the layout has no date."""

    label: str
    split: str
    date: date | None


@dataclass(frozen=True)
class KeyPattern:
    """Reads label, split and date from object keys.

    Keys with an empty, ``.`` or ``..`` segment or with control characters are refused, also when they match the
    pattern: the client would normalise them and ask for another object.

    When the layout has no split, a hash of the key decides: a share of ``holdout_share`` of the keys is held out, and
    always the same keys.
    """

    regex: re.Pattern[str]
    holdout_share: float

    @classmethod
    def of(cls, settings: Settings) -> "KeyPattern":
        """The pattern of the settings."""
        return cls(re.compile(settings.key_pattern), settings.holdout_share)

    def parse(self, key: str) -> PhotoKey | None:
        """The parts of ``key``; None when the key is refused."""
        match = self.regex.fullmatch(key)
        if match is None or _CONTROL.search(key) or not _NO_SEGMENTS.isdisjoint(key.split("/")):
            return None
        groups = match.groupdict()
        label = groups["label"]
        if not label:
            return None
        try:
            day = date.fromisoformat(groups["date"]) if groups.get("date") else None
        except ValueError:
            return None
        return PhotoKey(label, self._split(groups.get("split"), key), day)

    def _split(self, name: str | None, key: str) -> str:
        if name:
            return _SPLIT_NAMES.get(name.lower(), name.lower())
        share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) / 2**32
        return HELD_OUT_SPLIT if share < self.holdout_share else FIT_SPLIT


@dataclass(frozen=True)
class KeyRules:
    """The rules for keys: a pattern, and the allowed labels (empty: any label)."""

    pattern: KeyPattern
    labels: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> "KeyRules":
        """The rules of the settings."""
        return cls(KeyPattern.of(settings), frozenset(settings.labels))

    def judge(self, key: str) -> tuple[str | None, str | None, Reason | None]:
        """Label and split of a key, or the reason why the key is refused."""
        parsed = self.pattern.parse(key)
        if parsed is None:
            return None, None, Reason.KEY_PATTERN
        if self.labels and parsed.label not in self.labels:
            return None, None, Reason.UNKNOWN_LABEL
        return parsed.label, parsed.split, None


def check_prefix(prefix: str) -> str:
    """``prefix`` unchanged. Raises ``FruitsError`` for a URI or a leading slash, which would match no key."""
    if prefix.startswith("/") or "://" in prefix:
        raise FruitsError(
            f"prefix {prefix!r}: expected the start of an object key, such as `Training/`, without a leading slash"
        )
    return prefix
