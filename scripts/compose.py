"""``make up``, ``down``, ``password``, ``backup``, ``restore``: docker compose, with checks before and messages after.

Standard library only, any Python from 3.9 on: the host needs Docker and no package of ours.
"""
# ruff: noqa: S603, S607 - it runs docker, and nothing else

from __future__ import annotations

import argparse
import base64
import hmac
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
OLDEST_ENGINE, OLDEST_COMPOSE = (25, 0), (2, 24)  # health checks' start_interval; configs with content, optional parts
LEAST_MEMORY = 7_500_000_000  # of a machine that is sold with 8 GB
DATABASES = ("airflow", "catalog")
CODE = ("dags", "docker", "fruits", "local", "plugins", "spark_jobs")
PORTS = {
    "AIRFLOW_PORT": "api-server",
    "SPARK_UI_PORT": "spark-master",
    "HISTORY_PORT": "history-server",
    "S3_PORT": "s3",
}
CONTAINERS = {
    "SPARK_WORKER_MEMORY": "SPARK_WORKER_CONTAINER_MEMORY",
    "FRUITS_SPARK_DRIVER_MEMORY": "SCHEDULER_MEMORY",
}
"""Memory of a JVM, and of the container that has to hold it."""
CONFIGS = ("SPARK_SECRET", "SPARK_WORKER_MEMORY", "FRUITS_BUCKET", "LOCAL_EVENT_TOKEN")
"""The variables of the `configs` in docker-compose.yaml."""
_READY_SECONDS = 600
_LOG_LINES = 25

SECRETS = (
    "AIRFLOW_FERNET_KEY", "POSTGRES_PASSWORD", "AIRFLOW_DB_PASSWORD", "CATALOG_DB_PASSWORD", "AIRFLOW_ADMIN_PASSWORD",
    "AIRFLOW_JWT_SECRET", "AIRFLOW_SECRET_KEY", "SPARK_SECRET", "LOCAL_S3_ACCESS_KEY", "LOCAL_S3_SECRET_KEY",
    "LOCAL_EVENT_TOKEN",
)  # fmt: skip
_SECRET = (r"[A-Za-z0-9_-]{16,}", "16 or more letters, digits, - and _; remove the line for a new one")
_SIZE = (r"[1-9]\d*[mg]", "a size such as 2g or 1536m")
_COUNT = (r"[1-9]\d*", "a count such as 2")
_PORT = (r"[1-9]\d{1,4}", "a port such as 8080")
FORMATS = {
    **dict.fromkeys(SECRETS, _SECRET),
    **dict.fromkeys(PORTS, _PORT),
    **dict.fromkeys(("SPARK_WORKERS", "SPARK_WORKER_CORES", "AIRFLOW_PARALLELISM"), _COUNT),
    **dict.fromkeys((*CONTAINERS, *CONTAINERS.values()), _SIZE),
    "COMPOSE_PROFILES": (r"((local|postgres|tools)(,(?!$)|$))*", "local, postgres, both with a comma, or nothing"),
    "SPARK_MASTER": (r"spark://\S+|local\[[\d*]+\]|yarn|k8s://\S+", "spark://host:7077, local[*], yarn or k8s://..."),
    "POSTGRES_PASSWORD": (r"[^\s'\"$\\]{8,}", "8 or more characters without blanks, quotes, $ and backslashes"),
    "AIRFLOW_FERNET_KEY": (
        r"[A-Za-z0-9_-]{43}=(,[A-Za-z0-9_-]{43}=)*",
        "32 bytes in URL-safe base64; another key than before makes connections unreadable",
    ),
}
"""The form of a variable of .env, as a regular expression and in words, where a wrong value would fail obscurely.

The service ``init`` checks the other settings, and says what is wrong with them.
"""


