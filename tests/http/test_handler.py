"""Test the native routes on a real store, called like a server calls them."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NoReturn

import pytest

import handler
from settings import Settings
from storage import errors
from storage.store import Engine
from tests.support.live import LiveServer
from tests.support.wsgi import Client, Reply, a_store
from web.native import problems

MAX_BODY = 200_000
NOW = ["ready", "leased", "delayed", "blocked", "dead", "oldest_age", "bytes"]
TOTALS = ["sent", "received", "acked", "expired", "dead_lettered"]
MESSAGE_ROUTES = ["/messages", "/queues/jobs/messages"]
ENVELOPE = {"id", "queue", "sent_at", "receive_count", "receipt", "leased_until"}


@pytest.fixture
def store() -> Iterator[Engine]:
    with a_store(pollers=2) as store:
        yield store


@pytest.fixture
def client(store: Engine) -> Client:
    return Client(handler.make_app(Settings(max_body=MAX_BODY), store))


def held(client: Client, text: str = "x", queue: str = "default", **fields: object) -> dict[str, Any]:
    """Send and lease a message; return its envelope."""
    assert client.post(f"/queues/{queue}/messages", {"text": text, **fields}).status == 200
    envelope: dict[str, Any] = client.get(f"/queues/{queue}/messages?lease=60").json
    return envelope


def texts(client: Client, queue: str = "default") -> list[str]:
    """Remove all ready messages; return their texts."""
    reply = client.get(f"/queues/{queue}/messages?limit=1000")
    return [message["text"] for message in reply.json] if reply.status == 200 else []


def stats(client: Client, queue: str = "default") -> dict[str, Any]:
    stats: dict[str, Any] = client.get(f"/queues/{queue}").json["stats"]
    return stats


def moment(text: str) -> float:
    """Parse a time of the API; return seconds since 1970."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


def assert_problem(reply: Reply, status: int, code: str, **members: object) -> None:
    """Assert that the reply is this problem, with exactly these members of field, index and queue."""
    problem = reply.json
    assert (reply.status, problem["code"]) == (status, code), problem
    assert {name: problem[name] for name in ("field", "index", "queue") if name in problem} == members, problem


# The first version of the service.


def test_a_message_posted_is_answered_with_itself_and_its_id(client: Client) -> None:
    reply = client.post("/messages", {"text": "hello"})
    assert (reply.status, reply.json) == (200, {"id": "1", "text": "hello"})
    assert reply.body == b'{"id": "1", "text": "hello"}\n'


def test_a_read_answers_exactly_the_document_that_was_posted(client: Client) -> None:
    client.post("/messages", {"text": "hello"})
    reply = client.get("/messages")
    assert (reply.status, reply.json) == (200, {"text": "hello"})


def test_messages_come_in_the_order_they_were_posted_in(client: Client) -> None:
    for text in "abc":
        client.post("/messages", {"text": text})
    assert [client.get("/messages").json for _ in range(3)] == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert client.get("/messages").status == 204


@pytest.mark.parametrize(
    "document", [{"data": "x"}, "x", {}, 17, None, True, {"text": None}, {"text": 1}, {"text": ["x"]}, {"Text": "x"}]
)
def test_an_invalid_message_is_refused_and_not_stored(client: Client, document: object) -> None:
    reply = client.post("/messages", document)
    assert (reply.status, reply.json["code"]) == (400, "invalid_input")
    assert client.get("/messages").status == 204


# Writing.


@pytest.mark.parametrize("route", MESSAGE_ROUTES)
def test_a_written_message_is_answered_and_read_with_all_its_fields(client: Client, route: str) -> None:
    message = {
        "text": 'é "\0" \U0001f600',
        "priority": 3,
        "key": "k",
        "attributes": {"n": 1, "x": 0.5, "yes": True, "none": None, "s": "ü"},
        "ttl": 60.5,
        "dedup_id": "d",
        "delay": 0,
    }
    assert client.post(route, message).json == {"id": "1"} | message
    assert client.get(route).json == message


def test_the_plain_route_is_that_of_the_queue_named_default(client: Client) -> None:
    client.post("/messages", {"text": "a"})
    client.post("/queues/default/messages", {"text": "b"})
    client.post("/queues/other/messages", {"text": "c"})
    assert texts(client) == ["a", "b"]
    assert texts(client, "other") == ["c"]


