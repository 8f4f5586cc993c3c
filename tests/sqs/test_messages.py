"""Test messages of standard queues: what is received, leases, batches, and what the native API shares."""

from __future__ import annotations

import io
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest

import handler
from settings import Settings
from storage.errors import TooManyPollers
from storage.model import Receipt
from storage.store import Engine
from tests.sqs.aws import REGION, Raw, md5, refused
from tests.support.engines import FakeClock
from tests.support.wsgi import Client
from web.native.application import Application
from web.sqs.actions import messages

Make = Callable[..., str]


def receive(sqs: Any, url: str, **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sqs.receive_message(QueueUrl=url, **more).get("Messages", [])
    return found


def send(sqs: Any, url: str, *bodies: str, **more: Any) -> list[str]:
    return [sqs.send_message(QueueUrl=url, MessageBody=body, **more)["MessageId"] for body in bodies]


def test_all_system_attributes(sqs: Any, make: Make, clock: FakeClock) -> None:
    url = make()
    (identity,) = send(sqs, url, "a")
    sent = clock.now()
    clock.advance(1.25)
    (message,) = receive(sqs, url, AttributeNames=["All"], VisibilityTimeout=0)
    assert message["MessageId"] == identity
    assert message["Attributes"] == {
        "SenderId": "000000000000",
        "SentTimestamp": str(sent),
        "ApproximateReceiveCount": "1",
        "ApproximateFirstReceiveTimestamp": str(sent + 1_250),
    }
    clock.advance(1)
    (again,) = receive(sqs, url, MessageSystemAttributeNames=["All"])
    assert again["MessageId"] == identity
    assert again["Attributes"] == message["Attributes"] | {"ApproximateReceiveCount": "2"}


def test_the_native_api_shows_which_address_holds_a_lease(raw: Raw, make: Make, native: Client) -> None:
    url = make()
    native.post("/queues/q/messages", {"text": "a"})
    raw.json("ReceiveMessage", {"QueueUrl": url}, REMOTE_ADDR="192.0.2.7")
    assert native.get("/queues/q/peek").json[0]["leased_by"] == "192.0.2.7"


def test_message_ids_are_uuids_of_their_own_kind(sqs: Any, make: Make) -> None:
    found = {uuid.UUID(one) for name in ("q", "r") for one in send(sqs, make(name), "a", "b")}
    assert len(found) == 4
    assert {one.version for one in found} == {8}
    assert {one.variant for one in found} == {uuid.RFC_4122}


def test_a_lease_can_be_lengthened_after_its_end_but_not_by_an_old_handle(
    sqs: Any, make: Make, clock: FakeClock
) -> None:
    url = make(VisibilityTimeout="5")
    send(sqs, url, "a")
    old = receive(sqs, url)[0]["ReceiptHandle"]
    clock.advance(6)
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=old, VisibilityTimeout=5)
    assert receive(sqs, url) == []
    clock.advance(6)
    new = receive(sqs, url)[0]["ReceiptHandle"]
    with refused("InvalidParameterValue", "is not available for visibility timeout change."):
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=old, VisibilityTimeout=0)
    sqs.delete_message(QueueUrl=url, ReceiptHandle=old)  # succeeds, and does nothing
    clock.advance(6)
    assert len(receive(sqs, url)) == 1
    assert new != old


def test_a_message_is_deleted_late_unless_another_reader_has_it(sqs: Any, make: Make, clock: FakeClock) -> None:
    url = make(VisibilityTimeout="5")
    send(sqs, url, "a")
    handle = receive(sqs, url)[0]["ReceiptHandle"]
    clock.advance(6)
    sqs.delete_message(QueueUrl=url, ReceiptHandle=handle)
    assert receive(sqs, url) == []


@pytest.mark.parametrize("handle", ["x", "q~1", "q~0~1", "other~1~1", "q~1-3~1", "q~99999999999999999999~1", "~", "é"])
def test_what_is_no_handle_of_the_queue_is_refused(sqs: Any, make: Make, handle: str) -> None:
    url = make()
    with refused("ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid receipt handle.'):
        sqs.delete_message(QueueUrl=url, ReceiptHandle=handle)
    with refused("ReceiptHandleIsInvalid"):
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=1)


