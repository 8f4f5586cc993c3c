"""Test FIFO queues: order and locks of groups, deduplication, attempts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.sqs.aws import refused
from tests.support.engines import FakeClock
from tests.support.wsgi import Client

Make = Callable[..., str]


@pytest.fixture
def url(make: Make) -> str:
    return make("q.fifo", ContentBasedDeduplication="true", VisibilityTimeout="30")


def send(sqs: Any, url: str, body: str, group: str = "g", **more: str) -> dict[str, Any]:
    return dict(sqs.send_message(QueueUrl=url, MessageBody=body, MessageGroupId=group, **more))


def receive(sqs: Any, url: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sqs.receive_message(QueueUrl=url, **more).get("Messages", [])
    return found


def bodies(sqs: Any, url: str, **more: Any) -> list[str]:
    return [one["Body"] for one in receive(sqs, url, MaxNumberOfMessages=10, **more)]


def test_a_message_has_its_group_and_number(sqs: Any, url: str) -> None:
    sent = send(sqs, url, "a", MessageDeduplicationId="d")
    (message,) = receive(sqs, url, AttributeNames=["All"])
    attributes = message["Attributes"]
    assert attributes["MessageGroupId"] == "g"
    assert attributes["MessageDeduplicationId"] == "d"
    assert attributes["SequenceNumber"] == sent["SequenceNumber"]
    assert len(sent["SequenceNumber"]) == 20
    assert send(sqs, url, "b")["SequenceNumber"] > sent["SequenceNumber"]


def test_readers_get_the_deduplication_id_of_the_content(sqs: Any, url: str) -> None:
    send(sqs, url, "ä")
    (message,) = receive(sqs, url, AttributeNames=["MessageDeduplicationId"])
    assert message["Attributes"] == {"MessageDeduplicationId": hashlib.sha256("ä".encode()).hexdigest()}


def test_a_group_is_locked_and_others_are_not(sqs: Any, url: str) -> None:
    for body, group in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        send(sqs, url, body, group)
    assert [one["Body"] for one in receive(sqs, url)] == ["a1"]
    assert bodies(sqs, url) == ["b1"]
    assert bodies(sqs, url) == []


def test_a_read_takes_as_much_of_a_group_as_it_may(sqs: Any, url: str) -> None:
    for body, group in (("b1", "b"), ("a1", "a"), ("b2", "b")):
        send(sqs, url, body, group)
    found = [one["Body"] for one in receive(sqs, url, MaxNumberOfMessages=2)]
    assert found == ["b1", "b2"]


def test_a_reply_has_one_group_after_the_other(sqs: Any, url: str) -> None:
    for body, group in (("b1", "b"), ("a1", "a"), ("b2", "b"), ("a2", "a"), ("b3", "b")):
        send(sqs, url, body, group)
    assert bodies(sqs, url) == ["b1", "b2", "b3", "a1", "a2"]


def test_the_rest_of_a_group_follows_a_deletion(sqs: Any, url: str) -> None:
    for body in ("1", "2", "3"):
        send(sqs, url, body)
    one, two = receive(sqs, url, MaxNumberOfMessages=2)
    sqs.delete_message(QueueUrl=url, ReceiptHandle=one["ReceiptHandle"])
    assert bodies(sqs, url) == []
    sqs.delete_message(QueueUrl=url, ReceiptHandle=two["ReceiptHandle"])
    assert bodies(sqs, url) == ["3"]


def test_what_stands_before_the_first_invisible_message_is_delivered(sqs: Any, url: str) -> None:
    for body in ("1", "2", "3", "4"):
        send(sqs, url, body)
    one, two, three = receive(sqs, url, MaxNumberOfMessages=3)
    for message in (one, two):
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    assert bodies(sqs, url) == ["1", "2"]
    sqs.delete_message(QueueUrl=url, ReceiptHandle=three["ReceiptHandle"])


def test_messages_come_back_in_order(sqs: Any, url: str, clock: FakeClock) -> None:
    for body in ("1", "2", "3"):
        send(sqs, url, body)
    assert bodies(sqs, url) == ["1", "2", "3"]
    clock.advance(31)
    assert bodies(sqs, url) == ["1", "2", "3"]


def test_an_expired_handle_deletes_nothing(sqs: Any, url: str, clock: FakeClock) -> None:
    send(sqs, url, "a")
    handle = receive(sqs, url)[0]["ReceiptHandle"]
    clock.advance(31)
    with refused(
        "InvalidParameterValue", f"Value {handle} for parameter ReceiptHandle is invalid. Reason: The receipt"
    ):
        sqs.delete_message(QueueUrl=url, ReceiptHandle=handle)
    done = sqs.delete_message_batch(QueueUrl=url, Entries=[{"Id": "1", "ReceiptHandle": handle}])
    assert [(one["Id"], one["Code"]) for one in done["Failed"]] == [("1", "InvalidParameterValue")]
    (message,) = receive(sqs, url)
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])  # gone: succeeds


def test_a_duplicate_has_the_first_ones_id_for_five_minutes(sqs: Any, url: str, clock: FakeClock) -> None:
    first = send(sqs, url, "a")
    second = send(sqs, url, "a", "other")
    assert (second["MessageId"], second["SequenceNumber"]) == (first["MessageId"], first["SequenceNumber"])
    (message,) = receive(sqs, url)
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert send(sqs, url, "a")["MessageId"] == first["MessageId"]
    assert bodies(sqs, url) == []
    clock.advance(301)
    assert send(sqs, url, "a")["MessageId"] != first["MessageId"]
    assert bodies(sqs, url) == ["a"]


def test_deduplication_may_be_by_group(sqs: Any, make: Make) -> None:
    url = make("g.fifo", ContentBasedDeduplication="true", DeduplicationScope="messageGroup")
    assert send(sqs, url, "a", "1")["MessageId"] != send(sqs, url, "a", "2")["MessageId"]
    assert send(sqs, url, "a", "1")["MessageId"] == send(sqs, url, "a", "1")["MessageId"]
    assert bodies(sqs, url) == ["a", "a"]


def test_a_purge_forgets_deduplication(sqs: Any, url: str) -> None:
    send(sqs, url, "a")
    sqs.purge_queue(QueueUrl=url)
    send(sqs, url, "a")
    assert bodies(sqs, url) == ["a"]


def test_what_a_fifo_queue_needs(sqs: Any, make: Make) -> None:
    url = make("n.fifo")
    with refused("MissingParameter", "The request must contain the parameter MessageGroupId."):
        sqs.send_message(QueueUrl=url, MessageBody="a", MessageDeduplicationId="d")
    with refused("InvalidParameterValue", "either have ContentBasedDeduplication enabled or MessageDeduplicationId"):
        send(sqs, url, "a")
    with refused(
        "InvalidParameterValue", "Reason: The request include parameter that is not valid for this queue type."
    ):
        sqs.send_message(QueueUrl=url, MessageBody="a", MessageGroupId="g", MessageDeduplicationId="d", DelaySeconds=2)
    sqs.send_message(QueueUrl=url, MessageBody="a", MessageGroupId="g", MessageDeduplicationId="d", DelaySeconds=0)
    good = {"Id": "1", "MessageBody": "a", "MessageGroupId": "g", "MessageDeduplicationId": "e"}
    for missing in ("MessageGroupId", "MessageDeduplicationId"):
        bad = {name: value for name, value in good.items() if name != missing} | {"Id": "2"}
        with refused("InvalidParameterValue"):
            sqs.send_message_batch(QueueUrl=url, Entries=[good, bad])
    assert bodies(sqs, url) == ["a"]


@pytest.mark.parametrize("bad", ["a" * 129, "a b", "ä", "a\n"])
@pytest.mark.parametrize("name", ["MessageGroupId", "MessageDeduplicationId"])
def test_bad_identifiers_are_refused(sqs: Any, url: str, name: str, bad: str) -> None:
    good = {"MessageGroupId": "g", "MessageDeduplicationId": "d"}
    with refused(
        "InvalidParameterValue", "can only include alphanumeric and punctuation characters. 1 to 128 in length."
    ):
        sqs.send_message(QueueUrl=url, MessageBody="a", **(good | {name: bad}))


def test_the_queues_delay_holds_up_its_group(sqs: Any, make: Make, clock: FakeClock) -> None:
    url = make("d.fifo", ContentBasedDeduplication="true", DelaySeconds="5")
    send(sqs, url, "a")
    assert bodies(sqs, url) == []
    clock.advance(6)
    assert bodies(sqs, url) == ["a"]


def test_an_attempt_that_is_repeated_gets_the_same_messages(sqs: Any, url: str) -> None:
    for body in ("1", "2"):
        send(sqs, url, body, body)
    first = receive(sqs, url, ReceiveRequestAttemptId="try")
    again = receive(sqs, url, ReceiveRequestAttemptId="try", MaxNumberOfMessages=5)
    assert [one["ReceiptHandle"] for one in first] == [one["ReceiptHandle"] for one in again]
    assert [one["Body"] for one in receive(sqs, url, ReceiveRequestAttemptId="other")] == ["2"]
    with refused("InvalidParameterValue"):
        receive(sqs, url, ReceiveRequestAttemptId="a b")


def test_a_group_is_the_key_of_the_native_api(sqs: Any, url: str, native: Client) -> None:
    send(sqs, url, "a", "tenant-7")
    (message,) = native.get("/queues/q.fifo/peek").json
    assert (message["key"], message["text"]) == ("tenant-7", "a")
    native.post("/queues/q.fifo/messages", {"text": "b"})
    assert bodies(sqs, url, AttributeNames=["All"]) == ["a", "b"]
