"""Test further routes: duplicates, every recipient, pages, uncounted releases, many leases, redrive by id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urljoin

import pytest

import handler
from settings import Settings
from tests.support.wsgi import Client, Reply, a_store


@pytest.fixture
def client() -> Iterator[Client]:
    with a_store() as store:
        yield Client(handler.make_app(Settings(), store))


def texts(reply: Reply) -> list[str]:
    return [one["text"] for one in reply.json] if reply.status == 200 else []


def leased(client: Client, target: str = "/messages?lease=60&limit=100") -> list[dict[str, Any]]:
    reply = client.get(target)
    return list(reply.json) if reply.status == 200 else []


def patch(client: Client, receipt: str, body: str) -> Reply:
    return client.call("PATCH", f"/messages/{receipt}", body.encode())


def assert_refused(reply: Reply, field: str) -> None:
    assert (reply.status, reply.json["code"], reply.json["field"]) == (400, "invalid_input", field)


# Duplicates.


def test_a_message_that_was_not_stored_is_reported(client: Client) -> None:
    message = {"text": "first", "dedup_id": "d"}
    assert client.post("/messages", message).json == {"id": "1"} | message
    again = client.post("/messages", message | {"text": "second"})
    assert again.body == b'{"id": "1", "duplicate": true, "text": "second", "dedup_id": "d"}\n'
    batch = client.post("/messages", [message, {"text": "new"}, message])
    assert batch.json == {"ids": ["1", "2", "1"], "duplicates": [0, 2]}
    assert client.post("/messages", [{"text": "x"}]).json.keys() == {"ids"}
    sent = [{"text": "other"}, message]
    assert client.post("/transactions", {"send": sent}).json == {"ids": ["4", "1"], "duplicates": [1]}
    assert "duplicates" not in client.post("/transactions", {"send": [{"text": "y"}], "receive": {}}).json
    assert texts(client.get("/messages?limit=100&recipients=any"))[-1] == "y"


# Every recipient.


def test_a_reader_can_read_messages_of_every_recipient(client: Client) -> None:
    client.post("/messages", [{"text": "a", "recipient": "eu"}, {"text": "b"}, {"text": "c", "recipient": "us"}])
    assert client.get("/messages?recipients=any").json == {"text": "a", "recipient": "eu"}
    reply = client.post("/transactions", {"receive": {"recipients": "any", "limit": 5}}).json
    assert [one["text"] for one in reply["messages"]] == ["b", "c"]


@pytest.mark.parametrize("query", ["recipients=all", "recipients=", "recipients=any&recipient=eu"])
def test_every_recipient_can_be_requested_in_one_way_only(client: Client, query: str) -> None:
    assert_refused(client.get(f"/messages?{query}"), "recipients")
    receive = dict(part.split("=") for part in query.split("&"))
    assert_refused(client.post("/transactions", {"receive": receive}), "recipients")


# Batches.


@pytest.mark.parametrize("fields", [{}, {"attributes": {}}, {"attributes": {"a": 'é "', "b": None}}], ids=str)
def test_messages_of_a_batch_have_the_same_envelope_as_in_rows_of_their_own(
    client: Client, fields: dict[str, Any]
) -> None:
    client.post("/messages", [{"text": f'{number} é "\\\n', **fields} for number in range(120)])
    read = "/messages?limit=120&lease=60"
    packed = client.get(read, Idempotency_Key="k")
    assert packed.json[0].keys() == {"id", "queue", "sent_at", "receive_count", "receipt", "leased_until", "text"} | {
        *fields
    }
    lines = client.get(read, Idempotency_Key="k", Accept="application/x-ndjson")
    assert lines.lines == packed.json
    for number in (0, 110):
        client.call("DELETE", f"/messages/{packed.json[number]['receipt']}")
    left = [message for number, message in enumerate(packed.json) if number not in (0, 110)]
    assert client.get(read, Idempotency_Key="k").json == left


# Pages of queues.


def test_queues_are_listed_by_prefix_and_page_by_page(client: Client) -> None:
    for name in ("a", "b-1", "b-2", "b-3", "c"):
        client.call("PUT", f"/queues/{name}", b"{}")
    found, query = [], "prefix=b&limit=2"
    for _ in range(5):
        page = client.get(f"/queues?{query}").json
        found.append([one["queue"] for one in page["queues"]])
        if "next" not in page:
            break
        query = f"prefix=b&limit=2&after={page['next']}"
    assert found == [["b-1", "b-2"], ["b-3"]]
    client.call("PUT", "/queues/b-2", b'{"paused": true}')
    assert [one["paused"] for one in client.get("/queues?prefix=b").json["queues"]] == [False, True, False]
    assert len(client.get("/queues?prefix=&after=").json["queues"]) == 5


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=1001", "limit"), ("limit=", "limit"), ("prefix=%20", "prefix"), ("after=.", "after"),
     ("after=a&after=b", "after"), ("before=a", "before")],
)  # fmt: skip
def test_a_bad_page_is_refused_by_name(client: Client, query: str, field: str) -> None:
    assert_refused(client.get(f"/queues?{query}"), field)


# Peek.


def test_a_peek_can_go_backwards_and_filter_by_key(client: Client) -> None:
    client.post("/messages", [{"text": str(number), "key": "odd" if number % 2 else "even"} for number in range(1, 9)])
    peek = "/queues/default/peek"
    assert texts(client.get(f"{peek}?before=9&limit=3")) == ["8", "7", "6"]
    assert texts(client.get(f"{peek}?before=6&limit=3")) == ["5", "4", "3"]
    assert texts(client.get(f"{peek}?key=odd&after=2")) == ["3", "5", "7"]
    assert texts(client.get(f"{peek}?key=odd&before=7&after=2")) == ["5", "3"]
    assert client.get(f"{peek}?key=none").json == []
    assert_refused(client.get(f"{peek}?key="), "key")
    assert_refused(client.get(f"{peek}?before=x"), "before")


@pytest.mark.parametrize("direction", ["limit=2", "limit=2&before=99&after=1"])
def test_a_peek_links_to_the_next_one_until_all_was_shown(client: Client, direction: str) -> None:
    client.post("/messages", [{"text": f"{number} a&b <é>"} for number in range(5)])
    target, found = f"/queues/default/peek?{direction}&text={quote('a&b <é>')}", []
    while target:
        reply = client.get(target)
        found.append([text[0] for text in texts(reply)])
        target = linked(target, reply)
    assert found == ([["0", "1"], ["2", "3"], ["4"]] if "before" not in direction else [["4", "3"], ["2", "1"], []])


def linked(target: str, reply: Reply) -> str:
    """Return the target of the reply's Link, "" without one."""
    match = re.fullmatch(r'<([!-;=?-~]+)>; rel="next"', reply.headers.get("link", "<->"))
    return "" if match is None else urljoin(target, match[1])


