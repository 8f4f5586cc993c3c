"""Test both protocols byte by byte, and which requests are theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from storage import errors
from tests.sqs.aws import ACCOUNT, ENDPOINT, Raw, md5, md5_of_attributes, texts, xml
from tests.support.wsgi import Client
from web.native.request import BodyTooLarge
from web.sqs.actions.table import ACTIONS
from web.sqs.errors import error_of
from web.sqs.protocols.aws_json import JsonProtocol
from web.sqs.protocols.query import QueryProtocol

Make = Callable[..., str]
URL = f"{ENDPOINT}/{ACCOUNT}/q"
PATH = f"/{ACCOUNT}/q"
ID = "0123456789abcdef"  # of every request here
PREFIX = "AWS.SimpleQueueService."
NAMESPACE = "http://queue.amazonaws.com/doc/2012-11-05/"


def answered(action: str, result: str) -> bytes:
    metadata = f"<ResponseMetadata><RequestId>{ID}</RequestId></ResponseMetadata>"
    return (
        f'<?xml version="1.0"?><{action}Response xmlns="{NAMESPACE}">{result}{metadata}</{action}Response>'
    ).encode()


# JSON.


def test_replies_in_json(make: Make, raw: Raw) -> None:
    make()
    reply = raw.json("SendMessage", {"QueueUrl": URL, "MessageBody": "ä"})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/x-amz-json-1.0"
    assert reply.headers["x-amzn-requestid"] == reply.headers["x-request-id"] == ID
    assert reply.json.keys() == {"MD5OfMessageBody", "MessageId"}
    for action, more in {"PurgeQueue": {}, "TagQueue": {"Tags": {"a": "b"}}, "DeleteQueue": {}}.items():
        assert raw.json(action, {"QueueUrl": URL} | more).body == b"{}"


def test_an_error_in_json(raw: Raw) -> None:
    reply = raw.json("GetQueueUrl", {"QueueName": "q"})
    assert (reply.status, reply.headers["x-amzn-query-error"]) == (
        400,
        "AWS.SimpleQueueService.NonExistentQueue;Sender",
    )
    assert reply.body == (
        b'{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}'
    )


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"1", b'"x"', b"null", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a":1,}']
)
def test_what_is_no_json_object(raw: Raw, body: bytes) -> None:
    reply = raw.json("ListQueues", body)
    assert (reply.status, reply.json["__type"]) == (400, "com.amazon.coral.service#SerializationException")


@pytest.mark.parametrize(
    ("member", "value"),
    [("MessageBody", 1), ("MessageBody", ["a"]), ("DelaySeconds", "x"), ("DelaySeconds", True), ("DelaySeconds", 1.5),
     ("MessageAttributes", []), ("MessageAttributes", {"a": "b"}), ("QueueUrl", {}), ("MessageGroupId", 7)],
)  # fmt: skip
def test_a_member_of_another_type(make: Make, raw: Raw, member: str, value: object) -> None:
    make()
    reply = raw.json("SendMessage", {"QueueUrl": URL, "MessageBody": "a"} | {member: value})
    assert (reply.status, reply.json["__type"]) == (400, "com.amazon.coral.service#SerializationException")


def test_numbers_may_be_strings_and_null_is_absent(make: Make, raw: Raw) -> None:
    make()
    for more in (
        {"DelaySeconds": "0"},
        {"DelaySeconds": 0.0},
        {"DelaySeconds": None},
        {"Future": [1], "MessageGroupId": None},
    ):
        assert raw.json("SendMessage", {"QueueUrl": URL, "MessageBody": "a"} | more).status == 200
    reply = raw.json("ReceiveMessage", {"QueueUrl": URL, "MaxNumberOfMessages": "10", "WaitTimeSeconds": "0"})
    assert len(reply.json["Messages"]) == 4


def test_json_at_any_path_and_of_any_charset(make: Make, raw: Raw) -> None:
    make()
    for path in ("/", PATH, "/some/prefix", "/messages"):
        assert raw.json("ListQueues", path=path).json == {"QueueUrls": [URL]}
    assert raw.json("ListQueues", b"", Content_Type="application/x-amz-json-1.0; charset=utf-8").status == 200


@pytest.mark.parametrize("action", ["FooBar", "", "sendMessage", "SendMessage "])
def test_an_unknown_action_in_json(raw: Raw, action: str) -> None:
    reply = raw.json(action)
    assert (reply.status, reply.json["__type"]) == (400, "com.amazon.coral.service#UnknownOperationException")
    assert reply.headers["x-amzn-query-error"] == "InvalidAction;Sender"


# Query.


TAGS = {"Tag.1.Key": "a", "Tag.1.Value": "b<"}
ATTRIBUTE = {"Attribute.Name": "DelaySeconds", "Attribute.Value": 1}  # as boto2 writes a single one
PERMISSION = {"Label": "l", "AWSAccountId.1": "1" * 12, "ActionName.1": "*"}
# In order: the action, its fields, and the members of its result; None for an action without a result.
EXCHANGES: list[tuple[str, dict[str, Any], str | None]] = [
    ("CreateQueue", {"QueueName": "q", "Attribute.1.Name": "DelaySeconds", "Attribute.1.Value": 0} | TAGS,
     f"<QueueUrl>{URL}</QueueUrl>"),
    ("GetQueueUrl", {"QueueName": "q"}, f"<QueueUrl>{URL}</QueueUrl>"),
    ("ListQueues", {}, f"<QueueUrl>{URL}</QueueUrl>"),
    ("ListQueues", {"QueueNamePrefix": "x"}, ""),
    ("ListQueueTags", {}, "<Tag><Key>a</Key><Value>b&lt;</Value></Tag>"),
    ("TagQueue", TAGS, None),
    ("UntagQueue", {"TagKey.1": "a"}, None),
    ("ListQueueTags", {}, ""),
    ("SetQueueAttributes", ATTRIBUTE, None),
    ("GetQueueAttributes", {"AttributeName": "DelaySeconds"},
     "<Attribute><Name>DelaySeconds</Name><Value>1</Value></Attribute>"),
    ("GetQueueAttributes", {}, ""),
    ("AddPermission", PERMISSION, None),
    ("RemovePermission", {"Label": "l"}, None),
    ("ReceiveMessage", {}, ""),
    ("ListDeadLetterSourceQueues", {}, ""),
    ("PurgeQueue", {}, None),
    ("DeleteQueue", {}, None),
]  # fmt: skip


def test_actions_on_queues_in_xml(sqs: Any, raw: Raw) -> None:
    for action, fields, members in EXCHANGES:
        at_root = action in ("CreateQueue", "GetQueueUrl", "ListQueues")
        reply = raw.query({"Action": action} | fields, path="/" if at_root else PATH)
        assert (reply.status, reply.headers["content-type"]) == (200, "text/xml")
        result = f"{action}Result"
        written = "" if members is None else f"<{result}>{members}</{result}>" if members else f"<{result}/>"
        assert reply.body == answered(action, written)


def test_a_message_in_xml(make: Make, raw: Raw) -> None:
    make(DelaySeconds="0")
    attributes: dict[str, dict[str, Any]] = {
        "b": {"DataType": "Binary", "BinaryValue": b"\0\xff"},
        "s": {"DataType": "String.x", "StringValue": "\r<"},
    }
    sent = raw.query(
        {
            "Action": "SendMessage", "QueueUrl": URL, "MessageBody": 'a\r\n<&>"ä',
            "MessageAttribute.2.Name": "s", "MessageAttribute.2.Value.DataType": "String.x",
            "MessageAttribute.2.Value.StringValue": "\r<",
            "MessageAttribute.10.Name": "b", "MessageAttribute.10.Value.DataType": "Binary",
            "MessageAttribute.10.Value.BinaryValue": "AP8=",
        }
    )  # fmt: skip
    sums = (md5('a\r\n<&>"ä'), md5_of_attributes(attributes))
    assert texts(sent, "SendMessageResult/MD5OfMessageBody") == [sums[0]]
    assert texts(sent, "SendMessageResult/MD5OfMessageAttributes") == [sums[1]]
    (identity,) = texts(sent, "SendMessageResult/MessageId")
    received = raw.query(
        {"Action": "ReceiveMessage", "QueueUrl": URL, "MessageAttributeName.1": "All", "AttributeName.1": "SenderId",
         "AttributeName.2": "ApproximateReceiveCount"}
    )  # fmt: skip
    (handle,) = texts(received, "ReceiveMessageResult/Message/ReceiptHandle")
    assert received.body == answered(
        "ReceiveMessage",
        f"<ReceiveMessageResult><Message><MessageId>{identity}</MessageId><ReceiptHandle>{handle}</ReceiptHandle>"
        f"<MD5OfBody>{sums[0]}</MD5OfBody><Body>a&#13;\n&lt;&amp;&gt;&quot;ä</Body>"
        f"<Attribute><Name>SenderId</Name><Value>{ACCOUNT}</Value></Attribute>"
        "<Attribute><Name>ApproximateReceiveCount</Name><Value>1</Value></Attribute>"
        f"<MD5OfMessageAttributes>{sums[1]}</MD5OfMessageAttributes>"
        "<MessageAttribute><Name>s</Name><Value><StringValue>&#13;&lt;</StringValue><DataType>String.x</DataType></Value>"
        "</MessageAttribute><MessageAttribute><Name>b</Name><Value><BinaryValue>AP8=</BinaryValue>"
        "<DataType>Binary</DataType></Value></MessageAttribute></Message></ReceiveMessageResult>",
    )
    fields = {"Action": "ChangeMessageVisibility", "ReceiptHandle": handle, "VisibilityTimeout": 9}
    assert raw.query(fields, path=PATH).body == answered("ChangeMessageVisibility", "")
    assert raw.query({"Action": "DeleteMessage", "ReceiptHandle": handle}, path=PATH).body == answered(
        "DeleteMessage", ""
    )


def test_batches_in_xml(make: Make, raw: Raw) -> None:
    make()
    reply = raw.query(
        {
            "Action": "SendMessageBatch", "SendMessageBatchRequestEntry.10.Id": "z",
            "SendMessageBatchRequestEntry.10.MessageBody": "last", "SendMessageBatchRequestEntry.2.Id": "bad",
            "SendMessageBatchRequestEntry.2.MessageBody": "", "SendMessageBatchRequestEntry.1.Id": "a",
            "SendMessageBatchRequestEntry.1.MessageBody": "first",
            "SendMessageBatchRequestEntry.1.MessageAttribute.1.Name": "n",
            "SendMessageBatchRequestEntry.1.MessageAttribute.1.Value.DataType": "Number",
            "SendMessageBatchRequestEntry.1.MessageAttribute.1.Value.StringValue": "1",
        },
        path=PATH,
    )  # fmt: skip
    result = "SendMessageBatchResult"
    assert texts(reply, f"{result}/SendMessageBatchResultEntry/Id") == ["a", "z"]
    assert len(texts(reply, f"{result}/SendMessageBatchResultEntry/MD5OfMessageAttributes")) == 1
    failed = [
        texts(reply, f"{result}/BatchResultErrorEntry/{name}") for name in ("Id", "SenderFault", "Code", "Message")
    ]
    message = "The request must contain the parameter MessageBody."
    assert failed == [["bad"], ["true"], ["MissingParameter"], [message]]
    received = raw.query({"Action": "ReceiveMessage", "MaxNumberOfMessages": 10}, path=PATH)
    handles = texts(received, "ReceiveMessageResult/Message/ReceiptHandle")
    assert texts(received, "ReceiveMessageResult/Message/Body") == ["first", "last"]
    for action in ("ChangeMessageVisibility", "DeleteMessage"):
        fields: dict[str, object] = {"Action": f"{action}Batch"}
        for place, handle in enumerate(handles, 1):
            entry = f"{action}BatchRequestEntry.{place}"
            fields |= {f"{entry}.Id": f"e{place}", f"{entry}.ReceiptHandle": handle, f"{entry}.VisibilityTimeout": 5}
        reply = raw.query(fields, path=PATH)
        assert texts(reply, f"{action}BatchResult/{action}BatchResultEntry/Id") == ["e1", "e2"]


def test_move_tasks_in_xml(sqs: Any, make: Make, raw: Raw) -> None:
    dead = sqs.get_queue_attributes(QueueUrl=make("dead"), AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    make("q", RedrivePolicy=json.dumps({"deadLetterTargetArn": dead, "maxReceiveCount": 1}))
    started = raw.query({"Action": "StartMessageMoveTask", "SourceArn": dead, "MaxNumberOfMessagesPerSecond": 5})
    assert texts(started, "StartMessageMoveTaskResult/TaskHandle")
    entry = "ListMessageMoveTasksResult/ListMessageMoveTasksResultEntry"
    listed = raw.query({"Action": "ListMessageMoveTasks", "SourceArn": dead})
    assert texts(listed, f"{entry}/MaxNumberOfMessagesPerSecond") == ["5"]
    assert texts(listed, f"{entry}/ApproximateNumberOfMessagesMoved") == ["0"]


def test_an_error_in_xml(raw: Raw) -> None:
    reply = raw.query({"Action": "GetQueueUrl", "QueueName": "q"})
    assert (reply.status, reply.headers["content-type"]) == (400, "text/xml")
    assert (
        reply.body
        == (
            f'<?xml version="1.0"?><ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type>'
            "<Code>AWS.SimpleQueueService.NonExistentQueue</Code><Message>The specified queue does not exist for this "
            f"wsdl version.</Message><Detail/></Error><RequestId>{ID}</RequestId></ErrorResponse>"
        ).encode()
    )


def test_characters_that_xml_does_not_have_are_replaced(make: Make, native: Client, raw: Raw) -> None:
    make()
    document = {"text": "a\0\ufffe\u000b", "attributes": {"\x01": "\x02"}, "attribute_types": {"\x01": "String.\x03"}}
    native.post("/queues/q/messages", document)
    reply = raw.query({"Action": "ReceiveMessage", "MessageAttributeName.1": "All"}, path=PATH)
    message = "ReceiveMessageResult/Message"
    assert texts(reply, f"{message}/Body") == ["a\ufffd\ufffd\ufffd"]
    assert texts(reply, f"{message}/MD5OfBody") == [md5("a\ufffd\ufffd\ufffd")]
    attributes = {"\ufffd": {"DataType": "String.\ufffd", "StringValue": "\ufffd"}}
    assert texts(reply, f"{message}/MD5OfMessageAttributes") == [md5_of_attributes(attributes)]


def test_gets_and_the_url_of_a_queue(make: Make, raw: Raw) -> None:
    make(), make("other")
    sent = raw.query({"Action": "SendMessage", "MessageBody": "a"}, path=PATH, method="GET")
    assert (sent.status, xml(sent).tag) == (200, "SendMessageResponse")
    fields = {"Action": "SendMessage", "MessageBody": "b", "QueueUrl": f"{ENDPOINT}/{ACCOUNT}/other"}
    assert raw.query(fields, path=PATH).status == 200  # QueueUrl wins over the path
    assert texts(raw.query({"Action": "ReceiveMessage"}, path=PATH), "ReceiveMessageResult/Message/Body") == ["a"]
    assert texts(raw.query({"Action": "ListQueues"}, method="GET"), "ListQueuesResult/QueueUrl") == [
        f"{ENDPOINT}/{ACCOUNT}/other", URL
    ]  # fmt: skip


@pytest.mark.parametrize("action", ["CreateQueue", "ListQueues", "FooBar", "sendMessage"])
def test_actions_that_a_queues_url_does_not_have(make: Make, raw: Raw, action: str) -> None:
    make()
    reply = raw.query({"Action": action, "QueueName": "x"}, path=PATH)
    assert reply.status == 400
    assert texts(reply, "Error/Code") == ["InvalidAction"]
    assert texts(reply, "Error/Message") == [f"The action {action} is not valid for this endpoint."]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_queues_url_without_an_action(make: Make, raw: Raw, method: str) -> None:
    make()
    replies = [raw.http.unchecked(method, PATH), raw.query({}, path=PATH, method=method)]
    for reply in replies:
        assert (reply.status, reply.body) == (404, b"<UnknownOperationException/>")


def test_an_empty_list_of_old_sdks(make: Make, raw: Raw) -> None:
    make()
    for action in ("SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
        for fields in ({}, {"Entries": ""}, {f"{action}RequestEntry": ""}):
            reply = raw.query({"Action": action} | fields, path=PATH)
            assert texts(reply, "Error/Code") == ["AWS.SimpleQueueService.EmptyBatchRequest"]


# Native requests.


@pytest.mark.parametrize(
    ("method", "target", "content_type", "status"),
    [
        ("GET", "/", "", 200),
        ("GET", "/?action=x&NoAction=ListQueues", "", 200),
        ("POST", "/", "application/x-www-form-urlencoded", 405),
        ("POST", "/", "application/json", 405),
        ("HEAD", "/", "", 200),
        ("PUT", PATH, "", 404),
        ("GET", "/12345/q?Action=ListQueues", "", 404),
        ("GET", "/health?Action=ListQueues", "", 200),
        ("POST", "/messages?Action=ListQueues", "application/x-www-form-urlencoded", 400),
    ],
)  # fmt: skip
def test_other_requests_stay_native(native: Client, method: str, target: str, content_type: str, status: int) -> None:
    headers = {"Content_Type": content_type} if content_type else {}
    reply = native.unchecked(method, target, b'{"text": "Action=ListQueues"}' if method == "POST" else b"", **headers)
    assert (reply.status, "x-amzn-requestid" in reply.headers) == (status, False)


def test_curls_form_type_is_a_native_message(native: Client) -> None:
    body = b'{"text": "&Action=DeleteQueue"}'
    assert native.call("POST", "/messages", body, Content_Type="application/x-www-form-urlencoded").status == 200


# Errors of the service.


@pytest.mark.parametrize(
    ("fault", "kind", "code", "status"),
    [
        (errors.Busy(), "com.amazon.coral.service#ServiceUnavailable", "ServiceUnavailable;Receiver", 503),
        (errors.DiskFull(), "com.amazon.coral.service#ServiceUnavailable", "ServiceUnavailable;Receiver", 503),
        (errors.QueueNotFound("q"), "com.amazonaws.sqs#QueueDoesNotExist", f"{PREFIX}NonExistentQueue;Sender", 400),
        (errors.QueueFull("q", "max_messages", 1, 1, 1), "com.amazonaws.sqs#OverLimit", "OverLimit;Sender", 403),
        (BodyTooLarge("x"), "com.amazon.coral.service#RequestEntityTooLarge", "RequestEntityTooLarge;Sender", 413),
        (ValueError("secret"), "com.amazon.coral.service#InternalFailure", "InternalFailure;Receiver", 500),
    ],
)
def test_errors_of_the_service_have_a_shape(
    fault: Exception, kind: str, code: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    error = error_of(fault, "request-1")
    reply = JsonProtocol().error(error, "request-1")
    assert (reply.status, json.loads(b"".join(reply.body))["__type"], reply.headers["x-amzn-query-error"]) == (
        status,
        kind,
        code,
    )
    written = b"".join(QueryProtocol().error(error, "request-1").body).decode()
    assert f"<Type>{code.partition(';')[2]}</Type><Code>{code.partition(';')[0]}</Code>" in written
    assert ("internal error request-1" in caplog.text) == (status == 500)
    assert "secret" not in written


def test_all_23_actions_are_there() -> None:
    assert len(ACTIONS) == 23
