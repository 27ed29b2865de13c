"""infra/fruits.yaml, deployed to moto: what it makes is as safe and as connected as it should be.

moto (5.2) can't make policies of buckets, queue and topic, subscriptions, alarms and secrets from a template, takes no
notice of most properties of a bucket, and of the image of a launch template. Those are rendered with the stack's own
names and looked at, and given to moto where it has an API for them.
"""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
WITHOUT_RESOURCES = {  # actions that AWS allows on "*" only
    "ssm:UpdateInstanceInformation",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
    "cloudwatch:PutMetricData",
}
BAD_VALUES = {
    "Name": ["", "ab", "Fruits", "fruits_1", "1fruits", "fruits-", "a" * 20, "fruits\n"],
    "RepositoryUrl": [
        "",
        "git@example.com:fruits.git",
        "http://example.com/x",
        "https://x/'; reboot; '",
        "https://a b",
    ],
    "Revision": ["", "-b", "a b", "'$(reboot)'", "a;b"],
    "Image": [
        "",
        "ami-12c6146b",
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/arm64/hvm/ebs-gp3/ami-id",
        "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id",
    ],
    "InstanceType": ["", "large", "m7i.xlarge extra", "M7i.xlarge"],
    "RdsInstanceClass": ["", "t4g.small", "db.t4g"],
    "AlertEmail": ["nobody", "a@b", "a@b.c d@e.f", "a b@c.d"],
}
GOOD_VALUES = {
    "Name": ["fruits", "orchard-7"],
    "RepositoryUrl": ["https://git.example.com/some/fruits.git"],
    "Revision": ["main", "v1.2.0", "0123abc", "feature/x"],
    "Image": [
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
        "/aws/service/canonical/ubuntu/server/24.04/stable/20261101/amd64/hvm/ebs-gp3/ami-id",
    ],
    "InstanceType": ["m7i.xlarge", "m7i-flex.large"],
    "RdsInstanceClass": ["db.t4g.small", "db.m7g.large"],
    "AlertEmail": ["", "grower@example.com"],
}


@pytest.fixture(scope="module")
def rendered(proof: ModuleType, account: Any, rds_account: Any) -> Callable[..., dict[str, Any]]:
    """The properties of a resource, with what it refers to filled in."""

    def of(resource: str, stack: str = "fruits") -> dict[str, Any]:
        return dict(proof.rendered(stack, resource))

    return of


@pytest.fixture(scope="module")
def template(proof: ModuleType) -> dict[str, Any]:
    """The template as it stands, parsed."""
    import yaml
    from moto.cloudformation.utils import yaml_tag_constructor

    yaml.SafeLoader.add_multi_constructor("", yaml_tag_constructor)
    return dict(yaml.safe_load(proof.TEMPLATE.read_text()))


@pytest.fixture(scope="module")
def rds_account(proof: ModuleType, account: Any) -> Iterator[Any]:
    """The same account with a second stack, whose databases are in RDS; the secret is made beforehand."""
    secret = account.client("secretsmanager").create_secret(Name="database", SecretString="s3cret")["ARN"]
    text = proof.TEMPLATE.read_text().replace("!Ref DatabaseSecret", secret).replace("${DatabaseSecret}", secret)
    other = proof.Account(account.endpoint)
    other.deploy(text, "with-rds", Name="with-rds", UseRds="yes")
    return other


@pytest.fixture(scope="module")
def by_source(proof: ModuleType, account: Any) -> Callable[[str], Any]:
    """The same account with a further stack, whose parameter `Listing` has this value."""

    @cache
    def deployed(listing: str) -> Any:
        other = proof.Account(account.endpoint)
        other.deploy(proof.TEMPLATE.read_text(), f"by-{listing}", Name=f"by-{listing}", Listing=listing)
        return other

    return deployed


def only(found: list[Any]) -> Any:
    assert len(found) == 1, found
    return found[0]


def taken(sqs: Any, url: str) -> list[str]:
    """The bodies of a queue's messages, which are deleted."""
    bodies = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            bodies.append(message["Body"])
    return bodies


def host(account: Any, name: str = "fruits") -> dict[str, Any]:
    filters = [{"Name": "tag:Name", "Values": [name]}]
    reservations = account.client("ec2").describe_instances(Filters=filters)["Reservations"]
    return dict(only([one for reservation in reservations for one in reservation["Instances"]]))