class DeployError(Exception):
    """An error that a person can fix. The message names the thing, what was expected and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="build, start, wait until healthy")
    up_parser.add_argument("--images", type=Path, help="folder of photos to upload")
    commands.add_parser("down", help="stop and remove the containers; all data stays")
    commands.add_parser("password", help="the administrator's password")
    backup_parser = commands.add_parser("backup", help="dump both databases")
    backup_parser.add_argument("folder", type=Path, nargs="?", help="a new folder (backups/<time>)")
    restore_parser = commands.add_parser("restore", help="put both databases back from their dumps")
    restore_parser.add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    try:
        _command(arguments)
    except (DeployError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted; run it again to go on.", file=sys.stderr)
        return 130
    return 0


def _command(arguments: argparse.Namespace) -> None:
    if arguments.command == "up":
        up(arguments.images)
    elif arguments.command == "down":
        check_docker()
        compose("--profile", "*", "down")
    elif arguments.command == "password":
        print(read_settings(ROOT / ".env")["AIRFLOW_ADMIN_PASSWORD"])
    elif arguments.command == "backup":
        backup(arguments.folder or ROOT / "backups" / time.strftime("%Y%m%dT%H%M%S"))
    else:
        restore(arguments.folder)


def up(images: Path | None) -> None:
    """Check, build, start, wait until all services are healthy; print how to log in."""
    if images is not None and not images.is_dir():
        raise DeployError(f"IMAGES={images}: no such folder; expected one that holds <label>/<photo>")
    check_docker()
    settings = make_settings(ROOT / ".env", ROOT / ".env.example")
    check_settings(settings)
    check_machine()
    check_ports(settings)
    check_code()
    local = "local" in profiles(settings)
    if images is not None and not local:
        raise DeployError("IMAGES fills the bucket of the profile local; upload to yours with `aws s3 cp --recursive`")
    compose("build")
    if not local:  # left from a time when the profile was set
        compose("--profile", "local", "rm", "--stop", "--force", "s3", "queue")
    print("\nStarting; the first time takes two minutes", flush=True)
    try:
        compose("up", "--detach", "--wait", "--wait-timeout", str(_READY_SECONDS), "--remove-orphans")
    except DeployError:
        raise DeployError(why_not_up()) from None
    if images is not None:
        seed(images)
    address = "http://127.0.0.1:{}".format
    where = f" on {address(settings['S3_PORT'])}, keys LOCAL_S3_* in .env" if local else ""
    print(f"\n  Airflow UI     {address(settings['AIRFLOW_PORT'])}")
    print(f"  user           {settings['AIRFLOW_ADMIN_USER']}")
    print("  password       make password")
    print(f"  photos         s3://{settings['FRUITS_BUCKET']}{where}")
    print(f"  Spark          {address(settings['SPARK_UI_PORT'])}, past jobs: {address(settings['HISTORY_PORT'])}")
    print("\nPhotos that come into the bucket are worked on from now on. `make logs` shows it, `make down` stops it.")


def seed(images: Path) -> None:
    """Upload a folder of photos; other objects in the bucket stay."""
    mount = ("--volume", f"{images.resolve()}:/images:ro")
    program = ("/opt/fruits/.venvs/airflow/bin/python", "-m", "local.mirror", "/images")
    # A person who can read the folder on the host can read it in the container.
    user = ("--user", f"{os.getuid()}:{os.getgid()}", "--cap-add", "DAC_READ_SEARCH")
    compose("run", "--rm", "--no-deps", *user, *mount, "--entrypoint", program[0], "fruits", *program[1:])


def why_not_up() -> str:
    """The last log lines of each service that is not well."""
    reports = []
    states = read("docker", "compose", "ps", "--all", "--format", "{{.Service}} {{.State}} {{.ExitCode}} {{.Health}}")
    for line in states.splitlines():
        service, state, code, health = line.split(" ")
        if f"{state} {code}" == "exited 0" or state == "created" or (state == "running" and health in ("", "healthy")):
            continue
        logs = ("logs", "--no-log-prefix", "--tail", str(_LOG_LINES), service)
        reports.append(
            f"{service} ({state} {health}".rstrip()
            + f", exit code {code}) said:\n{read('docker', 'compose', '--ansi', 'never', *logs)}"
        )
    reasons = "\n".join(reports) or "See what Docker said above."
    return f"Not all parts came up. {reasons}\nFix the cause and run `make up` again; nothing is lost."


# Checks


def check_docker() -> None:
    """Check that a Docker engine, compose and buildx are there, new enough, and may be used."""
    if shutil.which("docker") is None:
        raise DeployError(
            "Docker is not installed. On Ubuntu: sudo apt-get install -y docker.io docker-compose-v2 docker-buildx"
        )
    for name, question, oldest in (
        ("engine", ("version", "--format", "{{.Server.Version}}"), OLDEST_ENGINE),
        ("compose", ("compose", "version", "--short"), OLDEST_COMPOSE),
        ("buildx", ("buildx", "version"), (0,)),
    ):
        answer = subprocess.run(["docker", *question], capture_output=True, text=True, check=False)
        if answer.returncode:
            raise DeployError(
                f"Docker's {name} does not answer: {answer.stderr.strip()}\n"
                "docs/deploy-compose.md says what to install. Permission denied: sudo usermod -aG docker $USER, then "
                "log in again"
            )
        if (version := parse_version(answer.stdout)) < oldest:
            needed = ".".join(map(str, oldest))
            raise DeployError(f"Docker's {name} {'.'.join(map(str, version))} is too old; {needed} or newer is needed")


def parse_version(text: str) -> tuple[int, ...]:
    """Major and minor of a version; empty when there is none in the text."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else ()