@pytest.mark.parametrize("kind", [None, "", "application/x-www-form-urlencoded", "Application/JSON; Charset=UTF-8"])
def test_a_body_without_a_type_or_with_curls_own_is_read_as_json(client: Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content_Type": kind}
    assert client.call("POST", "/messages", b' {"text": "hi"}\r\n', **headers).json == {"id": "1", "text": "hi"}


@pytest.mark.parametrize("body", ["", "hi", "a\r\n\0b\n", '{"text": "not JSON here"}', "\ufeffé\u2028"])
def test_a_plain_text_body_is_the_text_of_one_message(client: Client, body: str) -> None:
    reply = client.call("POST", "/messages", body.encode(), Content_Type="text/plain; charset=utf-8")
    assert reply.json == {"id": "1", "text": body}
    assert client.get("/messages").json == {"text": body}


def test_an_array_is_a_batch_and_answers_ids_in_its_order(client: Client) -> None:
    batch = [{"text": "a"}, {"text": "b", "priority": 0}, {"text": ""}]
    reply = client.post("/messages", batch)
    assert (reply.status, reply.json) == (200, {"ids": ["1", "2", "3"]})
    assert client.get("/messages?limit=9").json == batch


def test_an_array_of_one_message_is_a_batch_too(client: Client) -> None:
    assert client.post("/messages", [{"text": "a"}]).json == {"ids": ["1"]}


@pytest.mark.parametrize("body", ['{"text":"a"}\n{"text":"b\u2028"}', '{"text":"a"}\r\n{"text":"b\u2028"}\n'])
def test_ndjson_is_a_batch_with_a_message_a_line(client: Client, body: str) -> None:
    reply = client.call("POST", "/messages", body.encode(), Content_Type="application/x-ndjson")
    assert reply.json == {"ids": ["1", "2"]}
    assert texts(client) == ["a", "b\u2028"]


@pytest.mark.parametrize("wrong", [{"text": 5}, {"text": "c", "colour": "red"}, {"text": "c", "priority": 10}, "c", []])
def test_a_batch_with_one_wrong_message_stores_none_and_names_its_place(client: Client, wrong: object) -> None:
    batch = [{"text": "a"}, {"text": "b"}, wrong]
    ndjson = "\n".join(map(json.dumps, batch)).encode()
    for reply in [
        client.post("/messages", batch),
        client.call("POST", "/messages", ndjson, Content_Type="application/x-ndjson"),
    ]:
        assert (reply.status, reply.json["code"], reply.json["index"]) == (400, "invalid_input", 2)
    assert client.get("/messages").status == 204


@pytest.mark.parametrize("line", [b"", b"{", b"\xff", b'{"text":"b"} {"text":"c"}', b'{"text":"b","text":"c"}'])
def test_an_invalid_ndjson_line_stores_nothing_and_is_named(client: Client, line: bytes) -> None:
    body = b'{"text":"a"}\n' + line + b'\n{"text":"d"}\n'
    reply = client.call("POST", "/messages", body, Content_Type="application/x-ndjson")
    assert_problem(reply, 400, "bad_request", index=1)
    assert client.get("/messages").status == 204


RUNS = "application/vnd.queue-service.runs+json"


def send_run(client: Client, document: object) -> Reply:
    return client.call("POST", "/messages", json.dumps(document).encode(), Content_Type=RUNS)


@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("attributes", [None, {}, {"n": 1}, {"n": None, "ä": "x"}])
def test_a_run_is_written_and_read_in_columns(client: Client, count: int, attributes: dict[str, object] | None) -> None:
    texts = [f"{n} \u2028\n" for n in range(count)]
    columns = (
        {} if attributes is None else {"attributes": {name: [value] * count for name, value in attributes.items()}}
    )
    ids = [str(number) for number in range(1, count + 1)]
    assert send_run(client, {"texts": texts, **columns}).json == {"ids": ids}
    reply = client.get("/messages?limit=1000&lease=60", Accept=f"{RUNS}, application/json;q=0.5")
    assert reply.headers["content-type"] == RUNS
    got = [text for one in reply.json for text in (one["texts"] if "texts" in one else [one["text"]])]
    assert got == texts
    for run in reply.json:
        assert run.get("attributes") == (
            attributes
            if "text" in run or attributes is None
            else {name: [value] * run["count"] for name, value in attributes.items()}
        )
    receipts = [one["receipt"] for one in reply.json]
    assert len(receipts) == (3 if count == 300 else 1)
    assert client.post("/messages/ack", {"receipts": receipts}).json == {"acked": count, "stale": [], "missing": []}


def test_a_run_is_read_one_by_one_too(client: Client) -> None:
    send_run(client, {"texts": [str(n) for n in range(50)], "attributes": {"n": list(range(50))}})
    assert client.get("/messages").json == {"text": "0", "attributes": {"n": 0}}
    assert client.get("/messages?limit=2").json == [{"text": str(n), "attributes": {"n": n}} for n in (1, 2)]
    plain = client.get("/messages?limit=20", Accept=RUNS)
    assert (plain.headers["content-type"], len(plain.json)) == ("application/json", 20)
    assert client.get("/messages?lease=9", Accept=RUNS).json["text"] == "23"
    messages = client.get("/messages?limit=1000&lease=9").json
    assert [(one["id"], one["text"], one["attributes"]) for one in messages] == [
        (str(n + 1), str(n), {"n": n}) for n in range(24, 50)
    ]
    assert len({one["receipt"] for one in messages}) == 26


def test_a_repeated_read_of_runs_gets_the_same_reply(client: Client) -> None:
    for _ in range(2):
        send_run(client, {"texts": ["a"] * 20})
    asked = [client.get("/messages?limit=1000&lease=60", Accept=RUNS, Idempotency_Key="k") for _ in range(2)]
    assert asked[0].json == asked[1].json
    step = {"send": [{"text": "b"}] * 20, "receive": {"limit": 20, "lease": 60}}
    done = [client.post("/transactions", step, Accept=RUNS, Idempotency_Key="t") for _ in range(2)]
    assert done[0].json == done[1].json


def test_a_transaction_returns_runs_to_clients_that_accept_them(client: Client) -> None:
    send_run(client, {"texts": ["a"] * 200})
    ask = {"receive": {"limit": 150, "lease": 60}}
    (first, second) = client.post("/transactions", ask, Accept=RUNS).json["messages"]
    assert (first["count"], second["count"], second["id"]) == (100, 50, "101")
    done = client.post("/transactions", {"ack": [first["receipt"], second["receipt"]], **ask}, Accept=RUNS)
    assert done.headers["content-type"] == RUNS
    assert [len(run["texts"]) for run in done.json["messages"]] == [50]
    assert stats(client)["acked"] == 150
    again = client.post("/transactions", {"ack": [second["receipt"]]})
    assert_problem(again, 409, "stale_receipt", index=0)


@pytest.mark.parametrize(
    ("wrong", "members"),
    [
        ([], {}),
        ({}, {"field": "texts"}),
        ({"texts": []}, {"field": "texts"}),
        ({"texts": "ab"}, {"field": "texts"}),
        ({"texts": ["a"] * 10_001}, {"field": "texts"}),
        ({"texts": ["a"], "text": "a"}, {"field": "text"}),
        ({"texts": ["a", 1]}, {"field": "text", "index": 1}),
        ({"texts": ["a", None]}, {"field": "text", "index": 1}),
        ({"texts": ["a", "\ud800"]}, {"field": "text", "index": 1}),
        ({"texts": ["a"], "attributes": []}, {"field": "attributes"}),
        ({"texts": ["a"], "attributes": None}, {"field": "attributes"}),
        ({"texts": ["a"], "attributes": {"n": 1}}, {"field": "attributes"}),
        ({"texts": ["a"], "attributes": {"n": [1, 2]}}, {"field": "attributes"}),
        ({"texts": ["a", "b"], "attributes": {"n": [1, [2]]}}, {"field": "attributes", "index": 1}),
        ({"texts": [""] * 10_000, "attributes": {"n" * 500: [0] * 10_000}}, {"field": "attributes"}),
        ({"texts": ["a", "b"], "attributes": {"n": [1, "\udfff"]}}, {"field": "attributes", "index": 1}),
        ({"texts": ["a", "b"], "attributes": {"\ud800": [1, 2]}}, {"field": "attributes", "index": 0}),
        ({"texts": ["a", "b"], "attributes": {"n": ["x", "x" * 65_536]}}, {"field": "attributes", "index": 1}),
    ],
)
def test_a_wrong_run_is_refused_and_stores_nothing(client: Client, wrong: object, members: dict[str, object]) -> None:
    assert_problem(send_run(client, wrong), 400, "invalid_input", **members)
    assert client.get("/queues").json == {"queues": []}


@pytest.mark.parametrize(
    "wrong", [b"", b'{"texts":["a"],"texts":["b"]}', b'{"texts":["a"],"attributes":{"n":[NaN]}}', b'{"texts":["\xff"]}']
)
def test_an_invalid_json_run_is_refused(client: Client, wrong: bytes) -> None:
    assert_problem(client.call("POST", "/messages", wrong, Content_Type=RUNS), 400, "bad_request")


def test_a_run_sent_as_plain_json_gets_the_right_type_in_the_error(client: Client) -> None:
    reply = client.post("/messages", {"texts": ["a"]})
    assert_problem(reply, 400, "invalid_input", field="texts")
    assert RUNS in reply.json["detail"]


def test_a_runs_receipt_in_a_path_is_refused_with_a_valid_alternative(client: Client) -> None:
    send_run(client, {"texts": ["a", "b"]})
    (run,) = client.get("/messages?limit=9&lease=60", Accept=RUNS).json
    refused = client.call("DELETE", f"/messages/{run['receipt']}")
    assert_problem(refused, 400, "invalid_input")
    assert client.call("DELETE", f"/messages/{refused.json['detail'].split()[-1]}").status == 204
    assert client.get("/queues/default").json["stats"]["leased"] == 1


def test_a_run_with_large_messages_works_like_any_batch(client: Client) -> None:
    texts = ["x" * 5_000, "y"] * 10
    assert len(send_run(client, {"texts": texts}).json["ids"]) == 20
    (run,) = client.get("/messages?limit=20&lease=9", Accept=RUNS).json
    assert run["texts"] == texts


def test_a_batch_has_one_to_ten_thousand_messages(client: Client) -> None:
    most = [{"text": ""}] * 10_000
    assert client.post("/messages", most).json["ids"] == [str(number) for number in range(1, 10_001)]
    assert_problem(client.post("/messages", [*most, {"text": ""}]), 400, "invalid_input", index=10_000)
    assert_problem(client.post("/messages", []), 400, "invalid_input")
    assert_problem(client.call("POST", "/messages", Content_Type="application/x-ndjson"), 400, "invalid_input")
    assert stats(client)["sent"] == 10_000


@pytest.mark.parametrize(
    "kind",
    [
        "application/xml",
        "text/html",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "json",
        ",",
    ],
)
def test_a_body_of_another_type_is_refused(client: Client, kind: str) -> None:
    reply = client.post("/messages", {"text": "x"}, Content_Type=kind)
    assert_problem(reply, 415, "unsupported_media_type")
    assert client.get("/messages").status == 204


def test_a_compressed_body_is_refused(client: Client) -> None:
    assert_problem(client.post("/messages", {"text": "x"}, Content_Encoding="gzip"), 415, "unsupported_media_type")


def test_a_body_may_be_as_long_as_the_limit_and_no_longer(client: Client) -> None:
    most = b"x" * MAX_BODY
    assert client.call("POST", "/messages", most, Content_Type="text/plain").status == 200
    reply = client.call("POST", "/messages", most + b"x", Content_Type="text/plain")
    assert_problem(reply, 413, "body_too_large")
    assert texts(client) == [most.decode()]


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "priority": [-1, 10, 1.0, "1", True, None],
        "key": ["", "x" * 129, 1, None, "\ud800"],
        "recipient": ["", "x" * 129, 1, None, "\udfff"],
        "dedup_id": ["", "x" * 129, 1, None, "a\ud800"],
        "attributes": [[], "x", None, {"a": []}, {"a": {}}, {"\ud800": 1}, {"a": "\ud800"}, {"a": "x" * 65_536}],
        "delay": [-1, -0.001, "1", True, None, 1e300],
        "ttl": [0, -1, "1", False, None, 1e300],
        "text": ["\ud800", "a\udfffb", 1, None],
    }.items(),
)
def test_a_field_with_a_wrong_value_is_refused_by_name(client: Client, name: str, values: list[object]) -> None:
    for value in values:
        assert_problem(client.post("/messages", {"text": "x"} | {name: value}), 400, "invalid_input", field=name)
    assert client.get("/messages").status == 204


