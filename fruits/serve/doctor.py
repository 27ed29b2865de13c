"""Checks of everything that a run needs. Each check has a finding and, if something is wrong, a fix.

No check stops the others: an error becomes a finding, and so does a check that takes too long.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from fruits.errors import FruitsError
from fruits.settings import DagSettings, Settings, queue_region

State = Literal["ok", "warn", "fail"]

ROOT = Path(__file__).parents[2]
OLDEST_JAVA = 17
PYTHONS = ((3, 11), (3, 13))
SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS = 30, 900
"""S3 refuses requests whose clock is 15 minutes off."""
LEAST_DISK_BYTES, LOW_DISK_BYTES = 1_000_000_000, 5_000_000_000
MANY_MESSAGES = 1_000
_SECONDS = 30.0
_MOST_SHOWN = 3
_PHOTOS_ASKED = 10


@dataclass(frozen=True)
class Finding:
    """The finding of the check ``check``. ``fix`` says what to do; None if nothing is wrong."""

    check: str
    state: State
    found: str
    fix: str | None = None

    def to_document(self) -> dict[str, Any]:
        """The finding as JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A check by name. ``look`` does the check and may raise ``FruitsError``; ``seconds`` is its time limit."""

    name: str
    look: Callable[[], "CheckResult"]
    seconds: float = _SECONDS


@dataclass(frozen=True)
class CheckResult:
    """The result of ``Check.look``: a finding without the name of the check."""

    found: str
    state: State = "ok"
    fix: str | None = None


def examine(checks: Sequence[Check]) -> list[Finding]:
    """Do all checks at the same time; return the findings in the order of the checks."""
    findings: dict[int, Finding] = {}

    def look(place: int, check: Check) -> None:
        findings[place] = _finding(check)

    threads = [threading.Thread(target=look, args=(place, check), daemon=True) for place, check in enumerate(checks)]
    for thread in threads:
        thread.start()
    for thread, check in zip(threads, checks, strict=True):
        thread.join(check.seconds)
    return [findings.get(place) or _given_up(check) for place, check in enumerate(checks)]


def _finding(check: Check) -> Finding:
    from fruits.denials import denials_explained

    try:
        with denials_explained():
            result = check.look()
    except FruitsError as error:
        return Finding(check.name, "fail", str(error), "follow the message")
    except Exception as error:  # noqa: BLE001 -- an error of any kind is the finding of the check
        reason = " ".join(str(error).partition("\n")[0].split())
        return Finding(check.name, "fail", f"{type(error).__name__}: {reason}", "look at what the error names")
    return Finding(check.name, result.state, result.found, result.fix)


def _given_up(check: Check) -> Finding:
    return Finding(
        check.name,
        "fail",
        f"no answer within {check.seconds:.0f} s",
        "check that the server answers and that the disk works",
    )


def machine_checks(settings: DagSettings, root: Path = ROOT) -> list[Check]:
    """The checks of this machine: Java, Spark, both environments, memory, disk. They need no lake."""
    jobs = settings.jobs_env
    environments = {"jobs": jobs, "airflow": jobs.parent / "airflow"}
    return [
        Check("java", lambda: java(jobs)),
        Check("spark jars", lambda: spark_jars(jobs, root)),
        *(Check(f"python of {name}", partial(python, folder)) for name, folder in environments.items()),
        *(Check(f"packages of {name}", partial(packages, folder, root, name)) for name, folder in environments.items()),
        Check("memory", lambda: memory(settings.spark_driver_memory)),
        Check("disk, temporary files", lambda: disk(Path(tempfile.gettempdir()))),
    ]


def lake_checks(settings: Settings) -> list[Check]:
    """The checks of bucket, catalog, lake, pin, backbone and queue."""
    checks = [
        Check("credentials", credentials),
        Check("bucket", lambda: bucket(settings)),
        Check("clock", lambda: clock(settings)),
        Check("catalog", lambda: catalog(settings)),
        Check("lake", lambda: lake(settings)),
        Check("lake of this bucket", lambda: lake_of_bucket(settings)),
        Check("pin", lambda: pin(settings)),
        Check("backbone", lambda: backbone(settings)),
        Check("event queue", lambda: queue(settings)),
    ]
    if settings.lake_kind == "file":
        checks.append(Check("disk, lake", lambda: disk(_existing(Path(unquote(urlsplit(settings.lake).path))))))
    return checks


# This machine


def java(jobs: Path) -> CheckResult:
    """Check the Java of spark-submit: the launcher names one; otherwise JAVA_HOME or PATH does."""
    fix = f"install Java {OLDEST_JAVA} or newer and run `make setup`"
    launcher = jobs / "bin" / "spark-submit"
    if not launcher.is_file():
        return CheckResult(f"no {launcher}", "fail", "run `make setup`, or set FRUITS_JOBS_ENV")
    in_launcher = re.search(r"^export JAVA_HOME=(.+)$", launcher.read_text(errors="replace"), re.MULTILINE)
    home = shlex.split(in_launcher[1])[0] if in_launcher else os.environ.get("JAVA_HOME")
    program = f"{home}/bin/java" if home else shutil.which("java")
    if program is None:
        return CheckResult("there is no Java: neither JAVA_HOME nor PATH names one", "fail", fix)
    try:
        output = _run(program, "-XshowSettings:properties", "-version")
    except OSError as error:
        return CheckResult(f"{program}: {error.strerror}", "fail", fix)
    version = re.search(r"java\.specification\.version = (?:1\.)?(\d+)", output)
    if version is None:
        return CheckResult(f"{program} prints no version", "fail", fix)
    if int(version[1]) < OLDEST_JAVA:
        return CheckResult(f"Java {version[1]} ({program})", "fail", fix)
    return CheckResult(f"Java {version[1]} ({program})")


def spark_jars(jobs: Path, root: Path) -> CheckResult:
    """Check that Spark has the jars of ``requirements/jars.txt``; without that file, any Iceberg runtime."""
    folder = next(jobs.glob("lib/python3*/site-packages/pyspark/jars"), None)
    if folder is None:
        return CheckResult(f"no pyspark in {jobs}", "fail", "run `make setup`, or set FRUITS_JOBS_ENV")
    table = root / "requirements" / "jars.txt"
    listed = re.findall(r"^[\w.-]+:([\w.-]+):([\w.-]+)\s", table.read_text(), re.MULTILINE) if table.is_file() else []
    names = [f"{artifact}-{version}.jar" for artifact, version in listed] or ["iceberg-spark-runtime-*.jar"]
    missing = [name for name in names if not any(jar.exists() for jar in folder.glob(name))]
    if missing:
        return CheckResult(f"missing in {folder}: {', '.join(missing)}", "fail", "run `make setup`")
    return CheckResult(f"{len(names)} jars in {folder}")


def python(folder: Path) -> CheckResult:
    """Check the Python of a virtual environment."""
    program = folder / "bin" / "python"
    fix = "run `make setup`, or set FRUITS_JOBS_ENV"
    if not program.is_file():
        return CheckResult(f"no {program}", "fail", fix)
    version = tuple(int(part) for part in _run(str(program), "--version").split()[-1].split(".")[:2])
    oldest, newest = PYTHONS
    found = f"Python {'.'.join(map(str, version))} ({program})"
    if oldest <= version <= newest:
        return CheckResult(found)
    return CheckResult(found, "fail", f"make setup PYTHON=python3.{oldest[1]}")


def packages(folder: Path, root: Path, name: str) -> CheckResult:
    """Check that an environment has the packages of its lock, in the locked versions."""
    from importlib.metadata import distributions

    from packaging.utils import canonicalize_name

    lock = root / "requirements" / f"{name}.txt"
    site = next(folder.glob("lib/python3*/site-packages"), None)
    if site is None:
        return CheckResult(f"no packages in {folder}", "fail", "run `make setup`")
    if not lock.is_file():
        return CheckResult(f"there is no {lock} to compare with", "warn", "install from the project's locks")
    installed: dict[str, str] = {
        canonicalize_name(distribution.name): distribution.version for distribution in distributions(path=[str(site)])
    }
    pins = _pins(lock)
    wrong = [
        f"{package} {installed.get(package, 'is missing')} instead of {version}"
        for package, version in pins.items()
        if installed.get(package) != version
    ]
    if wrong:
        more = f" and {len(wrong) - _MOST_SHOWN} more" if len(wrong) > _MOST_SHOWN else ""
        return CheckResult(f"{'; '.join(wrong[:_MOST_SHOWN])}{more}", "fail", "run `make setup`")
    return CheckResult(f"{len(pins)} packages, as locked")


def _pins(lock: Path) -> dict[str, str]:
    """The versions of a lock, by package: of those packages whose marker fits this machine."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (line.rstrip(" \\") for line in lock.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line))
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


