"""Make this machine ready: Java, two Python environments, Spark's jars. Safe to run, stop and run again at any time.

Everything goes into ``.venvs/``, except the jars, which several checkouts share in ``$FRUITS_CACHE`` (default:
``~/.cache/fruits``), and uv's own cache. Standard library only.
"""
# ruff: noqa: S603 - a set-up runs programs

from __future__ import annotations  # a SyntaxError here: Python is too old; make setup PYTHON=python3.11

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venvs"
REQUIREMENTS = ROOT / "requirements"
OLDEST_JAVA = 17
OLDEST_UV = (0, 10)
PYTHONS = ((3, 11), (3, 13))  # oldest and newest: pyproject.toml's requires-python
ENVIRONMENT_LOCKS = {"airflow": ("airflow", "airflow-dev"), "jobs": ("jobs", "jobs-tensorflow", "jobs-dev")}
"""The locks of each environment; each has all of the one before it."""
LOCKS = ("bootstrap", "build", *ENVIRONMENT_LOCKS["airflow"], *ENVIRONMENT_LOCKS["jobs"])


class SetupError(Exception):
    """An error that a person can fix. The message names the thing, what was expected and what to do."""


@dataclass(frozen=True)
class Java:
    """A Java installation."""

    home: Path
    version: int
    release: str = ""

    @property
    def binary(self) -> Path:
        """Its launcher."""
        return self.home / "bin" / "java"


@dataclass(frozen=True)
class Jar:
    """A jar by its Maven coordinates, and the one content that is accepted for it."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> str:
        """Its path in a Maven repository."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file}"


ENVIRONMENTS = {"airflow": "about 20 s, 0.3 GB to download", "jobs": "about 20 s, 0.7 GB to download"}
"""What making each environment costs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Set up, and return the exit code."""
    parser = argparse.ArgumentParser(description="Make this machine ready to run Fruits.")
    parser.add_argument("--dev", action="store_true", help="add TensorFlow, and what tests and lint need")
    parser.add_argument(
        "--tensorflow", action="store_true", help="add TensorFlow: what every backbone but the default one needs"
    )
    parser.add_argument(
        "--jobs-only", action="store_true", help="the jobs environment alone: what a Spark worker needs"
    )
    parser.add_argument("--lock", action="store_true", help="write requirements/*.txt from *.in, then stop")
    parser.add_argument("--upgrade", action="store_true", help="with --lock: to the newest versions that fit together")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    started = time.monotonic()
    try:
        check_python()
        with locked(VENVS / "lock"):
            if args.lock:
                compile_locks(upgrade=args.upgrade)
            else:
                set_up(dev=args.dev, tensorflow=args.tensorflow, jobs_only=args.jobs_only)
    except (SetupError, OSError) as error:
        print(f"\nSet-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The next set-up goes on from here.", file=sys.stderr)
        return 130
    print(f"Ready ({time.monotonic() - started:.1f} s)")
    return 0


def set_up(*, dev: bool, tensorflow: bool = False, jobs_only: bool = False) -> None:
    """Do what is missing; first what is likeliest to fail."""
    java = find_java(os.environ) or install_java()
    if dev:
        install_browser()
    for name in ("jobs",) if jobs_only else ENVIRONMENTS:
        make_environment(name, dev=dev, tensorflow=tensorflow)
    spark = next((VENVS / "jobs").glob("lib/python3*/site-packages/pyspark"))
    write_text(VENVS / "java_home", f"{java.home}\n")
    programs = VENVS / "jobs" / "bin"
    write_command(VENVS / "bin" / "fruits", python=programs / "python")
    jars = parse_jars((REQUIREMENTS / "jars.txt").read_text())
    add_jars(jars, spark / "jars", cache_folder(os.environ) / "jars", maven(os.environ, java, spark))
    archive = class_archive(VENVS / "jobs", java, spark / "jars")
    write_launcher(programs / "spark-submit", spark, java, python=programs / "python", archive=archive)


# Python and Java


def check_python() -> None:
    """Refuse an interpreter for which the locked packages have no wheels."""
    oldest, newest = PYTHONS
    if sys.platform != "linux":
        raise SetupError(f"Fruits runs on Linux; this is {sys.platform}. A Linux container or virtual machine will do.")
    if not oldest <= sys.version_info[:2] <= newest:
        found = next((name for name in ("python3.13", "python3.12", "python3.11") if shutil.which(name)), "python3.11")
        raise SetupError(
            f"Python 3.{oldest[1]} to 3.{newest[1]} is needed, and {sys.executable} is "
            f"{sys.version_info[0]}.{sys.version_info[1]}. Use another one:\n    make setup PYTHON={found}"
        )


