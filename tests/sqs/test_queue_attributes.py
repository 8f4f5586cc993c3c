"""Test attributes of queues."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.sqs.aws import REGION, refused
from tests.support.engines import FakeClock
from tests.support.wsgi import Client

Make = Callable[..., str]

STANDARD = {
    "ApproximateNumberOfMessages": "0",
    "ApproximateNumberOfMessagesDelayed": "0",
    "ApproximateNumberOfMessagesNotVisible": "0",
    "DelaySeconds": "0",
    "MaximumMessageSize": "1048576",
    "MessageRetentionPeriod": "345600",
    "ReceiveMessageWaitTimeSeconds": "0",
    "SqsManagedSseEnabled": "true",
    "VisibilityTimeout": "30",
}
FIFO = {
    "ContentBasedDeduplication": "false",
    "DeduplicationScope": "queue",
    "FifoQueue": "true",
    "FifoThroughputLimit": "perQueue",
}


def attributes(sqs: Any, url: str, *names: str) -> dict[str, str]:
    found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(names)).get("Attributes", {})
    return found


@pytest.mark.parametrize(("name", "more"), [("q", {}), ("q.fifo", FIFO)])
def test_a_new_queue_has_the_attributes_of_aws(sqs: Any, make: Make, clock: FakeClock, name: str, more: Any) -> None:
    now = str(clock.now() // 1000)
    arn = f"arn:aws:sqs:{REGION}:000000000000:{name}"
    own = {"QueueArn": arn, "CreatedTimestamp": now, "LastModifiedTimestamp": now}
    assert attributes(sqs, make(name), "All") == STANDARD | more | own


def test_only_the_named_attributes_are_returned(sqs: Any, make: Make) -> None:
    url = make()
    assert attributes(sqs, url, "VisibilityTimeout", "Policy") == {"VisibilityTimeout": "30"}
    assert "Attributes" not in sqs.get_queue_attributes(QueueUrl=url)
    assert "Attributes" not in sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])
    with refused("InvalidAttributeName", "Unknown Attribute Foobar."):
        attributes(sqs, url, "Foobar")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("VisibilityTimeout", 0, 43_200),
        ("DelaySeconds", 0, 900),
        ("ReceiveMessageWaitTimeSeconds", 0, 20),
        ("MaximumMessageSize", 1_024, 1_048_576),
        ("MessageRetentionPeriod", 60, 1_209_600),
        ("KmsDataKeyReusePeriodSeconds", 60, 86_400),
    ],
)
def test_numbers_have_the_limits_of_aws(sqs: Any, make: Make, name: str, least: int, most: int) -> None:
    url = make()
    for value in (least, most):
        sqs.set_queue_attributes(QueueUrl=url, Attributes={name: str(value)})
        assert attributes(sqs, url, name) == {name: str(value)}
    for bad in (str(least - 1), str(most + 1), "", "x", "1.5", "٣", "9" * 30):
        with refused("InvalidAttributeValue", f"Invalid value for the parameter {name}."):
            sqs.set_queue_attributes(QueueUrl=url, Attributes={name: bad})
        with refused("InvalidAttributeValue"):
            make("other", **{name: bad})
    assert attributes(sqs, url, name) == {name: str(most)}


@pytest.mark.parametrize("name", ["FifoQueue", "ContentBasedDeduplication", "QueueArn", "CreatedTimestamp", "Nonsense"])
def test_attributes_that_a_standard_queue_does_not_have(sqs: Any, make: Make, name: str) -> None:
    for value in ("false", "true"):
        with refused("InvalidAttributeName", f"Unknown Attribute {name}."):
            sqs.set_queue_attributes(QueueUrl=make(), Attributes={name: value})
    with refused("InvalidAttributeName", f"Unknown Attribute {name}."):
        make("other", **{name: "false"})


@pytest.mark.parametrize("name", ["FifoThroughputLimit", "DeduplicationScope"])
def test_only_fifo_queues_have_a_scope(sqs: Any, make: Make, name: str) -> None:
    with refused("InvalidAttributeName", f"You can specify the {name} only when FifoQueue is set to true."):
        sqs.set_queue_attributes(QueueUrl=make(), Attributes={name: "queue"})


def test_a_fifo_queue_remains_one(sqs: Any, make: Make) -> None:
    url = make("q.fifo")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"FifoQueue": "true", "ContentBasedDeduplication": "true"})
    assert attributes(sqs, url, "ContentBasedDeduplication") == {"ContentBasedDeduplication": "true"}
    with refused("InvalidAttributeValue", "Reason: Modifying queue type is not supported."):
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"FifoQueue": "false"})
    sqs.set_queue_attributes(
        QueueUrl=url, Attributes={"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
    )
    assert attributes(sqs, url, "DeduplicationScope", "FifoThroughputLimit") == {
        "DeduplicationScope": "messageGroup",
        "FifoThroughputLimit": "perMessageGroupId",
    }
    for bad in ({"DeduplicationScope": "x"}, {"FifoThroughputLimit": "x"}, {"ContentBasedDeduplication": "yes"}):
        with refused("InvalidAttributeValue"):
            sqs.set_queue_attributes(QueueUrl=url, Attributes=bad)


def test_a_policy_is_kept_and_an_empty_one_removes_it(sqs: Any, make: Make) -> None:
    policy = '{"Version": "2012-10-17", "Statement": []}'
    url = make(Policy=policy)
    assert attributes(sqs, url, "Policy") == {"Policy": policy}
    for bad in ("{", "[]", "1", "[" * 9_999):
        with refused("InvalidAttributeValue"):
            sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": bad})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": ""})
    assert attributes(sqs, url, "Policy") == {}


def test_a_queue_has_one_kind_of_encryption(sqs: Any, make: Make) -> None:
    url = make()
    names = ("KmsMasterKeyId", "KmsDataKeyReusePeriodSeconds", "SqsManagedSseEnabled")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"KmsMasterKeyId": "k", "KmsDataKeyReusePeriodSeconds": "6000"})
    assert attributes(sqs, url, *names) == dict(zip(names, ("k", "6000", "false"), strict=True))
    with refused("InvalidAttributeName", "You can either enable KMS SSE or SQS SSE."):
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"KmsMasterKeyId": "k", "SqsManagedSseEnabled": "true"})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"SqsManagedSseEnabled": "true"})
    assert attributes(sqs, url, *names) == {"SqsManagedSseEnabled": "true"}
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"SqsManagedSseEnabled": "false"})
    assert attributes(sqs, url, *names) == {"SqsManagedSseEnabled": "false"}


def test_a_redrive_allow_policy_is_kept(sqs: Any, make: Make) -> None:
    policy = json.dumps({"redrivePermission": "denyAll"})
    url = make(RedriveAllowPolicy=policy)
    assert attributes(sqs, url, "RedriveAllowPolicy") == {"RedriveAllowPolicy": policy}
    with refused("InvalidParameterValue"):
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedriveAllowPolicy": '{"redrivePermission": "maybe"}'})


def test_the_time_of_the_last_change_is_in_seconds(sqs: Any, make: Make, clock: FakeClock) -> None:
    url, created = make(), str(clock.now() // 1000)
    clock.advance(7.5)
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "5"})
    found = attributes(sqs, url, "CreatedTimestamp", "LastModifiedTimestamp")
    assert found == {"CreatedTimestamp": created, "LastModifiedTimestamp": str(int(created) + 7)}


def test_nothing_changes_if_one_attribute_is_bad(sqs: Any, make: Make) -> None:
    url = make()
    with refused("InvalidAttributeValue"):
        sqs.set_queue_attributes(QueueUrl=url, Attributes={"DelaySeconds": "5", "VisibilityTimeout": "-1"})
    assert attributes(sqs, url, "DelaySeconds") == {"DelaySeconds": "0"}


def test_a_native_queue_shows_what_it_has(sqs: Any, native: Client) -> None:
    settings = {"lease": 1.5, "delay": 2, "max_receives": 3, "retention": None}
    native.call("PUT", "/queues/jobs", json.dumps(settings).encode())
    url = sqs.get_queue_url(QueueName="jobs")["QueueUrl"]
    found = attributes(sqs, url, "All")
    assert (found["VisibilityTimeout"], found["DelaySeconds"], found["MessageRetentionPeriod"]) == ("2", "2", "1209600")
    arn = f"arn:aws:sqs:{REGION}:000000000000:jobs.dead"
    assert json.loads(found["RedrivePolicy"]) == {"deadLetterTargetArn": arn, "maxReceiveCount": 3}


def test_settings_of_both_apis_are_the_same(sqs: Any, native: Client, make: Make) -> None:
    make("q", VisibilityTimeout="7", ReceiveMessageWaitTimeSeconds="3", MaximumMessageSize="2048")
    make("f.fifo")
    settings = native.get("/queues/q").json["settings"]
    assert (settings["lease"], settings["wait"], settings["max_message_bytes"]) == (7, 3, 2048)
    assert (settings["retention"], settings["key_lock"]) == (345_600, "run")
    assert native.get("/queues/f.fifo").json["settings"]["key_lock"] == "head"


def test_states_are_counted(sqs: Any, make: Make) -> None:
    url = make()
    for number in range(3):
        sqs.send_message(QueueUrl=url, MessageBody=str(number))
    sqs.send_message(QueueUrl=url, MessageBody="late", DelaySeconds=9)
    sqs.receive_message(QueueUrl=url)
    found = attributes(sqs, url, "All")
    assert [found[f"ApproximateNumberOfMessages{state}"] for state in ("", "NotVisible", "Delayed")] == ["2", "1", "1"]
