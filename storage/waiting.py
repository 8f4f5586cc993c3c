"""Long polling, for every engine: readers that found no message wait here for one.

Each process has one task that checks for all its readers. It checks at once when this process commits a message that
a reader waits for, and when a delay or a lease ends. It polls the engine's `changed` for commits of other processes. It
wakes readers in order of arrival, and no more of them than there are messages. It works only while readers wait.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence, Sized
from itertools import count
from math import inf
from typing import NamedTuple, Protocol, TypeVar

from storage.errors import TooManyPollers, Unavailable
from storage.model import IdempotencyKey, Receive, Transacted
from storage.scheduling import Scheduler, Task, Threads
from storage.store import Store

Found = TypeVar("Found", bound=Sized)  # messages

LOOK_EVERY = 0.004  # seconds between two polls for commits of other processes
LOOK_SELDOM = 0.03  # seconds to which this grows while there are none
LOOK_AT = 500  # queues in one check after a commit of another process
LOOK_FOR = 0.002  # seconds of a check, after which other tasks run first
LOOK_AGAIN = 0.25  # seconds until the next check after one that failed
MOST_DUE = 60.0  # seconds until a deadline is checked again at the latest

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
    """The view of an engine that Waiting uses, only in its checking task."""

    def changed(self) -> bool:
        """Return whether another process may have committed since the last call."""

    def in_use(self, queues: Sequence[str]) -> Sequence[str]:
        """Return those of these queues that may have messages."""

    def availability(self, subscription: Subscription, most: int) -> Availability:
        """Return what the subscription can take now; `ready` is at most `most`."""

    def close(self) -> None: ...


class _Waiter:
    __slots__ = ("is_woken", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.is_woken = False

    def wake(self) -> None:
        if not self.is_woken:
            self.is_woken = True
            self.task.wake()


class Waiting:
    """The waiting readers of a process, at most `capacity` at once.

    Readers wait with `scheduler`, and the checking task runs with `looking_with`. That task calls `open_snapshot` when
    the first reader waits. It calls the snapshot's `changed` every `look_every` seconds, less often while nothing
    changes.
    """

    def __init__(
        self,
        open_snapshot: Callable[[], QueueSnapshot],
        capacity: int,
        scheduler: Scheduler | None = None,
        look_every: float = LOOK_EVERY,
        looking_with: Scheduler | None = None,
    ) -> None:
        self.observe: Callable[[int], None] = lambda readers: None  # gets the number of waiting readers at each change
        self._open_snapshot = open_snapshot
        self._capacity = capacity
        self._scheduler = scheduler or Threads()
        self._looking_with = looking_with or self._scheduler
        self._look_every = self._pause = look_every
        self._guard = threading.Lock()
        self._waiters: dict[Subscription, dict[_Waiter, None]] = {}  # in order of arrival
        self._subscriptions: dict[str, dict[Subscription, None]] = {}  # by queue
        self._count = 0
        self._suspects: list[str] = []  # queues that another process may have changed
        self._to_look_at: dict[Subscription, None] = {}
        self._due: list[tuple[float, int, Subscription]] = []  # a heap of deadlines
        self._numbers = count()
        self._due_at: dict[Subscription, float] = {}  # the earliest deadline of each
        self._looker: Task | None = None
        self._await_looker: Callable[[], None] | None = None
        self._snapshot: QueueSnapshot | None = None
        self._stopped = False

    def __len__(self) -> int:
        return self._count

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
        waiter = _Waiter(self._scheduler.current())
        deadline = time.monotonic() + wait
        self._join(waiter, subscription)
        try:
            while not self._stopped and (remaining := deadline - time.monotonic()) > 0:
                waiter.task.wait(min(remaining, self._scheduler.presence_every))
                if self._stopped or not present():
                    break
                if waiter.is_woken:
                    if found := claim():
                        break
                    waiter.is_woken = False
                    self._look_at(subscription)  # another reader took the message: check again before this one sleeps
            return found
        finally:
            self._leave(waiter, subscription)

    def notify(self, queues: Collection[str]) -> None:
        """Wake readers after a commit of this process that made messages ready in these queues."""
        if self._count and queues:
            with self._guard:
                subscriptions = [
                    subscription for queue in queues for subscription in self._subscriptions.get(queue, ())
                ]
            self._look_at(*subscriptions)

    def stop(self) -> None:
        """End all waits, now and from now on."""
        self._stopped = True
        with self._guard:
            tasks = [waiter.task for waiters in self._waiters.values() for waiter in waiters]
            tasks += [] if self._looker is None else [self._looker]
        for task in tasks:
            task.wake()

    def close(self) -> None:
        self.stop()
        if self._await_looker is not None:
            self._await_looker()
        if self._snapshot is not None:
            self._snapshot.close()

    def _look_at(self, *subscriptions: Subscription) -> None:
        with self._guard:
            self._to_look_at.update(dict.fromkeys(subscriptions))
        if subscriptions and self._looker is not None:
            self._looker.wake()

    def _join(self, waiter: _Waiter, subscription: Subscription) -> None:
        with self._guard:
            if self._count >= self._capacity:
                raise TooManyPollers
            self._count += 1
            self._waiters.setdefault(subscription, {})[waiter] = None
            for queue in subscription.queues:
                self._subscriptions.setdefault(queue, {})[subscription] = None
            self.observe(self._count)
            if self._await_looker is None:
                self._await_looker = self._looking_with.start(self._look_out, "queue-waiting")
        self._look_at(subscription)  # a message may have arrived since this reader's claim

    def _leave(self, waiter: _Waiter, subscription: Subscription) -> None:
        with self._guard:
            self._count -= 1
            waiters = self._waiters[subscription]
            del waiters[waiter]
            if not waiters:
                del self._waiters[subscription]
                for queue in set(subscription.queues):
                    del self._subscriptions[queue][subscription]
                    if not self._subscriptions[queue]:
                        del self._subscriptions[queue]
            self.observe(self._count)
        if waiter.is_woken and waiters:
            self._look_at(subscription)  # it may not have taken the message it was woken for

    def _look_out(self) -> None:
        self._looker = task = self._looking_with.current()
        while not self._stopped:
            try:
                self._look()
                task.wait(0.0 if self._to_look_at or self._suspects else self._pause if self._count else None)
            except Exception:  # only this task wakes readers
                _log.exception("could not check for messages for waiting readers")
                self._look_at(*list(self._waiters))
                task.wait(LOOK_AGAIN)

    def _look(self) -> None:
        """Wake readers that have messages."""
        self._snapshot = self._snapshot or self._open_snapshot()
        if not self._suspects:
            self._pause = min(self._pause * 1.25, max(LOOK_SELDOM, self._look_every))
            if self._snapshot.changed():
                self._suspects, self._pause = list(self._subscriptions), self._look_every
        some, self._suspects = self._suspects[:LOOK_AT], self._suspects[LOOK_AT:]
        in_use = self._snapshot.in_use(some) if some else ()
        now = time.monotonic()
        with self._guard:
            for queue in in_use:
                self._to_look_at.update(self._subscriptions.get(queue, {}))
            while self._due and self._due[0][0] <= now:
                *_, subscription = heapq.heappop(self._due)
                self._due_at.pop(subscription, None)
                self._to_look_at[subscription] = None
            subscriptions = list(self._to_look_at)
        for subscription in subscriptions:
            with self._guard:
                del self._to_look_at[subscription]
                waiters = list(self._waiters.get(subscription, ()))
            if waiters:
                self._wake(subscription, waiters)
            if time.monotonic() > now + LOOK_FOR:
                break

    def _wake(self, subscription: Subscription, waiters: list[_Waiter]) -> None:
        assert self._snapshot is not None
        availability = self._snapshot.availability(subscription, len(waiters))
        for waiter in waiters[: availability.ready]:  # a reader already awake takes the first messages
            waiter.wake()
        if availability.due_in is not None:
            due = time.monotonic() + min(availability.due_in, MOST_DUE)
            if due < self._due_at.get(subscription, inf) - LOOK_EVERY:
                self._due_at[subscription] = due
                heapq.heappush(self._due, (due, next(self._numbers), subscription))


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
