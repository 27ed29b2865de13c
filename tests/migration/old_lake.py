"""Make lakes as an earlier release made them, with runs in flight, by the code of that release.

    .venvs/jobs/bin/python tests/migration/old_lake.py FOLDER

The library comes out of the clone's history, the packages from the environment that runs this script. The file
`FOLDER/lakes.json` lists the lakes. Their buckets are on the S3 server of `--endpoint` (with AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY), or else on an embedded one, whose data are in `FOLDER/stack`. Takes three minutes.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMIT = "35b50030d1e645136135a879cc0a05c0df16e601"
"""The last one that made lakes of format 1."""


class AbsentCommitError(Exception):
    """The clone does not have the old commit."""


@dataclass(frozen=True)
class OldLake:
    """A lake of the old release, and how far its runs came.

    Attributes:
        lake: URI of the lake.
        catalog_uri: URI of its catalog.
        bucket: Bucket with the photos.
        published: Id of the run that is published.
        in_flight: Id of the run that is under way; it holds the turn. None when there is none.
        done: The tasks that the run under way has done, from `plan` on.
    """

    lake: str
    catalog_uri: str
    bucket: str
    published: str
    in_flight: str | None
    done: tuple[str, ...]


@dataclass(frozen=True)
class OldLakes:
    """The lakes by name, and what the old release would have published of the run in flight, by table."""

    endpoint: str
    lakes: dict[str, OldLake]
    expected: dict[str, Path]


def make(folder: Path, endpoint: str | None = None) -> OldLakes:
    """Make the lakes in ``folder``.

    Raises:
        AbsentCommitError: when the clone does not have the old commit.
        RuntimeError: with the end of its output, when the old code fails.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with old_tree() as tree:
        command = [sys.executable, Path(__file__).with_name("old_chain.py"), folder, *([endpoint] if endpoint else [])]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("FRUITS_", "PYSPARK"))}
        java = ROOT / ".venvs" / "java_home"
        if "JAVA_HOME" not in environment and java.is_file():
            environment["JAVA_HOME"] = java.read_text().strip()
        environment["PYTHONPATH"] = str(tree)  # ahead of the environment's own pointer to this checkout
        done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{COMMIT[:7]} failed with exit code {done.returncode}:\n{(done.stdout + done.stderr)[-8000:]}"
        )
    return read(folder)


def read(folder: Path) -> OldLakes:
    """The lakes that ``make`` left in a folder."""
    document = json.loads((folder / "lakes.json").read_text())
    lakes = {name: OldLake(**{**lake, "done": tuple(lake["done"])}) for name, lake in document["lakes"].items()}
    return OldLakes(document["endpoint"], lakes, {name: Path(path) for name, path in document["expected"].items()})


@contextmanager
def old_tree() -> Iterator[Path]:
    """A folder with the files of the old commit, for as long as this lasts. Nothing of it stays in the clone.

    Raises:
        AbsentCommitError: when the clone does not have the commit.
    """
    packed = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        raise AbsentCommitError(
            f"commit {COMMIT} is not in this clone ({packed.stderr.decode().strip()}); `git fetch --unshallow` gets it"
        )
    with tempfile.TemporaryDirectory(prefix="fruits-old-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def main() -> int:
    """Run the command; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--endpoint", help="URL of an S3 server")
    arguments = parser.parse_args()
    try:
        lakes = make(arguments.folder, arguments.endpoint)
    except (AbsentCommitError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, lake in lakes.lakes.items():
        print(f"{name:<10} {lake.lake} ({', '.join(lake.done) or 'no run in flight'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