def user_data(account: Any, name: str = "fruits") -> str:
    instance = host(account, name)["InstanceId"]
    attribute = account.client("ec2").describe_instance_attribute(InstanceId=instance, Attribute="userData")
    return base64.b64decode(attribute["UserData"]["Value"]).decode()


class TestBuckets:
    def test_they_are_there(self, account):
        names = {bucket["Name"] for bucket in account.client("s3").list_buckets()["Buckets"]}
        assert {account.outputs["PhotosBucket"], account.outputs["Lake"].split("/")[2]} <= names

    @pytest.mark.parametrize("bucket", ["PhotosBucket", "LakeBucket"])
    def test_they_are_encrypted_versioned_and_private(self, rendered, bucket):
        properties = rendered(bucket)
        rule = only(properties["BucketEncryption"]["ServerSideEncryptionConfiguration"])
        assert rule == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
        assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
        assert len(properties["PublicAccessBlockConfiguration"]) == 4
        assert all(properties["PublicAccessBlockConfiguration"].values())
        assert properties["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}

    @pytest.mark.parametrize("bucket", ["PhotosBucket", "LakeBucket"])
    def test_old_versions_and_unfinished_uploads_go_and_nothing_else(self, rendered, bucket):
        rules = rendered(bucket)["LifecycleConfiguration"]["Rules"]
        assert all(rule["Status"] == "Enabled" for rule in rules)
        whats = {key for rule in rules for key in rule} - {"Id", "Status"}
        assert whats == {
            "NoncurrentVersionExpiration",
            "ExpiredObjectDeleteMarker",
            "AbortIncompleteMultipartUpload",
        }

    @pytest.mark.parametrize("bucket", ["PhotosBucket", "LakeBucket"])
    def test_only_encrypted_connections_are_taken(self, account, rendered, bucket):
        policy = rendered(f"{bucket}Policy")
        account.client("s3").put_bucket_policy(Bucket=policy["Bucket"], Policy=json.dumps(policy["PolicyDocument"]))
        statement = only(policy["PolicyDocument"]["Statement"])
        arn = f"arn:aws:s3:::{policy['Bucket']}"
        assert statement["Effect"] == "Deny"
        assert (statement["Principal"], statement["Action"]) == ("*", "s3:*")
        assert statement["Resource"] == [arn, f"{arn}/*"]
        assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        account.client("s3").delete_bucket_policy(Bucket=policy["Bucket"])  # moto takes no notice of the condition

    @pytest.mark.parametrize("bucket", ["PhotosBucket", "LakeBucket"])
    def test_they_outlive_the_stack(self, template, bucket):
        resource = template["Resources"][bucket]
        assert resource["DeletionPolicy"] == "RetainExceptOnCreate"
        assert resource["UpdateReplacePolicy"] == "Retain"
        protected = json.loads((ROOT / "infra" / "stack-policy.json").read_text())["Statement"][1]
        assert protected["Effect"] == "Deny"
        assert f"LogicalResourceId/{bucket}" in protected["Resource"]


class TestListing:
    """What the parameter `Listing` adds."""

    def test_a_listing_needs_nothing(self, rendered):
        properties = rendered("PhotosBucket")
        assert not {"InventoryConfigurations", "MetadataConfiguration"} & properties.keys()

    def test_the_inventory_has_what_a_sweep_reads_and_may_write_its_reports(self, by_source, proof):
        from fruits.photos import inventory

        by_inventory = by_source("inventory")
        photos, lake = by_inventory.outputs["PhotosBucket"], by_inventory.outputs["Lake"].split("/")[2]
        report = only(proof.rendered("by-inventory", "PhotosBucket")["InventoryConfigurations"])
        assert set(report["OptionalFields"]) == set(inventory._NEEDED.values()) - {"Key"}
        assert (report["IncludedObjectVersions"], report["Destination"]["Format"]) == ("Current", "Parquet")
        folder = f"s3://{lake}/{report['Destination']['Prefix']}/{photos}/{report['Id']}"
        assert by_inventory.outputs["InventoryReports"] == folder
        assert not folder.startswith(by_inventory.outputs["Lake"])
        _, writes = proof.rendered("by-inventory", "LakeBucketPolicy")["PolicyDocument"]["Statement"]
        assert (writes["Principal"], writes["Action"]) == ({"Service": "s3.amazonaws.com"}, "s3:PutObject")
        assert writes["Resource"] == f"arn:aws:s3:::{lake}/inventory/*"
        assert writes["Condition"]["ArnLike"] == {"aws:SourceArn": f"arn:aws:s3:::{photos}"}
        expired = proof.rendered("by-inventory", "LakeBucket")["LifecycleConfiguration"]["Rules"][1]
        assert (expired["Prefix"], expired["ExpirationInDays"]) == ("inventory/", 30)

    def test_the_host_may_read_the_reports_and_without_the_statement_is_told_so(self, by_source, proof, tmp_path):
        from fruits.errors import DeniedError
        from fruits.run.sources import source_of
        from fruits.settings import Settings
        from fruits.stores import open_store
        from tests.sources import Version, write_report

        by_inventory = by_source("inventory")
        folder, photos = by_inventory.outputs["InventoryReports"], by_inventory.outputs["PhotosBucket"]
        objects = [Version("Training/Kiwi/1.jpg", "one", datetime(2026, 11, 1, tzinfo=UTC))]
        sources = {"listing": "inventory", "inventory": folder}

        with proof.as_host(by_inventory, tmp_path):
            with proof.unjudged():
                store = open_store(Settings.load(), "/".join(folder.split("/")[:3]))
                path = "/".join(folder.split("/")[3:])
                write_report(store, path, objects, datetime(2026, 11, 2, tzinfo=UTC), bucket=photos)
            source = source_of(Settings.load(**sources), "")
            assert sum(batch.num_rows for batch in source.batches) == 1
            statement = only(by_inventory.statements("inventory"))
            by_inventory.set_statements([{**statement, "Resource": "arn:aws:s3:::elsewhere/*"}], "inventory")
            with pytest.raises(DeniedError, match="s3:GetObject on arn:aws:s3:::.*/inventory/"):
                source_of(Settings.load(**sources), "")

    def test_the_live_inventory_table_is_kept_and_the_host_may_read_it(self, by_source, proof):
        by_metadata = by_source("metadata")
        table = proof.rendered("by-metadata", "PhotosBucket")["MetadataConfiguration"]
        assert table["InventoryTableConfiguration"] == {"ConfigurationState": "ENABLED"}
        assert table["JournalTableConfiguration"]["RecordExpiration"] == {"Expiration": "ENABLED", "Days": 7}
        arn = "arn:aws:s3tables:us-east-1:123456789012:bucket/aws-s3"
        assert by_metadata.outputs["MetadataTable"] == arn
        find, read = by_metadata.statements("metadata")
        assert (find["Action"], find["Resource"]) == ("s3tables:GetTableBucket", arn)
        assert read["Action"] == ["s3tables:GetTable", "s3tables:GetTableData", "s3tables:GetTableMetadataLocation"]
        assert read["Resource"] == f"{arn}/table/*"


class TestEvents:
    def test_each_change_of_a_photo_is_a_message(self, account):
        s3, sqs, bucket = account.client("s3"), account.client("sqs"), account.outputs["PhotosBucket"]
        url = f"{account.endpoint}/123456789012/fruits-events"
        taken(sqs, url)
        s3.put_object(Bucket=bucket, Key="Training/Kiwi/1.jpg", Body=b"photo")
        s3.delete_object(Bucket=bucket, Key="Training/Kiwi/1.jpg")
        s3.put_object(Bucket=account.outputs["Lake"].split("/")[2], Key="lake/x", Body=b"no photo")
        records = [record for body in taken(sqs, url) for record in json.loads(body).get("Records", [])]
        assert {record["s3"]["bucket"]["name"] for record in records} == {bucket}
        assert [record["eventName"].split(":")[0] for record in records] == ["ObjectCreated", "ObjectRemoved"]

    def test_the_queue_takes_them_from_this_bucket_only(self, account, rendered):
        policy = rendered("EventQueuePolicy")
        assert policy["Queues"] == [account.outputs["EventQueue"]]
        sends, plain = policy["PolicyDocument"]["Statement"]
        assert sends["Principal"] == {"Service": "s3.amazonaws.com"}
        assert sends["Action"] == "sqs:SendMessage"
        assert sends["Resource"] == plain["Resource"] == "arn:aws:sqs:us-east-1:123456789012:fruits-events"
        assert sends["Condition"] == {
            "ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{account.outputs['PhotosBucket']}"},
            "StringEquals": {"aws:SourceAccount": "123456789012"},
        }
        assert (plain["Effect"], plain["Action"]) == ("Deny", "sqs:*")
        assert plain["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}

    def test_the_bucket_waits_for_the_policy_and_nothing_goes_in_a_circle(self, template):
        resources = template["Resources"]
        assert resources["PhotosBucket"]["DependsOn"] == "EventQueuePolicy"
        for name in ("EventQueue", "DeadLetterQueue", "EventQueuePolicy"):
            assert not re.search(r'"PhotosBucket"|[$]{PhotosBucket', json.dumps(resources[name])), name

    def test_what_can_not_be_deleted_ends_in_the_dead_letter_queue(self, account):
        sqs = account.client("sqs")
        url = f"{account.endpoint}/123456789012/fruits-events"
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        redrive = json.loads(attributes["RedrivePolicy"])
        assert redrive["deadLetterTargetArn"] == "arn:aws:sqs:us-east-1:123456789012:fruits-events-dead"
        seconds = int(redrive["maxReceiveCount"]) * int(attributes["VisibilityTimeout"])
        assert seconds >= 3_600, "the lake may be down for an hour"
        dead = sqs.get_queue_attributes(QueueUrl=f"{url}-dead", AttributeNames=["All"])["Attributes"]
        assert int(dead["MessageRetentionPeriod"]) > int(attributes["MessageRetentionPeriod"])

    @pytest.mark.parametrize("queue", ["EventQueue", "DeadLetterQueue"])
    def test_queues_are_encrypted(self, template, queue):
        assert template["Resources"][queue]["Properties"]["SqsManagedSseEnabled"] is True


class TestHost:
    def test_nothing_may_come_in(self, account, rendered, template):
        groups = only(rendered("Host")["NetworkInterfaces"])["GroupSet"]
        group = only(account.client("ec2").describe_security_groups(GroupIds=groups)["SecurityGroups"])
        assert group["IpPermissions"] == []
        assert template["Resources"]["HostSecurityGroup"]["Properties"]["SecurityGroupIngress"] == []
        assert not [one for one in template["Resources"].values() if one["Type"].endswith("SecurityGroupIngress")]
        assert sorted(rule["FromPort"] for rule in rendered("HostSecurityGroup")["SecurityGroupEgress"]) == [
            80,
            443,
            5432,
        ]

    def test_its_metadata_answer_tokens_only_and_containers_too(self, account, template):
        reference = template["Resources"]["Host"]["Properties"]["LaunchTemplate"]
        assert reference["LaunchTemplateId"] == {"Ref": "HostTemplate"}
        versions = account.client("ec2").describe_launch_template_versions(Versions=["$Latest"])
        options = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["MetadataOptions"]
        assert options == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}

    def test_its_disk_is_encrypted_and_outlives_it(self, template):
        disk = only(template["Resources"]["Host"]["Properties"]["BlockDeviceMappings"])["Ebs"]
        assert disk == {
            "VolumeType": "gp3",
            "VolumeSize": {"Ref": "DiskGiB"},
            "Encrypted": True,
            "DeleteOnTermination": False,
        }

    def test_there_is_no_key_for_ssh(self, account):
        assert "KeyName" not in host(account)

    def test_it_is_ubuntu_by_the_parameter_that_canonical_keeps(self, template):
        known = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
        assert template["Parameters"]["Image"]["Default"] == known
        data = template["Resources"]["HostTemplate"]["Properties"]["LaunchTemplateData"]
        assert data["ImageId"] == {"Fn::Sub": "resolve:ssm:${Image}"}
        assert "ImageId" not in template["Resources"]["Host"]["Properties"], "it would win over the launch template's"

    def test_cloudformation_waits_for_its_word(self, template):
        assert template["Resources"]["Host"]["CreationPolicy"] == {"ResourceSignal": {"Count": 1, "Timeout": "PT45M"}}

    def test_an_update_can_not_replace_it(self):
        policy = json.loads((ROOT / "infra" / "stack-policy.json").read_text())
        denied = [one for one in policy["Statement"] if one["Effect"] == "Deny"]
        assert only(denied)["Action"] == ["Update:Replace", "Update:Delete"]
        assert {"LogicalResourceId/Host", "LogicalResourceId/Database"} < set(only(denied)["Resource"])


