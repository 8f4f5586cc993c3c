"""Call a queue service over HTTP, from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from functools import partial
from typing import Any, Self, TypeVar, Unpack, cast, overload

from ..consuming.loop import consume
from ..consuming.options import AsyncConsuming, loop_of
from ..http.calls import Steps
from ..messages import Lease, Leased, Message, NextMessages, Outgoing, Reading, parse_leased, parse_message
from ..reading import Reader
from ..settling import LeasedMessages
from ..verbs import Awaited, Verbs
from .leases import AsyncLeaseKeeper
from .loop import AsyncLoop
from .messages import AsyncLeasedMessage, AsyncTransactionReply
from .transport import AsyncTransport
from .worker import AsyncHandler, AsyncWorker

T = TypeVar("T")


class AsyncQueueClient(Verbs, Awaited):
    """QueueClient for asyncio: the same arguments and calls, which are awaited. Tasks of one event loop may share it.

    A task that is cancelled in a call ends at once. Messages that its poll leases all the same are released in the
    background, as if they had not been delivered. `close` waits for that, as does the end of `async with`.
    """

    def is_closed(self) -> bool:
        return self._transport.is_closed()

    @overload
    async def receive(
        self, *, lease: Lease, limit: int = 1, wait: float = 0, **source: Unpack[Reading]
    ) -> list[AsyncLeasedMessage]: ...

    @overload
    async def receive(self, *, limit: int = 1, wait: float = 0, **source: Unpack[Reading]) -> list[Message]: ...

    async def receive(
        self, *, limit: int = 1, wait: float = 0, lease: Lease | None = None, **source: Unpack[Reading]
    ) -> list[Message] | list[AsyncLeasedMessage]:
        """Return messages as QueueClient.receive. One without a lease is lost if the task is cancelled meanwhile."""
        chosen = self._source("receive", source)
        documents = await self._run(self._reader.read(chosen, limit, wait, lease))
        if lease is not None:
            return parse_leased(documents, chosen.name, self._make)
        return [parse_message(document, chosen.name) for document in documents]

    def consume(
        self, *, batch: int = 1, max_tries: int | None = None, **options: Unpack[AsyncConsuming]
    ) -> AsyncIterator[AsyncLeasedMessage]:
        """Yield messages as QueueClient.consume. If the body is cancelled, its message is retried, as if it had raised.

        async for message in client.consume(lease=60, max_tries=5):
            await make_thumbnail(message.text)
        """
        self._transport.check_open()
        loop = loop_of("consume", self.queue, max_tries, options, is_async=True)
        return AsyncLoop(self._transport, consume(self._reader, loop, batch, self._make), options.get("stop"))

    async def work(
        self,
        handler: AsyncHandler,
        *,
        concurrency: int = 8,
        max_tries: int | None = 5,
        **options: Unpack[AsyncConsuming],
    ) -> None:
        """Await the handler for each message, as QueueClient.work, with `concurrency` of them at once, in tasks.

        A signal that the program handles itself, as a web server does, keeps its handler. Cancelling this cancels the
        handlers that run, and releases their messages, as if they had not been delivered.

            await client.work(make_thumbnail, concurrency=100)
        """
        self._transport.check_usable()
        loop = loop_of("work", self.queue, max_tries, options, is_async=True)
        worker = AsyncWorker(self._make, self._transport, self._reader, loop, handler, concurrency)
        await worker.run(options.get("stop") or asyncio.Event())

    async def transact(
        self,
        *,
        ack: Iterable[Leased | str] = (),
        send: Iterable[str | Outgoing] = (),
        receive: NextMessages | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncTransactionReply:
        """Ack, send and receive as QueueClient.transact."""
        done = await self._run(self._transact(ack, send, receive, idempotency_key, self._make))
        return AsyncTransactionReply(*done)

    async def close(self) -> None:
        """Close as QueueClient.close, and wait for what cancelled tasks left behind."""
        self._transport.check_loop()
        unworked = self._leased.keeper.close()
        await self._transport.close()
        await self._run(self._leased.release_unworked(unworked))

    async def __aenter__(self) -> Self:
        self._transport.check_usable()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _connect(self) -> None:
        self._transport = AsyncTransport(self._service, lambda reply: self._reader.release_late(reply))
        is_closed = self._transport.is_closed
        self._leased = LeasedMessages(is_closed, partial(AsyncLeaseKeeper, self._transport.run))
        self._reader = Reader(self._leased, is_closed, can_cut=self._transport.can_cut)

    def _run(self, steps: Steps[T]) -> Coroutine[Any, Any, T]:
        call: Any = self._transport.run(steps)
        name: str = cast(Any, steps).__name__
        call.__qualname__ = f"{type(self).__name__}.{name}"  # in the warning that it was never awaited
        return cast("Coroutine[Any, Any, T]", call)

    def _make(self, **fields: Any) -> AsyncLeasedMessage:
        return AsyncLeasedMessage(**fields, _client=self)
