"""A reader's loop: messages one by one, each leased while it is worked on, and acked after that."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from ..errors import QueueError
from ..messages import LeasedMessage, Settler, parse_leased
from ..reading import Reader
from ..settling import LeasedMessages, report_stale
from .options import Loop


def consume(client: Settler, reader: Reader, loop: Loop, batch: int) -> Iterator[LeasedMessage]:
    """Yield messages as QueueClient.consume specifies."""
    leased, last = reader.leased, time.monotonic()
    done: list[LeasedMessage] = []  # worked on; acked by the request for the next messages

    def is_ending() -> bool:
        return reader.is_closed() or loop.is_stopped()

    while not is_ending():
        asked = time.monotonic()
        wait = reader.longest_wait
        if loop.idle is not None:
            wait = min(wait, max(0.0, last + loop.idle - asked))
        try:
            if done and loop.queues is None:  # a transaction reads from one queue
                result, documents = reader.ack_and_read(done, loop, batch, wait, loop.lease, is_cut=is_ending)
                report_stale(result)
            else:
                _ack(leased, done)
                documents = reader.read(loop, batch, wait, loop.lease, is_cut=is_ending)
        except QueueError:
            if is_ending():
                break  # the end cut the poll off
            raise
        done = []
        if documents:
            messages = parse_leased(documents, loop.name, client)
            done = yield from _work_through(leased, messages, loop, asked, is_ending)
            last = time.monotonic()
        elif loop.idle is not None and time.monotonic() >= last + loop.idle:
            return
    _ack(leased, done)


def _work_through(
    leased: LeasedMessages,
    messages: list[LeasedMessage],
    loop: Loop,
    asked: float,
    is_ending: Callable[[], bool],
) -> Generator[LeasedMessage, None, list[LeasedMessage]]:
    """Yield the messages and ack each when it is done; return the last one if it is still to be acked."""
    if not leased.keeper.renew(messages, loop.lease, asked):  # closed meanwhile
        leased.release_all(messages, counted=False)
        return []
    in_hand: LeasedMessage | None = None
    try:
        for message in messages:
            if is_ending():
                break
            if not leased.keeper.begin(message) or loop.reject_exhausted(leased, message):
                continue  # lost to another reader; in a forked child it is the parent's
            in_hand = message
            yield message
            in_hand = None
            if leased.keeper.stop_renewing(message.receipt):
                if message is messages[-1] or is_ending():
                    return [message]
                _ack(leased, [message])
        return []
    finally:
        # A break or an exception in the body leaves some leased; a generator cannot distinguish the two.
        if in_hand is not None and leased.keeper.stop_renewing(in_hand.receipt):
            loop.retry(leased, in_hand, "the loop that had this message ended before it was acked")
        leased.release_unworked(messages)


def _ack(leased: LeasedMessages, done: list[LeasedMessage]) -> None:
    if done:
        report_stale(leased.ack_last(done))
