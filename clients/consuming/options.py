"""The options of the loops, and the fate of a message whose work failed."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..http.calls import Steps
from ..log import log
from ..messages import Leased, Reading, Source, check_names
from ..settling import LeasedMessages

if TYPE_CHECKING:
    import asyncio  # the other client need not load it

BUSY_WAIT = 0.5  # seconds of a poll while handlers run, at least, if the worker ends when it was idle for less

Backoff = Callable[[int], float]  # the number of the try that failed → seconds until the next one


def exponential_backoff(first: float = 1.0, longest: float = 300.0) -> Backoff:
    """Return a backoff of `first` seconds that doubles with each further failure, up to `longest`."""
    return lambda tries: min(longest, first * 2.0 ** min(tries - 1, 64))


class LoopOptions(Reading, total=False):
    """The options of the loops of both clients, and the messages to read.

    lease: seconds, renewed in the background while the work lasts. idle: seconds without a message after which the
    loop ends; None for never. backoff: the pause before a retry. stop: the loop ends once this is set.
    """

    lease: float
    idle: float | None
    backoff: Backoff


class Consuming(LoopOptions, total=False):
    """The options of QueueClient.consume and QueueClient.work."""

    stop: threading.Event | None


class AsyncConsuming(LoopOptions, total=False):
    """The options of AsyncQueueClient.consume and AsyncQueueClient.work."""

    stop: asyncio.Event | None


def loop_of(
    call: str, queue: str, max_tries: int | None, options: Consuming | AsyncConsuming, *, is_async: bool
) -> Loop:
    """Return the options of a call, checked. Raises ValueError, TypeError."""
    check_names(call, options, Consuming)
    stop = options.get("stop")
    # An event that blocks would freeze the event loop. Other classes will do, such as the event of multiprocessing.
    if stop is not None and inspect.iscoroutinefunction(getattr(stop, "wait", None)) != is_async:
        expected, found = "asyncio" if is_async else "threading", type(stop)
        raise TypeError(f"stop must be {expected}.Event, not {found.__module__}.{found.__name__}")
    return Loop(default=queue, max_tries=max_tries, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop(Source):
    """A checked Consuming, with the number of deliveries after which a message is dead-lettered; None for no limit."""

    lease: float = 60.0
    idle: float | None = None
    max_tries: int | None = None
    backoff: Backoff = field(default_factory=exponential_backoff)
    stop: threading.Event | asyncio.Event | None = None

    def __post_init__(self) -> None:
        Source.__post_init__(self)  # super() does not work in a dataclass with slots
        if self.max_tries is not None and self.max_tries < 1:
            raise ValueError(f"max_tries must be 1 or more, or None for no limit, not {self.max_tries}")

    def is_stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    def wait(self, longest: float, last: float, is_busy: bool = False) -> float:
        """Return the seconds of the next poll: at most the `longest`, and not beyond `idle` after the `last` message.

        A worker whose handlers run `is_busy`, which is not idle.
        """
        if self.idle is None:
            return longest
        return min(longest, max(self.idle, BUSY_WAIT) if is_busy else max(0.0, last + self.idle - time.monotonic()))

    def is_idle(self, last: float) -> bool:
        """Return whether the `last` message was `idle` seconds ago."""
        return self.idle is not None and time.monotonic() >= last + self.idle

    def reject_exhausted(self, leased: LeasedMessages, message: Leased) -> Steps[bool]:
        """Dead-letter a message of which no try was finished, for instance because each one killed its process."""
        if self.max_tries is None or message.receive_count <= self.max_tries:
            return False
        yield from leased.reject_last(message, f"none of {self.max_tries} tries was finished")
        return True

    def retry(self, leased: LeasedMessages, message: Leased, reason: str) -> Steps[float | None]:
        """Release a message whose work failed, and return the seconds until its next try.

        After the last try dead-letter it for this reason and return None. Neither raises QueueError.
        """
        if self.max_tries is not None and message.receive_count >= self.max_tries:
            yield from leased.reject_last(message, reason)
            return None
        pause = self.backoff(message.receive_count)
        yield from leased.release_all([message], delay=pause)
        return pause

    def retry_failed(self, leased: LeasedMessages, message: Leased, error: BaseException) -> Steps[None]:
        """Retry as `retry` a message whose handler raised the error, unless the handler settled it, and log it."""
        if not leased.keeper.stop_renewing(message.receipt):
            return
        pause = yield from self.retry(leased, message, f"{type(error).__name__}: {error}")
        log.warning(
            "try %d of message %s in queue %s failed; %s", message.receive_count, message.id, message.queue,
            "it was the last one" if pause is None else f"next try in {pause:.3g} s", exc_info=error,
        )  # fmt: skip
