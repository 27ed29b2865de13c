"""Alerts to SNS, Slack or e-mail: a run that failed, and tables that no run has brought up to date for hours.

A DAG file takes ``alerts()``, ``keep_error`` and ``deadline()``. Where no channel is set, there is nobody to tell.
"""

import asyncio
import html
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from airflow.sdk import AsyncCallback, BaseNotifier, Context, DeadlineAlert, DeadlineReference
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.log import redact

from fruits.errors import FruitsError
from fruits.run.documents import TaskName, current_documents, last_written, read_documents
from fruits.settings import DagSettings, Settings

log = logging.getLogger("fruits")

Channel = Literal["sns", "slack", "email"]

_ERROR = "error"  # the XCom that a failed task leaves
_MOST_CHARACTERS = 1_500  # of one error: it has to fit into a chat


@dataclass(frozen=True)
class Message:
    """What an alert says: one line, and the whole."""

    subject: str
    text: str


@dataclass(frozen=True)
class FailureAlert:
    """Tells one channel of a failed run; as a DAG's ``on_failure_callback`` the DAG processor calls it."""

    channel: Channel

    def __call__(self, context: Context) -> None:
        """Send it; whatever goes wrong concerns this channel only."""
        _send(self.channel, failure_message(context))


def alerts() -> list[FailureAlert]:
    """One alert for each channel that is set, for a DAG's ``on_failure_callback``."""
    return [FailureAlert(channel) for channel in _channels(DagSettings.load())]


def deadline() -> DeadlineAlert | None:
    """Every run has ``FRUITS_ALERT_AFTER_HOURS`` from when it was queued; None where no channel is set.

    Airflow forgets a deadline when its run succeeds in time. A run that failed keeps it, so when it passes
    ``alert_when_stale`` looks whether another run did the work.
    """
    settings = DagSettings.load()
    if not _channels(settings):
        return None
    hours = settings.alert_after_hours
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=hours),
        callback=AsyncCallback(alert_when_stale, {"hours": hours}),
        name=f"tables up to date within {hours} h",
    )


def keep_error(context: Context) -> None:
    """Leave a failed task's own words for the alert: a DAG's callback is not told the exception."""
    if error := context.get("exception"):
        said = str(error) if isinstance(error, FruitsError | AirflowFailException) else _named(error)
        context["ti"].xcom_push(_ERROR, str(redact(said)))


async def alert_when_stale(hours: int, context: Mapping[str, Any]) -> str:
    """Tell every channel that the tables are stale, unless they are not; the triggerer calls it after a deadline.

    Returns what was found, which Airflow keeps. A backfill is not meant to bring the tables up to date, so it never
    alerts.

    Raises:
        FruitsError: naming the channels that could not be told; the others were.
    """
    run = context["dag_run"]
    if run["run_type"] == "backfill":
        return "a backfill; no alert"
    try:
        last = await asyncio.to_thread(last_current, Settings.load())
    except Exception as error:  # noqa: BLE001 -- a lake that does not answer is no reason to keep quiet
        log.error("alert: the lake does not say when the tables were up to date: %s", error)
        last = None
    if last and datetime.now(UTC) - last < timedelta(hours=hours):
        return f"up to date at {_minute(last)}; no alert"
    message = stale_message(run, hours, last)
    channels = _channels(DagSettings.load())
    # In threads, because the SMTP provider's own asynchronous way (3.1) asks for STARTTLS twice.
    sent = await asyncio.gather(
        *(asyncio.to_thread(_send, channel, message) for channel in channels), return_exceptions=True
    )
    failed = [f"{channel}: {error}" for channel, error in zip(channels, sent, strict=True) if error]
    if failed:
        raise FruitsError(f"alert not sent by {'; '.join(failed)}")
    return f"alert sent by {', '.join(channels)}"


def last_current(settings: Settings) -> datetime | None:
    """When a run last brought the tables up to date with the whole prefix, by the lake's run documents."""
    ended = (
        current_at(current_documents(read_documents(settings, slug)), settings.prefix)
        for slug in last_written(settings)
    )
    return next((moment for moment in ended if moment), None)


