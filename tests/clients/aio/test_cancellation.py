"""Test that a task may be cancelled at each point of a call: it ends at once, and no message stays leased unseen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from clients import AsyncLeasedMessage, AsyncQueueClient, QueueClient
from tests.support.live import FaultProxy, LiveServer, await_true


async def ignore(message: AsyncLeasedMessage) -> None:
    pass


async def consume(client: AsyncQueueClient) -> None:
    async for _ in client.consume(lease=600, batch=5):
        pass


POLLS: dict[str, Callable[[AsyncQueueClient], Awaitable[object]]] = {
    "receive": lambda client: client.receive(lease=600, limit=5, wait=20),
    "receive_runs": lambda client: client.receive_runs(lease=600, wait=20),
    "transact": lambda client: client.transact(send=["sent"], receive={"lease": 600, "limit": 5, "wait": 20}),
    "consume": consume,
    "work": lambda client: client.work(ignore, lease=600),
}
every_poll = pytest.mark.parametrize("poll", POLLS)


def states(client: QueueClient) -> list[tuple[str, str | None, int | None]]:
    return [(message.text, message.state, message.receive_count) for message in client.peek()]


async def cancel(task: asyncio.Future[Any]) -> None:
    """Cancel the task and wait for its end, for up to 10 s."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)


async def happens(happened: Callable[[], bool]) -> None:
    await asyncio.to_thread(await_true, happened)


@pytest.mark.parametrize("turns", range(6))
@every_poll
def test_before_and_while_the_request_is_sent(
    server: LiveServer, client: QueueClient, queue: str, poll: str, turns: int
) -> None:
    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as cancelled:
            task = asyncio.ensure_future(POLLS[poll](cancelled))
            for _ in range(turns):  # of the event loop
                await asyncio.sleep(0)
            await cancel(task)

    if poll != "transact":
        client.send_many(["a", "b"])
    asyncio.run(main())
    assert {(state, count) for _, state, count in states(client)} <= {("ready", 0)}


@every_poll
def test_a_poll_ends_at_once_although_the_service_does_not_answer(server: LiveServer, queue: str, poll: str) -> None:
    async def main() -> None:
        client = AsyncQueueClient(proxy.url, queue=queue)
        task = asyncio.ensure_future(POLLS[poll](client))
        await happens(lambda: proxy.requests == 1)
        await cancel(task)
        assert not answered.is_set()
        answered.set()
        await client.close()

    answered = threading.Event()
    with FaultProxy(server) as proxy:
        proxy.hangs = lambda request: 0.0 if answered.wait(30) else None
        asyncio.run(main())


@pytest.mark.parametrize("dropped", [False, True], ids=["arrives", "a proxy drops it"])
@every_poll
def test_a_message_whose_reply_was_on_its_way_is_released_uncounted__row_34(
    engine: LiveServer, queue: str, poll: str, dropped: bool
) -> None:
    async def main() -> None:
        async with AsyncQueueClient(proxy.url, queue=queue) as cancelled:
            task = asyncio.ensure_future(POLLS[poll](cancelled))
            await happens(lambda: proxy.requests == 1)
            if poll != "transact":
                await asyncio.to_thread(client.send, "on its way")
            await happens(lambda: len(client.peek(state="leased")) == 1)
            await cancel(task)

    with FaultProxy(engine) as proxy, QueueClient(engine.url, queue=queue) as client:
        proxy.delay, proxy.losing = 1.0, int(dropped)
        asyncio.run(main())
        assert [(state, count) for _, state, count in states(client)] == [("ready", 0)]


def test_a_cancelled_poll_leaves_later_messages_to_others(server: LiveServer, client: QueueClient, queue: str) -> None:
    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as cancelled:
            for _ in range(20):
                task = asyncio.ensure_future(cancelled.receive(lease=600, wait=20))
                await asyncio.sleep(0.02)
                await cancel(task)
                await asyncio.to_thread(client.send, "later")
                assert len(await asyncio.to_thread(client.receive, wait=20)) == 1

    asyncio.run(main())


def test_a_body_that_is_cancelled_has_its_message_retried_and_the_others_released_uncounted(
    server: LiveServer, client: QueueClient, queue: str
) -> None:
    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as cancelled:
            begun = asyncio.Event()

            async def work() -> None:
                async for _ in cancelled.consume(lease=600, batch=3, backoff=lambda tries: 60):
                    begun.set()
                    await asyncio.sleep(60)

            task = asyncio.ensure_future(work())
            await begun.wait()
            await cancel(task)

    client.send_many(["in hand", "unseen", "unseen too"])
    asyncio.run(main())
    assert states(client) == [("in hand", "delayed", 1), ("unseen", "ready", 0), ("unseen too", "ready", 0)]


def test_a_worker_that_is_cancelled_cancels_its_handlers_and_releases_all_uncounted(
    server: LiveServer, client: QueueClient, queue: str
) -> None:
    ended = []

    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as cancelled:
            begun = asyncio.Event()

            async def handle(message: AsyncLeasedMessage) -> None:
                begun.set()
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.append(message.text)

            task = asyncio.ensure_future(cancelled.work(handle, lease=600))
            await begun.wait()
            await cancel(task)
            assert await cancelled.peek(state="leased") == []  # before the client is closed

    client.send_many([{"text": text, "key": "k"} for text in ("running", "not begun")])
    asyncio.run(main())
    assert ended == ["running"]
    assert states(client) == [("running", "ready", 0), ("not begun", "blocked", 0)]


def test_an_ack_under_way_is_done(server: LiveServer, client: QueueClient, queue: str) -> None:
    async def main() -> None:
        async with AsyncQueueClient(proxy.url, queue=queue) as cancelled:
            task = asyncio.ensure_future(cancelled.work(ignore, lease=600))
            await happens(lambda: any(b"/ack" in request for request in requests))
            await cancel(task)

    requests: list[bytes] = []
    client.send("done")
    with FaultProxy(server) as proxy:
        proxy.delay, proxy.hangs = 0.3, requests.append
        asyncio.run(main())
    assert client.stats()["acked"] == 1


@pytest.mark.parametrize("turns", range(1, 7))
def test_close_ends_the_poll_of_another_task_at_any_point(server: LiveServer, queue: str, turns: int) -> None:
    async def main() -> None:
        client = AsyncQueueClient(server.url, queue=queue)
        poll = asyncio.ensure_future(client.receive(lease=60, wait=20))
        for _ in range(turns):  # of the event loop
            await asyncio.sleep(0)
        await client.close()
        assert await asyncio.wait_for(poll, 10) == []

    asyncio.run(main())
