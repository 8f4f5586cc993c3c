"""Renew leases in the background while a reader works on its messages."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..errors import QueueError
from ..log import log
from ..messages import ExtendResult, LeasedMessage

LINGER = 5.0  # seconds


@dataclass(slots=True)
class _Held:
    message: LeasedMessage
    lease: float
    due: float  # monotonic
    is_begun: bool = False


class LeaseKeeper:
    """Extends the leases of messages when half of each has passed. Its thread runs while it has messages.

    The thread calls `extend(messages, lease, timeout)` for messages of one queue; the call takes at most about
    `timeout` seconds. In a forked child the keeper has none: the messages are the parent's.
    """

    def __init__(self, extend: Callable[[list[LeasedMessage], float, float], ExtendResult]) -> None:
        self._extend = extend
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wakes = 0.0  # monotonic; when the thread wakes without a notification
        self.start_afresh()
        _keepers.add(self)

    def renew(self, messages: Iterable[LeasedMessage], lease: float, asked: float) -> bool:
        """Renew these leases of `lease` seconds from now on, and return True. After `close`, return False.

        The leases may have begun when the request was `asked` (monotonic), since its reply may have been late.
        """
        due = asked + lease / 2
        with self._changed:
            if self._closed:
                return False
            self._held.update((message.receipt, _Held(message, lease, due)) for message in messages)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._changed.notify()
            return True

    def begin(self, message: LeasedMessage) -> bool:
        """Mark the message as worked on. Return False after `close`, or if this process has not its lease."""
        with self._changed:
            held = self._held.get(message.receipt)
            if held is None or self._closed:
                return False
            held.is_begun = True
            return True

    def stop_renewing(self, receipt: str) -> bool:
        """Stop renewing a lease. Return False if it was not renewed: settled before, or lost to another reader."""
        with self._changed:
            return self._held.pop(receipt, None) is not None

    def close(self) -> list[LeasedMessage]:
        """Accept no more messages. Return those not worked on; their leases are renewed until stop_renewing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            return [held.message for held in self._held.values() if not held.is_begun]

    def start_afresh(self) -> None:
        """Drop all messages, the thread and the lock: in a forked child they are the parent's."""
        self._held: dict[str, _Held] = {}
        self._changed = threading.Condition()
        self._thread = None

    def _run(self) -> None:
        while (due := self._await_due()) is not None:
            for (_, lease), held in _together(due).items():
                self._renew(held, lease)

    def _await_due(self) -> list[_Held] | None:
        """Wait for leases to renew and return them. Return None to end the thread."""
        with self._changed:
            while True:
                now = time.monotonic()
                first = min((held.due for held in self._held.values()), default=None)
                if first is not None and first <= now:
                    # Leases that are due soon are renewed in the same request.
                    return [held for held in self._held.values() if held.due <= now + held.lease / 8]
                # Without messages the thread lingers, as the next one usually follows soon.
                self._wakes = now + LINGER if first is None else first
                if ((self._closed and first is None) or not self._changed.wait(self._wakes - now)) and not self._held:
                    self._thread = None
                    return None

    def _renew(self, due: list[_Held], lease: float) -> None:
        with self._changed:
            due = [held for held in due if held.message.receipt in self._held]  # the others were settled since
            shortest = min((held.lease for held in self._held.values()), default=lease)
        if not due:
            return
        start = time.monotonic()
        try:
            # A request that hangs must leave time for another before the shortest lease ends.
            result = self._extend([held.message for held in due], lease, shortest / 4)
        except QueueError as error:
            log.warning("the leases of %d messages could not be renewed yet: %s", len(due), error)
            pause = lease / 8
        except Exception:
            log.exception("the leases of %d messages could not be renewed yet", len(due))
            pause = lease / 8
        else:
            pause = lease / 2
            self._drop(result)
        for held in due:
            held.due = start + pause

    def _drop(self, result: ExtendResult) -> None:
        for receipt in (*result.stale, *result.missing):
            if self.stop_renewing(receipt):
                log.warning("the lease of the message with receipt %s was lost: renewal stops", receipt)


def _together(due: list[_Held]) -> dict[tuple[str, float], list[_Held]]:
    """Return groups by queue and lease: one request can renew a group."""
    groups: dict[tuple[str, float], list[_Held]] = {}
    for held in due:
        groups.setdefault((held.message.queue, held.lease), []).append(held)
    return groups


_keepers: weakref.WeakSet[LeaseKeeper] = weakref.WeakSet()


def _start_afresh_after_fork() -> None:
    for keeper in _keepers:
        keeper.start_afresh()


os.register_at_fork(after_in_child=_start_afresh_after_fork)