def check_machine() -> None:
    """Check processor and memory of the engine's machine, which is a virtual one under Docker Desktop."""
    machine, memory = read("docker", "info", "--format", "{{.Architecture}} {{.MemTotal}}").split()
    if machine not in ("x86_64", "amd64"):
        raise DeployError(f"Docker runs on {machine}; x86-64 is needed: TensorFlow has no packages for other machines")
    if int(memory) < LEAST_MEMORY:
        raise DeployError(
            f"Docker has {int(memory) / 1e9:.1f} GB of memory; {LEAST_MEMORY / 1e9:.1f} GB or more are needed. Take a "
            "larger machine (or, with Docker Desktop, raise its limit)"
        )


def check_ports(settings: Mapping[str, str]) -> None:
    """Check that no other program listens on our ports."""
    running = read("docker", "compose", "ps", "--services").split()
    for name, service in PORTS.items():
        if service in running or (service == "s3" and "local" not in profiles(settings)):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", int(settings[name])))
            except (OSError, OverflowError) as error:
                raise DeployError(
                    f"{name}={settings[name]}: {getattr(error, 'strerror', error)}. End the program that listens "
                    f"there, or set {name} in .env to a free port above 1023"
                ) from None


def check_code() -> None:
    """Check that the containers' user, who is not the owner, can read the code that is mounted."""
    for path in (path for name in CODE for path in (ROOT / name, *(ROOT / name).rglob("*"))):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            raise DeployError(
                f"{path}: other users can't read it, and the containers run as another user; "
                f"chmod -R o+rX {' '.join(CODE)}"
            )


def check_settings(settings: Mapping[str, str]) -> None:
    """Check the form of each variable, and that the variables fit together."""
    problems = [
        f"{name}={'***' if name in SECRETS else settings[name]}: expected {words}"
        for name, (form, words) in FORMATS.items()
        if not re.fullmatch(form, settings[name]) and not (name in SECRETS and not settings[name])
    ]
    problems += [
        f"{part}={settings[part]}: it has to fit into {whole}={settings[whole]}, with room for Python"
        for part, whole in CONTAINERS.items()
        if megabytes(settings[part]) >= megabytes(settings[whole]) > 0
    ]
    keys = [name for name, value in settings.items() if name.startswith("LOCAL_") and value]
    if keys and "local" not in profiles(settings):
        problems.append(f"{', '.join(keys)}: AWS would get these keys instead of the instance role's; make them empty")
    if problems:
        raise DeployError("\n  ".join(("Fix these lines of .env (.env.example explains them):", *problems)))