@pytest.mark.parametrize("name", ["data", "id", "queue", "receipt", "Priority", "", "\0", "\u2028", "x" * 500])
def test_an_unknown_field_is_refused_by_name(client: Client, name: str) -> None:
    assert_problem(client.post("/messages", {"text": "x", name: 1}), 400, "invalid_input", field=name[:128])
    assert client.get("/messages").status == 204


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "x" * 80, "9"])
def test_a_queue_name_of_the_allowed_form_is_accepted(client: Client, name: str) -> None:
    assert client.post(f"/queues/{name}/messages", {"text": "x"}).status == 200
    assert texts(client, name) == ["x"]


@pytest.mark.parametrize("name", ["x" * 81, ".a", "+a", "a+", "a%20b", "%C3%A9", "a%00", "..", "a~b", "%E6%97%A5"])
@pytest.mark.parametrize("key", [{}, {"Idempotency_Key": "k"}], ids=["", "idempotent"])
def test_a_queue_name_of_another_form_is_refused(client: Client, name: str, key: dict[str, str]) -> None:
    for reply in [
        client.post(f"/queues/{name}/messages", {"text": "x"}, **key),
        client.get(f"/queues/{name}/messages", **key),
        client.call("PUT", f"/queues/{name}", b"{}"),
        client.get(f"/queues/{name}/peek"),
    ]:
        assert_problem(reply, 400, "invalid_input", field="queue")
    assert client.get("/queues").json == {"queues": []}


# Reading.


@pytest.mark.parametrize("route", MESSAGE_ROUTES)
def test_a_plain_read_returns_id_queue_and_time_in_headers_and_removes_the_message(client: Client, route: str) -> None:
    before = time.time()
    sent = client.post(route, {"text": "x"}).json["id"]
    reply = client.get(route)
    assert reply.headers["message-id"] == sent
    assert reply.headers["message-queue"] == ("jobs" if "jobs" in route else "default")
    assert before - 1 < moment(reply.headers["message-sent-at"]) < time.time() + 1
    assert client.get(route).status == 204


@pytest.mark.parametrize("query", ["", "?limit=5", "?lease=5", "?lease=default&limit=5", "?wait=0.01", "?recipient=me"])
@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson"])
def test_nothing_to_read_is_204_in_every_form(client: Client, query: str, accept: str) -> None:
    assert client.get(f"/messages{query}", Accept=accept).status == 204
    assert client.get(f"/queues/nowhere/messages{query}", Accept=accept).status == 204
    assert client.get("/queues").json == {"queues": []}, "a read makes no queue"


def test_a_limit_always_makes_the_reply_an_array(client: Client) -> None:
    client.post("/messages", [{"text": "a"}, {"text": "b"}, {"text": "c", "priority": 1}])
    assert client.get("/messages?limit=1").json == [{"text": "c", "priority": 1}]
    assert client.get("/messages?limit=1000").json == [{"text": "a"}, {"text": "b"}]


def test_a_batch_is_returned_as_ndjson_on_request(client: Client) -> None:
    client.post("/messages", [{"text": "a\n\u2028"}, {"text": "b"}, {"text": "c"}])
    reply = client.get("/messages?limit=2", Accept="application/x-ndjson, application/json;q=0.5")
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.lines == [{"text": "a\n\u2028"}, {"text": "b"}]
    leased = client.get("/messages?limit=2&lease=9", Accept="application/x-ndjson")
    assert [line.keys() for line in leased.lines] == [ENVELOPE | {"text"}]


@pytest.mark.parametrize("route", MESSAGE_ROUTES)
def test_a_leased_read_returns_the_envelope_and_hides_the_message(client: Client, route: str) -> None:
    sent = client.post(route, {"text": "x", "priority": 2, "attributes": {"a": 1}}).json["id"]
    reply = client.get(f"{route}?lease=60")
    message = reply.json
    assert message.keys() == ENVELOPE | {"text", "priority", "attributes"}
    assert (message["id"], message["text"], message["priority"], message["attributes"]) == (sent, "x", 2, {"a": 1})
    assert (message["queue"], message["receive_count"]) == ("jobs" if "jobs" in route else "default", 1)
    assert message["leased_until"].endswith("Z")
    assert client.get(f"{route}?lease=60").status == 204
    assert client.get(route).status == 204


@pytest.mark.parametrize(("lease", "seconds"), [("1", 1), ("43200", 43_200), ("1.5", 1.5), ("default", 7)])
def test_a_lease_ends_when_the_reader_or_the_setting_says(
    client: Client, store: Engine, lease: str, seconds: float
) -> None:
    client.call("PUT", "/queues/default", b'{"lease": 7}')
    client.post("/messages", {"text": "x"})
    before = time.time()
    until = moment(client.get(f"/messages?lease={lease}").json["leased_until"])
    assert before + seconds - 1.1 <= until <= time.time() + seconds + 1.1


def test_every_delivery_has_its_own_receipt_and_is_counted(client: Client) -> None:
    first = held(client)
    assert client.call("PATCH", f"/messages/{first['receipt']}", b'{"lease": 0}').status == 204
    second = client.get("/messages?lease=60").json
    assert (second["id"], second["receive_count"]) == (first["id"], 2)
    assert second["receipt"] != first["receipt"]


def test_only_a_reader_that_names_the_recipient_gets_its_messages(client: Client) -> None:
    client.post("/messages", [{"text": "a", "recipient": "me & é"}, {"text": "b"}])
    assert client.get("/messages?recipient=you").status == 204
    assert client.get("/messages?recipient=me+%26+%C3%A9").json == {"text": "a", "recipient": "me & é"}
    assert texts(client) == ["b"]


def test_several_queues_are_read_in_the_order_they_are_named_in(client: Client) -> None:
    for queue in ("low", "high"):
        client.post(f"/queues/{queue}/messages", [{"text": f"{queue} {number}"} for number in range(2)])
    reply = client.get("/messages?queue=high&queue=low&queue=high")
    assert (reply.json, reply.headers["message-queue"]) == ({"text": "high 0"}, "high")
    assert client.get("/messages?queue=high&queue=low&limit=9").json == [
        {"queue": "high", "text": "high 1"},
        {"queue": "low", "text": "low 0"},
        {"queue": "low", "text": "low 1"},
    ]


