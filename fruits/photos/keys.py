"""Label, split and date of a photo, read from its object key by one configurable pattern."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

from fruits.errors import FruitsError
from fruits.photos.ignore import IgnoreRules
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
    "dev": "validation",
    "eval": HELD_OUT_SPLIT,
    "evaluation": HELD_OUT_SPLIT,
}
_SET = re.compile(r"[ _-]?(?:set|split|images)$")  # test_set, train-images

_REVISION = 1
"""Raise it when ``judge`` decides otherwise about some key: the next plan then judges the keys of all rows again."""

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

    When the layout has no split, a hash decides: a share of ``holdout_share`` is held out, and always the same photos.
    The hash is that of the key, or of label and ``group`` where the pattern reads one: all shots of one fruit then have
    one split, else the held-out ones would be near copies of those that were fitted.
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
        return PhotoKey(label, self._split(groups.get("split"), self.group(key)), day)

    def group(self, key: str) -> str:
        """What a photo has in common with the others of its group: the label and ``group``; else the key itself."""
        match = self.regex.fullmatch(key)
        groups = match.groupdict() if match else {}
        return f"{groups['label']}\0{groups['group']}" if groups.get("group") else key

    @property
    def split_rules(self) -> str:
        """All that decides a photo's split besides its key; stored with what was fitted under these rules."""
        return f"{self.regex.pattern}, holdout share {self.holdout_share:g}"

    def names_split(self, key: str) -> bool:
        """Whether the key names the photo's split; else a hash of the key decides."""
        match = self.regex.fullmatch(key)
        return match is not None and bool(match.groupdict().get("split"))

    def _split(self, name: str | None, hashed: str) -> str:
        if name:
            split = name.lower()
            return _SPLIT_NAMES.get(_SET.sub("", split), split)
        share = int.from_bytes(hashlib.blake2b(hashed.encode(), digest_size=4).digest()) / 2**32
        return HELD_OUT_SPLIT if share < self.holdout_share else FIT_SPLIT


@dataclass(frozen=True)
class KeyRules:
    """The rules for keys: a pattern, the allowed labels (empty: any label), and which objects are none of ours.

    ``prefix`` is the start of all keys that runs look at.
    """

    pattern: KeyPattern
    labels: frozenset[str] = frozenset()
    ignore: IgnoreRules = field(default_factory=IgnoreRules)
    prefix: str = ""

    @classmethod
    def of(cls, settings: Settings) -> "KeyRules":
        """The rules of the settings."""
        return cls(KeyPattern.of(settings), frozenset(settings.labels), IgnoreRules.of(settings), settings.prefix)

    @property
    def fingerprint(self) -> str:
        """Identity of what decides about a key's label and split; which objects are ignored is looked at each time."""
        decisive = [_REVISION, self.prefix, self.pattern.regex.pattern, self.pattern.holdout_share, sorted(self.labels)]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]

    def judge(self, key: str) -> tuple[str | None, str | None, Reason | None]:
        """Label and split of a key, or the reason why the key is refused."""
        parsed = self.pattern.parse(key)
        if parsed is None:
            return None, None, Reason.KEY_PATTERN
        if self.labels and parsed.label not in self.labels:
            return None, None, Reason.UNKNOWN_LABEL
        return parsed.label, parsed.split, None


def twin_labels(labels: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The labels that differ only in case, Unicode form, spaces or invisible characters, as sorted groups.

    Such labels are probably one label. NFC and NFD are the forms of Unicode Standard Annex 15.
    """
    groups: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
        kept = (c for c in plain if unicodedata.category(c) not in ("Zs", "Cf", "Cc"))
        groups.setdefault("".join(kept), []).append(label)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def spelled(labels: Iterable[str]) -> str:
    """Labels for a message, with other letters than ASCII's written out: two forms of one label look the same."""
    return " and ".join(map(ascii, labels))


def nothing_to_fit(pattern: KeyPattern, keys: Iterable[str]) -> str:
    """Why a run can fit no PCA although it has photos of these ``keys``, all held out, and what to do."""
    number = by_hash = 0
    for number, key in enumerate(keys, 1):  # noqa: B007 -- the last is how many there are
        by_hash += not pattern.names_split(key)
    photos = f"all {number:,} photos are" if number > 1 else "the only photo is"
    if not by_hash:
        return (
            f"{photos} held out, because their keys name a split such as `Test`: the PCA is fitted on the split "
            "`train`. Add photos as Training/<label>/<file>, or correct FRUITS_KEY_PATTERN"
        )
    named = f", and keys name the split of {number - by_hash:,}" if by_hash < number else ""
    return (
        f"{photos} held out: where keys name no split, a hash of the key holds out a share of "
        f"{pattern.holdout_share:g} (FRUITS_HOLDOUT_SHARE), here {by_hash:,}{named}. A photo's split depends on its "
        "key alone. Add photos, name the split in the folders as Training/<label>/<file>, or set FRUITS_HOLDOUT_SHARE=0"
    )


def check_prefix(prefix: str) -> str:
    """``prefix`` unchanged. Raises ``FruitsError`` for a URI or a leading slash, which would match no key."""
    if prefix.startswith("/") or "://" in prefix:
        raise FruitsError(
            f"prefix {prefix!r}: expected the start of an object key, such as `Training/`, without a leading slash"
        )
    return prefix
