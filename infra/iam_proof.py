"""Prove that the policy of infra/fruits.yaml is enough for the chain, and no more than it needs.

    .venvs/airflow/bin/python infra/iam_proof.py

It deploys the template to moto's server, has that check each request's signature and the role's policy (moto's IAM
mode, which judges actions and resources), and runs the chain with the role's temporary credentials: doctor, prepare,
plan, the Spark jobs, publication, events, an alert, maintenance. Then it takes away one statement at a time, and shows
what the first check that fails has to say. A judge of our own, written from AWS's rules, must agree with moto on every
request.

What moto (5.2) sees otherwise than AWS is corrected here: a HEAD of a bucket needs s3:ListBucket, a bulk delete
s3:DeleteObject on each key, sqs:DeleteMessage allows batches, and sns:Publish has a resource. Conditions and the
policies of buckets, queue and topic are not judged.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch
from xml.etree import ElementTree as ET

import boto3

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fruits.errors import FruitsError  # noqa: E402 -- the script's own folder is not the checkout's
from fruits.run.documents import TaskName  # noqa: E402

TEMPLATE = ROOT / "infra" / "fruits.yaml"
REGION = "us-east-1"
PHOTOS = 28
LABELS = ("Apple Red", "Banana", "Kiwi")
JOBS: tuple[TaskName, ...] = ("featurize", "pca", "validate")
SPARK = (
    "--master=local[2]",
    "--conf=spark.ui.enabled=false",
    "--driver-java-options=-XX:TieredStopAtLevel=1",  # nothing here runs long enough to repay a better compilation
)
NEVER_USED = frozenset({"s3:AbortMultipartUpload"})
"""What only an upload that breaks off needs."""

Statement = Mapping[str, Any]
Step = tuple[str, Callable[[], object]]

_TYPE = "      InstanceType: !Ref InstanceType\n"
_PARAMETERS = {"RepositoryUrl": "https://git.example.com/fruits.git"}


@dataclass(frozen=True)
class Call:
    """A request of the role, as moto judged it."""

    action: str
    resource: str
    allowed: bool


@dataclass
class Account:
    """An AWS account in this process, with the stack deployed; ``calls`` are those made with the role."""

    endpoint: str
    outputs: Mapping[str, str] = field(default_factory=dict)
    role: str = ""
    calls: list[Call] = field(default_factory=list)

    def client(self, service: str) -> Any:
        """A client of whoever deployed the stack, who may do anything while ``unjudged``."""
        keys = {"aws_access_key_id": "deployer", "aws_secret_access_key": "deployer"}
        return boto3.Session(region_name=REGION, **keys).client(service, endpoint_url=self.endpoint)

    def deploy(self, template: str, name: str = "fruits", **parameters: str) -> None:
        """Create the stack, and note its outputs and role."""
        values = {**_PARAMETERS, **parameters}
        cloudformation = self.client("cloudformation")
        with warnings.catch_warnings(action="ignore"):  # of resources that moto can't make
            cloudformation.create_stack(
                StackName=name,
                TemplateBody=template.replace(_TYPE, f"{_TYPE}      ImageId: ami-12c6146b\n"),  # moto wants it here
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
                Capabilities=["CAPABILITY_IAM"],
            )
        stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        if stack["StackStatus"] != "CREATE_COMPLETE":
            raise FruitsError(f"stack {name}: {stack['StackStatus']}: {stack.get('StackStatusReason')}")
        self.outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        self.role = next(
            role["RoleName"]
            for role in self.client("iam").list_roles()["Roles"]
            if role["RoleName"].startswith(f"{name}-HostRole")
        )
        queues = rendered(name, "PhotosBucket")["NotificationConfiguration"]["QueueConfigurations"]
        configurations = [{"QueueArn": queue["Queue"], "Events": [queue["Event"]]} for queue in queues]
        self.client("s3").put_bucket_notification_configuration(  # moto leaves it out, too
            Bucket=self.outputs["PhotosBucket"],
            NotificationConfiguration={"QueueConfigurations": configurations},
        )

    def statements(self, policy: str = "pipeline") -> list[Statement]:
        """The statements of one of the role's policies."""
        with unjudged():
            document = self.client("iam").get_role_policy(RoleName=self.role, PolicyName=policy)["PolicyDocument"]
        return list(document["Statement"])

    def set_statements(self, statements: Sequence[Statement], policy: str = "pipeline") -> None:
        """Give the role these statements instead."""
        document = json.dumps({"Version": "2012-10-17", "Statement": statements})
        with unjudged():
            self.client("iam").put_role_policy(RoleName=self.role, PolicyName=policy, PolicyDocument=document)

    def upload(self, key: str, data: bytes) -> None:
        """Put a photo into the bucket, which notifies the queue."""
        with unjudged():
            self.client("s3").put_object(Bucket=self.outputs["PhotosBucket"], Key=key, Body=data)

    def environment(self, folder: Path) -> dict[str, str]:
        """The role's credentials, and the settings that the host's .env has; the catalog is a file in ``folder``."""
        with unjudged():
            sts, arn = self.client("sts"), f"arn:aws:iam::123456789012:role/{self.role}"
            keys = sts.assume_role(RoleArn=arn, RoleSessionName="i-0123456789abcdef0")["Credentials"]
        endpoints = {service: {"endpoint_url": self.endpoint} for service in ("s3", "sqs", "sns")}
        extra = {"region_name": REGION, "service_config": endpoints}
        return {
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys["SessionToken"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps({"conn_type": "aws", "extra": extra}),
            "FRUITS_BUCKET": self.outputs["PhotosBucket"],
            "FRUITS_LAKE": self.outputs["Lake"],
            "FRUITS_CATALOG_URI": f"sqlite:///{folder}/catalog.db",
            "FRUITS_S3_ENDPOINT": self.endpoint,
            "FRUITS_S3_REGION": REGION,
            "FRUITS_EVENT_QUEUE": f"{self.endpoint}/123456789012/fruits-events",
            "FRUITS_ALERT_SNS_TOPIC": self.outputs["AlertTopic"],
            "FRUITS_JOBS_ENV": os.environ.get("FRUITS_JOBS_ENV", str(ROOT / ".venvs" / "jobs")),
        }


def rendered(stack: str, resource: str) -> dict[str, Any]:
    """The properties of a resource of a deployed stack, with what it refers to filled in."""
    from moto.cloudformation.models import cloudformation_backends
    from moto.cloudformation.parsing import clean_json

    deployed = cloudformation_backends["123456789012"][REGION].get_stack(stack)
    return dict(_valued(clean_json(deployed.template_dict["Resources"][resource]["Properties"], deployed.resource_map)))


def _valued(properties: Any) -> Any:
    """Properties without the members of lists that have no value; moto leaves a None there."""
    if isinstance(properties, dict):
        return {name: _valued(value) for name, value in properties.items()}
    if isinstance(properties, list):
        return [_valued(value) for value in properties if value is not None]
    return properties


@contextmanager
def running_account() -> Iterator[Account]:
    """The server of moto on a port of 127.0.0.1, without judging yet; see ``judged``."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.server import ThreadedMotoServer

    assert DEFAULT_ACCOUNT_ID == "123456789012"  # noqa: S101 -- the URLs here have it
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    account = Account(f"http://{host}:{port}")
    try:
        with _as_aws_judges(account):
            yield account
    finally:
        account.client("s3")._endpoint.http_session.close()  # noqa: SLF001 -- boto3 has no other way
        server.stop()


@contextmanager
def _as_aws_judges(account: Account) -> Iterator[None]:
    """Note each judgement, and see the requests as AWS does (see above)."""
    from moto.core.authorization import ActionAuthenticatorMixin
    from moto.iam.access_control import IAMRequestBase
    from moto.s3.responses import ACTION_MAP
    from moto.sns.responses import SNSResponse

    check = IAMRequestBase.check_action_permitted
    judge_s3 = ActionAuthenticatorMixin._authenticate_and_authorize_s3_action  # noqa: SLF001

    def noted(request: Any, resource: str) -> None:
        request._action = request._action.removesuffix("Batch")  # noqa: SLF001
        allowed = False
        try:
            check(request, resource)
            allowed = True
        finally:
            account.calls.append(Call(request._action, resource, allowed))  # noqa: SLF001

    def each_key(response: Any, bucket_name: str | None = None, key_name: str | None = None) -> None:
        keys = [key_name]
        if response.data.get("Action") == "DeleteObject" and key_name is None:
            tree = ET.fromstring(response.body)  # noqa: S314 -- our own request
            keys = [element.text for element in tree.iter() if element.tag.endswith("Key")]
        for key in keys:
            judge_s3(response, bucket_name=bucket_name, key_name=key)

    def topic(response: Any) -> str:
        return response._get_param("TopicArn") or response._get_param("TargetArn") or "*"  # noqa: SLF001

    with (
        patch.object(IAMRequestBase, "check_action_permitted", noted),
        patch.object(ActionAuthenticatorMixin, "_authenticate_and_authorize_s3_action", each_key),
        patch.object(SNSResponse, "_determine_resource", topic, create=True),
        patch.dict(ACTION_MAP["BUCKET"]["HEAD"], {"DEFAULT": "ListBucket"}),
    ):
        yield


@contextmanager
def judged() -> Iterator[None]:
    """Inside, moto checks signatures and policies."""
    from moto.core.authorization import enable_iam_authentication

    with enable_iam_authentication():
        yield


@contextmanager
def unjudged() -> Iterator[None]:
    """Inside, it does not, so that the policy can be changed."""
    from moto.core.authorization import disable_iam_authentication

    with disable_iam_authentication():
        yield


@contextmanager
def as_host(account: Account, folder: Path) -> Iterator[None]:
    """Inside, this process is what runs on the host: the role's credentials, the settings of its .env; judged."""
    from fruits import stores

    left = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FRUITS_", "AIRFLOW_"))}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {**left, **account.environment(folder)}, clear=True))
        stack.callback(stores._credentials.cache_clear)  # noqa: SLF001
        stores._credentials.cache_clear()  # noqa: SLF001
        boto3.setup_default_session()  # one that was made before has other credentials
        stack.callback(boto3.setup_default_session)
        stack.enter_context(judged())
        yield


# What the host does


def chain(run_id: str) -> list[Step]:
    """The steps of a first run, and what goes with it."""
    from fruits.run.request import resolve_request
    from fruits.run.state import run_key
    from fruits.settings import Settings
    from fruits.steps.plan import plan_run
    from fruits.steps.publish import publish_run

    settings = Settings.load()
    request = resolve_request({}, settings)

    def plan() -> object:
        return dict(plan_run(settings, request, run_id).counts)

    return [
        ("prepare", prepare),
        ("plan", plan),
        *((job, lambda job=job: spark_job(job, run_key(run_id))) for job in JOBS),
        ("publish", lambda: publish_run(settings, run_key(run_id)).publication.publication_id),
        ("doctor", doctor),
        ("events", events),
        ("alert", alert),
        ("maintenance", lambda: maintenance(f"maintenance-{run_id}")),
    ]


def early() -> list[Step]:
    """The steps that find a missing permission without Spark."""
    return [("prepare", prepare), ("doctor", doctor), ("events", events), ("alert", alert)]


def doctor() -> str:
    """The checks of bucket, lake and queue; that of the backbone needs the other environment."""
    from fruits.serve.doctor import examine, lake_checks
    from fruits.settings import Settings

    findings = examine([check for check in lake_checks(Settings.load()) if check.name != "backbone"])
    wrong = [f"{one.check}: {one.found} ({one.fix})" for one in findings if one.state == "fail"]
    if wrong:
        raise FruitsError("\n".join(wrong))
    return f"{len(findings)} checks"


def prepare() -> str:
    """The task `prepare`, which builds the backbone the first time."""
    from fruits.run.request import resolve_request
    from fruits.settings import Settings
    from fruits.steps.prepare import prepare as prepare_run

    settings = Settings.load()
    prepare_run(settings, resolve_request({}, settings))
    return f"backbone {settings.backbone}"


def spark_job(job: TaskName, run: str) -> str:
    """A Spark job, in its own environment and process, as the DAG submits it."""
    from fruits.run.documents import read_documents
    from fruits.settings import Settings

    jobs = Path(os.environ["FRUITS_JOBS_ENV"])
    command = [jobs / "bin" / "spark-submit", *SPARK]
    done = subprocess.run(  # noqa: S603 -- our own
        [*map(str, command), str(ROOT / "spark_jobs" / f"{job}.py"), "--run", run],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": str(jobs / "bin" / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if " ERROR " in line] or done.stderr.splitlines()[-5:]
        raise FruitsError(f"{job}: exit code {done.returncode}: {' '.join(said)}")
    document = read_documents(Settings.load(), run).of(job)
    return f"seconds by phase {dict(document.seconds) if document else {}}"


def events() -> object:
    """The watch over the queue: it takes the messages of the photos that were uploaded."""
    import asyncio
    from contextlib import aclosing

    from fruits.airflow.events import PhotoEventsTrigger
    from fruits.settings import Settings

    def fail(message: str, *values: Any) -> None:
        raise FruitsError(message % values)

    async def first() -> dict[str, Any]:
        stream = PhotoEventsTrigger(str(Settings.load().event_queue)).run()
        assert isinstance(stream, AsyncGenerator)  # noqa: S101
        async with aclosing(stream):
            return dict((await asyncio.wait_for(anext(stream), 60)).payload)

    with patch.object(PhotoEventsTrigger, "log", Mock(error=fail)):
        return asyncio.run(first())["messages"]


def alert() -> str:
    """An alert over SNS."""
    from fruits.airflow.alerts import Message, send

    send(Message("a proof", "nothing to do"))
    return "sent"


def maintenance(run_id: str) -> str:
    """The DAG `fruit_maintenance`: it rewrites every file, and publishes."""
    from fruits.run.request import resolve_maintenance
    from fruits.settings import Settings
    from fruits.steps.plan_maintenance import plan_maintenance

    settings = Settings.load()
    planned = plan_maintenance(settings, resolve_maintenance({"rewrite_all": True}, settings), run_id)
    return spark_job("maintain", planned.key)


# The judge of our own


def permits(statement: Statement, action: str, resource: str) -> bool:
    """Whether a statement without condition allows an action on a resource; as AWS reads it."""
    if statement["Effect"] != "Allow" or "Condition" in statement:
        return False
    return any(_matches(one, action.lower(), lower=True) for one in _listed(statement["Action"])) and any(
        _matches(one, resource) for one in _listed(statement["Resource"])
    )


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _matches(pattern: str, value: str, *, lower: bool = False) -> bool:
    escaped = re.escape(pattern.lower() if lower else pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(escaped, value, re.DOTALL) is not None


def actions(statements: Sequence[Statement]) -> set[str]:
    """All actions that statements name."""
    return {action for statement in statements for action in _listed(statement["Action"])}


def first_denial(steps: Sequence[Step]) -> tuple[str, str]:
    """The first step that fails, and what it says."""
    for name, step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 -- whatever it says is what the operator reads
            return name, str(error)
    raise FruitsError("nothing failed")


def upload_photos(account: Account) -> None:
    """Some photos that the generator draws, every fourth of them held out."""
    from sample_photos import draw

    for number in range(PHOTOS):
        label, split = LABELS[number % len(LABELS)], "Test" if number % 4 == 3 else "Training"  # noqa: PLR2004
        account.upload(f"{split}/{label}/{number}.jpg", draw(label, "Training", number, size=(100, 160)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the Spark jobs and what comes after them")
    quick = parser.parse_args(argv).quick
    with (
        tempfile.TemporaryDirectory() as folder,
        running_account() as account,
    ):
        account.deploy(TEMPLATE.read_text())
        whole = account.statements()
        upload_photos(account)
        with as_host(account, Path(folder)):
            print(f"With the whole policy ({len(whole)} statements):")
            for name, step in early() if quick else chain("proof"):
                before, start = len(account.calls), time.perf_counter()
                found = step()
                requests, spent = len(account.calls) - before, time.perf_counter() - start
                print(f"  {name:12} passes  {spent:5.1f} s  {requests:4d} requests  {found}", flush=True)
            for statement in whole:
                account.set_statements([one for one in whole if one is not statement])
                account.upload("Training/Kiwi/new.jpg", b"wakes the trigger")
                name, said = first_denial(early())
                print(f"Without {statement['Sid']}: {name} fails:\n  {said.replace(chr(10), chr(10) + '  ')}")
            account.set_statements(whole)
    return 0


if __name__ == "__main__":
    sys.exit(main())