def test_one_queue_named_in_the_query_is_read_like_its_own_route(client: Client) -> None:
    client.post("/queues/jobs/messages", [{"text": "a"}, {"text": "b"}])
    client.post("/messages", {"text": "c"})
    assert client.get("/messages?queue=jobs").json == {"text": "a"}
    assert client.get("/messages?queue=jobs&limit=2").json == [{"text": "b"}]
    assert texts(client) == ["c"]


@pytest.mark.parametrize(
    "query", ["?wait=20", "?wait=20&lease=9", "?wait=20&limit=5", "?queue=a&queue=default&wait=20"]
)
def test_a_waiting_reader_gets_a_new_message(client: Client, store: Engine, query: str) -> None:
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(client.get, f"/messages{query}")
        client.post("/messages", {"text": "at last"})
        reply = reading.result(timeout=10)
    (message,) = reply.json if isinstance(reply.json, list) else [reply.json]
    assert message["text"] == "at last"


def test_a_reader_beyond_the_limit_of_waiting_readers_gets_retry_after(client: Client, store: Engine) -> None:
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(client.get("/messages?wait=20"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while not replies and time.monotonic() < deadline:  # two readers can wait
        time.sleep(0.005)
    assert [(reply.status, reply.headers.get("retry-after")) for reply in replies] == [(204, "1")]
    store.stop_waiting()
    for thread in threads:
        thread.join(timeout=10)
    assert [reply.headers.get("retry-after") for reply in replies] == ["1", None, None]


BAD_QUERIES = {
    "limit": ["limit=0", "limit=1001", "limit=-1", "limit=1.0", "limit=", "limit=x", "limit=+1", "limit=%2B1",
              "limit=1e1", "limit=%D9%A1", "limit=1&limit=1", "limit=1_0", "limit=" + "9" * 4_500],
    "wait": ["wait=21", "wait=-1", "wait=nan", "wait=inf", "wait=", "wait=1e1", "wait=20.001", "wait=1&wait=1",
             "wait=.5"],
    "lease": ["lease=0", "lease=0.999", "lease=43201", "lease=", "lease=Default", "lease=default&lease=default",
              "lease=1&lease=default", "lease=0x10", "lease=-5"],
    "recipient": ["recipient=", "recipient=a&recipient=a", "recipient=" + "x" * 129],
    "queue": ["queue=", "queue=a&queue=", "queue=..", "queue=a%2Fb", "queue=%C3%A9", "queue=a%0A", "queue=" + "x" * 81],
    "Limit": ["Limit=1"],
    "timeout": ["timeout=5", "limit=1&timeout=5"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "query"), [(field, query) for field, queries in BAD_QUERIES.items() for query in queries]
)
def test_a_read_with_a_bad_query_is_refused_by_name_and_takes_nothing(client: Client, field: str, query: str) -> None:
    client.post("/messages", {"text": "x"})
    assert_problem(client.get(f"/messages?{query}"), 400, "invalid_input", field=field)
    assert texts(client) == ["x"]


def test_a_queues_own_route_refuses_another_queue(client: Client) -> None:
    assert_problem(client.get("/queues/jobs/messages?queue=other"), 400, "invalid_input", field="queue")


# Idempotency.


WRITES = [
    (b'{"text": "x"}', "application/json"),
    (b'[{"text": "x"}, {"text": "x"}]', "application/json"),
    (b'{"text": "x"}\n{"text": "x"}', "application/x-ndjson"),
    (b"x", "text/plain"),
]


@pytest.mark.parametrize(("body", "kind"), WRITES)
def test_a_write_repeated_with_its_key_is_done_once_and_answered_alike(client: Client, body: bytes, kind: str) -> None:
    replies = [
        client.call("POST", "/messages", body, Content_Type=kind, Idempotency_Key=key) for key in ("k", "k", "other")
    ]
    assert replies[0].status == 200
    assert replies[0] == replies[1]
    assert replies[0].json != replies[2].json
    assert stats(client)["sent"] == 2 * len(replies[0].json.get("ids", "1"))


def test_a_write_is_remembered_after_its_message_is_deleted(client: Client) -> None:
    first = client.post("/messages", {"text": "x"}, Idempotency_Key="k")
    assert texts(client) == ["x"]
    assert client.post("/messages", {"text": "x"}, Idempotency_Key="k") == first
    assert client.get("/messages").status == 204


def test_a_key_used_again_for_another_request_is_refused(client: Client) -> None:
    client.post("/messages", {"text": "x"}, Idempotency_Key="k")
    for reply in [
        client.post("/messages", {"text": "y"}, Idempotency_Key="k"),
        client.post("/messages", {"text": "x"}, Idempotency_Key="k", Content_Type="text/plain"),
        client.get("/messages", Idempotency_Key="k"),
    ]:
        assert_problem(reply, 422, "idempotency_mismatch")
    assert texts(client) == ["x"]


def test_a_key_belongs_to_its_queue(client: Client) -> None:
    client.post("/queues/a/messages", {"text": "a"}, Idempotency_Key="k")
    assert client.post("/queues/b/messages", {"text": "b"}, Idempotency_Key="k").json["text"] == "b"
    assert (texts(client, "a"), texts(client, "b")) == (["a"], ["b"])


@pytest.mark.parametrize("query", ["", "?limit=2", "?lease=60", "?lease=default&limit=2"])
def test_a_read_repeated_with_its_key_returns_the_same_messages_and_receipts(client: Client, query: str) -> None:
    client.post("/messages", [{"text": text} for text in "abcd"])
    first = client.get(f"/messages{query}", Idempotency_Key="k")
    assert client.get(f"/messages{query}", Idempotency_Key="k") == first
    other = client.get(f"/messages{query}", Idempotency_Key="other")
    assert other.json != first.json
    assert stats(client)["received"] == 2 * (len(first.json) if "limit" in query else 1)


def test_a_read_of_several_queues_repeated_with_its_key_returns_the_same(client: Client) -> None:
    client.post("/queues/low/messages", {"text": "mine"})
    first = client.get("/messages?queue=high&queue=low", Idempotency_Key="k")
    client.post("/queues/high/messages", {"text": "new"})
    assert client.get("/messages?queue=high&queue=low", Idempotency_Key="k") == first
    assert texts(client, "high") == ["new"]


def test_a_read_that_found_nothing_may_find_something_with_the_same_key(client: Client) -> None:
    assert client.get("/messages", Idempotency_Key="k").status == 204
    client.post("/messages", {"text": "x"})
    assert client.get("/messages", Idempotency_Key="k").json == {"text": "x"}


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 256, "a\tb"])
def test_an_invalid_key_is_refused_on_every_route_that_accepts_one(client: Client, key: str) -> None:
    client.post("/messages", {"text": "x"})
    for reply in [
        client.post("/messages", {"text": "y"}, Idempotency_Key=key),
        client.get("/messages", Idempotency_Key=key),
        client.post("/transactions", {"send": [{"text": "y"}]}, Idempotency_Key=key),
    ]:
        assert_problem(reply, 400, "invalid_input", field="Idempotency-Key")
    assert client.post("/messages", {"text": "z"}, Idempotency_Key="~" * 255).status == 200
    assert texts(client) == ["x", "z"]


# Settling.


@pytest.mark.parametrize("route", ["/messages", "/queues/default/messages"])
def test_an_acknowledged_message_is_deleted(client: Client, route: str) -> None:
    receipt = held(client)["receipt"]
    assert client.call("DELETE", f"{route}/{receipt}").status == 204
    assert_problem(client.call("DELETE", f"{route}/{receipt}"), 404, "message_not_found")
    assert stats(client)["acked"] == 1
    assert stats(client)["leased"] == 0


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
def test_a_receipt_of_an_earlier_delivery_is_stale_once_another_reader_leased_the_message(
    client: Client, method: str
) -> None:
    first = held(client)["receipt"]
    client.call("PATCH", f"/messages/{first}", b'{"lease": 0}')
    second = client.get("/messages?lease=60").json["receipt"]
    assert_problem(client.call(method, f"/messages/{first}", b'{"lease": 9}'), 409, "stale_receipt")
    assert client.call("DELETE", f"/messages/{second}").status == 204


