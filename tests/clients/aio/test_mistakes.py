"""Test that common mistakes of a user of asyncio are reported at once, with the way to correct them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from clients import AsyncLeasedMessage, AsyncQueueClient, Closed, QueueClient
from tests.support.live import LiveServer

NOWHERE = "http://127.0.0.1:1"


async def ignore(message: AsyncLeasedMessage) -> None:
    pass


def test_the_event_of_threads_is_refused_as_stop() -> None:
    async def main() -> None:
        client = AsyncQueueClient(NOWHERE, retry_for=0)
        stop = cast(asyncio.Event, threading.Event())
        refused = pytest.raises(TypeError, match=r"^stop must be asyncio\.Event, not threading\.Event$")
        with refused:
            client.consume(stop=stop)
        with refused:
            await client.work(ignore, stop=stop)

    asyncio.run(main())


CALLS: dict[str, Callable[[AsyncQueueClient], Coroutine[Any, Any, object]]] = {
    "send": lambda client: client.send("x"),
    "consume": lambda client: cast("Coroutine[Any, Any, object]", anext(client.consume(idle=0))),
    "work": lambda client: client.work(ignore, idle=0),
    "close": lambda client: client.close(),
    "async with": lambda client: client.__aenter__(),
}


@pytest.mark.parametrize("call", CALLS)
def test_another_event_loop_than_that_of_the_first_call_is_refused(
    server: LiveServer, client: QueueClient, queue: str, call: str
) -> None:
    async def again() -> None:
        await CALLS[call](shared)

    shared = AsyncQueueClient(server.url, queue=queue)
    with asyncio.Runner() as first:
        first.run(shared.healthy())
        with pytest.raises(RuntimeError, match="belongs to another event loop: make one client for each"):
            asyncio.run(again())
        first.run(shared.send("of the first"))
        first.run(shared.close())
    assert [message.text for message in client.peek()] == ["of the first"]


class Plain:
    def __call__(self, message: AsyncLeasedMessage) -> None:
        pass


class Awaited:
    async def __call__(self, message: AsyncLeasedMessage) -> None:
        pass

    async def method(self, message: AsyncLeasedMessage) -> None:
        pass


@wraps(ignore)
def wrapped(message: AsyncLeasedMessage) -> Coroutine[Any, Any, None]:
    return ignore(message)


@pytest.mark.parametrize("handler", [print, Plain(), partial(print, end="")], ids=["function", "object", "partial"])
def test_a_plain_function_as_handler_is_refused_before_a_message_is_read(
    server: LiveServer, client: QueueClient, queue: str, handler: Any
) -> None:
    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as working:
            await working.work(handler, idle=0)

    client.send("precious")
    with pytest.raises(TypeError, match="not an async function"):
        asyncio.run(main())
    assert client.stats()["received"] == 0


@pytest.mark.parametrize(
    "handler",
    [
        ignore, lambda message: ignore(message), partial(ignore), partial(lambda of, message: ignore(message), 1),
        Awaited(), Awaited().method, partial(Awaited()), wrapped, AsyncMock(),
    ],
    ids=[
        "function", "lambda", "partial", "partial of a lambda",
        "object", "method", "partial of an object", "wrapped", "mock",
    ],
)  # fmt: skip
def test_all_that_is_awaited_is_a_handler(server: LiveServer, client: QueueClient, queue: str, handler: Any) -> None:
    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as working:
            await working.work(handler, idle=0)

    client.send("x")
    asyncio.run(main())
    assert client.stats()["acked"] == 1


def test_a_call_that_is_not_awaited_is_named() -> None:
    with pytest.warns(RuntimeWarning, match="^coroutine 'AsyncQueueClient.send' was never awaited$"):
        AsyncQueueClient(NOWHERE).send("x")  # type: ignore[unused-coroutine]


def test_a_loop_without_async_for_is_refused() -> None:
    async def main() -> None:
        client: Any = AsyncQueueClient(NOWHERE)
        with pytest.raises(TypeError, match="use `async for message in client"):
            await client.consume()
        with pytest.raises(TypeError, match="use `async for message in client"):
            for _ in client.consume():
                pass

    asyncio.run(main())


def test_a_closed_client_cannot_be_entered() -> None:
    async def main() -> None:
        async with AsyncQueueClient(NOWHERE) as client:
            pass
        with pytest.raises(Closed):
            await client.__aenter__()

    asyncio.run(main())