def current_at(documents: Mapping[TaskName, Mapping[str, Any]], prefix: str) -> datetime | None:
    """When a run brought the tables up to date; None when it did not, or was not asked to look at all photos.

    A run that left objects over did not, nor one under a backbone that readers do not have until none remains.
    """
    plan = documents.get("plan", {})
    if "counts" not in plan or plan["remaining"]:  # without counts it has not ended well, or is maintenance's
        return None
    request = plan["request"]
    if request["dry_run"] or request["keys"] or request["mode"] == "interval" or request["prefix"] != prefix:
        return None
    last = documents.get("publish", {}) if plan["work"] else plan
    return datetime.fromisoformat(last["finished_at"]) if last.get("state") == "succeeded" else None


def failure_message(context: Context) -> Message:
    """What a failed run's alert says."""
    dag_id, run_id = context["dag"].dag_id, context["run_id"]
    said = "\n".join(f"{task}: {_shortened(error)}" for task, error in _failures(context).items())
    return Message(
        subject=f"{dag_id} failed: {run_id}",
        text=f"""Run {run_id} of {dag_id} failed.

{said or f"Airflow's reason: {context.get('reason', 'none given')}."}

Look at it: {_run_url(dag_id, run_id)}

What to do: mend what the error names, then clear the task that it says, or else the failed one; the run goes on there.
Readers still see the previous publication.""",
    )


def stale_message(run: Mapping[str, Any], hours: int, last: datetime | None) -> Message:
    """What the alert of a passed deadline says."""
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    return Message(
        subject=f"{dag_id}: tables not up to date for {hours} h",
        text=f"""No run of {dag_id} has brought the tables up to date for {hours} hours.
The last one that did ended: {_minute(last) if last else "unknown"}.

Run {run_id} was to do it and is {run["state"]}: {_run_url(dag_id, run_id)}

What to do: where it failed, mend what its error names, then clear the task that it says, or else the failed one. Where
it still runs or waits, look at the task it is at: photos that keep coming, a Spark job without progress, no free slot.
Readers still see the previous publication.""",
    )


def _failures(context: Context) -> dict[str, str]:
    """The failed tasks and what each said."""
    ti = context.get("ti")
    if ti is None:  # Airflow gives up a run without a failed task to show, too
        return {}
    try:
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
        tasks = [task for task, state in states.items() if state == "failed"] or [ti.task_id]
        return {task: ti.xcom_pull(task_ids=task, key=_ERROR) or "no error was kept; see its log" for task in tasks}
    except Exception as error:  # noqa: BLE001 -- an alert that says less is better than none
        log.error("alert: what failed can't be looked up: %s", error)
        return {ti.task_id: "see its log"}


def _channels(settings: DagSettings) -> list[Channel]:
    chosen: dict[Channel, object] = {
        "sns": settings.alert_sns_topic,
        "slack": settings.alert_slack_channel,
        "email": settings.alert_email,
    }
    return [channel for channel, target in chosen.items() if target]


def _send(channel: Channel, message: Message) -> None:
    # A notifier renders its fields as templates, once: so it is made anew for each message, its fields are constants,
    # and what comes from outside, such as an object key in an error, is never taken for a template.
    _notifier(channel, DagSettings.load())({"alert": _fields(message)})


def _notifier(channel: Channel, settings: DagSettings) -> BaseNotifier:
    if channel == "sns":
        from airflow.providers.amazon.aws.notifications.sns import SnsNotifier

        topic = str(settings.alert_sns_topic)
        return SnsNotifier(
            target_arn=topic, region_name=topic.split(":")[3], subject="{{ alert.subject }}", message="{{ alert.text }}"
        )
    if channel == "slack":
        from airflow.providers.slack.notifications.slack import SlackNotifier

        return SlackNotifier(
            channel=str(settings.alert_slack_channel), username="Fruits", text="{{ alert.slack }}", unfurl_links=False
        )
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    return SmtpNotifier(to=list(settings.alert_email), subject="{{ alert.subject }}", html_content="{{ alert.html }}")


def _fields(message: Message) -> dict[str, str]:
    """The message as each channel takes it: a subject of one ASCII line, and no markup but ours."""
    return {
        "subject": message.subject.encode("ascii", "replace").decode()[:100],
        "text": message.text,
        "slack": html.escape(message.text, quote=False),
        "html": f"<pre style='white-space: pre-wrap'>{html.escape(message.text)}</pre>",
    }


def _run_url(dag_id: str, run_id: str) -> str:
    base = conf.get("api", "base_url", fallback="http://localhost:8080")
    return f"{base.rstrip('/')}/dags/{quote(dag_id)}/runs/{quote(run_id)}"


def _named(error: BaseException | str) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} ..."


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