@pytest.mark.parametrize(
    "receipt", ["x", "default~9~f", "none~1~f", "default~1", "ack", "a~b~c", "%00", "%F0%9F%98%80", "x" * 5_000]
)
def test_an_invented_receipt_is_not_found(client: Client, receipt: str) -> None:
    held(client)
    assert_problem(client.call("DELETE", f"/messages/{receipt}"), 404, "message_not_found")
    assert_problem(client.call("PATCH", f"/messages/{receipt}", b'{"lease": 0}'), 404, "message_not_found")
    assert stats(client)["leased"] == 1


def test_a_receipt_is_not_found_under_another_queue(client: Client) -> None:
    receipt = held(client)["receipt"]
    for method in ("DELETE", "PATCH"):
        reply = client.call(method, f"/queues/other/messages/{receipt}", b'{"lease": 0}')
        assert_problem(reply, 404, "message_not_found")
    assert client.post("/queues/other/messages/ack", {"receipts": [receipt]}).json["missing"] == [receipt]
    assert stats(client)["leased"] == 1


def test_extending_a_lease_returns_its_new_end(client: Client, store: Engine) -> None:
    receipt = held(client)["receipt"]
    before = time.time()
    reply = client.call("PATCH", f"/messages/{receipt}", b'{"lease": 600}')
    assert reply.status == 200
    assert reply.json.keys() == {"leased_until"}
    assert before + 599 <= moment(reply.json["leased_until"]) <= time.time() + 601


def test_a_released_message_is_redelivered_at_once_or_after_its_delay(client: Client) -> None:
    receipt = held(client)["receipt"]
    assert client.call("PATCH", f"/messages/{receipt}", b'{"lease": 0}').status == 204
    receipt = client.get("/messages?lease=60").json["receipt"]
    assert client.call("PATCH", f"/messages/{receipt}", b'{"lease": 0, "delay": 60}').status == 204
    assert client.get("/messages?lease=60").status == 204
    assert stats(client)["delayed"] == 1


def test_a_rejected_message_is_in_the_dead_letter_queue_with_its_history(client: Client) -> None:
    receipt = held(client, "poison", attributes={"mine": 1})["receipt"]
    assert client.call("PATCH", f"/messages/{receipt}", b'{"dead": true, "reason": "no \\u00e9"}').status == 204
    attributes = client.get("/queues/default.dead/messages").json["attributes"]
    assert moment(attributes.pop("dead_letter_at")) > 0
    assert attributes == {
        "mine": 1,
        "dead_letter_from": "default",
        "dead_letter_reason": "no é",
        "dead_letter_id": "1",
        "dead_letter_receive_count": 1,
    }


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, "lease"),
        ({"lease": None}, "lease"),
        ({"lease": -1}, "lease"),
        ({"lease": 0.5}, "lease"),
        ({"lease": 43_201}, "lease"),
        ({"lease": "60"}, "lease"),
        ({"lease": True}, "lease"),
        ({"lease": 60, "delay": 1}, "delay"),
        ({"lease": 0, "delay": -1}, "delay"),
        ({"lease": 0, "delay": "1"}, "delay"),
        ({"lease": 0, "reason": "x"}, "reason"),
        ({"lease": 0, "dead": True}, "lease"),
        ({"dead": False}, "dead"),
        ({"dead": 1}, "dead"),
        ({"dead": True, "reason": ""}, "reason"),
        ({"dead": True, "reason": "\ud800"}, "reason"),
        ({"dead": True, "reason": "x" * 1_025}, "reason"),
        ({"dead": True, "delay": 1}, "delay"),
        ({"lease": 0, "x": 1}, "x"),
    ],
)
def test_an_invalid_lease_change_changes_nothing(client: Client, change: dict[str, object], field: str) -> None:
    receipt = held(client)["receipt"]
    reply = client.call("PATCH", f"/messages/{receipt}", json.dumps(change).encode())
    assert_problem(reply, 400, "invalid_input", field=field)
    assert client.get("/queues/default/peek").json[0]["state"] == "leased"


def test_many_receipts_are_acknowledged_at_once_and_invalid_ones_reported(client: Client) -> None:
    stale, good, gone = (held(client, text)["receipt"] for text in ("stale", "good", "gone"))
    client.call("DELETE", f"/messages/{gone}")
    client.call("PATCH", f"/messages/{stale}", b'{"lease": 0}')
    client.get("/messages?lease=60")
    reply = client.post("/messages/ack", {"receipts": [good, stale, gone, "nonsense \u2028", good]})
    assert reply.status == 200
    assert reply.json == {"acked": 1, "stale": [stale], "missing": [gone, "nonsense \u2028"]} or reply.json == {
        "acked": 1, "stale": [stale], "missing": ["nonsense \u2028", gone]
    }  # fmt: skip
    assert stats(client)["leased"] == 1


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({}, "receipts"),
        ({"receipts": []}, "receipts"),
        ({"receipts": "x"}, "receipts"),
        ({"receipts": [1]}, "receipts"),
        ({"receipts": None}, "receipts"),
        ({"receipts": ["x"], "x": 1}, "x"),
        ({"receipts": ["x"] * 10_001}, "receipts"),
    ],
)
def test_an_invalid_ack_is_refused(client: Client, document: object, field: str) -> None:
    assert_problem(client.post("/messages/ack", document), 400, "invalid_input", field=field)


JSON_ONLY = [
    ("POST", "/messages/ack"),
    ("POST", "/transactions"),
    ("PATCH", "/messages/x"),
    ("PUT", "/queues/jobs"),
    ("POST", "/queues/jobs/redrive"),
]


@pytest.mark.parametrize(("method", "route"), JSON_ONLY)
def test_a_route_that_expects_an_object_refuses_anything_else(client: Client, method: str, route: str) -> None:
    client.post("/queues/jobs/messages", {"text": "x"})
    for body in (b"[]", b'"x"', b"1", b"null"):
        assert_problem(client.call(method, route, body), 400, "invalid_input")
    assert_problem(client.call(method, route, b"{"), 400, "bad_request")
    for kind in ("text/plain", "application/x-ndjson"):
        assert_problem(client.call(method, route, b"{}", Content_Type=kind), 415, "unsupported_media_type")


# Transactions.


def test_a_transaction_acknowledges_sends_and_receives_the_next(client: Client) -> None:
    receipt = held(client, "in", queue="jobs")["receipt"]
    client.post("/queues/jobs/messages", {"text": "next", "priority": 1})
    send = [{"queue": "out", "text": "a", "key": "k"}, {"text": "b"}]
    reply = client.post(
        "/transactions", {"ack": [receipt], "send": send, "receive": {"queue": "jobs", "limit": 5, "lease": 60}}
    )
    assert reply.status == 200
    assert reply.json.keys() == {"ids", "messages"}
    assert reply.json["ids"] == ["4", "3"]  # each message names its queue; the first by name comes first
    (message,) = reply.json["messages"]
    assert message.keys() == ENVELOPE | {"text", "priority"}
    assert (message["text"], message["queue"]) == ("next", "jobs")
    assert client.get("/queues/out/messages").json == {"text": "a", "key": "k"}
    assert texts(client) == ["b"]
    assert stats(client, "jobs")["acked"] == 1


def test_a_transaction_without_receive_returns_only_ids(client: Client) -> None:
    assert client.post("/transactions", {"send": [{"text": "a"}]}).json == {"ids": ["1"]}
    assert client.post("/transactions", {"ack": []}).json == {"ids": []}
    assert client.post("/transactions", {"receive": {"queue": "none"}}).json == {"ids": [], "messages": []}


