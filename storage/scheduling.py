"""How requests wait. Only this part of the store depends on how a server runs its requests.

By default each request has a thread. A server that runs many requests in one thread passes its own Scheduler.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

T = TypeVar("T")
InThread = Callable[[Callable[[], object]], None]  # run a function in a thread
Turn = Callable[[InThread], None]


class Task(Protocol):
    """A running request."""

    is_driven: bool  # the turns of its scheduler commit for it, and end its wait in time
    is_heavy: bool  # its transaction, or making its reply, may take long

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until `wake` is called, or that many seconds. Return whether it was called since the last wait."""

    def wake(self) -> None:
        """End the current or the next wait. This takes no lock, so any thread or signal handler may call it."""


class Scheduler(Protocol):
    presence_every: float  # seconds between two checks that a waiting reader is still connected

    def current(self) -> Task:
        """Return the task of the caller."""

    def start(self, run: Callable[[], None], name: str) -> Callable[[], None]:
        """Run a function as its own task. Return a function that waits for its end."""

    def call(self, do: Callable[[], T]) -> T:
        """Call a blocking function and return its result; other tasks continue meanwhile."""

    def on_turn(self, turn: Turn) -> None:
        """Call `turn` whenever all tasks wait."""


class Thread:
    """A task that is a thread."""

    is_driven = False
    is_heavy = True

    def __init__(self) -> None:
        self._woken = threading.Lock()  # released to wake the thread; cheaper than an Event
        self._woken.acquire()

    def wait(self, seconds: float | None = None) -> bool:
        return self._woken.acquire(timeout=-1 if seconds is None else max(0.0, min(seconds, threading.TIMEOUT_MAX)))

    def wake(self) -> None:
        with suppress(RuntimeError):  # already woken
            self._woken.release()


class Threads:
    """The scheduler of a server that runs each request in a thread."""

    presence_every = 1.0

    def current(self) -> Task:
        return Thread()

    def start(self, run: Callable[[], None], name: str) -> Callable[[], None]:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread.join

    def call(self, do: Callable[[], T]) -> T:
        return do()

    def on_turn(self, turn: Turn) -> None:
        """Do nothing, because threads commit for themselves."""
