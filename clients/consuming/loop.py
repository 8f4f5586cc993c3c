"""A reader's loop: messages one by one, each leased while it is worked on, and acked after that."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from ..errors import QueueError
from ..http.calls import NO_REPLY, Call, IsCut, Pause, Reply, Steps
from ..messages import L, Leased, parse_leased
from ..reading import Reader
from ..settling import LeasedMessages, report_stale
from .options import Loop


class BodyLeft(BaseException):
    """The body of a loop was left. GeneratorExit would end `yield from` before its messages are released."""


# The steps of a loop: those of calls, and messages for the body, each answered by the body's end or BodyLeft.
LoopSteps = Generator[Call | Pause | L, Reply, None]


def consume(reader: Reader, loop: Loop, batch: int, make: Callable[..., L]) -> LoopSteps[L]:
    """Yield messages, made by `make`, as QueueClient.consume specifies."""
    leased, last = reader.leased, time.monotonic()
    done: list[L] = []  # worked on; acked by the request for the next messages

    def is_ending() -> bool:
        return reader.is_closed() or loop.is_stopped()

    while not is_ending():
        asked = time.monotonic()
        wait = loop.wait(reader.longest_wait, last)
        try:
            if done and loop.queues is None:  # a transaction reads from one queue
                result, documents = yield from reader.ack_and_read(
                    done, loop, batch, wait, loop.lease, is_cut=is_ending
                )
                report_stale(result)
            else:
                yield from _ack(leased, done)
                documents = yield from reader.read(loop, batch, wait, loop.lease, is_cut=is_ending)
        except QueueError:
            if is_ending():
                break  # the end cut the poll off
            raise
        done = []
        if documents:
            messages = parse_leased(documents, loop.name, make)
            done = yield from _work_through(leased, messages, loop, asked, is_ending)
            last = time.monotonic()
        elif loop.is_idle(last):
            return
    yield from _ack(leased, done)


def iterate(steps: LoopSteps[L], take: Callable[[Call | Pause], Reply]) -> Iterator[L]:
    """Take the steps of a loop, and yield its messages."""
    try:
        step = next(steps)
        while True:
            try:
                reply = NO_REPLY
                if isinstance(step, Leased):
                    yield step
                else:
                    reply = take(step)
            except GeneratorExit:
                step = steps.throw(BodyLeft())
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except (StopIteration, BodyLeft):
        return


def _work_through(
    leased: LeasedMessages, messages: list[L], loop: Loop, asked: float, is_ending: IsCut
) -> Generator[Call | Pause | L, Reply, list[L]]:
    """Yield the messages and ack each when it is done; return the last one if it is still to be acked."""
    if not leased.keeper.renew(messages, loop.lease, asked):  # closed meanwhile
        yield from leased.release_all(messages, counted=False)
        return []
    in_hand: L | None = None
    try:
        for message in messages:
            if is_ending():
                break
            if not leased.keeper.begin(message) or (yield from loop.reject_exhausted(leased, message)):
                continue  # lost to another reader; in a forked child it is the parent's
            in_hand = message
            yield message
            in_hand = None
            if leased.keeper.stop_renewing(message.receipt):
                if message is messages[-1] or is_ending():
                    return [message]
                yield from _ack(leased, [message])
        return []
    finally:
        # A break or an exception in the body leaves some leased; a generator cannot distinguish the two.
        if in_hand is not None and leased.keeper.stop_renewing(in_hand.receipt):
            yield from loop.retry(leased, in_hand, "the loop that had this message ended before it was acked")
        yield from leased.release_unworked(messages)


def _ack(leased: LeasedMessages, done: list[L]) -> Steps[None]:
    if done:
        report_stale((yield from leased.ack_last(done)))
