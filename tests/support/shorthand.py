"""Short forms of the verbs of a Store. The default queue is "q"."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from storage.model import Message, NewMessage, Queue, QueueStats, Receive, State
from storage.store import Store

T = TypeVar("T")


class Held(NamedTuple):
    """A leased message."""

    text: str
    receipt: str
    message: Message


def new(text: str = "hi", **fields: Any) -> NewMessage:
    return NewMessage.from_document({"text": text, **fields})


def send(store: Store, *texts: str, queue: str = "q", **fields: Any) -> list[int]:
    """Send one batch of these texts, all with these fields."""
    return store.send(queue, [new(text, **fields) for text in texts]).ids


def take(store: Store, limit: int = 1, *, queue: str = "q", recipient: str | None = "") -> list[str]:
    """Remove messages and return their texts."""
    return texts(store.receive(Receive((queue,), limit, recipient=recipient)))


def lease(
    store: Store, limit: int = 1, *, seconds: float = 30, queue: str = "q", recipient: str | None = ""
) -> list[Held]:
    messages = store.receive(Receive((queue,), limit, seconds, recipient))
    return [Held(message.text, str(message.receipt), message) for message in messages]


def lease_one(store: Store, *, seconds: float = 30, queue: str = "q", recipient: str | None = "") -> Held:
    (held,) = lease(store, seconds=seconds, queue=queue, recipient=recipient)
    return held


def texts(messages: Sequence[Message | Held]) -> list[str]:
    return [message.text for message in messages]


def peek(store: Store, *, queue: str = "q", state: State | None = None) -> list[str]:
    """Return the texts of all messages, oldest first."""
    return texts(store.peek(queue, limit=100_000, state=state))


def stats(store: Store, queue: str = "q") -> QueueStats:
    return store.queue(queue).stats


def configure(store: Store, queue: str = "q", version: int | None = None, **settings: Any) -> Queue:
    return store.configure(queue, settings, version)


def until(condition: Callable[[], bool], seconds: float = 15) -> bool:
    """Wait for upkeep, which no call starts; it runs within seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def in_threads(work: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Run all at the same time; return what each returned or raised."""

    def run(one: Callable[[], T]) -> T | Exception:
        try:
            return one()
        except Exception as fault:
            return fault

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))