def find_java(environ: Mapping[str, str]) -> Java | None:
    """The Java of ``JAVA_HOME``, else of ``PATH``; the first that is new enough."""
    home = environ.get("JAVA_HOME")
    launchers = (f"{home}/bin/java" if home else None, shutil.which("java", path=environ.get("PATH")))
    javas = (ask_java(Path(launcher)) for launcher in launchers if launcher)
    return next((java for java in javas if java and java.version >= OLDEST_JAVA), None)


def ask_java(launcher: Path) -> Java | None:
    """The Java behind ``launcher``, by its own answer: a shim is in another folder. None when it can't be run."""
    try:
        answer = subprocess.run(
            [launcher, "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return parse_java(answer.stderr)


def parse_java(settings: str) -> Java | None:
    """The home and versions in what ``java -XshowSettings:properties -version`` prints."""
    home = re.search(r"^\s*java\.home = (.+?)\s*$", settings, re.MULTILINE)
    version = re.search(r"^\s*java\.specification\.version = (?:1\.)?(\d+)", settings, re.MULTILINE)
    release = re.search(r"^\s*java\.vm\.version = (.+?)\s*$", settings, re.MULTILINE)
    return Java(Path(home[1]), int(version[1]), release[1] if release else "") if home and version else None


def install_java() -> Java:
    """Install Java as root, with apt (a container, a fresh cloud host); else say how to install it."""
    # Debian 12 has 17 and not 21, Debian 13 has 21 and not 17, Ubuntu has both.
    packages = ("openjdk-17-jre-headless", "openjdk-21-jre-headless")
    if can_install():
        with step("Java", "about 15 s, 0.1 GB to download"):
            install(*packages)
        java = find_java(os.environ)
        if java:
            return java
    raise SetupError(
        f"Java {OLDEST_JAVA} or newer is needed, and neither JAVA_HOME nor PATH has it. "
        f"Install it, then set up again:\n    {java_command(packages)}"
    )


def install_browser() -> None:
    """Install Chromium as root, with apt; without it, the tests in a browser say that they need it."""
    if shutil.which("chromedriver") is None and can_install():
        with step("Chromium, for tests and screenshots", "about 30 s, 0.1 GB to download"):
            install("chromium-driver", "chromium-chromedriver")  # Debian's and Ubuntu's; each brings the browser


def java_command(packages: Sequence[str]) -> str:
    """The command that installs Java on this machine."""
    if shutil.which("apt-get"):
        return f"sudo apt-get install -y {next(filter(_is_packaged, packages), packages[0])}"
    if shutil.which("dnf"):
        amazon = "amzn" in Path("/etc/os-release").read_text()
        return f"sudo dnf install -y {'java-17-amazon-corretto-headless' if amazon else 'java-21-openjdk-headless'}"
    return "export JAVA_HOME=/folder/of/java"


def _is_packaged(package: str) -> bool:
    apt_cache = shutil.which("apt-cache")
    # Its exit code is 0 for a package that is only mentioned by others.
    return bool(apt_cache and subprocess.run([apt_cache, "show", package], capture_output=True, check=False).stdout)


def can_install() -> bool:
    """Whether system packages can be installed without a password."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(*packages: str) -> None:
    """Install the first of these system packages that exists; the caller checks whether that helped."""
    for command in (("update",), *(("install", "-y", "--no-install-recommends", package) for package in packages)):
        try:
            run("apt-get", *command, DEBIAN_FRONTEND="noninteractive")
        except SetupError:
            continue
        if command[0] == "install":
            return


# Python environments


def make_environment(name: str, *, dev: bool, tensorflow: bool = False) -> None:
    """Make an environment, or bring it up to date. An environment with TensorFlow or the tests' tools keeps them."""
    folder = VENVS / name
    python, stamp = folder / "bin" / "python", folder / "setup.stamp"
    last = stamp.read_text() if stamp.exists() and python.exists() else ""
    locks = ENVIRONMENT_LOCKS[name]
    asked = f"{name}-dev" if dev else f"{name}-tensorflow" if tensorflow and name == "jobs" else name
    kept = next((lock for lock in locks if f" {lock}.txt " in last), locks[0])
    lock, build = REQUIREMENTS / f"{max(asked, kept, key=locks.index)}.txt", REQUIREMENTS / "build.txt"
    wanted = f"{digest(lock, build)} {lock.name} in {ROOT}\n"
    if last == wanted:
        return
    # Scripts name their interpreter by its path, so an environment does not survive a move of the checkout.
    usable = last.endswith(f" in {ROOT}\n")
    with step(f"{name} environment", "an update" if usable else ENVIRONMENTS[name]):
        uv = find_uv()
        stamp.unlink(
            missing_ok=True
        )  # an interruption leaves an environment without its stamp: the next set-up remakes it
        if not usable:
            run(uv, "venv", "--clear", "--python", sys.executable, str(folder))
        # Bytecode: a third of the start-up time of `airflow` and TensorFlow, even where Python may not write it itself.
        options = ("--require-hashes", "--build-constraints", str(build), "--compile-bytecode")
        # Spark's jars are compressed already; to compress them into a wheel, and back, takes 10 s.
        stored = "--config-setting=--build-option=--compression=stored"
        run(uv, "pip", "sync", "--python", str(python), *options, stored, str(lock))
        packages = next(folder.glob("lib/python3*/site-packages"))
        write_text(packages / "fruits.pth", f"{ROOT}\n")  # the project itself, as it is in the checkout
        write_text(stamp, wanted)


def find_uv() -> str:
    """The machine's uv if it is recent, else one of our own."""
    uv = shutil.which("uv")
    answer = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout if uv else ""
    return uv if uv and parse_uv(answer) >= OLDEST_UV else bootstrap_uv()


def parse_uv(answer: str) -> tuple[int, ...]:
    """The version in what ``uv --version`` prints; empty when it is not understood."""
    version = re.match(r"uv (\d+)\.(\d+)", answer)
    return tuple(map(int, version.groups())) if version else ()


def bootstrap_uv() -> str:
    """Install uv into ``.venvs/bootstrap``: with the venv module, or with pip where Debian ships pip without venv."""
    folder, lock = VENVS / "bootstrap", REQUIREMENTS / "bootstrap.txt"
    uv, stamp, wanted = folder / "bin" / "uv", folder / "setup.stamp", f"{digest(lock)} in {ROOT}\n"
    if stamp.exists() and stamp.read_text() == wanted and uv.exists():
        return str(uv)
    shutil.rmtree(folder, ignore_errors=True)
    requirements = ("install", "--disable-pip-version-check", "--require-hashes", "--requirement", str(lock))
    venv_package = f"python3.{sys.version_info[1]}-venv"
    if not _has_venv() and not importlib.util.find_spec("pip") and can_install():
        install(venv_package)
        importlib.invalidate_caches()
    if _has_venv():
        run(sys.executable, "-m", "venv", str(folder))
        run(str(folder / "bin" / "python"), "-m", "pip", *requirements)
    elif importlib.util.find_spec("pip"):
        run(sys.executable, "-m", "pip", *requirements, "--target", str(folder))
    else:
        raise SetupError(
            f"{sys.executable} has neither venv nor pip. Install one, then set up again:\n"
            f"    sudo apt-get install -y {venv_package}"
        )
    write_text(stamp, wanted)
    return str(uv)


def _has_venv() -> bool:
    return importlib.util.find_spec("ensurepip") is not None


def compile_locks(*, upgrade: bool) -> None:
    """Write each lock of ``requirements/`` from its ``.in`` file; versions change with ``upgrade``, or if they must."""
    options = ["--universal", "--python-version", f"3.{PYTHONS[0][1]}", "--generate-hashes", "--no-emit-index-url"]
    options += [
        "--excludes",
        "requirements/excludes.in",
        "--custom-compile-command",
        "make lock",
        *(["--upgrade"] if upgrade else []),
    ]
    for name in LOCKS:
        with step(f"requirements/{name}.txt", "some seconds"):
            run(find_uv(), "pip", "compile", *options, "-o", f"requirements/{name}.txt", f"requirements/{name}.in")


# Spark


LAUNCHER = r"""#!/bin/sh
# Written by scripts/setup.py.
{exports}
# The JVM maps Spark's classes from an archive (scripts/archive_classes.py), if there is one and it fits: the JVM
# compares itself, its class path and each jar. An archive fits no class path with a folder of files, so Spark's folder
# of configuration leaves the class path where it holds nothing else than spark-defaults.conf.
conf=${{SPARK_CONF_DIR:-$SPARK_HOME/conf}}
case "$(ls -A "$conf" 2>/dev/null)" in
"") export SPARK_CONF_DIR=/nonexistent ;;
spark-defaults.conf)
    set -- --properties-file "$conf/spark-defaults.conf" "$@"
    export SPARK_CONF_DIR=/nonexistent ;;
esac
if [ -r "$FRUITS_CLASS_ARCHIVE" ]; then
    options="\"-XX:SharedArchiveFile=$FRUITS_CLASS_ARCHIVE\" -Xshare:auto -Xlog:cds=off -Xlog:cds+dynamic=off"
    export SPARK_SUBMIT_OPTS="$options $SPARK_SUBMIT_OPTS"
fi
# The JVM that only puts the command of the driver's together.
export SPARK_LAUNCHER_OPTS="-XX:TieredStopAtLevel=1 -XX:+UseSerialGC $SPARK_LAUNCHER_OPTS"
# In client mode the job's Python starts first, and PySpark starts the JVM with the same options when the job uses
# Spark: a run of few photos does not. Like an executor's, its BLAS has one thread: more wait for each other, and a wait
# is busy.
options= count=0 job= option=
for word in "$@"; do
    case "$option $word" in
    "--deploy-mode cluster" | " --deploy-mode=cluster" | *spark.submit.deployMode=cluster) break ;;
    " --verbose" | " -v" | " --supervise" | " --"*=*) ;;
    " --"*) option=$word ;;
    " "*.py) job=$word && break ;;
    " "*) break ;;
    *) option= ;;
    esac
    options="$options '$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'"
    count=$((count + 1))
done
if [ "$job" ]; then
    shift "$count"
    export PYSPARK_SUBMIT_ARGS="$options pyspark-shell" PYTHONHASHSEED=0 PYTHONUNBUFFERED=1
    export OPENBLAS_NUM_THREADS="${{OPENBLAS_NUM_THREADS:-1}}"
    exec "$PYSPARK_DRIVER_PYTHON" "$@"
fi
exec "$SPARK_HOME/bin/spark-submit" "$@"
"""


def write_launcher(file: Path, spark: Path, java: Java, *, python: Path, archive: Path) -> None:
    """Write a ``spark-submit`` that runs the jobs environment on this Java, whatever its caller's variables are.

    It replaces pyspark's own, which needs those variables and fails in a folder with a space. Archives of classes for
    another Java or other jars are removed.
    """
    variables = {
        "JAVA_HOME": java.home,
        "SPARK_HOME": spark,
        "PYSPARK_PYTHON": python,
        "PYSPARK_DRIVER_PYTHON": python,
        "FRUITS_CLASS_ARCHIVE": archive,
    }
    exports = "\n".join(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items())
    write_text(file, LAUNCHER.format(exports=exports))
    file.chmod(0o755)
    for old in archive.parent.glob("classes-*.jsa"):
        if old != archive:
            old.unlink(missing_ok=True)


def class_archive(folder: Path, java: Java, jars: Path) -> Path:
    """Where the archive of Spark's classes is, by the identity of Java and jars, whether it was made or not."""
    sizes = sorted(f"{jar.name} {jar.stat().st_size}" for jar in jars.glob("*.jar"))
    identity = "\n".join([f"{java.home} {java.release}", *sizes])
    return folder / f"classes-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.jsa"


def write_command(file: Path, *, python: Path) -> None:
    """Write the command ``fruits``, for a person to type from any folder or to have on the PATH."""
    file.parent.mkdir(exist_ok=True)
    # -P: nothing is imported from the current folder.
    write_text(file, f'#!/bin/sh\n# Written by scripts/setup.py.\nexec {shlex.quote(str(python))} -P -m fruits "$@"\n')
    file.chmod(0o755)


def parse_jars(table: str) -> tuple[Jar, ...]:
    """The jars in a table of lines ``group:artifact:version sha256:<hexadecimal>``."""
    lines = (line.strip() for line in table.splitlines())
    return tuple(_parse_jar(line) for line in lines if line and not line.startswith("#"))


def _parse_jar(line: str) -> Jar:
    jar = re.fullmatch(r"([\w.-]+):([\w.-]+):([\w.-]+)\s+sha256:([0-9a-f]{64})", line)
    if not jar:
        raise SetupError(f"requirements/jars.txt: expected `group:artifact:version sha256:<64 digits>`, found {line!r}")
    return Jar(*jar.groups())


def add_jars(jars: Sequence[Jar], folder: Path, cache: Path, fetch: Callable[[Jar, Path], None]) -> None:
    """Have exactly these jars, checked, in Spark's ``folder``, as links to ``cache``."""
    links = {folder / jar.file: jar for jar in jars}
    for file in folder.glob("*.jar"):
        if file.is_symlink() and not (file in links and file.exists()):
            file.unlink()
    missing = {link: jar for link, jar in links.items() if not link.exists()}
    if missing:
        with step("Spark's jars", "about 10 s, 0.1 GB to download"):
            for link, jar in missing.items():
                link.symlink_to(checked_jar(jar, cache, fetch))


def checked_jar(jar: Jar, cache: Path, fetch: Callable[[Jar, Path], None]) -> Path:
    """The jar in ``cache``, fetched when it is not there or has other content.

    Raises:
        SetupError: when the fetched jar does not have the pinned content. It is not kept.
    """
    file = cache / jar.file
    if file.exists() and digest(file) == jar.sha256:
        return file
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:  # of this set-up alone: other checkouts share the cache
        part = Path(folder) / jar.file
        fetch(jar, part.parent)
        fetched = digest(part)
        if fetched != jar.sha256:
            raise SetupError(
                f"{jar.file}: expected sha256 {jar.sha256}, fetched {fetched}. It was thrown away; look at what the "
                "Maven repository serves (FRUITS_MAVEN_MIRROR, a proxy) and set up again."
            )
        part.replace(file)
    return file


def maven(environ: Mapping[str, str], java: Java, spark: Path) -> Callable[[Jar, Path], None]:
    """How to fetch a jar into a folder: from ``FRUITS_MAVEN_MIRROR`` if set, else by Ivy, which knows Maven Central."""
    mirror = environ.get("FRUITS_MAVEN_MIRROR")
    if mirror:
        return lambda jar, folder: download(f"{mirror.rstrip('/')}/{jar.path}", folder / jar.file)
    ivy = next((spark / "jars").glob("ivy-*.jar"))
    return lambda jar, folder: fetch_with_ivy(jar, folder, java, ivy)


def download(url: str, file: Path) -> None:
    """Fetch ``url`` into ``file``."""
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise SetupError(f"FRUITS_MAVEN_MIRROR: expected the http, https or file URL of a Maven repository, got {url}")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, file.open("wb") as target:  # noqa: S310 - checked above
            shutil.copyfileobj(response, target)
    except (OSError, HTTPException) as error:
        raise SetupError(f"{url}: {error}. Check FRUITS_MAVEN_MIRROR and the network, then set up again.") from None


def fetch_with_ivy(jar: Jar, folder: Path, java: Java, ivy: Path) -> None:
    """Fetch a jar without what it depends on, by the Apache Ivy that comes with Spark."""
    settings = (f"-Divy.default.ivy.user.dir={folder}", *proxy_options(urllib.request.getproxies()))
    what = ("-dependency", jar.group, jar.artifact, jar.version, "-notransitive", "-types", "jar", "-confs", "default")
    where = ("-cache", str(folder / "ivy"), "-retrieve", "[artifact]-[revision].[ext]")
    try:
        run(str(java.binary), *settings, "-jar", str(ivy), *what, *where, folder=folder)
    except SetupError as error:
        raise SetupError(
            f"{error}\nOr set FRUITS_MAVEN_MIRROR to the URL of a Maven repository that can be reached."
        ) from None


def proxy_options(proxies: Mapping[str, str]) -> list[str]:
    """Java's options for the proxy of ``https_proxy``, which Java ignores."""
    proxy = urlsplit(proxies.get("https", ""))
    return [f"-Dhttps.proxyHost={proxy.hostname}", f"-Dhttps.proxyPort={proxy.port or 80}"] if proxy.hostname else []


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The folder of the jars of all checkouts."""
    caches = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(environ.get("FRUITS_CACHE") or caches / "fruits").absolute()


# Running programs


@contextmanager
def step(what: str, cost: str) -> Iterator[None]:
    """Print what is being done, and how long it took."""
    print(f"{what} ({cost}) ...", end=" ", flush=True)
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:.0f} s", flush=True)


def run(*command: str, folder: Path = ROOT, **environ: str) -> None:
    """Run a program, its output into ``.venvs/setup.log``.

    Raises:
        SetupError: it failed; the message has the end of its output.
    """
    log = VENVS / "setup.log"
    with log.open("w") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | environ,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-15:])
        raise SetupError(
            f"this command returned {done.returncode}:\n  {shlex.join(command)}\n{tail}\n"
            f"Its whole output is in {log}. Fix the cause, or try again if it was the network: the next set-up "
            "goes on from here."
        )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock; wait while another set-up holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another set-up to end ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(*files: Path) -> str:
    """The sha256 of the contents of ``files``, in hexadecimal."""
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            for block in iter(lambda: content.read(1 << 20), b""):
                total.update(block)
    return total.hexdigest()


def write_text(file: Path, text: str) -> None:
    """Write a file, all or nothing, unless it has this text already."""
    if file.exists() and file.read_text() == text:
        return
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    part.replace(file)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
