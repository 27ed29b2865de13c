"""Write the reference parts of docs/ from the code: settings, the tables' columns, quarantine reasons, ignored keys.

With ``--check`` the script writes nothing and fails when a page is out of date.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pydantic.fields import FieldInfo

from fruits.lake.schemas import TABLES, TableDefinition
from fruits.photos.ignore import DEFAULT_RULES, MEANINGS
from fruits.photos.quarantine import Reason
from fruits.settings import Settings

DOCS = Path(__file__).parents[1] / "docs"
MARKER = "<!-- from here on: scripts/reference_docs.py -->\n"

_IGNORED = """
An ignored object is none of ours: it is neither read nor in a table. Each plan counts the ignored objects and names the
first ones, by rule. These rules are the `default` of `FRUITS_IGNORE`; the first rule that takes a key names it. A name
that ends in `/` is a folder anywhere in the key. Upper and lower case are the same.
"""


def main() -> int:
    """Run the command; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, reference in (("configuration.md", settings()), ("data.md", tables())):
        path = DOCS / name
        text = path.read_text()
        expected = text.partition(MARKER)[0] + MARKER + reference
        if text != expected and check:
            stale.append(f"docs/{name} is out of date; run .venvs/jobs/bin/python scripts/reference_docs.py")
        elif text != expected:
            path.write_text(expected)
    print("\n".join(stale), end="\n" if stale else "", file=sys.stderr)
    return 1 if stale else 0


def settings() -> str:
    """All settings as a Markdown table."""
    rows = (
        f"| `FRUITS_{name.upper()}` | {_default(name, field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    )
    return _table(("variable", "default", "meaning"), rows)


def tables() -> str:
    """Every table's columns, the reason codes of the quarantine, and the rules of ignored objects."""
    patterns = {rule.name: ", ".join(f"`{pattern.strip()}`" for pattern in rule.patterns) for rule in DEFAULT_RULES}
    rules = (f"| `{rule}` | {patterns.get(rule, '')} | {meaning} |" for rule, meaning in MEANINGS.items())
    reasons = (f"| `{reason}` | {reason.description} |" for reason in Reason)
    return (
        "".join(map(_columns, TABLES))
        + "\n## Why an object is in quarantine\n"
        + _table(("reason", "meaning"), reasons)
        + "\n## Why an object is ignored\n"
        + _IGNORED
        + _table(("rule", "folders and files", "meaning"), rules)
    )


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if name == "jobs_env":
        return "`.venvs/jobs` of the checkout"
    if name == "index_folder":
        return "`data/neighbours` of the checkout"
    if name == "key_pattern":
        return "`[…/]label/file`, with a `split/` and a `dt=YYYY-MM-DD/` anywhere among the folders"
    if name == "ignore":
        return f"`{','.join(field.default)}`"
    return f"`{field.default}`" if field.default not in (None, "", ()) else "unset"


def _columns(definition: TableDefinition) -> str:
    partition = f" Partitioned by `{definition.partition_by}`." if definition.partition_by else ""
    rows = (f"| `{field.name}` | {_kind(field)} | {field.metadata[b'doc'].decode()} |" for field in definition.schema)
    title = f"\n### `{definition.name}`\n\nA row is {definition.row}.{partition}\n"
    return title + _table(("column", "type", "meaning"), rows)


def _kind(field: pa.Field) -> str:
    if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
        kind = f"list<struct<{', '.join(inner.name for inner in field.type.value_type)}>>"
    else:
        kind = str(field.type).replace("element: ", "").replace(" not null", "")
    return kind.replace("timestamp[us, tz=UTC]", "timestamptz") + (", may be null" if field.nullable else "")


def _table(head: tuple[str, ...], rows: Iterable[str]) -> str:
    return "\n".join(["", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