def test_required_parameters(make: Make, raw: Raw) -> None:
    url = make()
    for action, document in {
        "SendMessage": {"QueueUrl": url},
        "DeleteMessage": {"QueueUrl": url},
        "ChangeMessageVisibility": {"QueueUrl": url, "ReceiptHandle": "q~1~1"},
        "SendMessageBatch": {"QueueUrl": url},
        "ReceiveMessage": {},
        "CreateQueue": {"Attributes": {}},
        "TagQueue": {"QueueUrl": url},
        "UntagQueue": {"QueueUrl": url},
        "SetQueueAttributes": {"QueueUrl": url},
        "StartMessageMoveTask": {},
    }.items():
        reply = raw.json(action, document)
        assert reply.status == 400
        assert reply.headers["x-amzn-query-error"] == "MissingParameter;Sender"
        assert reply.json["message"].startswith("The request must contain the parameter ")


def test_a_batch_reports_each_entry(sqs: Any, make: Make) -> None:
    url = make()
    done = sqs.send_message_batch(
        QueueUrl=url,
        Entries=[
            {"Id": "good", "MessageBody": "a"},
            {"Id": "empty", "MessageBody": ""},
            {"Id": "late", "MessageBody": "b", "DelaySeconds": 901},
            {"Id": "dup", "MessageBody": "b", "MessageDeduplicationId": "x"},
            {"Id": "also", "MessageBody": "ä", "MessageGroupId": "g"},
        ],
    )
    assert [(one["Id"], one["MD5OfMessageBody"]) for one in done["Successful"]] == [
        ("good", md5("a")),
        ("also", md5("ä")),
    ]
    assert [(one["Id"], one["Code"], one["SenderFault"]) for one in done["Failed"]] == [
        ("empty", "MissingParameter", True),
        ("late", "InvalidParameterValue", True),
        ("dup", "InvalidParameterValue", True),
    ]
    found = receive(sqs, url, MaxNumberOfMessages=10)
    assert [one["MessageId"] for one in found] == [one["MessageId"] for one in done["Successful"]]
    changed = sqs.change_message_visibility_batch(
        QueueUrl=url,
        Entries=[
            {"Id": "1", "ReceiptHandle": found[0]["ReceiptHandle"], "VisibilityTimeout": 0},
            {"Id": "2", "ReceiptHandle": found[1]["ReceiptHandle"], "VisibilityTimeout": 43_201},
            {"Id": "3", "ReceiptHandle": found[1]["ReceiptHandle"]},
            {"Id": "4", "ReceiptHandle": "q~999~1", "VisibilityTimeout": 1},
        ],
    )
    assert [one["Id"] for one in changed["Successful"]] == ["1"]
    assert [one["Code"] for one in changed["Failed"]] == [
        "InvalidParameterValue", "MissingParameter", "InvalidParameterValue"
    ]  # fmt: skip
    handles = [one["ReceiptHandle"] for one in (found[1], found[1])]
    entries = [{"Id": str(place), "ReceiptHandle": handle} for place, handle in enumerate(handles)]
    assert len(sqs.delete_message_batch(QueueUrl=url, Entries=entries)["Successful"]) == 2
    assert [one["MessageId"] for one in receive(sqs, url, MaxNumberOfMessages=10)] == [found[0]["MessageId"]]


def test_a_batch_with_only_bad_entries_sends_nothing(sqs: Any, make: Make) -> None:
    url = make()
    done = sqs.send_message_batch(QueueUrl=url, Entries=[{"Id": "a", "MessageBody": "\0"}])
    assert "Successful" not in done
    assert receive(sqs, url) == []


@pytest.mark.parametrize(("entries", "code"), [
    ([{"Id": "a", "MessageBody": "x"}] * 2, "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"),
    ([{"MessageBody": "x"}], "AWS.SimpleQueueService.InvalidBatchEntryId"),
    ([{"Id": "ä", "MessageBody": "x"}], "AWS.SimpleQueueService.InvalidBatchEntryId"),
    ([], "AWS.SimpleQueueService.EmptyBatchRequest"),
    ([{"Id": str(n), "MessageBody": "x"} for n in range(11)], "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"),
    ([{"Id": "a", "MessageBody": "x" * 1_048_576}, {"Id": "b", "MessageBody": "x"}],
     "AWS.SimpleQueueService.BatchRequestTooLong"),
])  # fmt: skip
def test_a_bad_batch_is_refused_whole(sqs: Any, make: Make, entries: list[Any], code: str) -> None:
    url = make()
    with refused(code):
        sqs.send_message_batch(QueueUrl=url, Entries=entries)
    assert receive(sqs, url) == []