class TestRole:
    def statements(self, *accounts: Any) -> list[dict[str, Any]]:
        found = []
        for one in accounts:
            names = one.client("iam").list_role_policies(RoleName=one.role)["PolicyNames"]
            found += [statement for name in names for statement in one.statements(name)]
        return found

    def test_only_instances_of_ec2_have_it(self, account):
        document = account.client("iam").get_role(RoleName=account.role)["Role"]["AssumeRolePolicyDocument"]
        assert only(document["Statement"])["Principal"] == {"Service": "ec2.amazonaws.com"}
        attached = account.client("iam").list_attached_role_policies(RoleName=account.role)["AttachedPolicies"]
        assert attached == [], "those that AWS manages allow more than we need"

    def test_each_statement_says_what_it_is_for(self, account, rds_account):
        sids = [statement.get("Sid", "") for statement in self.statements(account)]
        assert all(re.fullmatch(r"([A-Z][a-z0-9]*){2,}", sid) for sid in sids), sids
        assert len(set(sids)) == len(sids)
        more = {statement["Sid"] for statement in self.statements(rds_account)} - set(sids)
        assert more == {"ReadThePasswordOfTheDatabase"}

    def test_actions_are_named_and_resources_are_the_stacks_own(self, proof, account, rds_account):
        own = re.compile(
            r"arn:aws:s3:::(fruits|with-rds)-photos-123456789012-us-east-1(/\*)?"
            r"|arn:aws:s3:::(fruits|with-rds)-lake-123456789012-us-east-1(/lake/\*)?"
            r"|arn:aws:(sqs|sns):us-east-1:123456789012:(fruits|with-rds)-(events|alerts)"
            r"|arn:aws:cloudformation:us-east-1:123456789012:stack/(fruits|with-rds)/[0-9a-f-]+"
            r"|arn:aws:ssm:us-east-1:123456789012:parameter/(fruits|with-rds)/setup-log"
            r"|arn:aws:secretsmanager:us-east-1:123456789012:secret:database-\w+"
        )
        statements = self.statements(account, rds_account)
        assert statements
        for statement in statements:
            assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
            assert statement["Effect"] == "Allow"
            actions = proof.actions([statement])
            assert not [action for action in actions if "*" in action]
            if statement["Resource"] == "*":
                assert actions <= WITHOUT_RESOURCES, statement
            else:
                assert own.fullmatch(statement["Resource"]), statement

    def test_metrics_go_to_our_namespace_only(self, account):
        metrics = only([one for one in account.statements("host") if one["Action"] == "cloudwatch:PutMetricData"])
        assert metrics["Condition"] == {"StringEquals": {"cloudwatch:namespace": "Fruits"}}


