"""The service ``init``: make databases, tables, user, connections and buckets before Airflow starts.

Every ``make up`` runs it again: passwords and connections then follow ``.env``. It ends with exit code 2 and a message
when a person has to fix something.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

import boto3
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError
from psycopg2 import sql

from fruits.errors import ExitCode, FruitsError
from fruits.serve.doctor import Check, bucket, credentials, examine, lake, queue, worst
from fruits.settings import Settings
from local.airflow import airflow

log = logging.getLogger("fruits")

_DATABASES = ("airflow", "catalog")
_SECONDS = 60


def main() -> int:
    """Run all steps; returns an exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        settings = Settings.load()
        make_databases(os.environ["POSTGRES_HOST"])
        run_airflow("db", "migrate")
        log.info("airflow: tables are up to date")
        make_user(os.environ["ADMIN_USER"], os.environ["ADMIN_PASSWORD"])
        write_connections(settings)
        if settings.s3_endpoint:
            make_buckets(settings)
        check(settings)
    except FruitsError as error:
        log.error("init: %s", error)
        return error.exit_code
    return ExitCode.OK


def make_databases(host: str) -> None:
    """Make a database and a role each for Airflow and the catalog. Neither role can reach the other's database."""
    with superuser(host) as cursor:
        for name in _DATABASES:
            role, password = sql.Identifier(name), sql.Literal(os.environ[f"{name.upper()}_DB_PASSWORD"])
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
            verb = sql.SQL("CREATE" if cursor.fetchone() is None else "ALTER")
            cursor.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, password))
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(role))  # RDS's superuser needs to be asked
                cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
            cursor.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(role))
    log.info("postgres: databases %s on %s", " and ".join(_DATABASES), host)


def superuser(host: str) -> Any:
    """Open an autocommit cursor as superuser; wait until the server is up.

    Raises:
        FruitsError: when the server does not answer, or refuses the password.
    """
    user, deadline = os.environ["POSTGRES_USER"], time.monotonic() + _SECONDS
    while True:
        try:
            connection = psycopg2.connect(
                host=host, user=user, password=os.environ["POSTGRES_PASSWORD"], dbname="postgres", connect_timeout=5
            )
        except psycopg2.OperationalError as error:
            reason = str(error).strip().splitlines()[-1]
            if "password authentication failed" in reason:
                raise FruitsError(
                    f"postgres on {host}: {reason}. The database keeps the password that it was made with. Put it "
                    f"back into .env (POSTGRES_PASSWORD), or set the new one in the database:\n"
                    f"    docker compose exec postgres psql -U {user} -c \"ALTER ROLE {user} PASSWORD '...'\""
                ) from None
            if time.monotonic() > deadline:
                raise FruitsError(
                    f"postgres on {host}: {reason}; check POSTGRES_HOST and, for RDS, its security group"
                ) from None
            time.sleep(1)
        else:
            connection.autocommit = True
            return connection.cursor()


def make_user(name: str, password: str) -> None:
    """Make Airflow's administrator, or give an existing one the password of .env."""
    person = ("--firstname", "Fruits", "--lastname", "Administrator", "--email", f"{name}@localhost", "--role", "Admin")
    twice = f"{password}\n{password}\n"  # Airflow asks for it, and for a confirmation
    run_airflow("users", "create", "--username", name, *person, answers=twice)
    run_airflow("users", "reset-password", "--username", name, answers=twice)  # an existing user keeps the old one
    log.info("airflow: user %s", name)


def write_connections(settings: Settings) -> None:
    """Write the connections `spark_default` and `aws_default` from .env; others are left alone."""
    aws: dict[str, Any] = {"region_name": settings.s3_region}
    if settings.s3_endpoint:
        aws["endpoint_url"] = settings.s3_endpoint
        if settings.event_queue:
            parts = urlsplit(settings.event_queue)
            aws["service_config"] = {"sqs": {"endpoint_url": f"{parts.scheme}://{parts.netloc}"}}
    description = "Written by `make up` from .env: change it there"
    connections = {
        "spark_default": {"conn_type": "spark", "host": os.environ["SPARK_MASTER"], "description": description},
        "aws_default": {"conn_type": "aws", "extra": json.dumps(aws), "description": description},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(connections, file)
        file.flush()
        run_airflow("connections", "import", "--overwrite", file.name)
    log.info("airflow: connections %s", " and ".join(connections))


def make_buckets(settings: Settings) -> None:
    """Make the buckets of photos and lake on our own S3 server; on AWS the account's owner makes them."""
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint, region_name=settings.s3_region)
    names = dict.fromkeys([settings.bucket, *([urlsplit(settings.lake).netloc] if settings.lake_kind == "s3" else [])])
    try:
        existing = {found["Name"] for found in client.list_buckets()["Buckets"]}
        for name in names.keys() - existing:
            client.create_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        raise FruitsError(f"buckets {', '.join(names)} on {settings.s3_endpoint}: {error}") from error
    log.info("s3: buckets %s on %s", ", ".join(names), settings.s3_endpoint)


def check(settings: Settings) -> None:
    """Check that bucket, lake and queue exist and can be used.

    Raises:
        FruitsError: with the finding of each failed check, and what to do.
    """
    findings = examine(
        [
            Check("credentials", credentials),
            Check("bucket", lambda: bucket(settings)),
            Check("lake", lambda: lake(settings)),
            Check("queue", lambda: queue(settings)),
        ]
    )
    for finding in findings:
        log.info("%s: %s %s", finding.check, finding.found, f"({finding.state}: {finding.fix})" if finding.fix else "")
    if worst(findings) == "fail":
        failed = (f"{one.check}: {one.found}; {one.fix}" for one in findings if one.state == "fail")
        raise FruitsError("\n".join(failed))


def run_airflow(*arguments: str, answers: str = "") -> None:
    """Run Airflow's command line, which gets ``answers`` to its questions: all users of the host can read arguments.

    Raises:
        FruitsError: when it fails; with the end of its output.
    """
    done = subprocess.run(  # noqa: S603 -- our own environment's airflow
        [airflow(), *arguments],
        input=answers,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        start_new_session=True,  # without a terminal Airflow reads passwords from its input
    )
    if done.returncode:
        output = "\n".join(f"    {line}" for line in done.stdout.splitlines()[-15:])
        raise FruitsError(f"`airflow {' '.join(arguments[:2])}` returned {done.returncode}:\n{output}")


if __name__ == "__main__":
    sys.exit(main())
