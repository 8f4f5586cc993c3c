"""AsyncQueueClient behind the interface of QueueClient, so that one test covers both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from typing import Any, Self, cast

from clients import AsyncLeasedMessage, AsyncQueueClient, AsyncTransactionReply, LeasedMessage, QueueClient
from clients.messages import Leased, Settler, TransactionReply


def awaited(url: str, **options: Any) -> QueueClient:
    """Return a client whose calls an AsyncQueueClient does, in the event loop of another thread."""
    return cast(QueueClient, _Awaited(url, **options))


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


class _Awaited:
    def __init__(self, url: str, **options: Any) -> None:
        self._loop = _event_loop()
        self._client = AsyncQueueClient(url, **options)
        self._threads = ThreadPoolExecutor(64)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return self._blocking(value) if inspect.ismethod(value) else value

    def consume(self, stop: threading.Event | None = None, **options: Any) -> Iterator[LeasedMessage]:
        ending = asyncio.Event()
        if stop:
            asyncio.run_coroutine_threadsafe(_pass_on(stop, ending), self._loop)
        return self._iterate([self._client.consume(stop=ending, **options)])

    def _iterate(self, loops: list[AsyncIterator[AsyncLeasedMessage]]) -> Iterator[LeasedMessage]:
        async def leave() -> None:
            del loops[:]
            await self._client._transport.settled()

        try:
            while True:
                yield self._convert(self._wait(_next(loops[0])))
        except StopAsyncIteration:
            return
        finally:
            self._wait(leave())

    def work(
        self, handler: Callable[[LeasedMessage], object], stop: threading.Event | None = None, **options: Any
    ) -> None:
        async def handle(message: AsyncLeasedMessage) -> None:
            await asyncio.get_running_loop().run_in_executor(self._threads, handler, self._convert(message))

        async def work() -> None:
            ending = asyncio.Event()
            watch = asyncio.create_task(_pass_on(stop or threading.Event(), ending))
            await self._client.work(handle, stop=ending, **options)
            watch.cancel()

        self._wait(work())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._wait(self._client.close())
        self._threads.shutdown()

    def _blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            return self._convert(self._wait(result) if inspect.iscoroutine(result) else result)

        return call

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _convert(self, result: Any) -> Any:
        """Return the result as QueueClient returns it."""
        if isinstance(result, AsyncLeasedMessage):
            known = {field.name: getattr(result, field.name) for field in fields(Leased)}
            return LeasedMessage(**known, _client=cast(Settler, self))
        if isinstance(result, AsyncTransactionReply):
            return TransactionReply(result.ids, result.duplicates, self._convert(result.messages))
        if type(result) is list:
            return [self._convert(item) for item in result]
        return result


async def _next(loop: AsyncIterator[AsyncLeasedMessage]) -> AsyncLeasedMessage:
    return await anext(loop)


async def _pass_on(stop: threading.Event, ending: asyncio.Event) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.01)
    ending.set()
