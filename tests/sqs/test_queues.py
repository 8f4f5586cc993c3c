"""Test queues: their names and URLs, creation, lists and deletion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.sqs.aws import ACCOUNT, ENDPOINT, Raw, boto_client, refused
from tests.support.wsgi import Client
from web.native.application import Application

Make = Callable[..., str]


def test_a_url_has_the_host_that_the_client_used(sqs: Any, make: Make, raw: Raw) -> None:
    assert make() == f"{ENDPOINT}/{ACCOUNT}/q"
    for host, scheme in (("queue.example:81", "http"), ("sqs", "https"), ("[::1]:5000", "http")):
        forwarded = {"X_Forwarded_Proto": "https"} if scheme == "https" else {}
        with_host = raw.json("GetQueueUrl", {"QueueName": "q"}, Host=host, **forwarded)
        if host == "queue.example:81":  # not a name of this machine
            assert (with_host.status, with_host.json["__type"]) == (421, "com.amazon.coral.service#MisdirectedRequest")
        else:
            assert with_host.json == {"QueueUrl": f"{scheme}://{host}/{ACCOUNT}/q"}


@pytest.mark.parametrize(
    "url", ["q", "/q", "http://other:1/123456789012/q", f"{ENDPOINT}/{ACCOUNT}/q/", "https://sqs.x.amazonaws.com/1/q"]
)
def test_a_queue_is_found_by_the_last_part_of_its_url(sqs: Any, make: Make, raw: Raw, url: str) -> None:
    make()
    assert raw.json("SendMessage", {"QueueUrl": url, "MessageBody": "a"}).status == 200


@pytest.mark.parametrize("url", ["nope", "http://", f"{ENDPOINT}/{ACCOUNT}/", "a b", "x" * 500, "\0"])
def test_another_url_is_that_of_no_queue(raw: Raw, url: str) -> None:
    reply = raw.json("SendMessage", {"QueueUrl": url, "MessageBody": "a"})
    assert (reply.status, reply.json["__type"]) == (400, "com.amazonaws.sqs#QueueDoesNotExist")


def test_no_action_creates_a_queue_by_use(sqs: Any, native: Client) -> None:
    url = f"{ENDPOINT}/{ACCOUNT}/q"
    calls: list[tuple[str, dict[str, Any]]] = [
        ("send_message", {"MessageBody": "a"}),
        ("send_message_batch", {"Entries": [{"Id": "1", "MessageBody": "a"}]}),
        ("receive_message", {}),
        ("delete_message", {"ReceiptHandle": "q~1~1"}),
        ("delete_message_batch", {"Entries": [{"Id": "1", "ReceiptHandle": "q~1~1"}]}),
        ("change_message_visibility", {"ReceiptHandle": "q~1~1", "VisibilityTimeout": 0}),
        ("change_message_visibility_batch", {"Entries": [{"Id": "1", "ReceiptHandle": "x", "VisibilityTimeout": 0}]}),
        ("set_queue_attributes", {"Attributes": {"DelaySeconds": "1"}}),
        ("get_queue_attributes", {"AttributeNames": ["All"]}),
        ("list_dead_letter_source_queues", {}),
        ("tag_queue", {"Tags": {"a": "b"}}),
        ("untag_queue", {"TagKeys": ["a"]}),
        ("list_queue_tags", {}),
        ("add_permission", {"Label": "l", "AWSAccountIds": [ACCOUNT], "Actions": ["*"]}),
        ("remove_permission", {"Label": "l"}),
        ("purge_queue", {}),
        ("delete_queue", {}),
    ]
    for name, parameters in calls:
        with refused("AWS.SimpleQueueService.NonExistentQueue", "The specified queue does not exist."):
            getattr(sqs, name)(QueueUrl=url, **parameters)
    assert native.get("/queues").json["queues"] == []


def test_a_queue_may_be_created_again_with_the_same_attributes(sqs: Any, make: Make) -> None:
    url = make(VisibilityTimeout="40", Policy="{}")
    assert url == make() == make(VisibilityTimeout="40") == make(Policy="{}", MessageRetentionPeriod="345600")
    for other in ({"VisibilityTimeout": "41"}, {"Policy": '{"Id": "x"}'}, {"KmsMasterKeyId": "k"}):
        with refused("QueueAlreadyExists", f"a different value for attribute {next(iter(other))}"):
            make(**other)
    with refused("InvalidAttributeValue"):
        make(VisibilityTimeout="-1")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "41"})
    assert make(VisibilityTimeout="41") == url


def test_a_native_queue_exists_for_sqs(make: Make, native: Client, sqs: Any) -> None:
    native.call("PUT", "/queues/jobs", b'{"lease": 60}')
    assert make("jobs", VisibilityTimeout="60") == f"{ENDPOINT}/{ACCOUNT}/jobs"
    assert native.get("/queues/jobs").json["settings"]["retention"] is None


@pytest.mark.parametrize("name", ["_a", "-a", "q" * 80, "A-Z_0"])
def test_names_may_begin_with_any_of_their_characters(sqs: Any, make: Make, name: str) -> None:
    assert make(name).endswith(f"/{name}")
    assert sqs.list_queues(QueueNamePrefix=name[:1])["QueueUrls"] == [make(name)]


@pytest.mark.parametrize("name", ["q" * 81, "a.b", "a b", "ä", "a/b", ".fifo", "q.fifo", f"{'q' * 76}.fifo"])
def test_a_bad_name_is_refused(sqs: Any, name: str) -> None:
    for attributes in ({}, {"FifoQueue": "true"}) if name != "q.fifo" else ({},):
        with refused("InvalidParameterValue"):
            sqs.create_queue(QueueName=name, Attributes=attributes)


def test_queues_are_listed_in_pages(sqs: Any, make: Make) -> None:
    assert "QueueUrls" not in sqs.list_queues()
    urls = [make(f"a-{number}") for number in range(5)]
    make("b")
    found: list[str] = []
    token: dict[str, str] = {}
    for _ in range(3):
        page = sqs.list_queues(QueueNamePrefix="a-", MaxResults=2, **token)
        found += page["QueueUrls"]
        token = {"NextToken": page["NextToken"]} if "NextToken" in page else {}
    assert (found, token) == (urls, {})
    assert "NextToken" not in sqs.list_queues(QueueNamePrefix="a-", MaxResults=5)
    assert "NextToken" not in sqs.list_queues(QueueNamePrefix="a-")
    assert "QueueUrls" not in sqs.list_queues(QueueNamePrefix="no such prefix")
    for bad in (0, 1_001):
        with refused("InvalidParameterValue"):
            sqs.list_queues(MaxResults=bad)
    with refused("InvalidParameterValue"):
        sqs.list_queues(MaxResults=2, NextToken="?")


def test_a_deleted_queue_is_gone_with_its_messages(sqs: Any, make: Make) -> None:
    url = make()
    sqs.send_message(QueueUrl=url, MessageBody="a")
    sqs.delete_queue(QueueUrl=url)
    with refused("AWS.SimpleQueueService.NonExistentQueue"):
        sqs.get_queue_url(QueueName="q")
    assert "Messages" not in sqs.receive_message(QueueUrl=make())


def test_a_queue_is_emptied(sqs: Any, make: Make) -> None:
    url = make()
    for _ in range(3):
        sqs.send_message(QueueUrl=url, MessageBody="a")
    sqs.receive_message(QueueUrl=url, VisibilityTimeout=0)
    sqs.purge_queue(QueueUrl=url)
    sqs.purge_queue(QueueUrl=url)
    assert "Messages" not in sqs.receive_message(QueueUrl=url)


def test_the_resources_of_boto3_work(app: Application) -> None:
    import boto3

    client = boto_client(app)
    resource = boto3.resource("sqs", endpoint_url=ENDPOINT, region_name="us-east-1", aws_access_key_id="a",
                              aws_secret_access_key="b")  # fmt: skip
    resource.meta.client = client
    queue = resource.create_queue(QueueName="q", Attributes={"DelaySeconds": "0"})
    queue.send_message(MessageBody="hello", MessageAttributes={"a": {"DataType": "String", "StringValue": "b"}})
    (message,) = queue.receive_messages(MessageAttributeNames=["All"])
    assert (message.body, message.message_attributes["a"]["StringValue"]) == ("hello", "b")
    message.delete()
    assert queue.attributes["ApproximateNumberOfMessages"] == "0"