def test_a_peek_links_to_the_next_one_also_where_nothing_matched(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite.inspection.MAX_LOOKED", 2)
    client.post("/messages", [{"text": "a"}, {"text": "b"}, {"text": "c"}])
    reply = client.get("/queues/default/peek?text=c&state=ready", Accept="application/x-ndjson")
    assert (reply.body, reply.headers["link"]) == (b"", '<?limit=100&after=2&state=ready&text=c>; rel="next"')
    reply = client.get("/queues/default/peek?limit=100&after=2&state=ready&text=c")
    assert (texts(reply), "link" in reply.headers) == (["c"], False)


def test_a_search_is_a_part_of_the_text_or_a_reason(client: Client) -> None:
    peek = "/queues/default/peek"
    client.post("/messages", [{"text": "Cat"}, {"text": "dog"}])
    patch(client, leased(client)[0]["receipt"], '{"dead": true, "reason": "a b"}')
    assert texts(client.get(f"{peek}?text=o")) == ["dog"]
    assert texts(client.get(f"{peek}.dead?reason=a%20b")) == []
    assert texts(client.get("/queues/default.dead/peek?reason=a%20b")) == ["Cat"]
    assert texts(client.get(f"{peek}?state=dead&reason=a%20b&text=Ca")) == ["Cat"]
    for field in ("text", "reason"):
        assert_refused(client.get(f"{peek}?{field}="), field)
        assert_refused(client.get(f"{peek}?{field}={'x' * 1025}"), field)
        assert client.get(f"{peek}?{field}={'x' * 1024}").json == []


# Leases.


def test_a_message_released_uncounted_is_as_if_it_had_not_been_delivered(client: Client) -> None:
    client.call("PUT", "/queues/default", b'{"max_receives": 1}')
    client.post("/messages", {"text": "a"})
    for _ in range(3):
        (message,) = leased(client)
        assert message["receive_count"] == 1
        assert patch(client, message["receipt"], '{"lease": 0, "counted": false}').status == 204
    (message,) = leased(client)
    assert patch(client, message["receipt"], '{"lease": 0, "delay": 0, "counted": true}').status == 204
    assert leased(client) == []
    assert client.get("/queues/default").json["stats"]["dead"] == 1


@pytest.mark.parametrize(
    ("body", "field"), [('{"lease": 0, "counted": 0}', "counted"), ('{"lease": 5, "counted": false}', "counted"),
                        ('{"counted": false}', "lease")]
)  # fmt: skip
def test_only_a_release_can_be_uncounted(client: Client, body: str, field: str) -> None:
    client.post("/messages", {"text": "a"})
    (message,) = leased(client)
    assert_refused(patch(client, message["receipt"], body), field)


def test_a_lease_that_was_released_is_not_extended_and_its_message_can_be_acked(client: Client) -> None:
    client.post("/messages", {"text": "a"})
    (message,) = leased(client)
    assert patch(client, message["receipt"], '{"lease": 0}').status == 204
    assert patch(client, message["receipt"], '{"lease": 60}').json["code"] == "stale_receipt"
    extended = client.post("/messages/extend", {"receipts": [message["receipt"]], "lease": 60}).json
    assert (extended["extended"], extended["stale"]) == (0, [message["receipt"]])
    assert client.call("DELETE", f"/messages/{message['receipt']}").status == 204


@pytest.mark.parametrize("route", ["/messages", "/queues/default/messages"])
def test_many_leases_are_extended_at_once_and_invalid_ones_reported(client: Client, route: str) -> None:
    client.post("/messages", [{"text": str(number)} for number in range(4)])
    receipts = [one["receipt"] for one in leased(client)]
    client.call("DELETE", f"/messages/{receipts[1]}")
    result = client.post(f"{route}/extend", {"receipts": [*receipts, "nonsense"], "lease": 600}).json
    assert result.keys() == {"extended", "leased_until", "stale", "missing"}
    assert (result["extended"], result["stale"], set(result["missing"])) == (3, [], {receipts[1], "nonsense"})
    assert client.get("/queues/default/messages/1").json["leased_until"] == result["leased_until"]
    assert client.post("/queues/other/messages/extend", {"receipts": receipts[:1], "lease": 5}).json["missing"]


@pytest.mark.parametrize(
    ("document", "field"),
    [({"receipts": ["a"]}, "lease"), ({"receipts": ["a"], "lease": 0}, "lease"), ({"lease": 5}, "receipts"),
     ({"receipts": [], "lease": 5}, "receipts"), ({"receipts": [1], "lease": 5}, "receipts"),
     ({"receipts": ["a"], "lease": "default"}, "lease"), ({"receipts": ["a"], "lease": 5, "delay": 1}, "delay")],
)  # fmt: skip
def test_an_invalid_extension_is_refused(client: Client, document: object, field: str) -> None:
    assert_refused(client.post("/messages/extend", document), field)


# Dead letters.


def test_dead_letters_are_redriven_by_id_and_by_reason(client: Client) -> None:
    client.post("/messages", [{"text": text} for text in "abcd"])
    for message, reason in zip(leased(client), ("x", "y", "x", "x"), strict=True):
        patch(client, message["receipt"], f'{{"dead": true, "reason": "{reason}"}}')
    ids = {one["text"]: one["id"] for one in client.get("/queues/default.dead/peek").json}
    redrive = "/queues/default/redrive"
    assert client.post(redrive, {"ids": [ids["a"], ids["b"], "999"], "reason": "x"}).json == {"redriven": 1}
    assert client.post(redrive, {"reason": "x", "limit": 1}).json == {"redriven": 1}
    assert client.post(redrive, {"reason": None, "ids": None, "limit": None}).json == {"redriven": 2}
    assert texts(client.get("/messages?limit=9")) == ["a", "c", "b", "d"]


def test_messages_are_purged_by_id_and_by_reason(client: Client) -> None:
    client.post("/messages", [{"text": text} for text in "abcd"])
    for message, reason in zip(leased(client, "/messages?lease=60&limit=3"), "xyx", strict=True):
        patch(client, message["receipt"], f'{{"dead": true, "reason": "{reason}"}}')
    ids = {one["text"]: one["id"] for one in client.get("/queues/default.dead/peek").json}
    purge = "/queues/default.dead/purge"
    assert client.post(purge, {"ids": [ids["a"], ids["b"], "999", "9" * 19], "reason": "x"}).json == {"purged": 1}
    assert client.post("/queues/default/purge", {"reason": "x"}).json == {"purged": 0}
    assert client.post(purge, {"reason": "x"}).json == {"purged": 1}
    assert texts(client.get("/queues/default.dead/peek")) == ["b"]
    assert client.post(purge, {"ids": None, "reason": None}).json == {"purged": 1}
    assert client.get("/queues/default").json["stats"]["ready"] == 1


@pytest.mark.parametrize(
    ("document", "field"),
    [({"ids": []}, "ids"), ({"ids": ["1"] * 10_001}, "ids"), ({"reason": ""}, "reason"), ({"limit": 1}, "limit")],
)  # fmt: skip
def test_an_invalid_purge_is_refused_and_removes_nothing(client: Client, document: object, field: str) -> None:
    client.post("/messages", {"text": "a"})
    assert_refused(client.post("/queues/default/purge", document), field)
    assert client.get("/queues/default").json["stats"]["ready"] == 1


@pytest.mark.parametrize(
    ("document", "field"),
    [({"ids": []}, "ids"), ({"ids": [1]}, "ids"), ({"ids": ["x"]}, "ids"), ({"ids": "1"}, "ids"),
     ({"reason": ""}, "reason"), ({"reason": 1}, "reason"), ({"limit": 0}, "limit"), ({"all": True}, "all")],
)  # fmt: skip
def test_an_invalid_redrive_is_refused(client: Client, document: object, field: str) -> None:
    client.call("PUT", "/queues/default", b"{}")
    assert_refused(client.post("/queues/default/redrive", document), field)


@pytest.mark.parametrize("number", [2**63 - 2, 2**63 - 1, 2**63, 10**19 - 1])
def test_a_number_too_large_for_an_id_is_not_found(client: Client, number: int) -> None:
    client.post("/messages", {"text": "a"})
    path = f"/queues/default/messages/{number}"
    replies = [client.get(path), client.call("DELETE", path), client.call("PATCH", path, b'{"delay": 0}')]
    assert [reply.json["code"] for reply in replies] == ["message_not_found"] * 3
    assert client.post("/queues/default/redrive", {"ids": [str(number)]}).json == {"redriven": 0}


# Settings.


def test_a_queue_gives_its_delay_to_messages_that_name_none(client: Client) -> None:
    assert client.call("PUT", "/queues/default", b'{"delay": 60, "expires": 3600}').json["settings"]["expires"] == 3600
    client.post("/messages", [{"text": "later"}, {"text": "now", "delay": 0}])
    assert texts(client.get("/messages?limit=9")) == ["now"]


def test_the_reasons_of_dead_letters_are_counted(client: Client) -> None:
    client.post("/messages", [{"text": text} for text in "abc"])
    for message, reason in zip(leased(client), "xyx", strict=True):
        patch(client, message["receipt"], f'{{"dead": true, "reason": "{reason}"}}')
    found = client.get("/queues/default/reasons").json
    assert [(one["reason"], one["dead_letters"]) for one in found["reasons"]] == [("x", 2), ("y", 1)]
    assert found["complete"] is True
    died = [one["attributes"]["dead_letter_at"] for one in client.get("/queues/default.dead/peek").json]
    assert (found["reasons"][0]["oldest_at"], found["reasons"][0]["newest_at"]) == (died[0], died[2])
    assert client.get("/queues/nothing/reasons").json["code"] == "queue_not_found"
    assert_refused(client.get("/queues/default/reasons?limit=1"), "limit")
