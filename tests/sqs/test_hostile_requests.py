"""Test bad SQS requests: none gets a 5xx, and no reply reveals how the service works."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import handler
from settings import Settings
from storage.store import Engine
from tests.sqs.aws import ACCOUNT, ENDPOINT, Raw, xml
from tests.support.live import REPOSITORY
from tests.support.wsgi import Reply, a_store
from web.sqs.actions.table import ACTIONS
from web.sqs.protocols.query import fields_of

URL = f"{ENDPOINT}/{ACCOUNT}/q"
PATH = f"/{ACCOUNT}/q"
GOOD: dict[str, Any] = {
    "QueueUrl": URL, "QueueName": "q", "MessageBody": "a", "ReceiptHandle": "q~1~1", "VisibilityTimeout": 1,
    "Entries": [{"Id": "1", "MessageBody": "a", "ReceiptHandle": "q~1~1", "VisibilityTimeout": 1}],
    "Attributes": {"DelaySeconds": "1"}, "AttributeNames": ["All"], "Tags": {"a": "b"}, "TagKeys": ["a"],
    "Label": "l", "AWSAccountIds": ["1" * 12], "Actions": ["*"], "SourceArn": f"arn:aws:sqs:x:{ACCOUNT}:q",
    "MessageAttributes": {"a": {"DataType": "String", "StringValue": "x"}}, "MaxNumberOfMessages": 1,
    "TaskHandle": "e30=",
}  # fmt: skip
DEEP: Any = 1
for _ in range(60):
    DEEP = [DEEP]
ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e300, 10**400, "", "\0", "\ud800", "x" * 5_000, [], {}, [None], [[]], [1], {"": None},
    {"a": None}, {"a": {}}, {"a": []}, {"\ud800": {"DataType": "String", "StringValue": "\ud800"}}, [{}],
    [{"Id": None}],
    [{"Id": "1", "MessageBody": 1}], DEEP, "q~9223372036854775807~7fffffffffffffff", "q~9223372036854775808~1", "٣",
    "-0", {"a": {"DataType": "Binary", "BinaryValue": "="}}, {"RedrivePolicy": "[" * 9_999}, {"Policy": "{" * 9_999},
    {"RedrivePolicy": '{"deadLetterTargetArn": {}, "maxReceiveCount": 1e999}'}, ["\ud800"], "arn:aws:sqs:x:1:\n",
    "ä" * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def store() -> Iterator[Engine]:
    with a_store() as store:
        store.configure("q", {})
        yield store


@pytest.fixture(scope="module")
def raw(store: Engine) -> Raw:
    return Raw(handler.make_app(Settings(), store))


def check(reply: Reply) -> None:
    assert reply.status < 500, reply
    assert reply.headers["x-amzn-requestid"]
    assert int(reply.headers["content-length"]) == len(reply.body)
    if reply.headers["content-type"] == "text/xml":
        if reply.status != 404 or reply.body != b"<UnknownOperationException/>":
            xml(reply)
    else:
        assert isinstance(reply.json, dict)
        assert reply.status == 200 or {"__type", "message"} == reply.json.keys()
    for inside in ("Traceback", 'File "', ".py", "SELECT ", "sqlite", str(REPOSITORY)):
        assert inside not in reply.body.decode()


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield fields of the query protocol, with names that are not always its own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flattened(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for place, inner in enumerate(value, 1):
            yield from flattened(inner, f"{name}.{place}")
    else:
        yield name.encode("utf-8", "replace").decode(), str(value).encode("utf-8", "replace").decode()


@pytest.mark.parametrize("action", ACTIONS)
def test_odd_values_of_every_member(raw: Raw, action: str) -> None:
    for member in GOOD:
        for odd in ODD:
            document = GOOD | {member: odd}
            if action != "ReceiveMessage" or document["QueueUrl"] == URL:
                check(raw.json(action, document))
    for odd in ODD:
        check(raw.json(action, odd if odd is not None else b"null"))


@pytest.mark.parametrize("action", ACTIONS)
def test_odd_fields_of_the_query_protocol(raw: Raw, action: str) -> None:
    names = [
        "Attribute", "Attribute.1", "Attribute.1.Name", "Attribute.x.Name", "Attribute..Name",
        "Attribute.1.Name.2.3.4.5.6",
        "Tag.1", "Tag.1.Key", "Tag.Key", "TagKey", "TagKey.0", "TagKey.99999999999999999999",
        "MessageAttribute.1.Value",
        "MessageAttribute.1.Value.DataType", "SendMessageBatchRequestEntry.1", "SendMessageBatchRequestEntry.1.Id",
        "DeleteMessageBatchRequestEntry.1.Id", "ChangeMessageVisibilityBatchRequestEntry.2.VisibilityTimeout",
        "AttributeName.1", "ActionName.1", "AWSAccountId.1", "MessageAttributeName.1", ".", "..", "", "Entries", "Tags",
    ]  # fmt: skip
    for name in names:
        for value in ("", "x", "\0", "ä" * 300, "1"):
            check(raw.query({"Action": action, "QueueUrl": URL, "QueueName": "q", name: value}))
    for odd in ODD[5:]:
        check(raw.query({"Action": action} | dict(flattened(GOOD | {"Tags": odd, "Attribute": odd}))))


BODIES = [
    b"", b"Action", b"Action=", b"Action=%", b"Action=%ff", b"Action=SendMessage&" + b"a=b&" * 5_000,
    b"Action=" + b"x" * 9_999,
    b"\xff\xfe", b"Action=SendMessage;QueueUrl=q", b"=&=&=", b"&" * 9_999, b"Action=A&Action=SendMessage",
    b"Action=\xc3\xa4",
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_odd_forms(raw: Raw, body: bytes) -> None:
    for path in ("/", PATH):
        reply = raw.http.unchecked("POST", path, body, Content_Type="application/x-www-form-urlencoded")
        assert reply.status < 500
        if b"Action=" in body and body != b"Action=":
            check(reply)


@pytest.mark.parametrize(
    "authorization",
    ["", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 " + "x" * 9_000,
     "AWS4-HMAC-SHA256 Credential=////, SignedHeaders=, Signature=",
     "AWS4-HMAC-SHA256 Credential=a/20260101/r/sqs/aws4_request, SignedHeaders=host, Signature=\u00e9"],
)  # fmt: skip
def test_odd_signatures(authorization: str) -> None:
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    presigned = (
        f"X-Amz-Signature=%C3%A9&X-Amz-Credential=a/{moment[:8]}/r/sqs/aws4_request&X-Amz-SignedHeaders=host"
        "&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=5"
    )
    with a_store() as store:
        for tokens in ("", "a:secret-0123456789abc:admin:*"):
            raw = Raw(handler.make_app(Settings(tokens=tokens), store))
            check(raw.json("ListQueues", Authorization=authorization))
            for query in (
                "X-Amz-Signature=",
                *(f"{presigned}&X-Amz-Date={one}" for one in (moment, "20260101T999999Z")),
            ):
                check(raw.http.unchecked("GET", f"/?Action=ListQueues&{query}"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "Id", "1"]), inner, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ACTIONS)), st.dictionaries(st.sampled_from(list(GOOD)), json_values, max_size=4))
def test_random_documents(raw: Raw, action: str, document: dict[str, Any]) -> None:
    check(raw.json(action, {"QueueUrl": URL, "WaitTimeSeconds": 0} | document))
    check(raw.query({"Action": action} | dict(flattened({"QueueUrl": URL} | document))))


def test_a_request_with_changed_bytes(raw: Raw) -> None:
    chance = random.Random(1)
    good = json.dumps(GOOD).encode()
    for _ in range(500):
        body = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        check(raw.json(chance.choice(sorted(set(ACTIONS) - {"ReceiveMessage"})), bytes(body)))


@settings(max_examples=1_000, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "=", "&", "+", "%", "%C3", "%a9", "%F0%9F%98", "%80", "%4", "%zz", "%25", "é", "1"]))
)
def test_forms_are_read_as_urllib_reads_them(parts: list[str]) -> None:
    form = "".join(parts)
    assert fields_of(form, b"") == fields_of("", form.encode()) == dict(parse_qsl(form, keep_blank_values=True))
