"""Alerts by SNS, Slack and e-mail: a run that failed, and tables that no run has brought up to date for hours.

A DAG file takes ``alert_failure``, ``keep_error`` and ``deadline()``. The providers' notifiers send the alerts.
"""

import asyncio
import html
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from airflow.sdk import BaseNotifier, Context
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.log import redact  # type: ignore[attr-defined]

from fruits.errors import FruitsError
from fruits.serve.freshness import last_up_to_date
from fruits.settings import DagSettings, Settings

log = logging.getLogger("fruits")

_ERROR_XCOM = "error"
_MAX_ERROR_CHARACTERS = 1_500  # so that an alert fits into a chat


class Message(NamedTuple):
    """An alert's subject, one line, and its text."""

    subject: str
    text: str


def alert_failure(context: Context) -> None:
    """Send an alert of a failed run; the DAG processor calls it as the DAG's ``on_failure_callback``."""
    if any(_notifiers(DagSettings.load())):
        send(failure_message(context))


def alert(message: Message) -> None:
    """Send an alert if a channel is set; one that cannot be sent is logged, because the task's work is done."""
    if not any(_notifiers(DagSettings.load())):
        return
    try:
        send(message)
    except FruitsError as error:
        log.error("%s", error)


def shrunk_message(before: int, after: int, publication_id: str | None) -> Message:
    """The alert of a publication with fewer rows than the one before."""
    return Message(
        subject=f"Fruits: {before - after:,} rows fewer",
        text=f"""Publication {publication_id} has {after:,} rows; the one before had {before:,}.

Readers no longer see {before - after:,} photos, because they are gone from the bucket.

What to do: nothing, if somebody deleted these photos. Otherwise bring the photos back, or go back to the publication
before by `fruits rollback`.""",
    )


def keep_error(context: Context) -> None:
    """Keep a failed task's error in an XCom for the alert: Airflow tells a DAG's callback no exception."""
    if error := context.get("exception"):
        readable = isinstance(error, str | FruitsError | AirflowFailException)
        text = str(error) if readable else f"{type(error).__name__}: {error}"
        context["ti"].xcom_push(_ERROR_XCOM, str(redact(text)))


def deadline() -> DeadlineAlert | None:
    """The deadline of every run, FRUITS_ALERT_AFTER_HOURS after Airflow queued it; None when no channel is set.

    Airflow drops the deadline of a run that succeeds in time. The deadline of a failed run stays, so
    ``alert_when_stale`` checks whether another run did the work.
    """
    settings = DagSettings.load()
    if not any(_notifiers(settings)):
        return None
    hours = settings.alert_after_hours
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=hours),
        callback=AsyncCallback(alert_when_stale, {"hours": hours}),
        name=f"tables up to date within {hours} h",
    )


async def alert_when_stale(hours: int, context: Mapping[str, Any]) -> str:
    """Send an alert when the tables are stale; the triggerer calls it when a run's deadline passes.

    Returns the outcome, which Airflow keeps. A backfill is not meant to bring the tables up to date, so its deadline
    sends no alert.

    Raises:
        FruitsError: naming the channels that failed; the others have sent the alert.
    """
    run = context["dag_run"]
    if run["run_type"] == "backfill":
        return "a backfill; no alert"
    try:
        last = await asyncio.to_thread(last_up_to_date, Settings.load())
    except Exception as error:  # noqa: BLE001 -- a lake that does not answer must not suppress the alert
        log.error("alert: cannot read from the lake when the tables were up to date: %s", error)
        last = None
    if last and datetime.now(UTC) - last < timedelta(hours=hours):
        return f"up to date at {_minute(last)}; no alert"
    # In a thread, because the SMTP provider's asynchronous client (3.1) sends STARTTLS twice.
    channels = await asyncio.to_thread(send, stale_message(run, hours, last))
    return f"alert sent by {', '.join(channels)}"


