"""Test tags and permissions of queues."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.sqs.aws import REGION, refused
from tests.support.wsgi import Client

Make = Callable[..., str]
ARN = f"arn:aws:sqs:{REGION}:000000000000:q"


def tags(sqs: Any, url: str) -> dict[str, str]:
    found: dict[str, str] = sqs.list_queue_tags(QueueUrl=url).get("Tags", {})
    return found


def test_tags_are_added_and_removed(sqs: Any, make: Make, native: Client) -> None:
    url = make()
    assert "Tags" not in sqs.list_queue_tags(QueueUrl=url)
    sqs.tag_queue(QueueUrl=url, Tags={"a": "1", "b": "2", "empty": ""})
    sqs.tag_queue(QueueUrl=url, Tags={"b": "3"})
    assert tags(sqs, url) == {"a": "1", "b": "3", "empty": ""}
    assert native.get("/queues/q").json["settings"]["tags"] == tags(sqs, url)
    sqs.untag_queue(QueueUrl=url, TagKeys=["a", "empty", "nope"])
    assert tags(sqs, url) == {"b": "3"}
    sqs.untag_queue(QueueUrl=url, TagKeys=["b"])
    assert "Tags" not in sqs.list_queue_tags(QueueUrl=url)


def test_a_queue_is_created_with_tags(sqs: Any) -> None:
    url = sqs.create_queue(QueueName="q", tags={"team": "x"})["QueueUrl"]
    assert tags(sqs, url) == {"team": "x"}
    sqs.create_queue(QueueName="q")
    assert tags(sqs, url) == {"team": "x"}


@pytest.mark.parametrize(
    "bad", [{"": "x"}, {"k" * 129: "x"}, {"k": "v" * 257}, {"aws:x": "y"}, {str(n): "" for n in range(51)}]
)
def test_bad_tags_are_refused(sqs: Any, make: Make, bad: dict[str, str]) -> None:
    with refused("InvalidParameterValue"):
        sqs.tag_queue(QueueUrl=make(), Tags=bad)
    with refused("InvalidParameterValue"):
        sqs.create_queue(QueueName="other", tags=bad)


def test_a_queue_has_at_most_fifty(sqs: Any, make: Make) -> None:
    url = make()
    sqs.tag_queue(QueueUrl=url, Tags={str(n): "x" for n in range(50)})
    sqs.tag_queue(QueueUrl=url, Tags={"0": "y"})
    with refused("InvalidParameterValue"):
        sqs.tag_queue(QueueUrl=url, Tags={"more": "x"})


def policy(sqs: Any, url: str) -> Any:
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"]).get("Attributes", {})
    return json.loads(found["Policy"]) if found else None


def test_permissions_are_statements_of_the_policy(sqs: Any, make: Make) -> None:
    url = make()
    one = {"QueueUrl": url, "AWSAccountIds": ["111111111111"], "Actions": ["ReceiveMessage"]}
    sqs.add_permission(Label="one", **one)
    first = {
        "Sid": "one",
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111111111111:root"},
        "Action": "SQS:ReceiveMessage",
        "Resource": ARN,
    }
    assert policy(sqs, url) == {"Version": "2008-10-17", "Id": f"{ARN}/SQSDefaultPolicy", "Statement": [first]}
    with refused("InvalidParameterValue", "Value one for parameter Label is invalid. Reason: Already exists."):
        sqs.add_permission(Label="one", **one)
    two = {"AWSAccountIds": ["1" * 12, "2" * 12], "Actions": ["*", "SendMessage"]}
    sqs.add_permission(QueueUrl=url, Label="two", **two)
    second = policy(sqs, url)["Statement"][1]
    assert second["Action"] == ["SQS:*", "SQS:SendMessage"]
    assert second["Principal"] == {"AWS": [f"arn:aws:iam::{account}:root" for account in two["AWSAccountIds"]]}
    sqs.remove_permission(QueueUrl=url, Label="one")
    assert policy(sqs, url)["Statement"] == [second]
    sqs.remove_permission(QueueUrl=url, Label="two")
    assert policy(sqs, url) is None
    with refused("InvalidParameterValue", "Value two for parameter Label is invalid. Reason: can't find label."):
        sqs.remove_permission(QueueUrl=url, Label="two")


def test_permissions_are_added_to_the_present_policy(sqs: Any, make: Make) -> None:
    own = {"Sid": "own", "Effect": "Deny"}
    url = make(Policy=json.dumps({"Version": "2012-10-17", "Statement": own}))
    sqs.add_permission(QueueUrl=url, Label="one", AWSAccountIds=["1" * 12], Actions=["*"])
    found = policy(sqs, url)
    assert (found["Version"], found["Statement"][0]) == ("2012-10-17", own)
    sqs.remove_permission(QueueUrl=url, Label="own")
    assert [statement["Sid"] for statement in policy(sqs, url)["Statement"]] == ["one"]


@pytest.mark.parametrize(
    "bad",
    [{"Label": "a b"}, {"Label": "x" * 81}, {"Actions": ["FooBar"]}, {"AWSAccountIds": ["x"]}],
)
def test_bad_permissions_are_refused(sqs: Any, make: Make, bad: dict[str, Any]) -> None:
    good = {"Label": "l", "AWSAccountIds": ["1" * 12], "Actions": ["SendMessage"]}
    with refused("InvalidParameterValue"):
        sqs.add_permission(QueueUrl=make(), **(good | bad))
    for name in good:
        with refused("MissingParameter", f"The request must contain the parameter {name}."):
            sqs.add_permission(QueueUrl=make(), **(good | {name: [] if name != "Label" else ""}))
