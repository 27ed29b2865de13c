"""Checks of everything that a run needs; each says what was found and, when that is not right, what to do.

No check can stop another one: an error is a finding, and one that takes too long is given up.
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
from fruits.settings import DagSettings, Settings, public_uri, queue_region

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
    """What a check found; ``fix`` says what to do, None when all is well."""

    check: str
    state: State
    found: str
    fix: str | None = None

    def to_document(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A check by name. ``look`` returns what it found, with state and fix; it may raise ``FruitsError``."""

    name: str
    look: Callable[[], "Found"]
    seconds: float = _SECONDS


@dataclass(frozen=True)
class Found:
    """What ``Check.look`` returns."""

    found: str
    state: State = "ok"
    fix: str | None = None


def examine(checks: Sequence[Check]) -> list[Finding]:
    """Do the checks at once; the findings are in their order."""
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
            found = check.look()
    except FruitsError as error:
        return Finding(check.name, "fail", str(error), "see what it says")
    except Exception as error:  # noqa: BLE001 -- whatever breaks a check is what it found
        reason = " ".join(str(error).partition("\n")[0].split())
        return Finding(check.name, "fail", f"{type(error).__name__}: {reason}", "look at what it names")
    return Finding(check.name, found.state, found.found, found.fix)


def _given_up(check: Check) -> Finding:
    return Finding(
        check.name,
        "fail",
        f"no answer within {check.seconds:.0f} s",
        "see whether the server answers and the disk works",
    )


def machine_checks(settings: DagSettings, root: Path = ROOT) -> list[Check]:
    """Checks of this machine, which need no lake: Java, Spark, both environments, memory, disk."""
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
    """Checks of bucket, catalog, lake, backbone and queue."""
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


def java(jobs: Path) -> Found:
    """The Java that spark-submit runs on: its launcher names one, else that of the environment."""
    fix = f"install Java {OLDEST_JAVA} or newer and run `make setup`"
    launcher = jobs / "bin" / "spark-submit"
    if not launcher.is_file():
        return Found(f"no {launcher}", "fail", "run `make setup`, or set FRUITS_JOBS_ENV")
    named = re.search(r"^export JAVA_HOME=(.+)$", launcher.read_text(errors="replace"), re.MULTILINE)
    home = shlex.split(named[1])[0] if named else os.environ.get("JAVA_HOME")
    program = f"{home}/bin/java" if home else shutil.which("java")
    if program is None:
        return Found("neither JAVA_HOME nor PATH has a Java", "fail", fix)
    try:
        said = _run(program, "-XshowSettings:properties", "-version")
    except OSError as error:
        return Found(f"{program}: {error.strerror}", "fail", fix)
    version = re.search(r"java\.specification\.version = (?:1\.)?(\d+)", said)
    if version is None:
        return Found(f"{program} does not say its version", "fail", fix)
    if int(version[1]) < OLDEST_JAVA:
        return Found(f"Java {version[1]} ({program})", "fail", fix)
    return Found(f"Java {version[1]} ({program})")


def spark_jars(jobs: Path, root: Path) -> Found:
    """Whether Spark has the jars of ``requirements/jars.txt``; without that file, any Iceberg runtime."""
    folder = next(jobs.glob("lib/python3*/site-packages/pyspark/jars"), None)
    if folder is None:
        return Found(f"no pyspark in {jobs}", "fail", "run `make setup`, or set FRUITS_JOBS_ENV")
    table = root / "requirements" / "jars.txt"
    wanted = re.findall(r"^[\w.-]+:([\w.-]+):([\w.-]+)\s", table.read_text(), re.MULTILINE) if table.is_file() else []
    names = [f"{artifact}-{version}.jar" for artifact, version in wanted] or ["iceberg-spark-runtime-*.jar"]
    missing = [name for name in names if not any(jar.exists() for jar in folder.glob(name))]
    if missing:
        return Found(f"missing in {folder}: {', '.join(missing)}", "fail", "run `make setup`")
    return Found(f"{len(names)} in {folder}")


def python(folder: Path) -> Found:
    """The Python of a virtual environment."""
    program = folder / "bin" / "python"
    fix = "run `make setup`, or set FRUITS_JOBS_ENV"
    if not program.is_file():
        return Found(f"no {program}", "fail", fix)
    version = tuple(int(part) for part in _run(str(program), "--version").split()[-1].split(".")[:2])
    oldest, newest = PYTHONS
    shown = f"Python {'.'.join(map(str, version))} ({program})"
    if oldest <= version <= newest:
        return Found(shown)
    return Found(shown, "fail", f"make setup PYTHON=python3.{oldest[1]}")