def failure_message(context: Context) -> Message:
    """The alert of a failed run."""
    dag_id, run_id = context["dag"].dag_id, str(context["run_id"])
    errors = "\n".join(f"{task}: {error[:_MAX_ERROR_CHARACTERS]}" for task, error in _errors_by_task(context).items())
    return Message(
        subject=f"{dag_id} failed: {run_id}",
        text=f"""Run {run_id} of {dag_id} failed.

{errors or f"Airflow's reason: {context.get('reason', 'none given')}."}

The run: {_run_url(dag_id, run_id)}

What to do: fix what the error names. Then clear the task that the error names, or else the failed task; the run goes on
from there. Readers still see the previous publication.""",
    )


def stale_message(run: Mapping[str, Any], hours: int, last: datetime | None) -> Message:
    """The alert of a run's deadline that has passed."""
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    return Message(
        subject=f"{dag_id}: tables not up to date for {hours} h",
        text=f"""No run of {dag_id} has brought the tables up to date for {hours} hours.
The last run that did so ended: {_minute(last) if last else "unknown"}.

Run {run_id} should have done so and is {run["state"]}: {_run_url(dag_id, run_id)}

What to do: if the run failed, fix what its error names, then clear the task that the error names, or else the failed
task. If the run still works or waits, look at its current task: photos that keep coming, a Spark job without progress,
no free slot. Readers still see the previous publication.""",
    )


def send(message: Message) -> list[str]:
    """Send a message by every channel that is set; a channel that fails stops no other. Returns the channels.

    Raises:
        FruitsError: naming the channels that failed, after all were tried.
    """
    sent, errors = [], []
    for channel, notifier in _notifiers(DagSettings.load()):
        try:
            notifier({"alert": _fields(message)})
            sent.append(channel)
        except Exception as error:  # noqa: BLE001 -- each provider raises errors of its own
            errors.append(f"{channel}: {error}")
    if errors:
        raise FruitsError(f"alert not sent by {'; '.join(errors)}")
    return sent


def _notifiers(settings: DagSettings) -> Iterator[tuple[str, BaseNotifier]]:
    """The provider's notifier for each channel that is set.

    A notifier renders its fields as templates, in place. So each message needs notifiers of its own, and the templates
    are constants: text from outside, such as an object key in an error, is never rendered.
    """
    if topic := settings.alert_sns_topic:
        from airflow.providers.amazon.aws.notifications.sns import SnsNotifier

        subject, text, region = "{{ alert.subject }}", "{{ alert.text }}", topic.split(":")[3]
        yield "sns", SnsNotifier(target_arn=topic, region_name=region, subject=subject, message=text)
    if slack_channel := settings.alert_slack_channel:
        from airflow.providers.slack.notifications.slack import SlackNotifier

        text = "{{ alert.slack }}"
        yield "slack", SlackNotifier(channel=slack_channel, username="Fruits", text=text, unfurl_links=False)
    if addresses := settings.alert_email:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        subject, text = "{{ alert.subject }}", "{{ alert.html }}"
        yield "email", SmtpNotifier(to=list(addresses), subject=subject, html_content=text)


def _fields(message: Message) -> dict[str, str]:
    """The message for each channel: a subject of one ASCII line, which SNS demands, and text without foreign markup."""
    return {
        "subject": message.subject.encode("ascii", "replace").decode()[:100],
        "text": message.text,
        "slack": html.escape(message.text, quote=False),
        "html": f"<pre style='white-space: pre-wrap'>{html.escape(message.text)}</pre>",
    }


def _errors_by_task(context: Context) -> dict[str, str]:
    """The failed tasks and their errors; empty when Airflow failed the run without a failed task."""
    ti = context.get("ti")
    if ti is None:
        return {}
    try:
        states = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id]).get(ti.run_id, {})
        failed = [task for task, state in states.items() if state == "failed"] or [ti.task_id]
        return {task: ti.xcom_pull(task_ids=task, key=_ERROR_XCOM) or "see its log" for task in failed}
    except Exception as error:  # noqa: BLE001 -- an alert with less in it is better than none
        log.error("alert: cannot look up the failed tasks: %s", error)
        return {ti.task_id: "see its log"}


def _run_url(dag_id: str, run_id: str) -> str:
    base = conf.get("api", "base_url", fallback="http://localhost:8080")
    return f"{base.rstrip('/')}/dags/{quote(dag_id)}/runs/{quote(run_id)}"


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
