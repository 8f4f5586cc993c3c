"""A reader's loop: messages one by one, each kept leased while it is worked on, and acked after that."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Protocol

from .errors import QueueError
from .leases import LeaseKeeper, log
from .messages import AckResult, Message, Settler, Source, parse_message

LONGEST_WAIT = 20.0  # seconds that the service holds one poll
LONGEST_PAUSE = 300.0  # seconds


class Reader(Settler, Protocol):
    """What the loop needs of a client."""

    queue: str

    def is_closed(self) -> bool: ...

    def release_all(self, messages: Iterable[Message], *, delay: float = 0, counted: bool = True) -> None: ...

    def _hand_back(self, messages: list[Message]) -> None: ...

    def _ack_last(self, messages: Iterable[Message]) -> AckResult: ...

    def _read(self, source: Source, limit: int, wait: float, lease: float) -> list[dict[str, Any]]: ...

    def _settle_and_read(
        self, messages: Iterable[Message], source: Source, limit: int, wait: float, lease: float
    ) -> tuple[AckResult, list[dict[str, Any]]]: ...


def consume(
    client: Reader, leases: LeaseKeeper, *, lease: float, batch: int, idle: float | None, source: Source
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


def _next(client: Reader, done: list[Message], lease: float, batch: int, wait: float, source: Source) -> list[Message]:
    if done and source.queues is None:  # a transaction reads from one queue
        result, documents = client._settle_and_read(done, source, batch, wait, lease)
        _report_stale(result)
    else:
        _ack(client, done)
        documents = client._read(source, batch, wait, lease)
    return [parse_message(document, source.queue or client.queue, client) for document in documents]


def _work_through(
    client: Reader, leases: LeaseKeeper, messages: list[Message], lease: float, asked: float
) -> Generator[Message, None, list[Message]]:
    """Yield the messages and ack each when it is done; return the last one if it is still to be acked."""
    if not leases.renew(messages, lease, asked):  # closed meanwhile
        client.release_all(messages, counted=False)
        return []
    in_hand: Message | None = None
    try:
        for message in messages:
            if not leases.begin(message):
                continue  # no longer ours; in a forked child it is the parent's
            in_hand = message
            yield message
            if leases.stop_renewing(message.receipt):
                if message is messages[-1] or client.is_closed():
                    return [message]
                _ack(client, [message])
        return []
    finally:
        # After a break or an exception in the body, between which a generator sees no difference, some are still held.
        if in_hand is not None and leases.stop_renewing(in_hand.receipt):
            client.release_all([in_hand], delay=_pause_after(in_hand))
        client._hand_back(messages)


def _pause_after(message: Message) -> float:
    """Seconds that a message stays away whose work failed, so that one which always fails does not hold up others."""
    return min(LONGEST_PAUSE, 2.0 ** min(16, (message.receive_count or 1) - 1))


def _ack(client: Reader, done: list[Message]) -> None:
    """Also after the client was closed: the work was under way then."""
    if done:
        _report_stale(client._ack_last(done))


def _report_stale(result: AckResult) -> None:
    for receipt in result.stale:
        log.warning("the lease of the message with receipt %s ended too early: another reader has it", receipt)
