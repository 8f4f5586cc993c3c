"""Test what only AsyncQueueClient has: its loops, its signals and its extra; test_client.py covers its calls."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from clients import AsyncLeasedMessage, AsyncQueueClient, Closed, LeasedMessage, QueueClient
from tests.support.live import REPOSITORY, LiveServer


def states(client: QueueClient) -> list[tuple[str, str | None, int | None]]:
    return [(message.text, message.state, message.receive_count) for message in client.peek()]


@pytest.mark.parametrize(
    ("one", "other"), [(QueueClient, AsyncQueueClient), (LeasedMessage, AsyncLeasedMessage)], ids=["client", "message"]
)
def test_both_have_the_same_calls_with_the_same_arguments(one: type, other: type) -> None:
    def calls(kind: type) -> dict[str, list[tuple[str, object, object]]]:
        names = [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]
        signatures = {name: inspect.signature(getattr(kind, name)).parameters.values() for name in names}
        return {name: [(p.name, p.kind, p.default) for p in found] for name, found in signatures.items()}

    assert calls(one) == calls(other)
    assert len(calls(one)) > 4


def test_a_hundred_handlers_run_at_once(server: LiveServer, client: QueueClient, queue: str) -> None:
    async def main() -> None:
        waiting: list[str] = []
        together = asyncio.Event()

        async def handle(message: AsyncLeasedMessage) -> None:
            waiting.append(message.text)
            if len(waiting) == 100:
                together.set()
            await asyncio.wait_for(together.wait(), 20)

        async with AsyncQueueClient(server.url, queue=queue) as working:
            await working.work(handle, concurrency=100, idle=0)

    client.send_many([str(number) for number in range(100)])
    asyncio.run(main())
    assert client.stats()["acked"] == 100


def test_a_body_that_breaks_has_its_messages_released_before_the_client_is_closed(
    server: LiveServer, client: QueueClient, queue: str
) -> None:
    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as breaking:
            async for _ in breaking.consume(lease=600, batch=2, backoff=lambda tries: 60):
                break

    client.send_many(["in hand", "unseen"])
    asyncio.run(main())
    assert states(client) == [("in hand", "delayed", 1), ("unseen", "ready", 0)]


def test_a_handler_that_raises_cancellederror_by_itself_has_failed(
    server: LiveServer, client: QueueClient, queue: str
) -> None:
    async def handle(message: AsyncLeasedMessage) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as working:
            await working.work(handle, max_tries=1, idle=0)

    client.send("bad")
    asyncio.run(main())
    assert [message.text for message in client.peek(queue=f"{queue}.dead")] == ["bad"]


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_ends_the_program_ends_the_worker(
    server: LiveServer, client: QueueClient, queue: str, raised: type[BaseException]
) -> None:
    async def handle(message: AsyncLeasedMessage) -> None:
        raise raised

    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as working:
            await working.work(handle, concurrency=1, backoff=lambda tries: 60)

    client.send_many(["a", "b"])
    with pytest.raises(raised):
        asyncio.run(main())
    assert states(client) == [("a", "delayed", 1), ("b", "ready", 0)]


def test_a_handler_that_returns_nothing_to_await_ends_the_worker_and_acks_nothing(
    server: LiveServer, client: QueueClient, queue: str
) -> None:
    async def main() -> None:
        async with AsyncQueueClient(server.url, queue=queue) as working:
            await working.work(lambda message: print(message))  # type: ignore[arg-type, return-value]

    client.send("precious")
    with pytest.raises(TypeError, match="not an async function"):
        asyncio.run(main())
    assert states(client) == [("precious", "ready", 0)]


def test_every_call_of_a_closed_client_is_refused(server: LiveServer, client: QueueClient, queue: str) -> None:
    async def main() -> None:
        closed = AsyncQueueClient(server.url, queue=queue)
        (message,) = await closed.receive(lease=30)
        await closed.close()
        calls: list[Callable[[], object]] = [
            lambda: closed.send("x"), closed.receive, closed.consume, lambda: closed.ack(message), closed.purge,
            closed.queues, closed.healthy, lambda: closed.transact(ack=[message]), message.ack,
            lambda: closed.work(ignore),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(Closed, match="closed"):
                await made(call)

    async def made(call: Callable[[], object]) -> None:
        result = call()
        assert inspect.isawaitable(result)
        await result

    async def ignore(message: AsyncLeasedMessage) -> None:
        pass

    client.send("left")
    asyncio.run(main())


WORKER = """
import asyncio, signal, sys
from clients import AsyncQueueClient

async def handle(message):
    print("begun", flush=True)
    await asyncio.sleep(1)

async def main():
    {setup}
    async with AsyncQueueClient(sys.argv[1], queue=sys.argv[2]) as client:
        await client.work(handle, lease=600)
    print("stopped")

asyncio.run(main())
"""


def signalled(server: LiveServer, queue: str, sent: signal.Signals, setup: str = "pass") -> tuple[int, str]:
    """Send a worker process the signal when its handler has begun; return its exit code and the rest of its output."""
    command = [sys.executable, "-W", "error", "-c", WORKER.format(setup=setup), server.url, queue]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(sent)
        output, _ = process.communicate(timeout=20)
        return process.returncode, output


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_runs_and_releases_the_rest_uncounted__row_34(
    server: LiveServer, client: QueueClient, queue: str, sent: signal.Signals
) -> None:
    client.send_many([{"text": str(number), "key": "k"} for number in range(3)])
    assert signalled(server, queue, sent) == (0, "stopped\n")
    assert states(client) == [("1", "ready", 0), ("2", "blocked", 0)]


def test_a_signal_that_the_program_handles_is_left_to_it(server: LiveServer, client: QueueClient, queue: str) -> None:
    client.send("a")
    setup = "signal.signal(signal.SIGTERM, lambda *_: print('mine') or sys.exit(3))"
    assert signalled(server, queue, signal.SIGTERM, setup) == (3, "mine\n")


def test_without_the_extra_the_import_names_it_and_the_other_client_loads_neither_library_nor_asyncio_client() -> None:
    script = """
import sys
sys.modules["aiohttp"] = None  # as if it were not installed
import clients
assert "clients.aio.client" not in sys.modules
try:
    from clients import AsyncQueueClient
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == "AsyncQueueClient needs the extra async: pip install 'queue-service-http[async]'\n"