@pytest.mark.parametrize("bad", ["gone", "stale", "nonsense"])
def test_a_transaction_with_an_invalid_receipt_does_nothing(client: Client, bad: str) -> None:
    first, good = held(client)["receipt"], held(client)["receipt"]
    client.call("PATCH", f"/messages/{first}", b'{"lease": 0}')
    second = client.get("/messages?lease=60").json["receipt"]
    if bad == "gone":
        client.call("DELETE", f"/messages/{second}")
    receipt = "nonsense" if bad == "nonsense" else first
    reply = client.post("/transactions", {"ack": [good, receipt], "send": [{"queue": "out", "text": "a"}]})
    assert_problem(reply, 409, "stale_receipt", index=1)
    assert_problem(client.get("/queues/out"), 404, "queue_not_found", queue="out")
    assert client.call("DELETE", f"/messages/{good}").status == 204


def test_a_transaction_repeated_with_its_key_is_done_once_and_answered_alike(client: Client) -> None:
    document = {
        "ack": [held(client, queue="jobs")["receipt"]],
        "send": [{"queue": "jobs", "text": "a"}],
        "receive": {"queue": "jobs", "lease": 60},
    }
    first = client.post("/transactions", document, Idempotency_Key="k")
    assert [message["text"] for message in first.json["messages"]] == ["a"]
    assert client.post("/transactions", document, Idempotency_Key="k") == first
    assert_problem(
        client.post("/transactions", document | {"ack": []}, Idempotency_Key="k"), 422, "idempotency_mismatch"
    )
    assert (stats(client, "jobs")["sent"], stats(client, "jobs")["received"]) == (2, 2)


@pytest.mark.parametrize(
    ("document", "members"),
    [
        ({}, {}),
        ({"x": 1}, {"field": "x"}),
        ({"ack": "x"}, {"field": "ack"}),
        ({"ack": [1]}, {"field": "ack"}),
        ({"send": {}}, {"field": "send"}),
        ({"send": ["x"]}, {"field": "send", "index": 0}),
        ({"send": [{"text": "a"}, {"text": 1}]}, {"field": "text", "index": 1}),
        ({"send": [{"text": "a"}, {"text": "b", "queue": "."}]}, {"field": "queue", "index": 1}),
        ({"send": [{"text": "b", "queue": None}]}, {"field": "queue", "index": 0}),
        ({"send": [{"text": "a"}] * 10_001}, {"field": "send"}),
        ({"receive": []}, {"field": "receive"}),
        ({"receive": {"queue": "/"}}, {"field": "queue"}),
        ({"receive": {"limit": 0}}, {"field": "limit"}),
        ({"receive": {"limit": 1_001}}, {"field": "limit"}),
        ({"receive": {"limit": 1.0}}, {"field": "limit"}),
        ({"receive": {"lease": 0}}, {"field": "lease"}),
        ({"receive": {"lease": None}}, {"field": "lease"}),
        ({"receive": {"wait": 21}}, {"field": "wait"}),
        ({"receive": {"recipient": ""}}, {"field": "recipient"}),
        ({"receive": {"queues": ["a"]}}, {"field": "queues"}),
    ],
)
def test_an_invalid_transaction_is_refused_by_field_name(
    client: Client, document: dict[str, object], members: dict[str, object]
) -> None:
    send = {} if "send" in document or not document else {"send": [{"text": "a"}]}
    assert_problem(client.post("/transactions", send | document), 400, "invalid_input", **members)
    assert client.get("/queues").json == {"queues": []}


# Queues.


def test_a_queue_is_shown_with_its_settings_stats_and_an_etag(client: Client) -> None:
    client.post("/queues/jobs/messages", [{"text": "é"}, {"text": "b"}])
    client.get("/queues/jobs/messages?lease=60")
    reply = client.get("/queues/jobs")
    document = reply.json
    assert document.keys() == {"queue", "stats", "settings"}
    assert document["queue"] == "jobs"
    assert list(document["stats"]) == NOW + TOTALS
    now = {name: document["stats"][name] for name in ("ready", "leased", "bytes", "sent", "received")}
    assert now == {"ready": 1, "leased": 1, "bytes": 3, "sent": 2, "received": 1}
    assert document["settings"] == {
        "lease": 30.0,
        "max_receives": 0,
        "dead_letter_queue": None,
        "retention": None,
        "max_messages": None,
        "max_bytes": None,
        "dedup_window": 300.0,
        "dead_letter_expired": False,
        "paused": False,
        "delay": 0.0,
        "expires": None,
        "wait": 0.0,
        "max_message_bytes": None,
        "dedup_content": False,
        "dedup_scope": "queue",
        "key_lock": "run",
        "sqs": {},
        "tags": {},
    }
    assert reply.headers["etag"].strip('"').isdigit()


def test_all_queues_are_listed_by_name(client: Client) -> None:
    assert client.get("/queues").json == {"queues": []}
    client.post("/queues/b/messages", {"text": "x"})
    client.call("PUT", "/queues/a", b"{}")
    listed = client.get("/queues").json["queues"]
    assert [(queue["queue"], queue["stats"]["ready"]) for queue in listed] == [("a", 0), ("b", 1)]
    assert all(list(queue["stats"]) == NOW + TOTALS for queue in listed)


def test_settings_are_changed_one_by_one_and_reset_with_null(client: Client) -> None:
    put = client.call("PUT", "/queues/jobs", b'{"lease": 5, "max_receives": 3}')
    assert put.status == 200
    assert client.get("/queues/jobs") == put
    settings = client.call("PUT", "/queues/jobs", b'{"lease": null, "paused": true}').json["settings"]
    assert (settings["lease"], settings["max_receives"], settings["paused"]) == (30.0, 3, True)


def test_settings_are_changed_only_at_the_version_that_was_read(client: Client) -> None:
    seen = client.call("PUT", "/queues/jobs", b"{}").headers["etag"]
    changed = client.call("PUT", "/queues/jobs", b'{"lease": 5}', If_Match=seen)
    assert changed.status == 200
    assert changed.headers["etag"] != seen
    for tag in (seen, '"nonsense"', "", "W/" + changed.headers["etag"]):
        reply = client.call("PUT", "/queues/jobs", b'{"lease": 6}', If_Match=tag)
        assert_problem(reply, 412, "precondition_failed", queue="jobs")
    for tag in (seen, '"0"'):
        assert_problem(client.call("PUT", "/queues/new", b"{}", If_Match=tag), 412, "precondition_failed", queue="new")
    assert client.get("/queues/jobs").json["settings"]["lease"] == 5


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "lease": [-1, 43_201, "5", True],
        "max_receives": [-1, 1.5, "5", True],
        "dead_letter_queue": ["", ".", 5, "jobs"],
        "retention": [0, -1, "5"],
        "max_messages": [0, 1.5, "5"],
        "max_bytes": [0, -1, 2**53],
        "dedup_window": [-1, "5"],
        "dead_letter_expired": [0, "yes"],
        "paused": [1, "no"],
        "wait": [-1, 21],
        "max_message_bytes": [0, "1"],
        "dedup_scope": ["keys", {}],
        "key_lock": ["none", 0],
        "tags": ["a", [], {"a": None}],
        "colour": ["red", None],
    }.items(),
)
def test_a_setting_with_a_wrong_value_is_refused_by_name(client: Client, name: str, values: list[object]) -> None:
    for value in values:
        reply = client.call("PUT", "/queues/jobs", json.dumps({name: value}).encode())
        assert_problem(reply, 400, "invalid_input", field=name)
    assert client.get("/queues").json == {"queues": []}