class TestAlarms:
    ALARMS = ("QueueAgeAlarm", "DeadLettersAlarm", "DiskAlarm", "MemoryAlarm", "HostAlarm")

    def test_there_are_no_others(self, template):
        alarms = [name for name, one in template["Resources"].items() if one["Type"] == "AWS::CloudWatch::Alarm"]
        assert alarms == list(self.ALARMS)

    @pytest.mark.parametrize("name", ALARMS)
    def test_each_watches_something_of_the_stack_and_tells_the_topic(self, account, rendered, name):
        alarm = rendered(name)
        cloudwatch = account.client("cloudwatch")
        cloudwatch.put_metric_alarm(**alarm)
        kept = only(cloudwatch.describe_alarms(AlarmNames=[alarm["AlarmName"]])["MetricAlarms"])
        assert kept["AlarmActions"] == [account.outputs["AlertTopic"]]
        watched = only(kept["Dimensions"])["Value"]
        assert watched in {"fruits-events", "fruits-events-dead", account.outputs["HostId"]}
        assert not re.search(r"\s$", kept["AlarmDescription"])

    def test_metrics_of_the_agent_are_those_that_it_is_told_to_send(self, account, rendered):
        text = user_data(account)
        config = json.loads(text[text.index('{\n  "agent"') : text.index("\nJSON\n")])
        sent = {
            f"{group}_{measurement.removeprefix(f'{group}_')}"
            for group, one in config["metrics"]["metrics_collected"].items()
            for measurement in one["measurement"]
        }
        watched = {rendered(name)["MetricName"] for name in ("DiskAlarm", "MemoryAlarm")}
        assert sent == watched
        assert config["metrics"]["namespace"] == rendered("DiskAlarm")["Namespace"]
        assert config["metrics"]["aggregation_dimensions"] == [["InstanceId"]]

    def test_the_topic_hears_alarms_and_has_the_subscriber(self, account, rendered):
        policy = rendered("AlertTopicPolicy")
        attributes = {"AttributeName": "Policy", "AttributeValue": json.dumps(policy["PolicyDocument"])}
        account.client("sns").set_topic_attributes(TopicArn=only(policy["Topics"]), **attributes)
        publishes, plain = policy["PolicyDocument"]["Statement"]
        assert publishes["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
        assert publishes["Resource"] == plain["Resource"] == account.outputs["AlertTopic"]
        assert (plain["Effect"], plain["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
        assert rendered("AlertSubscription") == {
            "TopicArn": account.outputs["AlertTopic"],
            "Protocol": "email",
            "Endpoint": "grower@example.com",
        }


class TestParameters:
    def test_each_says_what_it_is_and_what_is_expected(self, template):
        for name, parameter in template["Parameters"].items():
            assert parameter["Description"].strip().endswith("."), name
            if "AllowedPattern" in parameter or "MinValue" in parameter:
                assert parameter["ConstraintDescription"], name
        assert [name for name, one in template["Parameters"].items() if "Default" not in one] == ["RepositoryUrl"]

    def test_those_with_a_pattern_are_all_tried(self, template):
        assert BAD_VALUES.keys() == {name for name, one in template["Parameters"].items() if "AllowedPattern" in one}

    @pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD_VALUES for value in BAD_VALUES[name]])
    def test_a_wrong_value_is_refused(self, template, name, value):
        assert not re.fullmatch(template["Parameters"][name]["AllowedPattern"], value)

    @pytest.mark.parametrize(("name", "value"), [(name, value) for name in GOOD_VALUES for value in GOOD_VALUES[name]])
    def test_a_right_value_is_taken(self, template, name, value):
        assert re.fullmatch(template["Parameters"][name]["AllowedPattern"], value)


class TestRds:
    def test_the_database_is_private_encrypted_and_backed_up(self, rds_account):
        database = only(rds_account.client("rds").describe_db_instances()["DBInstances"])
        assert (database["Engine"], database["EngineVersion"].split(".")[0]) == ("postgres", "17")
        assert database["StorageEncrypted"]
        assert not database["PubliclyAccessible"]
        assert database["BackupRetentionPeriod"] == 7

    def test_it_is_not_deleted_by_accident(self, template):
        database = template["Resources"]["Database"]
        assert database["DeletionPolicy"] == database["UpdateReplacePolicy"] == "Snapshot"

    def test_only_the_host_may_come_in(self, rendered):
        rule = only(rendered("DatabaseSecurityGroup", "with-rds")["SecurityGroupIngress"])
        assert rule["SourceSecurityGroupId"] == rendered("Host", "with-rds")["NetworkInterfaces"][0]["GroupSet"][0]
        assert (rule["FromPort"], rule["ToPort"]) == (5432, 5432)
        assert "CidrIp" not in rule

    def test_the_password_is_nowhere_in_the_template(self, proof):
        text = proof.TEMPLATE.read_text()
        assert 'MasterUserPassword: !Sub "{{resolve:secretsmanager:${DatabaseSecret}:SecretString}}"' in text
        assert "GenerateSecretString: { PasswordLength: 40, ExcludePunctuation: true }" in text

    def test_without_it_nothing_of_it_is_made(self, template):
        for name, resource in template["Resources"].items():
            assert (resource.get("Condition") == "Rds") == name.startswith("Database"), name


class TestOutputs:
    def test_the_guide_uses_those_that_there_are(self, rds_account, by_source):
        guide = (ROOT / "docs" / "deploy-aws.md").read_text()
        used = set(re.findall(r"\boutput ([A-Z]\w+)", guide))
        assert used
        stacks = rds_account, by_source("inventory"), by_source("metadata")
        assert used <= {name for stack in stacks for name in stack.outputs}

    def test_they_lead_to_the_host(self, account):
        identity = host(account)["InstanceId"]
        assert account.outputs["HostId"] == identity
        assert account.outputs["UiCommand"] == (
            f"aws ssm start-session --region us-east-1 --target {identity} --document-name "
            "AWS-StartPortForwardingSession --parameters portNumber=8080,localPortNumber=8080"
        )
        assert account.outputs["ShellCommand"].endswith(f"--target {identity}")
        assert account.outputs["Lake"] == "s3://fruits-lake-123456789012-us-east-1/lake"


STUBS = {
    "apt-get": "",
    "curl": 'touch "${@: -2:1}"',
    "dpkg": 'if [ "$1" = --print-architecture ]; then echo amd64; fi',
    "cloud-init": "echo i-0123456789abcdef0",
    "make": "",
    "systemctl": "",
}
BOTO3 = """
import json, os

class Client:
    def __init__(self, service):
        self.service = service
    def __getattr__(self, operation):
        def call(**arguments):
            with open(os.environ["BOTO3_CALLS"], "a") as file:
                print(json.dumps([f"{self.service}.{operation}", arguments]), file=file)
            return {"SecretString": "s3cret"}
        return call

client = Client
"""


class TestSetUp:
    """The user data, run with stubs in place of what needs root, the network or AWS."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
        agent = tmp_path / "opt/aws/amazon-cloudwatch-agent"
        for folder in ("bin", "python", "origin", "var/log"):
            (tmp_path / folder).mkdir(parents=True)
        (agent / "etc").mkdir(parents=True)
        self.origin(tmp_path / "origin")
        (tmp_path / "python" / "boto3.py").write_text(BOTO3)

        def run(text: str, **stubs: str) -> subprocess.CompletedProcess[str]:
            programs = {tmp_path / "bin" / name: body for name, body in {**STUBS, **stubs}.items()}
            for path, body in {**programs, agent / "bin" / "amazon-cloudwatch-agent-ctl": ""}.items():
                path.parent.mkdir(exist_ok=True)
                path.write_text(f'#!/bin/bash\necho "{path.name} $*" >>"$STUB_CALLS"\n{body}\n')
                path.chmod(0o755)
            for folder in ("/opt/", "/var/log/"):
                text = text.replace(folder, f"{tmp_path}{folder}")
            text = text.replace("https://git.example.com/fruits.git", str(tmp_path / "origin"))
            environment = {
                "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(tmp_path / "python"),
                "STUB_CALLS": str(tmp_path / "calls"),
                "BOTO3_CALLS": str(tmp_path / "boto3_calls"),
            }
            return subprocess.run(
                ["bash"],
                input=text,
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )

        return run

    def origin(self, folder: Path) -> None:
        (folder / ".env.example").write_text(
            "# Which services run\nCOMPOSE_PROFILES=postgres,local\nFRUITS_LAKE=\nFRUITS_S3_ENDPOINT=http://s3:8333\nX=1\n"
        )
        identity = {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }
        for command in ("init -q -b main", "add .", "commit -qm first"):
            subprocess.run(["git", *command.split()], cwd=folder, check=True, env={**os.environ, **identity})

    def settings(self, tmp_path: Path) -> dict[str, str]:
        file = tmp_path / "opt/fruits/.env"
        assert file.stat().st_mode & 0o777 == 0o600
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        names = [line.partition("=")[0] for line in lines]
        assert len(set(names)) == len(names), "each variable once"
        return dict(line.split("=", 1) for line in lines)

    def calls(self, tmp_path: Path) -> dict[str, Any]:
        return dict(json.loads(line) for line in (tmp_path / "boto3_calls").read_text().splitlines())

    @pytest.mark.parametrize("name", ["fruits", "with-rds"])
    def test_it_is_a_sound_script_that_fits(self, account, rds_account, name):
        text = user_data(account, name)
        assert text.startswith("#!/bin/bash\n")
        assert len(text) < 16_384, "EC2 takes no more"
        program = ROOT / ".venvs" / "jobs" / "bin" / "shellcheck"
        done = subprocess.run([program, "-"], input=text, capture_output=True, text=True, check=False)
        assert done.stdout == ""

    def test_it_installs_the_project_and_starts_it_for_good(self, account, run, tmp_path):
        done = run(user_data(account))
        assert done.returncode == 0, (tmp_path / "var/log/fruits-setup.log").read_text()
        calls = (tmp_path / "calls").read_text()
        for package in ("docker.io", "docker-compose-v2", "docker-buildx", "git", "make", "python3"):
            assert re.search(rf"^apt-get .* install .* {re.escape(package)}( |$)", calls, re.MULTILINE)
        assert "https://amazoncloudwatch-agent-us-east-1.s3.us-east-1.amazonaws.com/ubuntu/amd64/latest/" in calls
        assert f"-c file:{tmp_path}/opt/aws/amazon-cloudwatch-agent/etc/fruits.json" in calls
        assert "systemctl enable --now docker" in calls  # which starts the containers again after a reboot
        assert calls.rstrip().endswith(f"make --directory={tmp_path}/opt/fruits up")

    def test_the_settings_are_the_stacks(self, account, run, tmp_path):
        run(user_data(account))
        assert self.settings(tmp_path) == {
            "X": "1",
            "COMPOSE_PROFILES": "postgres",
            "FRUITS_BUCKET": account.outputs["PhotosBucket"],
            "FRUITS_LAKE": account.outputs["Lake"],
            "FRUITS_S3_ENDPOINT": "",
            "FRUITS_S3_REGION": "us-east-1",
            "FRUITS_EVENT_QUEUE": account.outputs["EventQueue"],
            "FRUITS_ALERT_SNS_TOPIC": account.outputs["AlertTopic"],
        }

    def test_with_rds_the_settings_lead_there_and_the_log_has_no_password(self, rds_account, run, tmp_path):
        run(user_data(rds_account, "with-rds"))
        settings = self.settings(tmp_path)
        assert settings["COMPOSE_PROFILES"] == ""
        assert settings["POSTGRES_HOST"] == rds_account.outputs["Database"]
        assert (settings["POSTGRES_USER"], settings["POSTGRES_PASSWORD"]) == ("fruits", "s3cret")
        calls = self.calls(tmp_path)
        assert calls["secretsmanager.get_secret_value"]["SecretId"].startswith("arn:aws:secretsmanager:")
        assert "s3cret" not in (tmp_path / "var/log/fruits-setup.log").read_text()

    def test_success_is_signalled_and_the_log_kept(self, account, run, tmp_path):
        run(user_data(account))
        calls = self.calls(tmp_path)
        assert calls["cloudformation.signal_resource"] == {
            "StackName": "fruits",
            "LogicalResourceId": "Host",
            "UniqueId": "i-0123456789abcdef0",
            "Status": "SUCCESS",
        }
        assert calls["ssm.put_parameter"]["Name"] == "/fruits/setup-log"
        assert "The set-up ended with status 0." in calls["ssm.put_parameter"]["Value"]

    @pytest.mark.parametrize(
        ("stubs", "said"),
        [
            ({"make": "echo 'no space left on device'; exit 2"}, "no space left on device"),
            ({"git": "echo 'repository not found' >&2; exit 128"}, "repository not found"),
        ],
        ids=["make up fails", "no repository"],
    )
    def test_a_failure_is_signalled_with_its_reason(self, account, run, tmp_path, stubs, said):
        done = run(user_data(account), **stubs)
        assert done.returncode != 0
        calls = self.calls(tmp_path)
        assert calls["cloudformation.signal_resource"]["Status"] == "FAILURE"
        assert said in calls["ssm.put_parameter"]["Value"]
        assert len(calls["ssm.put_parameter"]["Value"]) <= 4_096

    def test_the_signal_is_for_a_resource_that_waits_for_one(self, template, account):
        (resource,) = re.findall(r"RESOURCE='(\w+)'", user_data(account))
        assert "CreationPolicy" in template["Resources"][resource]


def test_the_guides_deploy_command_has_every_parameter(template):
    guide = (ROOT / "docs" / "deploy-aws.md").read_text()
    command = guide[guide.index("aws cloudformation deploy ") : guide.index("Only `RepositoryUrl` has no default")]
    given = dict(re.findall(r"(\w+)=(\S+)", command))
    assert given.keys() == template["Parameters"].keys()
    for name, parameter in template["Parameters"].items():
        if name not in {"RepositoryUrl", "AlertEmail"}:
            assert given[name] == str(parameter["Default"]), name


def test_the_guides_costs_are_those_of_the_script():
    done = subprocess.run([sys.executable, ROOT / "infra" / "costs.py"], capture_output=True, text=True, check=True)
    assert done.stdout in (ROOT / "docs" / "deploy-aws.md").read_text()
    assert re.search(r"^\| 1,000,000 \| .* \| \*\*\$\d+\*\* \|$", done.stdout, re.MULTILINE)
