"""A reader's loop: messages one by one, each kept leased while it is worked on, and acked after that."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from clients.errors import QueueError
from clients.leases import LeaseKeeper, log
from clients.messages import AckResult, Message, Source, received

if TYPE_CHECKING:
    from clients.client import QueueClient

LONGEST_WAIT = 20.0  # seconds that the service holds one poll
LONGEST_PAUSE = 300.0  # seconds


def consume(
    client: QueueClient, leases: LeaseKeeper, *, lease: float, batch: int, idle: float | None, source: Source
) -> Iterator[Message]:
    """As QueueClient.consume promises."""
    last = time.monotonic()
    done: list[Message] = []  # worked on, and not acked yet: that goes with the request for the next ones
    while not client.is_closed():
        asked = time.monotonic()
        wait = LONGEST_WAIT if idle is None else min(LONGEST_WAIT, max(0.0, last + idle - asked))
        try:
            messages = _next(client, done, lease, batch, wait, source)
        except QueueError:
            if client.is_closed():
                break  # it was cut off
            raise
        if messages:
            done = yield from _work_through(client, leases, messages, lease, asked)
            last = time.monotonic()
        elif idle is not None and time.monotonic() >= last + idle:
            return
        else:
            done = []
    _ack(client, done)


def _next(
    client: QueueClient, done: list[Message], lease: float, batch: int, wait: float, source: Source
) -> list[Message]:
    if done and source.queues is None:  # a transaction reads from one queue
        result, documents = client._settle_and_read(done, source, batch, wait, lease)
        _report_stale(result)
    else:
        _ack(client, done)
        documents = client._read(source, batch, wait, lease)
    return [received(document, source.queue or client.queue, client) for document in documents]


def _work_through(
    client: QueueClient, leases: LeaseKeeper, messages: list[Message], lease: float, asked: float
) -> Generator[Message, None, list[Message]]:
    """Yield the messages and ack each when it is done; return the last one if it is still to be acked."""
    if not leases.hold(messages, lease, asked):  # closed meanwhile
        client.give_back(messages, counted=False)
        return []
    in_hand: Message | None = None
    try:
        for message in messages:
            if not leases.begin(message):
                continue  # no longer ours; in a forked child it is the parent's
            in_hand = message
            yield message
            if leases.let_go(message.receipt):
                if message is messages[-1] or client.is_closed():
                    return [message]
                _ack(client, [message])
        return []
    finally:
        # After a break or an exception in the body, between which a generator sees no difference, some are still held.
        if in_hand is not None and leases.let_go(in_hand.receipt):
            client.give_back([in_hand], delay=_pause_after(in_hand))
        client._hand_back(messages)


def _pause_after(message: Message) -> float:
    """Seconds that a message stays away whose work failed, so that one which always fails does not hold up others."""
    return min(LONGEST_PAUSE, 2.0 ** min(16, (message.receive_count or 1) - 1))


def _ack(client: QueueClient, done: list[Message]) -> None:
    """Also after the client was closed: the work was under way then."""
    if done:
        _report_stale(client._ack_last(done))


def _report_stale(result: AckResult) -> None:
    for receipt in result.stale:
        log.warning("the lease of the message with receipt %s ended too early: another reader has it", receipt)
