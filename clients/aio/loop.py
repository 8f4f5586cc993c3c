"""The consume loop of AsyncQueueClient."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from inspect import GEN_CLOSED, getgeneratorstate
from typing import NoReturn

from ..consuming.loop import BodyLeft, LoopSteps
from ..http.calls import NO_REPLY, Call, Pause
from ..messages import Leased
from .messages import AsyncLeasedMessage
from .transport import AsyncTransport

Steps = LoopSteps[AsyncLeasedMessage]


class AsyncLoop(AsyncIterator[AsyncLeasedMessage]):
    """Takes the steps of a loop. What it still has when it is left or cancelled is released in the background.

    An async generator would be closed at some later turn of the event loop, perhaps after its client.
    """

    def __init__(self, transport: AsyncTransport, steps: Steps, stop: asyncio.Event | None) -> None:
        self._transport = transport
        self._steps = steps
        self._stop = stop
        self._watch: asyncio.Task[None] | None = None
        self._is_begun = False

    def __await__(self) -> NoReturn:
        raise TypeError("consume is a loop: use `async for message in client.consume()`, without await")

    __iter__ = __await__

    async def __anext__(self) -> AsyncLeasedMessage:
        self._transport.check_loop()
        if self._stop is not None and not self._is_begun:
            self._watch = asyncio.create_task(cut_polls_at(self._stop, self._transport))
        resume = partial(self._steps.send, NO_REPLY) if self._is_begun else partial(next, self._steps)
        self._is_begun = True
        try:
            message = await _advance(self._transport, self._steps, resume)
        except BaseException:
            self._leave()
            raise
        if message is None:
            self._leave()
            raise StopAsyncIteration
        return message

    def __del__(self) -> None:
        with suppress(RuntimeError):  # without an event loop, messages come back when their leases end
            self._leave()

    def _leave(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if getgeneratorstate(self._steps) != GEN_CLOSED:
            steps, self._steps = self._steps, _no_steps()
            try:
                self._transport.check_loop()
            except RuntimeError:
                steps.close()
                raise
            self._transport.in_background(_finish(self._transport, steps))


async def cut_polls_at(stop: asyncio.Event, transport: AsyncTransport) -> None:
    await stop.wait()
    transport.cut_polls()


async def _finish(transport: AsyncTransport, steps: Steps) -> None:
    with suppress(BodyLeft):
        await _advance(transport, steps, partial(steps.throw, BodyLeft()))


async def _advance(
    transport: AsyncTransport, steps: Steps, resume: Callable[[], Call | Pause | AsyncLeasedMessage]
) -> AsyncLeasedMessage | None:
    """Resume the steps, take them up to the next message, and return it, or None at their end."""
    try:
        step = resume()
        while not isinstance(step, Leased):
            try:
                reply = await transport.take(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
        return step
    except StopIteration:
        return None


def _no_steps() -> Steps:
    yield from ()
