"""A reader's loop: messages one by one, each leased while it is worked on, and acked after that."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from .errors import QueueError
from .leases import log
from .messages import AckResult, Message, Settler, Source, parse_message
from .reading import LONGEST_WAIT, Reader
from .settling import LeasedMessages

LONGEST_PAUSE = 300.0  # seconds


def consume(
    client: Settler, reader: Reader, *, lease: float, batch: int, idle: float | None, source: Source
) -> Iterator[Message]:
    """Yield messages as QueueClient.consume specifies."""
    leased, last = reader.leased, time.monotonic()
    done: list[Message] = []  # worked on; acked by the request for the next messages
    while not client.is_closed():
        asked = time.monotonic()
        wait = LONGEST_WAIT if idle is None else min(LONGEST_WAIT, max(0.0, last + idle - asked))
        try:
            if done and source.queues is None:  # a transaction reads from one queue
                result, documents = reader.ack_and_read(done, source, batch, wait, lease)
                _report_stale(result)
            else:
                _ack(leased, done)
                documents = reader.read(source, batch, wait, lease)
        except QueueError:
            if client.is_closed():
                break  # `close` cut the poll off
            raise
        if documents:
            messages = [parse_message(document, source.name, client) for document in documents]
            done = yield from _work_through(client, leased, messages, lease, asked)
            last = time.monotonic()
        elif idle is not None and time.monotonic() >= last + idle:
            return
        else:
            done = []
    _ack(leased, done)


def _work_through(
    client: Settler, leased: LeasedMessages, messages: list[Message], lease: float, asked: float
) -> Generator[Message, None, list[Message]]:
    """Yield the messages and ack each when it is done; return the last one if it is still to be acked."""
    if not leased.keeper.renew(messages, lease, asked):  # closed meanwhile
        leased.release_all(messages, counted=False)
        return []
    in_hand: Message | None = None
    try:
        for message in messages:
            if not leased.keeper.begin(message):
                continue  # lost to another reader; in a forked child it is the parent's
            in_hand = message
            yield message
            if leased.keeper.stop_renewing(message.receipt):
                if message is messages[-1] or client.is_closed():
                    return [message]
                _ack(leased, [message])
        return []
    finally:
        # A break or an exception in the body leaves some leased; a generator cannot distinguish the two.
        if in_hand is not None and leased.keeper.stop_renewing(in_hand.receipt):
            leased.release_all([in_hand], delay=_pause_after(in_hand))
        leased.release_unworked(messages)


def _pause_after(message: Message) -> float:
    """Return the seconds until a message whose work failed is redelivered, so that it does not hold up others."""
    return min(LONGEST_PAUSE, 2.0 ** min(16, (message.receive_count or 1) - 1))


def _ack(leased: LeasedMessages, done: list[Message]) -> None:
    if done:
        _report_stale(leased.ack_last(done))


def _report_stale(result: AckResult) -> None:
    for receipt in result.stale:
        log.warning("the lease of the message with receipt %s ended too early: another reader has it", receipt)
