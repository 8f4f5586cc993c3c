"""Leased messages of AsyncQueueClient, whose methods are awaited."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from ..messages import Leased, Outgoing


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncLeasedMessage(Leased):
    """A LeasedMessage of AsyncQueueClient, with the same methods: `await message.ack()`."""

    _client: AsyncSettler = field(repr=False, compare=False)

    async def ack(self) -> None:
        await self._client.ack(self)

    async def extend(self, lease: float) -> None:
        await self._client.extend(self, lease)

    async def release(self, delay: float = 0, *, counted: bool = True) -> None:
        await self._client.release(self, delay=delay, counted=counted)

    async def reject(self, reason: str | None = None) -> None:
        await self._client.reject(self, reason=reason)

    async def complete(self, send: Iterable[str | Outgoing] = ()) -> AsyncTransactionReply:
        return await self._client.transact(ack=[self], send=send)


@dataclass(frozen=True, slots=True)
class AsyncTransactionReply:
    """A TransactionReply of AsyncQueueClient."""

    ids: list[str]
    duplicates: list[int]
    messages: list[AsyncLeasedMessage]


class AsyncSettler(Protocol):
    """The methods of AsyncQueueClient that its messages call."""

    async def ack(self, message: Leased) -> None: ...

    async def extend(self, message: Leased, lease: float) -> None: ...

    async def release(self, message: Leased, *, delay: float, counted: bool) -> None: ...

    async def reject(self, message: Leased, *, reason: str | None) -> None: ...

    async def transact(
        self, *, ack: Iterable[Leased | str], send: Iterable[str | Outgoing]
    ) -> AsyncTransactionReply: ...
