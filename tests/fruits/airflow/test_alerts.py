"""Alerts, sent by a real Airflow (scheduler, DAG processor, triggerer) to stand-ins of SNS, Slack and a mail server."""

import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fruits.errors import FruitsError
from fruits.run import lease
from fruits.run.lease import current_lease
from fruits.run.state import run_key
from fruits.serve.doctor import Finding
from fruits.serve.watch import news
from fruits.settings import DagSettings, Settings
from local.stack import running_server
from tests.running_airflow import Airflow, running_airflow
from tests.running_ui import wait_for
from tests.runs import document, planned, write_documents

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[3]
TOPIC = "arn:aws:sns:eu-west-1:123456789012:fruit-alerts"
HOURS = 6
LONG_AGO = datetime.now(UTC) - timedelta(hours=HOURS, minutes=1)

# A key may hold anything: it must reach people as it is, not be run as a template or ping a whole channel.
ERROR = "s3://fruits/{{ 7 * 7 }}<!channel>.jpg: fix this"

DAGS = """
from datetime import timedelta

from airflow.sdk import DAG, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException
from fruits.airflow.alerts import alert_failure, keep_error
from fruits.airflow.errors import non_retryable
from fruits.airflow.replan import replan_on_conflict
from fruits.airflow.lease import LeaseSensor
from fruits.airflow.announcements import EMBEDDINGS, announce
from fruits.errors import ConflictError
from fruits.lake.publication import Publication

SETTINGS = {"schedule": None, "default_args": {"on_failure_callback": keep_error}}


with DAG("failing", on_failure_callback=alert_failure, **SETTINGS):

    @task
    def prepare():
        raise AirflowFailException(ERROR)

    @task
    def compact():
        raise ZeroDivisionError("not mendable")

    @task
    def publish():
        pass

    prepare() >> publish()
    compact()

with DAG("publishing", **SETTINGS):

    @task(inlets=[EMBEDDINGS], outlets=[EMBEDDINGS])
    def publish():
        published = Publication(7, {}, "pub-000007-abc", run_id="manual__1", counts={"create": 3})
        return announce(get_current_context(), published, published)

    publish()

with DAG("follower", schedule=EMBEDDINGS):

    @task
    def follow():
        events = get_current_context()["triggering_asset_events"][EMBEDDINGS]
        return [dict(event.extra) for event in events]

    follow()

with DAG("overtaken", params={"always": False}, **SETTINGS):

    @task
    def plan():
        return get_current_context()["dag_run"].clear_number

    @task(retries=2, retry_delay=timedelta(seconds=1))
    def publish(planned):
        context = get_current_context()
        with non_retryable(), replan_on_conflict(context):
            if not planned or context["params"]["always"]:
                raise ConflictError("another run published after run x was planned")
        return planned

    publish(plan())

with DAG("waiting", **SETTINGS):
    LeaseSensor(task_id="wait_for_lease")

with DAG("fruit_features", schedule=None, is_paused_upon_creation=True):

    @task
    def plan():
        get_current_context()["ti"].xcom_push("counts", {"create": 1_200, "update": 0})

    plan()
"""


@dataclass
class Inbox:
    """What stand-ins of Slack and of a mail server were sent: to whom or about what, then the text."""

    slack: list[str] = field(default_factory=list)
    mail: list[str] = field(default_factory=list)
    slack_works: bool = True