def megabytes(size: str) -> int:
    """A size such as 2g or 1536m; 0 when it is malformed."""
    match = re.fullmatch(r"(\d+)([mg])", size)
    return int(match[1]) * (1024 if match[2] == "g" else 1) if match else 0


# Settings


def make_settings(file: Path, example: Path) -> dict[str, str]:
    """The settings of ``file``. Lines that it lacks come from ``example``, empty secrets get random values.

    ``CONFIG_DIGEST`` is brought up to date.

    Raises:
        DeployError: when the key of an existing database is missing: a new one would not fit.
    """
    given = read_settings(file) if file.exists() else {}
    database = f"{os.environ.get('COMPOSE_PROJECT_NAME') or 'fruits'}_postgres-data"
    if not given.get("AIRFLOW_FERNET_KEY") and database in read("docker", "volume", "ls", "--quiet").split():
        raise DeployError(
            f"{file} {'has no AIRFLOW_FERNET_KEY' if given else 'is missing'}, but there is a database, {database}, "
            "which was made with one. Put the old file back: without it, Airflow's connections can't be read. If all "
            f"data may go: docker volume rm {database}"
        )
    missing = {name: value for name, value in read_settings(example).items() if name not in given}
    settings = {**missing, **given}
    unused = [
        *(name for name in SECRETS if name.startswith("LOCAL_") and "local" not in profiles(settings)),
        *(["POSTGRES_PASSWORD"] if "postgres" not in profiles(settings) else []),
    ]
    new = {name: new_secret(name) for name in SECRETS if not settings[name] and name not in unused}
    settings |= new
    digest = {"CONFIG_DIGEST": config_digest(settings)}
    if missing or new or digest.items() - given.items():
        write_private(file, with_values((file if given else example).read_text(), {**missing, **new, **digest}))
    if missing or new:
        print(f"New in {file.name}: {', '.join({**missing, **new} if given else new)}")
    return settings | digest


def config_digest(settings: Mapping[str, str]) -> str:
    """A digest of ``CONFIGS`` for the containers' labels, which anybody may read: keyed, so that nobody can guess."""
    values = "\n".join(settings[name] for name in CONFIGS)
    return hmac.new(settings["AIRFLOW_FERNET_KEY"].encode(), values.encode(), "sha256").hexdigest()[:16]


def profiles(settings: Mapping[str, str]) -> list[str]:
    """The optional parts that run on this host: ``local`` (S3 server and queue), ``postgres``."""
    return settings["COMPOSE_PROFILES"].split(",")


def new_secret(name: str) -> str:
    """A random value for a secret."""
    if name == "AIRFLOW_FERNET_KEY":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(24)


def with_values(text: str, values: Mapping[str, str]) -> str:
    """The text of an .env file with these values: in the place of the old ones, or at the end."""
    for name, value in values.items():
        text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        if not count:
            text = f"{text.rstrip()}\n{name}={value}\n"
    return text


