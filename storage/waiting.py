"""Long polling, for every engine: readers that found nothing wait here until there is something for them.

One thread a process looks for all of them: at once when this process has committed something they wait for, or another
of the same service has and rings the bell (storage/wakeup_pipes.py); now and then, by the engine's `changed`, for
commits of others; and when a delay or a lease ends. It wakes, first come first served, no more readers than there are
messages to take. It runs only while somebody waits.
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

LOOK_EVERY = 0.008  # seconds between two looks for commits of processes that do not ring …
LOOK_SELDOM = 0.05  # … where those of the same service do; others are a second service, or a program of ours
PRESENCE_EVERY = 1.0  # seconds between two checks that a waiting reader is still there
LOOK_AGAIN = 0.25  # seconds until the next look after one that failed

_log = logging.getLogger(__name__)


class Subscription(NamedTuple):
    """What a reader waits for."""

    queues: tuple[str, ...]
    recipient: str | None  # None: any


class Availability(NamedTuple):
    """What an engine sees for an interest: `ready` messages could be taken now; `due_in` s (or None) until more may."""

    ready: int
    due_in: float | None


class QueueSnapshot(Protocol):
    """How an engine lets waiting look into it; called only by the one looking thread."""

    def changed(self) -> bool:
        """Whether another process committed something since the last call."""

    def availability(self, subscription: Subscription, most: int) -> Availability:
        """`ready` is told up to `most`."""

    def close(self) -> None: ...


class _Waiter:
    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.woken = threading.Event()


class Waiting:
    """`open_snapshot` is called in the looking thread, once the first reader waits; `capacity` may wait at once.

    `look_every` seconds it is asked whether anything has changed.
    """

    def __init__(
        self,
        open_snapshot: Callable[[], QueueSnapshot],
        capacity: int,
        wakeup_pipe: WakeupPipe | None = None,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.observe: Callable[[int], None] = lambda readers: None  # told how many wait, whenever that changes
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
        """What `claim` finds, at once or within `wait` s; empty when nothing came, the reader went or waiting stopped.

        Raises TooManyPollers when nothing is there and `capacity` readers wait already.
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
                    self._wakeup_pipe.wake()  # what it was woken for was taken by another: look again before it sleeps
            return found
        finally:
            self._leave(waiter)

    def notify(self, queues: Collection[str]) -> None:
        """Something became ready in these queues by a commit of this process."""
        if queues:
            self._wakeup_pipe.wake_others()
        if self._waiters and any(
            queue in queues for waiter in list(self._waiters) for queue in waiter.subscription.queues
        ):
            self._wakeup_pipe.wake()

    def stop(self) -> None:
        """Sends all readers home, now and from now on. Takes no lock: it may be called by a signal handler."""
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
            self._wakeup_pipe.wake()  # it may have come between this reader's claim and now
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
            self._wakeup_pipe.wake()  # it may have been woken for a message that it did not take

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
                except Exception:  # without this thread no reader is woken any more
                    _log.exception("could not check for messages for waiting readers")
                    due = 0.0
                    time.sleep(LOOK_AGAIN)
        finally:
            if snapshot is not None:
                snapshot.close()

    def _look(self, snapshot: QueueSnapshot) -> float:
        """Wakes whom there is something for; returns the seconds until something else falls due."""
        by_subscription: dict[Subscription, list[_Waiter]] = {}
        with self._guard:
            for waiter in self._waiters:
                by_subscription.setdefault(waiter.subscription, []).append(waiter)
        next_due = 60.0
        for subscription, waiters in by_subscription.items():
            availability = snapshot.availability(subscription, len(waiters))
            for waiter in waiters[: availability.ready]:  # one already awake will take the first of them
                waiter.woken.set()
            if availability.due_in is not None:
                next_due = min(next_due, availability.due_in)
        return next_due


def receive_after(
    store: Store, ids: list[int], ask: Receive, once: IdempotencyKey | None, present: Callable[[], bool]
) -> Transacted:
    """Return what a transaction's reader waits for. The transaction is done and reported, so nothing is raised."""
    # A name of its own, which no header can hold: the transaction's reply is remembered under the client's.
    once = once and IdempotencyKey(f"{once.key}\n", once.fingerprint)
    try:
        return Transacted(ids, store.receive(ask, once, present))
    except (TooManyPollers, Unavailable):
        return Transacted(ids, [], crowded=True)