def test_messages_of_curl_are_received_and_the_other_way_round(sqs: Any, make: Make, native: Client) -> None:
    url = make()
    native.call("POST", "/queues/q/messages", b"from curl", Content_Type="text/plain")
    send(sqs, url, "from boto3")
    first, second = receive(sqs, url, MaxNumberOfMessages=2)
    assert (first["Body"], second["Body"]) == ("from curl", "from boto3")
    assert first["MD5OfBody"] == md5("from curl")
    assert native.call("DELETE", f"/messages/{first['ReceiptHandle']}").status == 204
    sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=second["ReceiptHandle"], VisibilityTimeout=0)
    assert native.get("/queues/q/messages").json == {"text": "from boto3"}


def test_a_native_lease_is_deleted_by_sqs(sqs: Any, make: Make, native: Client) -> None:
    url = make()
    send(sqs, url, "a")
    receipt = native.get("/queues/q/messages?lease=30&limit=1").json[0]["receipt"]
    sqs.delete_message(QueueUrl=url, ReceiptHandle=receipt)
    assert native.get("/queues/q").json["stats"]["leased"] == 0


def test_priority_holds_and_messages_of_a_recipient_are_not_seen(sqs: Any, make: Make, native: Client) -> None:
    url = make()
    native.post(
        "/queues/q/messages", [{"text": "low"}, {"text": "high", "priority": 9}, {"text": "x", "recipient": "r"}]
    )
    assert [one["Body"] for one in receive(sqs, url, MaxNumberOfMessages=10)] == ["high", "low"]


def test_texts_that_sqs_does_not_allow_come_from_native_clients(make: Make, native: Client, raw: Raw) -> None:
    url = make()
    native.post("/queues/q/messages", {"text": "\0\x1f", "attributes": {"\x01": "\x02"}})
    asked = {"QueueUrl": url, "MessageAttributeNames": ["All"]}
    (message,) = raw.json("ReceiveMessage", asked).json["Messages"]
    assert (message["Body"], message["MD5OfBody"]) == ("\0\x1f", md5("\0\x1f"))
    assert message["MessageAttributes"] == {"\x01": {"StringValue": "\x02", "DataType": "String"}}


def test_a_message_for_a_full_queue_is_refused(sqs: Any, make: Make, native: Client) -> None:
    url = make()
    native.call("PUT", "/queues/q", b'{"max_messages": 1}')
    send(sqs, url, "a")
    with refused("OverLimit"):
        send(sqs, url, "b")


def test_a_paused_queue_delivers_nothing(sqs: Any, make: Make, native: Client) -> None:
    url = make()
    send(sqs, url, "a")
    native.call("PUT", "/queues/q", b'{"paused": true}')
    assert receive(sqs, url) == []


