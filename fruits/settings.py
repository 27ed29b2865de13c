"""All settings, in one place: environment variables ``FRUITS_*``, read once at the edge of each program."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fruits.errors import FruitsError

_SPLITS = r"(?:train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|dev|eval(?:uation)?)(?:[ _-]?(?:set|split|images))?"
DEFAULT_KEY_PATTERN = (
    # The first date and the last split among the folders, wherever they stand. The label is the last other folder.
    r"(?i)(?:(?=(?:.*?/)??dt=(?P<date>\d{4}-\d{2}-\d{2})/))?"
    rf"(?:(?=(?:.*/)?(?:split=)?(?P<split>{_SPLITS})/))?"
    rf"(?:.*/)?(?P<label>(?!{_SPLITS}/)[^/=]+)/(?:(?:split=)?{_SPLITS}/)*(?P<file>[^/]+)"
)

Precision = Literal["fp32", "int8"]
"""Arithmetic of a backbone: floating point numbers of 32 bits, or integers of 8 bits."""


class DagSettings(BaseSettings):
    """What a DAG file needs to know when it is parsed: how Spark jobs are submitted, events, alerts."""

    model_config = SettingsConfigDict(env_prefix="FRUITS_", frozen=True, extra="ignore", env_ignore_empty=True)

    jobs_env: Path = Field(
        default=Path(__file__).parents[1] / ".venvs" / "jobs",
        description="Virtual environment of the Spark jobs: spark-submit and builds of backbones run in it.",
    )
    spark_driver_memory: str = Field(
        default="2g", pattern=r"^\d+[mg]$", description="Memory of each Spark job's driver."
    )
    engine: Literal["spark-submit", "emr-serverless"] = Field(
        default="spark-submit",
        description="What runs the Spark jobs: `spark-submit`, on this machine or on the cluster of the connection "
        "`spark_default`, or `emr-serverless` (docs/emr-serverless.md).",
    )
    emr_application: str | None = Field(
        default=None, pattern=r"^[0-9a-z]{1,64}$", description="EMR Serverless: id of the application."
    )
    emr_role: str | None = Field(
        default=None,
        pattern=r"^arn:aws[a-zA-Z0-9-]*:iam::\d{12}:role/.+$",
        description="EMR Serverless: ARN of the role that the jobs work as.",
    )
    emr_code: str | None = Field(
        default=None,
        description="EMR Serverless: `s3://bucket/prefix` that holds `spark_jobs/` and `jobs-env.tar.gz`.",
    )
    emr_jars: str = Field(
        default="/usr/share/aws/iceberg/lib/iceberg-spark3-runtime.jar",
        description="EMR Serverless: Iceberg's jars for the Spark of the application's release, separated by commas; "
        "the default is where a release keeps its own.",
    )
    emr_logs: str | None = Field(
        default=None,
        description="EMR Serverless: `s3://bucket/prefix` for the jobs' logs. Unset: the service keeps them.",
    )
    spark_history: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="URL of Spark's history server, which the tasks of Spark jobs link to in Airflow's UI.",
    )
    service_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="URL of the service (`fruits serve`), which Airflow's route `POST /fruits/identify` asks "
        "([service.md](service.md)).",
    )
    event_queue: str | None = Field(
        default=None,  # one that is wrong must not stop the hourly sweep: whoever watches it says so
        description="URL of the SQS queue with the bucket's notifications. Unset: photos wait for the next sweep.",
    )
    sweep_hours: int = Field(
        default=1,
        ge=1,
        le=24,
        description="Hours between two sweeps, which find what events have missed: 1, 2, 3, 4, 6, 8, 12 or 24.",
    )
    alert_sns_topic: str | None = Field(
        default=None,
        pattern=r"^arn:[^:]+:sns:",
        description="ARN of the SNS topic that alerts go to, by the connection `aws_default`.",
    )
    alert_slack_channel: str | None = Field(
        default=None, description="Slack channel that alerts go to, by the connection `slack_api_default`."
    )
    alert_email: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Addresses that alerts go to, separated by commas, by the connection `smtp_default`.",
    )
    alert_after_hours: int = Field(
        default=6,
        ge=1,
        description="Alert when no run has brought the tables up to date for so many hours, or since the next sweep "
        "was due.",
    )

    @property
    def stale_hours(self) -> int:
        """After so many hours without a sweep that succeeded, an alert says so."""
        return max(self.alert_after_hours, self.sweep_hours + 1)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings; ``overrides`` win over the environment.

        Raises:
            FruitsError: naming each variable that is missing or wrong, with what was expected.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            problems = "\n".join(f"  {_problem(detail)}" for detail in error.errors())
            message = f"Settings are not usable; mend these environment variables (docs/configuration.md):\n{problems}"
            raise FruitsError(message) from None

    @classmethod
    def of_alerts(cls) -> "DagSettings":
        """The settings for alerts: a wrong setting counts as unset, because an alert has to tell of that setting."""
        try:
            return DagSettings()
        except ValidationError as error:
            wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
            defaults = {name: DagSettings.model_fields[name].default for name in wrong}
            return DagSettings(**{**defaults, "engine": "spark-submit"})

    @field_validator("sweep_hours")
    @classmethod
    def _divides_a_day(cls, hours: int) -> int:
        if 24 % hours:
            raise ValueError("expected hours that divide a day")
        return hours

    @field_validator("emr_code", "emr_logs", "inventory", check_fields=False)
    @classmethod
    def _is_a_prefix_in_s3(cls, uri: str | None) -> str | None:
        if uri is not None and not re.match("s3://[^/]", uri):
            raise ValueError("expected s3://bucket/prefix")
        return uri.rstrip("/") if uri else None

    @model_validator(mode="after")
    def _emr_serverless_is_described(self) -> Self:
        needed = ("emr_application", "emr_role", "emr_code")
        unset = [f"FRUITS_{name.upper()}" for name in needed if getattr(self, name) is None]
        if self.engine == "emr-serverless" and unset:
            raise ValueError(
                f"{', '.join(unset)}: not set, and FRUITS_ENGINE=emr-serverless needs it; see docs/emr-serverless.md"
            )
        return self

    @field_validator("labels", "ignore", "weights_from", "alert_email", mode="before", check_fields=False)
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Settings(DagSettings):
    """Settings of the whole project; ``Settings.load()`` reads them and explains what is wrong with them."""

    bucket: str = Field(default="fruits", min_length=3, description="S3 bucket that holds the photos.")
    prefix: str = Field(default="", description="Only keys that start with this are photos of ours.")
    key_pattern: str = Field(
        default=DEFAULT_KEY_PATTERN,
        description="Regular expression for a whole object key, with the named group `label` and, optionally, `split`, "
        "`date` (YYYY-MM-DD) and `group`: photos of one group, such as the shots of one fruit, share one split.",
    )
    holdout_share: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of the photos held out where the key names no split; chosen by a hash of the key, or of its "
        "label and `group`.",
    )
    labels: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="The labels that may occur, separated by commas. Empty: any label may.",
    )
    ignore: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("default",),
        description="Objects that are none of ours, separated by commas: a folder (`scratch/`) or a file's name "
        "(`*.bak`), with `*` and `?`. `default` stands for the rules in [data.md](data.md), `none` for no rule.",
    )

    s3_endpoint: str | None = Field(default=None, description="URL of the S3 server; unset means AWS.")
    s3_region: str = Field(default="us-east-1", description="Region of the S3 server, of Glue and of EMR Serverless.")
    s3_timeout_seconds: int = Field(
        default=60, ge=1, le=600, description="How long one answer of the S3 server may take, in seconds."
    )
    s3_retry_seconds: int = Field(
        default=90,
        ge=1,
        le=240,
        description="How long a request without an answer is tried again, in seconds. When the server has answered no "
        "GET of a Spark worker for so long, the worker's other photos stay pending.",
    )
    requester_pays: bool = Field(
        default=False,
        description="Whether we pay for requests to the bucket of photos, as a requester-pays bucket asks.",
    )

    listing: Literal["list", "inventory", "metadata"] = Field(
        default="list",
        description="What tells a sweep which objects the bucket holds: `list` lists the bucket, `inventory` reads the "
        "newest report of S3 Inventory, `metadata` the live inventory table of S3 Metadata.",
    )
    inventory: str | None = Field(
        default=None,
        description="Folder of the reports: `s3://bucket/prefix/<bucket of photos>/<id of the inventory>`.",
    )
    metadata_table: str | None = Field(
        default=None,
        pattern=r"^arn:aws[a-zA-Z0-9-]*:s3tables:[a-z0-9-]+:\d{12}:bucket/[a-z0-9_-]{3,63}$",
        description="ARN of the table bucket with the bucket's live inventory table: "
        "`arn:aws:s3tables:us-east-1:123456789012:bucket/aws-s3`.",
    )

    lake: str = Field(
        description="Where tables, backbones, manifests and run documents live: `file:///folder` or `s3://bucket/prefix`."
    )
    catalog_uri: SecretStr = Field(
        description="The Iceberg catalog: `sqlite:////folder/catalog.db`, "
        "`postgresql://user:password@host:5432/database`, or AWS Glue: `glue://`, `glue://123456789012` for that of "
        "another account."
    )
    catalog_name: str = Field(
        default="fruits",
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$",
        description="Name of the catalog. It is part of every table's identity (not in Glue): another name shows an "
        "empty catalog.",
    )
    namespace: str = Field(
        default="fruits",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="Iceberg namespace of the tables; in Glue, the database.",
    )

    backbone: str = Field(
        default="efficientnet-lite0",
        description="`efficientnet-lite0`, or the name of a `keras.applications` model such as `MobileNetV2`, which "
        "TensorFlow has to build (`make setup-tensorflow`).",
    )
    weights: str = Field(
        default="default",
        repr=False,  # an address may hold a signature
        description="`default` (the package's for efficientnet-lite0, `imagenet` for a Keras model), `imagenet`, "
        "`random`, a path, or an `https://`, `s3://` or `file://` URI of a weights file. `#sha256=<digest>` at the end "
        "has the file checked.",
    )
    precision: Precision = Field(
        default="fp32",
        description="Arithmetic of the backbone: `fp32`, or `int8`, which rounds and takes about half the time. "
        "Another precision is another backbone: see [operations.md](operations.md).",
    )
    weights_from: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Where weights files may come from, separated by commas: folders (`/srv/weights`, "
        "`s3://bucket/folder`, `https://host/folder`). Addresses of `https` and `s3` are refused elsewhere. A run's "
        "param `weights` may name a path elsewhere only when FRUITS_WEIGHTS is that path.",
    )

    max_photo_bytes: int = Field(default=50_000_000, gt=0, description="Larger photos are quarantined, in bytes.")
    max_photo_pixels: int = Field(default=100_000_000, gt=0, description="Photos with more pixels are quarantined.")
    gets_in_flight: int = Field(default=16, ge=1, le=256, description="Concurrent GETs of each Spark core.")
    few_photos: int = Field(
        default=200,
        ge=0,
        description="A run of at most so many photos is featurized by the driver itself, because executors take longer "
        "to start. `pca` does the same with ten times as many, and `validate` with 500 times as many. 0: the driver "
        "does none.",
    )
    photos_per_task: int = Field(default=2_000, ge=1, description="Most photos that one Spark task featurizes.")
    bytes_per_task: int = Field(
        default=2_000_000_000,
        ge=1_000_000,
        description="Most bytes of photos that one Spark task featurizes, on average; at least 1,000,000.",
    )
    chunk_photos: int = Field(
        default=20_000,
        ge=100,
        description="Most photos of a chunk, for each Spark core; at least 100. `featurize` commits its rows chunk by "
        "chunk; a retry goes on after the last chunk.",
    )
    chunk_bytes: int = Field(
        default=20_000_000_000,
        ge=1_000_000,
        description="Most bytes of photos of a chunk, for each Spark core; at least 1,000,000.",
    )
    core_hour_usd: float = Field(
        default=0.048,
        ge=0,
        description="Price of an hour of one core in USD, from which a run tells what a million photos cost.",
    )
    executor_seconds: int = Field(
        default=300, ge=1, description="How long a job waits for a cluster to give it an executor, in seconds."
    )

    n_components: int | float = Field(
        default=0.95,
        description="Components of the PCA: a count (an integer), or the share of variance to explain (0 to 1).",
    )
    max_components: int = Field(
        default=160, ge=1, description="Most components an explained variance target may choose."
    )
    refit_drift: float = Field(
        default=0.05,
        gt=0,
        description="Refit when new photos leave this much more of the variance unexplained than held-out ones did.",
    )
    refit_drift_rows: int = Field(default=50, ge=2, description="Fewest new photos that can show a drift.")
    refit_gain: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="A drift alone is a reason to refit only where a refit explains this much more of the variance.",
    )
    refit_growth: float = Field(
        default=2.0, gt=1, description="Refit when the fit split has grown or shrunk by this factor since the last fit."
    )

    min_explained_variance: float = Field(
        default=0.6, ge=0, le=1, description="Gate: least explained variance of the PCA in use."
    )
    max_quarantined_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Gate: largest share of all objects that may be in quarantine. With fewer than 1,000 objects the "
        "gate fails only if the whole 95 % interval of the share is larger.",
    )
    min_probe_ratio: float = Field(
        default=0.9,
        ge=0,
        description="Gate: least accuracy of the linear probe on embeddings, as a share of its accuracy on features. "
        "With fewer than 1,000 held-out photos the gate fails only if the whole 95 % interval is below; with fewer "
        "than 50 it only warns.",
    )
    probe_rows: int = Field(default=20_000, ge=100, description="Most photos the linear probe is fitted on.")

    max_deleted_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Deletions of more than this share of the rows within 24 hours, and of more than "
        "FRUITS_FEW_DELETIONS rows, wait for a person's approval.",
    )
    few_deletions: int = Field(
        default=50, ge=0, description="So many deletions within 24 hours need no approval, whatever their share."
    )
    max_deletions: int = Field(
        default=10_000, ge=0, description="More deletions than this within 24 hours wait for a person's approval."
    )
    keep_last_of_label: bool = Field(
        default=True, description="Deletions of the last photos of a label wait for a person's approval."
    )
    approval_rows: int = Field(
        default=100_000,
        ge=0,
        description="A rebuild, a refit and a switch of backbone wait for a person's approval when more rows than this "
        "are concerned.",
    )

    retention_days: int = Field(
        default=30, ge=1, description="Publications stay readable, and can be rolled back to, for so many days."
    )
    retention_publications: int = Field(
        default=10, ge=1, description="So many publications stay readable, however old they are."
    )
    verify_weekly: bool = Field(
        default=False,
        description="Whether each run of fruit_maintenance also compares all that is published with the bucket and "
        "with itself, as `fruits verify` does; the run is red when anything differs.",
    )
    index_folder: Path = Field(
        default=Path(__file__).parents[1] / "data" / "neighbours",
        description="Folder of this machine for the index that finds the nearest of very many photos; about 1 KB a "
        "photo. What is gone or damaged is built again.",
    )

    @field_validator("key_pattern")
    @classmethod
    def _names_a_label(cls, pattern: str) -> str:
        try:
            groups: Mapping[str, int] = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"expected a regular expression, but {error}") from None
        if "label" not in groups:
            raise ValueError("expected a named group for the label: (?P<label>...)")
        return pattern

    @field_validator("ignore")
    @classmethod
    def _are_names(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not pattern.rstrip("/") or "/" in pattern[:-1]:
                raise ValueError(
                    f"expected names of files (*.bak) and of folders (scratch/), but {pattern!r} is a path"
                )
        return patterns

    @field_validator("weights_from")
    @classmethod
    def _are_places(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        for place in places:
            if not re.match("/|(?:https|s3)://[^/]|file:///", place) or "#" in place or holds_secret(place):
                raise ValueError("expected absolute folders, https://host/folder or s3://bucket/folder")
        return places

    @field_validator("s3_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match("https?://[^/]", url):
            raise ValueError("expected a URL that starts with http:// or https://")
        return url

    @field_validator("lake")
    @classmethod
    def _lake_is_a_uri(cls, uri: str) -> str:
        parts = urlsplit(uri)
        if parts.scheme not in ("file", "s3") or (parts.scheme == "s3" and not parts.netloc):
            raise ValueError("expected file:///folder or s3://bucket/prefix")
        if parts.scheme == "file" and (parts.netloc or not re.match("/+[^/]", parts.path)):
            raise ValueError("expected an absolute folder: file:///folder")
        return uri.rstrip("/")

    @field_validator("n_components", mode="before")
    @classmethod
    def _count_or_share(cls, value: object) -> int | float:
        return count_or_share(value)

    @field_validator("catalog_uri")
    @classmethod
    def _catalog_is_one_we_know(cls, uri: SecretStr) -> SecretStr:
        if not _is_catalog(uri.get_secret_value()):
            raise ValueError(
                "expected sqlite:////absolute/path.db, postgresql://user:password@host:5432/database (special "
                "characters of the password percent-encoded), glue:// or glue://<account of 12 digits>"
            )
        return uri

    @model_validator(mode="after")
    def _emr_serverless_reaches_the_lake(self) -> Self:
        if self.engine != "emr-serverless":
            return self
        problems = []
        if self.lake_kind != "s3":
            problems.append(
                "FRUITS_LAKE: expected s3://bucket/prefix: EMR Serverless can't reach a folder of this machine"
            )
        if self.catalog_kind != "glue":
            problems.append(
                "FRUITS_CATALOG_URI: expected glue://: EMR Serverless can't reach a SQLite file, and a password of "
                "PostgreSQL would be readable for whoever may look at its jobs"
            )
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    @model_validator(mode="after")
    def _lake_and_photos_are_apart(self) -> Self:
        parts = urlsplit(self.lake)
        if self.lake_kind == "file" or parts.netloc != self.bucket:
            return self
        photos, lake = f"s3://{self.bucket}/{self.prefix}", f"{parts.path.strip('/')}/".lstrip("/")
        if lake.startswith(self.prefix):
            raise ValueError(
                f"FRUITS_LAKE: {self.lake} is among the photos, {photos}, so a run would take the lake's files for "
                "photos; set FRUITS_LAKE to another bucket, or FRUITS_PREFIX to the photos' own folder"
            )
        if self.prefix.startswith(lake):
            raise ValueError(
                f"FRUITS_PREFIX: the photos, {photos}, are inside the lake {self.lake}, where maintenance removes "
                "files; set FRUITS_LAKE to another bucket, or to a folder beside the photos"
            )
        return self

    @model_validator(mode="after")
    def _listing_has_its_source(self) -> Self:
        needed = {"inventory": self.inventory, "metadata": self.metadata_table}
        variable = {"inventory": "FRUITS_INVENTORY", "metadata": "FRUITS_METADATA_TABLE"}
        if self.listing != "list" and needed[self.listing] is None:
            raise ValueError(
                f"{variable[self.listing]} is not set, and FRUITS_LISTING={self.listing} needs it; see "
                "docs/operations.md"
            )
        photos, reports = f"s3://{self.bucket}/{self.prefix}", f"{self.inventory}/"
        if self.inventory and reports.startswith(photos):
            raise ValueError(
                f"FRUITS_INVENTORY: {self.inventory} is among the photos, {photos}, so a run would take reports for "
                "photos; have S3 write the reports to another bucket"
            )
        return self

    def for_executors(self) -> Self:
        """These settings without what no executor needs: the catalog with its password, the weights' address."""
        return self.model_copy(update={"catalog_uri": SecretStr(""), "weights": "default", "weights_from": ()})

    @property
    def catalog_kind(self) -> Literal["sqlite", "postgresql", "glue"]:
        """What keeps the catalog."""
        return urlsplit(self.catalog_uri.get_secret_value()).scheme  # type: ignore[return-value]

    @property
    def glue_account(self) -> str | None:
        """The account whose Glue keeps the catalog, where it is another's."""
        return urlsplit(self.catalog_uri.get_secret_value()).netloc or None if self.catalog_kind == "glue" else None

    @property
    def warehouse(self) -> str:
        """URI of the folder that holds the tables' files."""
        return f"{self.lake}/tables"

    @property
    def lake_kind(self) -> Literal["file", "s3"]:
        """``file`` or ``s3``."""
        return "s3" if self.lake.startswith("s3://") else "file"


