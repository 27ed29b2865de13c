"""Secrets that tests plant, and the search for them in what programs leave."""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa

SIGNATURE, TOKEN = "marker-signature", "marker-token"
WEIGHTS = f"https://127.0.0.1:1/net.weights.h5?X-Amz-Signature={SIGNATURE}"
PLANTED = {
    "FRUITS_WEIGHTS": WEIGHTS,
    "FRUITS_WEIGHTS_FROM": "https://127.0.0.1:1",
    "AIRFLOW_CONN_SLACK_API_DEFAULT": f"slack://:{TOKEN}@/",
    "SLACK_TOKEN": TOKEN,
}
"""Environment variables: an address that nobody answers at, and what other programs of the host have."""


def assert_none(secrets: Iterable[str], texts: Mapping[str, bytes | str]) -> None:
    """No secret is in any of the texts, whose names say where they were found."""
    for name, text in texts.items():
        data = text.encode() if isinstance(text, str) else text
        assert not [secret for secret in secrets if secret.encode() in data], f"{name} holds a secret"


def files(folder: Path, *exempt: str) -> dict[str, bytes]:
    """The contents of all files under a folder but those whose path in the folder matches a pattern of ``exempt``."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: content(path) for name, path in paths.items() if not any(fnmatch(name, one) for one in exempt)}


def content(path: Path) -> bytes:
    """A file's content; that of an event log which Spark compressed is unpacked."""
    if ".zstd" not in path.suffixes:
        return path.read_bytes()
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        return bytes(stream.read())


def rows(database: Path) -> dict[str, bytes]:
    """All values of each table of an SQLite database."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        values = {table: connection.execute(f'SELECT * FROM "{table}"').fetchall() for table in tables}  # noqa: S608
    return {table: b"\n".join(map(_as_bytes, found)) for table, found in values.items()}


def _as_bytes(row: Iterable[object]) -> bytes:
    return b"\t".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
