"""Test that a change repeated with its Idempotency-Key is done once and gets the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import handler
from settings import Settings
from tests.support.wsgi import Client, Reply, a_store


@pytest.fixture
def client() -> Iterator[Client]:
    with a_store() as store:
        yield Client(handler.make_app(Settings(), store))


class Request(NamedTuple):
    method: str
    target: str
    body: str = ""

    def sent(self, client: Client, **headers: str) -> Reply:
        return client.call(self.method, self.target, self.body.encode(), **headers)


def leased(client: Client) -> str:
    return str(client.get("/queues/jobs/messages?lease=60").json["receipt"])


def redrive(client: Client) -> Request:
    """Redrive a dead letter."""
    client.call("PATCH", f"/messages/{leased(client)}", b'{"dead": true}')
    return Request("POST", "/queues/jobs/redrive", '{"limit": 1}')


def without_stats(reply: Reply) -> object:
    """Return the reply to settings without the stats, which are the current ones."""
    return (
        {name: value for name, value in reply.json.items() if name != "stats"} if b"stats" in reply.body else reply.body
    )


CHANGES: dict[str, Callable[[Client], Request]] = {
    "send": lambda client: Request("POST", "/queues/jobs/messages", '{"text": "new"}'),
    "read": lambda client: Request("GET", "/queues/jobs/messages"),
    "lease": lambda client: Request("GET", "/queues/jobs/messages?lease=60"),
    "settle": lambda client: Request("DELETE", f"/messages/{leased(client)}"),
    "extend": lambda client: Request("PATCH", f"/messages/{leased(client)}", '{"lease": 60}'),
    "release": lambda client: Request("PATCH", f"/messages/{leased(client)}", '{"lease": 0, "counted": false}'),
    "reject": lambda client: Request("PATCH", f"/messages/{leased(client)}", '{"dead": true}'),
    "ack many": lambda client: Request("POST", "/messages/ack", f'{{"receipts": ["{leased(client)}"]}}'),
    "extend many": lambda client: Request(
        "POST", "/messages/extend", f'{{"receipts": ["{leased(client)}"], "lease": 60}}'
    ),
    "transaction": lambda client: Request("POST", "/transactions", f'{{"ack": ["{leased(client)}"]}}'),
    "remove by id": lambda client: Request("DELETE", "/queues/jobs/messages/2"),
    "reschedule by id": lambda client: Request("PATCH", "/queues/jobs/messages/2", '{"delay": 60}'),
    "dead-letter by id": lambda client: Request("PATCH", "/queues/jobs/messages/2", '{"dead": true}'),
    "settings": lambda client: Request("PUT", "/queues/jobs", '{"lease": 5}'),
    "delete the queue": lambda client: Request("DELETE", "/queues/jobs"),
    "purge": lambda client: Request("POST", "/queues/jobs/purge"),
    "redrive": redrive,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_repeated_with_its_key_is_done_once_and_gets_the_same_answer(client: Client, name: str) -> None:
    client.post("/queues/jobs/messages", [{"text": text} for text in "abcd"])
    request = CHANGES[name](client)
    first = request.sent(client, Idempotency_Key="k")
    assert first.status in (200, 204)
    client.post("/queues/jobs/messages", {"text": "sent later"})
    before = [client.get("/queues").json, client.get("/queues/jobs/peek").json]
    again = request.sent(client, Idempotency_Key="k")
    assert (again.status, without_stats(again)) == (first.status, without_stats(first))
    after = [client.get("/queues").json, client.get("/queues/jobs/peek").json]
    for one in (before, after):
        for queue in one[0]["queues"]:
            del queue["stats"]["oldest_age"]
    assert after == before


@pytest.mark.parametrize("name", CHANGES)
def test_a_key_of_another_request_is_refused_and_nothing_is_done(client: Client, name: str) -> None:
    client.post("/queues/jobs/messages", [{"text": text} for text in "abcd"])
    request = CHANGES[name](client)
    scope = "/queues/jobs/messages" if name in ("send", "read", "lease") else "/transactions"
    other = '{"text": "x"}' if name in ("send", "read", "lease") else '{"send": [{"queue": "other", "text": "x"}]}'
    assert client.call("POST", scope, other.encode(), Idempotency_Key="k").status == 200
    before = client.get("/queues/jobs/peek").json
    reply = request.sent(client, Idempotency_Key="k")
    assert (reply.status, reply.json["code"]) == (422, "idempotency_mismatch")
    assert client.get("/queues/jobs/peek").json == before


def test_settings_for_another_version_are_another_request(client: Client) -> None:
    tag = client.call("PUT", "/queues/jobs", b"{}").headers["etag"]
    first = client.call("PUT", "/queues/jobs", b'{"lease": 5}', If_Match=tag, Idempotency_Key="k")
    assert client.call("PUT", "/queues/jobs", b'{"lease": 5}', If_Match=tag, Idempotency_Key="k").body == first.body
    other = client.call("PUT", "/queues/jobs", b'{"lease": 5}', If_Match='"9"', Idempotency_Key="k")
    assert other.json["code"] == "idempotency_mismatch"