def memory(driver: str) -> CheckResult:
    """Check that the free memory suffices for a Spark driver."""
    text = Path("/proc/meminfo").read_text()
    available = int(re.findall(r"MemAvailable:\s+(\d+)", text)[0]) * 1024
    needed = int(driver[:-1]) * (1024**3 if driver.endswith("g") else 1024**2)
    found = f"{available / 1e9:.1f} GB free, a Spark driver takes up to {needed / 1e9:.1f} GB"
    if available < needed:
        return CheckResult(found, "warn", "end other programs, or lower FRUITS_SPARK_DRIVER_MEMORY")
    return CheckResult(found)


def disk(folder: Path) -> CheckResult:
    """Check the room on the disk of ``folder``."""
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free at {folder}"
    if free < LOW_DISK_BYTES:
        state: State = "fail" if free < LEAST_DISK_BYTES else "warn"
        return CheckResult(found, state, "make room on this disk, or move the folder to a larger disk")
    return CheckResult(found)


# Bucket, lake and queue


def credentials() -> CheckResult:
    """Check that boto3 finds AWS credentials; name the place."""
    from fruits.stores import aws_session

    credentials_found = aws_session().get_credentials()
    if credentials_found is None:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
        return CheckResult("there are no AWS credentials", "fail", fix)
    return CheckResult(f"from {credentials_found.method}")