def test_a_reader_that_may_not_wait_gets_an_empty_reply_after_a_pause(
    sqs: Any, make: Make, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise TooManyPollers

    url = make()
    monkeypatch.setattr(store, "receive", refuse)
    began = time.monotonic()
    assert receive(sqs, url, WaitTimeSeconds=20) == []
    assert messages._PAUSE <= time.monotonic() - began < 15
    assert messages._PAUSE <= 1


def test_old_messages_are_dropped(sqs: Any, make: Make, clock: FakeClock) -> None:
    url = make(MessageRetentionPeriod="60")
    send(sqs, url, "a")
    clock.advance(61)
    assert receive(sqs, url) == []


def test_arns_have_the_region_of_the_signature(sqs: Any, make: Make) -> None:
    found = sqs.get_queue_attributes(QueueUrl=make(), AttributeNames=["QueueArn"])["Attributes"]
    assert found == {"QueueArn": f"arn:aws:sqs:{REGION}:000000000000:q"}


def test_a_large_reply_is_encoded_while_it_is_sent(app: Application, make: Make, native: Client) -> None:
    make()
    texts = [character * 1_000_000 for character in '\0\0""']  # six times as long in JSON or in XML
    for text in texts:
        assert native.post("/queues/q/messages", {"text": text}).status == 200

    def largest(reply: Iterable[bytes]) -> tuple[int, int]:
        sizes = [len(piece) for piece in reply]
        return max(sizes), sum(sizes)

    started: list[dict[str, str]] = []
    environ = {"SERVER_NAME": "l", "SERVER_PORT": "1", "wsgi.url_scheme": "http", "HTTP_HOST": "localhost"}
    fields = "Action=ReceiveMessage&MaxNumberOfMessages=10&VisibilityTimeout=0"
    for more in (
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/000000000000/q", "QUERY_STRING": fields},
        {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "HTTP_X_AMZ_TARGET": "AmazonSQS.ReceiveMessage",
         "CONTENT_LENGTH": "46", "wsgi.input": io.BytesIO(b'{"QueueUrl": "q", "MaxNumberOfMessages": 10}  ')},
    ):  # fmt: skip
        reply = app(environ | more, lambda status, headers, exc_info=None: started.append(dict(headers)))
        most, size = largest(reply)
        assert int(started[-1]["Content-Length"]) == size > sum(map(len, texts))
        assert most < 7_000_000 < 2 * most < size


class CountedStore:
    """A store that notes which operations are asked of it."""

    def __init__(self, store: Engine) -> None:
        self._store = store
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if callable(found):
            self.asked.append(name)
        return found


def test_an_action_is_one_operation_of_the_store(store: Engine) -> None:
    counted: Any = CountedStore(store)
    raw = Raw(handler.make_app(Settings(), counted))

    def ask(operation: str, action: str, **document: Any) -> Any:
        counted.asked.clear()
        reply = raw.json(action, {"QueueUrl": "q", **document})
        assert (reply.status, "Failed" in reply.json, counted.asked) == (200, False, [operation])
        return reply.json

    store.configure("q", {})
    ids = [{"Id": f"{number}"} for number in range(10)]
    ask("send", "SendMessage", MessageBody="x")
    ask("send", "SendMessageBatch", Entries=[entry | {"MessageBody": "x"} for entry in ids])
    (first,) = ask("receive", "ReceiveMessage")["Messages"]
    others = ask("receive", "ReceiveMessage", MaxNumberOfMessages=10)["Messages"]
    ask("extend", "ChangeMessageVisibility", ReceiptHandle=first["ReceiptHandle"], VisibilityTimeout=60)
    ask("settle", "DeleteMessage", ReceiptHandle=first["ReceiptHandle"])
    handles = [entry | {"ReceiptHandle": one["ReceiptHandle"]} for entry, one in zip(ids, others, strict=True)]
    ask("ack", "DeleteMessageBatch", Entries=handles)


def test_a_handle_is_parsed_once(store: Engine, sqs: Any, make: Make) -> None:
    url, parsed = make(), list[str]()
    send(sqs, url, *["x"] * 10)
    handles = [one["ReceiptHandle"] for one in receive(sqs, url, MaxNumberOfMessages=10)]

    def note_call(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_qualname == Receipt.parse.__qualname__:
            parsed.append(frame.f_locals["text"])

    sys.setprofile(note_call)
    try:
        sqs.delete_message(QueueUrl=url, ReceiptHandle=handles[0])
        entries = [{"Id": f"{number}", "ReceiptHandle": handle} for number, handle in enumerate(handles[1:])]
        sqs.delete_message_batch(QueueUrl=url, Entries=entries)
    finally:
        sys.setprofile(None)
    assert parsed == handles


def test_a_limit_of_the_native_api_holds_for_each_message_of_a_batch(sqs: Any, make: Make, native: Client) -> None:
    url = make()
    assert native.call("PUT", "/queues/q", b'{"max_message_bytes": 5}').status == 200
    entries = [{"Id": text, "MessageBody": text} for text in ("short", "too_long", "fits")]
    results = sqs.send_message_batch(QueueUrl=url, Entries=entries)
    assert [one["Id"] for one in results["Successful"]] == ["short", "fits"]
    why = "One or more parameters are invalid. Reason: Message must be shorter than 5 bytes."
    assert results["Failed"] == [
        {"Id": "too_long", "SenderFault": True, "Code": "InvalidParameterValue", "Message": why}
    ]
    with refused("InvalidParameterValue", why):
        send(sqs, url, "too_long")


def test_a_batch_to_a_queue_that_does_not_exist_is_refused_as_a_whole(make: Make, raw: Raw) -> None:
    make()
    valid = {"Id": "a", "MessageBody": "x", "ReceiptHandle": "none~1~1", "VisibilityTimeout": 1}
    for action in ("SendMessageBatch", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
        for entry in (valid, {"Id": "a"}):
            reply = raw.json(action, {"QueueUrl": "none", "Entries": [entry]})
            assert (reply.status, reply.json["__type"]) == (400, "com.amazonaws.sqs#QueueDoesNotExist")
