"""Test redrive policies, dead letters, and the tasks that move them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.sqs.aws import REGION, refused
from tests.support.engines import FakeClock
from tests.support.live import await_true
from tests.support.wsgi import Client

Make = Callable[..., str]


def arn(name: str) -> str:
    return f"arn:aws:sqs:{REGION}:000000000000:{name}"


def policy(target: str = "dead", count: object = 1) -> str:
    return json.dumps({"deadLetterTargetArn": arn(target), "maxReceiveCount": count})


def receive(sqs: Any, url: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sqs.receive_message(QueueUrl=url, AttributeNames=["All"], **more).get("Messages", [])
    return found


@pytest.fixture
def queues(make: Make) -> tuple[str, str]:
    """Return the URLs of a queue that allows one receive, and of its dead-letter queue."""
    dead = make("dead")
    return make("q", RedrivePolicy=policy(), VisibilityTimeout="5"), dead


def let_die(sqs: Any, url: str, clock: FakeClock, *bodies: str) -> list[str]:
    ids = [sqs.send_message(QueueUrl=url, MessageBody=body)["MessageId"] for body in bodies]
    for _ in range(2):
        receive(sqs, url, MaxNumberOfMessages=10)
        clock.advance(6)
    return ids


def test_a_message_that_is_received_too_often_moves(sqs: Any, queues: tuple[str, str], clock: FakeClock) -> None:
    url, dead = queues
    (identity,) = let_die(sqs, url, clock, "a")
    (message,) = receive(sqs, dead, VisibilityTimeout=0)
    assert (message["MessageId"], message["Body"]) == (identity, "a")
    assert message["Attributes"]["DeadLetterQueueSourceArn"] == arn("q")
    assert message["Attributes"]["ApproximateReceiveCount"] == "2"
    assert receive(sqs, url) == []


def test_a_message_that_dies_twice_keeps_its_id(sqs: Any, make: Make, clock: FakeClock) -> None:
    last = make("last")
    middle = make("dead", RedrivePolicy=policy("last"), VisibilityTimeout="5")
    (identity,) = let_die(sqs, make("q", RedrivePolicy=policy(), VisibilityTimeout="5"), clock, "a")
    receive(sqs, middle)
    clock.advance(6)
    receive(sqs, middle)
    (message,) = receive(sqs, last)
    assert message["MessageId"] == identity
    assert message["Attributes"]["DeadLetterQueueSourceArn"] == arn("dead")
    assert message["Attributes"]["ApproximateReceiveCount"] == "3"


def test_attributes_of_a_dead_letter_are_those_it_was_sent_with(
    sqs: Any, queues: tuple[str, str], clock: FakeClock
) -> None:
    url, dead = queues
    attributes = {"a": {"DataType": "Number.int", "StringValue": "1"}}
    sqs.send_message(QueueUrl=url, MessageBody="a", MessageAttributes=attributes)
    receive(sqs, url)
    clock.advance(6)
    receive(sqs, url)
    (message,) = receive(sqs, dead, MessageAttributeNames=["All"])
    assert message["MessageAttributes"] == attributes


def test_a_death_frees_the_group(sqs: Any, make: Make, clock: FakeClock) -> None:
    dead = make("dead.fifo", ContentBasedDeduplication="true")
    url = make("q.fifo", RedrivePolicy=policy("dead.fifo"), ContentBasedDeduplication="true", VisibilityTimeout="5")
    for body in ("1", "2"):
        sqs.send_message(QueueUrl=url, MessageBody=body, MessageGroupId="g")
    assert [one["Body"] for one in receive(sqs, url)] == ["1"]
    clock.advance(6)
    assert [one["Body"] for one in receive(sqs, url)] == ["2"]
    (message,) = receive(sqs, dead)
    assert message["Body"] == "1"
    assert message["Attributes"]["MessageGroupId"] == "g"


def test_a_native_rejection_is_a_dead_letter_of_sqs(sqs: Any, queues: tuple[str, str], native: Client) -> None:
    url, dead = queues
    sqs.send_message(QueueUrl=url, MessageBody="a")
    (message,) = receive(sqs, url)
    assert native.call("PATCH", f"/messages/{message['ReceiptHandle']}", b'{"dead": true}').status == 204
    (buried,) = receive(sqs, dead)
    assert buried["MessageId"] == message["MessageId"]
    assert native.get("/queues/q").json["stats"]["dead"] == 1


def test_a_policy_is_read_and_ended(sqs: Any, queues: tuple[str, str], native: Client) -> None:
    url, _ = queues
    asked = {"QueueUrl": url, "AttributeNames": ["RedrivePolicy"]}
    assert json.loads(sqs.get_queue_attributes(**asked)["Attributes"]["RedrivePolicy"]) == json.loads(policy())
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy(count="1000")})
    assert json.loads(sqs.get_queue_attributes(**asked)["Attributes"]["RedrivePolicy"]) == json.loads(
        policy(count=1000)
    )
    assert native.get("/queues/q").json["settings"]["dead_letter_queue"] == "dead"
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": ""})
    assert "Attributes" not in sqs.get_queue_attributes(**asked)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("x", "Redrive policy is not a valid JSON map."),
        ("[]", "Redrive policy is not a valid JSON map."),
        ("{}", "does not contain mandatory attribute: deadLetterTargetArn."),
        (json.dumps({"deadLetterTargetArn": arn("dead")}), "mandatory attribute: maxReceiveCount."),
        (json.dumps({"deadLetterTargetArn": "dummy", "maxReceiveCount": 4}), "Invalid value for deadLetterTargetArn."),
        (policy(count=0), "valid values are from 1 to 1000 both inclusive."),
        (policy(count=1001), "valid values are from 1 to 1000 both inclusive."),
        (policy(count="x"), "valid values are from 1 to 1000 both inclusive."),
        (policy(count=None), "valid values are from 1 to 1000 both inclusive."),
        (policy("nope"), "Dead letter target does not exist."),
        (policy("dead.fifo"), "Dead-letter queue must be same type of queue as the source."),
        (policy("q"), ""),
    ],
)
def test_a_bad_policy_is_refused(sqs: Any, make: Make, value: str, why: str) -> None:
    make("dead"), make("dead.fifo")
    with refused("InvalidParameterValue", f"Value {value} for parameter RedrivePolicy is invalid. Reason: "):
        sqs.set_queue_attributes(QueueUrl=make(), Attributes={"RedrivePolicy": value})
    with refused("InvalidParameterValue", why):
        make("q2", RedrivePolicy=value) if why else sqs.set_queue_attributes(
            QueueUrl=make(), Attributes={"RedrivePolicy": value}
        )


def test_sources_of_a_dead_letter_queue_are_listed(sqs: Any, make: Make) -> None:
    dead = make("dead")
    assert sqs.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"] == []
    urls = [make(f"q{number}", RedrivePolicy=policy()) for number in range(3)]
    assert sqs.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"] == urls
    page = sqs.list_dead_letter_source_queues(QueueUrl=dead, MaxResults=2)
    rest = sqs.list_dead_letter_source_queues(QueueUrl=dead, MaxResults=2, NextToken=page["NextToken"])
    assert page["queueUrls"] + rest["queueUrls"] == urls
    assert "NextToken" not in rest


# Move tasks. The store runs them by real time.


def tasks(sqs: Any, source: str = "dead", **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sqs.list_message_move_tasks(SourceArn=arn(source), **more).get("Results", [])
    return found


def ended(sqs: Any) -> dict[str, Any]:
    await_true(lambda: tasks(sqs)[0]["Status"] != "RUNNING")
    return tasks(sqs)[0]


def test_dead_letters_move_back_to_their_queues(sqs: Any, queues: tuple[str, str], clock: FakeClock) -> None:
    url, dead = queues
    ids = let_die(sqs, url, clock, "a", "b")
    assert sqs.start_message_move_task(SourceArn=arn("dead"))["TaskHandle"]
    task = ended(sqs)
    assert task == {
        "Status": "COMPLETED",
        "SourceArn": arn("dead"),
        "ApproximateNumberOfMessagesMoved": 2,
        "ApproximateNumberOfMessagesToMove": 2,
        "StartedTimestamp": task["StartedTimestamp"],
    }
    moved = receive(sqs, url, MaxNumberOfMessages=10)
    assert [one["Body"] for one in moved] == ["a", "b"]
    assert [one["Attributes"]["ApproximateReceiveCount"] for one in moved] == ["1", "1"]
    assert not set(ids) & {one["MessageId"] for one in moved}
    assert receive(sqs, dead) == []


def test_dead_letters_move_to_another_queue(sqs: Any, make: Make, queues: tuple[str, str], clock: FakeClock) -> None:
    other = make("other")
    let_die(sqs, queues[0], clock, "a")
    sqs.start_message_move_task(SourceArn=arn("dead"), DestinationArn=arn("other"), MaxNumberOfMessagesPerSecond=500)
    task = ended(sqs)
    assert (task["Status"], task["DestinationArn"]) == ("COMPLETED", arn("other"))
    assert task["MaxNumberOfMessagesPerSecond"] == 500
    assert [one["Body"] for one in receive(sqs, other)] == ["a"]


def test_a_slow_task_is_cancelled(sqs: Any, queues: tuple[str, str], clock: FakeClock) -> None:
    let_die(sqs, queues[0], clock, *map(str, range(8)))
    handle = sqs.start_message_move_task(SourceArn=arn("dead"), MaxNumberOfMessagesPerSecond=1)["TaskHandle"]
    with refused("InvalidParameterValue", "There is already a task running."):
        sqs.start_message_move_task(SourceArn=arn("dead"))
    (task,) = tasks(sqs)
    assert (task["Status"], task["TaskHandle"], task["ApproximateNumberOfMessagesToMove"]) == ("RUNNING", handle, 8)
    assert json.loads(base64.b64decode(handle)).keys() == {"taskId", "sourceArn"}
    moved = sqs.cancel_message_move_task(TaskHandle=handle)["ApproximateNumberOfMessagesMoved"]
    (task,) = tasks(sqs, MaxResults=10)
    assert task["Status"] == "CANCELLED"
    assert "TaskHandle" not in task
    assert moved < 8
    with refused("ResourceNotFoundException", "Task does not exist."):
        sqs.cancel_message_move_task(TaskHandle=handle)


def test_newest_tasks_are_listed_first(sqs: Any, make: Make, queues: tuple[str, str]) -> None:
    make("other")
    sqs.start_message_move_task(SourceArn=arn("dead"))
    ended(sqs)
    time.sleep(0.01)
    sqs.start_message_move_task(SourceArn=arn("dead"), DestinationArn=arn("other"))
    ended(sqs)
    assert len(tasks(sqs)) == 1
    assert ["DestinationArn" in one for one in tasks(sqs, MaxResults=2)] == [True, False]


def test_a_message_that_was_never_elsewhere_cannot_go_back(sqs: Any, queues: tuple[str, str]) -> None:
    _, dead = queues
    sqs.send_message(QueueUrl=dead, MessageBody="a")
    sqs.start_message_move_task(SourceArn=arn("dead"))
    task = ended(sqs)
    assert (task["Status"], task["FailureReason"]) == ("FAILED", "CouldNotDetermineMessageSource")


def test_tasks_that_cannot_be(sqs: Any, queues: tuple[str, str]) -> None:
    with refused("InvalidParameterValue", "Source queue must be configured as a Dead Letter Queue."):
        sqs.start_message_move_task(SourceArn=arn("q"))
    for call, parameters in (
        (sqs.start_message_move_task, {"SourceArn": arn("nope")}),
        (sqs.start_message_move_task, {"SourceArn": arn("dead"), "DestinationArn": arn("nope")}),
        (sqs.list_message_move_tasks, {"SourceArn": arn("nope")}),
    ):
        with refused("ResourceNotFoundException", "parameter doesn't exist."):
            call(**parameters)
    for rate in (0, 501):
        with refused("InvalidParameterValue"):
            sqs.start_message_move_task(SourceArn=arn("dead"), MaxNumberOfMessagesPerSecond=rate)
    for count in (0, 11):
        with refused("InvalidParameterValue"):
            tasks(sqs, MaxResults=count)
    with refused("InvalidParameterValue", "You must use this format to specify the SourceArn"):
        sqs.list_message_move_tasks(SourceArn="dead")


@pytest.mark.parametrize(
    ("task", "code"),
    [
        (b"x", "InvalidParameterValue"),
        (b"[]", "InvalidParameterValue"),
        (b"{}", "InvalidParameterValue"),
        (b'{"taskId": "1"}', "InvalidParameterValue"),
        (json.dumps({"taskId": "1", "sourceArn": arn("nope")}).encode(), "ResourceNotFoundException"),
        (json.dumps({"taskId": "1", "sourceArn": arn("dead")}).encode(), "ResourceNotFoundException"),
        (json.dumps({"taskId": "\ud800", "sourceArn": arn("dead")}).encode(), "ResourceNotFoundException"),
        (json.dumps({"taskId": "\0", "sourceArn": arn("dead")}).encode(), "ResourceNotFoundException"),
        (json.dumps({"taskId": "1", "sourceArn": arn("\ud800")}).encode(), "InvalidParameterValue"),
    ],
)
def test_a_bad_handle_of_a_task(sqs: Any, queues: tuple[str, str], task: bytes, code: str) -> None:
    with refused(code):
        sqs.cancel_message_move_task(TaskHandle=base64.b64encode(task).decode())
    with refused("InvalidParameterValue", "Value for parameter TaskHandle is invalid."):
        sqs.cancel_message_move_task(TaskHandle="?")
