"""Leases renewed in the background, for as long as a reader works on its messages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from clients.errors import NotFound, QueueError, StaleReceipt
from clients.messages import Message

LINGER = 5.0  # seconds

log = logging.getLogger("clients")


@dataclass(slots=True)
class _Held:
    message: Message
    lease: float
    due: float  # monotonic


class LeaseKeeper:
    """Extends each held message's lease when half of it has passed. Its thread runs while something is held.

    `extend(message, lease)` is called for it, on that thread.
    """

    def __init__(self, extend: Callable[[Message, float], None]) -> None:
        self._extend = extend
        self._held: dict[str, _Held] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes = 0.0  # monotonic; when the thread looks again by itself
        self._closed = False

    def hold(self, message: Message, lease: float) -> None:
        """From now on the lease, which has just been taken for `lease` seconds, does not run out."""
        assert message.receipt is not None
        due = time.monotonic() + lease / 2
        with self._changed:
            self._held[message.receipt] = _Held(message, lease, due)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="lease-keeper", daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._changed.notify()

    def let_go(self, receipt: str | None) -> bool:
        """No longer renew it. False if it was not held: settled already, or lost to somebody else."""
        with self._changed:
            return self._held.pop(receipt or "", None) is not None

    def close(self) -> None:
        """Renew nothing any more."""
        with self._changed:
            self._held.clear()
            self._closed = True
            self._changed.notify()

    def _renew(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                first = min(self._held.values(), key=lambda held: held.due, default=None)
                if first is None or first.due > now:
                    # It lingers when nothing is held: mostly the next message is about to come.
                    self._wakes = now + LINGER if first is None else first.due
                    if (self._closed or not self._changed.wait(self._wakes - now)) and not self._held:
                        self._thread = None
                        return
                    continue
                # Due again soon whatever happens: a failed renewal is worth another try before the lease ends.
                first.due = now + first.lease / 8
            self._renew_one(first)

    def _renew_one(self, held: _Held) -> None:
        message = held.message
        try:
            self._extend(message, held.lease)
            held.due = time.monotonic() + held.lease / 2
        except (NotFound, StaleReceipt):
            if self.let_go(message.receipt):
                log.warning("message %s of queue %s is no longer ours: its lease was lost", message.id, message.queue)
        except QueueError as error:
            log.warning("the lease of message %s could not be renewed yet: %s", message.id, error)
