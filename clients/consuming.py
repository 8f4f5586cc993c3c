"""A reader's loop: messages one by one, each kept leased while it is worked on, and acked after that."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from clients.leases import LeaseKeeper, log
from clients.messages import AckResult, Message, Source, received

if TYPE_CHECKING:
    from clients.client import QueueClient

LONGEST_WAIT = 20.0  # seconds that the service holds one poll


def consume(
    client: QueueClient, leases: LeaseKeeper, *, lease: float, batch: int, idle: float | None, source: Source
) -> Iterator[Message]:
    """As QueueClient.consume promises."""
    last = time.monotonic()
    done: list[Message] = []  # worked on, and not acked yet: that goes with the request for the next ones
    while True:
        wait = LONGEST_WAIT if idle is None else min(LONGEST_WAIT, max(0.0, last + idle - time.monotonic()))
        messages = _next(client, done, lease, batch, wait, source)
        if messages:
            done = yield from _work_through(client, leases, messages, lease)
            last = time.monotonic()
        elif idle is not None and time.monotonic() >= last + idle:
            return
        else:
            done = []


def _next(
    client: QueueClient, done: list[Message], lease: float, batch: int, wait: float, source: Source
) -> list[Message]:
    if done and source.queues is None:  # a transaction reads from one queue
        result, documents = client.ack_and_receive(
            done, limit=batch, wait=wait, lease=lease, queue=source.queue, recipient=source.recipient
        )
    else:
        result = client.ack_many(done) if done else AckResult(0, [], [])
        documents = client.receive_documents(
            limit=batch, wait=wait, lease=lease, queue=source.queue, queues=source.queues, recipient=source.recipient
        )
    _tell_of_stale(result)
    return [received(document, source.queue or client.queue, client) for document in documents]


def _work_through(
    client: QueueClient, leases: LeaseKeeper, messages: list[Message], lease: float
) -> Generator[Message, None, list[Message]]:
    """Yields the messages and acks each when it is done; returns the last one if it is still to be acked."""
    for message in messages:
        leases.hold(message, lease)
    try:
        for message in messages:
            yield message
            if leases.let_go(message.receipt):
                if message is messages[-1]:
                    return [message]
                _tell_of_stale(client.ack_many([message]))
        return []
    finally:
        # Only after a break or an exception in the body is any of them still held.
        client.give_back([message for message in messages if leases.let_go(message.receipt)])


def _tell_of_stale(result: AckResult) -> None:
    for receipt in result.stale:
        log.warning("the message of receipt %s was worked on for longer than its lease: somebody else has it", receipt)