def slack_server(inbox: Inbox) -> ThreadingHTTPServer:
    class Slack(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if inbox.slack_works:
                assert self.path == "/chat.postMessage"
                sent = json.loads(body)
                inbox.slack.append(f"{sent['channel']}\n{sent['text']}")
            answer = json.dumps({"ok": inbox.slack_works, "error": "channel_not_found"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Slack)


def mail_server(inbox: Inbox) -> socketserver.ThreadingTCPServer:
    class Mail(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            while line := self.rfile.readline():
                command = line[:4].upper().strip()
                if command == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    mail = message_from_bytes(b"".join(lines), policy=policy.default)
                    body = mail.get_body()
                    inbox.mail.append(f"{mail['To']}\n{mail['Subject']}\n{body.get_content() if body else mail}")
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")

    return socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)


@dataclass(frozen=True)
class Channels:
    """Stand-ins of all three channels."""

    inbox: Inbox
    environment: dict[str, str]
    receive: Callable[[], list[str]]
    sns: list[str] = field(default_factory=list)

    def sent(self, channel: str, run: str) -> list[str]:
        """What a channel was sent about a run."""
        self.sns.extend(self.receive())
        texts = {"sns": self.sns, "slack": self.inbox.slack, "mail": self.inbox.mail}[channel]
        return [text for text in texts if run in text]

    def told(self, *runs: str) -> list[tuple[str, str]]:
        """The alerts by channel and run, once every run has at least one by SNS and one by mail; before, none."""
        told = [(channel, run) for channel in ("sns", "slack", "mail") for run in runs for _ in self.sent(channel, run)]
        return told if {(channel, run) for channel in ("sns", "mail") for run in runs} <= set(told) else []


@pytest.fixture(scope="module")
def channels() -> Iterator[Channels]:
    inbox = Inbox()
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    url = f"http://{host}:{port}"
    servers = slack_server(inbox), mail_server(inbox)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "eu-west-1"}
    sns, sqs = (boto3.client(service, endpoint_url=url, **keys) for service in ("sns", "sqs"))
    assert sns.create_topic(Name="fruit-alerts")["TopicArn"] == TOPIC
    queue = sqs.create_queue(QueueName="alerts")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=TOPIC, Protocol="sqs", Endpoint=arn)

    def receive() -> list[str]:
        received = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
        for message in received:  # else a message comes again after half a minute
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        bodies = [json.loads(message["Body"]) for message in received]
        return [f"{body['Subject']}\n{body['Message']}" for body in bodies]

    aws = {
        "conn_type": "aws", "login": "key", "password": "secret",
        # The region is the topic's: another one here must not matter.
        "extra": {"region_name": "us-east-1", "service_config": {"sns": {"endpoint_url": url}}},
    }  # fmt: skip
    slack = {
        "conn_type": "slack",
        "password": "xoxb-1",
        "extra": {"base_url": f"http://127.0.0.1:{servers[0].server_port}/"},
    }
    smtp = {
        "conn_type": "smtp", "host": "127.0.0.1", "port": servers[1].server_address[1],
        "extra": {"from_email": "fruits@example.org", "disable_ssl": True, "disable_tls": True},
    }  # fmt: skip
    yield Channels(
        inbox,
        {
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws),
            "AIRFLOW_CONN_SLACK_API_DEFAULT": json.dumps(slack),
            "AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(smtp),
            "FRUITS_ALERT_SNS_TOPIC": TOPIC,
            "FRUITS_ALERT_SLACK_CHANNEL": "#fruits",
            "FRUITS_ALERT_EMAIL": "a@example.org, b@example.org",
            "FRUITS_ALERT_AFTER_HOURS": str(HOURS),
        },
        receive,
    )
    for server in servers:
        server.shutdown()
        server.server_close()
    moto.stop()


