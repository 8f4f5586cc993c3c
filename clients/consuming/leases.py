"""Renew leases while a reader works on its messages: which are due when, and the thread that renews them."""

from __future__ import annotations

import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import QueueError
from ..http.calls import Steps
from ..log import log
from ..messages import ExtendResult, Leased

LINGER = 5.0  # seconds

Extend = Callable[[list[Leased], float, float], Steps[ExtendResult]]
Run = Callable[[Steps[None]], None]


@dataclass(slots=True)
class _Held:
    message: Leased
    lease: float
    due: float  # monotonic
    is_begun: bool = False


class LeaseKeeper(ABC):
    """Extends the leases of messages when half of each has passed, as long as it has messages. Threads can share it.

    It calls `extend(messages, lease, timeout)` for messages of one queue; the call takes at most about `timeout`
    seconds.
    """

    def __init__(self, extend: Extend) -> None:
        self._extend = extend
        self._closed = False
        self._held: dict[str, _Held] = {}
        self._changed = threading.Condition()

    def renew(self, messages: Iterable[Leased], lease: float, asked: float) -> bool:
        """Renew these leases of `lease` seconds from now on, and return True. After `close`, return False.

        The leases may have begun when the request was `asked` (monotonic), since its reply may have been late.
        """
        due = asked + lease / 2
        with self._changed:
            if self._closed:
                return False
            self._held.update((message.receipt, _Held(message, lease, due)) for message in messages)
            self._wake(due)
            return True

    def begin(self, message: Leased) -> bool:
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

    def close(self) -> list[Leased]:
        """Accept no more messages. Return those not worked on; their leases are renewed until stop_renewing."""
        with self._changed:
            self._closed = True
            self._wake(0.0)
            return [held.message for held in self._held.values() if not held.is_begun]

    @abstractmethod
    def _wake(self, due: float) -> None:
        """Renew leases at `due` (monotonic), or before. The caller has the lock."""

    def _due(self, now: float) -> list[_Held] | float | None:
        """Return the leases to renew now, or else when the first one is due, or None without any."""
        first = min((held.due for held in self._held.values()), default=None)
        if first is None or first > now:
            return first
        # Leases that are due soon are renewed in the same request.
        return [held for held in self._held.values() if held.due <= now + held.lease / 8]

    def _renew_due(self, due: list[_Held]) -> Steps[None]:
        for (_, lease), held in _together(due).items():
            yield from self._renew(held, lease)

    def _renew(self, due: list[_Held], lease: float) -> Steps[None]:
        with self._changed:
            due = [held for held in due if held.message.receipt in self._held]  # the others were settled since
            shortest = min((held.lease for held in self._held.values()), default=lease)
        if not due:
            return
        start = time.monotonic()
        try:
            # A request that hangs must leave time for another before the shortest lease ends.
            result = yield from self._extend([held.message for held in due], lease, shortest / 4)
        except QueueError as error:
            log.warning("the leases of %d messages could not be renewed yet: %s", len(due), error)
            pause = lease / 8
        except Exception:
            log.exception("the leases of %d messages could not be renewed yet", len(due))
            pause = lease / 8
        else:
            pause = lease / 2
            self._drop((*result.stale, *result.missing))
        for held in due:
            held.due = start + pause

    def _drop(self, receipts: Sequence[str]) -> None:
        for receipt in receipts:
            if self.stop_renewing(receipt):
                log.warning("the lease of the message with receipt %s was lost: renewal stops", receipt)


class ThreadedLeaseKeeper(LeaseKeeper):
    """Renews leases in a thread. In a forked child it has none: the messages are the parent's."""

    def __init__(self, run: Run, extend: Extend) -> None:
        super().__init__(extend)
        self._run_steps = run
        self._thread: threading.Thread | None = None
        self._wakes = 0.0  # monotonic; when the thread wakes without a notification
        _keepers.add(self)

    def start_afresh(self) -> None:
        """Drop all messages, the thread and the lock: in a forked child they are the parent's."""
        self._held = {}
        self._changed = threading.Condition()
        self._thread = None

    def _wake(self, due: float) -> None:
        if self._thread is not None:
            if due < self._wakes:
                self._changed.notify()
        elif self._held:
            self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (due := self._await_due()) is not None:
            self._run_steps(self._renew_due(due))

    def _await_due(self) -> list[_Held] | None:
        """Wait for leases to renew and return them. Return None to end the thread."""
        with self._changed:
            while True:
                now = time.monotonic()
                due = self._due(now)
                if isinstance(due, list):
                    return due
                # Without messages the thread lingers, as the next one usually follows soon.
                self._wakes = now + LINGER if due is None else due
                if ((self._closed and due is None) or not self._changed.wait(self._wakes - now)) and not self._held:
                    self._thread = None
                    return None


def _together(due: list[_Held]) -> dict[tuple[str, float], list[_Held]]:
    """Return groups by queue and lease: one request can renew a group."""
    groups: dict[tuple[str, float], list[_Held]] = {}
    for held in due:
        groups.setdefault((held.message.queue, held.lease), []).append(held)
    return groups


_keepers: weakref.WeakSet[ThreadedLeaseKeeper] = weakref.WeakSet()


def _start_afresh_after_fork() -> None:
    for keeper in _keepers:
        keeper.start_afresh()


os.register_at_fork(after_in_child=_start_afresh_after_fork)
