"""``make up``, ``down``, ``logs``, ``backup``, ``restore``: docker-compose.yaml, checks before and plain words after.

Standard library only, any Python from 3.9 on: the host needs Docker and nothing of ours.
"""
# ruff: noqa: S603, S607 - it runs docker, and nothing else

from __future__ import annotations

import argparse
import base64
import errno
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
OLDEST_ENGINE, OLDEST_COMPOSE = (25, 0), (2, 24)  # health checks' start_interval; configs with content, optional parts
LEAST_MEMORY = 7_500_000_000  # of a machine that is sold with 8 GB
LEAST_DISK = 12_000_000_000  # both images, what builds them, and room to work
LEAST_DISK_BUILT = 2_000_000_000
DATABASES = ("airflow", "catalog")
_READY_SECONDS = 600
_LOG_LINES = 25

_SIZE = (r"[1-9]\d*[mg]", "a size such as 2g or 1536m")
_PORT = (
    r"[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5]",
    "a port such as 8080",
)
_COUNT = (r"[1-9]\d*", "a count such as 2")
_SECRET = (r"[A-Za-z0-9_-]{16,}", "16 or more letters, digits, - and _; remove the line for a new one")
FORMATS = {
    "COMPOSE_PROFILES": (r"((local|postgres|tools)(,(?!$)|$))*", "local, postgres, both with a comma, or nothing"),
    "FRUITS_BUCKET": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket's name"),
    "FRUITS_LAKE": (r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", "s3://bucket/prefix"),
    "FRUITS_S3_ENDPOINT": (r"(https?://[^/]+.*)?", "a URL, or nothing for AWS"),
    "AIRFLOW_BASE_URL": (r"(https?://[^/]+(/.*[^/])?)?", "a URL without a slash at its end, or nothing"),
    "FRUITS_EVENT_QUEUE": (r"(https?://[^/]+/\d+/[\w-]+)?", "a queue's URL, or nothing"),
    "AIRFLOW_PORT": _PORT,
    "SPARK_UI_PORT": _PORT,
    "HISTORY_PORT": _PORT,
    "S3_PORT": _PORT,
    "SPARK_MASTER": (r"spark://\S+|local\[[\d*]+\]|yarn|k8s://\S+", "spark://host:7077, local[*], yarn or k8s://..."),
    "SPARK_WORKER_CORES": _COUNT,
    "SPARK_WORKERS": _COUNT,
    "AIRFLOW_PARALLELISM": _COUNT,
    "SPARK_WORKER_MEMORY": _SIZE,
    "SPARK_WORKER_CONTAINER_MEMORY": _SIZE,
    "SCHEDULER_MEMORY": _SIZE,
    "FRUITS_SPARK_DRIVER_MEMORY": _SIZE,
    "POSTGRES_HOST": (r"[A-Za-z0-9.-]+", "a host's name"),
    "POSTGRES_USER": (r"\w+", "a role's name"),
    "POSTGRES_PASSWORD": (r"[^\s'\"$\\]{8,}", "8 or more characters without blanks, quotes, $ and backslashes"),
    "AIRFLOW_ADMIN_USER": (r"[\w.-]+", "a user's name"),
    "AIRFLOW_FERNET_KEY": (
        r"[A-Za-z0-9_-]{43}=(,[A-Za-z0-9_-]{43}=)*",
        "32 bytes in URL-safe base64; another than before loses connections",
    ),
    **dict.fromkeys(
        (
            "AIRFLOW_DB_PASSWORD", "CATALOG_DB_PASSWORD", "AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_JWT_SECRET",
            "AIRFLOW_SECRET_KEY", "SPARK_SECRET", "LOCAL_S3_ACCESS_KEY", "LOCAL_S3_SECRET_KEY", "LOCAL_EVENT_TOKEN",
        ),
        _SECRET,
    ),
}  # fmt: skip
"""What each variable of .env has to look like, as a regular expression and in words."""

SECRETS = ("POSTGRES_PASSWORD", "AIRFLOW_FERNET_KEY", *(name for name, form in FORMATS.items() if form is _SECRET))
_PORTS = {
    "AIRFLOW_PORT": "api-server",
    "SPARK_UI_PORT": "spark-master",
    "HISTORY_PORT": "history-server",
    "S3_PORT": "s3",
}


class DeployError(Exception):
    """Something a person can mend. The message names the thing, what was expected and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="build, start, wait until healthy")
    up_parser.add_argument("--images", type=Path, help="folder of photos to upload")
    commands.add_parser("down", help="stop and remove the containers; all data stays")
    commands.add_parser("password", help="the administrator's password")
    backup_parser = commands.add_parser("backup", help="dump both databases")
    backup_parser.add_argument("folder", type=Path, nargs="?", help="where to (backups/<time>)")
    restore_parser = commands.add_parser("restore", help="put both databases back as they were dumped")
    restore_parser.add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    try:
        return _command(arguments)
    except (DeployError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; run it again to go on.", file=sys.stderr)
        return 130


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "up":
        return up(arguments.images)
    if arguments.command == "down":
        check_docker()
        return compose("--profile", "*", "down", check=False)
    if arguments.command == "password":
        print(read_settings(ROOT / ".env")["AIRFLOW_ADMIN_PASSWORD"])
        return 0
    if arguments.command == "backup":
        return backup(arguments.folder or ROOT / "backups" / time.strftime("%Y%m%dT%H%M%S"))
    return restore(arguments.folder)


def up(images: Path | None) -> int:
    """Check, build, start, wait until all is healthy; tell how to log in."""
    if images is not None and not images.is_dir():
        raise DeployError(f"IMAGES={images}: no such folder; expected one that holds <label>/<photo>")
    check_docker()
    settings = make_settings(ROOT / ".env", ROOT / ".env.example")
    check_settings(settings)
    check_room()
    check_ports(settings)
    check_code()
    if images is not None and not is_local(settings):
        raise DeployError("IMAGES fills the bucket of the profile local; upload to yours with `aws s3 cp --recursive`")
    compose("build")
    if not is_local(settings):  # of a time when it was
        compose("--profile", "local", "rm", "--stop", "--force", "s3", "queue", check=False)
    print("\nStarting; the first time takes two minutes", flush=True)
    if compose("up", "--detach", "--wait", "--wait-timeout", str(_READY_SECONDS), "--remove-orphans", check=False):
        raise DeployError(why_not_up())
    if images is not None:
        seed(images)
    url = f"http://127.0.0.1:{settings['AIRFLOW_PORT']}"
    print(f"\n  Airflow UI     {url}")
    print(f"  user           {settings['AIRFLOW_ADMIN_USER']}")
    print("  password       make password")
    print(f"  photos         s3://{settings['FRUITS_BUCKET']}{_on(settings)}")
    print(
        f"  Spark          http://127.0.0.1:{settings['SPARK_UI_PORT']}, past jobs: http://127.0.0.1:{settings['HISTORY_PORT']}"
    )
    print("\nPhotos that come into the bucket are worked on from now on. `make logs` shows it, `make down` stops it.")
    return 0


def is_local(settings: Mapping[str, str]) -> bool:
    """Whether S3 server and queue are on this host."""
    return "local" in settings["COMPOSE_PROFILES"].split(",")


def has_postgres(settings: Mapping[str, str]) -> bool:
    """Whether the databases are on this host."""
    return "postgres" in settings["COMPOSE_PROFILES"].split(",")


def _on(settings: Mapping[str, str]) -> str:
    return f" on http://127.0.0.1:{settings['S3_PORT']}, keys LOCAL_S3_* in .env" if is_local(settings) else ""


def seed(images: Path) -> None:
    """Upload a folder of photos; what else is in the bucket stays."""
    where = ("--volume", f"{images.resolve()}:/images:ro")
    program = ("/opt/fruits/.venvs/airflow/bin/python", "-m", "local.mirror", "/images")
    # Whoever may read the folder here may read it there.
    user = ("--user", f"{os.getuid()}:{os.getgid()}", "--cap-add", "DAC_READ_SEARCH")
    compose("run", "--rm", "--no-deps", *user, *where, "--entrypoint", program[0], "fruits", *program[1:])


def why_not_up() -> str:
    """What the parts that are not well said last."""
    states = "{{.Service}} {{.State}} {{.ExitCode}} {{.Health}}"
    parts = []
    for line in read("docker", "compose", "ps", "--all", "--format", states).splitlines():
        service, state, code, *health = line.split(" ")
        well = (state == "running" and health in ([""], ["healthy"])) or (state == "exited" and code == "0")
        if not well and state != "created":
            said = read(
                "docker", "compose", "--ansi", "never", "logs", "--no-log-prefix", "--tail", str(_LOG_LINES), service
            )
            parts.append(
                f"{service} ({state}{' ' + health[0] if health and health[0] else ''}, exit code {code}) said:\n{said}"
            )
    told = "\n".join(parts) or "See what Docker said above."
    return f"Not all parts came up. {told}\nMend what it says and run `make up` again; nothing is lost."


# Checks


def check_docker() -> None:
    """See that there is a Docker engine and compose, new enough, and that we may use them."""
    if shutil.which("docker") is None:
        raise DeployError(
            "Docker is not installed. On Ubuntu: sudo apt-get install -y docker.io docker-compose-v2 docker-buildx"
        )
    engine = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False
    )
    if engine.returncode:
        said = engine.stderr.strip()
        fix = (
            "sudo usermod -aG docker $USER, then log in again"
            if "permission denied" in said
            else "sudo systemctl start docker"
        )
        raise DeployError(f"The Docker engine does not answer: {said}\nTry: {fix}")
    plugin = subprocess.run(["docker", "compose", "version", "--short"], capture_output=True, text=True, check=False)
    if plugin.returncode:
        raise DeployError("Docker has no `compose`. On Ubuntu: sudo apt-get install -y docker-compose-v2 docker-buildx")
    if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode:
        raise DeployError("Docker has no `buildx`. On Ubuntu: sudo apt-get install -y docker-buildx")
    for what, found, oldest in (("engine", engine.stdout, OLDEST_ENGINE), ("compose", plugin.stdout, OLDEST_COMPOSE)):
        if parse_version(found) < oldest:
            raise DeployError(
                f"Docker {what} {found.strip()} is too old; {'.'.join(map(str, oldest))} or newer is needed"
            )


def parse_version(text: str) -> tuple[int, ...]:
    """Major and minor of a version; empty when it is not understood."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else ()


def check_room() -> None:
    """See that machine, memory and disk suffice; of the engine's machine, which Docker Desktop makes a virtual one."""
    asked = "{{.Architecture}} {{.MemTotal}} {{.DockerRootDir}}"
    machine, memory, root = read("docker", "info", "--format", asked).strip().split(" ", 2)
    if machine not in ("x86_64", "amd64"):
        raise DeployError(
            f"Docker runs on {machine}; x86-64 is needed, because there is no TensorFlow for other machines"
        )
    if int(memory) < LEAST_MEMORY:
        raise DeployError(
            f"Docker has {int(memory) / 1e9:.1f} GB of memory; {LEAST_MEMORY / 1e9:.1f} GB or more are needed. Take a "
            "larger machine (or, with Docker Desktop, raise its limit)"
        )
    built = bool(read("docker", "image", "ls", "--quiet", f"{project()}-airflow").strip())
    least = LEAST_DISK_BUILT if built else LEAST_DISK
    if Path(root).is_dir() and (free := shutil.disk_usage(root).free) < least:
        raise DeployError(
            f"{free / 1e9:.1f} GB are free at {root}; {least / 1e9:.0f} GB or more are needed. Make room, for "
            "instance by `docker builder prune` and `docker image prune`"
        )


def check_ports(settings: Mapping[str, str]) -> None:
    """See that nobody else listens on our ports."""
    ours = read("docker", "compose", "ps", "--services").split()
    for name, service in _PORTS.items():
        if service in ours or (service == "s3" and not is_local(settings)):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", int(settings[name])))
            except OSError as error:
                taken = "Another program listens there; end it, or" if error.errno == errno.EADDRINUSE else "Better"
                raise DeployError(
                    f"{name}={settings[name]}: {error.strerror}. {taken} set {name} in .env to a free port above 1023"
                ) from None


def check_code() -> None:
    """See that the containers, which run as a user of their own, can read the code that they mount."""
    names = ("dags", "docker", "fruits", "local", "plugins", "spark_jobs")
    for path in (path for name in names for path in (ROOT / name, *(ROOT / name).rglob("*"))):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            raise DeployError(
                f"{path}: other users can't read it, and the containers are such; chmod -R o+rX {' '.join(names)}"
            )


# Settings


def make_settings(file: Path, example: Path) -> dict[str, str]:
    """The settings of ``file``, which is made from ``example`` where it is missing; empty secrets are filled in.

    Raises:
        DeployError: when secrets of data that is there are missing: new ones would not fit.
    """
    defaults = read_settings(example)
    given = read_settings(file) if file.exists() else {}
    database = f"{project()}_postgres-data"
    if not given.get("AIRFLOW_FERNET_KEY") and database in read("docker", "volume", "ls", "--quiet").split():
        raise DeployError(
            f"{file} {'has no AIRFLOW_FERNET_KEY' if given else 'is missing'}, but there is a database, {database}, "
            "which was made with one. Put the old file back: without it, Airflow's connections can't be read. If all "
            "data may go: docker volume rm " + database
        )
    if not given:
        write_private(file, example.read_text())
        print(f"{file.name} was made from {example.name}; look into it to change ports, sizes or places")
    elif lines := {name: value for name, value in defaults.items() if name not in given}:
        write_private(file, with_values(file.read_text(), lines))
        print(f"{file.name} had no line for {', '.join(lines)}: it has {example.name}'s now")
    settings = read_settings(file)
    wanted = [
        name
        for name in SECRETS
        if not settings[name]
        and (is_local(settings) or not name.startswith("LOCAL_"))
        and (has_postgres(settings) or name != "POSTGRES_PASSWORD")
    ]
    if wanted:
        write_private(file, with_values(file.read_text(), {name: new_secret(name) for name in wanted}))
        print(f"New secrets in {file.name}: {', '.join(wanted)}")
    return read_settings(file)


def new_secret(name: str) -> str:
    """A random value for a secret."""
    if name == "AIRFLOW_FERNET_KEY":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(24)


def with_values(text: str, values: Mapping[str, str]) -> str:
    """The text of an .env file with these values, in the place of empty ones or at its end."""
    for name, value in values.items():
        text, found = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        if not found:
            text = f"{text.rstrip()}\n{name}={value}\n"
    return text


def read_settings(file: Path) -> dict[str, str]:
    """The variables of an .env file.

    Raises:
        DeployError: naming the line that is none.
    """
    if not file.exists():
        raise DeployError(f"there is no {file}; `make up` makes it")
    settings = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", line.strip())
        if not found or re.search(r"^['\"]|\s#|\$", found[2]):
            raise DeployError(
                f"{file.name}, line {number}: expected NAME=value without quotes, $ or a comment, found {line!r}"
            )
        settings[found[1]] = found[2]
    return settings


def check_settings(settings: Mapping[str, str]) -> None:
    """See that each variable has the form it needs, and that they fit together."""
    problems = [
        f"{name}={'***' if name in SECRETS else settings.get(name, '')}: expected {words}"
        for name, (form, words) in FORMATS.items()
        if not re.fullmatch(form, settings.get(name, "")) and not (name in SECRETS and not settings.get(name))
    ]
    problems += [*_misplaced(settings), *_too_large(settings)]
    ports = [settings[name] for name in _PORTS]
    problems += [
        f"{name}={settings[name]}: another port has it, too" for name in _PORTS if ports.count(settings[name]) > 1
    ]
    if problems:
        raise DeployError(
            "Mend these lines of .env (.env.example says what they are for):\n"
            + "\n".join(f"  {one}" for one in problems)
        )


def _misplaced(settings: Mapping[str, str]) -> Iterator[str]:
    """What belongs to a part that is not on this host."""
    if not is_local(settings):
        if settings["FRUITS_S3_ENDPOINT"] == "http://s3:8333":
            yield "FRUITS_S3_ENDPOINT: s3 is the server of the profile local; on AWS it has to be empty"
        if "//queue:" in settings["FRUITS_EVENT_QUEUE"]:
            yield "FRUITS_EVENT_QUEUE: queue is that of the profile local; give the one on AWS, or nothing"
        if any(value for name, value in settings.items() if name.startswith("LOCAL_")):
            yield "LOCAL_...: these keys would be taken instead of the instance role's; make them empty"
    if not has_postgres(settings):
        if settings["POSTGRES_HOST"] == "postgres":
            yield "POSTGRES_HOST=postgres: that is the server of the profile postgres; add it, or give RDS's address"
        if not settings["POSTGRES_PASSWORD"]:
            yield "POSTGRES_PASSWORD: expected that of RDS's superuser"


def _too_large(settings: Mapping[str, str]) -> Iterator[str]:
    """What does not fit into the container that it is in."""
    pairs = (
        ("SPARK_WORKER_MEMORY", "SPARK_WORKER_CONTAINER_MEMORY"),
        ("FRUITS_SPARK_DRIVER_MEMORY", "SCHEDULER_MEMORY"),
    )
    for part, whole in pairs:
        if megabytes(settings[part]) >= megabytes(settings[whole]) > 0:
            yield f"{part}={settings[part]}: it has to fit into {whole}={settings[whole]}, with room for Python"


def megabytes(size: str) -> int:
    """A size such as 2g or 1536m; 0 when it is none."""
    found = re.fullmatch(r"(\d+)([mg])", size)
    return int(found[1]) * (1024 if found[2] == "g" else 1) if found else 0


# Back-ups


def backup(folder: Path) -> int:
    """Dump both databases into ``folder``, while everything runs: both, or no such folder."""
    check_postgres()
    if folder.exists():
        raise DeployError(f"{folder} is there already; a back-up takes a folder of its own")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, mode=0o700)
    for database in DATABASES:
        dump = part / f"{database}.dump"
        with dump.open("wb") as file:
            dumped = postgres("pg_dump", "--format=custom", database, stdout=file)
        with dump.open("rb") as file:
            if dumped or postgres("pg_restore", "--list", stdin=file, stdout=subprocess.DEVNULL):
                raise DeployError(f"database {database} could not be dumped, see above; is it running (`make up`)?")
    part.rename(folder)
    print(f"{folder}: {', '.join(f'{name}.dump' for name in DATABASES)}. Keep .env with them: it has the passwords and")
    print("the key to Airflow's connections.")
    return 0