@pytest.fixture
def module(channels: Channels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, without any setting."""
    for name in channels.environment:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    from fruits.airflow import alerts as fruits_alerts

    return fruits_alerts


class TestWithoutAirflow:
    def test_without_a_channel_there_is_no_alert(self, module: Any) -> None:
        module.alert_failure({})  # does not even look at the run
        assert module.send(module.Message("a subject", "a text")) == []

    def test_only_the_channels_that_are_set_are_told(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FRUITS_ALERT_EMAIL", "a@example.org")
        assert [channel for channel, _ in module._notifiers()] == ["email"]

    def test_a_wrong_setting_silences_no_channel_that_is_right(
        self, module: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "FRUITS_ALERT_EMAIL": "a@example.org",
            "FRUITS_ALERT_SNS_TOPIC": "a typo",
            "FRUITS_ALERT_AFTER_HOURS": "six",
            "FRUITS_ENGINE": "emr-serverless",  # without the settings that it needs
        }.items():
            monkeypatch.setenv(name, value)
        assert [channel for channel, _ in module._notifiers()] == ["email"]
        assert DagSettings.of_alerts().alert_after_hours == 6

    def test_the_watchdogs_alert_names_what_began_with_its_fix_and_what_is_over(self, module: Any) -> None:
        finding = Finding("DAG", "fail", "fruit_features is paused", "switch the DAG on")
        message = module.watch_message(news({"tables": "no run for 7 h"}, [finding]))
        assert message.subject == "fruits: DAG, tables is over"
        assert message.text == (
            "DAG: fruit_features is paused.\nWhat to do: switch the DAG on.\n\nOver: tables: no run for 7 h."
        )

    def test_a_run_without_a_failed_task_still_alerts(self, module: Any) -> None:
        """Airflow then gives a callback hardly anything."""
        dag = SimpleNamespace(dag_id="fruit_features")
        message = module.failure_message({"dag": dag, "run_id": "scheduled__1", "reason": "timed_out"})
        assert "timed_out" in message.text
        assert "/dags/fruit_features/runs/scheduled__1" in message.text

    def test_an_alert_that_cannot_be_sent_does_not_fail_the_task(
        self, module: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(message: Any) -> list[str]:
            raise FruitsError(f"alert not sent by slack: {message.subject}")

        monkeypatch.setenv("FRUITS_ALERT_SLACK_CHANNEL", "#fruits")
        monkeypatch.setattr(module, "send", refuse)
        module.alert(module.shrunk_message(1_000, 520, "pub-000003-abcdef"))
        assert "alert not sent by slack: Fruits: 480 rows fewer" in caplog.text

    def test_a_publication_that_shrinks_is_told_with_both_sizes(self, module: Any) -> None:
        text = module.shrunk_message(1_000, 520, "pub-000003-abcdef").text
        assert "pub-000003-abcdef has 520 rows; the one before had 1,000" in text

    def test_an_endless_error_is_cut(self, module: Any) -> None:
        ti = SimpleNamespace(
            dag_id="fruit_features", run_id="r", task_id="pca",
            get_task_states=lambda dag_id, run_ids: {"r": {"pca": "failed", "publish": "upstream_failed"}},
            xcom_pull=lambda task_ids, key: f"starts here {'x' * 100_000}",
        )  # fmt: skip
        context = {"dag": SimpleNamespace(dag_id="fruit_features"), "run_id": "r", "ti": ti}
        text = module.failure_message(context).text
        assert "pca: starts here xxx" in text
        assert len(text) < 2_500

    def test_a_subject_is_one_that_sns_takes(self, module: Any) -> None:
        subject = module._fields(module.Message("früchte " + "x" * 200, ""))["subject"]
        assert subject.isascii()
        assert len(subject) <= 100

    def test_a_secret_does_not_leave_airflow(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow.sdk.log import mask_secret

        mask_secret("pa55word-of-the-catalog")
        pushed: dict[str, str] = {}
        ti = type("TI", (), {"xcom_push": lambda self, key, value: pushed.update({key: value})})()
        module.keep_error({"ti": ti, "exception": ValueError("postgresql://u:pa55word-of-the-catalog@host")})
        assert pushed == {"error": "ValueError: postgresql://u:***@host"}


def leave_plan(settings: Settings, run_id: str, finished_at: datetime) -> None:
    """The document of a run that found nothing to do."""
    plan = document("plan", result=planned(run_id, work=False), finished_at=finished_at)
    write_documents(settings, plan, run_id=run_id)


@pytest.fixture(scope="module")
def airflow(channels: Channels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """The embedded stack's Airflow with DAGs of our own."""
    watchdog = (ROOT / "dags" / "fruit_watchdog.py").read_text()
    dags = {
        "dags.py": f"ERROR = {ERROR!r}\n{DAGS}",
        "fruit_watchdog.py": re.sub(r"schedule=.*", "schedule=None,", watchdog),
    }
    data = tmp_path_factory.mktemp("alerts") / "data"
    with running_airflow(data, dags, count=7, **channels.environment) as running:
        yield running


@pytest.fixture(scope="module")
def dead_slack(airflow: Airflow, channels: Channels) -> str:
    """A run that fails while Slack refuses everything."""
    channels.inbox.slack_works = False
    return airflow.start("failing")


@pytest.fixture(scope="module")
def all_well(airflow: Airflow, channels: Channels, dead_slack: str) -> str:
    """A run that fails while every channel works, after the time when one did not."""
    wait_for(lambda: channels.told(dead_slack))
    channels.inbox.slack_works = True
    return airflow.start("failing")


@pytest.mark.slow
@pytest.mark.story
class TestThroughAirflow:
    def test_a_dead_channel_stops_no_other(self, airflow: Airflow, channels: Channels, dead_slack: str) -> None:
        told = wait_for(lambda: channels.told(dead_slack))
        assert {channel for channel, _ in told} == {"sns", "mail"}
        assert airflow.ended("failing", dead_slack) == "failed"

    def test_a_failed_run_is_told_to_everybody_once(self, airflow: Airflow, channels: Channels, all_well: str) -> None:
        run = all_well
        wait_for(lambda: len(channels.told(run)) == 3)
        (text,), (slack,), (mail,) = (channels.sent(channel, run) for channel in ("sns", "slack", "mail"))

        assert text.startswith(f"failing failed: {run}\n"), "the subject"
        assert f"prepare: {ERROR}\n" in text, "the error's own words, and no template's"
        assert "compact: ZeroDivisionError: not mendable\n" in text
        assert "publish" not in text.partition("The run: ")[0], "it did not fail: it was not started"
        assert f"{airflow.api.url}/dags/failing/runs/manual__" in text
        assert "clear the task that the error names, or else the failed task" in text

        assert slack == "#fruits\n" + escaped(text.partition("\n")[2])
        assert mail.startswith(f"a@example.org, b@example.org\nfailing failed: {run}\n")
        assert escaped(ERROR) in mail

    def test_a_publication_is_announced_once_and_another_dag_follows(self, airflow: Airflow) -> None:
        first, second = airflow.finish("publishing"), airflow.finish("publishing")
        states = [
            airflow.api.ask(f"dags/publishing/dagRuns/{run}/taskInstances/publish")["state"] for run in (first, second)
        ]
        assert states == ["success", "skipped"], "the second one is what clearing `publish` alone does"
        (followed,) = wait_for(lambda: airflow.api.ask("dags/follower/dagRuns?state=success")["dag_runs"])
        path = f"dags/follower/dagRuns/{followed['dag_run_id']}/taskInstances/follow/xcomEntries/return_value"
        (event,) = airflow.api.ask(f"{path}?deserialize=true")["value"]
        assert (event["publication_id"], event["sequence"], event["kind"]) == ("pub-000007-abc", 7, "run")

    def test_an_overtaken_run_plans_again_once(self, airflow: Airflow) -> None:
        once = airflow.finish("overtaken")
        path = f"dags/overtaken/dagRuns/{once}/taskInstances"
        published = airflow.api.ask(f"{path}/publish/xcomEntries/return_value")["value"]
        assert published == 1, "planned anew, by the same run"
        assert airflow.api.ask(f"{path}/plan")["try_number"] == 2
        conf = {"logical_date": None, "conf": {"always": True}}
        always = str(airflow.api.ask("dags/overtaken/dagRuns", "POST", conf)["dag_run_id"])
        assert wait_for(lambda: airflow.ended("overtaken", always)) == "failed"
        assert airflow.api.ask(f"dags/overtaken/dagRuns/{always}/taskInstances/plan")["try_number"] == 2

    def test_a_run_that_waits_takes_the_lease_of_a_run_that_has_ended(self, airflow: Airflow, all_well: str) -> None:
        """Task and triggerer ask Airflow: five minutes would pass for a run that Airflow does not know."""
        assert wait_for(lambda: airflow.ended("failing", all_well)) == "failed"
        hold_silently(lake_of(airflow), ("failing", "unknown"))
        run = airflow.start("waiting")
        path = f"dags/waiting/dagRuns/{run}/taskInstances/wait_for_lease"
        wait_for(lambda: airflow.api.ask(path)["state"] == "deferred")
        hold_silently(lake_of(airflow), ("failing", all_well))
        assert wait_for(lambda: airflow.ended("waiting", run), seconds=100) == "success"
        assert current_lease(lake_of(airflow)).run == run_key(run)

    def test_an_ended_run_has_a_note(self, airflow: Airflow) -> None:
        airflow.api.ask("dags/fruit_features", "PATCH", {"is_paused": False})
        run = airflow.finish("fruit_features")
        airflow.api.ask("dags/fruit_features", "PATCH", {"is_paused": True})
        assert airflow.api.ask(f"dags/fruit_features/dagRuns/{run}")["note"] == "1,200 create"

    def test_the_watchdog_tells_once_and_when_it_is_over(
        self, airflow: Airflow, channels: Channels, all_well: str
    ) -> None:
        wait_for(lambda: len(channels.told(all_well)) == 3)
        photos = running_server(airflow.data)
        assert photos is not None
        photos.client().put_object(Bucket="fruits", Key="Training/Kiwi/1.jpg", Body=b"photo")
        leave_plan(lake_of(airflow), "long_ago", LONG_AGO)
        for _ in range(2):
            airflow.finish("fruit_watchdog")
        (text,) = wait_for(lambda: channels.sent("sns", "fruits: "))
        assert text.startswith("fruits: tables, DAG\n")
        assert f"ended: {LONG_AGO:%Y-%m-%d %H:%M} UTC" in text
        assert "fruit_features is paused" in text

        leave_plan(lake_of(airflow), "another", datetime.now(UTC))
        airflow.api.ask("dags/fruit_features", "PATCH", {"is_paused": False})
        for _ in range(2):
            airflow.finish("fruit_watchdog")
        assert wait_for(lambda: len(channels.sent("mail", "fruits: ")) == 2)
        assert "fruits: tables is over, DAG is over" in channels.sent("mail", "fruits: ")[1]


def hold_silently(settings: Settings, airflow_run: tuple[str, str]) -> None:
    """Hold the lease for a run that has not renewed it for a while."""
    since = datetime.now(UTC) - timedelta(minutes=2)
    lease._write(lease._store(settings), lease.Lease(1, "holder", since, airflow_run=airflow_run))


def escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace(">", "&gt;")


def lake_of(airflow: Airflow) -> Settings:
    return Settings.load(lake=f"file://{airflow.data / 'lake'}", catalog_uri=f"sqlite:///{airflow.data}/catalog.db")
