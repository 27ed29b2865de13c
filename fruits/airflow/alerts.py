"""Alerts by SNS, Slack and e-mail: of a run that failed, and of what the watchdog found.

The providers' notifiers send the alerts. A wrong setting of one channel stops no other channel.
"""

import html
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from airflow.sdk import BaseNotifier, Context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.log import redact  # type: ignore[attr-defined]

from fruits.errors import FruitsError

if TYPE_CHECKING:
    from fruits.serve.watch import News

log = logging.getLogger("fruits")

_ERROR_XCOM = "error"
_MAX_ERROR_CHARACTERS = 1_500  # so that an alert fits into a chat


class Message(NamedTuple):
    """An alert's subject, one line, and its text."""

    subject: str
    text: str


def alert_failure(context: Context) -> None:
    """Send an alert of a failed run; the DAG processor calls it as the DAG's ``on_failure_callback``."""
    if any(_notifiers()):
        send(failure_message(context))


def alert(message: Message) -> None:
    """Send an alert if a channel is set; one that cannot be sent is logged, because the task's work is done."""
    if not any(_notifiers()):
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


def watch_message(news: "News") -> Message:
    """The alert of what the watchdog found, and of what is over."""
    begun = "\n\n".join(f"{one.check}: {one.found}.\nWhat to do: {one.fix}." for one in news.begun)
    over = "\n".join(f"Over: {check}: {found}." for check, found in news.over.items())
    names = [one.check for one in news.begun] + [f"{check} is over" for check in news.over]
    return Message(subject=f"fruits: {', '.join(names)}", text="\n\n".join(filter(None, (begun, over))))


def send(message: Message) -> list[str]:
    """Send a message by every channel that is set; a channel that fails stops no other. Returns those that sent it.

    Raises:
        FruitsError: naming the channels that failed, when no channel sent the message.
    """
    sent, errors = [], []
    for channel, notifier in _notifiers():
        try:
            notifier({"alert": _fields(message)})
            sent.append(channel)
        except Exception as error:  # noqa: BLE001 -- each provider raises errors of its own
            log.error("alert: not sent by %s: %s", channel, error)
            errors.append(f"{channel}: {error}")
    if errors and not sent:
        raise FruitsError(f"alert not sent by {'; '.join(errors)}")
    return sent


def _notifiers() -> Iterator[tuple[str, BaseNotifier]]:
    """The provider's notifier for each channel that is set.

    A notifier renders its fields as templates, in place. So each message needs notifiers of its own, and the templates
    are constants: text from outside, such as an object key in an error, is never rendered.
    """
    from fruits.settings import DagSettings

    settings = DagSettings.of_alerts()
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
