"""The options of the loops, and the fate of a message whose work failed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from ..messages import LeasedMessage, Reading, Source
from ..settling import LeasedMessages

Backoff = Callable[[int], float]  # the number of the try that failed → seconds until the next one


def exponential_backoff(first: float = 1.0, longest: float = 300.0) -> Backoff:
    """Return a backoff of `first` seconds that doubles with each further failure, up to `longest`."""
    return lambda tries: min(longest, first * 2.0 ** min(tries - 1, 64))


class Consuming(Reading, total=False):
    """The options of QueueClient.consume and QueueClient.work, and the messages to read.

    lease: seconds, renewed in the background while the work lasts. idle: seconds without a message after which the
    loop ends; None for never. backoff: the pause before a retry. stop: the loop ends once this is set.
    """

    lease: float
    idle: float | None
    backoff: Backoff
    stop: threading.Event | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop(Source):
    """A checked Consuming, with the number of deliveries after which a message is dead-lettered; None for no limit."""

    lease: float = 60.0
    idle: float | None = None
    max_tries: int | None = None
    backoff: Backoff = field(default_factory=exponential_backoff)
    stop: threading.Event | None = None

    def __post_init__(self) -> None:
        Source.__post_init__(self)  # super() does not work in a dataclass with slots
        if self.max_tries is not None and self.max_tries < 1:
            raise ValueError(f"max_tries must be 1 or more, or None for no limit, not {self.max_tries}")

    def is_stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    def reject_exhausted(self, leased: LeasedMessages, message: LeasedMessage) -> bool:
        """Dead-letter a message of which no try was finished, for instance because each one killed its process."""
        if self.max_tries is None or message.receive_count <= self.max_tries:
            return False
        leased.reject_last(message, f"none of {self.max_tries} tries was finished")
        return True

    def retry(self, leased: LeasedMessages, message: LeasedMessage, reason: str) -> float | None:
        """Release a message whose work failed, and return the seconds until its next try.

        After the last try dead-letter it for this reason and return None. Neither raises QueueError.
        """
        if self.max_tries is not None and message.receive_count >= self.max_tries:
            leased.reject_last(message, reason)
            return None
        pause = self.backoff(message.receive_count)
        leased.release_all([message], delay=pause)
        return pause
