"""Test attributes of messages: their checks, their MD5 sums, and what the native API shows of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.sqs.aws import Raw, md5_of_attributes, refused
from tests.support.wsgi import Client

Make = Callable[..., str]
Attributes = dict[str, dict[str, Any]]


def string(value: str, kind: str = "String") -> dict[str, Any]:
    return {"DataType": kind, "StringValue": value}


def binary(value: bytes, kind: str = "Binary") -> dict[str, Any]:
    return {"DataType": kind, "BinaryValue": value}


def received(sqs: Any, url: str, *names: str) -> dict[str, Any]:
    (message,) = sqs.receive_message(QueueUrl=url, MessageAttributeNames=list(names), VisibilityTimeout=0)["Messages"]
    return dict(message)


ALL: Attributes = {
    "text": string("ä€😀\t\r\n <&>\"'"),
    "custom": string("x", "String.Ünï code"),
    "blob": binary(bytes(range(256))),
    "image": binary(b"\0", "Binary.image/png"),
    "whole": string("7", "Number"),
    "real": string("1.50", "Number"),
    "java": string("12", "Number.java.lang.Long"),
    "odd": string("+007", "Number"),
    "Ärger_-.1": string("y"),
    "large": string("9" * 100, "Number"),
}


def test_attributes_come_back_with_their_types(sqs: Any, make: Make) -> None:
    url = make()
    sent = sqs.send_message(QueueUrl=url, MessageBody="a", MessageAttributes=ALL)
    message = received(sqs, url, "All")
    assert message["MessageAttributes"] == ALL
    assert sent["MD5OfMessageAttributes"] == message["MD5OfMessageAttributes"] == md5_of_attributes(ALL)


def test_a_known_sum(sqs: Any, make: Make) -> None:
    attributes = {"timestamp": string("1493147359900", "Number")}
    sent = sqs.send_message(QueueUrl=make(), MessageBody="test", MessageAttributes=attributes)
    assert sent["MD5OfMessageAttributes"] == "235c5c510d26fb653d073faed50ae77c"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["All"], ["General", "Hello", "Help.Me"]),
        ([".*"], ["General", "Hello", "Help.Me"]),
        (["*"], ["General", "Hello", "Help.Me"]),
        (["Hel.*"], ["Hello", "Help.Me"]),
        (["Help.*"], ["Help.Me"]),
        (["Hello", "Nope", "AWS."], ["Hello"]),
        (["Nope"], []),
    ],
)
def test_readers_choose_attributes(sqs: Any, make: Make, names: list[str], expected: list[str]) -> None:
    url = make()
    attributes = {name: string(name) for name in ("Hello", "General", "Help.Me")}
    sqs.send_message(QueueUrl=url, MessageBody="msg", MessageAttributes=attributes)
    message = received(sqs, url, *names)
    chosen = {name: attributes[name] for name in expected}
    assert message.get("MessageAttributes", {}) == chosen
    assert message.get("MD5OfMessageAttributes") == (md5_of_attributes(chosen) if chosen else None)


@pytest.mark.parametrize(
    "name", ["", "a b", ".a", "a.", "aws.x", "AWS.x", "Amazon.x", "amazon.", "a/b", "x" * 257, "日本", "a\n"]
)
def test_bad_names_are_refused(sqs: Any, make: Make, name: str) -> None:
    with refused("InvalidParameterValue"):
        sqs.send_message(QueueUrl=make(), MessageBody="a", MessageAttributes={name: string("x")})


@pytest.mark.parametrize(
    "attribute",
    [
        string("", "String"), string("", "Number"), binary(b""), string("x", "Boolean"), string("x", "string"),
        string("x", ""), string("x", "Stringy"), string("x", "String."), string("x", f"String.{'x' * 250}"),
        string("x", "Number"), string("1,5", "Number"), string("NaN", "Number"), {"DataType": "String"},
        {"StringValue": "x"}, {"DataType": "Binary", "StringValue": "x"}, {"DataType": "String", "BinaryValue": b"x"},
        string("\0"), string("\ufffe"), string("x", "String.\0"), {},
    ],
)  # fmt: skip
def test_bad_attributes_are_refused(sqs: Any, make: Make, attribute: dict[str, Any]) -> None:
    with refused("InvalidParameterValue"):
        sqs.send_message(QueueUrl=make(), MessageBody="a", MessageAttributes={"a": attribute})


def test_empty_value_in_the_words_of_aws(sqs: Any, make: Make) -> None:
    with refused(
        "InvalidParameterValue",
        "Message (user) attribute 'ErrorDetails' must contain a non-empty value of type 'String'.",
    ):
        sqs.send_message(QueueUrl=make(), MessageBody="a", MessageAttributes={"ErrorDetails": string("")})


def test_a_message_has_at_most_ten(sqs: Any, make: Make) -> None:
    attributes = {str(number): string("x") for number in range(11)}
    with refused("InvalidParameterValue"):
        sqs.send_message(QueueUrl=make(), MessageBody="a", MessageAttributes=attributes)


def test_bytes_that_are_no_base64(make: Make, raw: Raw) -> None:
    attributes = {"a": {"DataType": "Binary", "BinaryValue": "a€"}}
    reply = raw.json("SendMessage", {"QueueUrl": make(), "MessageBody": "a", "MessageAttributes": attributes})
    assert reply.status == 400


def test_a_message_may_be_all_attribute(sqs: Any, make: Make) -> None:
    url = make()
    for attribute in (binary(b"\xff" * 1_048_560), string('"' * 1_048_560)):
        sqs.send_message(QueueUrl=url, MessageBody="a", MessageAttributes={"a": attribute})
        message = received(sqs, url, "a")
        assert message["MessageAttributes"] == {"a": attribute}
        sqs.purge_queue(QueueUrl=url)
    with refused("InvalidParameterValue", "Message must be shorter than 1048576 bytes."):
        sqs.send_message(QueueUrl=url, MessageBody="a", MessageAttributes={"a": binary(b"\xff" * 1_048_569)})


def test_the_trace_is_kept_and_has_its_own_sum(sqs: Any, make: Make, native: Client) -> None:
    url, trace = make(), "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    system = {"AWSTraceHeader": string(trace)}
    sent = sqs.send_message(QueueUrl=url, MessageBody="test", MessageSystemAttributes=system)
    assert sent["MD5OfMessageSystemAttributes"] == "5ae4d5d7636402d80f4eb6d213245a88"
    assert "MD5OfMessageAttributes" not in sent
    (message,) = sqs.receive_message(QueueUrl=url, AttributeNames=["AWSTraceHeader"])["Messages"]
    assert message["Attributes"] == {"AWSTraceHeader": trace}
    assert native.get("/queues/q/peek").json[0]["trace"] == trace
    for bad in ({"Other": string("x")}, {"AWSTraceHeader": binary(b"x")}, {"AWSTraceHeader": string("")}):
        with refused("InvalidParameterValue"):
            sqs.send_message(QueueUrl=url, MessageBody="a", MessageSystemAttributes=bad)


def test_the_trace_of_the_request_is_kept(make: Make, raw: Raw) -> None:
    url = make()
    raw.json("SendMessage", {"QueueUrl": url, "MessageBody": "a"}, X_Amzn_Trace_Id="Root=1-2-3")
    raw.json("SendMessage", {"QueueUrl": url, "MessageBody": "a"}, X_Amzn_Trace_Id="x" * 5_000)
    asked = {"QueueUrl": url, "AttributeNames": ["AWSTraceHeader"], "MaxNumberOfMessages": 2}
    first, second = raw.json("ReceiveMessage", asked).json["Messages"]
    assert first["Attributes"] == {"AWSTraceHeader": "Root=1-2-3"}
    assert "Attributes" not in second


def test_the_native_api_shows_attributes_as_json(sqs: Any, make: Make, native: Client) -> None:
    sqs.send_message(QueueUrl=make(), MessageBody="a", MessageAttributes=ALL)
    reply = native.get("/queues/q/messages")
    assert b'"real": 1.50' in reply.body
    assert reply.json["attributes"] == {
        "text": ALL["text"]["StringValue"],
        "custom": "x",
        "blob": base64.b64encode(bytes(range(256))).decode(),
        "image": "AA==",
        "whole": 7,
        "real": 1.5,
        "java": "12",
        "odd": "+007",
        "Ärger_-.1": "y",
        "large": "9" * 100,
    }
    assert reply.json["attribute_types"] == {
        name: ALL[name]["DataType"] for name in ("custom", "blob", "image", "java", "odd", "large")
    }


def test_attributes_of_native_messages_have_types(sqs: Any, native: Client) -> None:
    attributes = {"s": "x", "n": 7, "r": 1.50, "t": True, "f": False, "none": None, "e": "", "bad name!": "y"}
    body = json.dumps({"text": "a", "attributes": attributes}).replace("1.5", "1.50").encode()
    native.call("POST", "/queues/q/messages", body, Content_Type="application/json")
    message = received(sqs, sqs.get_queue_url(QueueName="q")["QueueUrl"], "All")
    assert message["MessageAttributes"] == {
        "s": string("x"),
        "n": string("7", "Number"),
        "r": string("1.50", "Number"),
        "t": string("true"),
        "f": string("false"),
        "e": string(""),
        "bad name!": string("y"),
    }
    assert message["MD5OfMessageAttributes"] == md5_of_attributes(message["MessageAttributes"])


def test_types_of_native_messages_that_do_not_fit_are_ignored(sqs: Any, native: Client) -> None:
    document = {
        "text": "a",
        "attributes": {"b": "no base64!", "o": "x", "n": "12"},
        "attribute_types": {"b": "Binary", "o": "Other", "n": "Number.int", "missing": "String"},
    }
    native.post("/queues/q/messages", document)
    message = received(sqs, sqs.get_queue_url(QueueName="q")["QueueUrl"], "All")
    expected = {"b": string("no base64!"), "o": string("x"), "n": string("12", "Number.int")}
    assert message["MessageAttributes"] == expected
