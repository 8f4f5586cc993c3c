"""Test every call of the client with lost replies: the outcome is the same as without."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from clients import (
    AckResult,
    ColumnBatch,
    ExtendResult,
    LeasedMessage,
    Message,
    NotFound,
    QueueClient,
    TransactionReply,
)
from tests.clients.connect import Connect
from tests.support.awaited import awaited
from tests.support.live import FaultProxy, LiveServer

BAD_GATEWAY = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

Held = list[LeasedMessage]


def works(client: QueueClient, fails: bool = False) -> list[str]:
    """Return the texts that a worker handled."""
    handled = []

    def handle(message: LeasedMessage) -> None:
        handled.append(message.text)
        if fails:
            raise RuntimeError("this work always fails")

    client.work(handle, concurrency=1, lease=60, idle=0, max_tries=1)
    return sorted(handled)


def first_id(client: QueueClient) -> str:
    return next(message.id or "" for message in client.peek(state="ready"))


def dead_letters(client: QueueClient) -> str:
    return f"{client.queue}.dead"


def id_of_dead(client: QueueClient) -> str:
    return client.peek(queue=dead_letters(client))[0].id or ""


# Each call by name, with the leased messages. "c", "d" and "e" are ready; "x" and "y" are dead letters.
CALLS: dict[str, Callable[[QueueClient, Held], object]] = {
    "send": lambda client, held: client.send("new"),
    "send_many": lambda client, held: client.send_many(["new", "newer"]),
    "send_encoded": lambda client, held: client.send_encoded(b'[{"text": "new"}]'),
    "receive": lambda client, held: client.receive(),
    "receive, several": lambda client, held: client.receive(limit=2),
    "receive, with a lease": lambda client, held: client.receive(limit=2, lease=60),
    "receive, waiting": lambda client, held: client.receive(wait=1),
    "receive, from several queues": lambda client, held: client.receive(
        lease=60, queues=[f"{client.queue}.no", client.queue]
    ),
    "receive, for any": lambda client, held: client.receive(limit=5, any_recipient=True),
    "receive_runs": lambda client, held: client.receive_runs(limit=2, lease=60),
    "consume": lambda client, held: [message.text for message in client.consume(lease=60, idle=0)],
    "consume, a batch": lambda client, held: [message.text for message in client.consume(lease=60, idle=0, batch=2)],
    "consume, and break": lambda client, held: next(iter(client.consume(lease=60, idle=0, batch=3))).text,
    "work": lambda client, held: works(client),
    "work, and fail": lambda client, held: works(client, fails=True),
    "transact": lambda client, held: client.transact(ack=held, send=["new"], receive={"limit": 2, "lease": 60}),
    "ack_and_receive_runs": lambda client, held: client.ack_and_receive_runs(held, lease=60, limit=2),
    "ack": lambda client, held: client.ack(held[0]),
    "ack_many": lambda client, held: client.ack_many([*held, f"{client.queue}~1~1234567812345678"]),
    "extend": lambda client, held: client.extend(held[0], 600),
    "extend_many": lambda client, held: client.extend_many(held, 600),
    "release": lambda client, held: client.release(held[0], delay=600),
    "release, uncounted": lambda client, held: client.release(held[0], counted=False),
    "reject": lambda client, held: client.reject(held[0], reason="no good"),
    "peek": lambda client, held: client.peek(),
    "message": lambda client, held: client.message(first_id(client)),
    "delete_message": lambda client, held: client.delete_message(first_id(client)),
    "reschedule": lambda client, held: client.reschedule(first_id(client), 600),
    "dead_letter": lambda client, held: client.dead_letter(first_id(client), reason="no good"),
    "reasons": lambda client, held: [one["reason"] for one in client.reasons()["reasons"]],
    "stats": lambda client, held: client.stats()["ready"],
    "queues": lambda client, held: len(client.queues(client.queue)),
    "settings": lambda client, held: client.settings()[0],
    "put_settings": lambda client, held: client.put_settings({"delay": 5}, if_match=client.settings()[1])["settings"],
    "purge": lambda client, held: client.purge(),
    "purge, by id": lambda client, held: client.purge(dead_letters(client), ids=[id_of_dead(client)]),
    "purge, by reason": lambda client, held: client.purge(dead_letters(client), reason="rejected"),
    "redrive": lambda client, held: client.redrive(limit=1, queue=dead_letters(client)),
    "redrive, by id": lambda client, held: client.redrive(ids=[id_of_dead(client)], queue=dead_letters(client)),
    "delete_queue": lambda client, held: client.delete_queue(),
    "status": lambda client, held: client.status()["version"],
    "healthy": lambda client, held: client.healthy(retry_for=5),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("client_class", "tls", "instead"),
    [
        (QueueClient, "plain", None),
        (QueueClient, "plain", BAD_GATEWAY),
        (QueueClient, "plain", EMPTY),
        (QueueClient, "tls", None),
        (awaited, "plain", None),
    ],
    indirect=["tls"],
    ids=["reset", "504", "empty", "reset-tls", "reset-asyncio"],
)
def test_a_call_whose_replies_are_lost_is_done_once__row_33(
    connect: Connect, server: LiveServer, proxy: FaultProxy, queue: str, call: str, instead: bytes | None
) -> None:
    proxy.loses_each, proxy.instead = True, instead
    smooth = outcome(QueueClient(server.url, queue=f"{queue}-smooth"), server, CALLS[call])
    lossy = outcome(connect(proxy.url, queue=f"{queue}-lossy", retry_for=5), server, CALLS[call])
    assert proxy.requests >= 2
    assert lossy == smooth


def test_every_call_of_the_client_is_covered() -> None:
    public = {name for name in vars_of(QueueClient) if not name.startswith("_")}
    assert {name.partition(",")[0] for name in CALLS} == public - {"url", "close", "is_closed"}


def test_a_purge_whose_reply_was_lost_leaves_later_messages(
    client: QueueClient, proxy: FaultProxy, proxied: QueueClient
) -> None:
    client.send_many(["a", "b"])

    def send_later(request: bytes) -> None:
        if proxy.requests == 2:  # the retry arrives
            client.send("later")

    proxy.hangs, proxy.losing = send_later, 1
    assert proxied.purge() == 2
    assert [message.text for message in client.peek()] == ["later"]


def outcome(client: QueueClient, server: LiveServer, call: Callable[[QueueClient, Held], object]) -> object:
    """Return the result of the call, and the messages in the queue and its dead letters."""
    with QueueClient(server.url, queue=client.queue) as direct, client:
        held = prepare(direct)
        returned = shape(call(client, held))
        return returned, [left_in(direct, queue) for queue in (client.queue, dead_letters(client))]


def prepare(client: QueueClient) -> Held:
    """Send messages of every state. `max_receives` is 1, so one delivery too many dead-letters a message."""
    client.put_settings({"max_receives": 1})
    client.send_many(["x", "y"])
    for message in client.receive(limit=2, lease=60):
        message.reject("poison")
    client.send_many(["a", "b", "c", "d", {"text": "e", "recipient": "Ada"}, "f"])
    return client.receive(limit=2, lease=60)


def left_in(client: QueueClient, queue: str) -> object:
    try:
        stats = client.stats(queue)
    except NotFound:
        return None
    counts = {name: count for name, count in stats.items() if name not in ("oldest_age", "bytes")}
    return counts, shape(client.peek(queue=queue))


def shape(value: object) -> object:
    """Return the value without the parts that differ between runs."""
    if isinstance(value, Message):
        return value.text, value.state, value.receive_count, value.receipt is not None, shape(value.leased_until)
    if isinstance(value, ColumnBatch):
        return value.texts, value.receive_count
    if isinstance(value, TransactionReply):
        return len(value.ids), shape(value.messages)
    if isinstance(value, AckResult):
        return value.acked, len(value.stale), len(value.missing)
    if isinstance(value, ExtendResult):
        return value.extended, len(value.stale), len(value.missing)
    if isinstance(value, datetime):
        return round(value.timestamp() - datetime.now(value.tzinfo).timestamp(), -2)
    if isinstance(value, list | tuple):
        return [shape(item) for item in value]
    return "an id" if isinstance(value, str) and value.isdigit() else value


def vars_of(kind: type[Any]) -> set[str]:
    return {name for base in kind.__mro__ if base is not object for name in vars(base)}