def test_a_full_queue_refuses_a_message_and_says_when_to_try_again(client: Client) -> None:
    client.call("PUT", "/queues/jobs", b'{"max_messages": 2}')
    assert client.post("/queues/jobs/messages", {"text": "a"}).status == 200
    too_many = client.post("/queues/jobs/messages", [{"text": "b"}, {"text": "c"}])
    assert_problem(too_many, 429, "queue_full", queue="jobs")
    assert too_many.json["detail"] == (
        "queue 'jobs' is full: it has 1 of 2 messages (max_messages), and 2 more do not fit; nothing was stored"
    )
    assert_problem(
        client.post("/transactions", {"send": [{"text": "b", "queue": "jobs"}] * 2}), 429, "queue_full", queue="jobs"
    )
    assert texts(client, "jobs") == ["a"]


def test_a_deleted_queue_is_not_found(client: Client) -> None:
    receipt = held(client, queue="jobs")["receipt"]
    assert client.call("DELETE", "/queues/jobs").status == 204
    assert_problem(client.call("DELETE", "/queues/jobs"), 404, "queue_not_found", queue="jobs")
    assert_problem(client.call("DELETE", f"/messages/{receipt}"), 404, "message_not_found")
    assert client.get("/queues").json == {"queues": []}


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", "/queues/jobs"),
        ("DELETE", "/queues/jobs"),
        ("POST", "/queues/jobs/purge"),
        ("POST", "/queues/jobs/redrive"),
    ],
)
def test_a_missing_queue_is_not_found(client: Client, method: str, route: str) -> None:
    assert_problem(client.call(method, route), 404, "queue_not_found", queue="jobs")


def test_a_purged_queue_is_empty_and_still_exists(client: Client) -> None:
    client.post("/queues/jobs/messages", [{"text": "a"}, {"text": "b"}, {"text": "c", "delay": 60}])
    client.get("/queues/jobs/messages?lease=60")
    assert client.call("POST", "/queues/jobs/purge").json == {"purged": 3}
    assert client.call("POST", "/queues/jobs/purge").json == {"purged": 0}
    assert client.get("/queues/jobs").status == 200


def test_a_redrive_moves_the_requested_number_of_dead_letters_in_order(client: Client) -> None:
    for text in "abc":
        receipt = held(client, text, queue="jobs")["receipt"]
        client.call("PATCH", f"/messages/{receipt}", b'{"dead": true}')
    assert stats(client, "jobs")["dead"] == 3
    assert client.call("POST", "/queues/jobs/redrive", b'{"limit": 2}').json == {"redriven": 2}
    assert texts(client, "jobs") == ["a", "b"]
    assert client.call("POST", "/queues/jobs.dead/redrive").json == {"redriven": 1}
    assert texts(client, "jobs") == ["c"]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1", True])
def test_a_redrive_of_an_invalid_number_is_refused(client: Client, limit: object) -> None:
    client.call("PUT", "/queues/jobs", b"{}")
    assert_problem(client.post("/queues/jobs/redrive", {"limit": limit}), 400, "invalid_input", field="limit")
    assert_problem(client.post("/queues/jobs/redrive", {"x": 1}), 400, "invalid_input", field="x")


def test_a_peek_shows_messages_and_their_states_and_changes_nothing(client: Client) -> None:
    leased = held(client, "leased")
    client.post("/messages", [{"text": "ready"}, {"text": "delayed", "delay": 60}])
    client.post("/messages", [{"text": "head", "key": "k"}, {"text": "blocked", "key": "k", "priority": 1}])
    before = stats(client)
    messages = client.get("/queues/default/peek").json
    assert [(one["text"], one["state"]) for one in messages] == [
        ("leased", "leased"), ("ready", "ready"), ("delayed", "delayed"), ("head", "ready"), ("blocked", "blocked")
    ]  # fmt: skip
    envelope = {"id", "queue", "state", "sent_at", "receive_count", "text"}
    assert messages[0].keys() == envelope | {"leased_until", "leased_by"}
    assert messages[0]["leased_until"] == leased["leased_until"]
    assert messages[4].keys() == envelope | {"key", "priority"}
    after = stats(client)
    assert after | {"oldest_age": 0} == before | {"oldest_age": 0}


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7", ""])
@pytest.mark.parametrize("transacts", [False, True])
def test_a_peek_shows_which_address_holds_a_lease(client: Client, address: str, transacts: bool) -> None:
    client.post("/messages", [{"text": "a"}, {"text": "b"}])
    marks = {"REMOTE_ADDR": address, "X_Forwarded_For": "203.0.113.9"}
    if transacts:
        client.post("/transactions", {"receive": {"lease": 60}}, **marks)
    else:
        assert "leased_by" not in client.get("/messages?lease=60", **marks).json
    for other in ("192.0.2.8", "192.0.2.9"):  # the same request of another client
        client.get("/messages?lease=60", REMOTE_ADDR=other)
    shown = [one.get("leased_by") for one in client.get("/queues/default/peek").json]
    assert shown == [address or None, "192.0.2.8"]
    assert client.get("/queues/default/messages/2").json["leased_by"] == "192.0.2.8"


def test_a_peek_continues_after_an_id_and_filters_by_state(client: Client) -> None:
    client.post("/messages", [{"text": "a"}, {"text": "b", "delay": 60}, {"text": "c"}])
    page = client.get("/queues/default/peek?limit=2").json
    assert [one["text"] for one in page] == ["a", "b"]
    rest = client.get(f"/queues/default/peek?limit=2&after={page[-1]['id']}").json
    assert [one["text"] for one in rest] == ["c"]
    assert [one["text"] for one in client.get("/queues/default/peek?state=delayed").json] == ["b"]
    ndjson = client.get("/queues/default/peek?state=ready", Accept="application/x-ndjson")
    assert [one["text"] for one in ndjson.lines] == ["a", "c"]
    assert client.get("/queues/nowhere/peek").json == []


def test_an_empty_peek_as_ndjson_has_no_lines(client: Client) -> None:
    reply = client.get("/queues/nowhere/peek", Accept="application/x-ndjson")
    assert (reply.status, reply.lines) == (200, [])


def test_a_peek_for_dead_messages_shows_those_of_this_queue(client: Client) -> None:
    receipt = held(client)["receipt"]
    client.call("PATCH", f"/messages/{receipt}", b'{"dead": true, "reason": "bad"}')
    (message,) = client.get("/queues/default/peek?state=dead").json
    assert (message["state"], message["text"], message["attributes"]["dead_letter_reason"]) == ("dead", "x", "bad")


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "after=-1", "after=x", "after=", "after=" + "9" * 19,
                                   "state=", "state=gone", "state=ready&state=ready", "wait=1"])  # fmt: skip
def test_a_peek_with_a_bad_query_is_refused_by_name(client: Client, query: str) -> None:
    assert_problem(client.get(f"/queues/default/peek?{query}"), 400, "invalid_input", field=query.partition("=")[0])


# Routes and methods.


ROUTES = {
    "/messages": {"GET", "POST"},
    "/messages/x": {"DELETE", "PATCH"},
    "/messages/ack": {"DELETE", "PATCH", "POST"},
    "/transactions": {"POST"},
    "/queues": {"GET", "HEAD"},
    "/queues/jobs": {"GET", "HEAD", "PUT", "DELETE"},
    "/queues/jobs/messages": {"GET", "POST"},
    "/queues/jobs/messages/x": {"DELETE", "PATCH"},
    "/queues/jobs/messages/ack": {"DELETE", "PATCH", "POST"},
    "/queues/jobs/peek": {"GET", "HEAD"},
    "/queues/jobs/purge": {"POST"},
    "/queues/jobs/redrive": {"POST"},
    "/": {"GET", "HEAD"},
    "/docs": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
    "/health": {"GET", "HEAD"},
    "/ready": {"GET", "HEAD"},
}


