"""The messages that a worker leases for its idle handlers, and in which order they are handled."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic

from ..errors import QueueError
from ..http.calls import IsCut, Steps
from ..messages import L, parse_leased
from ..reading import Reader
from .options import Loop

LARGEST_READ = 1_000  # messages


class Leasing(Generic[L]):
    """Leases messages, made by `make`, for a worker that handles `concurrency` of them at once.

    A chain is the messages of one read that have the same key, which must be handled in their order.
    """

    def __init__(self, reader: Reader, loop: Loop, concurrency: int, make: Callable[..., L], is_ending: IsCut) -> None:
        self._reader = reader
        self._loop = loop
        self._concurrency = concurrency
        self._make = make
        self._is_ending = is_ending
        self._last = time.monotonic()  # when there was work

    def next_chains(self, idle: int) -> Steps[Iterable[list[L]] | None]:
        """Poll once for as many messages as handlers are `idle`. Return None if the worker ends."""
        loop, leased = self._loop, self._reader.leased
        asked, is_busy = time.monotonic(), idle < self._concurrency
        wait = loop.wait(self._reader.longest_wait, self._last, is_busy)
        try:
            documents = yield from self._reader.read(
                loop, min(idle, LARGEST_READ), wait, loop.lease, is_cut=self._is_ending
            )
        except QueueError:
            if self._is_ending():
                return None
            raise
        if documents or is_busy:
            self._last = time.monotonic()
        elif loop.is_idle(self._last):
            return None
        messages = parse_leased(documents, loop.name, self._make)
        if messages and (self._is_ending() or not leased.keeper.renew(messages, loop.lease, asked)):
            yield from leased.release_all(messages, counted=False)
            return None
        return chains_of(messages)


def check_work(handler: object, concurrency: int) -> None:
    """Raise ValueError, TypeError for what no worker can do."""
    if concurrency < 1:
        raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
    if not callable(handler):  # else each message would fail, and be dead-lettered
        raise TypeError(f"the handler must be a function that takes a message, not {type(handler).__name__}")


def is_async(handler: object) -> bool:
    """Return whether it is an async function, a partial of one, or an object that is called as one."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def chains_of(messages: Iterable[L]) -> Iterable[list[L]]:
    """Return messages of one queue and key together, in order, and each message without a key by itself."""
    chains: dict[object, list[L]] = {}
    for message in messages:
        together = message.receipt if message.key is None else (message.queue, message.key)
        chains.setdefault(together, []).append(message)
    return chains.values()
