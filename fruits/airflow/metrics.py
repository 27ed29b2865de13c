"""Metrics by Airflow's own settings (``[metrics]``: StatsD, OpenTelemetry), sent by the processes of the tasks.

All are gauges named ``fruits.<name>``; ``fruits.gate`` has the tag ``gate``. Without such a setting Airflow drops them.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from airflow.sdk.observability import stats

if TYPE_CHECKING:
    from fruits.lake.publication import Publication
    from fruits.run.documents import RunDocuments, TaskName
    from fruits.serve.watch import Observation


class Gauge(NamedTuple):
    """A metric: name without ``fruits.``, value, tags."""

    name: str
    value: float
    tags: Mapping[str, str] = {}


def send(gauges: Iterator[Gauge]) -> None:
    """Send metrics to where Airflow's settings say."""
    for gauge in gauges:
        stats.gauge(f"fruits.{gauge.name}", gauge.value, tags=dict(gauge.tags))


def of_publication(publication: "Publication") -> Iterator[Gauge]:
    """What a publication holds: photos, deletions, pending photos, quarantined share."""
    counts = publication.counts or {}
    objects = counts.get("features", 0) + counts.get("quarantine", 0)
    yield Gauge("features", counts.get("features", 0))
    yield Gauge("deletions", counts.get("delete", 0))
    if publication.remaining is not None:
        yield Gauge("pending", publication.remaining)
    yield Gauge("quarantined_share", counts.get("quarantine", 0) / objects if objects else 0.0)


def of_job(job: "TaskName", documents: "RunDocuments") -> Iterator[Gauge]:
    """What a Spark job measured, also when a gate failed: img/s of ``featurize``, the gates' values of ``validate``."""
    if job == "featurize" and documents.featurized is not None:
        yield Gauge("images_per_second", documents.featurized.images_per_second)
    if job == "validate" and documents.validated is not None:
        for gate in documents.validated.gates:
            if gate.value is not None:
                yield Gauge("gate", float(gate.value), {"gate": gate.name})


def of_observation(observation: "Observation") -> Iterator[Gauge]:
    """What the watchdog sees: seconds since the tables were up to date, pending photos, findings apart."""
    freshness = observation.freshness
    if freshness is None:
        return
    yield Gauge("pending", freshness.pending)
    if freshness.last is not None:
        yield Gauge("tables_age_seconds", (observation.now - freshness.last).total_seconds())


def of_wait(since: datetime, now: datetime) -> Iterator[Gauge]:
    """How long a run waited for the lease, in seconds."""
    yield Gauge("lease_wait_seconds", (now - since).total_seconds())
