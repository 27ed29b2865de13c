"""Faults that no failed run would show: tables that no run keeps up to date, and a schedule that starts no run.

A paused DAG, a DAG file that cannot be imported or a typo in a setting starts no run, and hence sends no alert. The DAG
`fruit_watchdog` and `fruits doctor --stale` from cron look for such faults from outside.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice

from fruits.run import DAG_ID
from fruits.serve.doctor import Finding
from fruits.settings import Settings

LATE_SWEEP = timedelta(hours=3)
"""Sweeps are hourly, so a sweep that is so late means a fault."""


@dataclass(frozen=True)
class Freshness:
    """The age of the tables.

    Attributes:
        last: When a run last brought the tables up to date; None if no run ever did.
        since: When the oldest known run was planned; None without a run.
        pending: Number of photos that the newest plan left for later runs.
        empty: Whether bucket and tables are empty.
        pinned: Whether readers are pinned to a publication, so that no run may bring the tables up to date.
    """

    last: datetime | None = None
    since: datetime | None = None
    pending: int = 0
    empty: bool = False
    pinned: bool = False


@dataclass(frozen=True)
class Schedule:
    """Airflow's state of the DAG.

    Attributes:
        paused: Whether the DAG is paused.
        next_sweep: Start of the hour that the next sweep is for; None if Airflow plans no sweep.
        queued: Number of queued runs.
        running: Number of running runs.
        import_errors: For each DAG file that cannot be imported: the last line of the error.
    """

    paused: bool = False
    next_sweep: datetime | None = None
    queued: int = 0
    running: int = 0
    import_errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """The state at a moment. A part is None if it could not be read; ``errors`` has the reasons, by check."""

    now: datetime
    alert_after: timedelta
    freshness: Freshness | None = None
    schedule: Schedule | None = None
    errors: Mapping[str, str] = field(default_factory=dict)


def stale(observation: Observation) -> list[Finding]:
    """Return a finding with its fix for each fault; an empty list if there is no fault."""
    findings = [
        Finding(check, "fail", error, "fix the error; until then the watchdog cannot check the tables")
        for check, error in observation.errors.items()
    ]
    if observation.freshness is not None:
        findings += _stale_tables(observation.freshness, observation.now, observation.alert_after)
    if observation.schedule is not None:
        findings += _idle_schedule(observation.schedule, observation.now)
    return findings


def _stale_tables(freshness: Freshness, now: datetime, alert_after: timedelta) -> Iterator[Finding]:
    reference = freshness.last or freshness.since
    if freshness.empty or freshness.pinned or reference is None or now - reference <= alert_after:
        return
    hours = (now - reference) / timedelta(hours=1)
    last = f"{freshness.last:%Y-%m-%d %H:%M} UTC" if freshness.last else "never"
    pending = f"; {freshness.pending:,} photos are pending" if freshness.pending else ""
    found = (
        f"no run has brought the tables up to date for {hours:.0f} h; the last run that did so ended: {last}{pending}"
    )
    yield Finding("tables", "fail", found, "look at the newest runs: `fruits status`; readers see the last publication")


def _idle_schedule(schedule: Schedule, now: datetime) -> Iterator[Finding]:
    for file, error in schedule.import_errors.items():
        fix = "fix the file or the setting that the error names; until then Airflow starts no run of its DAG"
        yield Finding(f"import of {file}", "fail", error, fix)
    if schedule.paused:
        yield Finding("DAG", "fail", f"{DAG_ID} is paused, so no run starts", "switch the DAG on in Airflow's UI")
        return
    if schedule.next_sweep is not None and now - schedule.next_sweep > LATE_SWEEP:
        found = f"the sweep for the hour from {schedule.next_sweep:%Y-%m-%d %H:%M} UTC has not started"
        fix = f"check that the scheduler runs, and end runs of {DAG_ID} that wait for photos or are queued for days"
        yield Finding("sweeps", "fail", found, fix)
    if schedule.queued and not schedule.running:
        found = f"{schedule.queued} runs are queued and none runs"
        fix = (
            "a cleared run of a cancelled or paused backfill stays queued: mark the run as failed in Airflow's UI; "
            "otherwise check that the scheduler runs"
        )
        yield Finding("queue", "fail", found, fix)


@dataclass(frozen=True)
class News:
    """The changes of the findings since the last alert.

    Attributes:
        begun: Findings that no alert has named yet.
        over: Findings that an alert has named and that are over: text by check.
        alerted: Findings that alerts will have named after this change is sent: text by check.
    """

    begun: Sequence[Finding]
    over: Mapping[str, str]
    alerted: Mapping[str, str]

    def __bool__(self) -> bool:
        """Whether an alert is due."""
        return bool(self.begun or self.over)


def news(alerted: Mapping[str, str], findings: Sequence[Finding]) -> News:
    """Compare the findings with the alerted ones, so that each finding begins once and ends once."""
    current = {finding.check: alerted.get(finding.check, finding.found) for finding in findings}
    return News(
        begun=[finding for finding in findings if finding.check not in alerted],
        over={check: found for check, found in alerted.items() if check not in current},
        alerted=current,
    )


def observe_tables(settings: Settings) -> Freshness:
    """Read the age of the tables from the run documents, the newest run first, down to a run that was up to date.

    Raises:
        FruitsError: when the lake cannot be read.
    """
    from fruits.serve.freshness import up_to_date_at
    from fruits.serve.state import runs

    pending: int | None = None
    since = None
    for _, documents in runs(settings):
        if (planned := documents.planned) is not None:
            pending = int(planned.counts.get("pending", 0)) if pending is None else pending
            since = planned.planned_at
        if moment := up_to_date_at(documents, settings.prefix):
            return Freshness(moment, since, pending or 0)
    return Freshness(None, since, pending or 0)


def is_empty(settings: Settings) -> bool:
    """Whether bucket and tables are empty: no object under the prefix, and no row."""
    from fruits.lake.reader import NoLakeError, open_read_only
    from fruits.photos.listing import list_objects

    if next(islice(list_objects(settings, settings.prefix), 1), None) is not None:
        return False
    try:
        return not open_read_only(settings).holds(settings.prefix)
    except NoLakeError:
        return True


def observe(settings: Settings, schedule: Schedule | None, errors: Mapping[str, str]) -> Observation:
    """Read the lake's part of the observation; the caller has asked Airflow for ``schedule`` and ``errors``."""
    from fruits.denials import denials_explained
    from fruits.run.pin import current_pin

    all_errors = dict(errors)
    freshness = None
    now, alert_after = datetime.now(UTC), timedelta(hours=settings.stale_hours)
    try:
        with denials_explained():
            freshness = observe_tables(settings)
            if any(_stale_tables(freshness, now, alert_after)):
                pinned = current_pin(settings) is not None
                freshness = replace(freshness, empty=is_empty(settings), pinned=pinned)
    except Exception as error:  # noqa: BLE001 -- a lake that does not answer is a finding
        all_errors["lake"] = f"{settings.lake} cannot be read: {str(error).partition(chr(10))[0]}"
    return Observation(
        now=now,
        alert_after=alert_after,
        freshness=freshness,
        schedule=schedule,
        errors=all_errors,
    )