def packages(folder: Path, root: Path, name: str) -> Found:
    """Whether an environment has the packages of its lock, in those versions."""
    from importlib.metadata import distributions

    from packaging.utils import canonicalize_name

    lock = root / "requirements" / f"{name}.txt"
    site = next(folder.glob("lib/python3*/site-packages"), None)
    if site is None:
        return Found(f"no packages in {folder}", "fail", "run `make setup`")
    if not lock.is_file():
        return Found(f"there is no {lock} to compare with", "warn", "install from the project's locks")
    installed: dict[str, str] = {canonicalize_name(one.name): one.version for one in distributions(path=[str(site)])}
    wanted = _pins(lock)
    wrong = [
        f"{package} {installed.get(package, 'is missing')} instead of {version}"
        for package, version in wanted.items()
        if installed.get(package) != version
    ]
    if wrong:
        more = f" and {len(wrong) - _MOST_SHOWN} more" if len(wrong) > _MOST_SHOWN else ""
        return Found(f"{'; '.join(wrong[:_MOST_SHOWN])}{more}", "fail", "run `make setup`")
    return Found(f"{len(wanted)} as locked")


def _pins(lock: Path) -> dict[str, str]:
    """The packages of a lock with their versions, those that this machine is to have."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (line.rstrip(" \\") for line in lock.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line))
    requirements = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): next(iter(one.specifier)).version
        for one in requirements
        if one.marker is None or one.marker.evaluate()
    }


def memory(driver: str) -> Found:
    """Whether a Spark driver fits beside what runs."""
    text = Path("/proc/meminfo").read_text()
    available = int(re.findall(r"MemAvailable:\s+(\d+)", text)[0]) * 1024
    needed = int(driver[:-1]) * (1024**3 if driver.endswith("g") else 1024**2)
    shown = f"{available / 1e9:.1f} GB free, a Spark driver takes up to {needed / 1e9:.1f} GB"
    if available < needed:
        return Found(shown, "warn", "end other programs, or lower FRUITS_SPARK_DRIVER_MEMORY")
    return Found(shown)


def disk(folder: Path) -> Found:
    """The room there is where ``folder`` is."""
    free = shutil.disk_usage(folder).free
    shown = f"{free / 1e9:.1f} GB free at {folder}"
    if free < LOW_DISK_BYTES:
        return Found(shown, "fail" if free < LEAST_DISK_BYTES else "warn", "make room, or put it on a larger disk")
    return Found(shown)


# What a run works with


def credentials() -> Found:
    """Where boto3 finds AWS credentials."""
    from fruits.stores import aws_session

    found = aws_session().get_credentials()
    if found is None:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
        return Found("there are no AWS credentials", "fail", fix)
    return Found(f"found by {found.method}")


def bucket(settings: Settings) -> Found:
    """Whether the bucket can be listed and an object in it read."""
    from fruits.photos.listing import first_photos
    from fruits.stores import check_photos

    first = first_photos(settings, settings.prefix)[:_PHOTOS_ASKED]
    place = f"s3://{settings.bucket}/{settings.prefix}"
    if not first:
        return Found(f"{place} is empty", "warn", "upload photos as [Training|Test]/<label>/<file>")
    check_photos(settings, (item.key for item in first if item.size))
    return Found(f"{place} can be listed, and photos there be read")


def clock(settings: Settings) -> Found:
    """How far this machine's clock is from the S3 server's."""
    from botocore.exceptions import ClientError

    from fruits.stores import list_client, list_requester

    try:
        answer = list_client(settings).list_objects_v2(Bucket=settings.bucket, MaxKeys=1, **list_requester(settings))
    except ClientError as error:  # an error tells the time, too
        answer = error.response
    headers: Mapping[str, str] = answer["ResponseMetadata"].get("HTTPHeaders", {})
    if "date" not in headers:
        return Found("the S3 server does not tell the time", "warn", "compare the clocks by hand")
    skew = abs((datetime.now(UTC) - parsedate_to_datetime(headers["date"])).total_seconds())
    shown = f"{skew:.0f} s from the S3 server's"
    if skew > SKEW_WARN_SECONDS:
        return Found(shown, "fail" if skew > SKEW_FAIL_SECONDS else "warn", "set the clock: timedatectl set-ntp true")
    return Found(shown)


def catalog(settings: Settings) -> Found:
    """Whether the catalog answers and, where a look can tell, may be written."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from fruits.lake.reader import open_read_only
    from fruits.lake.rebuild import check_catalog_is_current

    lake = open_read_only(settings)
    check_catalog_is_current(lake)
    opened = lake.catalog
    if settings.catalog_kind == "glue":
        return Found(f"Glue database {settings.namespace!r} can be read; only a run shows whether it may be written")
    engine: Any = vars(opened)["engine"]
    shown = f"{settings.catalog_uri.get_secret_value().rpartition('@')[2]}, {settings.catalog_name!r}"
    try:
        with engine.connect() as connection:
            connection.execute(text("UPDATE iceberg_tables SET table_name = table_name WHERE 1 = 0"))
            connection.rollback()
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        return Found(f"{shown}: can be read, not written: {reason}", "fail", "see who may write to the database")
    return Found(f"{shown} can be read and written")


