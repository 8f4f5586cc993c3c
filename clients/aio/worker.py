"""A worker: an async handler for messages, several at a time, and each settled by how the handler ended."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from ..consuming.leasing import Leasing, check_work, is_async
from ..consuming.options import Loop
from ..consuming.worker import SignalHandler, signals
from ..reading import Reader
from ..settling import report_stale
from .loop import cut_polls_at
from .messages import AsyncLeasedMessage
from .transport import AsyncTransport

AsyncHandler = Callable[[AsyncLeasedMessage], Awaitable[object]]

NOT_ASYNC = "the handler is not an async function; use QueueClient.work for a plain one"


class AsyncWorker:
    """The tasks that run a handler, one for each chain of messages, and the loop that leases messages for more."""

    def __init__(
        self,
        make: Callable[..., AsyncLeasedMessage],
        transport: AsyncTransport,
        reader: Reader,
        loop: Loop,
        handler: AsyncHandler,
        concurrency: int,
    ) -> None:
        check_work(handler, concurrency)
        if not _may_be_async(handler):
            raise TypeError(NOT_ASYNC)
        self._transport = transport
        self._leased = reader.leased
        self._loop = loop
        self._leasing = Leasing(reader, loop, concurrency, make, self._is_ending)
        self._handler = handler
        self._concurrency = concurrency
        self._is_stopped = False
        self._is_cancelled = False
        self._failure: BaseException | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._done: deque[AsyncLeasedMessage] = deque()
        self._acking = asyncio.Lock()

    async def run(self, stop: asyncio.Event) -> None:
        """Work as AsyncQueueClient.work specifies."""
        loop = asyncio.get_running_loop()
        watch = loop.create_task(cut_polls_at(stop, self._transport))
        try:
            with signals(lambda: loop.call_soon_threadsafe(self._stop), _is_of_the_program):
                await self._lease_messages()
                await self._wait_for_all()
        except asyncio.CancelledError:
            self._is_cancelled = True
            for task in self._running:
                task.cancel()
            raise
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._stop()
            watch.cancel()
            await self._wait_for_all()
            await self._ack_done()  # those of cancelled tasks
        if self._failure is not None:
            raise self._failure

    def _stop(self) -> None:
        self._is_stopped = True
        self._transport.cut_polls()

    def _is_ending(self) -> bool:
        return self._is_stopped or self._loop.is_stopped() or self._transport.is_closed()

    async def _lease_messages(self) -> None:
        """Lease as many messages as handlers are idle, again and again, until the end."""
        while not self._is_ending():
            if len(self._running) == self._concurrency:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                continue
            chains = await self._transport.run(self._leasing.next_chains(self._concurrency - len(self._running)))
            if chains is None:
                return
            for chain in chains:
                task = asyncio.create_task(self._work(chain))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _wait_for_all(self) -> None:
        while self._running:
            await asyncio.wait(self._running)

    async def _work(self, chain: list[AsyncLeasedMessage]) -> None:
        try:
            for message in chain:
                if self._is_ending() or not self._leased.keeper.begin(message) or not await self._is_acked(message):
                    break  # later messages of the key have to wait for this one
        except asyncio.CancelledError:
            # The message in hand is released as the others are, and not before the poll has ended: it would lease them.
            await self._transport.settled()
        except BaseException as error:
            self._failure = self._failure or error
            self._stop()
        await self._transport.run(self._leased.release_unworked(chain))

    async def _is_acked(self, message: AsyncLeasedMessage) -> bool:
        """Handle the message and settle it. Raises what is no Exception of the handler, and QueueError of the ack."""
        if await self._transport.run(self._loop.reject_exhausted(self._leased, message)):
            return False
        try:
            handling = self._handler(message)
            if inspect.isawaitable(handling):
                await handling
        except BaseException as error:
            if self._is_cancelled:
                raise
            await self._transport.run(self._loop.retry_failed(self._leased, message, error))
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise
            return False
        if not inspect.isawaitable(handling):
            raise TypeError(NOT_ASYNC)
        if not self._leased.keeper.stop_renewing(message.receipt):
            return False  # the handler settled it, and may have released it
        self._done.append(message)
        await self._ack_done()
        return True

    async def _ack_done(self) -> None:
        """Ack the messages that are done, in one request with those that finished while another task acked."""
        async with self._acking:
            if done := [self._done.popleft() for _ in range(len(self._done))]:
                report_stale(await self._transport.run(self._leased.ack_last(done)))


def _may_be_async(handler: Callable[..., object]) -> bool:
    """Return whether a call may return a coroutine: that of a lambda may, and that of what wraps an async function."""
    while isinstance(handler, partial):
        handler = handler.func
    handler = inspect.unwrap(handler)
    return is_async(handler) or getattr(handler, "__name__", None) == "<lambda>"


def _is_of_the_program(handler: SignalHandler) -> bool:
    """Return whether the program handles a signal itself, as uvicorn does. asyncio.run's own handler is not meant."""
    runs = isinstance(getattr(getattr(handler, "func", None), "__self__", None), asyncio.Runner)
    return not runs and handler not in (signal.SIG_DFL, signal.default_int_handler)