def read_settings(file: Path) -> dict[str, str]:
    """The variables of an .env file.

    Raises:
        DeployError: with the number of the first malformed line.
    """
    if not file.exists():
        raise DeployError(f"there is no {file}; `make up` makes it")
    settings = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", line.strip())
        if not match or re.search(r"^['\"]|\s#|\$", match[2]):
            raise DeployError(
                f"{file.name}, line {number}: expected NAME=value without quotes, $ or a comment, found {line!r}"
            )
        settings[match[1]] = match[2]
    return settings


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, all or nothing."""
    part = file.with_name(f"{file.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as target:
        target.write(text)
    part.replace(file)


# Backups


def backup(folder: Path) -> None:
    """Dump both databases into ``folder`` while everything runs: both are complete, or there is no folder."""
    check_postgres()
    if folder.exists():
        raise DeployError(f"{folder} is there already; a backup takes a folder of its own")
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, mode=0o700)
    for database in DATABASES:
        with (part / f"{database}.dump").open("w+b") as dump:
            dumped = postgres("pg_dump", "--format=custom", database, stdout=dump)
            dump.seek(0)
            if not dumped or not postgres("pg_restore", "--list", stdin=dump, stdout=subprocess.DEVNULL):
                raise DeployError(f"database {database} could not be dumped, see above; is it running (`make up`)?")
    part.rename(folder)
    print(f"{folder}: {', '.join(f'{name}.dump' for name in DATABASES)}. Keep .env with them: it has the passwords and")
    print("the key to Airflow's connections.")


def restore(folder: Path) -> None:
    """Put both databases back from their dumps; meanwhile, and afterwards, only the database server runs."""
    check_postgres()
    dumps = {database: folder / f"{database}.dump" for database in DATABASES}
    for dump in dumps.values():
        if not dump.is_file():
            raise DeployError(f"{dump}: no such file; expected a folder that `make backup` made")
    compose("--profile", "*", "stop", "api-server", "scheduler", "dag-processor", "triggerer", "identify")
    compose("up", "--detach", "--wait", "postgres")
    for database, dump in dumps.items():  # beside the old databases, which go when both new ones are complete
        new = f"{database}_restored"
        sql(f"DROP DATABASE IF EXISTS {new}")
        sql(f"DO $$ BEGIN CREATE ROLE {database} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        sql(f"CREATE DATABASE {new} OWNER {database}")
        options = ("--exit-on-error", "--no-owner", "--role", database, "--dbname", new)
        with dump.open("rb") as file:
            if not postgres("pg_restore", *options, stdin=file):
                raise DeployError(
                    f"{dump}: not restored, see above; both databases are as they were. `make up` goes on"
                )
    for database in DATABASES:
        sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        sql(f"ALTER DATABASE {database}_restored RENAME TO {database}")
    print("Restored. `make up` starts Airflow; then bring the catalog to the newest version of each table:")
    print("docker compose exec -T scheduler fruits catalog rebuild --yes")


def check_postgres() -> None:
    """Check that the databases are on this host."""
    check_docker()
    if "postgres" not in profiles(read_settings(ROOT / ".env")):
        raise DeployError(
            "The databases are not on this host (COMPOSE_PROFILES has no postgres); take a snapshot of RDS"
        )


def sql(statement: str) -> None:
    """Run a statement as the superuser of the database server."""
    if not postgres("psql", "--quiet", "--dbname", "postgres", "--set", "ON_ERROR_STOP=1", "--command", statement):
        raise DeployError(f"PostgreSQL refused, see above: {statement}")


def postgres(
    program: str, *arguments: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | int | None = None
) -> bool:
    """Run a program of PostgreSQL's in its container, as the superuser; returns whether it succeeded."""
    user = ["--username", read_settings(ROOT / ".env")["POSTGRES_USER"]] if arguments != ("--list",) else []
    command = ["docker", "compose", "exec", "-T", "postgres", program, *user, *arguments]
    source = stdin or subprocess.DEVNULL
    return not subprocess.run(command, cwd=ROOT, env=environment(), stdin=source, stdout=stdout, check=False).returncode


# Docker


def environment() -> dict[str, str]:
    """Our environment without the variables of .env: compose would prefer the shell's values, which nobody checked."""
    ours = read_settings(ROOT / ".env.example")
    return {name: value for name, value in os.environ.items() if name not in ours}


def compose(*arguments: str) -> None:
    """Run docker compose; its output goes to the terminal.

    Raises:
        DeployError: when it fails.
    """
    code = subprocess.run(["docker", "compose", *arguments], cwd=ROOT, env=environment(), check=False).returncode
    if code:
        raise DeployError(f"`docker compose {arguments[0]}` returned {code}: see its message above, then try again")


def read(*command: str) -> str:
    """The output of a command."""
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    sys.exit(main())
