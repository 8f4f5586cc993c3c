"""Leases renewed in the background, for as long as a reader works on its messages."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import QueueError
from .messages import ExtendResult, Message

LINGER = 5.0  # seconds

log = logging.getLogger("clients")


@dataclass(slots=True)
class _Held:
    message: Message
    lease: float
    due: float  # monotonic
    is_begun: bool = False


class LeaseKeeper:
    """Extends the leases of held messages when half of each has passed. Its thread runs while something is held.

    `extend(messages, lease, timeout)` is called on that thread, for messages of one queue, and takes at most about
    `timeout` seconds. In a forked child the keeper holds nothing: the messages are the parent's.
    """

    def __init__(self, extend: Callable[[list[Message], float, float], ExtendResult]) -> None:
        self._extend = extend
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wakes = 0.0  # monotonic; when the thread looks again by itself
        self.start_afresh()
        _keepers.add(self)

    def renew(self, messages: Iterable[Message], lease: float, asked: float) -> bool:
        """Renew the leases of `lease` seconds from now on. False, and nothing is held, after `close`.

        They may have begun as early as they were `asked` for (monotonic): the reply may have been late, or lost once.
        """
        due = asked + lease / 2
        with self._changed:
            if self._closed:
                return False
            self._held.update((_receipt(message), _Held(message, lease, due)) for message in messages)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._changed.notify()
            return True

    def begin(self, message: Message) -> bool:
        """Mark the message as worked on. False after `close`, or if its lease was lost or is another process's."""
        with self._changed:
            held = self._held.get(_receipt(message))
            if held is None or self._closed:
                return False
            held.is_begun = True
            return True

    def stop_renewing(self, receipt: str | None) -> bool:
        """Renew it no longer. False if it was not held: settled already, or lost to another reader."""
        with self._changed:
            return self._held.pop(receipt or "", None) is not None

    def close(self) -> list[Message]:
        """Hold no others from now on. Return the messages that are not worked on: they are held until let go."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            return [held.message for held in self._held.values() if not held.is_begun]

    def start_afresh(self) -> None:
        """Forget all that is held, and the thread: in a forked child both are the parent's, a held lock too."""
        self._held: dict[str, _Held] = {}
        self._changed = threading.Condition()
        self._thread = None

    def _run(self) -> None:
        while (due := self._await_due()) is not None:
            for (_, lease), held in _together(due).items():
                self._renew(held, lease)

    def _await_due(self) -> list[_Held] | None:
        """Wait for leases to renew; None ends the thread."""
        with self._changed:
            while True:
                now = time.monotonic()
                first = min((held.due for held in self._held.values()), default=None)
                if first is not None and first <= now:
                    # What is due soon is renewed in the same request.
                    return [held for held in self._held.values() if held.due <= now + held.lease / 8]
                # It lingers when nothing is held: mostly the next message is about to come.
                self._wakes = now + LINGER if first is None else first
                if ((self._closed and first is None) or not self._changed.wait(self._wakes - now)) and not self._held:
                    self._thread = None
                    return None

    def _renew(self, due: list[_Held], lease: float) -> None:
        with self._changed:
            due = [held for held in due if _receipt(held.message) in self._held]  # the others were settled meanwhile
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
    """By queue and lease: what one request can renew."""
    groups: dict[tuple[str, float], list[_Held]] = {}
    for held in due:
        groups.setdefault((held.message.queue, held.lease), []).append(held)
    return groups


def _receipt(message: Message) -> str:
    assert message.receipt is not None
    return message.receipt


_keepers: weakref.WeakSet[LeaseKeeper] = weakref.WeakSet()


def _forget_the_parents() -> None:
    for keeper in _keepers:
        keeper.start_afresh()


os.register_at_fork(after_in_child=_forget_the_parents)