@pytest.mark.parametrize(("route", "methods"), ROUTES.items())
def test_an_unsupported_method_is_answered_with_the_supported_ones(
    client: Client, route: str, methods: set[str]
) -> None:
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - methods:
        reply = client.call(method, route)
        assert reply.status == 405, method
        assert set(reply.headers["allow"].replace(" ", "").split(",")) == methods, method
        if method != "HEAD":
            assert_problem(reply, 405, "method_not_allowed")
            assert all(allowed in reply.json["detail"] for allowed in methods), reply.json


@pytest.mark.parametrize(("route", "methods"), ROUTES.items())
def test_options_returns_the_methods_of_a_route(client: Client, route: str, methods: set[str]) -> None:
    reply = client.call("OPTIONS", route)
    assert reply.status == 204
    assert set(reply.headers["allow"].replace(" ", "").split(",")) == methods


NO_ROUTES = [
    "*", "/nothing", "/messages/", "/messages/a/b", "/Messages", "/queues/", "/queues/a/", "/queues/a/nothing",
    "/queues/a/messages/", "/health/", "/favicon.ico", "/messages%00", "/messages%0a", "/queues/a/messages%0a",
    "/queues/a/purge%0A",
]  # fmt: skip


@pytest.mark.parametrize("route", NO_ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_an_unknown_route_is_not_found(client: Client, method: str, route: str) -> None:
    client.post("/queues/a/messages", {"text": "x"})
    assert_problem(client.call(method, route), 404, "not_found")
    assert texts(client, "a") == ["x"]


@pytest.mark.parametrize(
    ("method", "route"),
    [(method, route) for route, methods in ROUTES.items() for method in sorted(methods - {"HEAD"})
     if route not in {"/", "/docs", "/openapi.json", "/health", "/ready"} and (method, route) != ("GET", "/messages")],
)  # fmt: skip
def test_every_route_refuses_an_unknown_query_parameter(client: Client, method: str, route: str) -> None:
    assert_problem(client.call(method, f"{route}?colour=red", b"{}"), 400, "invalid_input", field="colour")


# Errors.


@pytest.mark.parametrize(("fault", "answer"), problems.PROBLEMS.items())
def test_every_error_of_the_table_is_answered_with_its_status_and_code(
    client: Client, store: Engine, monkeypatch: pytest.MonkeyPatch, fault: type[Exception], answer: tuple[int, str, str]
) -> None:
    monkeypatch.setattr(store, "send", raising(fault))
    monkeypatch.setattr("tests.support.wsgi.conforms", lambda *_: None)  # send itself never raises most of these
    reply = client.post("/messages", {"text": "x"})
    assert (reply.status, reply.json["code"], reply.json["title"]) == answer


def test_statuses_and_codes_are_those_clients_know() -> None:
    actual = sorted((status, code) for status, code, _ in problems.PROBLEMS.values())
    assert actual == [
        (400, "bad_request"),
        (400, "invalid_input"),
        (401, "unauthenticated"),
        (403, "cross_origin"),
        (403, "forbidden"),
        (403, "prefetch"),
        (404, "message_not_found"),
        (404, "queue_not_found"),
        (409, "message_leased"),
        (409, "stale_receipt"),
        (412, "precondition_failed"),
        (413, "body_too_large"),
        (415, "unsupported_media_type"),
        (421, "unknown_host"),
        (422, "idempotency_mismatch"),
        (429, "queue_full"),
        (429, "too_many_failures"),
        (500, "internal_error"),
        (503, "busy"),
        (503, "disk_full"),
        (503, "interrupted"),
        (503, "unavailable"),
    ]


def raising(fault: type[Exception]) -> Callable[..., NoReturn]:
    wants_detail = fault.__init__ in (Exception.__init__, errors.InvalidInput.__init__, errors.QueueError.__init__)
    of_queue = {"queue": "q"} if issubclass(fault, errors.QueueError) else {}

    def fail(*_: object, **__: object) -> NoReturn:
        if fault is errors.Interrupted:
            raise errors.Interrupted("10,000 messages were purged", errors.Busy())
        if fault is errors.QueueFull:
            raise errors.QueueFull("q", "max_messages", 1, 1, 1)
        raise fault(*(["a detail"] if wants_detail else []), **of_queue)

    return fail


# Pages.


def test_curl_at_the_root_gets_a_pointer_to_the_documentation(client: Client) -> None:
    guide = client.get("/", Host="localhost:5000", Accept="*/*")
    assert guide.json["receive"] == "curl localhost:5000/messages"
    assert guide.headers["vary"] == "Accept"
    for path in (guide.json["reference"], guide.json["openapi"]):
        assert client.get(path).status == 200


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_browser_gets_a_page_that_runs_only_its_own_script(client: Client, path: str) -> None:
    page = client.get(path, Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    assert "unsafe" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    parts = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", page.body.decode(), re.DOTALL)
    assert allowed == {base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts}
    assert not re.search(r"""(src|href)="(?!/?docs"|openapi.json"|\./"|#|data:)""", page.body.decode())


def test_the_reference_lists_no_head_and_names_path_parameters(client: Client) -> None:
    page = client.get("/docs").body.decode()
    assert ">HEAD<" not in page
    assert '<b class="get">GET</b> <code>/queues/<i>{queue}</i>/messages/<i>{receipt_or_id}</i></code>' in page


# Operations.


@pytest.mark.parametrize(("route", "status"), [("/health", "alive"), ("/ready", "ready")])
def test_the_service_reports_that_it_is_alive_and_ready(client: Client, route: str, status: str) -> None:
    reply = client.get(route)
    assert (reply.status, reply.json) == (200, {"status": status})


def test_the_service_is_alive_but_not_ready_while_it_cannot_write(
    client: Client, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "check_ready", raising(errors.DiskFull))
    assert_problem(client.get("/ready"), 503, "disk_full")
    assert client.get("/health").status == 200


# Where the socket matters.


@pytest.fixture
def connection(server: LiveServer) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        yield connection


def exchange(
    connection: http.client.HTTPConnection, method: str, target: str, body: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request(method, target, body)
    reply = connection.getresponse()
    return reply, reply.read()


def test_one_connection_carries_every_kind_of_reply(connection: http.client.HTTPConnection, queue: str) -> None:
    route = f"/queues/{queue}/messages"
    seen = []
    for method, target, body in [
        ("GET", route, None),
        ("POST", route, '{"text": "x"}'),
        ("HEAD", route, None),
        ("OPTIONS", route, None),
        ("POST", route, "nonsense"),
        ("GET", f"{route}?limit=x", None),
        ("BREW", route, None),
        ("GET", "/nowhere", None),
        ("GET", route, None),
        ("DELETE", f"/queues/{queue}", None),
    ]:
        reply, _ = exchange(connection, method, target, body)
        assert not reply.will_close
        assert "html" not in (reply.getheader("Content-Type") or "")
        seen.append(reply.status)
    assert seen == [204, 200, 405, 204, 400, 400, 405, 404, 200, 204]


def test_the_headers_of_a_read_reach_a_client(connection: http.client.HTTPConnection, queue: str) -> None:
    _, sent = exchange(connection, "POST", f"/queues/{queue}/messages", '{"text": "\u00e9"}'.encode().decode("latin-1"))
    reply, body = exchange(connection, "GET", f"/queues/{queue}/messages")
    assert body.decode() == '{"text": "é"}\n'
    assert reply.getheader("Content-Type") == "application/json"
    assert reply.getheader("Cache-Control") == "no-store"
    assert reply.getheader("Message-Id") == json.loads(sent)["id"]
    assert reply.getheader("Message-Queue") == queue


def test_a_waiting_reader_is_answered_by_a_write_on_another_connection(
    server: LiveServer, connection: http.client.HTTPConnection, queue: str
) -> None:
    connection.request("GET", f"/queues/{queue}/messages?wait=20")
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as writer:
        exchange(writer, "POST", f"/queues/{queue}/messages", '{"text": "x"}')
    assert json.loads(connection.getresponse().read()) == {"text": "x"}
