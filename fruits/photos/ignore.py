"""Keys that are none of ours: what systems, tools and other programs keep beside photos. Pure functions of the key."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fruits.settings import Settings
from fruits.text import readable

FOLDER_MARKER = "folder_marker"
DEFAULT = "default"
NONE = "none"

_MOST_EXAMPLES = 3
_NO_NAMES = frozenset({"", ".", ".."})  # the key pattern refuses keys with such segments
_SUFFIX = re.compile(r"\*\.[^*?]+")


@dataclass(frozen=True)
class Rule:
    """A named group of patterns, with what such objects are and what to do about them.

    A pattern that ends in ``/`` is a folder anywhere in the key; any other pattern is a file's name. ``*`` stands for
    any characters and ``?`` for one. Upper and lower case are the same.
    """

    name: str
    patterns: tuple[str, ...]
    meaning: str


DEFAULT_RULES = (
    Rule(
        "cloud_placeholder",
        ("*.icloud", "*.cloud", "*.onedrive"),
        "Stands for a photo that only the cloud has: download the photos, then run again.",
    ),
    Rule(
        "hidden",
        (".*/", ".*"),
        "Hidden files and folders, such as `.DS_Store`, `._1.jpg`, `.ipynb_checkpoints/` and `.Trash-1000/`. Rename "
        "those that are photos of yours.",
    ),
    Rule(
        "system",
        (
            *("__MACOSX/", "Icon\r", "Thumbs.db", "ehthumbs.db", "desktop.ini", "System Volume Information/"),
            *("$RECYCLE.BIN/", "RECYCLER/", "FOUND.???/", "lost+found/", "@eaDir/", "@tmp/", "#recycle/", "#snapshot/"),
            *("@Recycle/", "@Recently-Snapshot/", "__pycache__/"),
        ),
        "What operating systems, network drives and unpackers keep beside files: copies, thumbnails, deleted files.",
    ),
    Rule(
        "job_marker",
        ("_SUCCESS", "_FAILURE", "_started_*", "_committed_*", "*_$folder$", "*.crc"),
        "Markers that jobs and copy programs leave.",
    ),
    Rule(
        "other_program",
        (
            *("AWSLogs/", "_delta_log/", "_spark_metadata/", "_temporary/", "version-hint.text", "*.metadata.json"),
            *("*.parquet", "*.orc", "*.avro", "*.arrow", "*.feather", "*.puffin", "*.log"),
            *("*.log.gz", "*.json.gz", "*.csv.gz", "*.txt.gz"),
        ),
        "Logs and tables of other programs in the same bucket. Set FRUITS_PREFIX to the folder of the photos, so that "
        "runs do not list the others.",
    ),
    Rule(
        "sidecar",
        (
            *("*.xml", "*.json", "*.jsonl", "*.txt", "*.csv", "*.tsv", "*.md", "*.rst", "*.yaml", "*.yml", "*.toml"),
            *("*.ini", "*.cfg", "*.db", "*.sqlite", "*.html", "*.htm", "*.pdf", "*.xmp", "*.aae", "*.thm", "*.url"),
            *("*.lnk", "*.py", "*.ipynb", "*.pkl", "*.npy", "*.npz", "*.mat", "*.h5"),
        ),
        "Notes, annotations and data beside the photos. Fruits takes labels from folders only.",
    ),
)
"""What ``default`` in FRUITS_IGNORE stands for. The first rule that takes a key names it."""

MEANINGS: Mapping[str, str] = {
    FOLDER_MARKER: "The marker of a folder: its key ends in `/`. Always ignored.",
    **{rule.name: rule.meaning for rule in DEFAULT_RULES},
}


def meaning_of(rule: str) -> str:
    """What the objects of a rule are, and what to do about them; ``rule`` may be a pattern of FRUITS_IGNORE."""
    return MEANINGS.get(rule, f"Ignored by the pattern {rule!r} of FRUITS_IGNORE.")


@dataclass(frozen=True)
class Names:
    """How many keys or names there are, and the first of them in the order of the alphabet."""

    count: int = 0
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """The names, in any order."""
        known = sorted(names)
        return cls(len(known), tuple(known[:_MOST_EXAMPLES]))

    def and_also(self, name: str) -> "Names":
        """These names and another one."""
        examples = self.examples
        if len(examples) < _MOST_EXAMPLES or name < examples[-1]:
            examples = tuple(sorted((*examples, name))[:_MOST_EXAMPLES])
        return Names(self.count + 1, examples)

    def to_document(self) -> dict[str, Any]:
        """As JSON types."""
        return {"count": self.count, "examples": list(self.examples)}

    def __str__(self) -> str:
        """``12: a.jpg, b.jpg, c.jpg and 9 more``, with what a terminal would not show written out."""
        others = self.count - len(self.examples)
        more = f" and {others:,} more" if others else ""
        return f"{self.count:,}: {', '.join(map(readable, self.examples))}{more}"


@dataclass(frozen=True, eq=False)
class IgnoreRules:
    """Says which rule ignores a key, if any.

    Attributes:
        rules: Each rule's name, with an expression for the folders and one for the files that the rule takes.
        any_file: An expression for the files that any rule takes.
        base: The folder that FRUITS_PREFIX names: what stands in a key before it decides nothing.
    """

    rules: tuple[tuple[str, re.Pattern[str] | None, re.Pattern[str] | None], ...] = ()
    any_file: re.Pattern[str] | None = None
    base: str = ""

    @classmethod
    def of(cls, settings: Settings) -> "IgnoreRules":
        """The rules of the settings."""
        rules: list[Rule] = []
        for pattern in settings.ignore:
            if pattern == DEFAULT:
                rules += DEFAULT_RULES
            elif pattern != NONE:
                rules.append(Rule(pattern, (pattern,), ""))
        head, slash, _ = settings.prefix.rpartition("/")
        return cls(
            rules=tuple((rule.name, *_compiled(rule.patterns)) for rule in rules),
            any_file=_compiled(pattern for rule in rules for pattern in rule.patterns)[1],
            base=head + slash,
        )

    def rule_of(self, key: str) -> str | None:
        """Name of the rule that ignores an object of this key; None when none does."""
        if key.endswith("/"):
            return FOLDER_MARKER
        folder, _, name = key.removeprefix(self.base).rpartition("/")
        in_folder = _folder_rule(self, folder) if folder else None
        is_file = self.any_file is not None and name not in _NO_NAMES and self.any_file.fullmatch(name) is not None
        if in_folder is None and not is_file:
            return None
        places = enumerate(self.rules)
        return next(rule for n, (rule, _, files) in places if n == in_folder or (files and files.fullmatch(name)))


@lru_cache(maxsize=4096)
def _folder_rule(ignore: IgnoreRules, folder: str) -> int | None:
    """Place of the first rule that takes a folder of the path. Most keys of a listing share their path with others."""
    names = [name for name in folder.split("/") if name not in _NO_NAMES]
    for place, (_, folders, _) in enumerate(ignore.rules):
        if folders is not None and any(map(folders.fullmatch, names)):
            return place
    return None


def _compiled(patterns: Iterable[str]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """One expression for the names of folders and one for those of files."""
    patterns = tuple(patterns)
    folders = [_expression(pattern[:-1]) for pattern in patterns if pattern.endswith("/")]
    files = [pattern for pattern in patterns if not pattern.endswith("/")]
    suffixes = [re.escape(pattern[1:]) for pattern in files if _SUFFIX.fullmatch(pattern)]
    others = [_expression(pattern) for pattern in files if not _SUFFIX.fullmatch(pattern)]
    if suffixes:
        others.append(f".*(?:{'|'.join(suffixes)})")  # one scan of the name for all of them
    return _either(folders), _either(others)


def _expression(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")


def _either(expressions: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(expressions), re.IGNORECASE | re.DOTALL) if expressions else None
