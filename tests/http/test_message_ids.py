"""Test operations on one message by its id, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import handler
from settings import Settings
from tests.support.wsgi import Client, a_store


@pytest.fixture
def client() -> Iterator[Client]:
    with a_store() as store:
        yield Client(handler.make_app(Settings(), store))


def send(client: Client, text: str, queue: str = "jobs", **fields: object) -> str:
    """Send a message and return its id."""
    sent: str = client.post(f"/queues/{queue}/messages", {"text": text, **fields}).json["id"]
    return sent


def change(client: Client, id: str, body: str) -> int:
    return client.call("PATCH", f"/queues/jobs/messages/{id}", body.encode()).status


def ready(client: Client) -> list[str]:
    reply = client.get("/queues/jobs/messages?limit=100")
    return [one["text"] for one in reply.json] if reply.status == 200 else []


def test_a_message_is_shown_with_its_state_and_stays_as_it_is(client: Client) -> None:
    id = send(client, "later", delay=60, attributes={"a": 1})
    for _ in range(2):
        message = client.get(f"/queues/jobs/messages/{id}").json
        assert message.pop("sent_at").endswith("Z")
        assert message == {
            "id": id, "queue": "jobs", "receive_count": 0, "state": "delayed",
            "text": "later", "delay": 60, "attributes": {"a": 1},
        }  # fmt: skip


def test_a_waiting_message_is_removed(client: Client) -> None:
    id = send(client, "a", delay=60)
    assert client.call("DELETE", f"/queues/jobs/messages/{id}").status == 204
    assert client.call("DELETE", f"/queues/jobs/messages/{id}").json["code"] == "message_not_found"
    assert client.get("/queues/jobs").json["stats"]["delayed"] == 0


def test_a_scheduled_message_is_made_due_later_and_earlier(client: Client) -> None:
    id = send(client, "a")
    assert change(client, id, '{"delay": 60}') == 204
    assert ready(client) == []
    assert change(client, id, '{"delay": 0}') == 204
    assert ready(client) == ["a"]


def test_a_message_is_moved_to_the_dead_letters_with_its_reason(client: Client) -> None:
    assert change(client, send(client, "a"), '{"dead": true, "reason": "no such user"}') == 204
    (dead,) = client.get("/queues/jobs.dead/peek").json
    assert dead["attributes"]["dead_letter_reason"] == "no such user"


def test_a_leased_message_is_not_changed(client: Client) -> None:
    id = send(client, "a")
    receipt = client.get("/queues/jobs/messages?lease=60").json["receipt"]
    for reply in (
        client.call("DELETE", f"/queues/jobs/messages/{id}"),
        client.call("PATCH", f"/queues/jobs/messages/{id}", b'{"delay": 5}'),
        client.call("PATCH", f"/queues/jobs/messages/{id}", b'{"dead": true}'),
    ):
        assert (reply.status, reply.json["code"]) == (409, "message_leased")
    assert client.get(f"/queues/jobs/messages/{id}").json["state"] == "leased"
    assert client.call("DELETE", f"/queues/jobs/messages/{receipt}").status == 204


@pytest.mark.parametrize("id", ["0", "01", "99", str(2**63), "9" * 30])
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_an_unknown_message_id_is_not_found(client: Client, method: str, id: str) -> None:
    send(client, "a")
    body = b'{"delay": 1}' if method == "PATCH" else b""
    assert client.call(method, f"/queues/jobs/messages/{id}", body).json["code"] == "message_not_found"
    assert ready(client) == ["a"]


def test_a_receipt_cannot_be_shown_and_ids_of_the_default_queue_need_its_name(client: Client) -> None:
    id = send(client, "a", "default")
    receipt = client.get("/messages?lease=60").json["receipt"]
    reply = client.get(f"/queues/default/messages/{receipt}")
    assert (reply.status, reply.headers["allow"]) == (405, "DELETE,PATCH")
    replies = [client.call(method, f"/messages/{id}", body) for method, body in BY_ID]
    assert [reply.json["code"] for reply in replies] == ["method_not_allowed", "message_not_found", "invalid_input"]
    assert all(reply.json["detail"].endswith(f" at /queues/default/messages/{id}") for reply in replies)
    assert client.get(f"/queues/default/messages/{id}").json["state"] == "leased"


BY_ID = [("GET", b""), ("DELETE", b""), ("PATCH", b'{"delay": 5}')]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("{}", "delay"),
        ('{"delay": -1}', "delay"),
        ('{"delay": "1"}', "delay"),
        ('{"delay": 1, "dead": true}', "delay"),
        ('{"dead": false}', "dead"),
        ('{"dead": true, "reason": ""}', "reason"),
        ('{"lease": 5}', "lease"),
    ],
)
def test_an_invalid_change_changes_nothing(client: Client, body: str, field: str) -> None:
    id = send(client, "a")
    reply = client.call("PATCH", f"/queues/jobs/messages/{id}", body.encode())
    assert (reply.status, reply.json["field"]) == (400, field)
    assert ready(client) == ["a"]