def lake(settings: Settings) -> Found:
    """Whether files can be written to the lake, and removed; leaves nothing behind unless removing is denied."""
    if settings.lake_kind == "file":
        folder = Path(unquote(urlsplit(settings.lake).path))
        if not folder.is_dir():
            return Found(f"there is no folder {folder}", "fail", "check FRUITS_LAKE; the first run makes it")
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"?")
        except OSError as error:
            return Found(f"{folder}: {error.strerror}", "fail", "see who may write there, and how much room there is")
        return Found(f"{folder} can be written")
    from fruits.stores import check_lake

    check_lake(settings, "doctor")
    return Found(f"{settings.lake} can be written, read, listed and cleaned up")


def lake_of_bucket(settings: Settings) -> Found:
    """Whether the lake holds this bucket's photos."""
    from fruits.lake.reader import open_read_only
    from fruits.lake.source import PhotoSource, recorded_source

    recorded, source = recorded_source(open_read_only(settings)), PhotoSource.of(settings)
    if recorded is None:
        return Found("it is bound to no bucket yet; the first run does that")
    if recorded.agrees_with(source):
        return Found(f"it holds the photos of {recorded}")
    fix = (
        "correct FRUITS_S3_ENDPOINT, FRUITS_BUCKET or FRUITS_PREFIX, or set FRUITS_LAKE and FRUITS_CATALOG_URI to "
        "another lake; `fruits move-photos` if the photos have moved"
    )
    return Found(f"it holds the photos of {recorded}, not of {source}", "fail", fix)


def pin(settings: Settings) -> Found:
    """Whether readers are pinned to a publication: runs then publish nothing."""
    from fruits.lake.reader import open_read_only
    from fruits.run.pin import current_pin

    open_read_only(settings)  # to look for a pin makes the lake's folder
    pinned = current_pin(settings)
    if pinned is None:
        return Found("readers follow each run")
    return Found(str(pinned), "warn", "`fruits unpin` lets runs publish again")


def backbone(settings: Settings) -> Found:
    """Whether the backbone of the settings is staged and is what its card says."""
    from fruits.backbones.stage import load_backbone, staged_card
    from fruits.lake.reader import open_read_only

    open_read_only(settings)
    card = staged_card(settings)
    if card is None:
        found = f"{settings.backbone} with weights {public_uri(settings.weights)} is not staged"
        return Found(found, "warn", "the next run builds it; or: python -m fruits.backbones.stage")
    load_backbone(settings, card.model_id)
    return Found(f"{card.model_id}: staged, and its checksum is right")


def queue(settings: Settings) -> Found:
    """Whether the queue of events is there, and how many messages wait in it."""
    if not settings.event_queue:
        return Found("none configured: photos wait for the hourly sweep")
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
        return Found(f"{settings.event_queue}: {error}", "fail", "check FRUITS_EVENT_QUEUE")
    waiting, in_flight = (int(answer["Attributes"][name]) for name in names)
    shown = f"{settings.event_queue}: {waiting:,} messages wait, {in_flight:,} are being handled"
    if waiting > MANY_MESSAGES:
        return Found(shown, "warn", "see that the DAG is not paused and Airflow's triggerer runs")
    return Found(shown)


def worst(findings: Iterable[Finding]) -> State:
    """The worst state of all."""
    states = {finding.state for finding in findings}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)  # noqa: S603
    return done.stdout + done.stderr