def restore(folder: Path) -> int:
    """Put both databases back as they were dumped; only the database server runs meanwhile, and afterwards."""
    check_postgres()
    dumps = {database: folder / f"{database}.dump" for database in DATABASES}
    for dump in dumps.values():
        if not dump.is_file():
            raise DeployError(f"{dump}: no such file; expected a folder that `make backup` made")
    compose("--profile", "*", "stop", "api-server", "scheduler", "dag-processor", "triggerer", check=False)
    compose("up", "--detach", "--wait", "postgres")
    for database, dump in dumps.items():  # beside what is there, which goes when both are in
        new = f"{database}_restored"
        sql(f"DROP DATABASE IF EXISTS {new}")
        sql(f"DO $$ BEGIN CREATE ROLE {database} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        sql(f"CREATE DATABASE {new} OWNER {database}")
        options = ("--exit-on-error", "--no-owner", "--role", database, "--dbname", new)
        with dump.open("rb") as file:
            if postgres("pg_restore", *options, stdin=file):
                raise DeployError(
                    f"{dump}: not restored, see above; both databases are as they were. `make up` goes on"
                )
    for database in DATABASES:
        sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        sql(f"ALTER DATABASE {database}_restored RENAME TO {database}")
    print("Restored. `make up` starts Airflow.")
    return 0


def check_postgres() -> None:
    """See that the databases are on this host."""
    check_docker()
    if not has_postgres(read_settings(ROOT / ".env")):
        raise DeployError(
            "The databases are not on this host (COMPOSE_PROFILES has no postgres); take a snapshot of RDS"
        )


def sql(statement: str) -> None:
    """Have the database server do something, as its superuser."""
    if postgres("psql", "--quiet", "--dbname", "postgres", "--set", "ON_ERROR_STOP=1", "--command", statement):
        raise DeployError(f"PostgreSQL refused, see above: {statement}")


def postgres(
    program: str, *arguments: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | int | None = None
) -> int:
    """Run a program of PostgreSQL's in its container, as the superuser; returns its exit code."""
    user = read_settings(ROOT / ".env")["POSTGRES_USER"]
    options = () if arguments == ("--list",) else ("--username", user)
    command = ["docker", "compose", "exec", "-T", "postgres", program, *options, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), stdin=stdin or subprocess.DEVNULL, stdout=stdout, check=False
    ).returncode


# Docker


def project() -> str:
    """What compose calls the containers, volumes and images after."""
    return os.environ.get("COMPOSE_PROJECT_NAME") or "fruits"


def environment() -> dict[str, str]:
    """Our environment without .env's variables: compose would take the shell's instead, and nobody checked those."""
    ours = read_settings(ROOT / ".env.example")
    return {name: value for name, value in os.environ.items() if name not in ours}


def compose(*arguments: str, check: bool = True) -> int:
    """Run docker compose; what it says goes to the terminal.

    Raises:
        DeployError: when it fails, unless ``check`` is off.
    """
    code = subprocess.run(["docker", "compose", *arguments], cwd=ROOT, env=environment(), check=False).returncode
    if code and check:
        raise DeployError(f"`docker compose {arguments[0]}` returned {code}: see what it said above, then try again")
    return code


def read(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False).stdout


def write_private(file: Path, text: str) -> None:
    """Write a file that its owner only can read, at once or not at all."""
    part = file.with_name(f"{file.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as target:
        target.write(text)
    part.replace(file)


if __name__ == "__main__":
    sys.exit(main())
