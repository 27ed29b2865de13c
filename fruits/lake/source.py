"""Where a lake's photos are: the lake records S3 server, bucket and prefix, and a run refuses any others.

A run compares the whole listing with the tables. A wrong endpoint, bucket or prefix would look like deleted photos.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.settings import Settings

_BUCKET, _SERVER, _PREFIX = "fruits.bucket", "fruits.photos-server", "fruits.photos-prefix"
_MOVED = "fruits.photos-moved"
_AWS = "AWS"
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class PhotoSource:
    """S3 server, bucket and prefix of a lake's photos; server and prefix are None where the lake does not say."""

    bucket: str
    server: str | None
    prefix: str | None

    @classmethod
    def of(cls, settings: Settings) -> "PhotoSource":
        """The source that the settings name."""
        return cls(settings.bucket, _server(settings.s3_endpoint), settings.prefix)

    def __str__(self) -> str:
        """For messages: ``s3://fruits/photos/ on AWS``."""
        return f"s3://{self.bucket}/{self.prefix or ''}" + (f" on {self.server}" if self.server else "")

    def agrees_with(self, other: "PhotoSource") -> bool:
        """Whether both are the same, as far as this one says."""
        return (
            self.bucket == other.bucket
            and self.server in (None, other.server)
            and (self.prefix is None or self.prefix == other.prefix)
        )


def recorded_source(lake: Lake) -> PhotoSource | None:
    """The source that the lake records; None when the lake is new. Releases up to 0.2.0 recorded the bucket alone."""
    properties = lake.properties()
    if _BUCKET not in properties:
        return None
    return PhotoSource(properties[_BUCKET], properties.get(_SERVER), properties.get(_PREFIX))


def check_source(lake: Lake) -> None:
    """See that the settings name the photos that the lake holds; a new lake takes any. Writes nothing.

    Raises:
        FruitsError: when the lake holds other photos: reconciling would remove all of them. Also when the catalog's
            tables are another lake's.
    """
    lake.check_location()
    recorded, source = recorded_source(lake), PhotoSource.of(lake.settings)
    if recorded is not None and not recorded.agrees_with(source):
        raise FruitsError(
            f"lake {lake.settings.lake} holds the photos of {recorded}, not of {source}; a run would take the photos "
            "that are not there for deleted. Correct FRUITS_S3_ENDPOINT, FRUITS_BUCKET or FRUITS_PREFIX, or set "
            "FRUITS_LAKE and FRUITS_CATALOG_URI to another lake. If the photos have moved for good: "
            "`fruits move-photos`"
        )


def bind_source(lake: Lake) -> None:
    """Check the source, and record the parts of it that the lake lacks.

    Raises:
        FruitsError: as ``check_source`` does.
    """
    check_source(lake)
    source = PhotoSource.of(lake.settings)
    if recorded_source(lake) != source:
        lake.set_properties(_properties(source))


def move_source(lake: Lake, by: str, why: str, now: datetime | None = None) -> None:
    """Record the source of the settings as the lake's, and the person, time and reason of the decision."""
    moved = {
        "from": str(recorded_source(lake)),
        "by": by,
        "why": why,
        "at": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
    }
    source = PhotoSource.of(lake.settings)
    lake.set_properties({**_properties(source), _MOVED: json.dumps(moved, ensure_ascii=False)})


def _properties(source: PhotoSource) -> dict[str, str]:
    return {_BUCKET: source.bucket, _SERVER: source.server or "", _PREFIX: source.prefix or ""}


def _server(endpoint: str | None) -> str:
    """A lasting name of the server: the ports of a local S3 server change, and AWS has many endpoints."""
    parts = urlsplit(endpoint or "")
    host = (parts.hostname or "").lower()
    if not host or host.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return _AWS
    if host in _THIS_MACHINE:
        return "this machine"
    return f"{host}:{parts.port}" if parts.port else host
