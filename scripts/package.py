"""Pack the jobs environment for the workers of a cluster: ``make package``.

The archive is a virtual environment with what executors import: the packages of ``.venvs/jobs``, except those that only
build backbones or run tests, and the library ``fruits``, to which the checkout's environment only points. Spark's jars
stay out, because a cluster's executors have their own Spark. The archive's Python is a link: workers need the same
Python at the same path, or at the path of ``--python``. Standard library only.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
import tarfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venvs" / "jobs"
ARCHIVE = ROOT / "build" / "jobs-env.tar.gz"
LEFT_OUT = (
    *("tensorflow", "keras", "clang"),  # build backbones, which never happens on a worker; 1.4 GB
    *("pyspark/jars", "pyspark/examples", "pyspark/bin"),  # 0.4 GB
    *("mypy", "mypyc", "*__mypyc.*.so", "duckdb", "_duckdb.*"),  # tests and lint
)
COMPRESSION = 1  # level 6 makes it a tenth smaller, and takes more than twice the time


class PackageError(Exception):
    """An error that a person can fix. The message names the thing, what was expected and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Pack, print the result, and return the exit code."""
    parser = argparse.ArgumentParser(prog="make package", description="Pack the jobs environment for a cluster.")
    parser.add_argument("-o", "--output", type=Path, default=ARCHIVE, metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--python", type=PurePosixPath, metavar="PATH", help="the workers' Python, where it is not where it is here"
    )
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    try:
        python = arguments.python or python_of(ENVIRONMENT)
        pack(ENVIRONMENT, ROOT / "fruits", arguments.output, python)
    except (PackageError, OSError) as error:
        print(f"Nothing was packed: {error}", file=sys.stderr)
        return 1
    megabytes = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output} ({megabytes:.0f} MB, {time.monotonic() - started:.0f} s); workers need {python}")
    return 0


def python_of(environment: Path) -> PurePosixPath:
    """The Python that an environment was made from.

    Raises:
        PackageError: when the environment is not set up.
    """
    link = environment / "bin" / "python"
    if not (environment / "setup.stamp").exists() or not link.exists():
        raise PackageError(
            f"{environment} is not completely set up; expected the jobs environment. Set it up: make setup"
        )
    version = packages_of(environment).parent.name  # python3.11: a plain `python3` elsewhere may be another one
    named = link.resolve().with_name(version)
    return PurePosixPath(named if named.exists() else link.resolve())


def packages_of(environment: Path) -> Path:
    """The folder of an environment's packages."""
    return next(environment.glob("lib/python3*/site-packages"))


def pack(environment: Path, library: Path, archive: Path, python: PurePosixPath) -> None:
    """Write the archive, all or nothing.

    Raises:
        PackageError: when ``python`` is not the absolute path of a Python of the environment's minor version.
    """
    packages = packages_of(environment)
    check_python(python, packages.parent.name)
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}.part")
    try:
        with gzip.open(part, "wb", COMPRESSION) as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
            add_python(tar, python)
            inside = packages.relative_to(environment)
            for item in sorted(packages.iterdir()):
                if item.suffix != ".pth":  # they point to the checkout
                    tar.add(item, str(inside / item.name), filter=lambda entry: kept(entry, inside))
            tar.add(library, str(inside / library.name), filter=lambda entry: kept(entry, inside))
        part.replace(archive)
    finally:
        part.unlink(missing_ok=True)


def check_python(python: PurePosixPath, version: str) -> None:
    """Check that a worker's Python has an absolute path and the minor version ``version``."""
    named = re.fullmatch(r"python(3(\.\d+)?)?", python.name)
    if not python.is_absolute() or not named or (named[2] and python.name != version):
        raise PackageError(
            f"--python {python}: expected the absolute path of the workers' {version}, like /usr/bin/{version}"
        )


def add_python(tar: tarfile.TarFile, python: PurePosixPath) -> None:
    """Add the two things that make a folder a virtual environment: the link to Python, and ``pyvenv.cfg``."""
    link = tarfile.TarInfo("bin/python")
    link.type, link.linkname, link.mode = tarfile.SYMTYPE, str(python), 0o777
    tar.addfile(link)
    note = f"home = {python.parent}\ninclude-system-site-packages = false\n".encode()
    entry = tarfile.TarInfo("pyvenv.cfg")
    entry.size, entry.mode = len(note), 0o644
    tar.addfile(entry, BytesIO(note))


def kept(entry: tarfile.TarInfo, packages: Path) -> tarfile.TarInfo | None:
    """The entry as it goes into the archive; None when workers do not need it."""
    name = PurePosixPath(entry.name).relative_to(packages)
    if any(fnmatch(str(name), pattern) for pattern in LEFT_OUT):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    sys.exit(main())
