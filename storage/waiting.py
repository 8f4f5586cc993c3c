"""Long polling, for every engine: readers that found no message wait here for one.

Each process has one thread that checks for all its readers. It checks at once when this process commits a message that
a reader waits for. It also checks when another process of the service writes to the wake-up pipe
(storage/wakeup_pipes.py), and when a delay or a lease ends. It polls the engine's `changed` for commits of other
programs. It wakes readers in order of arrival, and no more of them than there are messages. It works only while readers
wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sized
from typing import NamedTuple, Protocol, TypeVar

from storage.errors import TooManyPollers, Unavailable
from storage.model import IdempotencyKey, Receive, Transacted
from storage.store import Store
from storage.wakeup_pipes import WakeupPipe

Found = TypeVar("Found", bound=Sized)  # messages

LOOK_EVERY = 0.008  # seconds between two polls for commits of processes that do not write to the wake-up pipe
LOOK_SELDOM = 0.05  # the same, where the pipe reaches all processes except a second service or another program
PRESENCE_EVERY = 1.0  # seconds between two checks that a waiting reader is still connected
LOOK_AGAIN = 0.25  # seconds until the next check after one that failed

_log = logging.getLogger(__name__)


class Subscription(NamedTuple):
    """The queues and the recipient that a reader waits for."""

    queues: tuple[str, ...]
    recipient: str | None  # None: any


class Availability(NamedTuple):
    """The messages for a subscription: `ready` can be taken now; more may be in `due_in` s (None: never)."""

    ready: int
    due_in: float | None


class QueueSnapshot(Protocol):
    """The view of an engine that Waiting uses, only in its checking thread."""

    def changed(self) -> bool:
        """Return whether another process may have committed since the last call."""

    def availability(self, subscription: Subscription, most: int) -> Availability:
        """Return what the subscription can take now; `ready` is at most `most`."""

    def close(self) -> None: ...


class _Waiter:
    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.woken = threading.Event()


class Waiting:
    """The waiting readers of a process, at most `capacity` at once.

    The checking thread calls `open_snapshot` when the first reader waits. It calls the snapshot's `changed` every
    `look_every` seconds.
    """

    def __init__(
        self,
        open_snapshot: Callable[[], QueueSnapshot],
        capacity: int,
        wakeup_pipe: WakeupPipe | None = None,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.observe: Callable[[int], None] = lambda readers: None  # gets the number of waiting readers at each change
        self._open_snapshot = open_snapshot
        self._capacity = capacity
        self._guard = threading.Condition()
        self._waiters: dict[_Waiter, None] = {}  # in order of arrival
        self._wakeup_pipe = WakeupPipe() if wakeup_pipe is None else wakeup_pipe
        self._look_every = look_every
        self._looker: threading.Thread | None = None
        self._stopped = False

    def __len__(self) -> int:
        return len(self._waiters)

    def receive(
        self, claim: Callable[[], Found], subscription: Subscription, wait: float, present: Callable[[], bool]
    ) -> Found:
        """Return what `claim` finds, at once or within `wait` s.

        Return an empty result on timeout, when the reader disconnects, and after `stop`. Raises TooManyPollers if
        nothing is found and `capacity` readers already wait.
        """
        found = claim()
        if found or wait <= 0 or self._stopped:
            return found
        waiter = _Waiter(subscription)
        deadline = time.monotonic() + wait
        self._join(waiter)
        try:
            while not self._stopped and (remaining := deadline - time.monotonic()) > 0:
                woken = waiter.woken.wait(min(remaining, PRESENCE_EVERY))
                if self._stopped or not present():
                    break
                if woken and (found := claim()):
                    break
                if woken:
                    waiter.woken.clear()
                    self._wakeup_pipe.wake()  # another reader took the message: check again before this one sleeps
            return found
        finally:
            self._leave(waiter)

    def notify(self, queues: Collection[str]) -> None:
        """Wake readers after a commit of this process that made messages ready in these queues."""
        if queues:
            self._wakeup_pipe.wake_others()
        if self._waiters and any(
            queue in queues for waiter in list(self._waiters) for queue in waiter.subscription.queues
        ):
            self._wakeup_pipe.wake()

    def stop(self) -> None:
        """End all waits, now and from now on. This takes no lock, so a signal handler may call it."""
        self._stopped = True
        for waiter in list(self._waiters):
            waiter.woken.set()
        self._wakeup_pipe.wake()

    def close(self) -> None:
        self.stop()
        with self._guard:
            self._guard.notify_all()
            looker = self._looker
        if looker is not None:
            looker.join()

    def _join(self, waiter: _Waiter) -> None:
        with self._guard:
            if len(self._waiters) >= self._capacity:
                raise TooManyPollers
            self._waiters[waiter] = None
            self._wakeup_pipe.wanted(True)
            self.observe(len(self._waiters))
            self._wakeup_pipe.wake()  # a message may have arrived since this reader's claim
            if self._looker is None:
                self._looker = threading.Thread(target=self._look_out, name="queue-waiting", daemon=True)
                self._looker.start()
            self._guard.notify()

    def _leave(self, waiter: _Waiter) -> None:
        with self._guard:
            del self._waiters[waiter]
            self._wakeup_pipe.wanted(bool(self._waiters))
            self.observe(len(self._waiters))
        if waiter.woken.is_set():
            self._wakeup_pipe.wake()  # it may not have taken the message it was woken for

    def _look_out(self) -> None:
        snapshot: QueueSnapshot | None = None
        due = 0.0
        try:
            while not self._stopped:
                with self._guard:
                    self._guard.wait_for(lambda: self._waiters or self._stopped)
                woken = self._wakeup_pipe.wait(self._look_every)
                try:
                    snapshot = snapshot or self._open_snapshot()
                    if snapshot.changed() or woken or time.monotonic() >= due:
                        due = time.monotonic() + self._look(snapshot)
                except Exception:  # only this thread wakes readers
                    _log.exception("could not check for messages for waiting readers")
                    due = 0.0
                    time.sleep(LOOK_AGAIN)
        finally:
            if snapshot is not None:
                snapshot.close()

    def _look(self, snapshot: QueueSnapshot) -> float:
        """Wake readers that have messages; return the seconds until the next deadline."""
        by_subscription: dict[Subscription, list[_Waiter]] = {}
        with self._guard:
            for waiter in self._waiters:
                by_subscription.setdefault(waiter.subscription, []).append(waiter)
        next_due = 60.0
        for subscription, waiters in by_subscription.items():
            availability = snapshot.availability(subscription, len(waiters))
            for waiter in waiters[: availability.ready]:  # a reader already awake takes the first messages
                waiter.woken.set()
            if availability.due_in is not None:
                next_due = min(next_due, availability.due_in)
        return next_due


def receive_after(
    store: Store, ids: list[int], ask: Receive, once: IdempotencyKey | None, present: Callable[[], bool]
) -> Transacted:
    """Receive for a transaction that has committed; return its ids and the messages.

    If no reader may wait or the storage fails, return no messages and set `crowded`: the ids must be reported.
    """
    # Use a key that no header can hold, because the client's key belongs to the transaction's reply.
    once = once and IdempotencyKey(f"{once.key}\n", once.fingerprint)
    try:
        return Transacted(ids, store.receive(ask, once, present))
    except (TooManyPollers, Unavailable):
        return Transacted(ids, [], crowded=True)