def queue_region(url: str) -> str | None:
    """The region that a queue of AWS is in, by its URL; None for one behind another endpoint."""
    words = (urlsplit(url).hostname or "").split(".")
    return words[1] if words[0] == "sqs" and "amazonaws" in words[2:] else None


def _is_catalog(uri: str) -> bool:
    """Whether ``uri`` is a catalog's. A password may stand in its own place only, so that messages can leave it out."""
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018 reading it checks it
    except ValueError:  # its text may have a part of the password
        return False
    if parts.scheme == "sqlite":
        return not parts.netloc and parts.path.startswith("//")
    if parts.scheme == "postgresql":
        return bool(parts.hostname) and len(parts.path) > 1 and "password" not in unquote(parts.query).lower()
    return re.fullmatch(r"glue://(\d{12})?", uri) is not None


def public_uri(uri: str) -> str:
    """``uri`` without what may be secret: user and password, the query (a signature) and the fragment.

    A name or a path stays as it is.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    place, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def holds_secret(uri: str) -> bool:
    """Whether ``uri`` has a user, a password or a query, any of which may be secret."""
    return "://" in uri and public_uri(uri) != uri.partition("#")[0]


def count_or_share(value: Any) -> int | float:
    """``n_components`` of a PCA: a count of components, or the share of variance that they are to explain.

    Raises:
        ValueError: when it is neither.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if 0 < number < 1:
        return number
    if number >= 1 and number.is_integer():
        return int(number)
    raise ValueError("expected a count (1, 2, ...) or a share of variance between 0 and 1")


def _problem(detail: Mapping[str, Any]) -> str:
    """One line for one invalid setting: the variable, what is wrong, what it is for."""
    if not detail["loc"]:  # several settings that do not go together: the message names them
        return str(detail["msg"]).removeprefix("Value error, ")
    name = str(detail["loc"][0])
    field = Settings.model_fields.get(name)
    variable = f"FRUITS_{name.upper()}"
    purpose = field.description if field else ""
    if detail["type"] == "missing":
        return f"{variable} is not set. {purpose}"
    given = detail.get("input")
    given = public_uri(given) if isinstance(given, str) else given
    shown = "" if name in ("catalog_uri", "weights_from") else f" is {given!r}:"
    return f"{variable}{shown} {detail['msg'].removeprefix('Value error, ')}. {purpose}"