def bucket(settings: Settings) -> CheckResult:
    """Check that the bucket can be listed, and that an object can be read."""
    from fruits.photos.listing import first_photos
    from fruits.stores import check_photos

    first = first_photos(settings, settings.prefix)[:_PHOTOS_ASKED]
    place = f"s3://{settings.bucket}/{settings.prefix}"
    if not first:
        return CheckResult(f"{place} is empty", "warn", "upload photos as [Training|Test]/<label>/<file>")
    check_photos(settings, (item.key for item in first if item.size))
    return CheckResult(f"{place} can be listed, and its photos can be read")


def clock(settings: Settings) -> CheckResult:
    """Check that this machine's clock agrees with the S3 server's."""
    from botocore.exceptions import ClientError

    from fruits.stores import list_client, list_requester

    try:
        answer = list_client(settings).list_objects_v2(Bucket=settings.bucket, MaxKeys=1, **list_requester(settings))
    except ClientError as error:  # an error has the date, too
        answer = error.response
    headers: Mapping[str, str] = answer["ResponseMetadata"].get("HTTPHeaders", {})
    if "date" not in headers:
        return CheckResult("the S3 server's answer has no date", "warn", "compare the clocks by hand")
    skew = abs((datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds())
    found = f"{skew:.0f} s from the S3 server's"
    if skew > SKEW_WARN_SECONDS:
        state: State = "fail" if skew > SKEW_FAIL_SECONDS else "warn"
        return CheckResult(found, state, "set the clock: timedatectl set-ntp true")
    return CheckResult(found)


def catalog(settings: Settings) -> CheckResult:
    """Check that the catalog answers and is current, and that its database can be written (not for Glue)."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from fruits.lake.reader import open_read_only
    from fruits.lake.rebuild import check_catalog_is_current

    lake = open_read_only(settings)
    check_catalog_is_current(lake)
    opened = lake.catalog
    if settings.catalog_kind == "glue":
        return CheckResult(
            f"Glue database {settings.namespace!r} can be read; only a run shows whether the role may write"
        )
    engine: Any = vars(opened)["engine"]
    database = f"{settings.catalog_uri.get_secret_value().rpartition('@')[2]}, {settings.catalog_name!r}"
    try:
        with engine.connect() as connection:
            connection.execute(text("UPDATE iceberg_tables SET table_name = table_name WHERE 1 = 0"))
            connection.rollback()
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        fix = "grant the database's user the right to write"
        return CheckResult(f"{database}: can be read, not written: {reason}", "fail", fix)
    return CheckResult(f"{database} can be read and written")


def lake(settings: Settings) -> CheckResult:
    """Check that files can be written to the lake and removed; a file stays only if its removal is denied."""
    if settings.lake_kind == "file":
        folder = Path(unquote(urlsplit(settings.lake).path))
        if not folder.is_dir():
            return CheckResult(
                f"there is no folder {folder}", "fail", "check FRUITS_LAKE; the first run makes the folder"
            )
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"?")
        except OSError as error:
            fix = "check who may write to the folder, and how much room the disk has"
            return CheckResult(f"{folder}: {error.strerror}", "fail", fix)
        return CheckResult(f"{folder} can be written")
    from fruits.stores import check_lake

    check_lake(settings, "doctor")
    return CheckResult(f"{settings.lake} can be written, read, listed and emptied")


def lake_of_bucket(settings: Settings) -> CheckResult:
    """Check that the lake holds this bucket's photos."""
    from fruits.lake.reader import open_read_only
    from fruits.lake.source import PhotoSource, recorded_source

    recorded, source = recorded_source(open_read_only(settings)), PhotoSource.of(settings)
    if recorded is None:
        return CheckResult("the lake records no bucket yet; the first run does that")
    if recorded.agrees_with(source):
        return CheckResult(f"the lake holds the photos of {recorded}")
    fix = (
        "correct FRUITS_S3_ENDPOINT, FRUITS_BUCKET or FRUITS_PREFIX, or set FRUITS_LAKE and FRUITS_CATALOG_URI to "
        "another lake; `fruits move-photos` if the photos have moved"
    )
    return CheckResult(f"the lake holds the photos of {recorded}, not of {source}", "fail", fix)


def pin(settings: Settings) -> CheckResult:
    """Check whether readers are pinned to a publication; runs then publish nothing."""
    from fruits.lake.reader import open_read_only
    from fruits.run.pin import current_pin

    open_read_only(settings)  # raises without a lake, for which current_pin would make the folder
    current = current_pin(settings)
    if current is None:
        return CheckResult("none; readers see each new publication")
    return CheckResult(str(current), "warn", "`fruits unpin` lets runs publish again")


def backbone(settings: Settings) -> CheckResult:
    """Check that the backbone of the settings is staged, and that its files agree with its card."""
    from fruits.backbones.stage import described_backbone, load_backbone, staged_card
    from fruits.lake.reader import open_read_only

    open_read_only(settings)
    card = staged_card(settings)
    if card is None:
        found = f"{described_backbone(settings)} is not staged"
        return CheckResult(found, "warn", "the next run builds the backbone; or: python -m fruits.backbones.stage")
    load_backbone(settings, card.model_id)
    return CheckResult(f"{card.model_id}: staged, with the right checksum")


def queue(settings: Settings) -> CheckResult:
    """Check that the queue of events answers; count its messages."""
    if not settings.event_queue:
        return CheckResult("FRUITS_EVENT_QUEUE is unset: photos wait for the hourly sweep")
    from botocore.exceptions import BotoCoreError, ClientError

    from fruits.denials import denials_explained
    from fruits.stores import aws_session

    parts, region = urlsplit(settings.event_queue), queue_region(settings.event_queue)
    endpoint = None if region else f"{parts.scheme}://{parts.netloc}"
    client = aws_session().client("sqs", region_name=region or settings.s3_region, endpoint_url=endpoint)
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    try:
        with denials_explained():
            answer = client.get_queue_attributes(QueueUrl=settings.event_queue, AttributeNames=names)
    except (BotoCoreError, ClientError) as error:
        return CheckResult(f"{settings.event_queue}: {error}", "fail", "check FRUITS_EVENT_QUEUE")
    waiting, in_flight = (int(answer["Attributes"][name]) for name in names)
    found = f"{settings.event_queue}: {waiting:,} messages wait, {in_flight:,} are in flight"
    if waiting > MANY_MESSAGES:
        return CheckResult(found, "warn", "check that the DAG is on, and that Airflow's triggerer runs")
    return CheckResult(found)


def worst(findings: Iterable[Finding]) -> State:
    """The worst state among the findings."""
    states = {finding.state for finding in findings}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)  # noqa: S603
    return done.stdout + done.stderr
